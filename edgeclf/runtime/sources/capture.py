"""Capture: reads a source in a thread of its own, hands over its pictures, and opens it again when it is lost.

A live source hands over the newest picture only; any other hands over every one. All times are monotonic.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from edgeclf.core.errors import DataError, SourceError
from edgeclf.core.image import Pixels
from edgeclf.runtime.sources.readers import as_bgr
from edgeclf.runtime.sources.source import Picture, Reader, Source

CaptureState = Literal["starting", "live", "stalled", "reconnecting", "ended"]

READ_AHEAD = 4  # pictures decoded in advance from a source that is read completely
MAX_ABANDONED = 4  # threads left behind in a read that never returns
FRESH_ENOUGH = 10  # pictures after which an opened source counts as well again
SAMPLE = 8  # every 8th pixel both ways decides whether two pictures are the same
NAP_S = 0.2  # between looks at a condition that another thread may have changed
SLOW_S = 1.0  # a read or opening that takes longer may be one that hangs
PROBE_S = 0.5  # between looks whether a network address answers again
MAX_STILL = 5  # how often the limit on a frozen picture doubles while opening again does not help
MAX_SHAPES = 16  # sizes of pictures that are told of, in a source that changes them all the time


@dataclass(frozen=True)
class Timing:
    """Limits in seconds: no new picture makes a source `stalled`; a read or opening this long is given up; the same picture,
    or nothing but broken ones, this long makes a camera be opened again, and a stream, which may well show a still scene, a
    little later; the waits between openings grow from first to longest; closing waits.
    """

    stall_s: float = 2.0
    hung_s: float = 12.0
    frozen_s: float = 10.0
    frozen_stream_s: float = 30.0
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0
    close_s: float = 1.0


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture as handed over: BGR uint8 (height, width, 3), its number since the start, when the source gave it, and how
    long it took to decode."""

    image: Pixels
    index: int
    taken_s: float
    name: str = ""
    decode_s: float = 0.0


@dataclass(frozen=True)
class Change:
    """The source went into `state`, or is in it still and something else changed; `detail` says what, or is empty."""

    state: CaptureState
    detail: str = ""


@dataclass(frozen=True)
class Broken:
    """A picture was passed over; `reason` names it where it has a name."""

    reason: str


@dataclass(frozen=True)
class Counts:
    """What happened to the pictures since the start.

    `dropped` were overtaken by newer ones, `broken` could not be decoded, `identical` equal the one before. `stalls` and
    `reconnects` count how often the source fell silent and was opened again.
    """

    captured: int = 0
    dropped: int = 0
    broken: int = 0
    identical: int = 0
    stalls: int = 0
    reconnects: int = 0


class _Frozen(SourceError):
    """The source shows the same picture for too long."""


def wait_before(attempt: int, jitter: float, timing: Timing) -> float:
    """Seconds before opening again for the `attempt`th time, from 0: doubling, capped, and ±25% by `jitter` in [0, 1)."""
    return min(timing.longest_wait_s, timing.first_wait_s * 2.0 ** min(attempt, 30)) * (0.75 + jitter / 2)


