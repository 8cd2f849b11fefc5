"""The seam to Optuna: it proposes points, judges trials under way, and keeps them in a database in the folder.

`optimize_study` stands on the same database, sampler and proposals.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from edgeclf.core.errors import MissingExtra, StorageError
from edgeclf.core.recipe import Recipe
from edgeclf.host.tune.search_space import Choice, Dimension, Value, own_point, recipe_at

DATABASE = "trials.db"
STARTUP_TRIALS = 8  # drawn at random before the sampler has enough to learn from
PRUNED_AFTER, PRUNED_FROM = 4, 1 / 3  # no trial is cut before so many were finished, nor in that share of its epochs
LEAST_FOR_IMPORTANCE = 10  # different accuracies; from fewer, the shares are noise

State = Literal["done", "pruned", "failed"]
Proposal = TypeVar("Proposal")


@dataclass(frozen=True)
class Trial:
    """One training. `accuracy` is that of its validation, a fraction; None where it failed, and `reason` says why."""

    number: int
    state: State
    recipe: Recipe
    accuracy: float | None
    epochs: int
    seconds: float
    parameters: int
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Asked(Generic[Proposal]):
    """A trial that was proposed and is under way; `handle` is Optuna's own."""

    number: int
    proposal: Proposal
    handle: Any

    def note(self, accuracy: float, epoch: int) -> None:
        """Keep the validation accuracy after `epoch`, once for each."""
        self.handle.report(accuracy, epoch)

    def is_hopeless(self) -> bool:
        """Whether it lies below the median of the others at the epoch that was noted last."""
        return bool(self.handle.should_prune())


@dataclass(frozen=True, eq=False)
class Study:
    """Trials around `recipe`; make it with `open_study`."""

    recipe: Recipe
    dimensions: tuple[Dimension, ...]
    handle: Any

    def ask(self, number: int) -> Asked[Recipe]:
        """The recipe itself as number 1, then what the sampler thinks; number and earlier trials alone decide."""
        seed_sampler(self.handle, self.recipe.training.seed, number)
        if number == 1:
            self.handle.enqueue_trial(own_point(self.recipe, self.dimensions))
        asked = self.handle.ask()
        for dimension in self.dimensions:
            if isinstance(dimension, Choice):
                asked.suggest_categorical(dimension.name, dimension.values)
            else:
                asked.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)
        return Asked(number, self._recipe(asked), asked)

    def tell(self, asked: Asked[Recipe], trial: Trial) -> None:
        """Keep what came of it."""
        record = {key: value for key, value in vars(trial).items() if key != "recipe"}
        tell(self.handle, asked, record, trial.accuracy if trial.state == "done" else None)

    def drop(self, asked: Asked[Recipe]) -> None:
        """It was cut short and counts for nothing."""
        drop(self.handle, asked)

    def trials(self) -> list[Trial]:
        """Those that were told, by number."""
        found = [Trial(recipe=self._recipe(frozen), **record) for frozen, record in told(self.handle)]
        return sorted(found, key=lambda trial: trial.number)

    def importances(self) -> dict[str, float]:
        """How much each dimension mattered (PED-ANOVA, Watanabe et al. 2023), adding up to 1; empty where too little is known."""
        done = self.handle.get_trials(deepcopy=False, states=(states()["done"],))
        if len({trial.value for trial in done}) < LEAST_FOR_IMPORTANCE:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # called experimental by older versions
            evaluator = optuna().importance.PedAnovaImportanceEvaluator()
            found = optuna().importance.get_param_importances(self.handle, evaluator=evaluator)
        return {name: float(share) for name, share in found.items() if np.isfinite(share)}

    def _recipe(self, trial: Any) -> Recipe:
        point: dict[str, Value] = {dimension.name: trial.params[dimension.name] for dimension in self.dimensions}
        return recipe_at(self.recipe, point)


