"""Muon: momentum whose every matrix is made orthogonal before it is applied; short trainings reach further with it.

K. Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". The orthogonal factor of the momentum's
polar decomposition comes from five steps of a quintic Newton-Schulz iteration with the coefficients given there. Here
the iteration runs on the small Gram matrix, which for a 3x3 kernel is a ninth of the work or less.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclf.host.keras import keras, tensorflow

COEFFICIENTS = 3.4445, -4.7750, 2.0315
STEPS = 5
OTHERS = 5.0  # vectors and the last layer learn by plain Nesterov momentum, at so many times the rate of the matrices
OTHERS_DECAY = 0.01  # and their kernels decay by so much of `weight_decay`, for an orthogonal update is of another size
TINY = 1e-7


def muon(momentum: float, weight_decay: float | None, **shared: Any) -> Any:
    """A `tf_keras` optimiser; `shared` is what every one takes: learning_rate, global_clipnorm, use_ema, …

    Biases and batch normalisation do not decay.
    """
    tf = tensorflow()

    class Muon(keras().optimizers.Optimizer):  # type: ignore[misc]
        def __init__(self, learning_rate: Any, **rest: Any) -> None:
            super().__init__(name="Muon", **rest)
            self._learning_rate = self._build_learning_rate(learning_rate)

        def build(self, var_list: Any) -> None:
            super().build(var_list)
            if not getattr(self, "_built", False):
                self.momenta = [self.add_variable_from_reference(v, "m") for v in var_list]
                self._built = True

        def update_step(self, gradient: Any, variable: Any) -> None:
            rate = tf.cast(self.learning_rate, variable.dtype)
            kept = self.momenta[self._index_dict[self._var_key(variable)]]
            kept.assign(momentum * kept + gradient)
            update = gradient + momentum * kept
            decayed = (weight_decay or 0.0) * variable
            if is_hidden_matrix(variable):
                variable.assign_sub(rate * (orthogonal(update) + decayed))
            elif "kernel" in variable.name:
                variable.assign_sub(OTHERS * rate * (update + OTHERS_DECAY * decayed))
            else:
                variable.assign_sub(OTHERS * rate * update)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "learning_rate": self._serialize_hyperparameter(self._learning_rate)}

    return Muon(**shared)


def is_hidden_matrix(variable: Any) -> bool:
    """Whether it is the kernel of a convolution or a hidden dense layer: no vector, no depthwise kernel, not the logits'."""
    return len(variable.shape) in (2, 4) and variable.shape[-1] > 1 and not variable.name.startswith("logits")


def orthogonal(update: Any) -> Any:
    """About the nearest orthogonal matrix to `update` seen as (everything, outputs), times sqrt(max(1, outputs / everything)).

    Singular values end between about 0.7 and 1.2, which is as good as 1 here and needs fewer steps.
    """
    tf = tensorflow()
    rows, columns = int(np.prod(update.shape[:-1])), int(update.shape[-1])
    matrix = tf.reshape(update, [rows, columns])
    wide = tf.transpose(matrix) if rows > columns else matrix
    side = min(rows, columns)
    wide /= tf.norm(wide) + TINY
    gram, factor, (a, b, c) = tf.matmul(wide, wide, transpose_b=True), tf.eye(side), COEFFICIENTS
    for _ in range(STEPS):
        step = a * tf.eye(side) + b * gram + c * tf.matmul(gram, gram)
        factor, gram = tf.matmul(step, factor), tf.matmul(tf.matmul(step, gram), step)
    found = tf.matmul(factor, wide)
    found = tf.transpose(found) if rows > columns else found
    return tf.reshape(found, update.shape) * max(1.0, columns / rows) ** 0.5
