"""What a training step minimises, and with which optimiser and schedule."""

from __future__ import annotations

import math
from typing import Any

from edgeclf.core.recipe import TrainingSection
from edgeclf.host.keras import keras, tensorflow


def compile_model(model: Any, section: TrainingSection, steps: int) -> None:
    """Compile `model` in place for a training of `steps` steps an epoch."""
    model.compile(optimizer(section, steps), loss(section, model.output_shape[-1]), metrics=["accuracy"])


def loss(section: TrainingSection, classes: int) -> Any:
    """Cross-entropy of logits; with label smoothing (Szegedy et al. 2016) against softened one-hot targets."""
    losses, tf = keras().losses, tensorflow()
    if not section.label_smoothing:
        return losses.SparseCategoricalCrossentropy(from_logits=True)
    smooth = losses.CategoricalCrossentropy(from_logits=True, label_smoothing=section.label_smoothing)
    return lambda truth, logits: smooth(tf.one_hot(tf.cast(tf.reshape(truth, [-1]), tf.int32), classes), logits)


def optimizer(section: TrainingSection, steps: int) -> Any:
    """The optimiser of a recipe, its weight decay sparing biases and batch normalisation."""
    optimizers = keras().optimizers
    rate = schedule(section, steps)
    if section.optimizer == "sgd":
        made = optimizers.SGD(rate, momentum=section.momentum, nesterov=section.momentum > 0, weight_decay=section.weight_decay)
    elif section.optimizer == "adamw":
        made = optimizers.AdamW(rate, weight_decay=section.weight_decay)
    else:
        made = optimizers.Adam(rate, weight_decay=section.weight_decay or None)
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


def schedule(section: TrainingSection, steps: int) -> Any:
    """Linear warm-up over `warmup_epochs`, then half a cosine to zero at the last step (Loshchilov and Hutter 2017)."""
    tf = tensorflow()
    warmup, total = min(section.warmup_epochs, section.epochs / 2) * steps, section.epochs * steps

    class WarmupCosine(keras().optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:
            step = tf.cast(step, tf.float32)
            decayed = 0.5 * (1 + tf.cos(math.pi * tf.minimum(1.0, (step - warmup) / max(1.0, total - warmup))))
            return section.learning_rate * tf.where(step < warmup, (step + 1) / max(1.0, warmup), decayed)

        def get_config(self) -> dict[str, Any]:
            return {}

    return WarmupCosine()
