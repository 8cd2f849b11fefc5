"""Tuning: many short trainings in search of a better recipe, judged by validation accuracy, never by the test part."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from edgeclf.core import config, files
from edgeclf.core.errors import ConfigError, EdgeclfError, MissingExtra, StorageError
from edgeclf.core.progress import Bar, Report, no_bar
from edgeclf.core.recipe import Recipe, override
from edgeclf.host import architectures, settled
from edgeclf.host.checkpoint import Row
from edgeclf.host.data import Dataset, make_dataset, open_catalogue, place_of
from edgeclf.host.fitting import Listeners, Options, fit, startable
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.quiet import hushed
from edgeclf.host.search_space import Dimension, space
from edgeclf.host.study import Asked, State, Study, Trial, open_study, optuna

VERB = "tune"
SCRATCH = ".trial-"
_SETTINGS = "verb", "recipe", "data", "epochs", "keep", "options"

OnTrial: TypeAlias = Callable[[Trial, Sequence[Trial]], None]
AfterEpoch: TypeAlias = Callable[[Asked, list[Row], int], None]


@dataclass(frozen=True, eq=False)
class Tuning:
    """A tuning as it was started. `recipe` has the epochs of a trial; the best recipe gets back `epochs`."""

    folder: Path
    recipe: Recipe
    epochs: int
    dataset: Dataset
    dimensions: tuple[Dimension, ...]
    options: Options
    settings: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Tuned:
    """What was found. The first trial is the recipe as it was; `importances` are shares by dimension, or empty."""

    tuning: Tuning
    trials: tuple[Trial, ...]
    importances: dict[str, float]

    @property
    def best(self) -> Trial:
        found = best_of(self.trials)
        if found is None:
            raise EdgeclfError(f"{self.tuning.folder}: no trial came to its end")
        return found


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The finished trial with the highest validation accuracy, the first of equals."""
    done = [trial for trial in trials if trial.state == "done"]
    return max(done, key=lambda trial: (trial.accuracy or 0.0, -trial.number), default=None)


def start(
    recipe: Recipe,
    data: str,
    folder: Path | None = None,
    epochs: int | None = None,
    keep: Sequence[str] = (),
    options: Options | None = None,
    progress: Report | None = None,
    say: settled.Say = lambda message: None,
    bar: Bar = no_bar,
) -> Tuning:
    """Ingest `data` and plan a search around `recipe`; where `folder` holds the same search already, to go on with it.

    `epochs` are those of a trial (default: the recipe's own); `keep` names what is not searched. Raises ConfigError where
    the folder holds something else, MissingExtra without Optuna.
    """
    settings = {
        "verb": VERB, "recipe": config.to_table(settled.comparable(recipe)), "data": place_of(data), "epochs": epochs,
        "keep": sorted(keep), "options": asdict(options or Options()),
    }  # fmt: skip
    return _planned(folder or settled.default_folder(VERB, recipe, data), settings, progress, say, bar)


def resume(
    folder: Path | None = None, progress: Report | None = None, say: settled.Say = lambda message: None, bar: Bar = no_bar
) -> Tuning:
    """The tuning in `folder`, or the newest under `runs/`. Raises ConfigError; DataError when its pictures have changed."""
    folder, settings = settled.settled(VERB, folder, _SETTINGS)
    return _planned(folder, settings, progress, say, bar)


def _planned(folder: Path, settings: dict[str, Any], progress: Report | None, say: settled.Say, bar: Bar) -> Tuning:
    optuna()  # or MissingExtra, before the pictures are read
    where = str(folder / settled.SETTINGS)
    recipe, options = config.build(Recipe, settings["recipe"], where), config.build(Options, settings["options"], where)
    if recipe.transfer.thaw == "none" and (options.weights or recipe.transfer.weights != "none"):
        raise ConfigError(f"{recipe.name}: transfer.thaw = none leaves nothing that tune searches; --set transfer.thaw=all")
    short, trained = override(recipe, training__epochs=settings["epochs"]), bool(options.weights)
    space(short, recipe.data.val_pictures, settings["keep"], trained)  # a typo in it is told before pictures are read
    catalogue = open_catalogue(settings["data"])
    settings = {**settings, "fingerprint": catalogue.fingerprint}
    settled.check(folder, settings)
    options, _ = startable(recipe, len(catalogue.labels), options, say, bar)
    dataset = make_dataset(catalogue, recipe, recipe.split, progress)
    dimensions = space(short, len(dataset.parts["train"]), settings["keep"], trained)
    return Tuning(folder, short, recipe.training.epochs, dataset, dimensions, options, settings)


