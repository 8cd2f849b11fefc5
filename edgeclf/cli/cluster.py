"""What the verbs that run on Ray share: where the work is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeclf.cli.common import say
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeclf.host.ray_workers import Workers


@contextlib.contextmanager
def working(engine: str, address: str | None, cpus: int | None, gpus: float | None) -> Iterator[Workers | None]:
    """Workers of the cluster that was asked for; None for this process.

    Raises ConfigError for an option that would have no effect, and what `host.ray_workers.workers` raises.
    """
    if engine == "ray":
        from edgeclf.host.ray_workers import workers

        with workers(address, cpus or 1, gpus or 0.0, say) as found:
            each = f"{found.cpus} CPU{'s' if found.cpus > 1 else ''}" + (f" and {found.gpus:g} GPU" if found.gpus else "")
            say(f"Ray: {found.slots} side by side, each with {each}")
            yield found
        return
    for option, given in (("--address", address), ("--cpus-per-trial", cpus), ("--gpus-per-trial", gpus)):
        if given is not None:
            value = given if isinstance(given, str) else f"{given:g}"
            raise ConfigError(f"{option} {value}: is about Ray; give --engine ray too, or leave it out")
    yield None
