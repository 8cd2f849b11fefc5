"""Recipe: everything that decides how a model is built, trained and exported; one TOML file in `models/`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeclf.core import config
from edgeclf.core.errors import ConfigError
from edgeclf.core.image import Colour, Fit, ImageSpec


def _require(holds: bool, key: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{key} = {value}: must be {wanted}")


@dataclass(frozen=True)
class ModelSection:
    """Which builder of `host/architectures` makes the network, and its options."""

    architecture: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSection:
    """Input of the network; `size` is the side of the square in pixels."""

    size: int
    fit: Fit = "stretch"
    colour: Colour = "rgb"

    def spec(self) -> ImageSpec:
        return ImageSpec(self.size, self.size, self.fit, self.colour)


@dataclass(frozen=True)
class TrainingSection:
    """Optimiser and schedule. `learning_rate` is the peak; the schedule is linear warm-up, then cosine to zero.

    `weight_decay` is decoupled (Loshchilov and Hutter 2019) and spares biases and batch normalisation.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    learning_rate: float = 0.002
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        _require(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "at least 0")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")
        _require(0 <= self.seed < 2**31, "seed", self.seed, "between 0 and 2147483647")


@dataclass(frozen=True)
class AugmentationSection:
    """Random changes to training pictures: `flip` left-right, `shift` as a share of the side, borders reflected."""

    flip: bool = True
    shift: float = 0.125

    def __post_init__(self) -> None:
        _require(0 <= self.shift <= 0.5, "shift", self.shift, "in [0, 0.5]")


@dataclass(frozen=True)
class DataSection:
    """Shares of the pictures that are held out, where the data has no folders for it.

    Validation takes at most `val_pictures` in all: more would cost training pictures and tell little more.
    """

    val: float = 0.1
    val_pictures: int = 2000
    test: float = 0.15

    def __post_init__(self) -> None:
        _require(0 < self.val < 0.5, "val", self.val, "in (0, 0.5)")
        _require(self.val_pictures >= 1, "val_pictures", self.val_pictures, "at least 1")
        _require(0 < self.test < 0.5, "test", self.test, "in (0, 0.5)")


@dataclass(frozen=True)
class ExportSection:
    """Post-training quantisation: how many training pictures calibrate."""

    calibration_pictures: int = 500

    def __post_init__(self) -> None:
        _require(self.calibration_pictures >= 50, "calibration_pictures", self.calibration_pictures, "at least 50")


@dataclass(frozen=True)
class Recipe:
    """One model, from input size to export."""

    name: str
    description: str
    model: ModelSection
    image: ImageSection
    training: TrainingSection = TrainingSection()
    augmentation: AugmentationSection = AugmentationSection()
    data: DataSection = DataSection()
    export: ExportSection = ExportSection()


def load_recipe(name: str) -> Recipe:
    """The recipe with a shipped name, or at the path of a `.toml` file. Raises ConfigError."""
    return read_recipe(config.find("models", name))


def override(recipe: Recipe, **changes: Any) -> Recipe:
    """A copy with single values replaced, `section__key=value`; a value of None changes nothing. Raises ConfigError."""
    for key, value in changes.items():
        if value is None:
            continue
        section, _, name = key.partition("__")
        inner = dataclasses.replace(getattr(recipe, section), **{name: value})
        recipe = dataclasses.replace(recipe, **{section: inner})
    return recipe


def read_recipe(path: Path) -> Recipe:
    """The recipe in that file. Raises ConfigError."""
    return config.build(Recipe, config.read(path), str(path))
