"""From scores to answers: smoothing over time, thresholds with an `unknown` answer, votes, and one event for one change.

Pure functions over frozen values: `decide(state, probabilities, labels, rules)` gives the next state and what to tell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError
from edgeclf.core.live_settings import DecideSection
from edgeclf.core.text import nearest, printable
from edgeclf.core.unknown import UnknownBy, check_limit, margin

Probabilities: TypeAlias = npt.NDArray[np.float32]

UNKNOWN = "unknown"
INVALID = "invalid"
SETTLED = 0.05  # weight of the past at which a smoothed answer counts as come to rest


@dataclass(frozen=True)
class Rules:
    """How scores become answers.

    `smooth` in [0, 1) is the weight of the past in an exponential mean of the probabilities; 0 looks at each frame alone.
    `thresholds` holds the probability that a class must reach, else the answer is `unknown`: one value for all classes, or
    one a class in label order. Where `unknown_by` is the margin or the energy, a picture must reach `least` in that besides.
    `hysteresis` in [0, 1) is the lead that a new answer needs before it counts as a change, in probability or margin, and in
    `energy_scale` for the energy; `votes` of the last `of` frames must agree on it. `top` is how many of the likeliest
    classes a decision lists.
    """

    smooth: float = 0.0
    thresholds: tuple[float, ...] = (0.0,)
    hysteresis: float = 0.1
    top: int = 3
    unknown_by: UnknownBy = "probability"
    least: float = 0.0
    energy_scale: float = 1.0
    votes: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.smooth < 1:
            raise ConfigError(f"smooth = {self.smooth}: must lie in [0, 1); 0 looks at each frame alone")
        if not 0 <= self.hysteresis < 1:
            raise ConfigError(f"hysteresis = {self.hysteresis}: must lie in [0, 1)")
        if not self.thresholds or not all(0 <= t <= 1 for t in self.thresholds):
            raise ConfigError("threshold: must lie between 0 and 1")
        if self.top < 1:
            raise ConfigError(f"top = {self.top}: must be at least 1")
        if not 1 <= self.votes <= self.of:
            raise ConfigError(f"votes = {self.votes} of {self.of}: must be at least 1 and at most all of them")
        check_limit(self.unknown_by, self.least)

    @property
    def measured(self) -> bool:
        """Whether something besides the probability of the likeliest class decides."""
        return self.unknown_by != "probability"

    @property
    def by_energy(self) -> bool:
        """Whether the energy decides; where it does not, nobody needs it."""
        return self.unknown_by == "energy"

    @property
    def limited(self) -> bool:
        """Whether there is anything that can make an answer `unknown`."""
        return self.measured or any(self.thresholds)

    @property
    def settling(self) -> int:
        """How many frames of a new scene it takes until smoothing and votes have come to its answer."""
        return self.of - 1 + (math.ceil(math.log(SETTLED) / math.log(self.smooth)) if self.smooth else 1)

    def threshold(self, index: int) -> float:
        """What the class with that index must reach."""
        return self.thresholds[index if len(self.thresholds) > 1 else 0]

    def accepts(self, probabilities: Probabilities, best: int, energy: float = 0.0) -> bool:
        """Whether class `best`, the likeliest of (classes,), is an answer."""
        return float(probabilities[best]) >= self.threshold(best) and (
            not self.measured or self.measure(probabilities, energy) >= self.least
        )

    def measure(self, probabilities: Probabilities, energy: float) -> float:
        """The margin or the energy, whichever decides."""
        return margin(probabilities) if self.unknown_by == "margin" else energy


def card_rules(card: ModelCard) -> Rules:
    """The thresholds of the card; without any, the likeliest class always is the answer."""
    thresholds, unknown = card.thresholds or (0.0,), card.unknown
    if unknown is None:
        return Rules(thresholds=thresholds)
    least = float(unknown.limits[unknown.by])
    if unknown.by == "probability":
        return Rules(thresholds=tuple(max(threshold, least) for threshold in thresholds))
    return Rules(thresholds=thresholds, unknown_by=unknown.by, least=least, energy_scale=unknown.energy_scale)


def asked_rules(card: ModelCard, decide: DecideSection) -> Rules:
    """The settings, and the card's own rules where they say nothing. Raises ConfigError when the card lacks what they need."""
    given = {"smooth": decide.smooth, "hysteresis": decide.hysteresis, "top": decide.top, "votes": decide.votes, "of": decide.of}
    return replace(_limits(card, decide.unknown_by, decide.threshold), **given)  # type: ignore[arg-type]


def _limits(card: ModelCard, by: UnknownBy | None, threshold: float | None) -> Rules:
    """A threshold that is given stands in place of all in the card; it is of the probability unless said otherwise."""
    if threshold is not None:
        check_limit(by or "probability", threshold)
        if by in (None, "probability"):
            return Rules(thresholds=(threshold,))
        return Rules(unknown_by=by, least=threshold, energy_scale=card.unknown.energy_scale if card.unknown else 1.0)
    if by is None or (by == "probability" and card.thresholds and card.unknown is None):
        return card_rules(card)
    if card.unknown is None or by not in card.unknown.limits:
        raise ConfigError(
            f"the model card of {card.name} has no limit for the {by}; fit one with: edgeclf calibrate FILE --unknown-by {by}, "
            "or give a --threshold"
        )
    return card_rules(replace(card, unknown=replace(card.unknown, by=by)))


