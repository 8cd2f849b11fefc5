"""The seam to Optuna for `optimize`: it proposes files to make, no one twice, and keeps what was measured of them."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgeclf.core import config
from edgeclf.core.results import PairedDrop
from edgeclf.host.optimize.space import Configuration, Value, configuration, configurations
from edgeclf.host.tune.study import DATABASE, Asked, database, drop, drop_running, optuna, seed_sampler, tell, told


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
class Study:
    """Files of a run, of `points` that can be made; make it with `open_study`."""

    points: dict[Configuration, dict[str, Value]]
    train: tuple[str, ...]
    trained: bool
    pruned: bool
    seed: int
    handle: Any
    where: str

    def ask(self, number: int, known: Collection[Configuration]) -> Asked[Configuration] | None:
        """What the sampler (multi-objective TPE) thinks or, where that is `known`, another at random; None when all are known.

        The plain int8 file is the first. The number and earlier trials alone decide.
        """
        left = [point for point in self.points if point not in known]
        if not left:
            return None
        random = seed_sampler(self.handle, self.seed, number)
        if number == 1:
            self.handle.enqueue_trial(self.points[next(point for point in left if point.variant == "int8")])
        asked = self._asked(number)
        if asked.proposal in left:
            return asked
        self.drop(asked)
        self.handle.enqueue_trial(self.points[left[random.randint(len(left))]])
        return self._asked(number)

    def _asked(self, number: int) -> Asked[Configuration]:
        handle = self.handle.ask()
        return Asked(number, configuration(handle.suggest_categorical, self.train, self.trained, self.pruned), handle)

    def tell(self, asked: Asked[Configuration], trial: Trial) -> None:
        """Keep what came of it."""
        record = {key: value for key, value in asdict(trial).items() if value is not None}
        lost = trial.drop
        tell(self.handle, asked, record, (lost.drop, trial.relative_time, float(trial.file_bytes)) if lost else None)

    def drop(self, asked: Asked[Configuration]) -> None:
        """It was cut short, or known already, and counts for nothing."""
        drop(self.handle, asked)

    def trials(self) -> list[Trial]:
        """Those that were told, in their order."""
        return [config.build(Trial, record, self.where) for _, record in told(self.handle)]


@contextlib.contextmanager
def open_study(folder: Path, train: tuple[str, ...], trained: bool, pruned: bool, seed: int) -> Iterator[Study]:
    """The study in `folder`, which must be locked; trials that a killed process left there are dropped.

    `train`, `trained` and `pruned` are those of `optimize_space.configuration`.

    Raises StorageError when its database is damaged or the disk refuses, also later inside the block.
    """
    with database(folder) as storage:
        goals = ["minimize"] * 3
        handle = optuna().create_study(study_name="optimize", storage=storage, directions=goals, load_if_exists=True)
        drop_running(handle)
        points = configurations(train, trained, pruned)
        yield Study(points, train, trained, pruned, seed, handle, str(folder / DATABASE))
