"""A comparison made from invented answers and times, so that reports are tested without training anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclf.core.calibrate import calibration
from edgeclf.core.results import Latency, Memory, Size
from edgeclf.host.inside import Inside
from edgeclf.host.report import timing
from edgeclf.host.report.comparison import FULL, Comparison, Model, Unusable, Variant
from edgeclf.host.report.timing import Timing
from edgeclf.host.report.verdict import recommend
from edgeclf.host.understand import compare
from edgeclf.runtime.latency import Machine

HOSTILE = (
    "<script>alert(1)</script>",
    "a|b *c* `d`",
    "x$y$\\frac",
    "quote\"'&amp;",
    "a class with a very long name indeed, too long",
)
KILOBYTES = {"float32": 706, "float16": 359, "int8": 194, "dynamic-w8": 170}
MILLISECONDS = {"float32": 0.35, "float16": 0.35, "int8": 0.14, "dynamic-w8": 0.31}


def scores_of(answers: np.ndarray, classes: int) -> compare.Scores:
    """Logits whose highest is the given answer."""
    return (np.eye(classes)[answers] * 4).astype(np.float32)


def timed(ms: float, seed: int = 0, noise: float = 0.01, rounds: int = 20) -> Timing:
    """Times around `ms` whose rounds scatter by `noise`."""
    found = ms * (1 + noise * np.random.RandomState(seed).randn(rounds))
    return Timing(Latency(ms, ms * 1.1, ms * 1.5, rounds * 50), ms * 0.98, ms * 1.03, tuple(found.tolist()))


def model(name: str, scores: compare.Scores, truth: np.ndarray, labels: Sequence[str], kilobytes: int, times: Timing) -> Model:
    accuracy, top5 = compare.accuracy(scores, truth, labels)
    size = Size(kilobytes * 1000, kilobytes * 900)
    return Model(
        name, f"photos-{name}.tflite", "LiteRT 2.3.0, XNNPACK", "1", size, accuracy, top5, times, calibration(scores, truth),
        Memory(60_000_000 + kilobytes * 1000, kilobytes * 3000),
    )  # fmt: skip


def variant(
    name: str, full: compare.Scores, after: compare.Scores, truth: np.ndarray, labels: Sequence[str],
    kilobytes: int | None = None, ms: float | None = None, precision: str | None = None,
) -> Variant:  # fmt: skip
    """A variant with invented answers; size and time default to usual ones of its name."""
    times = timed(ms or MILLISECONDS[name], seed=len(name))
    float32 = timed(MILLISECONDS["float32"], seed=99)
    found = precision or name
    return Variant(
        model(name, after, truth, labels, kilobytes or KILOBYTES[name], times), "uint8" if found == "int8" else "float32",
        found, found == name, compare.against(full, after, truth, labels), timing.speedup(timed(1.1), times),
        None if name == "float32" else timing.speedup(float32, times), Inside(12_500_000, 77_360, 0.02),
    )  # fmt: skip


def comparison(
    labels: Sequence[str] = ("cat", "dog", "horse"),
    pictures: int = 3000,
    int8_wrong: float = 0.01,
    unusable: tuple[Unusable, ...] = (),
) -> Comparison:
    """Four variants: the float ones answer as the full model does, int8 and dynamic-w8 change a share of the answers."""
    random, n = np.random.RandomState(3), len(labels)
    truth = random.randint(0, n, pictures)

    def changed(answers: np.ndarray, share: float) -> np.ndarray:
        return np.where(random.rand(pictures) < share, random.randint(0, n, pictures), answers)

    right = changed(truth, 0.15)
    answers = {"float32": right, "float16": right, "int8": changed(right, int8_wrong), "dynamic-w8": changed(right, 0.05)}
    full = scores_of(right, n)
    variants = tuple(variant(name, full, scores_of(found, n), truth, labels) for name, found in answers.items())
    return Comparison(
        run="photos", recipe="compact", data="photos.zip", fingerprint="0f" * 32, created="2026-11-20 12:00 UTC",
        parameters=145_914,        labels=tuple(labels), names=tuple(f"test/{i:04d}.jpg" for i in range(pictures)),
        machine=Machine("a fake", 2, "Linux", "3.11", 0.5, False),
        versions={"TensorFlow": "2.21.0"}, full=model(FULL, full, truth, labels, 786, timed(1.1)), variants=variants,
        unusable=unusable, verdict=recommend(variants, unusable),
    )  # fmt: skip