class Capture:
    """One source being read. `start`, then `next` until `finished`, then `close`; all three by the same thread."""

    def __init__(
        self, source: Source, timing: Timing | None = None, changed: threading.Condition | None = None, wait: bool = False
    ) -> None:
        """`changed` is told of everything that happens, and shared where several are waited for; `wait`: a source that is not
        there at the start is waited for instead of being an error."""
        self.source = source
        self.timing = timing or Timing()
        self._changed = changed or threading.Condition()
        self._wait = wait and source.reopen
        self._frames: deque[Frame] = deque()
        self._news: deque[Change | Broken] = deque(maxlen=100)
        self._counts = dict.fromkeys(Counts.__dataclass_fields__, 0)
        self._state: CaptureState = "starting"
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._turn = 0  # a worker whose turn is over stops at its next step
        self._entered: float | None = None  # when the worker went into an opening or a read
        self._fresh_s = 0.0  # when the last picture that differs from the one before came
        self._came_s = 0.0  # when the last picture came
        self._sample = b""
        self._still = 0  # how often opening again did not help against a frozen picture
        self._shape: tuple[int, ...] = ()
        self._shapes: set[tuple[int, ...]] = set()
        self._remark = ""
        self._reader: Reader | None = None
        self._there: object = None  # what was plugged in when the source was opened last

    @property
    def state(self) -> CaptureState:
        return self._state

    @property
    def finished(self) -> bool:
        """Whether the source ended and every picture was taken."""
        return self._state == "ended"

    def counts(self) -> Counts:
        with self._changed:
            return Counts(**self._counts)

    def news(self) -> list[Change | Broken]:
        """Changes of state and broken pictures since the last call, oldest first; the newest hundred when there were more."""
        if not self._news:
            return []
        with self._changed:
            news = list(self._news)
            self._news.clear()
            return news

    def start(self, stop: threading.Event | None = None) -> None:
        """Open the source; returns when the first picture is there, the source ended, or `stop` is set.

        Raises SourceError when it cannot be opened. Only a source that was open once is opened again.
        """
        self.begin()
        self.settle(stop)

    def begin(self) -> None:
        """The first half of `start`: begin to open it, and return."""
        self._spawn()

    def settle(self, stop: threading.Event | None = None) -> None:
        """The second half of `start`."""
        limit = time.monotonic() + self.timing.hung_s
        with self._changed:
            while self._state == "starting" and not (stop and stop.is_set()):
                self._raise_failure()
                if time.monotonic() > limit:
                    if self._wait:
                        return
                    raise SourceError(f"{self.source.name}: did not answer within {self.timing.hung_s:.0f} s")
                self._changed.wait(NAP_S)
            if not self._frames:
                self._raise_failure()

    def next(self, timeout_s: float) -> Frame | None:
        """The newest picture of a live source, or the next of another; None when none came in time or `finished`."""
        limit = time.monotonic() + timeout_s
        with self._changed:
            while (frame := self.take()) is None and self._state != "ended":
                left = limit - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, NAP_S))
            return frame

    def take(self) -> Frame | None:
        """What `next` gives, without waiting; called with the condition held."""
        if not self._frames:
            if self._state != "ended":
                self._raise_failure()
                self._watch()
            return None
        frame = self._frames.popleft()
        self._changed.notify_all()
        return frame

    def give_up(self, reason: str) -> None:
        """End it for good, because of a failure; called with the condition held."""
        self._turn += 1
        self._set("ended", reason)

    def close(self) -> bool:
        """End the reading; False when a read still blocks, which then ends with the process. Takes at most `close_s`."""
        self.end()
        return self.join(time.monotonic() + self.timing.close_s)

    def end(self) -> None:
        """The first half of `close`: tell the reading to end, and return."""
        with self._changed:
            self._turn += 1
            self._frames.clear()
            self._abort()
            self._set("ended")
            self._changed.notify_all()

    def join(self, limit_s: float) -> bool:
        """The second half: wait until that moment of the monotonic clock."""
        for thread in self._threads:
            thread.join(max(0.0, limit_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # What follows runs with the condition held, by whichever thread.

    def _set(self, state: CaptureState, detail: str = "") -> None:
        if state == self._state:
            return
        self._counts["stalls"] += state == "stalled"
        self._state = state
        self._news.append(Change(state, detail))
        self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _tell(self, detail: str) -> None:
        self._news.append(Change(self._state, detail))

    def _watch(self) -> None:
        """Notice silence, and a read that does not come back; by the thread that waits for pictures."""
        now = time.monotonic()
        if not self.source.reopen:
            return
        if self._state == "live" and now - self._fresh_s >= self.timing.stall_s:
            what = "no new picture" if now - self._came_s >= self.timing.stall_s else "the same picture"
            self._set("stalled", f"{what} for {self.timing.stall_s:g} s")
        if self._entered is None or self._state == "live":
            return
        if now - self._entered > self.timing.hung_s:
            self._respawn(f"a read did not come back for {self.timing.hung_s:g} s")
        elif now - self._entered > SLOW_S and self._state in ("stalled", "reconnecting"):
            self._watch_plug()

    def _watch_plug(self) -> None:
        """A read that hangs on a camera that was pulled out may hang on when it is back."""
        there = self.source.plugged() if self.source.plugged else self._there
        if there == self._there:
            return
        if there is None:
            self._set("reconnecting", "the camera is gone")
        else:
            self._respawn("the camera was plugged in again")

    def _respawn(self, reason: str) -> None:
        if sum(thread.is_alive() for thread in self._threads) < MAX_ABANDONED:
            self._abort()
            self._sample = b""
            self._set("reconnecting", reason)
            self._spawn()

    def _abort(self) -> None:
        """Make a read that blocks come back, where the reader can."""
        abort = getattr(self._reader, "abort", None)
        if abort:
            abort()

    def _spawn(self) -> None:
        with self._changed:
            self._turn += 1
            self._entered = None
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            # A daemon: a read that blocks for ever must not keep the process from ending.
            thread = threading.Thread(target=self._work, args=(self._turn,), name="edgeclf-capture", daemon=True)
            self._threads.append(thread)
        thread.start()

    # What follows runs in the capture thread.

    def _work(self, turn: int) -> None:
        try:
            self._serve(turn)
        except BaseException as error:
            with self._changed:
                if turn == self._turn:
                    self._failure = error
                    self._changed.notify_all()

    def _serve(self, turn: int) -> None:
        attempt = 0
        while turn == self._turn:
            fresh_before = self._counts["captured"] - self._counts["identical"]
            try:
                note = self._read_through(turn)
            except SourceError as error:
                if not self.source.reopen or (self._state == "starting" and not self._wait):
                    raise
                reason, frozen = str(error).removeprefix(f"{self.source.name}: "), isinstance(error, _Frozen)
            else:
                self._end(note, turn)
                return
            fresh = self._counts["captured"] - self._counts["identical"] - fresh_before
            attempt = 0 if frozen or fresh >= FRESH_ENOUGH else attempt + 1
            with self._changed:
                if turn == self._turn:
                    self._still = min(MAX_STILL, self._still + 1) if frozen and fresh < FRESH_ENOUGH else 0
                    self._sample = self._sample if frozen else b""
                    self._set("reconnecting", reason)
            if self._pause(wait_before(attempt, random.random(), self.timing), turn):
                attempt = 0

    def _end(self, note: str, turn: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._frames or turn != self._turn)
            if turn == self._turn:
                self._set("ended", note)

    def _read_through(self, turn: int) -> str:
        """Open the source and hand over its pictures until its end, whose note is returned; raises SourceError when lost."""
        with self._busy(turn):
            there = self.source.plugged() if self.source.plugged else None
            if turn == self._turn:
                self._there = there
            reader = self.source.open()
        try:
            self._begin(reader, turn)
            due = time.monotonic()
            while turn == self._turn:
                picture = self._next_good(reader, turn)
                if picture is None:
                    return reader.note
                if self.source.live and reader.interval_s:
                    due = max(due + reader.interval_s, time.monotonic() - reader.interval_s)
                    self._wait_until(due, turn)
                    picture = replace(picture, taken_s=0.0)  # as if a camera had taken it now
                self._hand_over(picture, turn)
            return ""
        finally:
            with self._changed:
                if self._reader is reader:
                    self._reader = None
            reader.close()

    def _begin(self, reader: Reader, turn: int) -> None:
        with self._changed:
            if turn == self._turn:
                self._reader = reader
                self._fresh_s = time.monotonic()
                self._counts["reconnects"] += self._state == "reconnecting"

    def _next_good(self, reader: Reader, turn: int) -> Picture | None:
        while True:
            try:
                with self._busy(turn):
                    picture = reader.read()
                return None if picture is None else _as_bgr(picture)
            except DataError as error:
                with self._changed:
                    self._counts["broken"] += 1
                    self._news.append(Broken(str(error)))
                    self._changed.notify_all()
                if turn != self._turn:
                    return None
                if self.source.reopen and time.monotonic() - max(self._fresh_s, self._came_s) >= self.timing.frozen_s:
                    raise SourceError(f"gave nothing but broken pictures for {self.timing.frozen_s:g} s") from error

    @contextlib.contextmanager
    def _busy(self, turn: int) -> Iterator[None]:
        """Note for `_watch` that the source is being waited for."""
        if turn == self._turn:
            self._entered = time.monotonic()
        try:
            yield
        finally:
            if turn == self._turn:
                self._entered = None

    def _hand_over(self, picture: Picture, turn: int) -> None:
        sample = picture.image[::SAMPLE, ::SAMPLE].tobytes()
        with self._changed:
            if not self.source.live:
                self._changed.wait_for(lambda: len(self._frames) < READ_AHEAD or turn != self._turn)
            if turn != self._turn:
                return
            now = self._came_s = time.monotonic()
            taken_s = picture.taken_s or now
            if sample == self._sample:
                self._counts["identical"] += 1
                self._complain_of_frozen(now)
            else:
                self._sample, self._fresh_s = sample, now
                self._set("live")
            self._tell_of_form(picture)
            if self.source.live and self._frames:
                self._frames.clear()
                self._counts["dropped"] += 1
            self._frames.append(Frame(picture.image, self._counts["captured"], taken_s, picture.name, picture.decode_s))
            self._counts["captured"] += 1
            self._changed.notify_all()

    def _tell_of_form(self, picture: Picture) -> None:
        """Say it once when the pictures become of another size, or are not what was asked for."""
        remark = getattr(self._reader, "remark", "")
        if remark and remark != self._remark:
            self._remark = remark
            self._tell(remark)
        shape = picture.image.shape[:2]
        if picture.name or shape == self._shape:
            return
        if self._shape and shape not in self._shapes and len(self._shapes) < MAX_SHAPES:
            self._tell(f"pictures are now {shape[1]}x{shape[0]}, before {self._shape[1]}x{self._shape[0]}")
        self._shape = shape
        self._shapes.add(shape)

    def _complain_of_frozen(self, now: float) -> None:
        if not self.source.reopen:
            return
        if self._state == "reconnecting":
            self._set("stalled", "the same picture after it was opened again")
        elif now - self._fresh_s >= self.timing.stall_s and self._state == "live":
            self._set("stalled", f"the same picture for {self.timing.stall_s:g} s")
        limit_s = self.timing.frozen_stream_s if self.source.answers else self.timing.frozen_s
        if now - self._fresh_s >= limit_s * 2.0**self._still:
            raise _Frozen(f"gave the same picture for {limit_s * 2.0**self._still:g} s")

    def _wait_until(self, due: float, turn: int) -> None:
        with self._changed:
            while turn == self._turn and (left := due - time.monotonic()) > 0:
                self._changed.wait(min(left, NAP_S))

    def _pause(self, seconds: float, turn: int) -> bool:
        """Wait before opening again; True, and at once, when a camera is plugged in or a server answers that did not."""
        plugged, answers = self.source.plugged, self.source.answers
        limit = time.monotonic() + seconds
        before = plugged() if plugged else None
        probe_s = limit if answers is None or answers() else time.monotonic() + PROBE_S
        while turn == self._turn and (left := limit - time.monotonic()) > 0:
            with self._changed:
                self._changed.wait(min(left, NAP_S))
            if plugged and (there := plugged()) is not None and there != before:
                return True
            if answers and time.monotonic() >= probe_s:
                if answers():
                    return True
                probe_s = time.monotonic() + PROBE_S
        return False


def _as_bgr(picture: Picture) -> Picture:
    image = as_bgr(picture.image)
    return picture if image is picture.image else replace(picture, image=image)
