"""Run Python as an emulated Raspberry Pi would: `python tools/emulated_pi/run.py --device pi4 -- -m edgeclf predict …`.

What follows `--` goes to the emulated Python, which sees the packages of locks/base.lock and this checkout.
Wall time under emulation says nothing about a board.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from edgeclf.core.errors import MissingExtra
from edgeclf.host.report.emulate import QEMU_CPUS, command, default_home, environment

CHECKOUT = Path(__file__).resolve().parent.parent.parent
STARTUP = 'import os, sys\n\nsys.executable = os.environ["EMULATED_PYTHON"]\n'


def with_children(home: Path, device: str) -> dict[str, str]:
    """The guest sees this checkout, and processes that the guest starts from `sys.executable` are emulated too.

    The host's kernel cannot run the guest's Python, so `sys.executable` becomes a script that calls qemu again.
    """
    script, startup = home / f"python-{device}", home / "startup"
    startup.mkdir(exist_ok=True)
    (startup / "sitecustomize.py").write_text(STARTUP)
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command(home, device, []))} "$@"\n')
    script.chmod(0o755)
    found = environment(home, CHECKOUT)
    return {**found, "PYTHONPATH": f"{startup}{os.pathsep}{found['PYTHONPATH']}", "EMULATED_PYTHON": str(script)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--home", type=Path, default=default_home(), help="where build.py put it (default: %(default)s)")
    options.add_argument("--device", choices=QEMU_CPUS, default="pi4", help="default: %(default)s")
    options.add_argument("arguments", nargs="*", help="what to give to the emulated Python")
    asked = options.parse_args()
    home = asked.home.resolve()
    try:
        words = command(home, asked.device, asked.arguments)
    except MissingExtra as error:
        raise SystemExit(str(error)) from error
    sys.exit(subprocess.run(words, env=with_children(home, asked.device), check=False).returncode)


if __name__ == "__main__":
    main()
