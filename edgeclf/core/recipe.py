"""Recipe: everything that decides how a model is built, trained and exported; one TOML file in `models/`."""

from __future__ import annotations

from collections.abc import Sequence
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


Optimizer = Literal["sgd", "muon", "adam", "adamw", "rmsprop"]
Schedule = Literal["cosine", "constant", "step", "plateau"]
Balance = Literal["none", "weights", "sampling"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TrainingSection:
    """Optimiser, schedule, loss and what else decides a training.

    `learning_rate` is the peak; after a linear warm-up it follows `schedule`: half a cosine to zero, constant, times
    `step_factor` at each share of the epochs in `step_at`, or times `step_factor` when the validation loss did not fall
    for `plateau_patience` epochs. `weight_decay` is decoupled (Loshchilov and Hutter 2019) and spares biases and batch
    normalisation. `batch_size` 0 finds the fastest one that fits. `focal_gamma` above 0 makes the loss focal (Lin et al.
    2017). `class_balance` weighs the loss of a class, or draws its pictures, by the inverse of its share. `ema` is the
    decay of an average of the weights, which is then what is validated and kept; 0 for none. `early_stopping` is how many
    epochs without a better validation accuracy end the training, with the best weights; 0 for never. `clip_norm` bounds
    the gradient's global norm; 0 for no bound. `precision` is what products are computed in, weights stay float32; "auto"
    takes half precision where this machine is faster in it.
    """

    epochs: int = 30
    batch_size: int = 128
    optimizer: Optimizer = "adamw"
    learning_rate: float = 0.002
    schedule: Schedule = "cosine"
    step_at: tuple[float, ...] = (0.5, 0.75)
    step_factor: float = 0.1
    plateau_patience: int = 5
    momentum: float = 0.9
    weight_decay: float = 0.0
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    class_balance: Balance = "none"
    clip_norm: float = 0.0
    ema: float = 0.0
    early_stopping: int = 0
    precision: Precision = "float32"
    xla: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 0, "batch_size", self.batch_size, "at least 1, or 0 to find it")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "above 0")
        _require(all(0 < at < 1 for at in self.step_at), "step_at", self.step_at, "shares of the epochs, in (0, 1)")
        _require(0 < self.step_factor < 1, "step_factor", self.step_factor, "in (0, 1)")
        _require(self.plateau_patience >= 1, "plateau_patience", self.plateau_patience, "at least 1")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        _require(self.warmup_epochs >= 0, "warmup_epochs", self.warmup_epochs, "at least 0")
        _require(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "in [0, 1)")
        _require(self.focal_gamma >= 0, "focal_gamma", self.focal_gamma, "at least 0")
        _require(self.clip_norm >= 0, "clip_norm", self.clip_norm, "at least 0")
        _require(0 <= self.ema < 1, "ema", self.ema, "in [0, 1)")
        _require(self.early_stopping >= 0, "early_stopping", self.early_stopping, "at least 0")
        _require(0 <= self.seed < 2**31, "seed", self.seed, "between 0 and 2147483647")


@dataclass(frozen=True)
class TransferSection:
    """How a network with trained weights is adapted; without `weights` it starts from nothing.

    `weights` is "imagenet" or "none". First the head alone is trained on the frozen network's features for `frozen_epochs`,
    at `frozen_learning_rate`; then `[training]` fine-tunes what `thaw` names, batch normalisation kept as it is: "all",
    "none" (the first stage is all there is), or the name of the first layer that thaws.
    """

    weights: Literal["none", "imagenet"] = "none"
    frozen_epochs: int = 20
    frozen_learning_rate: float = 0.002
    thaw: str = "all"

    def __post_init__(self) -> None:
        _require(self.frozen_epochs >= 0, "frozen_epochs", self.frozen_epochs, "at least 0")
        _require(self.frozen_learning_rate > 0, "frozen_learning_rate", self.frozen_learning_rate, "above 0")
        _require(bool(self.thaw), "thaw", repr(self.thaw), "all, none, or the name of a layer")


@dataclass(frozen=True)
class AdversarialSection:
    """Training on adversarial pictures by projected gradient descent (Madry et al. 2018); in pixel values of 0 to 255.

    `epsilon` is the largest change of a pixel, 0 for ordinary training; `step` that of one of the `steps`.
    """

    epsilon: float = 0.0
    step: float = 2.0
    steps: int = 7

    def __post_init__(self) -> None:
        _require(0 <= self.epsilon <= 128, "epsilon", self.epsilon, "in [0, 128]")
        _require(self.step > 0, "step", self.step, "above 0")
        _require(self.steps >= 1, "steps", self.steps, "at least 1")


