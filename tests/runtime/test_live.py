"""The loop: fresh frames at any speed of the model, every loss counted, every end told."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from live_fakes import Seer, brightness

from edgeclf.core.errors import DataError, ModelError, SourceError
from edgeclf.core.image import Pixels
from edgeclf.runtime.decision import Rules
from edgeclf.runtime.events import Seen, Skipped, SourceChanged
from edgeclf.runtime.live import KEPT_TIMES, Limits, Live, Stop, Times, stopping_on_signals
from edgeclf.runtime.scoring import Scored
from edgeclf.runtime.sources.camera import Picture, Source
from edgeclf.runtime.sources.capture import Timing

LABELS = ("dark", "bright")


class Pictures:
    """A reader of grey pictures with these values, at this rate; a DataError in the list is a broken picture."""

    note = ""
    interval_s = 0.0

    def __init__(self, values: list[int | Exception], fps: float = 0) -> None:
        self._values, self._pause_s = iter(values), 1 / fps if fps else 0.0

    def read(self) -> Picture | None:
        time.sleep(self._pause_s)
        value = next(self._values, None)
        if isinstance(value, Exception):
            raise value
        return None if value is None else Picture(np.full((16, 16, 3), value % 256, np.uint8), f"{value}.jpg")

    def close(self) -> None:
        """Nothing is held."""


def stored(values: list[int | Exception]) -> Source:
    return Source("fake", lambda: Pictures(values), live=False)


def camera(count: int = 10**6, fps: float = 30) -> Source:
    return Source("fake camera", lambda: Pictures([*range(count)], fps), live=True)


def test_every_frame_of_a_stored_source_is_classified_and_counted() -> None:
    """Labels, changes and the end are in the summary; sinks were told in order."""
    seer = Seer()
    summary = Live([stored([10, 20, 250, 250, 30])], brightness, LABELS, sinks=[seer]).run()
    assert (summary.frames, summary.labels, summary.changes) == (5, {"dark": 3, "bright": 2}, 3)
    assert (summary.dropped, summary.skipped, summary.ended) == (0, 0, "end of source")
    assert seer.kinds() == ["SourceChanged", "Seen", "Seen", "Seen", "Seen", "Seen", "SourceChanged"]
    assert [e.name for e in seer.events if isinstance(e, Seen)] == ["10.jpg", "20.jpg", "250.jpg", "250.jpg", "30.jpg"]


def test_stages_are_timed_for_each_frame() -> None:
    """Each stage has as many times as there were frames, and a slow model shows in its own stage."""

    def slow(frame: Pixels) -> Scored:
        start = time.perf_counter()
        time.sleep(0.01)
        return replace(brightness(frame), invoke_s=time.perf_counter() - start)

    summary = Live([stored([1, 2, 3, 4])], slow, LABELS, sinks=[Seer()]).run()
    stages = summary.stages
    assert list(stages) == ["wait", "decode", "resize", "invoke", "decide", "age", "emit"]
    assert {latency.runs for latency in stages.values()} == {4}
    assert 10 <= stages["invoke"].p50_ms < 30
    assert stages["emit"].p50_ms < 5
    assert stages["age"].p50_ms >= stages["invoke"].p50_ms


def test_a_model_slower_than_the_camera_sees_fresh_frames_and_the_rest_is_dropped() -> None:
    """At 30 frames a second and 150 ms a frame, the age at the label stays below one interval plus the inference."""
    spent: list[float] = []

    def slow(frame: Pixels) -> Scored:
        start = time.monotonic()
        time.sleep(0.15)
        answer = brightness(frame)
        spent.append((time.monotonic() - start) * 1000)
        return answer

    summary = Live([camera()], slow, LABELS, limits=Limits(max_frames=10)).run()
    assert summary.frames == 10
    assert summary.dropped >= 20
    assert min(spent) <= summary.stages["age"].p50_ms
    assert summary.stages["age"].p90_ms <= 1000 / 30 + max(spent) + 15


def test_time_and_frame_limits_end_a_run() -> None:
    """Whichever comes first; the summary says which."""
    by_frames = Live([camera(fps=200)], brightness, LABELS, limits=Limits(max_frames=7, seconds=30)).run()
    assert (by_frames.frames, by_frames.ended) == (7, "frame limit")
    by_time = Live([camera()], brightness, LABELS, limits=Limits(seconds=0.3)).run()
    assert by_time.ended == "time limit"
    assert 0.3 <= by_time.seconds < 1


def test_one_failure_to_classify_skips_that_frame_only() -> None:
    """The run goes on; the frame is counted and named."""

    def sometimes(frame: Pixels) -> Scored:
        if frame[0, 0, 0] == 2:
            raise RuntimeError("out of luck")
        return brightness(frame)

    seer = Seer()
    summary = Live([stored([1, 2, 3])], sometimes, LABELS, sinks=[seer]).run()
    assert (summary.frames, summary.skipped) == (2, 1)
    assert [e.reason for e in seer.events if isinstance(e, Skipped)] == ["2.jpg: out of luck"]


def test_failures_in_a_row_end_the_run_with_an_error() -> None:
    """Never a live process without labels; sinks and source are closed all the same."""
    calls = []

    def broken(frame: Pixels) -> Scored:
        calls.append(1)
        raise RuntimeError("tensor gone")

    with pytest.raises(ModelError, match="for 4 frames in a row: RuntimeError: tensor gone"):
        Live([camera(fps=500)], broken, LABELS, limits=Limits(errors_in_row=4)).run()
    assert len(calls) == 4
    with pytest.raises(ModelError, match="for 2 frames"):
        Live([stored([1, 2])], broken, LABELS).run()


def test_broken_pictures_are_skipped_and_counted() -> None:
    """A picture that cannot be decoded is named to the sinks; the others are classified."""
    seer = Seer()
    summary = Live([stored([1, DataError("b.jpg: is empty"), 3])], brightness, LABELS, sinks=[seer]).run()
    assert (summary.frames, summary.skipped) == (2, 1)
    assert "b.jpg: is empty" in [e.reason for e in seer.events if isinstance(e, Skipped)]


def test_a_source_with_nothing_readable_is_an_error() -> None:
    """Not a successful run of no frames."""
    with pytest.raises(SourceError, match=r"none of its pictures can be decoded \(2 tried\)"):
        Live([stored([DataError("a"), DataError("b")])], brightness, LABELS).run()


def test_scores_that_are_no_numbers_are_invalid_never_a_label() -> None:
    """They are counted apart, and no label is counted for them."""

    def sometimes(frame: Pixels) -> Scored:
        return Scored(np.full(2, np.nan, np.float32)) if frame[0, 0, 0] == 2 else brightness(frame)

    seer = Seer()
    summary = Live([stored([1, 2, 3])], sometimes, LABELS, sinks=[seer]).run()
    assert (summary.frames, summary.invalid, summary.labels) == (3, 1, {"dark": 2})
    assert [e.decision.label for e in seer.events if isinstance(e, Seen)] == ["dark", "invalid", "dark"]


def test_rules_reach_the_decision() -> None:
    """A threshold makes uncertain frames unknown."""
    summary = Live([stored([10, 128])], brightness, LABELS, Rules(thresholds=(0.9,))).run()
    assert summary.labels == {"dark": 1, "unknown": 1}


def test_a_stop_ends_the_run_at_once_though_a_read_blocks() -> None:
    """Within the closing time; the summary says why, and that a thread was left behind."""

    class Blocking(Pictures):
        def read(self) -> Picture | None:
            picture = super().read()
            if picture is None:
                release.wait(30)
            return picture

    release, stop = threading.Event(), Stop()
    live = Live([Source("fake", lambda: Blocking([1]), live=True, reopen=True)], brightness, LABELS, stop=stop)
    threading.Timer(0.2, stop.because, ["asked to"]).start()
    began = time.monotonic()
    summary = live.run()
    assert summary.ended == "asked to"
    assert time.monotonic() - began < 2
    assert live.blocked
    release.set()


def test_sinks_hear_of_a_lost_source_and_its_return() -> None:
    """States come as events, in order, between the labels."""
    openings = iter([[1, 2, SourceError("fake: gone")], [3, 4, SourceError("gone")]])
    source = Source("fake", lambda: Pictures([*next(openings)], fps=50), live=True, reopen=True)
    seer = Seer()
    live = Live([source], brightness, LABELS, sinks=[seer], limits=Limits(max_frames=4), timing=Timing(first_wait_s=0.1))
    summary = live.run()
    states = [event.state for event in seer.events if isinstance(event, SourceChanged)]
    assert states[:3] == ["live", "reconnecting", "live"]
    assert summary.reconnects == 1


def test_a_run_of_any_length_keeps_a_bounded_sample_of_its_times() -> None:
    """The percentiles stay true, the number of runs is the real one, and memory does not grow."""
    times = Times()
    for i in range(50_000):
        times.add(i / 50_000)
    latency = times.latency()
    assert latency.runs == 50_000
    assert latency.p50_ms == pytest.approx(500, abs=30)
    assert latency.p90_ms == pytest.approx(900, abs=20)
    assert len(times._kept) == KEPT_TIMES


@pytest.fixture
def _signals_back() -> Iterator[None]:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    assert {n: signal.getsignal(n) for n in before} == before


@pytest.mark.usefixtures("_signals_back")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_sets_stop_with_its_name_and_handlers_are_put_back(name: str) -> None:
    """The first reason stays, and afterwards the handlers are those from before."""
    stop = Stop()
    with stopping_on_signals(stop):
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.wait(2)
        stop.because("later")
    assert stop.reason == name


@pytest.mark.usefixtures("_signals_back")
def test_an_ignored_signal_stays_ignored() -> None:
    """Under nohup a hang-up does not end the run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = Stop()
        with stopping_on_signals(stop):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.wait(0.1)
    finally:
        signal.signal(signal.SIGHUP, before)
