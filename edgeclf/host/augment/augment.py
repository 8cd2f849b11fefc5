"""Random changes to training pictures, in TensorFlow, after the one preprocessing and before the network.

Stateless: the seed alone decides. Each policy draws from a stream of its own, so switching one on or off changes nothing
that the others draw, and one that is off is not in the graph at all.
"""

from __future__ import annotations

from typing import Any

from edgeclf.core.image import MEAN, PAD_VALUE, STD
from edgeclf.core.recipe import AugmentationSection
from edgeclf.host.augment import colour_ops, randaugment, warp
from edgeclf.host.keras import tensorflow

# Streams of random numbers; flip and shift draw from the seed itself.
ROTATE, ZOOM, SHEAR, COLOUR, CUTOUT, RANDAUGMENT, MIXUP, CUTMIX, BOX, CHOICE = range(1, 11)


def augment(pictures: Any, seed: Any, section: AugmentationSection) -> Any:
    """A batch with every policy but those that mix: uint8 (pictures, height, width, channels) → the same; `seed` is int (2,).

    Each picture draws its own numbers. First where pixels come from, all of it in one step: two gathers for flip and shift,
    one bilinear sampling for anything more. Then RandAugment's colours, `colour`, and `cutout`.
    """
    tf = tensorflow()
    pictures = tf.convert_to_tensor(pictures)
    operations = randaugment.draw(_stream(seed, RANDAUGMENT), tf.shape(pictures)[0], section) if section.randaugment else None
    pictures = _moved(pictures, seed, section, operations)
    if operations is not None:
        pictures = randaugment.recoloured(pictures, operations)
    if section.colour:
        draws = tf.random.stateless_uniform([3, tf.shape(pictures)[0]], _stream(seed, COLOUR), -1.0, 1.0)
        pictures = colour_ops.jitter(pictures, *tf.unstack(1 + section.colour * draws))
    return _cut_out(pictures, seed, section.cutout) if section.cutout else pictures


def mix(pictures: Any, targets: Any, seed: Any, section: AugmentationSection) -> tuple[Any, Any]:
    """Mixup and CutMix of each picture with its neighbour in the batch, which is in random order.

    `pictures` are float32 (pictures, height, width, channels), `targets` float32 (pictures, classes), distributions over the
    classes; both come back so. Each picture draws its share; where both policies are on, each picture takes one at random.
    """
    if not section.mixup and not section.cutmix:
        return pictures, targets
    tf = tensorflow()
    mixing = [make(pictures, seed, alpha) for make, alpha in ((_mixup, section.mixup), (_cutmix, section.cutmix)) if alpha]
    kept = mixing[0]
    if len(mixing) == 2:
        first = tf.random.stateless_uniform([tf.shape(pictures)[0], 1, 1, 1], _stream(seed, CHOICE)) < 0.5
        kept = tf.where(first, mixing[0], mixing[1])
    share = tf.reduce_mean(kept, axis=[1, 2])  # exactly what is left of each picture
    return _blend(pictures, kept), _blend(targets, share)


def normalise(pictures: Any) -> Any:
    """uint8 pixels → float32 (pixel - 128) / 128, what every network of this project sees."""
    tf = tensorflow()
    return (tf.cast(pictures, tf.float32) - MEAN) / STD


def _stream(seed: Any, policy: int) -> Any:
    return tensorflow().random.experimental.stateless_fold_in(seed, policy)


def _moved(pictures: Any, seed: Any, section: AugmentationSection, operations: randaugment.Operations | None) -> Any:
    """Flip and shift, by gathers; in one sampling with rotation, zoom, shear and RandAugment's moves where there are any."""
    tf = tensorflow()
    if not section.flip and not section.shift and not _samples(section):
        return pictures
    count, height, width = tf.shape(pictures)[0], pictures.shape[1], pictures.shape[2]
    draws = tf.random.stateless_uniform([3, count], seed)
    reach = section.shift
    down = tf.round((draws[0] * 2 - 1) * (reach * height + 0.49))
    right = tf.round((draws[1] * 2 - 1) * (reach * width + 0.49))
    flipped = draws[2] < (0.5 if section.flip else 0)
    if _samples(section):
        moves = _affine(count, height, width, seed, section, operations)
        return warp.sample(pictures, [warp.flip(flipped, width), warp.shift(right, down), *moves])
    columns = _reflected(width, right)
    columns = tf.where(flipped[:, None], width - 1 - columns, columns) if section.flip else columns
    pictures = tf.gather(pictures, _reflected(height, down), axis=1, batch_dims=1) if reach else pictures
    return tf.gather(pictures, columns, axis=2, batch_dims=1)


