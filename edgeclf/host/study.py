"""The seam to Optuna: it proposes points, judges trials under way, and keeps them in a database in the folder."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeclf.core.errors import MissingExtra, StorageError
from edgeclf.core.recipe import Recipe
from edgeclf.host.search_space import Choice, Dimension, Value, own_point, recipe_at

DATABASE = "trials.db"
STARTUP_TRIALS = 8  # drawn at random before the sampler has enough to learn from
PRUNED_AFTER, PRUNED_FROM = 4, 1 / 3  # no trial is cut before so many were finished, nor in that share of its epochs
LEAST_FOR_IMPORTANCE = 10  # different accuracies; from fewer, the shares are noise

State = Literal["done", "pruned", "failed"]


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
class Asked:
    """A proposed training, under way."""

    number: int
    recipe: Recipe
    handle: Any

    def is_hopeless(self, accuracy: float, epoch: int) -> bool:
        """Note the validation accuracy after `epoch`; whether the trial lies below the median of the others there."""
        self.handle.report(accuracy, epoch)
        return bool(self.handle.should_prune())


@dataclass(frozen=True, eq=False)
class Study:
    """Trials around `recipe`; make it with `open_study`."""

    recipe: Recipe
    dimensions: tuple[Dimension, ...]
    handle: Any

    def ask(self, number: int) -> Asked:
        """The recipe itself as number 1, then what the sampler thinks; number and earlier trials alone decide."""
        seed = np.random.RandomState([self.recipe.training.seed, number]).randint(2**31)
        self.handle.sampler = optuna().samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=int(seed))
        if number == 1:
            self.handle.enqueue_trial(own_point(self.recipe, self.dimensions))
        asked = self.handle.ask()
        for dimension in self.dimensions:
            if isinstance(dimension, Choice):
                asked.suggest_categorical(dimension.name, dimension.values)
            else:
                asked.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)
        return Asked(number, self._recipe(asked), asked)

    def tell(self, asked: Asked, trial: Trial) -> None:
        """Keep what came of it."""
        asked.handle.set_user_attr("trial", {key: value for key, value in vars(trial).items() if key != "recipe"})
        self.handle.tell(asked.handle, trial.accuracy if trial.state == "done" else None, state=_states()[trial.state])

    def drop(self, asked: Asked) -> None:
        """It was cut short and counts for nothing."""
        self.handle.tell(asked.handle, state=_states()["failed"])

    def trials(self) -> list[Trial]:
        """Those that were told, in their order."""
        found = []
        for frozen in self.handle.get_trials(deepcopy=False):
            record = frozen.user_attrs.get("trial")
            if record and frozen.state == _states()[record["state"]]:
                found.append(Trial(recipe=self._recipe(frozen), **record))
        return found

    def importances(self) -> dict[str, float]:
        """How much each dimension mattered (PED-ANOVA, Watanabe et al. 2023), adding up to 1; empty where too little is known."""
        done = self.handle.get_trials(deepcopy=False, states=(_states()["done"],))
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


def drop_running(study: Any) -> None:
    """End trials that a killed process left under way; they count for nothing."""
    states = optuna().trial.TrialState
    for left in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        study.tell(left.number, state=states.FAIL)


def _states() -> dict[str, Any]:
    state = optuna().trial.TrialState
    return {"done": state.COMPLETE, "pruned": state.PRUNED, "failed": state.FAIL}
