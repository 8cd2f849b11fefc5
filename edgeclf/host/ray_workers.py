"""Workers of a Ray cluster for tune, crossval and optimize: what each may use, how many fit, and how their errors come home."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.core.errors import ClusterError, ConfigError, StorageError
from edgeclf.host.tune.settled import Say
from edgeclf.runtime.cluster import TRAINING_PACKAGES, connect

RETRIES = 3  # of a piece of work whose worker is lost


@dataclass(frozen=True, eq=False)
class Workers:
    """A connected cluster. Each piece of work has `cpus` and `gpus` of its own; `slots` of them run side by side.

    `say` hears of workers that were lost.
    """

    ray: Any
    cpus: int
    gpus: float
    slots: int
    say: Say

    def task(self, function: Callable[..., Any]) -> Any:
        """`function`, which a worker imports by its name, as `task.remote(…)`; run again where its worker is lost."""
        return self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(function)

    def setting(self) -> Setting:
        """What each piece of work is given."""
        return Setting.here(self.cpus, self.gpus)

    def result(self, reference: Any, what: str) -> Any:
        """What a task came to; raises what it raised, and ClusterError, naming `what`, when its worker was lost too often."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self.ray.exceptions.RayError as error:
            raise ClusterError(f"{what}: {lost(error)}") from error

    @contextlib.contextmanager
    def cancelling(self, references: dict[Any, Any]) -> Iterator[None]:
        """At the end of the block, stop the tasks that are still keys of `references`, as after an error or Ctrl-C."""
        try:
            yield
        finally:
            for reference in references:
                with contextlib.suppress(self.ray.exceptions.RayError):
                    self.ray.cancel(reference, force=True)


@dataclass(frozen=True)
class Setting:
    """Where and with what a worker works. `folder` and `command` are the driver's: paths and provenance mean the same."""

    folder: str
    command: tuple[str, ...]
    cpus: int
    gpus: float = 0.0

    @classmethod
    def here(cls, cpus: int, gpus: float) -> Setting:
        """That of this process, which is the driver."""
        return cls(str(Path.cwd()), tuple(sys.argv), cpus, gpus)

    def settle(self, results: Path) -> None:
        """Make this process a worker that uses its own CPUs and GPUs only; before TensorFlow is imported.

        Raises StorageError when `results`, where the driver keeps them, is not there on this machine.
        """
        for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "PYTHON_CPU_COUNT"):
            os.environ[name] = str(self.cpus)
        if self.gpus:
            os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # a share of a GPU leaves the rest of its memory to others
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        sys.argv = list(self.command)
        with contextlib.suppress(OSError):  # not there on this machine: what needs it will say so
            os.chdir(self.folder)
        if not results.is_dir():
            raise StorageError(
                f"{results}: is not there on {socket.gethostname()}; put it on a disk that all machines see under that path"
            )


@contextlib.contextmanager
def workers(address: str | None, cpus: int = 1, gpus: float = 0.0, say: Say = lambda message: None) -> Iterator[Workers]:
    """Join the cluster at `address`, or start one here for None; stop at the end what was started.

    Raises what `connect` raises, and ConfigError where no machine of it has so many CPUs or GPUs.
    """
    with connect(address, packages=TRAINING_PACKAGES) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Workers(ray, cpus, gpus, slots(machines, cpus, gpus), say)


def slots(machines: list[dict[str, float]], cpus: int, gpus: float) -> int:
    """How many pieces of work run side by side on machines with these resources. Raises ConfigError where none fits."""
    for name, wanted, kind in (("--cpus-per-trial", cpus, "CPU"), ("--gpus-per-trial", gpus, "GPU")):
        most = max((machine.get(kind, 0.0) for machine in machines), default=0.0)
        if wanted > most:
            raise ConfigError(f"{name} {wanted:g}: no machine of this cluster has more than {most:g} {kind}s")
    found = sum(room(machine, cpus, gpus) for machine in machines)
    if not found:
        raise ConfigError(f"--gpus-per-trial {gpus:g}: no machine of this cluster with so many GPUs has {cpus} CPUs")
    return found


def room(machine: dict[str, float], cpus: int, gpus: float) -> int:
    """How many workers with so much each a machine with these resources can hold."""
    by_cpus = int(machine.get("CPU", 0.0) // cpus)
    return min(by_cpus, int(machine.get("GPU", 0.0) / gpus)) if gpus else by_cpus


def lost(error: BaseException) -> str:
    """That a piece of work was given up, and why Ray thinks so, in a line."""
    why = "it was out of memory" if type(error).__name__ == "OutOfMemoryError" else "killed, or its machine lost"
    return f"its worker was lost {RETRIES + 1} times ({why}); see Ray's logs, or give each more with --cpus-per-trial"
