"""`python -m edgeclf`, and what the command `edgeclf` calls."""

import sys


def main() -> None:
    """Run the program; Ctrl-C while it is still being imported ends it as at any later moment, with exit code 130."""
    try:
        from edgeclf.cli.main import main as program

        program()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
