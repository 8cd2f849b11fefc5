"""Cross-validation: K trainings, each scored on the fold it did not see; stratified, equal pictures in one fold."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core import config, files
from edgeclf.core.catalogue import SPLITS
from edgeclf.core.errors import ConfigError, DataError, StorageError
from edgeclf.core.progress import Bar, Report, no_bar
from edgeclf.core.recipe import Recipe
from edgeclf.core.results import Accuracy, Interval, score
from edgeclf.core.text import printable
from edgeclf.host.data.dataset import Dataset, ingest, open_catalogue, place_of
from edgeclf.host.full_model import PREDICT_BATCH, answering
from edgeclf.host.keras import keras
from edgeclf.host.quiet import hushed
from edgeclf.host.train.checkpoint import Row
from edgeclf.host.train.fitting import Listeners, Options, fit, startable
from edgeclf.host.tune import settled

if TYPE_CHECKING:
    from edgeclf.host.ray_workers import Workers

VERB = "crossval"
PREDICTIONS, RESULT = "predictions.csv", "crossval.json"
LEAST_FOLDS, MOST_FOLDS = 2, 50
_SETTINGS = "verb", "recipe", "data", "folds", "options"

Indices: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Plan:
    """A cross-validation as it was started. `fold_of` is int64 (pictures,): from 0, or -1 for a picture that takes no part.

    The parts of `dataset` are `train`, everything that takes part; `test`, what lies in the data's test folder and is not
    touched.
    """

    folder: Path
    recipe: Recipe
    dataset: Dataset
    fold_of: Indices
    options: Options
    settings: dict[str, Any]

    @property
    def folds(self) -> int:
        return int(self.fold_of.max()) + 1


@dataclass(frozen=True)
class Fold:
    """One training: how many of the `pictures` that it did not see it named right."""

    number: int
    right: int
    pictures: int
    epochs: int
    seconds: float
    trained_on: int
    validated_on: int

    @property
    def top1(self) -> float:
        return self.right / self.pictures


OnFold: TypeAlias = Callable[[Fold], None]
Answered: TypeAlias = tuple[Fold, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Mean:
    """Of the folds' top-1 accuracies, fractions: mean, standard deviation, and the t interval with folds - 1 degrees.

    The interval is too narrow: trainings share most of their pictures, so the folds are not independent, and no unbiased
    estimate of the variance exists (Bengio and Grandvalet 2004).
    """

    top1: float
    deviation: float
    interval: Interval


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The folds, their mean, and `pooled`: every picture answered once, by the network that did not see it.

    The Wilson interval of `pooled` is that of these K networks on pictures like these; it does not say how much a training
    on other pictures would differ.
    """

    plan: Plan
    folds: tuple[Fold, ...]
    mean: Mean
    pooled: Accuracy

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.plan.folder),
            "recipe": self.plan.recipe.name,
            "data": self.plan.settings["data"],
            "fingerprint": self.plan.settings["fingerprint"],
            "mean": asdict(self.mean),
            "folds": [asdict(fold) | {"top1": fold.top1} for fold in self.folds],
            "pooled": self.pooled.to_json(),
            "test_pictures_untouched": len(self.plan.dataset.parts["test"]),
            "predictions": str(self.plan.folder / PREDICTIONS),
        }


def start(
    recipe: Recipe,
    data: str,
    folds: int,
    folder: Path | None = None,
    options: Options | None = None,
    progress: Report | None = None,
    say: settled.Say = lambda message: None,
    bar: Bar = no_bar,
) -> Plan:
    """Ingest `data` and draw the folds; where `folder` holds the same cross-validation already, to go on with it.

    Raises ConfigError where it holds something else, DataError when a class has fewer different pictures than folds.
    """
    if not LEAST_FOLDS <= folds <= MOST_FOLDS:
        raise ConfigError(f"--folds {folds}: must lie between {LEAST_FOLDS} and {MOST_FOLDS}")
    settings = {
        "verb": VERB, "recipe": config.to_table(settled.comparable(recipe)), "data": place_of(data), "folds": folds,
        "options": asdict(options or Options()),
    }  # fmt: skip
    return _planned(folder or settled.default_folder(VERB, recipe, data), settings, progress, say, bar)


def resume(
    folder: Path | None = None, progress: Report | None = None, say: settled.Say = lambda message: None, bar: Bar = no_bar
) -> Plan:
    """The one in `folder`, or the newest under `runs/`. Raises ConfigError; DataError when its pictures have changed."""
    folder, settings = settled.settled(VERB, folder, _SETTINGS)
    return _planned(folder, settings, progress, say, bar)


