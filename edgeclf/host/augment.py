"""Random changes to training pictures, in TensorFlow, after the one preprocessing and before the network."""

from __future__ import annotations

from typing import Any

from edgeclf.core.image import MEAN, STD
from edgeclf.core.recipe import AugmentationSection
from edgeclf.host.keras import tensorflow


def augment(pictures: Any, seed: Any, section: AugmentationSection) -> Any:
    """Flip and shift a batch: uint8 (pictures, height, width, channels) → the same; `seed` is int (2,).

    Each picture draws its own numbers, which depend on `seed` alone. Borders are reflected. It is two gathers, so it
    costs a small part of a training step.
    """
    tf = tensorflow()
    count, height, width = tf.shape(pictures)[0], pictures.shape[1], pictures.shape[2]
    draws = tf.random.stateless_uniform([3, count], seed)
    reach = section.shift
    rows = _reflected(height, tf.round((draws[0] * 2 - 1) * (reach * height + 0.49)))
    columns = _reflected(width, tf.round((draws[1] * 2 - 1) * (reach * width + 0.49)))
    if section.flip:
        columns = tf.where((draws[2] < 0.5)[:, None], width - 1 - columns, columns)
    pictures = tf.gather(pictures, rows, axis=1, batch_dims=1) if reach else pictures
    return tf.gather(pictures, columns, axis=2, batch_dims=1) if reach or section.flip else pictures


def normalise(pictures: Any) -> Any:
    """uint8 pixels → float32 (pixel - 128) / 128, what every network of this project sees."""
    tf = tensorflow()
    return (tf.cast(pictures, tf.float32) - MEAN) / STD


def _reflected(size: int, shift: Any) -> Any:
    """Indices 0..size-1 moved by `shift` (pictures,), reflected at both ends: int32 (pictures, size)."""
    tf = tensorflow()
    moved = tf.range(size)[None, :] + tf.cast(shift, tf.int32)[:, None]
    last = size - 1
    return tf.clip_by_value(last - tf.abs(last - tf.abs(moved)), 0, last)
