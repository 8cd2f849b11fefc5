"""The seam between the live loop and a classifier: a frame in, scores and what they cost out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from edgeclf.core.card import golden_inputs
from edgeclf.core.errors import ConfigError
from edgeclf.core.image import Pixels, prepare
from edgeclf.core.unknown import NO_ENERGY, energy, gives_energy
from edgeclf.runtime.classifier import Classifier, softmax
from edgeclf.runtime.decision import Probabilities

NOISE_PICTURES = 4


@dataclass(frozen=True, eq=False)
class Scored:
    """Probabilities, float32 (classes,) in label order, NaN where the model gave no numbers; seconds spent on the way.

    `energy` is as in `core.unknown`: high for pictures like those of the training. It says nothing of a model whose file
    gives probabilities (`need_energy`).
    """

    probabilities: Probabilities
    resize_s: float = 0.0
    invoke_s: float = 0.0
    energy: float = 0.0


Scorer: TypeAlias = Callable[[Pixels], Scored]
"""A BGR frame, uint8 (height, width, 3), in."""


def scorer(classifier: Classifier, with_energy: bool = True) -> Scorer:
    """The classifier's answers, each stage timed; the energy stays 0 without `with_energy`, where nothing decides by it."""
    card, engine = classifier.card, classifier.engine

    def scored(frame: Pixels) -> Scored:
        start = time.perf_counter()
        batch = prepare(frame, card.image)[None]
        resized = time.perf_counter()
        logits = engine.infer(batch)[0]
        invoked = time.perf_counter()
        measured = energy(logits, card.temperature) if with_energy else 0.0
        return Scored(softmax(logits, card.temperature), resized - start, invoked - resized, measured)

    return scored


def need_energy(classifier: Classifier) -> None:
    """Raises ConfigError when the answers to a few pictures of noise are probabilities, which have no energy."""
    card = classifier.card
    logits = classifier.engine.infer(golden_inputs(0, NOISE_PICTURES, card.image.shape))
    if not gives_energy(logits):
        raise ConfigError(f"{card.name}: {NO_ENERGY}")