@dataclass(frozen=True)
class AugmentationSection:
    """Random changes to training pictures; each is off at 0, and draws its own numbers for each picture.

    `flip` left-right; `shift` and `zoom` as shares of the side; `rotate` in degrees; `shear` as the tangent of the angle;
    `colour` the strength of changed brightness, contrast and saturation; `cutout` the side of a grey square as a share
    (DeVries and Taylor 2017); `randaugment` how many operations of RandAugment, at `magnitude` of 0 to 10 (Cubuk et al.
    2020); `mixup` and `cutmix` the alpha of the Beta distribution (Zhang et al. 2018, Yun et al. 2019). Borders are reflected.
    """

    flip: bool = True
    shift: float = 0.125
    rotate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    colour: float = 0.0
    cutout: float = 0.0
    randaugment: int = 0
    magnitude: float = 5.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        _require(0 <= self.shift <= 0.5, "shift", self.shift, "in [0, 0.5]")
        _require(0 <= self.rotate <= 180, "rotate", self.rotate, "degrees in [0, 180]")
        _require(0 <= self.zoom <= 0.9, "zoom", self.zoom, "in [0, 0.9]")
        _require(0 <= self.shear <= 1, "shear", self.shear, "in [0, 1]")
        _require(0 <= self.colour <= 1, "colour", self.colour, "in [0, 1]")
        _require(0 <= self.cutout <= 1, "cutout", self.cutout, "in [0, 1]")
        _require(0 <= self.randaugment <= 10, "randaugment", self.randaugment, "in [0, 10]")
        _require(0 <= self.magnitude <= 10, "magnitude", self.magnitude, "in [0, 10]")
        _require(self.mixup >= 0, "mixup", self.mixup, "at least 0")
        _require(self.cutmix >= 0, "cutmix", self.cutmix, "at least 0")


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


ChannelTarget = Literal["macs", "parameters", "latency"]


@dataclass(frozen=True)
class CompressionSection:
    """What `compress` makes of a trained network, in this order; nothing where all is off.

    `prune_channels` is the share of `channel_target` that leaves with whole channels, in `channel_steps` with fine-tuning
    between. `prune` is the share of each large kernel's weights that become zero, `prune_2_4` makes two of every four zero.
    `cluster` is how many values a kernel keeps. `qat` is quantisation-aware training. Where there is a teacher, it has
    `distill_weight` of every loss, at `distill_temperature`. `epochs` and `learning_rate` replace those of every step; 0
    leaves them to the step.
    """

    prune_channels: float = 0.0
    channel_target: ChannelTarget = "macs"
    channel_steps: int = 3
    prune: float = 0.0
    prune_2_4: bool = False
    cluster: int = 0
    qat: bool = False
    distill_weight: float = 0.5
    distill_temperature: float = 4.0
    epochs: int = 0
    learning_rate: float = 0.0

    def __post_init__(self) -> None:
        _require(0 <= self.prune_channels < 1, "prune_channels", self.prune_channels, "in (0, 1), or 0 for none")
        _require(self.channel_steps >= 1, "channel_steps", self.channel_steps, "at least 1")
        _require(0 <= self.prune < 1, "prune", self.prune, "in (0, 1), or 0 for none")
        _require(not (self.prune and self.prune_2_4), "prune_2_4", self.prune_2_4, "left out where prune says another share")
        _require(self.cluster == 0 or 2 <= self.cluster <= 256, "cluster", self.cluster, "in 2 to 256, or 0 for none")
        _require(0 < self.distill_weight <= 1, "distill_weight", self.distill_weight, "in (0, 1]")
        _require(self.distill_temperature > 0, "distill_temperature", self.distill_temperature, "above 0")
        _require(self.epochs >= 0, "epochs", self.epochs, "at least 1, or 0 to leave it to each step")
        _require(self.learning_rate >= 0, "learning_rate", self.learning_rate, "above 0, or 0 to leave it to each step")


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
    transfer: TransferSection = TransferSection()
    adversarial: AdversarialSection = AdversarialSection()
    augmentation: AugmentationSection = AugmentationSection()
    data: DataSection = DataSection()
    compression: CompressionSection = CompressionSection()
    export: ExportSection = ExportSection()

    @property
    def split(self) -> dict[str, Any]:
        """The keywords of `core.catalogue.split`."""
        data = self.data
        return {"seed": self.training.seed, "val": data.val, "val_pictures": data.val_pictures, "test": data.test}


def load_recipe(name: str) -> Recipe:
    """The recipe with a shipped name, or at the path of a `.toml` file. Raises ConfigError."""
    return read_recipe(config.find("models", name))


def override(recipe: Recipe, **changes: Any) -> Recipe:
    """A copy with single values replaced, `section__key=value`; a value of None changes nothing. Raises ConfigError."""
    return config.changed(recipe, **changes)


def override_by_text(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """A copy with `section.key=value` applied, values written as in TOML; text needs no quotes. Raises ConfigError."""
    return config.changed_by_text(recipe, assignments)


def read_recipe(path: Path) -> Recipe:
    """The recipe in that file. Raises ConfigError."""
    return config.build(Recipe, config.read(path), str(path))