@dataclass(frozen=True, eq=False)
class State:
    """What is remembered between frames: the smoothed probabilities and energy, the answer last announced as a change, and
    the answers that the last frames voted for since."""

    mean: Probabilities | None = None
    stable: str = ""
    energy: float = 0.0
    votes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What one frame says.

    `label` is this frame's answer: a class, `unknown`, or `invalid` when the scores are not finite numbers. `score` is the
    probability of the likeliest class, smoothed. `stable` is the answer that lasts, `changed` says that it is new with this
    frame. `top` holds (label, probability), likeliest first.
    """

    label: str
    score: float
    stable: str
    changed: bool
    top: tuple[tuple[str, float], ...]


def decide(
    state: State, probabilities: Probabilities, labels: tuple[str, ...], rules: Rules, energy: float = 0.0
) -> tuple[State, Decision]:
    """The next state and the decision for one frame; `probabilities` is float (classes,) in label order.

    Scores with NaN or infinity give `invalid` and leave the state untouched, as do scores that are all zero.
    """
    if not is_valid(probabilities) or not math.isfinite(energy):
        return state, Decision(INVALID, 0.0, state.stable, False, ())
    weight = rules.smooth if state.mean is not None else 0.0
    mean, energy = smooth(state.mean, probabilities, rules.smooth), weight * state.energy + (1 - weight) * energy
    order = likeliest(mean, rules.top)
    best = order[0]
    answer = labels[best] if rules.accepts(mean, best, energy) else UNKNOWN
    differs = answer != state.stable and _has_lead(state.stable, answer, best, mean, energy, labels, rules)
    vote = answer if differs else state.stable
    votes = (*state.votes, vote)[-rules.of :]
    changed = vote != state.stable and votes.count(vote) >= rules.votes
    stable = vote if changed else state.stable
    decision = Decision(answer, float(mean[best]), stable, changed, tuple((labels[i], float(mean[i])) for i in order))
    # Votes from before a change would let a single frame undo it.
    return State(mean, stable, energy, () if changed else votes), decision


def is_valid(probabilities: Probabilities) -> bool:
    """False for scores that no working model gives: not finite, or all zero. None may be below zero."""
    return 0 < float(probabilities.sum()) < math.inf  # one pass, and false for NaN


def smooth(mean: Probabilities | None, probabilities: Probabilities, weight: float) -> Probabilities:
    """Exponential mean: `weight` of the past and the rest of the present; the first frame stands for itself."""
    if mean is None or weight == 0:
        return probabilities
    return np.asarray(weight * mean + (1 - weight) * probabilities, np.float32)


def _has_lead(
    stable: str, answer: str, best: int, mean: Probabilities, energy: float, labels: tuple[str, ...], rules: Rules
) -> bool:
    """Whether `answer` beats the announced one by the hysteresis, so that scores around a limit make no events."""
    if stable != UNKNOWN and stable not in labels:  # none yet, or what another model said before a restart
        return True
    lead = rules.hysteresis
    if stable == UNKNOWN:
        limit = rules.threshold(best)
        return bool(mean[best] >= limit + _room(limit, lead)) and _measures_above(mean, energy, rules)
    held = labels.index(stable)
    if best != held and mean[best] - mean[held] >= lead:
        return True
    limit = rules.threshold(held)
    return answer == UNKNOWN and (bool(mean[held] < limit - _room(limit, lead)) or _measures_below(mean, energy, rules))


def _room(limit: float, lead: float) -> float:
    """The lead past a limit in [0, 1]: half of what is left on its nearer side where that is less, lest it be out of reach."""
    return min(lead, limit / 2, (1 - limit) / 2)


def _measures_above(mean: Probabilities, energy: float, rules: Rules) -> bool:
    return not rules.measured or rules.measure(mean, energy) >= rules.least + _measured_room(rules)


def _measures_below(mean: Probabilities, energy: float, rules: Rules) -> bool:
    return rules.measured and rules.measure(mean, energy) < rules.least - _measured_room(rules)


def _measured_room(rules: Rules) -> float:
    return rules.hysteresis * rules.energy_scale if rules.by_energy else _room(rules.least, rules.hysteresis)


def likeliest(scores: Probabilities, top: int) -> list[int]:
    """Indices of the `top` highest of (classes,) finite scores, highest first; of equal ones the first class."""
    top = max(1, min(top, len(scores)))
    # 1,000 classes: a third of the time of a sort. Few calls: each lets another thread take its turn.
    candidates: list[int] = (scores >= np.partition(scores, -top)[-top]).nonzero()[0].tolist()
    return sorted(candidates, key=lambda i: -scores[i])[:top]


def check_answers(wanted: Collection[str], complaint: str, labels: Sequence[str]) -> None:
    """Raise ConfigError, beginning with `complaint`, when one of `wanted` is no answer of a model with these labels."""
    known = [*labels, UNKNOWN]
    for answer in wanted:
        if answer not in known:
            raise ConfigError(f"{complaint} {printable(answer)!r}{nearest(answer, known)}")
