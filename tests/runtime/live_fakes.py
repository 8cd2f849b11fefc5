"""Fakes of the live loop that several tests use."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from edgeclf.core.image import Pixels
from edgeclf.runtime.events import Event, Seen
from edgeclf.runtime.scoring import Scored
from edgeclf.runtime.sources.capture import Capture, Frame


class Seer:
    """A sink that keeps what it was told."""

    name = "seer"

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event, image: Pixels | None) -> None:
        self.events.append(event)

    def close(self) -> bool:
        return True

    def seen(self) -> list[Seen]:
        return [event for event in self.events if isinstance(event, Seen)]

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


def brightness(frame: Pixels) -> Scored:
    """A classifier of dark and bright."""
    bright = frame.mean() / 255
    return Scored(np.array([1 - bright, bright], np.float32))


def drain(capture: Capture, until: Callable[[Frame], bool] = lambda frame: False, seconds: float = 5.0) -> list[Frame]:
    """Frames until the end, until one fits, or for so long."""
    frames: list[Frame] = []
    limit = time.monotonic() + seconds
    while not capture.finished and time.monotonic() < limit:
        frame = capture.next(0.05)
        if frame is not None:
            frames.append(frame)
            if until(frame):
                break
    return frames
