"""Adversarial pictures by projected gradient descent, for training on them and for measuring what they cost.

Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks": a random start inside the cube of side
2 epsilon around the picture, then steps along the sign of the loss's gradient, each projected back into the cube.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeclf.core.image import MEAN, STD
from edgeclf.core.progress import Report
from edgeclf.core.recipe import AdversarialSection
from edgeclf.core.results import wilson
from edgeclf.host.augment import normalise
from edgeclf.host.data import Dataset
from edgeclf.host.keras import keras, tensorflow

LOWEST, HIGHEST = (0 - MEAN) / STD, (255 - MEAN) / STD
MEASURED_BATCH, MOST_MEASURED = 250, 10_000


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
    right, answer = 0, _answering(model, section)
    for first in range(0, len(indices), MEASURED_BATCH):
        chosen = indices[first : first + MEASURED_BATCH]
        truth = dataset.catalogue.classes[chosen]
        right += int(np.sum(answer(dataset.shards.take(chosen), truth, np.array([seed, first], np.int32)) == truth))
        if report:
            report(first + len(chosen), len(indices))
    interval = wilson(right, len(indices))
    attacked = {"attack": "pgd", "epsilon": section.epsilon, "step": section.step, "steps": section.steps}
    return {"top1": right / len(indices), "low": interval.low, "high": interval.high, "pictures": len(indices), **attacked}


def _answering(model: Any, section: AdversarialSection) -> Callable[..., Any]:
    tf = tensorflow()
    kinds = [tf.TensorSpec(model.input_shape, tf.uint8), tf.TensorSpec([None], tf.int32), tf.TensorSpec([2], tf.int32)]

    @tf.function(input_signature=kinds, autograph=False)  # type: ignore[untyped-decorator]
    def answer(pictures: Any, truth: Any, seed: Any) -> Any:
        changed = attack(model, normalise(pictures), truth, section, seed)
        return tf.argmax(model(changed, training=False), axis=-1)

    return lambda *given: answer(*map(tf.constant, given)).numpy()
