"""Gate: which frames of one source are classified, and which part of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.image import Pixels
from edgeclf.core.live_settings import GateSection
from edgeclf.runtime.sources.camera import Source
from edgeclf.runtime.sources.capture import Frame

COMPLAIN_S = 10.0  # between complaints of a region that lies outside the picture
SAMPLED, CELLS = (96, 72), (32, 24)  # width, height; a cell is the mean of 9 sampled pixels
LEAST_CHANGE, MOST_NOISE = 10.0, 48.0  # of 255: a cell that differs by less never counts as changed, by more always
NOISE = 4.0  # how many times the median difference of all cells one must differ
BRIGHTER = 1.25  # a change of light up to so many times since the last frame is taken out


def gate_of(section: GateSection, sources: Sequence[Source], settling: int = 1) -> Callable[[], FrameGate] | None:
    """What makes the gate of each source; None where every frame is to be classified whole.

    Raises ConfigError for `max_fps` on sources that are all read completely, at no rate of their own.
    """
    if section.max_fps and not any(source.live for source in sources):
        raise ConfigError("max_fps is for sources that go by the clock; add --realtime, or take each Nth frame: --every N")
    wanted = section.region or section.motion or section.max_fps or section.every > 1
    return (lambda: FrameGate(section, settling)) if wanted else None


class FrameGate:
    """The gate that the settings describe, for one source; asked by the loop for each frame, in order.

    After a change of the scene `settling` frames are admitted, so that smoothing and votes come to the new answer. Frames
    that were admitted but got no valid label do not count as classified. Time is that of `clock`, which must be monotonic.
    """

    def __init__(self, section: GateSection, settling: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self._section, self._clock = section, clock
        self._interval_s = 1 / section.max_fps if section.max_fps else 0.0
        self._index: int | None = None  # of the frame admitted last
        self._due_s = -math.inf
        self._complained_s = -math.inf
        self._outside: tuple[int, ...] = ()  # the size that was complained of last
        self._motion = Motion(section.motion, section.refresh_s, settling) if section.motion else None

    def admits(self, frame: Frame) -> bool:
        """Raises ConfigError when the very first picture of a source does not hold the region."""
        now = self._clock()
        if self._index is not None and frame.index - self._index < self._section.every:
            return False
        if now < self._due_s:
            return False
        view = self._holds(frame)
        if view is None:
            return self._complains(frame, now)
        if self._motion and not self._motion.is_due(view, now):
            return False
        self._index = frame.index
        # From when it was due, so that the rate is kept whatever the camera's is; but a pause is not made up for.
        self._due_s = (self._due_s if now - self._due_s < self._interval_s else now) + self._interval_s
        return True

    def view(self, image: Pixels) -> Pixels:
        """The region of (height, width, 3), without copying. Raises DataError when the picture does not hold it."""
        section = self._section
        if not section.region:
            return image
        rows, columns = image.shape[:2]
        x, y, width, height = section.region
        if section.relative:
            left, top = min(round(x * columns), columns - 1), min(round(y * rows), rows - 1)
            return image[top : max(top + 1, round((y + height) * rows)), left : max(left + 1, round((x + width) * columns))]
        if x + width > columns or y + height > rows:
            shown = ",".join(f"{v:g}" for v in section.region)
            raise DataError(f"region {shown} lies outside the picture of {columns}x{rows} pixels; give another, or shares")
        return image[int(y) : int(y + height), int(x) : int(x + width)]

    def answered(self, valid: bool) -> None:
        """The frame admitted last was classified; `valid` says whether that gave a label."""
        if self._motion and valid:
            self._motion.classified(self._clock())

    def _holds(self, frame: Frame) -> Pixels | None:
        """The view of a frame, None when it does not hold the region."""
        try:
            return self.view(frame.image)
        except DataError as error:
            if self._index is None and not frame.name:
                raise ConfigError(str(error)) from error
            return None

    def _complains(self, frame: Frame, now: float) -> bool:
        """Whether a frame without the region is let through, for `view` to refuse: each file, else once in COMPLAIN_S."""
        size = frame.image.shape[:2]
        if not frame.name and size == self._outside and now - self._complained_s < COMPLAIN_S:
            return False
        self._outside, self._complained_s = size, now
        return True


class Motion:
    """Whether a scene has changed since the frame classified last, by the share of CELLS that differ by more than noise does.

    A cell differs by its most changed colour channel, after a change of light over the whole picture is taken out.
    """

    def __init__(self, share: float, refresh_s: float, settling: int = 1) -> None:
        """`settling` frames are due after each change, and after each `refresh_s` of a still scene."""
        self._share, self._refresh_s, self._settling = share, refresh_s, settling
        self._size: tuple[int, ...] = ()
        self._reference: Pixels | None = None
        self._candidate: Pixels | None = None
        self._since_s, self._left = 0.0, 0

    def is_due(self, view: Pixels, now: float) -> bool:
        """Whether this frame, uint8 (height, width, 3), is to be classified."""
        self._candidate = cells(view)
        if self._reference is None or view.shape != self._size or changed_share(self._reference, self._candidate) >= self._share:
            self._size, self._left = view.shape, self._settling
        elif now - self._since_s >= self._refresh_s and not self._left:
            self._left = self._settling
        return self._left > 0

    def classified(self, now: float) -> None:
        """The frame that was due last has its label."""
        self._reference, self._since_s, self._left = self._candidate, now, self._left - 1


def cells(view: Pixels) -> Pixels:
    """Means over CELLS of at most SAMPLED pixels, uint8 (24, 32, 3), or less for a smaller picture; the cost is bounded."""
    rows, columns = view.shape[:2]
    size = (min(columns, SAMPLED[0]), min(rows, SAMPLED[1]))
    sampled = cv2.resize(view, size, interpolation=cv2.INTER_NEAREST)
    return _pixels(cv2.resize(sampled, (min(columns, CELLS[0]), min(rows, CELLS[1])), interpolation=cv2.INTER_AREA))


def changed_share(before: Pixels, now: Pixels) -> float:
    """The share of cells, both uint8 (rows, columns, 3), that changed: 0 to 1."""
    light, past = sum(cv2.mean(now)[:3]), sum(cv2.mean(before)[:3])
    gain = min(max((light + 1) / (past + 1), 1 / BRIGHTER), BRIGHTER)
    off = cv2.absdiff(now, cv2.convertScaleAbs(before, alpha=gain))
    blue, green, red = cv2.split(off)
    worst = _pixels(cv2.max(cv2.max(blue, green), red)).reshape(-1)
    usual = float(np.partition(worst, len(worst) // 2)[len(worst) // 2])
    limit = min(max(LEAST_CHANGE, NOISE * usual), MOST_NOISE)
    return int(np.count_nonzero(worst > limit)) / len(worst)


def _pixels(array: Any) -> Pixels:
    pixels: Pixels = array
    return pixels
