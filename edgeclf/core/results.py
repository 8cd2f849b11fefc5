"""What a measurement says, as frozen values that go to JSON and back; and the intervals that belong to them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A two-sided 95% confidence interval, as fractions."""

    low: float
    high: float


def wilson(right: int, total: int) -> Interval:
    """95% interval of a proportion (Wilson 1927); good near 0 and 1 too. (0, 1) when `total` is 0."""
    if total == 0:
        return Interval(0.0, 1.0)
    p, z2 = right / total, Z95 * Z95
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total))
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class PairedDrop:
    """How much accuracy `after` lost against `before` on the same pictures; fractions, positive is a loss.

    `lost` pictures were right before and wrong after (negative flips), `won` the other way about.
    """

    drop: float
    interval: Interval
    lost: int
    won: int
    total: int
    p_value: float


def paired_drop(before_right: npt.NDArray[np.bool_], after_right: npt.NDArray[np.bool_]) -> PairedDrop:
    """Drop in accuracy with its 95% interval for paired proportions, and the exact McNemar p-value.

    Both arrays are bool of shape (pictures,). Interval: the adjusted Wald of Bonett and Price (2012), which adds one
    half-discordant pair to each side; p-value: the two-sided exact binomial test of the discordant pairs (McNemar 1947).
    """
    total = len(before_right)
    lost = int(np.sum(before_right & ~after_right))
    won = int(np.sum(~before_right & after_right))
    low_n = total + 2
    lost_share, won_share = (lost + 1) / low_n, (won + 1) / low_n
    half = Z95 * math.sqrt(max(0.0, lost_share + won_share - (lost_share - won_share) ** 2) / low_n)
    centre = lost_share - won_share
    interval = Interval(max(-1.0, centre - half), min(1.0, centre + half))
    drop = (lost - won) / total if total else 0.0
    return PairedDrop(drop, interval, lost, won, total, mcnemar_p(lost, won))


def mcnemar_p(lost: int, won: int) -> float:
    """Two-sided exact McNemar p-value from the discordant counts: 2 * P(X <= min) for X ~ Binomial(lost + won, 1/2)."""
    n, k = lost + won, min(lost, won)
    if n == 0:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * sum(math.exp(x) for x in logs))


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class as fractions, and its number of pictures."""

    label: str
    precision: float
    recall: float
    f1: float
    pictures: int


@dataclass(frozen=True)
class Accuracy:
    """How often a model is right on `pictures` held-out pictures; fractions.

    `top5` counts a hit among the five highest scores (all of them when there are fewer classes).
    `confusion[i][j]` is the number of pictures of class i that were called j.
    """

    top1: float
    top5: float
    top1_interval: Interval
    pictures: int
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.integer[Any]], labels: tuple[str, ...]) -> Accuracy:
    """Accuracy of `scores` (pictures, classes), higher is likelier, against `truth` (pictures,) class indices.

    A picture whose scores are not all finite counts as wrong. A class that was never predicted has precision 0, a class
    without pictures recall 0, as scikit-learn's `zero_division=0`.
    """
    classes = len(labels)
    finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(scores), axis=1)
    order = np.argsort(-np.where(finite[:, None], scores, -np.inf), axis=1, kind="stable")
    hits = (order == truth[:, None]) & finite[:, None]
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (truth[finite], order[finite, 0]), 1)
    total = len(truth)
    right = int(hits[:, 0].sum())
    return Accuracy(
        top1=right / total if total else 0.0,
        top5=float(hits[:, :5].any(axis=1).mean()) if total else 0.0,
        top1_interval=wilson(right, total),
        pictures=total,
        per_class=_class_scores(confusion, np.bincount(truth, minlength=classes), labels),
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
    )


def _class_scores(
    confusion: npt.NDArray[np.int64], pictures: npt.NDArray[np.int64], labels: tuple[str, ...]
) -> tuple[ClassScore, ...]:
    scores = []
    for i, label in enumerate(labels):
        right, called = int(confusion[i, i]), int(confusion[:, i].sum())
        precision = right / called if called else 0.0
        recall = right / int(pictures[i]) if pictures[i] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        scores.append(ClassScore(label, precision, recall, f1, int(pictures[i])))
    return tuple(scores)


@dataclass(frozen=True)
class Latency:
    """Wall time of one picture or frame after warm-up, in milliseconds; percentiles over `runs`."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int

    @classmethod
    def of(cls, seconds: list[float] | npt.NDArray[np.float64]) -> Latency:
        """Percentiles of the given times; all zero when there are none."""
        if len(seconds) == 0:
            return cls(0.0, 0.0, 0.0, 0)
        p50, p90, p99 = np.percentile(np.asarray(seconds) * 1000.0, [50, 90, 99])
        return cls(float(p50), float(p90), float(p99), len(seconds))


@dataclass(frozen=True)
class Size:
    """Bytes of a file as it lies on disk and after gzip level 9."""

    file_bytes: int
    gzip_bytes: int
