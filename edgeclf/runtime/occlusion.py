"""Occlusion maps: how much each part of a picture counts for a class, found by covering it; all it needs is an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core.calibrate import softmax
from edgeclf.core.errors import ModelError
from edgeclf.core.image import PAD_VALUE, Pixels
from edgeclf.core.progress import Report
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.engine import Scores, cores

Heat: TypeAlias = npt.NDArray[np.float32]
"""A map over a network's input, (height, width): how much each pixel counts."""

Infer: TypeAlias = Callable[[Pixels], Scores]

PATCH_SHARE = 4  # the side of a square is the shorter side of the input divided by this
STEPS_A_PATCH = 4  # neighbouring squares overlap by three quarters, so the map is smooth
BATCH = 64


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What covering parts of one picture did to one class.

    `heat` is signed, in natural log-odds of the class: how far they fall, on average over the squares that cover the
    pixel. Positive speaks for the class, negative against it. `score` is the class's probability of the whole picture, `least`
    the lowest that any square brought it to. `patch` is the side of a square in pixels of the input, `squares` their number.
    """

    heat: Heat
    score: float
    least: float
    patch: int
    squares: int


def occlude(
    infer: Infer,
    pixels: Pixels,
    target: int,
    temperature: float = 1.0,
    patch: int | None = None,
    progress: Report | None = None,
) -> Occlusion:
    """Slide a grey square over one prepared picture, uint8 (height, width, channels), and watch the class `target`.

    After Zeiler and Fergus (2014), but in log-odds, which still move where a probability stands at 100%. The square has the
    mean grey of all pictures, 128, which the networks of this project see as 0; it is a quarter of the shorter side, moved by
    a quarter of itself, whatever the size of the input: 169 answers for a square one. What is that grey already cannot be
    covered, so it counts as nothing. Raises ModelError when the model answers with NaN or infinity.
    """
    height, width = pixels.shape[:2]
    side = max(1, min(height, width) // PATCH_SHARE) if patch is None else max(1, min(patch, height, width))
    corners = [(top, left) for top in _starts(height, side) for left in _starts(width, side)]
    plain = _finite(infer(pixels[None]))
    before = log_odds(plain, target, temperature)[0]
    fallen, covered = np.zeros((height, width)), np.zeros((height, width))
    least, done = 1.0, 0
    for part in _parts(corners):
        answers = _finite(infer(_covered(pixels, part, side)))
        after = log_odds(answers, target, temperature)
        least = min(least, float(softmax(answers, temperature)[:, target].min()))
        for (top, left), value in zip(part, before - after, strict=True):
            fallen[top : top + side, left : left + side] += value
            covered[top : top + side, left : left + side] += 1
        done += len(part)
        if progress:
            progress(done, len(corners))
    heat = (fallen / covered).astype(np.float32)
    score = float(softmax(plain, temperature)[0, target])
    return Occlusion(heat, score, least, side, len(corners))


def spread(classifier: Classifier, workers: int | None = None) -> Infer:
    """The classifier's `infer` on `workers` threads (None: one a core), each with an engine of its own; the same answers."""
    workers = cores() if workers is None else workers
    others = [classifier.another(1) for _ in range(workers - 1)] if classifier.copies else []
    engines = [classifier.engine, *(other.engine for other in others)]

    def infer(batch: Pixels) -> Scores:
        busy = engines[: len(batch)]
        with ThreadPoolExecutor(len(busy)) as pool:
            parts = pool.map(lambda engine, part: engine.infer(part), busy, np.array_split(batch, len(busy)))
            return np.concatenate(list(parts))

    return infer


def log_odds(logits: Scores, target: int, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """ln(p / (1 - p)) of class `target` for each row of (pictures, classes), without overflow: float64 (pictures,)."""
    z = logits.astype(np.float64) / temperature
    others = np.delete(z, target, axis=1)
    top = others.max(axis=1)
    odds: npt.NDArray[np.float64] = z[:, target] - top - np.log(np.exp(others - top[:, None]).sum(axis=1))
    return odds


def spearman(first: npt.NDArray[np.floating[Any]], second: npt.NDArray[np.floating[Any]]) -> float | None:
    """Rank correlation of two maps of one shape, from -1 to 1; ties share their mean rank. None where one of them is flat."""
    a, b = (_ranks(np.asarray(values, np.float64).reshape(-1)) for values in (first, second))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float(np.clip((a * b).sum() / size, -1, 1)) if size > 0 else None


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _starts(length: int, side: int) -> list[int]:
    """Where squares begin along one side of the input: evenly, the first and the last at its borders."""
    steps = -(-(length - side) // max(1, side // STEPS_A_PATCH))
    return [int(start) for start in np.unique(np.linspace(0, length - side, steps + 1).round())]


def _parts(corners: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    return (corners[first : first + BATCH] for first in range(0, len(corners), BATCH))


def _covered(pixels: Pixels, corners: list[tuple[int, int]], side: int) -> Pixels:
    batch = np.repeat(pixels[None], len(corners), axis=0)
    for picture, (top, left) in zip(batch, corners, strict=True):
        picture[top : top + side, left : left + side] = PAD_VALUE
    return batch


def _finite(logits: Scores) -> Scores:
    if not np.isfinite(logits).all():
        raise ModelError("the model answered with scores that are not numbers (NaN or infinity), so nothing can be explained")
    return logits
