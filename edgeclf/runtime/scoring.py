"""The seam between the live loop and a classifier: a frame in, scores and what they cost out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from edgeclf.core.image import Pixels, prepare
from edgeclf.runtime.classifier import Classifier, softmax
from edgeclf.runtime.decision import Probabilities


@dataclass(frozen=True, eq=False)
class Scored:
    """Probabilities, float32 (classes,) in label order, NaN where the model gave no numbers; seconds spent on the way.

    `energy` is the temperature times the log of the summed exponentials of the tempered logits (Liu et al. 2020, "Energy-based
    out-of-distribution detection", with its sign turned): high for pictures like those of the training. It says nothing
    (0) of a model whose file gives probabilities.
    """

    probabilities: Probabilities
    resize_s: float = 0.0
    invoke_s: float = 0.0
    energy: float = 0.0


Scorer: TypeAlias = Callable[[Pixels], Scored]
"""A BGR frame, uint8 (height, width, 3), in."""


def scorer(classifier: Classifier) -> Scorer:
    """The classifier's answers, each stage timed."""
    card, engine = classifier.card, classifier.engine

    def scored(frame: Pixels) -> Scored:
        start = time.perf_counter()
        batch = prepare(frame, card.image)[None]
        resized = time.perf_counter()
        logits = engine.infer(batch)[0]
        invoked = time.perf_counter()
        return Scored(softmax(logits, card.temperature), resized - start, invoked - resized, energy(logits, card.temperature))

    return scored


def energy(logits: Probabilities, temperature: float) -> float:
    """`temperature` times the log of the summed exponentials of `logits` (classes,) divided by it; NaN where one is no number."""
    tempered = np.asarray(logits, np.float64) / temperature
    peak = float(tempered.max())
    return temperature * (peak + math.log(float(np.exp(tempered - peak).sum()))) if math.isfinite(peak) else math.nan
