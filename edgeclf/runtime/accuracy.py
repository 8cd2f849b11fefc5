"""Accuracy of a deployable file on pictures: decode, prepare and invoke on all cores, as the device would, one by one.

And which pictures are fair: `held_out` to measure on, `validation` to fit a temperature and thresholds on.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core import calibrate, results, unknown
from edgeclf.core.card import ModelCard
from edgeclf.core.catalogue import SPLITS, UNSPLIT, Catalogue, reader, split
from edgeclf.core.errors import ConfigError, DataError, ModelError
from edgeclf.core.progress import Report
from edgeclf.runtime.classifier import Classifier, load
from edgeclf.runtime.engine import Scores, cores

# Pictures of one task: enough to be worth handing out, few enough that all workers end together.
LEAST_CHUNK, MOST_CHUNK, TASKS_EACH = 8, 128, 32

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a model answered. Rows are the readable pictures of `indices`, in that order.

    `scores` is float32 (pictures, classes), logits in label order; `truth` int64 (pictures,), indices into the model's
    labels. `skipped` lists (name, reason) of unreadable pictures, which count nowhere. `accuracy` is that of the likeliest
    classes, whatever the limits in `card` say. `source` is where the pictures lie.
    """

    card: ModelCard
    source: Path
    scores: Scores
    truth: Indices
    indices: Indices
    accuracy: results.Accuracy
    skipped: tuple[tuple[str, str], ...]

    @cached_property
    def calibration(self) -> calibrate.Calibration:
        """How far the probabilities are off, with the temperature in the card."""
        return calibrate.calibration(self.scores, self.truth, self.card.temperature)

    @cached_property
    def answered(self) -> calibrate.Answered | None:
        """What remains under the limits in the card, of its classes and of what is unknown; None when it has none."""
        card = self.card
        if not (card.thresholds or card.unknown):
            return None
        known = unknown.known(self.scores, card.temperature, card.unknown) if card.unknown else None
        return calibrate.under_thresholds(self.scores, self.truth, card.labels, card.thresholds, card.temperature, known)


def evaluate(
    classifier: Classifier | Path | str,
    catalogue: Catalogue,
    indices: npt.NDArray[np.integer[Any]],
    workers: int | None = None,
    progress: Report | None = None,
    threads: int = 1,
) -> Evaluation:
    """Answer the pictures `indices` of `catalogue` with `workers` threads (None: one a core), each with its own engine of
    `threads` threads.

    Threads, not processes: decoding, resizing and inference run outside the interpreter's lock, and a process would spend
    longer on starting than 10,000 small pictures take. The result does not depend on `workers`. Raises DataError when the
    classes are not the model's or no picture can be read.
    """
    if not isinstance(classifier, Classifier):
        classifier = load(classifier, threads)
    workers = cores() if workers is None else workers
    if workers < 1:
        raise ConfigError(f"workers = {workers}: must be at least 1")
    classes = matching_classes(catalogue.labels, classifier.labels, str(catalogue.source))
    chosen = np.asarray(indices, np.int64)
    scores, reasons = _answers(classifier, catalogue, chosen, workers if classifier.copies else 1, threads, progress)
    return evaluated(classifier.card, catalogue, chosen, classes, scores, reasons)


def evaluated(
    card: ModelCard, catalogue: Catalogue, chosen: Indices, classes: Indices, scores: Scores, reasons: dict[int, str]
) -> Evaluation:
    """The evaluation of the answers `scores` to the pictures `chosen`; `reasons` says which rows are of unreadable ones.

    `classes` is as `matching_classes` gives it. Raises DataError when no picture could be read.
    """
    skipped = tuple((catalogue.names[chosen[row]], reasons[row]) for row in sorted(reasons))
    if len(skipped) == len(chosen):
        raise DataError(f"{catalogue.source}: none of {len(chosen)} pictures can be read{_first(skipped)}")
    kept = np.setdiff1d(np.arange(len(chosen)), list(reasons), assume_unique=True).astype(np.int64)
    scores, chosen = scores[kept], chosen[kept]
    truth = classes[catalogue.classes[chosen]]
    return Evaluation(card, catalogue.source, scores, truth, chosen, results.score(scores, truth, card.labels), skipped)


