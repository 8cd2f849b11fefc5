"""What a training step minimises, and with which optimiser and schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgeclf.core.recipe import TrainingSection
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.train.muon import muon

RMSPROP_RHO = 0.9
LEAST_PROBABILITY = 1e-7


def compile_model(model: Any, section: TrainingSection, steps: int) -> None:
    """Compile `model` in place for a training of `steps` steps an epoch."""
    model.compile(optimizer(section, steps), loss(section, model.output_shape[-1]), metrics=["accuracy"], jit_compile=section.xla)


def loss(section: TrainingSection, classes: int) -> Any:
    """Cross-entropy of logits against class indices (pictures,) or target distributions (pictures, classes).

    With label smoothing (Szegedy et al. 2016), and focal where `focal_gamma` is above 0 (Lin et al. 2017): each class's
    term times (1 - p)^gamma. Computed in float32 whatever the logits are.
    """
    tf = tensorflow()

    def cross_entropy(truth: Any, logits: Any) -> Any:
        targets = tf.cast(truth, tf.float32) if _is_dense(truth, classes) else _one_hot(truth, classes)
        targets = targets * (1 - section.label_smoothing) + section.label_smoothing / classes
        logs = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        if section.focal_gamma:
            logs *= (1 - tf.minimum(tf.exp(logs), 1 - LEAST_PROBABILITY)) ** section.focal_gamma
        return -tf.reduce_sum(targets * logs, axis=-1)

    if section.label_smoothing or section.focal_gamma or section.precision != "float32":
        return cross_entropy

    sparse = keras().losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")  # the faster kernel
    return lambda truth, logits: cross_entropy(truth, logits) if _is_dense(truth, classes) else sparse(truth, logits)


def _is_dense(truth: Any, classes: int) -> bool:
    return len(truth.shape) == 2 and truth.shape[-1] == classes


def _one_hot(truth: Any, classes: int) -> Any:
    tf = tensorflow()
    return tf.one_hot(tf.cast(tf.reshape(truth, [-1]), tf.int32), classes)


def optimizer(section: TrainingSection, steps: int) -> Any:
    """The optimiser of a recipe, its weight decay sparing biases and batch normalisation.

    It keeps the average of the weights where `section.ema` asks for one (Polyak and Juditsky 1992).
    """
    optimizers = keras().optimizers
    shared: dict[str, Any] = {"learning_rate": schedule(section, steps), "weight_decay": section.weight_decay or None}
    if section.clip_norm:
        shared["global_clipnorm"] = section.clip_norm
    if section.ema:
        shared |= {"use_ema": True, "ema_momentum": section.ema}
    if section.optimizer == "sgd":
        made = optimizers.SGD(momentum=section.momentum, nesterov=section.momentum > 0, **shared)
    elif section.optimizer == "rmsprop":
        made = optimizers.RMSprop(rho=RMSPROP_RHO, momentum=section.momentum, **shared)
    elif section.optimizer == "muon":
        made = muon(section.momentum, **shared)
    elif section.optimizer == "adamw":
        made = optimizers.AdamW(**{**shared, "weight_decay": section.weight_decay})
    else:
        made = optimizers.Adam(**shared)
    made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made


def schedule(section: TrainingSection, steps: int) -> Any:
    """The learning rate by step: linear warm-up over `warmup_epochs`, then what `section.schedule` says.

    The cosine is that of Loshchilov and Hutter (2017). `plateau` has a variable `factor`, which `plateau_factor` gives.
    """
    tf = tensorflow()
    warmup, total = min(section.warmup_epochs, section.epochs / 2) * steps, section.epochs * steps

    class Rate(keras().optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __init__(self) -> None:
            self.factor = tf.Variable(1.0, trainable=False) if section.schedule == "plateau" else 1.0

        def __call__(self, step: Any) -> Any:
            step = tf.cast(step, tf.float32)
            return section.learning_rate * tf.where(step < warmup, (step + 1) / max(1.0, warmup), self.share(step))

        def share(self, step: Any) -> Any:
            if section.schedule == "cosine":
                return 0.5 * (1 + tf.cos(math.pi * tf.minimum(1.0, (step - warmup) / max(1.0, total - warmup))))
            if section.schedule == "step":
                passed = [tf.cast(step >= at * total, tf.float32) for at in section.step_at]
                return section.step_factor ** tf.add_n([tf.zeros_like(step), *passed])
            return tf.ones_like(step) * self.factor

        def get_config(self) -> dict[str, Any]:
            return {}

    return Rate()


def plateau_factor(val_losses: Sequence[float], section: TrainingSection) -> float:
    """What the rate is multiplied by after these epochs: `step_factor` for every `plateau_patience` epochs without a new low."""
    factor, best, waited = 1.0, math.inf, 0
    for value in val_losses:
        best, waited = (value, 0) if value < best else (best, waited + 1)
        if waited == section.plateau_patience:
            factor, waited = factor * section.step_factor, 0
    return factor
