"""Trust in probabilities: how far they are off, the temperature that mends them, and the thresholds below which to say nothing.

Everything here takes logits of pictures that the caller chose: fit on validation pictures, measure on others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core.results import Z95, ClassScore, Interval, class_scores, wilson

Logits: TypeAlias = npt.NDArray[np.float32]
Classes: TypeAlias = npt.NDArray[np.integer[Any]]
Numbers: TypeAlias = npt.NDArray[np.float64]

BINS = 15  # as Guo et al. (2017)
ROWS = 4096  # of logits that are worked on at once
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3
HALVINGS = 40
REFUSED = -1


def softmax(logits: Logits, temperature: float = 1.0) -> Logits:
    """exp(z / T) / sum(exp(z / T)) over the last axis, float32, after subtracting the largest so that nothing overflows.

    NaN or infinity anywhere makes the whole row NaN.
    """
    if not np.isfinite(logits).all():
        rows = np.isfinite(logits).all(axis=-1, keepdims=True)
        return np.where(rows, softmax(np.where(rows, logits, np.float32(0)), temperature), np.float32(np.nan))
    with np.errstate(over="ignore"):
        powers = np.exp((logits - logits.max(axis=-1, keepdims=True)) / np.float32(temperature))
    probabilities: Logits = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


@dataclass(frozen=True)
class Bin:
    """Pictures whose confidence, the probability of the likeliest class, lies above `low` and up to `high`.

    `confidence` is their mean and `accuracy` the share that was right: the closer, the better. Fractions.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    pictures: int


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of `pictures` pictures are off; those with scores that are no numbers are left out.

    `ece` is the expected calibration error of Guo et al. (2017): the mean over the pictures of the distance between
    confidence and accuracy in their bin, 15 bins of equal width; `adaptive_ece` takes bins of equal count instead. `nll` is
    the mean of -ln p(true class), `brier` that of sum((p - [true class])²), from 0 to 2. `bins` are those of `ece` that
    hold pictures.
    """

    temperature: float
    ece: float
    adaptive_ece: float
    nll: float
    brier: float
    confidence: float
    accuracy: float
    pictures: int
    bins: tuple[Bin, ...]


def calibration(logits: Logits, truth: Classes, temperature: float = 1.0) -> Calibration:
    """How far softmax(logits / temperature) is off; `logits` (pictures, classes), `truth` (pictures,) class indices."""
    parts = [_trust(z, y, temperature) for z, y in _finite_rows(logits, truth)]
    confidence, right, nll, brier = np.concatenate([*parts, np.zeros((4, 0))], axis=1)
    edges = np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1)
    bins = tuple(_bin(b / BINS, (b + 1) / BINS, confidence[edges == b], right[edges == b]) for b in range(BINS))
    equal = [_bin(0, 1, confidence[rows], right[rows]) for rows in np.array_split(np.argsort(confidence, kind="stable"), BINS)]
    return Calibration(
        temperature, _error(bins), _error(equal), _mean(nll), _mean(brier), _mean(confidence), _mean(right), len(right),
        tuple(b for b in bins if b.pictures),
    )  # fmt: skip


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature with its 95% interval, from the curvature of the likelihood."""

    value: float
    interval: Interval


def fit_temperature(logits: Logits, truth: Classes) -> Temperature | None:
    """The temperature that makes the true classes likeliest (Guo et al. 2017), by bisection on the slope in 1 / T.

    None when there is no such temperature: every picture is right, so that ever surer is ever better, or the answers are
    no better than guesses.
    """
    rows = list(_finite_rows(logits, truth))
    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    if not rows or _slope(rows, low)[0] >= 0 or _slope(rows, high)[0] <= 0:
        return None
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _slope(rows, middle)[0] > 0 else (middle, high)
    beta = math.sqrt(low * high)
    half = Z95 / math.sqrt(max(_slope(rows, beta)[1], 1e-12)) / beta  # of ln T
    return Temperature(1 / beta, Interval(math.exp(-half) / beta, math.exp(min(half, 50.0)) / beta))


@dataclass(frozen=True)
class Threshold:
    """What the probability of a class must reach to be its answer, and what that gave on the pictures it was fitted on.

    `answers` pictures were called it, of `pictures` that show it. `reached` is False when a wanted precision is out of
    reach; then `value` is where precision is best. A class that was never called has the value 0.
    """

    label: str
    value: float
    precision: float
    recall: float
    f1: float
    answers: int
    pictures: int
    reached: bool


def fit_thresholds(
    logits: Logits, truth: Classes, labels: tuple[str, ...], temperature: float = 1.0, precision: float | None = None
) -> tuple[Threshold, ...]:
    """For each class against the rest: the threshold of best F1, or the smallest one with that `precision`.

    An answer is the likeliest class where it reaches its threshold, as `predict` and `run` decide, so a threshold can only
    take answers away.
    """
    called, confidence = answers(logits, temperature)
    return tuple(
        _threshold(label, confidence[called == i], truth[called == i] == i, int(np.sum(truth == i)), precision)
        for i, label in enumerate(labels)
    )


