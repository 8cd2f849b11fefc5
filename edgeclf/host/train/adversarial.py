"""Adversarial pictures by projected gradient descent, for training on them and for measuring what they cost.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks": a random start inside the cube of side
2 epsilon around the picture, then steps along the sign of the loss's gradient, each projected back into the cube.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from edgeclf.core.image import MEAN, STD, Pixels
from edgeclf.core.progress import Report
from edgeclf.core.recipe import AdversarialSection, Recipe
from edgeclf.core.results import wilson
from edgeclf.host.augment.augment import normalise
from edgeclf.host.data.dataset import Dataset
from edgeclf.host.keras import keras, tensorflow

USUAL_EPSILON = 8.0  # pixel values of 255
LOWEST, HIGHEST = (0 - MEAN) / STD, (255 - MEAN) / STD
MEASURED_BATCH, MOST_MEASURED = 250, 10_000


def section_of(recipe: Recipe, epsilon: float | None = None) -> AdversarialSection:
    """How to attack a network: as its recipe says, or as is usual; `epsilon` decides the strength where it is given.

    Raises ConfigError for a strength that is out of range.
    """
    section = recipe.adversarial
    return replace(section, epsilon=(section.epsilon or USUAL_EPSILON) if epsilon is None else epsilon)


def described(section: AdversarialSection) -> str:
    """The attack in words."""
    return f"attacked by PGD, epsilon {section.epsilon:g} of 255, {section.steps} steps of {section.step:g}"


def attack(model: Any, pictures: Any, truth: Any, section: AdversarialSection, seed: Any) -> Any:
    """The pictures, changed by at most `section.epsilon` pixel values so that the loss grows.

    float32 (pictures, height, width, channels) as the network sees them → the same; `truth` holds class indices
    (pictures,) or targets (pictures, classes), `seed` is int (2,). The network answers as at inference.
    """
    tf = tensorflow()
    epsilon, step = section.epsilon / STD, section.step / STD

    def clipped(changed: Any) -> Any:
        return tf.clip_by_value(tf.clip_by_value(changed, pictures - epsilon, pictures + epsilon), LOWEST, HIGHEST)

    changed = clipped(pictures + tf.random.stateless_uniform(tf.shape(pictures), seed, -epsilon, epsilon))
    for _ in range(section.steps):
        with tf.GradientTape() as tape:
            tape.watch(changed)
            total = _cross_entropy(truth, model(changed, training=False))
        changed = clipped(changed + step * tf.sign(tape.gradient(total, changed)))
    return tf.stop_gradient(changed)


def _cross_entropy(truth: Any, logits: Any) -> Any:
    tf = tensorflow()
    logits = tf.cast(logits, tf.float32)
    if len(truth.shape) == 2 and truth.shape[-1] == logits.shape[-1]:
        return tf.nn.softmax_cross_entropy_with_logits(truth, logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.reshape(truth, [-1]), logits)


def trained_on_attacks(model: Any, section: AdversarialSection, seed: int) -> Any:
    """The same layers and weights as a model whose training step attacks every batch first."""
    tf = tensorflow()

    class Attacked(keras().Model):  # type: ignore[misc]
        def train_step(self, data: Any) -> Any:
            pictures, truth, weights = keras().utils.unpack_x_y_sample_weight(data)
            step = tf.cast(self.optimizer.iterations, tf.int32)  # restored with the checkpoint, so resuming repeats the starts
            pictures = attack(self, pictures, truth, section, tf.stack([seed, step]))
            return super().train_step((pictures, truth) if weights is None else (pictures, truth, weights))

    return Attacked(model.input, model.output, name=model.name)


def measure_robust(
    model: Any, dataset: Dataset, part: str, section: AdversarialSection, seed: int = 0, report: Report | None = None
) -> dict[str, Any]:
    """Top-1 on attacked pictures of a part, as a fraction with its 95% interval, and with what they were attacked.

    Of a part of more than 10,000 pictures a seeded draw is attacked.
    """
    indices = dataset.parts[part]
    if len(indices) > MOST_MEASURED:
        indices = np.sort(np.random.RandomState(seed).permutation(indices)[:MOST_MEASURED])
    right, answer = 0, answering_attacked(model, section, seed)
    for first in range(0, len(indices), MEASURED_BATCH):
        chosen = indices[first : first + MEASURED_BATCH]
        truth = dataset.catalogue.classes[chosen]
        right += int(np.sum(answer(dataset.shards.take(chosen), truth).argmax(axis=1) == truth))
        if report:
            report(first + len(chosen), len(indices))
    interval = wilson(right, len(indices))
    attacked = {"attack": "pgd", "epsilon": section.epsilon, "step": section.step, "steps": section.steps}
    return {"top1": right / len(indices), "low": interval.low, "high": interval.high, "pictures": len(indices), **attacked}


def answering_attacked(model: Any, section: AdversarialSection, seed: int = 0) -> Callable[[Pixels, Any], Any]:
    """The model's float32 logits (pictures, classes) for uint8 pictures that are attacked first, given their true classes.

    Each call draws the next random starts of `seed`.
    """
    tf, calls = tensorflow(), itertools.count()
    kinds = [tf.TensorSpec(model.input_shape, tf.uint8), tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int32)]

    @tf.function(input_signature=kinds, autograph=False)  # type: ignore[untyped-decorator]
    def answer(pictures: Any, truth: Any, drawn: Any) -> Any:
        changed = attack(model, normalise(pictures), truth, section, drawn)
        return model(changed, training=False)

    def attacked(pictures: Pixels, truth: Any) -> Any:
        return answer(tf.constant(pictures), tf.cast(truth, tf.int32), tf.constant([seed, next(calls)])).numpy()

    return attacked
