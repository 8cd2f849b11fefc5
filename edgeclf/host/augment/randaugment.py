"""RandAugment (Cubuk et al. 2020) over a batch: each picture draws some of fourteen operations, all at one magnitude.

The moves of a picture go into the one sampling of `warp`; its colour operations follow in the order drawn. Strengths are
torchvision's, which grow with the magnitude for every operation: at 0 only auto-contrast and equalise change anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeclf.core.recipe import AugmentationSection
from edgeclf.host.augment import colour_ops, warp
from edgeclf.host.keras import tensorflow

OPERATIONS = (
    "identity", "rotate", "shear-x", "shear-y", "translate-x", "translate-y",
    "auto-contrast", "equalise", "solarise", "posterise", "contrast", "brightness", "colour", "sharpness",
)  # fmt: skip
MOST_DEGREES, MOST_SHEAR, MOST_TRANSLATE = 30.0, 0.3, 150 / 331  # the last a share of the side
MOST_CHANGE = 0.9  # of contrast, brightness, colour and sharpness, which are 1 in the picture as it is
MOST_BITS = 4  # that posterise takes from 8
_TABLES = "auto-contrast", "solarise", "posterise", "contrast", "brightness"
_KIND = dict.fromkeys(OPERATIONS, 0) | dict.fromkeys(_TABLES, 1) | {"equalise": 2, "colour": 3, "sharpness": 3}


@dataclass(frozen=True, eq=False)
class Operations:
    """What each picture drew: `chosen` int32 (rounds, pictures), indices into OPERATIONS; `signs` -1 or 1, float32, alike.

    `level` is the magnitude, from 0 to 1.
    """

    chosen: Any
    signs: Any
    level: float


def draw(seed: Any, count: Any, section: AugmentationSection) -> Operations:
    """`section.randaugment` operations for each of `count` pictures."""
    tf = tensorflow()
    chosen, signs = tf.unstack(tf.random.stateless_uniform([2, section.randaugment, count], seed))
    return Operations(tf.cast(chosen * len(OPERATIONS), tf.int32), tf.where(signs < 0.5, -1.0, 1.0), section.magnitude / 10)


def moves(operations: Operations, height: int, width: int) -> list[Any]:
    """The matrices of each round, for `warp.sample`; of a picture that drew no move in it, the one that moves nothing."""
    tf = tensorflow()
    found = []
    for chosen, sign in zip(tf.unstack(operations.chosen), tf.unstack(operations.signs), strict=True):

        def amount(name: str, most: float, chosen: Any = chosen, sign: Any = sign) -> Any:
            return tf.where(chosen == OPERATIONS.index(name), sign * (most * operations.level), 0.0)

        turned = warp.about_the_middle(
            height, width, amount("rotate", MOST_DEGREES), tf.ones_like(sign), amount("shear-x", MOST_SHEAR),
            amount("shear-y", MOST_SHEAR),
        )  # fmt: skip
        right, down = amount("translate-x", MOST_TRANSLATE * width), amount("translate-y", MOST_TRANSLATE * height)
        found += [turned, warp.shift(tf.round(right), tf.round(down))]
    return found


def recoloured(pictures: Any, operations: Operations) -> Any:
    """The colour operations of each round: uint8 (pictures, height, width, channels) → the same."""
    tf = tensorflow()
    for chosen, sign in zip(tf.unstack(operations.chosen), tf.unstack(operations.signs), strict=True):
        pictures = _round(pictures, chosen, sign, operations.level)
    return pictures


def _round(pictures: Any, chosen: Any, sign: Any, level: float) -> Any:
    """Pictures of a kind are treated together: none pays for what another drew."""
    tf = tensorflow()
    kind = tf.gather(list(_KIND.values()), chosen)
    places, groups, names, signs = (
        tf.dynamic_partition(what, kind, 4) for what in (tf.range(tf.size(kind)), pictures, chosen, sign)
    )
    changed = [
        groups[0],
        colour_ops.looked_up(groups[1], _tables(groups[1], names[1], signs[1], level)),
        colour_ops.looked_up(groups[2], colour_ops.equalising(colour_ops.histograms(groups[2]))),
        _blended(groups[3], names[3], signs[3], level),
    ]
    return tf.ensure_shape(tf.dynamic_stitch(places, changed), pictures.shape)


def _tables(pictures: Any, chosen: Any, sign: Any, level: float) -> Any:
    """What each value becomes, float32 (pictures, channels, 256)."""
    tf = tensorflow()
    values, factor = tf.range(256, dtype=tf.float32)[None, None], (1 + sign * (MOST_CHANGE * level))[:, None, None]
    floats = tf.cast(pictures, tf.float32)
    low, high = (reduce(floats, axis=[1, 2])[..., None] for reduce in (tf.reduce_min, tf.reduce_max))
    mean = tf.round(tf.reduce_mean(colour_ops.grey(floats), axis=[1, 2, 3]))[:, None, None]
    step = 2.0 ** round(MOST_BITS * level)
    tables = {
        "auto-contrast": tf.where(high > low, (values - low) * (255 / tf.maximum(high - low, 1)), values),
        "solarise": tf.where(values < 256 * (1 - level), values, 255 - values),
        "posterise": tf.floor(values / step) * step,
        "contrast": mean + factor * (values - mean),
        "brightness": factor * values,
    }
    result = tf.zeros_like(low) + values
    for name, table in tables.items():
        result = tf.where((chosen == OPERATIONS.index(name))[:, None, None], table, result)
    return result


def _blended(pictures: Any, chosen: Any, sign: Any, level: float) -> Any:
    """Colour against grey, or sharp against smooth."""
    tf = tensorflow()
    values = tf.cast(pictures, tf.float32)
    is_colour = (chosen == OPERATIONS.index("colour"))[:, None, None, None]
    degenerate = tf.where(is_colour, colour_ops.grey(values), colour_ops.smoothed(values))
    return colour_ops.blend(values, degenerate, 1 + sign * (MOST_CHANGE * level))
