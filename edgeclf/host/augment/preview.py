"""A preview of augmentation: pictures as they are and as training sees them, in one image file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core import files
from edgeclf.core.errors import MissingExtra
from edgeclf.core.image import MEAN, STD, Colour, Pixels
from edgeclf.core.recipe import Recipe
from edgeclf.host.augment.augment import augment, mix, normalise
from edgeclf.host.data.dataset import Dataset
from edgeclf.host.keras import tensorflow

CELL_IN, LINE_IN, DPI = 1.05, 0.15, 130
LEAST_SHARE = 0.005  # of a class in a caption


@dataclass(frozen=True, eq=False)
class Preview:
    """`originals` uint8 (pictures, height, width, channels) of classes `labels`; `versions` uint8 (pictures, versions, …).

    `captions` holds a text for each version: its soft label where pictures were mixed, else nothing.
    """

    originals: Pixels
    versions: Pixels
    labels: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]


def preview(dataset: Dataset, recipe: Recipe, pictures: int, versions: int, seed: int) -> Preview:
    """Augment some training pictures, as many of each class as can be, by the very functions that training uses.

    `seed` decides which pictures and which changes. Mixing is among the pictures shown, as in a batch of them.
    """
    tf = tensorflow()
    chosen = _chosen(dataset, pictures, seed)
    originals, classes = dataset.shards.take(chosen), dataset.catalogue.classes[chosen]
    targets = tf.one_hot(classes, len(dataset.labels))
    made, soft = [], []
    for version in range(versions):
        key = tf.constant([seed, version], tf.int32)
        changed, mixed = mix(normalise(augment(originals, key, recipe.augmentation)), targets, key, recipe.augmentation)
        made.append(np.clip(np.round(changed.numpy() * STD + MEAN), 0, 255).astype(np.uint8))
        soft.append(np.asarray(mixed))
    mixes = bool(recipe.augmentation.mixup or recipe.augmentation.cutmix)
    captions = tuple(tuple(_caption(s[row], dataset.labels) if mixes else "" for s in soft) for row in range(len(chosen)))
    return Preview(originals, np.stack(made, axis=1), tuple(dataset.labels[c] for c in classes), captions)


def draw(shown: Preview, colour: Colour, out: Path) -> None:
    """Write the grid as a PNG: a row for each picture, the original first. Raises MissingExtra without matplotlib."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra.for_extra("train", "matplotlib is not installed") from error
    count, columns = len(shown.originals), 1 + shown.versions.shape[1]
    caption_in = LINE_IN * (1.3 + any("\n" in caption for row in shown.captions for caption in row))
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 6.5}):
        figure = Figure(figsize=(columns * CELL_IN, count * (CELL_IN + caption_in)))
        for row in range(count):
            pictures = [shown.originals[row], *shown.versions[row]]
            captions = [shown.labels[row], *shown.captions[row]]
            for column, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
                _cell(figure, (row, column), (count, columns), _rgb(picture, colour), caption, caption_in)
        with files.writing(out) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, facecolor="white")


def _cell(figure: Any, place: tuple[int, int], grid: tuple[int, int], picture: Pixels, caption: str, caption_in: float) -> None:
    height, width = 1 / grid[0], 1 / grid[1]
    below = caption_in / (CELL_IN + caption_in)
    left, bottom = place[1] * width, 1 - (place[0] + 1) * height
    axes = figure.add_axes((left + 0.03 * width, bottom + below * height, 0.94 * width, (0.98 - below) * height))
    axes.imshow(picture, interpolation="nearest" if max(picture.shape) < 100 else "antialiased")
    axes.set_axis_off()
    weight = "bold" if place[1] == 0 else "normal"
    figure.text(left + width / 2, bottom + 0.94 * below * height, caption, ha="center", va="top", fontweight=weight)


def _rgb(picture: Pixels, colour: Colour) -> npt.NDArray[np.uint8]:
    if colour == "grey":
        return np.repeat(picture, 3, axis=2)
    return picture[:, :, ::-1] if colour == "bgr" else picture


def _chosen(dataset: Dataset, pictures: int, seed: int) -> npt.NDArray[np.int64]:
    """Training pictures in random order, the first of every class before the second of any."""
    drawn = np.random.RandomState(seed).permutation(dataset.parts["train"])
    classes, seen = dataset.catalogue.classes[drawn], np.zeros(len(dataset.labels), np.int64)
    turns = np.empty(len(drawn), np.int64)
    for row, number in enumerate(classes.tolist()):
        turns[row] = seen[number]
        seen[number] += 1
    return drawn[np.lexsort((classes, turns))[:pictures]]


def _caption(shares: npt.NDArray[np.float32], labels: tuple[str, ...]) -> str:
    """The classes of a soft label, the largest share first, one a line."""
    order = [int(i) for i in np.argsort(-shares, kind="stable")[:2] if shares[i] >= LEAST_SHARE]
    return "\n".join(f"{labels[i]} {shares[i]:.2f}" for i in order)
