"""Tuning: many short trainings in search of a better recipe, judged by validation accuracy, never by the test part."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeclf.core import config, files
from edgeclf.core.errors import ConfigError, EdgeclfError, MissingExtra, StorageError
from edgeclf.core.progress import Bar, Report, no_bar
from edgeclf.core.recipe import Recipe, override
from edgeclf.host import architectures
from edgeclf.host.data.dataset import Dataset, make_dataset, open_catalogue, place_of
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.quiet import hushed
from edgeclf.host.train.checkpoint import Row
from edgeclf.host.train.fitting import Listeners, Options, fit, startable
from edgeclf.host.tune import settled
from edgeclf.host.tune.search_space import Dimension, space
from edgeclf.host.tune.study import Asked, State, Study, Trial, free_number, open_study, optuna

if TYPE_CHECKING:
    from edgeclf.host.ray_workers import Workers

VERB = "tune"
SCRATCH = ".trial-"
_SETTINGS = "verb", "recipe", "data", "epochs", "keep", "options"

OnTrial: TypeAlias = Callable[[Trial, Sequence[Trial]], None]
AfterEpoch: TypeAlias = Callable[[Trial, list[Row], int], None]
"""`after_epoch(so_far, rows, epochs)`: the trial as it would be if it were given up now, its epochs, and how many there are."""


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
    """What was found. `importances` are shares by dimension, or empty."""

    tuning: Tuning
    trials: tuple[Trial, ...]
    importances: dict[str, float]

    @property
    def best(self) -> Trial:
        found = best_of(self.trials)
        if found is None:
            raise EdgeclfError(f"{self.tuning.folder}: no trial came to its end")
        return found

    @property
    def given(self) -> Trial | None:
        """The recipe as it was; None where that was not trained yet, but others beside it were."""
        return next((trial for trial in self.trials if trial.number == 1), None)


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
    workers: Workers | None = None,
) -> Tuned:
    """Go on until there are `trials` trials in all, or `minutes` from now are over; then write what was found.

    The first trial is the recipe itself, so nothing worse is chosen. Trials are seeded by their number, so an interrupted
    tuning goes on with those that an undisturbed one has. A trial that Ctrl-C or the time cut short counts for nothing and
    is done again. `on_trial(trial, all)` gets each result, `on_epoch(done, total)` the epochs of each.

    With `workers`, trials run side by side on Ray (`host.tune.ray_tune`): what is proposed then also depends on which of them end
    first, and `on_epoch` counts the epochs of all. Either way goes on with what the other began. Raises EdgeclfError when no
    trial came to its end.
    """
    from edgeclf.host.tune import files as tune_files

    deadline = time.monotonic() + minutes * 60 if minutes is not None else None
    with files.locked(tuning.folder):
        settled.settle(tuning.folder, tuning.settings)
        _clear(tuning.folder)
        with hushed("tensorflow"), open_study(tuning.folder, tuning.recipe, tuning.dimensions) as study:
            search = Search(study, tuning, study.trials(), trials, deadline, on_trial, on_epoch)
            if workers is None:
                _in_turn(search)
            else:
                from edgeclf.host.tune import ray_tune

                ray_tune.side_by_side(search, workers)
                _clear(tuning.folder)
            tuned = Tuned(tuning, tuple(search.found), study.importances())
        if best_of(tuned.trials) is None:
            raise EdgeclfError(f"{tuning.folder}: {_why_nothing(tuned.trials, minutes)}")
        tune_files.write_result(tuned)
    return tuned


@dataclass(frozen=True, eq=False)
class Search:
    """A tuning under way: its trials so far by number, how many there shall be, and when the time is over."""

    study: Study
    tuning: Tuning
    found: list[Trial]
    trials: int
    deadline: float | None
    on_trial: OnTrial | None
    on_epoch: Report | None

    @property
    def left(self) -> int:
        """Trials that are not finished yet."""
        return self.trials - len(self.found)

    @property
    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def ask(self, beside: Iterable[int] = ()) -> Asked[Recipe]:
        """The next trial; `beside` are the numbers of those under way."""
        return self.study.ask(free_number([*beside, *(trial.number for trial in self.found)]))

    def tell(self, asked: Asked[Recipe], trial: Trial) -> None:
        """Keep what came of it, and let others hear."""
        from edgeclf.host.tune import files as tune_files

        self.study.tell(asked, trial)
        self.found.append(trial)
        self.found.sort(key=lambda each: each.number)
        tune_files.write_trials(self.tuning, self.found)
        if self.on_trial:
            self.on_trial(trial, self.found)


def _clear(folder: Path) -> None:
    """Remove what killed processes left of their trials."""
    for left in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)


def _in_turn(search: Search) -> None:
    """One trial after the other, in this process."""
    with contextlib.suppress(_OutOfTime):
        while search.left > 0 and not search.out_of_time:
            asked = search.ask()
            try:
                trial = attempt(asked.number, asked.proposal, search.tuning, _judge(search, asked))
            except BaseException:
                search.study.drop(asked)
                raise
            search.tell(asked, trial)


class _Pruned(Exception):
    """The pruner gave this trial up."""


class _OutOfTime(Exception):
    """The time was over inside a trial."""


def _why_nothing(trials: Sequence[Trial], minutes: float | None) -> str:
    if trials and trials[-1].state == "failed":
        return f"no trial came to its end; the last failed: {trials[-1].reason}"
    within = f" within {minutes:g} minutes; give more --time or fewer --epochs" if minutes is not None else ""
    return f"no trial came to its end{within}"


def _judge(search: Search, asked: Asked[Recipe]) -> AfterEpoch:
    """What happens after an epoch of a trial: it is given up where it is hopeless, and cut where the time is over."""

    def after_epoch(so_far: Trial, rows: list[Row], epochs: int) -> None:
        if search.on_epoch:
            search.on_epoch(len(rows), epochs)
        asked.note(rows[-1]["val_accuracy"], len(rows))
        hopeless = asked.is_hopeless()
        if len(rows) < epochs:
            if search.out_of_time:
                raise _OutOfTime
            if hopeless:
                raise _Pruned

    return after_epoch


def attempt(number: int, recipe: Recipe, tuning: Tuning, after_epoch: AfterEpoch) -> Trial:
    """Train in a folder that is gone afterwards. A trial that cannot be trained has failed; a full disk is raised."""
    rows: list[Row] = []
    began, parameters = time.monotonic(), 0

    def came_to(state: State, accuracy: float | None, reason: str = "") -> Trial:
        seconds = round(time.monotonic() - began, 1)
        return Trial(number, state, recipe, accuracy, len(rows), seconds, parameters, reason)

    def so_far() -> Trial:
        return came_to("pruned", round(rows[-1]["val_accuracy"], 6))

    def on_epoch(row: Row, epochs: int) -> None:
        rows.append(row)
        after_epoch(so_far(), rows, epochs)

    try:
        with scratch(tuning.folder) as folder:
            keras().backend.clear_session()
            parameters = int(architectures.build(recipe, len(tuning.dataset.labels)).count_params())
            fit(recipe, tuning.dataset, folder, tuning.options, Listeners(on_epoch))
    except _Pruned:
        return so_far()
    except (StorageError, MissingExtra):
        raise
    except (EdgeclfError, tensorflow().errors.ResourceExhaustedError) as error:
        if isinstance(error, ConfigError) and number == 1:
            raise  # the recipe itself is wrong
        return came_to("failed", None, _reason(error))
    accuracies = [round(row["val_accuracy"], 6) for row in rows]
    return came_to("done", max(accuracies) if recipe.training.early_stopping else accuracies[-1])  # of the weights kept


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder inside for the block, gone afterwards. Raises StorageError when it cannot be made."""
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