def _planned(folder: Path, settings: dict[str, Any], progress: Report | None, say: settled.Say, bar: Bar) -> Plan:
    where = str(folder / settled.SETTINGS)
    recipe, options = config.build(Recipe, settings["recipe"], where), config.build(Options, settings["options"], where)
    catalogue = open_catalogue(settings["data"])
    settings = {**settings, "fingerprint": catalogue.fingerprint}
    settled.check(folder, settings)
    options, _ = startable(recipe, len(catalogue.labels), options, say, bar)
    shards = ingest(catalogue, recipe.image.spec(), progress)
    test = catalogue.folders == SPLITS.index("test")
    pool = np.flatnonzero(shards.readable & ~test)
    fold_of = np.full(len(catalogue), -1, np.int64)
    fold_of[pool] = drawn_folds(
        catalogue.classes[pool], shards.digests[pool], settings["folds"], recipe.training.seed, catalogue.labels
    )
    parts = {"train": pool, "val": pool[:0], "test": np.flatnonzero(shards.readable & test)}
    return Plan(folder, recipe, Dataset(catalogue, shards, parts, 0), fold_of, options, settings)


def drawn_folds(
    classes: npt.NDArray[np.integer[Any]], digests: npt.NDArray[np.uint64], folds: int, seed: int, labels: tuple[str, ...]
) -> Indices:
    """The fold of each picture, int64 (pictures,): stratified over different pictures, equal ones in the same fold.

    Raises DataError for a class with fewer different pictures than folds.
    """
    from sklearn.model_selection import StratifiedKFold

    _, first, group = np.unique(digests, return_index=True, return_inverse=True)
    of_group, kinds = np.empty(len(first), np.int64), classes[first]
    counts = np.bincount(kinds, minlength=len(labels))
    if counts.min() < folds:
        fewest = int(counts.argmin())
        raise DataError(
            f"class {labels[fewest]!r} has {counts[fewest]} different picture(s), too few for {folds} folds; add some"
        )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    for number, (_, held_out) in enumerate(splitter.split(kinds, kinds)):
        of_group[held_out] = number
    return of_group[group]


def crossvalidate(
    plan: Plan, on_fold: OnFold | None = None, on_epoch: Report | None = None, workers: Workers | None = None
) -> CrossValidation:
    """Train every fold that is not done yet, and write `predictions.csv` and `crossval.json`.

    A finished fold is kept as `fold-N.npz`, and one under way goes on from its checkpoint. `on_fold(fold)` gets each result,
    `on_epoch(done, total)` counts the epochs of all folds. With `workers`, folds are trained side by side on Ray
    (`host.tune.ray_folds`) and come in the order in which they end; either way goes on with what the other began.
    """
    with files.locked(plan.folder), hushed("tensorflow"):
        settled.settle(plan.folder, plan.settings)
        found = _in_turn(plan, on_fold, on_epoch) if workers is None else _side_by_side(plan, on_fold, on_epoch, workers)
        done = tuple(found[number][0] for number in sorted(found))
        order = np.concatenate([_held_out(plan, fold.number) for fold in done])
        logits, truth = np.concatenate([found[fold.number][1] for fold in done]), plan.dataset.catalogue.classes[order]
        result = CrossValidation(plan, done, mean_of([f.top1 for f in done]), score(logits, truth, plan.dataset.labels))
        _write_predictions(plan, order, logits)
        files.write_json(plan.folder / RESULT, result.to_json())
    return result


def _in_turn(plan: Plan, on_fold: OnFold | None, on_epoch: Report | None) -> dict[int, Answered]:
    """One fold after the other, in this process."""
    found = {}
    for number in range(1, plan.folds + 1):
        found[number] = _kept(plan, number) or trained(plan, number, on_epoch)
        if on_fold:
            on_fold(found[number][0])
    return found


def _side_by_side(plan: Plan, on_fold: OnFold | None, on_epoch: Report | None, workers: Workers) -> dict[int, Answered]:
    from edgeclf.host.tune import ray_folds

    found: dict[int, Answered] = {}

    def take(number: int) -> bool:
        kept = _kept(plan, number)
        if kept:
            found[number] = kept
            if on_fold:
                on_fold(kept[0])
        return bool(kept)

    def take_new(number: int) -> None:
        if not take(number):
            raise StorageError(f"{_file(plan, number)}: a worker wrote it elsewhere; put --out on a disk that all machines share")

    missing = [number for number in range(1, plan.folds + 1) if not take(number)]
    ray_folds.side_by_side(plan, missing, take_new, on_epoch, workers)
    return found


