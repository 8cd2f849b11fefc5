"""Magnitude pruning: single weights become zero while the network goes on training, by tensorflow-model-optimization.

Zhu and Gupta 2017, "To prune, or not to prune": the share of zeros grows by a cubic polynomial, so that the network mends
what it loses. Such zeros make a file smaller only when it is compressed, and no dense kernel faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclf.core.errors import ConfigError
from edgeclf.host.keras import keras, tfmot

RISING = 0.6  # share of the steps in which zeros are added; in the rest the network recovers
UPDATES = 40  # how often the mask is drawn anew
SMALL = 1024  # a kernel of fewer weights is left whole: it saves nothing and costs the most
PRUNED_KINDS = ("Conv2D", "Dense")


def wrap(model: Any, share: float, two_of_four: bool, steps: int) -> Any:
    """The network whose large kernels lose weights over `steps` steps of training; its weights are those of `model`.

    `share` of each kernel's weights become zero or, with `two_of_four`, the two smaller of every four along the input
    channels. Raises ConfigError when no kernel is large enough, or none has the inputs for the pattern.
    """
    sparsity = tfmot().sparsity.keras
    every = max(1, int(steps * RISING) // UPDATES)
    schedule = sparsity.PolynomialDecay(0.0, share, 0, max(1, int(steps * RISING)), frequency=every)
    if two_of_four:
        schedule = sparsity.ConstantSparsity(0.5, 0, frequency=every)
    pattern = {"sparsity_m_by_n": (2, 4)} if two_of_four else {}
    chosen = {layer.name for layer in model.layers if is_pruned(layer, two_of_four)}
    if not chosen:
        raise ConfigError(
            f"no layer has {SMALL} weights or more{' and a multiple of 4 inputs' if two_of_four else ''}, so there is nothing "
            "to prune; prune channels instead: --prune-channels 0.5"
        )

    def wrapped(layer: Any) -> Any:
        if layer.name not in chosen:
            return layer
        return sparsity.prune_low_magnitude(layer, pruning_schedule=schedule, **pattern)

    return keras().models.clone_model(copy_of(model), clone_function=wrapped)


def callbacks() -> list[Any]:
    """What must watch the training of a wrapped network."""
    return [tfmot().sparsity.keras.UpdatePruningStep()]


def is_pruned(layer: Any, two_of_four: bool = False) -> bool:
    """Whether that layer's kernel is large enough, and has the shape, to be pruned."""
    if type(layer).__name__ not in PRUNED_KINDS or layer.kernel.shape.num_elements() < SMALL:
        return False
    return not two_of_four or int(layer.kernel.shape[-2]) % 4 == 0


def copy_of(model: Any) -> Any:
    """The same layers and weights anew, for a wrapper takes the layers of the network that it is given."""
    copied = keras().models.clone_model(model)
    copied.set_weights(model.get_weights())
    return copied


def sparsity_of(model: Any) -> float:
    """The share of zeros among the weights of all kernels."""
    kernels = [w.numpy() for layer in model.layers for w in layer.trainable_weights if "kernel" in w.name]
    return float(sum(np.sum(k == 0) for k in kernels) / max(1, sum(k.size for k in kernels)))