def _samples(section: AugmentationSection) -> bool:
    """Whether pixels are taken from between pixels."""
    return bool(section.rotate or section.zoom or section.shear or (section.randaugment and section.magnitude))


def _affine(
    count: Any, height: int, width: int, seed: Any, section: AugmentationSection, operations: randaugment.Operations | None
) -> list[Any]:
    """Matrices of rotation, zoom and shear about the middle, and of RandAugment's."""
    tf = tensorflow()

    def drawn(policy: int, reach: float) -> Any:
        return tf.random.stateless_uniform([count], _stream(seed, policy), -reach, reach) if reach else tf.zeros([count])

    angle, scale, slant = drawn(ROTATE, section.rotate), 1 + drawn(ZOOM, section.zoom), drawn(SHEAR, section.shear)
    own = [warp.about_the_middle(height, width, angle, scale, slant)]
    return own + (randaugment.moves(operations, height, width) if operations is not None else [])


def _reflected(size: int, shift: Any) -> Any:
    """Indices 0..size-1 moved by `shift` (pictures,), reflected at both ends: int32 (pictures, size)."""
    tf = tensorflow()
    moved = tf.range(size)[None, :] + tf.cast(shift, tf.int32)[:, None]
    last = size - 1
    return tf.clip_by_value(last - tf.abs(last - tf.abs(moved)), 0, last)


def _cut_out(pictures: Any, seed: Any, side: float) -> Any:
    """A square of grey, which the network sees as 0, with its middle anywhere in the picture (DeVries and Taylor 2017)."""
    tf = tensorflow()
    side = tf.fill([tf.shape(pictures)[0]], tf.constant(side, tf.float32))
    return tf.where(_box(pictures, _stream(seed, CUTOUT), side), tf.constant(PAD_VALUE, pictures.dtype), pictures)


def _box(pictures: Any, seed: Any, side: Any) -> Any:
    """Where a rectangle lies, its sides `side` (pictures,) as shares of the picture's: bool (pictures, height, width, 1).

    Its middle is drawn evenly over the picture, so it may reach beyond a border.
    """
    tf = tensorflow()
    middle = tf.random.stateless_uniform([2, tf.shape(pictures)[0]], seed)

    def inside(size: int, middle: Any) -> Any:
        pixels, first = tf.range(size, dtype=tf.float32) + 0.5, (middle - side / 2) * size
        return (pixels >= first[:, None]) & (pixels < (first + side * size)[:, None])

    rows, columns = inside(pictures.shape[1], middle[0]), inside(pictures.shape[2], middle[1])
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def _mixup(pictures: Any, seed: Any, alpha: float) -> Any:
    """What is kept of each picture, float32 (pictures, 1, 1, 1) (Zhang et al. 2018)."""
    return _beta(_stream(seed, MIXUP), tensorflow().shape(pictures)[0], alpha)[:, None, None, None]


def _cutmix(pictures: Any, seed: Any, alpha: float) -> Any:
    """What is kept of each pixel, float32 (pictures, height, width, 1): all, or inside a rectangle nothing (Yun et al. 2019)."""
    tf = tensorflow()
    side = tf.sqrt(1 - _beta(_stream(seed, CUTMIX), tf.shape(pictures)[0], alpha))
    return 1 - tf.cast(_box(pictures, _stream(seed, BOX), side), tf.float32)


def _beta(seed: Any, count: Any, alpha: float) -> Any:
    """Draws from Beta(alpha, alpha), float32 (count,): of two gamma draws the share of the first.

    By way of logarithms, gamma(alpha) = gamma(alpha + 1) U^(1 / alpha) (Marsaglia and Tsang 2000): a gamma draw of a small
    alpha is below the least float.
    """
    tf = tensorflow()
    gamma = tf.math.log(tf.random.stateless_gamma([2, count], seed, alpha + 1))
    power = tf.math.log(1 - tf.random.stateless_uniform([2, count], _stream(seed, 0))) / alpha
    first, second = tf.unstack(gamma + power)
    return tf.sigmoid(first - second)


def _blend(values: Any, kept: Any) -> Any:
    return values * kept + tensorflow().roll(values, 1, axis=0) * (1 - kept)
