"""The verb that looks at the machine itself: doctor."""

from __future__ import annotations

import typer

from edgeclf.cli.common import print_json
from edgeclf.cli.options import Json


def doctor(as_json: Json = False) -> None:
    """Check whether this machine can run edgeclf: packages, runtime, cameras, power, disk, ports.

    Every line that fails ends with the command that mends it. Exit code 1 when one does, else 0. Where edgeclf cannot be
    installed at all, the same runs from its source as: python3 -m edgeclf.runtime.device.doctor

    Example: edgeclf doctor
    """
    from edgeclf.runtime.device.doctor import FAILING, examine, to_json, worst

    checks = examine()
    if as_json:
        print_json(to_json(checks))
    else:
        print("\n".join(map(str, checks)))
    raise typer.Exit(int(worst(checks) == FAILING))
