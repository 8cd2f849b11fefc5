"""Telling what a model does not know: three measures of how well a picture fits, and the limit below which to say `unknown`.

`probability` is that of the likeliest class (Hendrycks and Gimpel 2017), `margin` its lead over the second, `energy` as
`energy` says. Everything is higher for pictures like those of the training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from edgeclf.core.calibrate import ROWS, Classes, Logits, Numbers, shortest, softmax
from edgeclf.core.errors import ConfigError
from edgeclf.core.results import Interval, wilson

UnknownBy = Literal["probability", "margin", "energy"]
MEASURES: tuple[UnknownBy, ...] = get_args(UnknownBy)
MOST_ENERGY = 1e9
LIKE_PROBABILITIES = 0.05  # how far sums may be off 1, and their logarithms off 0, before scores are taken for logits
NO_ENERGY = "gives probabilities and not what feeds its softmax, so it has no energy; use probability or margin"
Measured: TypeAlias = dict[UnknownBy, Numbers]


@dataclass(frozen=True)
class UnknownRule:
    """What a picture must reach to be known, whichever class is likeliest; kept in the model card.

    `by` is the measure that decides, `limits` what each that was fitted must reach, `keep` the share of right answers that
    each keeps. `energy_scale` is the distance from the limit of the energy to its median: the unit of its hysteresis.
    """

    by: UnknownBy
    limits: dict[str, float]
    keep: float = 0.95
    energy_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.by not in self.limits:
            raise ConfigError(f"limits: has none for {self.by}")
        for name, limit in self.limits.items():
            if name not in MEASURES or not isinstance(limit, (int, float)) or isinstance(limit, bool):
                raise ConfigError(f"limits: {name} = {limit!r}: expected a number for one of {', '.join(MEASURES)}")
            check_limit(name, limit)
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep = {self.keep}: must be above 0 and up to 1")
        if not 0 < self.energy_scale <= MOST_ENERGY:
            raise ConfigError(f"energy_scale = {self.energy_scale}: must be above 0")


def check_limit(by: str, limit: float) -> None:
    """Raises ConfigError for a limit that the measure cannot have: beyond 0 to 1, or for the energy not finite."""
    if by == "energy":
        if not abs(limit) <= MOST_ENERGY:
            raise ConfigError(f"threshold = {limit}: must be a number from {-MOST_ENERGY:g} to {MOST_ENERGY:g} for the energy")
    elif not 0 <= limit <= 1:
        raise ConfigError(f"threshold = {limit}: must lie between 0 and 1 for the {by}")


def energy(logits: Logits, temperature: float = 1.0) -> float:
    """T log(sum(exp(z / T))) of one picture's logits (classes,); NaN where they hold NaN or infinity.

    The energy score of Liu et al. (2020), "Energy-based out-of-distribution detection", with its sign turned.
    """
    tempered = np.asarray(logits, np.float64) / temperature
    peak = float(tempered.max())
    return temperature * (peak + math.log(float(np.exp(tempered - peak).sum()))) if math.isfinite(peak) else math.nan


def energies(logits: Logits, temperature: float = 1.0) -> Numbers:
    """`energy` of each row of (pictures, classes), float64 (pictures,)."""
    finite: npt.NDArray[np.bool_] = np.logical_and.reduce(np.isfinite(logits), axis=1)
    tempered = np.where(finite[:, None], logits, np.float32(0)).astype(np.float64) / temperature
    peak = tempered.max(axis=1)
    found: Numbers = temperature * (peak + np.log(np.exp(tempered - peak[:, None]).sum(axis=1)))
    return np.where(finite, found, np.nan)


def margin(probabilities: Logits) -> float:
    """The lead of the likeliest class, of (classes,) probabilities."""
    first, second = np.partition(probabilities, -2)[:-3:-1]
    return float(first) - float(second)


def gives_energy(logits: Logits) -> bool:
    """Whether the scores (pictures, classes) can be logits; False when all rows are probabilities or their logarithms.

    A file that ends in a softmax which the engine sees is run up to its logits; one that hides it, as in single operators or
    as LogSoftmax, has an energy that is the same for every picture.
    """
    rows = np.asarray(logits, np.float64)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return False
    shares = rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() < LIKE_PROBABILITIES
    logarithms = np.abs(energies(rows.astype(np.float32))).max() < LIKE_PROBABILITIES
    return not (shares or logarithms)


def measures(logits: Logits, temperature: float) -> Measured:
    """Each measure of each row of (pictures, classes), float64 (pictures,); -inf for rows with NaN or infinity."""
    found: dict[UnknownBy, list[Numbers]] = {by: [] for by in MEASURES}
    for start in range(0, len(logits), ROWS):
        part = logits[start : start + ROWS]
        two = np.partition(softmax(part, temperature), -2, axis=1)[:, -2:].astype(np.float64)
        found["probability"].append(two[:, 1])
        found["margin"].append(two[:, 1] - two[:, 0])
        found["energy"].append(energies(part, temperature))
    joined = {by: np.concatenate([*parts, np.zeros(0)]) for by, parts in found.items()}
    return {by: np.where(np.isfinite(values), values, -np.inf) for by, values in joined.items()}


def known(logits: Logits, temperature: float, rule: UnknownRule) -> npt.NDArray[np.bool_]:
    """Which rows of (pictures, classes) the rule calls known, bool (pictures,)."""
    reached: npt.NDArray[np.bool_] = measures(logits, temperature)[rule.by] >= rule.limits[rule.by]
    return reached


def fit_limit(right: Numbers, keep: float) -> float:
    """The highest limit, with few decimals, that at least the share `keep` of `right` (pictures,), not empty, reaches."""
    ordered = np.sort(right)
    place = min(len(ordered) - 1, math.floor(len(ordered) * (1 - keep) + 1e-9))
    value, below = float(ordered[place]), ordered[ordered < ordered[place]]
    return shortest(float(below[-1]) if len(below) else value - 1e-3, value)


def auroc(known: Numbers, others: Numbers) -> float:
    """The chance that one of `known` measures higher than one of `others`, ties counted half (Mann and Whitney 1947)."""
    ordered = np.sort(known)
    above = len(ordered) - np.searchsorted(ordered, others, "right")
    equal = np.searchsorted(ordered, others, "right") - np.searchsorted(ordered, others, "left")
    return float((above + equal / 2).mean() / len(ordered))


@dataclass(frozen=True)
class Turned:
    """What a fitted rule does: to the right and the wrong answers that it was fitted on, and to other pictures where given.

    `kept` of `right` right answers stay, `wrong_kept` of `wrong` wrong ones. `others_turned_away` of `others` are called
    unknown; `auroc` is, by measure, the chance that a picture fitted on measures higher than one of the others.
    """

    rule: UnknownRule
    right: int
    kept: int
    wrong: int
    wrong_kept: int
    others: int = 0
    others_turned_away: int = 0
    auroc: Mapping[UnknownBy, float] = field(default_factory=dict)

    @property
    def others_interval(self) -> Interval:
        """95% interval of the share of the others that is turned away."""
        return wilson(self.others_turned_away, self.others)


def fit_rule(
    logits: Logits, truth: Classes, temperature: float, by: UnknownBy, keep: float, others: Logits | None = None
) -> Turned:
    """Fit every measure on the right answers among `logits` (pictures, classes), and see what the one chosen does.

    `others` (pictures, classes) are logits of pictures that show none of the classes. Raises ConfigError when no answer is
    right, or when the energy is asked of scores that have none.
    """
    found = measures(logits, temperature)
    if not gives_energy(logits):
        del found["energy"]
    if by not in found:
        raise ConfigError(NO_ENERGY)
    right = np.isfinite(found["probability"]) & (np.nan_to_num(logits).argmax(axis=1) == truth)
    if not right.any():
        raise ConfigError(f"none of {len(truth)} answers is right, so there is nothing to keep as known")
    limits = {name: fit_limit(values[right], keep) for name, values in found.items()}
    scale = float(np.median(found["energy"][right])) - limits["energy"] if "energy" in found else 1.0
    rule = UnknownRule(by, {str(name): limit for name, limit in limits.items()}, keep, scale if scale > 0 else 1.0)
    stays = found[by] >= limits[by]
    wrong = ~right
    turned = Turned(rule, int(right.sum()), int((stays & right).sum()), int(wrong.sum()), int((stays & wrong).sum()))
    return turned if others is None else _with_others(turned, found, measures(others, temperature))


def _with_others(turned: Turned, found: Measured, strange: Measured) -> Turned:
    rule = turned.rule
    away = int((strange[rule.by] < rule.limits[rule.by]).sum())
    areas = {name: auroc(values, strange[name]) for name, values in found.items()}
    return replace(turned, others=len(strange[rule.by]), others_turned_away=away, auroc=areas)
