"""One sampling of a batch of pictures through any number of affine moves, bilinear, with reflected borders.

A matrix, float32 (pictures, 3, 3), takes the place (x, y, 1) of a pixel of the result, in pixels from the centre of the top
left one, to where it comes from. A list of them is applied from the last to the first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from edgeclf.host.keras import tensorflow


def sample(pictures: Any, moves: Sequence[Any]) -> Any:
    """uint8 (pictures, height, width, channels) → the same, moved. Where nothing moves, or by whole pixels, values are exact."""
    tf = tensorflow()
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(pictures, tf.float32),  # on integers the operation cuts fractions off
        transforms=tf.reshape(functools.reduce(tf.matmul, moves), [-1, 9])[:, :8],
        output_shape=pictures.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="REFLECT",
    )
    return tf.cast(moved + 0.5, pictures.dtype)


def flip(flipped: Any, width: int) -> Any:
    """Left and right exchanged where `flipped`, bool (pictures,)."""
    tf = tensorflow()
    sign = 1 - 2 * tf.cast(flipped, tf.float32)
    return _matrix((sign, 0, (1 - sign) / 2 * (width - 1)), (0, 1, 0))


def shift(right: Any, down: Any) -> Any:
    """Moves by pixels, float32 (pictures,)."""
    return _matrix((1, 0, right), (0, 1, down))


def about_the_middle(height: int, width: int, degrees: Any, scale: Any, slant_x: Any, slant_y: Any = 0) -> Any:
    """Shear (tangents), then zoom (1 is none, below it enlarges), then rotation about the middle; each float32 (pictures,)."""
    tf = tensorflow()
    angle = degrees * (math.pi / 180)
    cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
    top, bottom = (cos - sin * slant_y, cos * slant_x - sin), (sin + cos * slant_y, sin * slant_x + cos)
    x, y = (width - 1) / 2, (height - 1) / 2
    return _matrix((*top, x - (top[0] * x + top[1] * y)), (*bottom, y - (bottom[0] * x + bottom[1] * y)))


def _matrix(top: Sequence[Any], middle: Sequence[Any]) -> Any:
    """(pictures, 3, 3) from six entries, of which one at least is (pictures,)."""
    tf = tensorflow()
    entries = [tf.convert_to_tensor(entry, tf.float32) for entry in (*top, *middle, 0, 0, 1)]
    count = tf.reduce_max([tf.size(entry) for entry in entries])
    return tf.reshape(tf.stack([tf.broadcast_to(entry, [count]) for entry in entries], axis=1), [-1, 3, 3])
