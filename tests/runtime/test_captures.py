"""Several sources for one model: served in turn, one that fails leaves the others alone."""

from __future__ import annotations

import numpy as np
import pytest
from live_fakes import Seer, brightness

from edgeclf.core.errors import SourceError
from edgeclf.runtime.events import Seen, SourceChanged
from edgeclf.runtime.live import Live
from edgeclf.runtime.sources.camera import Picture, Reader, Source
from edgeclf.runtime.sources.capture import Timing

LABELS = ("dark", "bright")


class Few:
    """So many pictures of one brightness, then the end or this failure."""

    note, interval_s = "", 0.0

    def __init__(self, value: int, count: int, failure: Exception | None = None) -> None:
        self._value, self._left, self._failure = value, count, failure

    def read(self) -> Picture | None:
        if not self._left:
            if self._failure:
                raise self._failure
            return None
        self._left -= 1
        return Picture(np.full((8, 8, 3), self._value, np.uint8))

    def close(self) -> None:
        """Nothing is held."""


def source(name: str, reader: Reader) -> Source:
    return Source(name, lambda: reader, live=False)


def test_sources_are_served_in_turn_and_each_has_answers_of_its_own() -> None:
    """Dark beside bright makes one change each, not one a frame; neither waits for the other's end."""
    seer = Seer()
    summary = Live([source("a", Few(10, 20)), source("b", Few(250, 20))], brightness, LABELS, sinks=[seer]).run()
    seen = [event for event in seer.events if isinstance(event, Seen)]
    assert (summary.frames, summary.changes, summary.labels) == (40, 2, {"dark": 20, "bright": 20})
    assert {(event.source, event.decision.label) for event in seen} == {("a", "dark"), ("b", "bright")}
    first_end = max(i for i, event in enumerate(seen) if event.source == "a")
    assert any(event.source == "b" for event in seen[:first_end])


def test_a_source_that_fails_ends_alone_and_says_why() -> None:
    """The other one is read to its end."""
    seer = Seer()
    broken = source("broken", Few(10, 1, SourceError("broken: fell off the wall")))
    summary = Live([broken, source("well", Few(250, 30))], brightness, LABELS, sinks=[seer]).run()
    assert (summary.frames, summary.ended) == (31, "end of source")
    ends = {e.source: e.detail for e in seer.events if isinstance(e, SourceChanged) and e.state == "ended"}
    assert ends == {"broken": "broken: fell off the wall", "well": ""}


def test_when_all_fail_the_run_fails() -> None:
    """With the message of the last."""
    broken = [source(name, Few(10, 3, SourceError(f"{name}: fell off the wall"))) for name in "ab"]
    with pytest.raises(SourceError, match="fell off the wall"):
        Live(broken, brightness, LABELS).run()


def test_a_camera_that_is_not_there_yet_can_be_waited_for() -> None:
    """Opened again until it is there; without `wait` it is an error at once."""
    tries = iter([SourceError("cam: no such camera")] * 3)

    def open_it() -> Reader:
        failure = next(tries, None)
        if failure:
            raise failure
        return Few(250, 5)

    camera = Source("cam", open_it, live=True, reopen=True)
    seer = Seer()
    timing = Timing(first_wait_s=0.02)
    summary = Live([camera], brightness, LABELS, sinks=[seer], timing=timing, wait=True).run()
    assert summary.frames >= 1
    states = [(e.state, e.detail) for e in seer.events if isinstance(e, SourceChanged)]
    assert states[:2] == [("reconnecting", "no such camera"), ("live", "")]
    tries = iter([SourceError("cam: no such camera")])
    with pytest.raises(SourceError, match="no such camera"):
        Live([camera], brightness, LABELS, timing=timing).run()