def held_out(catalogue: Catalogue, card: ModelCard) -> tuple[Indices, str]:
    """The pictures that a file may fairly be measured on, and in words which they are.

    The test folder where the data has one; the test split, derived again, where the file was trained on this very data;
    otherwise all pictures.
    """
    test = np.flatnonzero(catalogue.folders == SPLITS.index("test")).astype(np.int64)
    if len(test):
        return test, "its test folder"
    if _trained_on(catalogue, card):
        held = (
            "its calibration held out (whether its training did is not known)"
            if "imported" in card.provenance
            else "its training held out"
        )
        return _own_split(catalogue, card, "test"), f"the test split that {held}"
    everything = np.arange(len(catalogue), dtype=np.int64)
    return everything, "all pictures (too good a figure if the model was trained on some of them)"


def validation(catalogue: Catalogue, card: ModelCard) -> tuple[Indices, str]:
    """The pictures that temperature and thresholds may be fitted on, and in words which they are; never a test picture.

    The validation part of the training, derived again, for the very data of the training; else the val folder; else, where
    the data has no parts at all, all of it. Raises DataError for data with other parts but without val.
    """
    if _trained_on(catalogue, card):
        return _own_split(catalogue, card, "val"), "the validation part of its training"
    val = np.flatnonzero(catalogue.folders == SPLITS.index("val")).astype(np.int64)
    if len(val):
        return val, "its val folder"
    if (catalogue.folders == UNSPLIT).all():
        everything = np.arange(len(catalogue), dtype=np.int64)
        return everything, "all pictures (which the model must not have been trained on; measure on others)"
    raise DataError(
        f"{catalogue.source}: has no val folder, and is not the data that {card.name} was trained on; "
        "give that, or a folder of class folders of new pictures"
    )


def _trained_on(catalogue: Catalogue, card: ModelCard) -> bool:
    return bool(card.provenance.get("split")) and card.provenance.get("fingerprint") == catalogue.fingerprint


def _own_split(catalogue: Catalogue, card: ModelCard, part: str) -> Indices:
    try:
        return split(catalogue, **card.provenance["split"])[part]
    except (TypeError, ValueError) as error:  # a card may hold anything there
        raise ModelError(
            f"{card.name}: its model card does not say how its data were split; give a folder with test/ and val/"
        ) from error


def limited(indices: Indices, limit: int | None) -> Indices:
    """At most `limit` of them, evenly spaced, so that every class keeps its share (pictures are sorted by class)."""
    if limit is None or limit >= len(indices):
        return indices
    return indices[np.linspace(0, len(indices) - 1, limit).round().astype(np.int64)]


def matching_classes(given: tuple[str, ...], known: tuple[str, ...], source: str) -> Indices:
    """For each class name of a data set its index among the model's labels, int64 (classes,).

    A data set may lack some of the model's classes, but not have others: then DataError names both sides.
    """
    strange = [name for name in given if name not in known]
    if strange:
        absent = [name for name in known if name not in given]
        raise DataError(
            f"{source}: its classes are not the model's: {_list(strange)} unknown to the model"
            + (f", which knows {_list(absent)} instead" if absent else "")
            + "; rename the folders, or for a foreign model give its --labels"
        )
    return np.array([known.index(name) for name in given], np.int64)


def _answers(
    classifier: Classifier, catalogue: Catalogue, chosen: Indices, workers: int, threads: int, progress: Report | None
) -> tuple[Scores, dict[int, str]]:
    """(float32 (pictures, classes) with rows of NaN for unreadable pictures, {row: reason})."""
    scores = np.full((len(chosen), len(classifier.labels)), np.nan, np.float32)
    reasons: dict[int, str] = {}
    local = threading.local()
    first = [classifier]  # the one that is loaded serves one of the threads

    def work(start: int) -> int:
        if not hasattr(local, "read"):
            local.read = reader(catalogue)
            local.classifier = first.pop() if first else classifier.another(threads)
        rows = range(start, min(start + chunk, len(chosen)))
        for row in rows:
            try:
                scores[row] = local.classifier.logits(local.read(int(chosen[row])))
            except DataError as error:
                reasons[row] = str(error)
        return len(rows)

    done = 0
    chunk = max(LEAST_CHUNK, min(MOST_CHUNK, len(chosen) // (workers * TASKS_EACH)))
    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(work, start) for start in range(0, len(chosen), chunk)]
        try:
            for task in as_completed(tasks):
                done += task.result()
                if progress:
                    progress(done, len(chosen))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return scores, reasons


def _list(names: list[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _first(skipped: tuple[tuple[str, str], ...]) -> str:
    return f"; the first: {skipped[0][1]}" if skipped else ""
