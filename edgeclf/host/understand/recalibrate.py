"""Temperature and limits, fitted on validation pictures, into the model card of a file or of a run and all its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from edgeclf.core import calibrate, files
from edgeclf.core.bundle import read_bundle
from edgeclf.core.calibrate import Answered, Calibration, Temperature, Threshold
from edgeclf.core.card import ModelCard
from edgeclf.core.catalogue import Catalogue
from edgeclf.core.errors import ConfigError, DataError, EdgeclfError, ModelError
from edgeclf.core.image import ImageSpec, Pixels, prepare, read_picture
from edgeclf.core.progress import Bar, no_bar
from edgeclf.core.unknown import Turned, UnknownBy, fit_rule, known
from edgeclf.host.data.reading import prepared_for
from edgeclf.host.full_model import open_full
from edgeclf.host.report.comparison import FULL
from edgeclf.host.run import CARD, Run
from edgeclf.host.understand.evaluation import evaluate_run
from edgeclf.runtime.accuracy import Evaluation, evaluate, validation
from edgeclf.runtime.classifier import from_bundle
from edgeclf.runtime.engine import Scores

FITTED = "fitted"  # in the card's `accuracy`: what its temperature and thresholds were fitted on
Wish: TypeAlias = Literal["none", "f1"] | float
"""Thresholds: none, of the best F1, or of that precision."""


@dataclass(frozen=True)
class UnknownWish:
    """A limit below which a picture is unknown: of which measure, what share of the right answers it keeps, and `others`,
    pictures that show none of the classes, to see how many it turns away."""

    by: UnknownBy
    keep: float = 0.95
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Fitted:
    """What was fitted for one model and what it does to the very pictures it was fitted on, which flatters it.

    `temperature` is None where none was asked for or none exists (`core.calibrate.fit_temperature`); the card then has 1.
    `thresholds` are in label order, empty when none were asked for; `turned` is None when nothing is to be unknown, and
    `answered` when neither was asked for. `unreadable` counts other pictures that could not be read.
    """

    file: str
    card: ModelCard
    which: str
    pictures: int
    temperature: Temperature | None
    before: Calibration
    after: Calibration
    thresholds: tuple[Threshold, ...]
    answered: Answered | None
    turned: Turned | None = None
    unreadable: int = 0

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        del found["card"]
        for key in ("before", "after"):
            del found[key]["bins"]
        if self.turned and self.turned.others:
            found["turned"]["others_interval"] = asdict(self.turned.others_interval)
        return {**found, "value": self.card.temperature}


def fit(
    found: Evaluation,
    file: str,
    which: str,
    temperature: bool,
    thresholds: Wish,
    unknown: UnknownWish | None = None,
    infer: Callable[[Pixels], Scores] | None = None,
) -> Fitted:
    """Fit on the pictures of `found`; `which` says in words which they are. What is not asked for leaves the card.

    `infer` answers the other pictures of `unknown`. Raises ConfigError where `core.unknown.fit_rule` does, DataError when
    none of the others can be read.
    """
    card, logits, truth = found.card, found.scores, found.truth
    fitted = calibrate.fit_temperature(logits, truth) if temperature else None
    value = fitted.value if fitted else 1.0
    wanted = thresholds if isinstance(thresholds, float) else None
    limits = calibrate.fit_thresholds(logits, truth, card.labels, value, wanted) if thresholds != "none" else ()
    values = tuple(limit.value for limit in limits)
    turned, unreadable = _turned(found, file, value, unknown, infer) if unknown else (None, 0)
    rule = turned.rule if turned else None
    before, after = calibrate.calibration(logits, truth), calibrate.calibration(logits, truth, value)
    record = {
        "model": file, "pictures": len(truth), "which": which,
        "temperature": asdict(fitted) if fitted else None, "ece_before": before.ece, "ece_after": after.ece,
        "thresholds": thresholds if isinstance(thresholds, str) else f"precision={thresholds:g}",
        **({"unknown": {key: value for key, value in asdict(turned).items() if key != "rule"}} if turned else {}),
    }  # fmt: skip
    kept = {key: value for key, value in card.accuracy.items() if key != FITTED}
    changed = replace(
        card, temperature=value, thresholds=values, unknown=rule,
        accuracy={**kept, **({FITTED: record} if temperature or limits or rule else {})},
    )  # fmt: skip
    stays = known(logits, value, rule) if rule else None
    answered = calibrate.under_thresholds(logits, truth, card.labels, values, value, stays) if limits or rule else None
    return Fitted(file, changed, which, len(truth), fitted, before, after, limits, answered, turned, unreadable)


def _turned(
    found: Evaluation, file: str, temperature: float, wish: UnknownWish, infer: Callable[[Pixels], Scores] | None
) -> tuple[Turned, int]:
    """The limit that was fitted, and how many of the other pictures could not be read."""
    others = answers_to(wish.others, found.card.image, infer) if wish.others and infer else None
    try:
        return (
            fit_rule(found.scores, found.truth, temperature, wish.by, wish.keep, others),
            len(wish.others) - len(others) if others is not None else 0,
        )
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def answers_to(pictures: Sequence[Path], image: ImageSpec, infer: Callable[[Pixels], Scores]) -> Scores:
    """Logits of those that can be read, float32 (readable pictures, classes). Raises DataError when none can."""
    answers, reason = [], ""
    for path in pictures:
        try:
            answers.append(infer(prepare(read_picture(path), image)[None])[0])
        except DataError as error:
            reason = reason or str(error)
    if not answers:
        raise DataError(f"none of {len(pictures)} other pictures can be read; the first: {reason}")
    return np.asarray(answers, np.float32)


def calibrate_file(
    path: Path,
    catalogue: Catalogue,
    temperature: bool,
    thresholds: Wish,
    bar: Bar = no_bar,
    unknown: UnknownWish | None = None,
) -> Fitted:
    """Fit on the file's own logits for validation pictures and put the changed card into the file, which stays whole throughout.

    The model in it, its SHA-256 and its self-test stay. Raises ConfigError for a file without a card of its own, DataError
    where `runtime.accuracy.validation` finds no picture that is fair.
    """
    bundle = read_bundle(path)
    if bundle.card is None:
        raise ConfigError(f"{path}: carries no model card to keep a temperature or thresholds in")
    classifier = from_bundle(bundle, 1)
    indices, which = validation(prepared_for(catalogue, classifier.card.image), classifier.card)
    with bar(f"answering with {path.name}") as report:
        found = evaluate(classifier, catalogue, indices, progress=report)
    fitted = fit(found, path.name, which, temperature, thresholds, unknown, classifier.engine.infer)
    files.write_bytes(path.resolve(), bundle.with_card(fitted.card))
    return fitted


def calibrate_run(
    run: Run,
    catalogue: Catalogue,
    temperature: bool,
    thresholds: Wish,
    bar: Bar = no_bar,
    on_fitted: Callable[[Fitted], None] = lambda fitted: None,
    unknown: UnknownWish | None = None,
) -> None:
    """As `calibrate_file` for the full model, whose card later exports start from, and for each exported file by itself.

    `on_fitted` hears of each as soon as it is written. A file that cannot be used is passed over, and ModelError then names
    it at the end.
    """
    indices, which = validation(catalogue, run.card)
    with bar(f"answering with the {FULL}") as report:
        found = evaluate_run(run, catalogue, indices, report)
    infer = open_full(run).infer if unknown and unknown.others else None
    fitted = fit(found, FULL, which, temperature, thresholds, unknown, infer)
    files.write_text(run.folder / CARD, fitted.card.to_json())
    on_fitted(fitted)
    refused = []
    for path in run.exports():
        try:
            on_fitted(calibrate_file(path, catalogue, temperature, thresholds, bar, unknown))
        except EdgeclfError as error:
            refused.append(str(error))
    if refused:
        raise ModelError(f"not calibrated: {'; '.join(refused)}; the others are")