@dataclass(frozen=True)
class Answered:
    """What thresholds leave: `answered` of `pictures` got a label, the rest were called unknown.

    `top1` is the share of the answered that is right, with its 95% interval. `per_class` counts an unknown as not called.
    """

    answered: int
    pictures: int
    top1: float
    top1_interval: Interval
    per_class: tuple[ClassScore, ...]

    @property
    def coverage(self) -> float:
        """The share of pictures that got a label."""
        return self.answered / self.pictures if self.pictures else 0.0


def under_thresholds(
    logits: Logits,
    truth: Classes,
    labels: tuple[str, ...],
    thresholds: tuple[float, ...],
    temperature: float = 1.0,
    known: npt.NDArray[np.bool_] | None = None,
) -> Answered:
    """The answers that remain with one threshold a class, in label order, none when empty, for the pictures that are `known`."""
    called, confidence = answers(logits, temperature)
    kept = (called >= 0) & (confidence >= np.append(thresholds or np.zeros(len(labels)), 2.0)[called])
    if known is not None:
        kept &= known
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (truth[kept], called[kept]), 1)
    right, answered = int(np.trace(confusion)), int(kept.sum())
    scores = class_scores(confusion, np.bincount(truth, minlength=len(labels)), labels)
    return Answered(answered, len(truth), right / answered if answered else 0.0, wilson(right, answered), scores)


def answers(logits: Logits, temperature: float = 1.0) -> tuple[npt.NDArray[np.int64], Numbers]:
    """The likeliest class of each row, REFUSED where a score is no number, and its probability."""
    called, confidence = np.full(len(logits), REFUSED, np.int64), np.zeros(len(logits))
    for start in range(0, len(logits), ROWS):
        part = slice(start, start + ROWS)
        finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(logits[part]), axis=1)
        found = softmax(np.where(finite[:, None], logits[part], np.float32(0)), temperature)
        called[part] = np.where(finite, found.argmax(axis=1), REFUSED)
        confidence[part] = np.where(finite, found.max(axis=1), 0.0)
    return called, confidence


def _finite_rows(logits: Logits, truth: Classes) -> Iterator[tuple[Numbers, Classes]]:
    """Rows without NaN or infinity, float64, a block at a time, each less its largest value."""
    for start in range(0, len(logits), ROWS):
        z, y = logits[start : start + ROWS].astype(np.float64), truth[start : start + ROWS]
        finite = np.isfinite(z).all(axis=1)
        if finite.any():
            yield z[finite] - z[finite].max(axis=1, keepdims=True), y[finite]


def _trust(z: Numbers, truth: Classes, temperature: float) -> Numbers:
    """(4, rows): confidence, whether right, -ln p(true class), Brier score."""
    scaled = z / temperature
    logs = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    p, rows = np.exp(logs), np.arange(len(z))
    brier = (p * p).sum(axis=1) - 2 * p[rows, truth] + 1
    return np.stack([p.max(axis=1), z.argmax(axis=1) == truth, -logs[rows, truth], brier])


def _slope(rows: list[tuple[Numbers, Classes]], beta: float) -> tuple[float, float]:
    """First and second derivative of the summed negative log-likelihood of softmax(beta z) in beta; the second is never < 0."""
    first = second = 0.0
    for z, truth in rows:
        p = np.exp(beta * z)
        p /= p.sum(axis=1, keepdims=True)
        mean = (p * z).sum(axis=1)
        first += float((mean - z[np.arange(len(z)), truth]).sum())
        second += float(((p * z * z).sum(axis=1) - mean * mean).sum())
    return first, second


def _bin(low: float, high: float, confidence: Numbers, right: Numbers) -> Bin:
    return Bin(low, high, _mean(confidence), _mean(right), len(right))


def _error(bins: tuple[Bin, ...] | list[Bin]) -> float:
    total = sum(b.pictures for b in bins)
    return sum(abs(b.confidence - b.accuracy) * b.pictures for b in bins) / total if total else 0.0


def _mean(values: Numbers) -> float:
    return float(values.mean()) if len(values) else 0.0


def _threshold(label: str, confidence: Numbers, right: npt.NDArray[np.bool_], pictures: int, wanted: float | None) -> Threshold:
    """Tries a cut below every distinct confidence; of equally good ones the lowest."""
    if not len(confidence):
        return Threshold(label, 0.0, 0.0, 0.0, 0.0, 0, pictures, wanted is None)
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(right[order])
    cuts = np.append(np.flatnonzero(sure[:-1] > sure[1:]), len(sure) - 1)  # the last picture that each cut keeps
    kept, hits = cuts + 1, hits[cuts]
    precision, recall, f1 = hits / kept, hits / max(1, pictures), 2 * hits / (kept + pictures)
    good = precision >= (wanted if wanted is not None else 2.0)
    merit = f1 if wanted is None else good if good.any() else precision
    best = len(cuts) - 1 - int(np.argmax(merit[::-1]))
    last = int(cuts[best])
    value = 0.0 if last == len(sure) - 1 else shortest(float(sure[last + 1]), float(sure[last]))
    return Threshold(
        label, value, float(precision[best]), float(recall[best]), float(f1[best]), int(kept[best]), pictures,
        wanted is None or bool(good.any()),
    )  # fmt: skip


def shortest(above: float, up_to: float) -> float:
    """The number with fewest decimals in (above, up_to], so that a card can be read."""
    for decimals in range(1, 8):
        value = math.floor(up_to * 10.0**decimals) / 10.0**decimals
        if above < value <= up_to:
            return value
    return up_to