def mean_of(accuracies: Sequence[float]) -> Mean:
    """Mean, standard deviation and 95% t interval (Student 1908), cut at 0 and 1; for two accuracies or more."""
    from scipy.stats import t

    mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    half = float(t.ppf(0.975, len(accuracies) - 1)) * deviation / math.sqrt(len(accuracies))
    return Mean(mean, deviation, Interval(max(0.0, mean - half), min(1.0, mean + half)))


def _held_out(plan: Plan, number: int) -> Indices:
    return np.flatnonzero(plan.fold_of == number - 1)


def fold_dataset(plan: Plan, number: int) -> Dataset:
    """What fold `number` (from 1) is trained on: `test` is the fold, `val` a share of the rest."""
    catalogue, digests, section = plan.dataset.catalogue, plan.dataset.shards.digests, plan.recipe.data
    rest = np.flatnonzero((plan.fold_of >= 0) & (plan.fold_of != number - 1))
    share = min(section.val, section.val_pictures / len(rest))
    random = np.random.RandomState([plan.recipe.training.seed, number])
    _, first = np.unique(digests[rest], return_index=True)
    chosen: list[np.uint64] = []
    for i in range(len(catalogue.labels)):
        members = rest[first][catalogue.classes[rest[first]] == i]
        count = min(len(members) - 1, max(1, round(len(members) * share)))
        chosen.extend(digests[random.permutation(members)[:count]])
    is_val = np.isin(digests[rest], np.array(chosen, np.uint64))
    if not is_val.any():
        raise DataError(f"{catalogue.source}: too few pictures to validate on; add some, or take fewer --folds")
    return replace(plan.dataset, parts={"train": rest[~is_val], "val": rest[is_val], "test": _held_out(plan, number)})


def trained(plan: Plan, number: int, on_epoch: Report | None = None) -> Answered:
    """Train a fold and keep what it answers to the pictures that it did not see: float32 (pictures, classes), logits."""
    dataset, epochs = fold_dataset(plan, number), plan.recipe.training.epochs

    def after_epoch(row: Row, total: int) -> None:
        if on_epoch:
            on_epoch((number - 1) * epochs + int(row["epoch"]), plan.folds * epochs)

    folder = scratch(plan, number)
    with files.locked(folder):
        keras().backend.clear_session()
        model, state = fit(plan.recipe, dataset, folder, plan.options, Listeners(after_epoch))
    answer, indices = answering(model), dataset.parts["test"]
    batches = (indices[i : i + PREDICT_BATCH] for i in range(0, len(indices), PREDICT_BATCH))
    logits = np.concatenate([answer(dataset.shards.take(batch)) for batch in batches])
    found = score(logits, dataset.classes_of("test"), dataset.labels)
    seconds = round(sum(row["seconds"] for row in state.history), 1)
    right, pictures = round(found.top1 * found.pictures), found.pictures
    trained_on, validated_on = len(dataset.parts["train"]), len(dataset.parts["val"])
    fold = Fold(number, right, pictures, len(state.history), seconds, trained_on, validated_on)
    record = np.frombuffer(json.dumps(asdict(fold)).encode(), np.uint8)
    with files.writing(_file(plan, number)) as path, path.open("wb") as file:
        np.savez(file, indices=indices, logits=logits, record=record)
    shutil.rmtree(folder, ignore_errors=True)
    return fold, logits


def scratch(plan: Plan, number: int) -> Path:
    """Where a fold under way keeps its checkpoint and history."""
    return plan.folder / f".fold-{number}"


def _kept(plan: Plan, number: int) -> Answered | None:
    """A fold that was finished before; None where there is none, or its file is damaged."""
    path = _file(plan, number)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            if np.array_equal(saved["indices"], _held_out(plan, number)):
                return config.build(Fold, json.loads(saved["record"].tobytes()), str(path)), saved["logits"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        pass
    return None


def _file(plan: Plan, number: int) -> Path:
    return plan.folder / f"fold-{number}.npz"


def _write_predictions(plan: Plan, order: Indices, logits: Any) -> None:
    """One row a picture, in the order of the catalogue: name, fold, true class, answer, whether right, probabilities."""
    catalogue, labels = plan.dataset.catalogue, plan.dataset.labels
    exponents = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "fold", "truth", "answer", "right", *(f"p({label})" for label in labels)])
    for row in np.argsort(order):
        i, answer = order[row], int(logits[row].argmax())
        truth = int(catalogue.classes[i])
        shares = (f"{p:.6f}" for p in probabilities[row])
        fold = plan.fold_of[i] + 1
        writer.writerow([printable(catalogue.names[i]), fold, labels[truth], labels[answer], int(answer == truth), *shares])
    files.write_text(plan.folder / PREDICTIONS, text.getvalue())
