"""The seam to Optuna for `optimize`: it proposes files to make, no one twice, and keeps what was measured of them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeclf.core import config
from edgeclf.core.results import PairedDrop
from edgeclf.host.optimize_space import Configuration, Value, configuration, configurations
from edgeclf.host.study import DATABASE, database, drop_running, optuna

STARTUP_TRIALS = 8  # drawn at random before the sampler has enough to learn from


@dataclass(frozen=True)
class Trial:
    """A file that was made and measured on validation pictures; of one that could not be, `reason` says why.

    `structure` names what its kernels compute, `relative_time` is its latency over that of the run's own float32 file.
    """

    number: int
    state: Literal["done", "failed"]
    configuration: Configuration
    seconds: float
    drop: PairedDrop | None = None
    file_bytes: int = 0
    gzip_bytes: int = 0
    structure: str = ""
    relative_time: float = 0.0
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Asked:
    """A proposed file, not made yet."""

    number: int
    configuration: Configuration
    handle: Any


@dataclass(frozen=True, eq=False)
class Study:
    """Files of a run, of `points` that can be made; make it with `open_study`."""

    points: dict[Configuration, dict[str, Value]]
    train: tuple[str, ...]
    trained: bool
    seed: int
    handle: Any
    where: str

    def ask(self, number: int, known: Collection[Configuration]) -> Asked | None:
        """What the sampler (multi-objective TPE) thinks or, where that is `known`, another at random; None when all are known.

        The plain int8 file is the first. The number and earlier trials alone decide.
        """
        left = [point for point in self.points if point not in known]
        if not left:
            return None
        random = np.random.RandomState([self.seed, number])
        self.handle.sampler = optuna().samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=random.randint(2**31))
        if number == 1:
            self.handle.enqueue_trial(self.points[next(point for point in left if point.variant == "int8")])
        asked = self._asked(number)
        if asked.configuration in left:
            return asked
        self.drop(asked)
        self.handle.enqueue_trial(self.points[left[random.randint(len(left))]])
        return self._asked(number)

    def _asked(self, number: int) -> Asked:
        handle = self.handle.ask()
        return Asked(number, configuration(handle.suggest_categorical, self.train, self.trained), handle)

    def tell(self, asked: Asked, trial: Trial) -> None:
        """Keep what came of it."""
        asked.handle.set_user_attr("trial", {key: value for key, value in asdict(trial).items() if value is not None})
        drop = trial.drop
        goals = (drop.drop, trial.relative_time, float(trial.file_bytes)) if drop else None
        self.handle.tell(asked.handle, goals, state=_states()[trial.state])

    def drop(self, asked: Asked) -> None:
        """It was cut short, or known already, and counts for nothing."""
        self.handle.tell(asked.handle, state=_states()["failed"])

    def trials(self) -> list[Trial]:
        """Those that were told, in their order."""
        found = []
        for frozen in self.handle.get_trials(deepcopy=False):
            record = frozen.user_attrs.get("trial")
            if record and frozen.state == _states()[record["state"]]:  # not of a process that was killed in between
                found.append(config.build(Trial, record, self.where))
        return found


@contextlib.contextmanager
def open_study(folder: Path, train: tuple[str, ...], trained: bool, seed: int) -> Iterator[Study]:
    """The study in `folder`, which must be locked; trials that a killed process left there are dropped.

    Raises StorageError when its database is damaged or the disk refuses, also later inside the block.
    """
    with database(folder) as storage:
        goals = ["minimize"] * 3
        handle = optuna().create_study(study_name="optimize", storage=storage, directions=goals, load_if_exists=True)
        drop_running(handle)
        yield Study(configurations(train, trained), train, trained, seed, handle, str(folder / DATABASE))


def _states() -> dict[str, Any]:
    state = optuna().trial.TrialState
    return {"done": state.COMPLETE, "failed": state.FAIL}
