"""Models side by side on the same held-out pictures: their answers, what changed between two of them, and which pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from edgeclf.core.calibrate import softmax
from edgeclf.core.image import Pixels
from edgeclf.core.progress import Report
from edgeclf.core.results import Accuracy, Interval, PairedDrop, mcnemar_p, paired_drop, score, wilson
from edgeclf.runtime.engine import Scores, cores

BATCH = 250
SIGNIFICANT = 0.05

Classes = npt.NDArray[np.integer[Any]]
Infer = Callable[[Pixels], Scores]
Taken = TypeVar("Taken")


@dataclass(frozen=True)
class ClassChange:
    """Recall of one class before and after, as fractions, on `pictures` pictures of it.

    `lost` were right before and wrong after, `won` the other way about. `significant`: the exact McNemar test of these
    falls below 0.05 divided by the number of classes (Bonferroni), so it would be a rare accident over all classes.
    """

    label: str
    pictures: int
    before: float
    after: float
    lost: int
    won: int
    significant: bool

    @property
    def change(self) -> float:
        """After minus before: positive is a gain."""
        return self.after - self.before


@dataclass(frozen=True)
class Flip:
    """A picture that was right before and is wrong after; `row` counts within the test part, the rest are class indices.

    `confidence` is the softmax share that the model gave the right answer before.
    """

    row: int
    truth: int
    after: int
    confidence: float


@dataclass(frozen=True)
class Against:
    """A model against the full one on the same pictures. `agreement` is the share of equal answers, right or wrong.

    `flips` holds every negative flip, the most confidently right before first.
    """

    drop: PairedDrop
    agreement: float
    agreement_interval: Interval
    largest_logit_difference: float
    classes: tuple[ClassChange, ...]
    flips: tuple[Flip, ...]


def batches(count: int, size: int = BATCH) -> Iterator[slice]:
    """Slices that cover `count` rows in order."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def answers(
    models: dict[str, Callable[[Taken], Scores]],
    take: Callable[[npt.NDArray[np.int64]], Taken],
    indices: npt.NDArray[np.int64],
    progress: Report | None = None,
) -> dict[str, Scores]:
    """Logits of every model on the same pictures, float32 (pictures, classes) by name.

    `take` gives the pictures of some indices, in a form that every model takes; they are read once, a batch at a time, so
    memory stays flat. Models answer at the same time, each in one thread at once.
    """
    found: dict[str, list[Scores]] = {name: [] for name in models}
    with ThreadPoolExecutor(cores()) as pool:
        for part in batches(len(indices)):
            pictures = take(indices[part])
            running = {name: pool.submit(infer, pictures) for name, infer in models.items()}
            for name, future in running.items():
                found[name].append(future.result())
            if progress:
                progress(part.stop, len(indices))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def against(before: Scores, after: Scores, truth: Classes, labels: Sequence[str]) -> Against:
    """What became of the answers `before` in `after`; both are logits (pictures, classes), `truth` is (pictures,).

    An answer with scores that are not all finite is wrong, and agrees with nothing.
    """
    was, now = predictions(before), predictions(after)
    before_right, after_right = was == truth, now == truth
    agreed = int(np.sum((was == now) & (was >= 0)))
    with np.errstate(invalid="ignore"):
        largest = float(np.nan_to_num(np.abs(before - after), nan=np.inf, posinf=np.inf).max(initial=0.0))
    return Against(
        drop=paired_drop(before_right, after_right),
        agreement=agreed / len(truth) if len(truth) else 0.0,
        agreement_interval=wilson(agreed, len(truth)),
        largest_logit_difference=min(largest, float(np.finfo(np.float32).max)),
        classes=tuple(_class_change(i, label, before_right, after_right, truth, len(labels)) for i, label in enumerate(labels)),
        flips=_flips(before, before_right, after_right, now, truth),
    )


def predictions(scores: Scores) -> npt.NDArray[np.int64]:
    """The first of the highest scores of each row; -1 where a score is not finite."""
    finite = np.asarray(np.isfinite(scores).all(axis=1))
    return np.where(finite, np.argmax(np.where(finite[:, None], scores, 0), axis=1), -1)


def accuracy(scores: Scores, truth: Classes, labels: Sequence[str]) -> tuple[Accuracy, Interval]:
    """Accuracy with, beside it, the 95% interval of top-5."""
    found = score(scores, truth, tuple(labels))
    return found, wilson(round(found.top5 * found.pictures), found.pictures)


def _class_change(
    index: int, label: str, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], truth: Classes, classes: int
) -> ClassChange:
    mine = np.equal(truth, index)
    pictures = int(mine.sum())
    lost, won = int(np.sum(mine & before & ~after)), int(np.sum(mine & ~before & after))
    return ClassChange(
        label, pictures,
        before=float(before[mine].mean()) if pictures else 0.0,
        after=float(after[mine].mean()) if pictures else 0.0,
        lost=lost, won=won, significant=mcnemar_p(lost, won) < SIGNIFICANT / classes,
    )  # fmt: skip


def _flips(
    before: Scores,
    before_right: npt.NDArray[np.bool_],
    after_right: npt.NDArray[np.bool_],
    now: npt.NDArray[np.int64],
    truth: Classes,
) -> tuple[Flip, ...]:
    rows = np.flatnonzero(before_right & ~after_right)
    sure = softmax(before[rows])[np.arange(len(rows)), truth[rows]] if len(rows) else np.zeros(0, np.float32)
    order = np.argsort(-sure, kind="stable")
    return tuple(Flip(int(rows[i]), int(truth[rows[i]]), int(now[rows[i]]), float(sure[i])) for i in order)
