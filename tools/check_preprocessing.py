"""Whether preprocessing gives the same bytes on an emulated Raspberry Pi as on this host, as JSON.

    python tools/check_preprocessing.py --device pi4 pi5 [--home DIR] [--pictures 300]

Random pictures of many sizes go through every fit and colour of `core.image.prepare` on both sides. Exit code 1 says that
a byte differs, and `differing` how. `--home` is what tools/emulated_pi/build.py built.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "emulated_pi"))
from prepare import PICTURES

from edgeclf.core.errors import MissingExtra
from edgeclf.host.report.emulate import QEMU_CPUS, command, default_home, environment

CHECKOUT = Path(__file__).resolve().parent.parent
PREPARE = Path(__file__).resolve().parent / "emulated_pi" / "prepare.py"
SHOWN = 10


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=QEMU_CPUS, nargs="+", required=True)
    options.add_argument("--home", type=Path, default=default_home(), help="default: %(default)s")
    options.add_argument("--pictures", type=int, default=PICTURES, help="default: %(default)s")
    asked = options.parse_args()
    home, arguments = asked.home.resolve(), [str(PREPARE), str(asked.pictures)]
    here = lines([sys.executable, *arguments])
    try:
        guests = {device: command(home, device, arguments) for device in asked.device}
    except MissingExtra as error:
        raise SystemExit(str(error)) from error
    results = [compare(device, here, lines(guest, environment(home, CHECKOUT))) for device, guest in guests.items()]
    print(json.dumps(results, indent=2))
    sys.exit(0 if all(result["identical"] for result in results) else 1)


def compare(device: str, here: list[str], there: list[str]) -> dict[str, object]:
    """The verdict on one board; `differing` shows the first few of this host's lines that it did not repeat."""
    differing = [mine for mine, its in zip(here, there, strict=False) if mine != its]
    same = here == there and bool(here)
    return {"device": device, "pictures": len(here), "identical": same, "differing": differing[:SHOWN]}


def lines(words: list[str], env: dict[str, str] | None = None) -> list[str]:
    """What the program prints; SystemExit with what it said when it fails."""
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.splitlines()


if __name__ == "__main__":
    main()
