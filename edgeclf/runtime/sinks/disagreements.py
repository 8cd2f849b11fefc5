"""Disagreements: frames that two models answer differently, and what each said."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgeclf.core.image import Pixels
from edgeclf.core.live_settings import CompareSection
from edgeclf.runtime.events import Event, Seen, record
from edgeclf.runtime.sinks.keeping import Folder, stem
from edgeclf.runtime.sinks.snapshots import keep_picture

QUALITY = 95


class Disagreements:
    """Keeps the frames that it is given as a snapshot is kept, with both answers in the JSON and in the name.

    At most `per_minute` of the section, evenly apart by the monotonic clock; none once the folder holds `most`, earlier runs
    counted, which is told once to `warn`. `saved` counts what this run wrote.
    """

    def __init__(
        self,
        folder: Folder,
        section: CompareSection,
        other: str,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`other` is what the second model is called."""
        self.saved = 0
        self._folder, self._most, self._other, self._warn, self._clock = folder, section.most, other, warn, clock
        self._apart_s = 60 / section.per_minute
        self._next_s = -float("inf")
        self._full = False

    def wants(self, event: Event) -> bool:
        now = self._clock()
        if self._full or now < self._next_s:
            return False
        self._next_s = now + self._apart_s
        return True

    def write_picture(self, event: Event, image: Pixels | None) -> None:
        if not isinstance(event, Seen) or event.other is None or image is None:
            return
        if self._folder.count >= self._most:
            if not self._full:
                self._warn(f"disagreements: {self._folder.path}: holds {self._most} frames or more; no more are kept")
            self._full = True
            return
        name = stem(event.time_s, event.source, f"{event.decision.label} or {event.other.label}")
        keep_picture(self._folder, name, {**record(event), "compared_with": self._other}, image, QUALITY)
        self.saved += 1
