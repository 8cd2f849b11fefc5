"""Cooling: classifies fewer frames while the board is hot, and as many as before when it has cooled down."""

from __future__ import annotations

from collections.abc import Callable

from edgeclf.core.image import Pixels
from edgeclf.runtime.live import Gate
from edgeclf.runtime.sources.capture import Frame

FIRST_APART_S = 0.1  # ten frames a second is what a hot board begins with
MOST_APART_S = 1.0
STEP_S = 10.0  # a board warms up and cools down slowly
COOLED_C = 3.0  # so far below the limit it may go faster again


class Cooling:
    """How far apart frames must be for the board to stay below `above_c`, by its temperature every few seconds.

    Too hot, the distance is FIRST_APART_S and doubles every STEP_S up to MOST_APART_S; COOLED_C below, it halves as slowly,
    and below FIRST_APART_S there is none.
    """

    def __init__(self, above_c: float) -> None:
        self.apart_s = 0.0
        self._above_c = above_c
        self._stepped_s = -STEP_S

    def heed(self, temperature_c: float | None, now: float) -> None:
        """Take a reading; `now` is of the monotonic clock. A board that does not say its temperature is never slowed."""
        if temperature_c is None or now - self._stepped_s < STEP_S:
            return
        if temperature_c > self._above_c:
            self.apart_s = min(MOST_APART_S, max(FIRST_APART_S, 2 * self.apart_s))
        elif self.apart_s and temperature_c < self._above_c - COOLED_C:
            self.apart_s = self.apart_s / 2 if self.apart_s > FIRST_APART_S else 0.0
        else:
            return
        self._stepped_s = now


class CoolGate:
    """A gate before another one, or alone: passes over frames that come too soon for a hot board."""

    def __init__(self, cooling: Cooling, then: Gate | None = None) -> None:
        self._cooling, self._then = cooling, then
        self._last_s = float("-inf")

    def admits(self, frame: Frame) -> bool:
        """As `Gate.admits`."""
        if frame.taken_s - self._last_s < self._cooling.apart_s or (self._then and not self._then.admits(frame)):
            return False
        self._last_s = frame.taken_s
        return True

    def view(self, image: Pixels) -> Pixels:
        """As `Gate.view`."""
        return self._then.view(image) if self._then else image

    def answered(self, valid: bool) -> None:
        """As `Gate.answered`."""
        if self._then:
            self._then.answered(valid)


def cooled(gate: Callable[[], Gate] | None, cooling: Cooling | None) -> Callable[[], Gate] | None:
    """What makes a gate for each source, `gate` or none, with the cooling before it where there is any."""
    if cooling is None:
        return gate
    return lambda: CoolGate(cooling, gate() if gate else None)
