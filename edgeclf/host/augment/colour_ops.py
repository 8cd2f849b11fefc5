"""Changes of pixel values over batches of uint8 pictures (pictures, height, width, channels), each picture by its own factor."""

from __future__ import annotations

from typing import Any

from edgeclf.host.keras import tensorflow

LUMA = 0.299, 0.587, 0.114  # of red, green and blue (ITU-R BT.601)
SMOOTH_CENTRE, SMOOTH_SUM = 5, 13  # Pillow's SMOOTH: ones about a 5


def jitter(pictures: Any, brightness: Any, contrast: Any, saturation: Any) -> Any:
    """Saturation, contrast and brightness in that order, times factors (pictures,); 1 changes nothing, 0 takes all."""
    tf = tensorflow()
    brightness, contrast, saturation = (factor[:, None, None, None] for factor in (brightness, contrast, saturation))
    values = tf.cast(pictures, tf.float32)
    luma = grey(values)
    mean = tf.reduce_mean(luma, axis=[1, 2, 3], keepdims=True)
    both = brightness * contrast
    rest = both * (1 - saturation) * luma + brightness * (1 - contrast) * mean  # a third of the values of a colour picture
    return to_pixels(values * (both * saturation) + rest)


def blend(values: Any, degenerate: Any, factor: Any) -> Any:
    """Between `degenerate` (0) and `values` (1), or beyond; float32 in, uint8 out; `factor` is (pictures,)."""
    factor = factor[:, None, None, None]
    return to_pixels(values * factor + degenerate * (1 - factor))


def grey(values: Any) -> Any:
    """Float32 (pictures, height, width, 1): the luma of colour, or grey as it is."""
    tf = tensorflow()
    if values.shape[-1] == 1:
        return values
    return tf.reduce_sum(values * tf.constant(LUMA), axis=-1, keepdims=True)


def smoothed(values: Any) -> Any:
    """Each value with its eight neighbours, as Pillow's SMOOTH; the outermost pixels stay as they are."""
    tf = tensorflow()
    rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    around = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = values[:, 1:-1, 1:-1]
    # What is added to the inner pixels, and 0 at the border.
    change = (around + (SMOOTH_CENTRE - 1) * inner) / SMOOTH_SUM - inner
    return values + tf.pad(change, [[0, 0], [1, 1], [1, 1], [0, 0]])


def looked_up(pictures: Any, tables: Any) -> Any:
    """Each value replaced by `tables` (pictures, channels or 1, 256) at it; uint8 in and out."""
    tf = tensorflow()
    first = _rows(pictures) if tables.shape[1] != 1 else tf.range(tf.shape(pictures)[0])[:, None, None, None]
    return tf.gather(tf.reshape(to_pixels(tables), [-1]), tf.cast(pictures, tf.int32) + 256 * first)


def histograms(pictures: Any) -> Any:
    """How often each value occurs in each channel: float32 (pictures, channels, 256)."""
    tf = tensorflow()
    channels = pictures.shape[-1]
    bins = tf.reshape(tf.cast(pictures, tf.int32) + 256 * _rows(pictures), [-1])
    counts = tf.math.unsorted_segment_sum(tf.ones_like(bins), bins, tf.shape(pictures)[0] * channels * 256)
    return tf.reshape(tf.cast(counts, tf.float32), [-1, channels, 256])


def equalising(counts: Any) -> Any:
    """Tables that make the values of each histogram equally frequent, in Pillow's arithmetic: (pictures, channels, 256)."""
    tf = tensorflow()
    values = tf.range(256, dtype=tf.float32)
    last = tf.reduce_max(tf.where(counts > 0, values, 0.0), axis=2, keepdims=True)
    of_last = tf.reduce_sum(tf.where(values == last, counts, 0.0), axis=2, keepdims=True)
    step = tf.floor((tf.reduce_sum(counts, axis=2, keepdims=True) - of_last) / 255)
    table = tf.floor((tf.floor(step / 2) + tf.cumsum(counts, axis=2, exclusive=True)) / tf.maximum(step, 1))
    return tf.where(step > 0, table, values)


def to_pixels(values: Any) -> Any:
    """Float32 → uint8, rounded and kept within 0 and 255."""
    tf = tensorflow()
    return tf.cast(tf.clip_by_value(values, 0.0, 255.0) + 0.5, tf.uint8)


def _rows(pictures: Any) -> Any:
    """A number of its own for each channel of each picture, int32 (pictures, 1, 1, channels)."""
    tf = tensorflow()
    channels = pictures.shape[-1]
    return (tf.range(tf.shape(pictures)[0])[:, None] * channels + tf.range(channels)[None])[:, None, None, :]