def tune(
    tuning: Tuning,
    trials: int,
    minutes: float | None = None,
    on_trial: OnTrial | None = None,
    on_epoch: Report | None = None,
) -> Tuned:
    """Go on until there are `trials` trials in all, or `minutes` from now are over; then write what was found.

    The first trial is the recipe itself, so nothing worse is chosen. Trials are seeded by their number, so an interrupted
    tuning goes on with those that an undisturbed one has. A trial that Ctrl-C or the time cut short counts for nothing and
    is done again. `on_trial(trial, all)` gets each result, `on_epoch(done, total)` the epochs of each. Raises EdgeclfError
    when no trial came to its end.
    """
    from edgeclf.host import tune_files

    deadline = time.monotonic() + minutes * 60 if minutes is not None else None
    with files.locked(tuning.folder):
        settled.settle(tuning.folder, tuning.settings)
        for left in tuning.folder.glob(f"{SCRATCH}*"):  # of a killed process
            shutil.rmtree(left, ignore_errors=True)
        with hushed("tensorflow"), open_study(tuning.folder, tuning.recipe, tuning.dimensions) as study:
            found = study.trials()
            with contextlib.suppress(_OutOfTime):
                while len(found) < trials and not _over(deadline):
                    found.append(_one_trial(study, tuning, len(found) + 1, _judge(deadline, on_epoch)))
                    tune_files.write_trials(tuning, found)
                    if on_trial:
                        on_trial(found[-1], found)
            tuned = Tuned(tuning, tuple(found), study.importances())
        if best_of(found) is None:
            raise EdgeclfError(f"{tuning.folder}: {_why_nothing(found, minutes)}")
        tune_files.write_result(tuned)
    return tuned


class _Pruned(Exception):
    """The pruner gave this trial up."""


class _OutOfTime(Exception):
    """The time was over inside a trial."""


def _over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _why_nothing(trials: Sequence[Trial], minutes: float | None) -> str:
    if trials and trials[-1].state == "failed":
        return f"no trial came to its end; the last failed: {trials[-1].reason}"
    within = f" within {minutes:g} minutes; give more --time or fewer --epochs" if minutes is not None else ""
    return f"no trial came to its end{within}"


def _judge(deadline: float | None, on_epoch: Report | None) -> AfterEpoch:
    """What happens after an epoch of a trial: it is given up where it is hopeless, and cut where the time is over."""

    def after_epoch(asked: Asked, rows: list[Row], epochs: int) -> None:
        if on_epoch:
            on_epoch(len(rows), epochs)
        hopeless = asked.is_hopeless(rows[-1]["val_accuracy"], len(rows))
        if len(rows) < epochs:
            if _over(deadline):
                raise _OutOfTime
            if hopeless:
                raise _Pruned

    return after_epoch


def _one_trial(study: Study, tuning: Tuning, number: int, after_epoch: AfterEpoch) -> Trial:
    """Train what is proposed and keep what came of it."""
    asked = study.ask(number)
    try:
        trial = _attempt(asked, tuning, after_epoch)
    except BaseException:
        study.drop(asked)
        raise
    study.tell(asked, trial)
    return trial


def _attempt(asked: Asked, tuning: Tuning, after_epoch: AfterEpoch) -> Trial:
    """Train in a folder that is gone afterwards. A trial that cannot be trained has failed; a full disk is raised."""
    rows: list[Row] = []
    began, parameters = time.monotonic(), 0

    def on_epoch(row: Row, epochs: int) -> None:
        rows.append(row)
        after_epoch(asked, rows, epochs)

    def came_to(state: State, accuracy: float | None, reason: str = "") -> Trial:
        seconds = round(time.monotonic() - began, 1)
        return Trial(asked.number, state, asked.recipe, accuracy, len(rows), seconds, parameters, reason)

    try:
        with _scratch(tuning.folder) as folder:
            keras().backend.clear_session()
            parameters = int(architectures.build(asked.recipe, len(tuning.dataset.labels)).count_params())
            fit(asked.recipe, tuning.dataset, folder, tuning.options, Listeners(on_epoch))
    except _Pruned:
        return came_to("pruned", round(rows[-1]["val_accuracy"], 6))
    except (StorageError, MissingExtra):
        raise
    except (EdgeclfError, tensorflow().errors.ResourceExhaustedError) as error:
        if isinstance(error, ConfigError) and asked.number == 1:
            raise  # the recipe itself is wrong
        return came_to("failed", None, _reason(error))
    accuracies = [round(row["val_accuracy"], 6) for row in rows]
    return came_to("done", max(accuracies) if asked.recipe.training.early_stopping else accuracies[-1])  # of the weights kept


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    try:
        made = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=folder))
    except OSError as error:
        raise StorageError(f"{folder}: cannot write: {error.strerror or error}") from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _reason(error: Exception) -> str:
    """Why a trial failed, without the name of its folder, which is gone, nor advice."""
    if not isinstance(error, EdgeclfError):
        return "out of memory"
    where, colon, rest = str(error).partition(": ")
    return rest.partition(";")[0] if colon and SCRATCH in where else str(error)
