"""Zeros stay zeros and equal weights stay equal while a network goes on training.

What pruning and clustering have made of the kernels is read from the network itself; after every step the kernels are put
back among those that have it: zeros where there were zeros, and the mean of the new values where the old were one value.
Starting from one value, that mean is the step that a shared weight would have taken with its averaged gradient, so this
does for any optimiser and any wrapper what tfmot's sparsity- and cluster-preserving schemes do inside their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeclf.host.compress.sparsity import is_pruned
from edgeclf.host.keras import keras, tensorflow

Structure = dict[str, Callable[[Any], Any]]

LEAST_ZEROS = 0.05  # of a kernel; fewer come by chance
MOST_VALUES = 1024  # in a kernel that was clustered


def kept_structure(model: Any) -> Structure:
    """For each layer whose kernel is sparse or clustered, by name: any kernel → the nearest one of the same structure."""
    found: Structure = {}
    for layer in model.layers:
        if not is_pruned(layer):
            continue
        kernel = layer.kernel.numpy()
        values, codes = np.unique(kernel, return_inverse=True)
        if len(values) <= min(MOST_VALUES, kernel.size // 2):
            found[layer.name] = _clustered(values, codes.reshape(-1), kernel.shape)
        elif np.mean(kernel == 0) >= LEAST_ZEROS:
            found[layer.name] = _sparse(kernel != 0)
    return found


def _sparse(mask: Any) -> Callable[[Any], Any]:
    kept = tensorflow().constant(mask.astype(np.float32))
    return lambda kernel: kernel * kept


def _clustered(values: Any, codes: Any, shape: tuple[int, ...]) -> Callable[[Any], Any]:
    tf = tensorflow()
    numbers, not_zero = tf.constant(codes, tf.int32), tf.constant((values != 0).astype(np.float32))

    def nearest(kernel: Any) -> Any:
        means = tf.math.unsorted_segment_mean(tf.reshape(kernel, [-1]), numbers, len(values)) * not_zero
        return tf.reshape(tf.gather(means, numbers), shape)

    return nearest


def kernels(model: Any) -> dict[str, Any]:
    """The kernel of each layer that may have such a structure, by the layer's name, in a wrapper or not."""
    inner = [getattr(layer, "layer", layer) for layer in model.layers]
    return {layer.name: layer.kernel for layer in inner if is_pruned(layer)}


def after_each_step(structure: Structure, kernels: dict[str, Any]) -> Any:
    """A Keras callback that puts the kernels (variables by layer name) back after every step."""
    tf = tensorflow()

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def restore() -> None:
        for name, nearest in structure.items():
            kernels[name].assign(nearest(kernels[name]))

    class Callback(keras().callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            restore()

    return Callback()
