"""What a compression is made of: its steps in their order, how each is trained, and what the steps share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgeclf.core.card import ModelCard
from edgeclf.core.recipe import CompressionSection, Recipe, TrainingSection
from edgeclf.host.compress.distill import Teacher
from edgeclf.host.compress.qat import LayerRanges
from edgeclf.host.data.calibration import CalibrationSet
from edgeclf.host.data.dataset import Dataset
from edgeclf.host.train.checkpoint import Row
from edgeclf.host.train.fitting import Listeners

Kind = Literal["channels", "sparsity", "clustering", "distillation", "qat"]


@dataclass(frozen=True)
class Usual:
    """How a step is trained where nobody says otherwise: shares of the recipe's own epochs and rate, and the optimiser."""

    epochs: float
    rate: float
    fewest: int
    optimizer: Literal["", "adam"] = ""  # "" for the recipe's own


USUAL: dict[Kind, Usual] = {
    "channels": Usual(0.3, 0.5, 3),
    "sparsity": Usual(0.2, 0.3, 3),
    "clustering": Usual(0.05, 1.0, 2, "adam"),
    "distillation": Usual(0.3, 0.5, 3),
    "qat": Usual(0.03, 1.0, 3, "adam"),
}
ADAM_RATE = {"clustering": 1e-4, "qat": 3e-4}  # measured for qat on resnet8: three epochs lose nothing
BETWEEN = 0.2  # share of the channel step's epochs that the steps before its last take


@dataclass(frozen=True)
class Stage:
    """One step: what it does, how much of it, and the training that goes with it."""

    name: str
    kind: Kind
    training: TrainingSection
    share: float = 0.0

    def described(self) -> dict[str, Any]:
        """What the lineage says of it."""
        section = self.training
        return {
            "step": self.name, "epochs": section.epochs, "optimizer": section.optimizer, "learning_rate": section.learning_rate
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Setting:
    """What the steps of one compression share; `source` gives the network that the first of them starts from."""

    recipe: Recipe
    dataset: Dataset
    calibration: CalibrationSet
    source: Callable[[], Any]
    teacher: Teacher | None = None
    listeners: Listeners = field(default_factory=Listeners)

    @property
    def section(self) -> CompressionSection:
        return self.recipe.compression

    def card(self, variant: str) -> ModelCard:
        """A card for a file that is made and run on the way."""
        return ModelCard(self.recipe.name, self.dataset.labels, self.recipe.image.spec(), variant, "uint8")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A network after a step, its history, what is worth telling, and after quantisation-aware training its ranges."""

    model: Any
    history: list[Row]
    facts: dict[str, Any]
    ranges: LayerRanges = field(default_factory=dict)


def plan(recipe: Recipe, teacher: bool) -> tuple[Stage, ...]:
    """The steps that a recipe asks for, in the order in which they are done: channels, zeros, clusters, rounding.

    A teacher without any of them is a step of its own.
    """
    section = recipe.compression
    stages = [*_channel_stages(recipe)] if section.prune_channels else []
    if section.prune or section.prune_2_4:
        stages.append(Stage("sparsity", "sparsity", tuned(recipe, "sparsity"), section.prune or 0.5))
    if section.cluster:
        stages.append(Stage("clustering", "clustering", tuned(recipe, "clustering")))
    if teacher and not stages and not section.qat:
        stages.append(Stage("distillation", "distillation", tuned(recipe, "distillation")))
    if section.qat:
        stages.append(Stage("qat", "qat", tuned(recipe, "qat")))
    return tuple(stages)


def _channel_stages(recipe: Recipe) -> Iterator[Stage]:
    section, last = recipe.compression, tuned(recipe, "channels")
    for number in range(1, section.channel_steps + 1):
        share = 1 - (1 - section.prune_channels) ** (number / section.channel_steps)  # of what there was before the first
        between = replace(last, epochs=max(1, round(BETWEEN * last.epochs)))
        training = last if number == section.channel_steps else between
        yield Stage(f"channels-{number}", "channels", training, share)


def tuned(recipe: Recipe, kind: Kind) -> TrainingSection:
    """The training of a step: the recipe's, shorter and gentler, by a cosine without averages and early stopping."""
    usual, section, base = USUAL[kind], recipe.compression, recipe.training
    rate = min(ADAM_RATE[kind], base.learning_rate) if usual.optimizer else usual.rate * base.learning_rate
    return replace(
        base,
        epochs=section.epochs or max(usual.fewest, round(usual.epochs * base.epochs)),
        learning_rate=section.learning_rate or rate,
        optimizer=usual.optimizer or base.optimizer,
        weight_decay=0.0 if usual.optimizer else base.weight_decay,
        schedule="cosine", warmup_epochs=min(base.warmup_epochs, 1.0), ema=0.0, early_stopping=0,
        precision="float32",
    )  # fmt: skip


def suffix(section: CompressionSection, teacher: bool = False) -> str:
    """What is done, for the name of the run: `channels50-qat`; empty for nothing."""
    parts = {
        f"channels{section.prune_channels * 100:g}": section.prune_channels > 0,
        f"pruned{section.prune * 100:g}": section.prune > 0,
        "pruned-2-4": section.prune_2_4,
        f"clustered{section.cluster}": section.cluster > 0,
        "distilled": teacher,
        "qat": section.qat,
    }
    return "-".join(name for name, done in parts.items() if done).replace(".", "_")
