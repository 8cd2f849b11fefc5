"""The capture thread: newest frame only, stalls, lost sources and reads that never come back."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_fakes import drain

from edgeclf.core.errors import DataError, SourceError
from edgeclf.runtime.sources.capture import Broken, Capture, Change, Timing, wait_before
from edgeclf.runtime.sources.source import Picture, Reader, Source
from edgeclf.runtime.sources.v4l import plugged

QUICK = Timing(stall_s=0.25, hung_s=0.6, frozen_s=0.6, frozen_stream_s=0.8, first_wait_s=0.05, longest_wait_s=0.4, close_s=0.2)

Step = Picture | Exception | float | threading.Event
"""What a fake reader does next: give a picture, fail, take so many seconds first, or block until an event."""


def picture(value: int) -> Picture:
    return Picture(np.full((8, 8, 3), value % 256, np.uint8), str(value))


class Script:
    """A fake source: each opening plays the next of the given scripts; an exception alone is a failed opening."""

    note = ""

    def __init__(self, *scripts: Iterable[Step] | Exception, interval_s: float = 0.0) -> None:
        self._scripts = iter(scripts)
        self.interval_s = interval_s
        self.opened = self.closed = 0

    def open(self) -> Reader:
        self.opened += 1
        script = next(self._scripts)
        if isinstance(script, Exception):
            raise script
        return _Playing(self, iter(script))


class _Playing:
    note = ""

    def __init__(self, script: Script, steps: Iterator[Step]) -> None:
        self._script, self._steps = script, steps
        self.interval_s = script.interval_s

    def read(self) -> Picture | None:
        for step in self._steps:
            if isinstance(step, Picture):
                return step
            if isinstance(step, Exception):
                raise step
            if isinstance(step, threading.Event):
                step.wait(30)
            else:
                time.sleep(step)
        return None

    def close(self) -> None:
        self._script.closed += 1


def camera(script: Script, device: Path | None = None, answers: Callable[[], bool] | None = None) -> Source:
    watched = partial(plugged, device) if device else None
    return Source("fake", script.open, live=True, reopen=True, plugged=watched, answers=answers)


def at_rate(fps: float, count: int = 10**9) -> Iterator[Step]:
    """Different pictures, so many a second."""
    for i in range(count):
        yield 1 / fps
        yield picture(i)


def states(capture: Capture) -> list[str]:
    return [news.state for news in capture.news() if isinstance(news, Change)]


def test_a_complete_source_gives_every_picture_in_order_however_slow_the_reader_of_it() -> None:
    """Nothing is dropped; the states are live, then ended, once the last picture was taken."""
    capture = Capture(Source("fake", Script([picture(i) for i in range(30)]).open, live=False))
    capture.start()
    time.sleep(0.1)
    assert [frame.name for frame in drain(capture)] == [str(i) for i in range(30)]
    assert capture.counts().dropped == 0
    assert states(capture) == ["live", "ended"]
    assert capture.close()


def test_a_live_source_hands_over_the_newest_picture_and_counts_the_rest_as_dropped() -> None:
    """After a pause, the picture is fresh, not the next in line; captured is taken plus dropped."""
    capture = Capture(camera(Script(at_rate(100))), QUICK)
    capture.start()
    taken = []
    for _ in range(5):
        time.sleep(0.1)
        frame = capture.next(1)
        assert frame is not None
        taken.append(frame.index)
        age_s = time.monotonic() - frame.taken_s
    counts = capture.counts()
    capture.close()
    assert age_s < 0.1
    assert counts.dropped >= 20
    assert taken == sorted(set(taken))


def test_a_source_that_cannot_be_opened_at_the_start_is_an_error() -> None:
    """Only a source that was there once is opened again."""
    script = Script(SourceError("fake: not there"))
    capture = Capture(camera(script), QUICK)
    with pytest.raises(SourceError, match="not there"):
        capture.start()
    assert script.opened == 1


def test_an_opening_that_never_returns_is_an_error_and_closing_does_not_wait_for_it() -> None:
    """The wait has a limit; the thread is left behind."""
    release = threading.Event()

    def never() -> Reader:
        release.wait(30)
        raise SourceError("late")

    capture = Capture(Source("fake", never, live=True, reopen=True), QUICK)
    with pytest.raises(SourceError, match="did not answer"):
        capture.start()
    began = time.monotonic()
    assert not capture.close()
    assert time.monotonic() - began < 1
    release.set()


def test_a_stop_during_the_opening_is_obeyed() -> None:
    """`start` returns soon after `stop` is set, though the opening still blocks."""
    release, stop = threading.Event(), threading.Event()
    capture = Capture(Source("fake", lambda: release.wait(30) and Script([]).open(), live=True), Timing())  # type: ignore[arg-type, return-value]
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    capture.start(stop)
    assert time.monotonic() - began < 1
    release.set()


def test_silence_makes_a_source_stalled_and_a_picture_makes_it_live_again() -> None:
    """One change of state each way, one stall counted, and no picture invented meanwhile."""
    capture = Capture(camera(Script([picture(0), 0.6, picture(1), picture(2)], [])), QUICK)
    capture.start()
    frames = drain(capture)
    assert states(capture)[:3] == ["live", "stalled", "live"]
    assert capture.counts().stalls == 1
    assert {frame.name for frame in frames} <= {"0", "1", "2"}
    capture.close()


def test_the_same_picture_over_and_over_is_counted_and_seen_as_a_stall() -> None:
    """A source that goes on with the same bytes is not live."""
    steps = itertools.chain([picture(0)], itertools.chain.from_iterable([0.02, picture(7)] for _ in range(25)))
    capture = Capture(camera(Script(steps, [])), QUICK)
    capture.start()
    drain(capture)
    assert capture.counts().identical == 24
    assert ("stalled", "the same picture for 0.25 s") in [(n.state, n.detail) for n in capture.news() if isinstance(n, Change)]
    capture.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_source_that_shows_the_same_picture_for_long_is_opened_again(stream: bool) -> None:
    """A frozen driver or server is helped by opening it anew."""
    script = Script([picture(0), *([0.02, picture(7)] * 100)], at_rate(100))
    capture = Capture(camera(script, answers=(lambda: True) if stream else None), QUICK)
    capture.start()
    drain(capture, lambda frame: script.opened == 2)
    assert states(capture) == ["live", "stalled", "reconnecting", "live"]
    capture.close()


def test_a_still_scene_is_not_opened_again_and_again() -> None:
    """Each time that it did not help, the limit doubles; it is `stalled` then, not live and lost in turn."""
    still = [picture(0), *([0.01, picture(7)] * 1000)]
    script, opened_s = Script(still, *[still[1:]] * 20), []

    def timed() -> Reader:
        opened_s.append(time.monotonic())
        return script.open()

    timing = Timing(stall_s=0.05, frozen_s=0.1, first_wait_s=0.01)
    capture = Capture(Source("fake", timed, live=True, reopen=True), timing)
    capture.start()
    drain(capture, lambda frame: script.opened == 5, seconds=30)
    capture.close()
    told = states(capture)
    apart = [later - earlier for earlier, later in itertools.pairwise(opened_s)]
    assert all(gap >= 0.1 * factor for gap, factor in zip(apart, (1, 1, 2, 4), strict=True))
    assert told[:5] == ["live", "stalled", "reconnecting", "stalled", "reconnecting"]
    assert told.count("live") == 1


def test_a_source_that_gives_nothing_but_broken_pictures_is_opened_again() -> None:
    """They are counted, silence is noticed, and after a while it is opened anew."""
    broken = DataError("fake: the JPEG is cut short")
    script = Script([picture(0), *([0.01, broken] * 1000)], at_rate(100))
    capture = Capture(camera(script), QUICK)
    capture.start()
    drain(capture, lambda frame: script.opened == 2)
    news = [n for n in capture.news() if isinstance(n, Change)]
    assert capture.counts().broken > 5
    assert ("reconnecting", "gave nothing but broken pictures for 0.6 s") in [(n.state, n.detail) for n in news]
    capture.close()


def test_pictures_of_other_forms_are_converted_or_passed_over() -> None:
    """Grey and four channels become three; what is no picture is counted as broken."""
    shapes = [(8, 8, 3), (8, 8), (8, 8, 1), (8, 8, 4), (8, 8, 2), (0, 8, 3), (1, 64)]
    steps = [Picture(np.full(shape, i * 30, np.uint8), str(i)) for i, shape in enumerate(shapes)]
    capture = Capture(Source("fake", Script(steps).open, live=False))
    capture.start()
    frames = drain(capture)
    assert [frame.name for frame in frames] == ["0", "1", "2", "3"]
    assert {frame.image.shape for frame in frames} == {(8, 8, 3)}
    assert capture.counts().broken == 3


def test_a_change_of_size_is_told_once() -> None:
    """Also when the source goes back and forth; pictures with names of their own, as in a folder, may be of any size."""
    sizes = [(8, 8), (8, 8), (6, 4), (6, 4), (8, 8), (6, 4), (8, 8)]
    steps = [Picture(np.full((*size, 3), i, np.uint8)) for i, size in enumerate(sizes)]
    named = [Picture(np.full((*size, 3), i, np.uint8), str(i)) for i, size in enumerate(sizes)]
    for pictures, told in ((steps, ["pictures are now 4x6, before 8x8"]), (named, [])):
        capture = Capture(Source("fake", Script(pictures).open, live=False))
        capture.start()
        assert [frame.image.shape[:2] for frame in drain(capture)] == sizes
        assert [news.detail for news in capture.news() if isinstance(news, Change) and news.detail] == told


def test_a_camera_that_is_plugged_in_again_is_opened_though_the_old_read_hangs_on(tmp_path: Path) -> None:
    """Not only when the limit on a read is over; it is told that the camera is gone."""
    device, release = tmp_path / "video0", threading.Event()
    device.touch()
    capture = Capture(camera(Script([picture(0), release], at_rate(100)), device), Timing(stall_s=0.2, hung_s=60))
    capture.start()
    drain(capture, lambda frame: True)
    device.unlink()
    limit = time.monotonic() + 20
    while capture.state != "reconnecting" and time.monotonic() < limit:
        capture.next(0.05)
    (tmp_path / "other").touch()
    device.touch()
    assert drain(capture, lambda frame: True)
    told = [(news.state, news.detail) for news in capture.news() if isinstance(news, Change)]
    assert told == [
        ("live", ""), ("stalled", "no new picture for 0.2 s"), ("reconnecting", "the camera is gone"), ("live", "")
    ]  # fmt: skip
    assert capture.counts().reconnects == 1
    release.set()
    assert capture.close()


def test_a_server_that_answers_again_ends_the_pause() -> None:
    """Its port is tried while the long pauses of a long absence last."""
    back = threading.Event()
    gone = SourceError("gone")
    capture = Capture(camera(Script([picture(0), gone], at_rate(100)), answers=back.is_set), Timing(first_wait_s=30))
    capture.start()
    drain(capture, seconds=0.3)
    back.set()
    began = time.monotonic()
    assert drain(capture, lambda frame: True)
    assert time.monotonic() - began < 5
    capture.close()


def test_a_server_that_answers_and_refuses_is_not_hurried() -> None:
    """Its pauses grow, since nothing came back."""
    gone = SourceError("gone")
    script = Script([picture(0), gone], *[gone] * 100)
    capture = Capture(camera(script, answers=lambda: True), Timing(first_wait_s=0.2))
    capture.start()
    drain(capture, seconds=1.5)
    capture.close()
    assert 2 <= script.opened <= 5


def test_a_reader_that_can_is_told_to_come_back_at_the_end() -> None:
    """So nothing is left behind, and closing takes no time."""
    told = threading.Event()

    class Reader:
        note, interval_s = "", 0.0

        def read(self) -> Picture | None:
            told.wait(30)
            raise SourceError("aborted")

        def abort(self) -> None:
            told.set()

        def close(self) -> None:
            """Nothing is held."""

    capture = Capture(Source("fake", Reader, live=True, reopen=True))
    capture.begin()
    limit = time.monotonic() + 10
    while capture._reader is None and time.monotonic() < limit:
        time.sleep(0.01)
    assert capture.close()


def test_a_lost_source_is_opened_again_with_pauses_and_told_once_a_state() -> None:
    """Failed openings in between make no further change of state; pictures go on from the new opening."""
    gone = SourceError("fake: gone")
    script = Script([picture(0), picture(1), gone], gone, gone, [picture(2), picture(3)])
    capture = Capture(camera(script), QUICK)
    began = time.monotonic()
    capture.start()
    frames = drain(capture)
    assert frames[-1].name == "3"
    assert script.opened == 4
    assert script.closed == 2
    assert [(n.state, n.detail) for n in capture.news() if isinstance(n, Change)] == [
        ("live", ""),
        ("reconnecting", "gone"),
        ("live", ""),
        ("ended", ""),
    ]
    assert capture.counts().reconnects == 1
    assert time.monotonic() - began > 0.2
    capture.close()


def test_a_read_that_never_comes_back_is_left_behind_and_the_source_opened_again() -> None:
    """The new opening goes on; when the old read returns at last, its picture is not taken and its reader is closed."""
    release = threading.Event()
    script = Script([picture(0), release, picture(99)], at_rate(100))
    capture = Capture(camera(script), QUICK)
    capture.start()
    frames = drain(capture, lambda frame: frame.index > 10)
    assert states(capture) == ["live", "stalled", "reconnecting", "live"]
    release.set()
    frames += drain(capture, lambda frame: script.closed == 1)
    assert "99" not in {frame.name for frame in frames}
    assert capture.close()


def test_closing_takes_no_longer_than_its_limit_while_a_read_blocks() -> None:
    """False says that a thread was left behind."""
    release = threading.Event()
    capture = Capture(camera(Script([picture(0), release])), QUICK)
    capture.start()
    began = time.monotonic()
    assert not capture.close()
    assert time.monotonic() - began < 0.5
    release.set()


def test_waiting_for_a_dead_source_uses_no_processor_time() -> None:
    """No loop spins while a read blocks or while the next opening is waited for."""
    gone = SourceError("gone")
    capture = Capture(camera(Script([picture(0), gone], *[gone] * 1000)), Timing(first_wait_s=0.3))
    capture.start()
    before = time.process_time()
    drain(capture, seconds=1.0)
    assert time.process_time() - before < 0.1
    capture.close()


def test_a_camera_that_is_plugged_in_again_ends_the_pause(tmp_path: Path) -> None:
    """The device file is watched, so the long pauses of a long absence do not delay the return."""
    device = tmp_path / "video0"
    gone = SourceError("gone")
    capture = Capture(camera(Script([picture(0), gone], at_rate(100)), device), Timing(first_wait_s=30))
    capture.start()
    drain(capture, seconds=0.2)
    device.touch()
    began = time.monotonic()
    assert drain(capture, lambda frame: True, seconds=5)
    assert time.monotonic() - began < 2
    capture.close()


class _Piped:
    """A reader that holds two file descriptors and a quarter of a megabyte."""

    note, interval_s = "", 0.0

    def __init__(self, number: int) -> None:
        self._number, self._pipe, self._ballast = number, os.pipe(), bytearray(b"x") * (1 << 18)

    def read(self) -> Picture | None:
        if self._number < 0:
            raise SourceError("gone")
        given, self._number = picture(self._number), -1
        return given

    def close(self) -> None:
        for handle in self._pipe:
            os.close(handle)


def test_a_thousand_lost_connections_leave_nothing_behind() -> None:
    """Threads, file descriptors and memory are what they were; no reader is left open."""
    held = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    count = iter(range(10**6))
    source = Source("fake", lambda: _Piped(next(count)), live=True, reopen=True)
    capture = Capture(source, Timing(first_wait_s=0, longest_wait_s=0))
    capture.start()
    limit = time.monotonic() + 200
    while capture.counts().reconnects < 100 and time.monotonic() < limit:
        capture.next(0.01)
    before = resident()
    while capture.counts().reconnects < 1100 and time.monotonic() < limit:
        capture.next(0.01)
    grown = resident() - before
    assert capture.close()
    assert capture.counts().reconnects >= 1100
    assert grown < 16 << 20
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == held


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_broken_picture_is_passed_over_and_named() -> None:
    """The source goes on with the next one."""
    steps = [picture(0), DataError("b.jpg: the JPEG is cut short"), picture(2)]
    capture = Capture(Source("fake", Script(steps).open, live=False))
    capture.start()
    assert [frame.name for frame in drain(capture)] == ["0", "2"]
    assert capture.counts().broken == 1
    assert Broken("b.jpg: the JPEG is cut short") in capture.news()
    capture.close()


def test_a_source_is_played_at_its_own_rate_when_live() -> None:
    """With an interval, ten pictures take ten intervals; without the wish to be live they take no time."""
    steps = [picture(i) for i in range(10)]
    for live, at_least, at_most in ((True, 0.45, 2.0), (False, 0.0, 0.3)):
        capture = Capture(Source("fake", Script(steps, interval_s=0.05).open, live=live))
        began = time.monotonic()
        capture.start()
        drain(capture)
        assert at_least <= time.monotonic() - began <= at_most
        capture.close()


def test_an_unforeseen_failure_in_the_thread_reaches_the_caller() -> None:
    """A bug in a reader does not leave the loop waiting for ever."""
    capture = Capture(camera(Script([picture(0), ZeroDivisionError("bug")])), QUICK)
    capture.start()
    with pytest.raises(ZeroDivisionError):
        drain(capture)
    capture.close()


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_double_from_half_a_second_to_thirty_and_vary_by_a_quarter(attempt: int, jitter: float) -> None:
    """Never under 0.375 s, never over 37.5 s; many devices do not come back in step."""
    wait = wait_before(attempt, jitter, Timing())
    middle = min(30.0, 0.5 * 2 ** min(attempt, 10))
    assert 0.75 * middle <= wait <= 1.25 * middle
