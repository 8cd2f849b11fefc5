"""Several sources read at once, for one model: the one that has waited longest is served next."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import fields

from edgeclf.core.errors import SourceError
from edgeclf.runtime.sources.capture import NAP_S, Broken, Capture, CaptureState, Change, Counts, Frame, Timing
from edgeclf.runtime.sources.source import Source


class Captures:
    """Sources being read, known by their place in the order given. `start`, `next` until `finished`, then `close`.

    A source that fails for good ends with its reason, and the others go on; when all have failed, `next` raises.
    """

    def __init__(self, sources: Sequence[Source], timing: Timing | None = None, wait: bool = False) -> None:
        """`wait`: a source that is not there at the start is waited for, as one that is lost later."""
        self._changed = threading.Condition()
        self.each = tuple(Capture(source, timing, self._changed, wait) for source in sources)
        self._turn = self._failed = 0

    @property
    def finished(self) -> bool:
        return all(capture.finished for capture in self.each)

    def states(self) -> dict[str, CaptureState]:
        """The state of each source, by its name."""
        return {capture.source.name: capture.state for capture in self.each}

    def counts(self) -> Counts:
        """Of all sources together."""
        each = [capture.counts() for capture in self.each]
        return Counts(**{f.name: sum(getattr(counts, f.name) for counts in each) for f in fields(Counts)})

    def news(self) -> list[tuple[Capture, Change | Broken]]:
        """What changed since the last call, source by source."""
        return [(capture, news) for capture in self.each for news in capture.news()]

    def start(self, stop: threading.Event | None = None) -> None:
        """Open all; returns when each gave a picture, ended or is waited for. Raises SourceError when one cannot be opened."""
        for capture in self.each:
            capture.begin()
        for capture in self.each:
            capture.settle(stop)

    def next(self, timeout_s: float) -> tuple[int, Frame] | None:
        """The next frame with its source's place; None when none came in time or all have ended. Raises SourceError."""
        limit = time.monotonic() + timeout_s
        with self._changed:
            while True:
                for i in range(len(self.each)):
                    place = (self._turn + i) % len(self.each)
                    frame = self._take(self.each[place])
                    if frame is not None:
                        self._turn = place + 1
                        return place, frame
                left = limit - time.monotonic()
                if left <= 0 or self.finished:
                    return None
                self._changed.wait(min(left, NAP_S))

    def _take(self, capture: Capture) -> Frame | None:
        try:
            return capture.take()
        except SourceError as error:
            self._failed += 1
            if self._failed == len(self.each):
                raise
            capture.give_up(str(error))
            return None

    def close(self) -> bool:
        """End all reading; False when a read still blocks. Takes at most `close_s` for all together."""
        for capture in self.each:
            capture.end()
        limit = time.monotonic() + max(capture.timing.close_s for capture in self.each)
        ended = [capture.join(limit) for capture in self.each]
        return all(ended)
