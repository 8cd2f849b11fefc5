"""What `tune` may change of a recipe: the dimensions, the recipe as a point among them, and a point as a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgeclf.core.errors import ConfigError
from edgeclf.core.recipe import Recipe, override
from edgeclf.host.architectures import BUILDERS

# Usual peak rates, and usual decays of a step at that rate: another optimiser keeps a recipe's place against these.
USUAL_RATE = {"sgd": 0.1, "muon": 0.03, "adam": 0.002, "adamw": 0.002, "rmsprop": 0.001}
USUAL_DECAY = {"sgd": 2e-4, "muon": 2e-3, "adam": 1e-4, "adamw": 1e-4, "rmsprop": 1e-4}
OPTIMIZERS = "sgd", "adamw", "muon"
FARTHEST_RATE = 10.0  # times the recipe's, either way
LEAST_DECAY, MOST_DECAY = 0.01, 10.0  # times the usual; the least stands for none
WIDTHS = 0.5, 0.75, 1.0, 1.5  # times the recipe's
LEAST_BATCH, LEAST_STEPS = 8, 4  # a batch is not below the first, and leaves at least that many steps an epoch
STRENGTHS = {"shift": 0.25, "cutout": 0.5, "colour": 0.5, "mixup": 0.4}  # of the augmentation: from 0 up to these

Value: TypeAlias = float | int | str


@dataclass(frozen=True)
class Range:
    """A real number from `low` to `high`."""

    name: str
    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    name: str
    values: tuple[Value, ...]


Dimension: TypeAlias = Range | Choice


def space(recipe: Recipe, training_pictures: int, keep: Sequence[str] = (), trained: bool = False) -> tuple[Dimension, ...]:
    """The dimensions of a search around `recipe`, which lies inside; those named in `keep` stay as the recipe has them.

    Width is left alone where the builder has no such option, or the network starts from `trained` weights, which fit one
    width only. Raises ConfigError for an unknown name in `keep`, or when nothing is left.
    """
    found = {dimension.name: dimension for dimension in _dimensions(recipe, training_pictures, trained)}
    unknown = sorted(set(keep) - found.keys() - {"batch_size", "width"})
    if unknown:
        raise ConfigError(f"--keep {unknown[0]}: is not searched (searched are: {', '.join(found)})")
    left = tuple(dimension for name, dimension in found.items() if name not in keep)
    if not left:
        raise ConfigError("--keep names everything; nothing is left to search")
    return left


def _dimensions(recipe: Recipe, training_pictures: int, trained: bool) -> list[Dimension]:
    section, augmentation, decay = recipe.training, recipe.augmentation, _decay(recipe)
    found: list[Dimension] = [
        Range("learning_rate", 1 / FARTHEST_RATE, FARTHEST_RATE, log=True),
        Range("weight_decay", min(LEAST_DECAY, decay), max(MOST_DECAY, decay), log=True),
        Choice("optimizer", tuple(dict.fromkeys((*OPTIMIZERS, section.optimizer)))),
        Range("label_smoothing", 0.0, max(0.2, section.label_smoothing)),
    ]
    if section.batch_size:
        size, most = section.batch_size, training_pictures // LEAST_STEPS
        sizes = {size} | {s for s in (size // 2, size * 2) if LEAST_BATCH <= s <= most}
        found += [Choice("batch_size", tuple(sorted(sizes)))] if len(sizes) > 1 else []
    found += [Range(name, 0.0, max(most, getattr(augmentation, name))) for name, most in STRENGTHS.items()]
    if not trained and recipe.transfer.weights == "none" and _width_option(recipe):
        found.append(Choice("width", WIDTHS))
    return found


def own_point(recipe: Recipe, dimensions: Sequence[Dimension]) -> dict[str, Value]:
    """Where the recipe itself lies."""
    own = _own(recipe)
    return {dimension.name: own[dimension.name] for dimension in dimensions}


def _own(recipe: Recipe) -> dict[str, Value]:
    section = recipe.training
    return {
        "learning_rate": 1.0, "weight_decay": _decay(recipe), "optimizer": section.optimizer,
        "label_smoothing": section.label_smoothing, "batch_size": section.batch_size, "width": 1.0,
        **{name: float(getattr(recipe.augmentation, name)) for name in STRENGTHS},
    }  # fmt: skip


def _decay(recipe: Recipe) -> float:
    """Of the weights in a step at the peak rate, times the usual."""
    section = recipe.training
    return section.learning_rate * section.weight_decay / USUAL_DECAY[section.optimizer] or LEAST_DECAY


def recipe_at(recipe: Recipe, point: dict[str, Value]) -> Recipe:
    """`recipe` with what `point` says; the recipe itself at its own point.

    Rate and decay are relative to what is usual for the optimiser; the decay is that of a step, `weight_decay` times
    `learning_rate` of a recipe, so that it does not change with the rate. Numbers are rounded to be read.
    """
    own = _own(recipe)
    changed = {name: value for name, value in point.items() if value != own[name]}
    changes: dict[str, Any] = {f"augmentation__{name}": round(float(changed[name]), 2) for name in STRENGTHS if name in changed}
    if changed.keys() & {"optimizer", "learning_rate", "weight_decay"}:
        changes |= _steps(recipe, own | point)
    if "batch_size" in changed:
        changes["training__batch_size"] = changed["batch_size"]
    if "label_smoothing" in changed:
        changes["training__label_smoothing"] = round(float(changed["label_smoothing"]), 3)
    if "width" in changed:
        changes["model__options"] = recipe.model.options | _widened(recipe, float(changed["width"]))
    return override(recipe, **changes)


def _steps(recipe: Recipe, point: dict[str, Value]) -> dict[str, Any]:
    """Optimiser, rate and decay."""
    optimizer, decay = str(point["optimizer"]), float(point["weight_decay"])
    usual_rate = USUAL_RATE[optimizer] / USUAL_RATE[recipe.training.optimizer]
    rate = _rounded(recipe.training.learning_rate * usual_rate * float(point["learning_rate"]))
    return {
        "training__optimizer": optimizer,
        "training__learning_rate": rate,
        "training__weight_decay": 0.0 if decay <= LEAST_DECAY else _rounded(decay * USUAL_DECAY[optimizer] / rate),
    }


def _width_option(recipe: Recipe) -> tuple[str, Any] | None:
    """The option of the recipe's builder that says how wide it is, and its value here."""
    builder = BUILDERS.get(recipe.model.architecture)
    parameters = inspect.signature(builder).parameters if builder else {}
    for name in ("widths", "width", "alpha"):
        if name in parameters:
            return name, recipe.model.options.get(name, parameters[name].default)
    return None


def _widened(recipe: Recipe, factor: float) -> dict[str, Any]:
    """Channels in whole eights, which is what kernels are made for."""
    found = _width_option(recipe)
    if found is None:
        return {}
    name, value = found
    if isinstance(value, (tuple, list)):
        return {name: [_eights(v * factor) for v in value]}
    return {name: _eights(value * factor) if isinstance(value, int) else _rounded(value * factor)}


def _eights(channels: float) -> int:
    return 8 * max(1, round(channels / 8))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def value_in(recipe: Recipe, name: str) -> Value:
    """What `recipe` says for the dimension of that name, as a person reads it; widths as one text."""
    if name in STRENGTHS:
        return float(getattr(recipe.augmentation, name))
    if name == "width":
        found = _width_option(recipe)
        value = found[1] if found else ""
        return "-".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    value = getattr(recipe.training, name)
    return value if isinstance(value, str) else float(value) if isinstance(value, float) else int(value)
