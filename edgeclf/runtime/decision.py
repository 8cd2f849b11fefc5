"""From scores to answers: smoothing over time, thresholds with an `unknown` answer, and change events with hysteresis.

Pure functions over frozen values: `decide(state, probabilities, labels, rules)` gives the next state and what to tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ConfigError

Probabilities: TypeAlias = npt.NDArray[np.float32]

UNKNOWN = "unknown"
INVALID = "invalid"


@dataclass(frozen=True)
class Rules:
    """How scores become answers.

    `smooth` in [0, 1) is the weight of the past in an exponential mean of the probabilities; 0 looks at each frame alone.
    `thresholds` holds what a class must reach, else the answer is `unknown`: one value for all classes, or one a class in
    label order. `hysteresis` in [0, 1) is the lead that a new answer needs before it counts as a change. `top` is how many
    of the likeliest classes a decision lists.
    """

    smooth: float = 0.0
    thresholds: tuple[float, ...] = (0.0,)
    hysteresis: float = 0.1
    top: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.smooth < 1:
            raise ConfigError(f"smooth = {self.smooth}: must lie in [0, 1); 0 looks at each frame alone")
        if not 0 <= self.hysteresis < 1:
            raise ConfigError(f"hysteresis = {self.hysteresis}: must lie in [0, 1)")
        if not self.thresholds or not all(0 <= t <= 1 for t in self.thresholds):
            raise ConfigError("threshold: must lie between 0 and 1")
        if self.top < 1:
            raise ConfigError(f"top = {self.top}: must be at least 1")

    def threshold(self, index: int) -> float:
        """What the class with that index must reach."""
        return self.thresholds[index if len(self.thresholds) > 1 else 0]

    def accepts(self, index: int, score: float) -> bool:
        """Whether that class, with that probability, is an answer."""
        return float(score) >= self.threshold(index)


@dataclass(frozen=True, eq=False)
class State:
    """What is remembered between frames: the smoothed probabilities, and the answer last announced as a change."""

    mean: Probabilities | None = None
    stable: str = ""


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
    if not is_valid(probabilities):
        return state, Decision(INVALID, 0.0, state.stable, False, ())
    mean = smooth(state.mean, probabilities, rules.smooth)
    best = int(np.argmax(mean))
    answer = labels[best] if rules.accepts(best, mean[best]) else UNKNOWN
    changed = answer != state.stable and _has_lead(state.stable, answer, mean, labels, rules)
    stable = answer if changed else state.stable
    decision = Decision(answer, float(mean[best]), stable, changed, _likeliest(mean, labels, rules.top))
    return State(mean, stable), decision


def is_valid(probabilities: Probabilities) -> bool:
    """False for scores that no working model gives: not finite, or all zero."""
    return bool(np.isfinite(probabilities).all() and probabilities.any())


def smooth(mean: Probabilities | None, probabilities: Probabilities, weight: float) -> Probabilities:
    """Exponential mean: `weight` of the past and the rest of the present; the first frame stands for itself."""
    if mean is None or weight == 0:
        return probabilities
    return np.asarray(weight * mean + (1 - weight) * probabilities, np.float32)


def _has_lead(stable: str, answer: str, mean: Probabilities, labels: tuple[str, ...], rules: Rules) -> bool:
    """Whether `answer` beats the announced one by the hysteresis, so that scores around a limit make no events."""
    if not stable:
        return True
    best, lead = int(np.argmax(mean)), rules.hysteresis
    if answer == UNKNOWN:
        held = labels.index(stable)
        return bool(mean[held] < rules.threshold(held) - lead)
    if stable == UNKNOWN:
        limit = rules.threshold(best)
        # A high threshold leaves less than the hysteresis above it: then half of what is left must do.
        return bool(mean[best] >= limit + min(lead, (1 - limit) / 2))
    return bool(mean[best] - mean[labels.index(stable)] >= lead)


def _likeliest(mean: Probabilities, labels: tuple[str, ...], top: int) -> tuple[tuple[str, float], ...]:
    count = min(top, len(labels))
    few = np.argpartition(-mean, count - 1)[:count]
    return tuple((labels[i], float(mean[i])) for i in few[np.argsort(-mean[few], kind="stable")])
