"""Run Python as an emulated Raspberry Pi would: `python tools/emulated_pi/run.py --device pi4 -- -m edgeclf predict …`.

What follows `--` goes to the emulated Python, which sees the packages of locks/base.lock and this checkout.
Wall time under emulation says nothing about a board.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from build import BOARDS, PYTHONS, default_home

CHECKOUT = Path(__file__).resolve().parent.parent.parent
STARTUP = 'import os, sys\n\nsys.executable = os.environ["EMULATED_PYTHON"]\n'


def command(home: Path, device: str, arguments: Sequence[str], counted: bool = False) -> list[str]:
    """The command line that runs `python arguments…` in the user space of `device`; `counted` loads the counter.

    Raises SystemExit when `home` was not built or qemu-aarch64 is missing.
    """
    qemu, root = shutil.which("qemu-aarch64"), home / device
    if qemu is None or not (home / "suite").is_file():
        raise SystemExit(f"{home}: no emulated Pi here; build it: python tools/emulated_pi/build.py {home}")
    python = root / "usr/bin" / f"python{PYTHONS[(home / 'suite').read_text().strip()]}"
    plugin = ["-plugin", str(home / "counter.so")] if counted else []
    return [qemu, "-cpu", BOARDS[device].qemu_cpu, "-L", str(root), *plugin, str(python), *arguments]


def environment(home: Path) -> dict[str, str]:
    """The guest's environment: its wheels and this checkout on the path, and nothing random."""
    path = os.pathsep.join([str(home / "site"), str(CHECKOUT)])
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1"}


def with_children(home: Path, device: str) -> dict[str, str]:
    """As `environment`, and processes that the guest starts from `sys.executable` are emulated too.

    The host's kernel cannot run the guest's Python, so `sys.executable` becomes a script that calls qemu again.
    """
    script, startup = home / f"python-{device}", home / "startup"
    startup.mkdir(exist_ok=True)
    (startup / "sitecustomize.py").write_text(STARTUP)
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command(home, device, []))} "$@"\n')
    script.chmod(0o755)
    found = environment(home)
    return {**found, "PYTHONPATH": f"{startup}{os.pathsep}{found['PYTHONPATH']}", "EMULATED_PYTHON": str(script)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--home", type=Path, default=default_home(), help="where build.py put it (default: %(default)s)")
    options.add_argument("--device", choices=BOARDS, default="pi4", help="default: %(default)s")
    options.add_argument("arguments", nargs="*", help="what to give to the emulated Python")
    asked = options.parse_args()
    home = asked.home.resolve()
    words = command(home, asked.device, asked.arguments)
    sys.exit(subprocess.run(words, env=with_children(home, asked.device), check=False).returncode)


if __name__ == "__main__":
    main()