def optuna(verb: str = "tune") -> Any:
    """The module, silent but for errors. Raises MissingExtra, naming the verb that needs it."""
    try:
        import optuna as module
    except ImportError as error:
        raise MissingExtra.for_extra("tune", f"'{verb}' needs Optuna, which is not installed") from error
    module.logging.set_verbosity(module.logging.ERROR)
    return module


@contextlib.contextmanager
def open_study(folder: Path, recipe: Recipe, dimensions: Sequence[Dimension]) -> Iterator[Study]:
    """The study in `folder`, which must be locked; trials that a killed process left there are dropped.

    Raises StorageError when its database is damaged or the disk refuses, also later inside the block.
    """
    with database(folder) as storage:
        yield Study(recipe, tuple(dimensions), _handle(storage, recipe.training.epochs))


@contextlib.contextmanager
def database(folder: Path) -> Iterator[Any]:
    """Optuna's storage in `folder`, which must be locked.

    Raises StorageError when it is damaged or the disk refuses, also later inside the block.
    """
    path, module = folder / DATABASE, optuna()
    from sqlalchemy.exc import SQLAlchemyError

    def connect() -> sqlite3.Connection:  # by path: in an address, a question mark in it would end it
        return sqlite3.connect(path, check_same_thread=False)

    try:
        yield module.storages.RDBStorage("sqlite:///" + path.name, engine_kwargs={"creator": connect})
    except (SQLAlchemyError, module.exceptions.StorageInternalError, sqlite3.Error) as error:
        cause = error if isinstance(error, (SQLAlchemyError, sqlite3.Error)) else error.__cause__ or error
        reason = str(getattr(cause, "orig", cause)).partition("\n")[0]
        raise StorageError(f"{path}: cannot be used: {reason}; free the disk, or choose another --out") from error


def _handle(storage: Any, epochs: int) -> Any:
    module = optuna()
    pruner = module.pruners.MedianPruner(PRUNED_AFTER, n_warmup_steps=1 + math.ceil(epochs * PRUNED_FROM))
    study = module.create_study(study_name="tune", storage=storage, direction="maximize", pruner=pruner, load_if_exists=True)
    drop_running(study)
    return study


def seed_sampler(study: Any, seed: int, number: int) -> np.random.RandomState:
    """Give Optuna's study a TPE sampler for the trial of that number; returns the source of chance that it was seeded from."""
    random = np.random.RandomState([seed, number])
    study.sampler = optuna().samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=int(random.randint(2**31)))
    return random


def tell(study: Any, asked: Asked[Any], record: dict[str, Any], goals: Any) -> None:
    """Keep what came of a trial: `record`, whose `state` says how it ended, and the value or values of a finished one."""
    asked.handle.set_user_attr("trial", record)
    study.tell(asked.handle, goals, state=states()[record["state"]])


def told(study: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Optuna's trials that were told, each with its record; none of a process that was killed in between."""
    for frozen in study.get_trials(deepcopy=False):
        record = frozen.user_attrs.get("trial")
        if record and frozen.state == states()[record["state"]]:
            yield frozen, record


def drop(study: Any, asked: Asked[Any]) -> None:
    """End a trial that was cut short; it counts for nothing."""
    study.tell(asked.handle, state=states()["failed"])


def drop_running(study: Any) -> None:
    """End trials that a killed process left under way; they count for nothing."""
    running = optuna().trial.TrialState.RUNNING
    for left in study.get_trials(deepcopy=False, states=(running,)):
        study.tell(left.number, state=states()["failed"])


def free_number(taken: Iterable[int]) -> int:
    """The least number from 1 that is not taken; trials that ran side by side may have left gaps."""
    known = set(taken)
    return next(number for number in range(1, len(known) + 2) if number not in known)


def states() -> dict[str, Any]:
    """How trials end, as Optuna calls it."""
    state = optuna().trial.TrialState
    return {"done": state.COMPLETE, "pruned": state.PRUNED, "failed": state.FAIL}
