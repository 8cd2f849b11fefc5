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
class Average:
    """Precision, recall and F1 over all classes, as fractions."""

    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Mixup:
    """How many pictures of the class `truth` were called `answer`."""

    truth: str
    answer: str
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

    @property
    def averages(self) -> dict[str, Average]:
        """By name: `macro`, every class alike; `micro`, every picture alike; `weighted`, classes by their pictures.

        Over the classes that have pictures or were called, as scikit-learn does by default. Micro precision is the share of
        answers that is right; all pictures having one, it is top-1, and so are recall and F1.
        """
        called = np.sum(np.array(self.confusion, np.int64), axis=0)
        rows = [row for row, count in zip(self.per_class, called, strict=True) if row.pictures or count]
        answered, right = int(called.sum()), sum(row[i] for i, row in enumerate(self.confusion))
        precision, recall = (right / count if count else 0.0 for count in (answered, self.pictures))
        micro = Average(precision, recall, 2 * right / (answered + self.pictures) if right else 0.0)
        return {"macro": _average(rows, [1] * len(rows)), "micro": micro, "weighted": _average(rows, [r.pictures for r in rows])}

    def mixups(self, most: int = 20) -> tuple[Mixup, ...]:
        """The pairs of classes that are mixed up most, at most so many, the worst first."""
        wrong = [(n, i, j) for i, row in enumerate(self.confusion) for j, n in enumerate(row) if i != j and n]
        worst = sorted(wrong, key=lambda entry: (-entry[0], *entry[1:]))[:most]
        return tuple(Mixup(self.per_class[i].label, self.per_class[j].label, n) for n, i, j in worst)

    def to_json(self) -> dict[str, Any]:
        """Every field, and the averages by name."""
        return {**asdict(self), "averages": {name: asdict(average) for name, average in self.averages.items()}}


def _average(rows: list[ClassScore], weights: list[int]) -> Average:
    total = sum(weights) or 1
    means = (
        sum(getattr(r, name) * w for r, w in zip(rows, weights, strict=True)) / total for name in ("precision", "recall", "f1")
    )
    return Average(*means)


def top_k(scores: npt.NDArray[np.float32], truth: npt.NDArray[np.integer[Any]], most: int = 10) -> tuple[float, ...]:
    """Share of pictures whose class is among the k highest scores, for k = 1 to `most` or to the number of classes.

    Of equal scores the first class is the higher; a picture whose scores are not all finite is never right.
    """
    finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(scores), axis=1)
    rows = np.arange(len(truth))
    clean = np.where(finite[:, None], scores, np.float32(0))
    mine = clean[rows, truth][:, None]
    earlier = np.arange(scores.shape[1]) < np.asarray(truth)[:, None]
    place = np.where(finite, (clean > mine).sum(axis=1) + ((clean == mine) & earlier).sum(axis=1), scores.shape[1])
    return tuple(float((place < k).mean()) if len(truth) else 0.0 for k in range(1, min(most, scores.shape[1]) + 1))


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979), in the order given: each still holds if all are looked at."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


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
        per_class=class_scores(confusion, np.bincount(truth, minlength=classes), labels),
        confusion=tuple(tuple(int(v) for v in row) for row in confusion),
    )


def class_scores(
    confusion: npt.NDArray[np.int64], pictures: npt.NDArray[np.int64], labels: tuple[str, ...]
) -> tuple[ClassScore, ...]:
    """Of `confusion[truth, answer]` and the number of `pictures` of each class, which may be more than were answered."""
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
class Memory:
    """Largest resident size, in bytes, of a process that opens a model and answers one picture.

    `model_bytes` of `process_bytes` came after the runtime was imported: the model, its maps, and the picture.
    """

    process_bytes: int
    model_bytes: int


@dataclass(frozen=True)
class Size:
    """Bytes of a file as it lies on disk and after gzip level 9."""

    file_bytes: int
    gzip_bytes: int
