"""Sinks: where results go. Each writes in a thread of its own, so a slow one loses its own messages and nobody's time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from edgeclf.core.image import Pixels
from edgeclf.runtime.events import Event

QUEUE = 256
PICTURES = 4  # that may wait for a sink: each is a megabyte at 640×480
CLOSE_S = 1.0
NAP_S = 0.2

Item: TypeAlias = tuple[Event, Pixels | None]


class Paused(OSError):
    """Raised by a writer that cannot write yet, for an event of which nothing is lost by that."""


class Sink(Protocol):
    """What the loop hands results to; neither method may take noticeable time."""

    def emit(self, event: Event, image: Pixels | None) -> None:
        """`image` is the BGR frame of a Seen; it must not be changed."""

    def close(self) -> bool:
        """Nothing more will come; finish what is waiting, for at most CLOSE_S. False when a write still blocks."""


@runtime_checkable
class Ending(Protocol):
    """A sink that can be told to finish without being waited for; its `close` then waits until CLOSE_S after that."""

    def end(self) -> None:
        """Nothing more will come."""


class Writer(Protocol):
    """The slow part of a sink: one method, so a fake is three lines. One that has a `close` is closed by the same thread."""

    def write(self, events: Sequence[Event]) -> None:
        """Raises OSError when the events cannot be written, BrokenPipeError when nobody reads them any more."""


@runtime_checkable
class PictureWriter(Protocol):
    """A writer that needs pictures. Few wait for it, and it gets them one by one."""

    def wants(self, event: Event) -> bool:
        """Whether the event is to be handed over with its picture; called by the loop, so it must answer at once."""

    def write_picture(self, event: Event, image: Pixels | None) -> None:
        """`image` is the BGR frame of a Seen, not to be changed. Raises OSError when it cannot be written."""


@runtime_checkable
class _Closing(Protocol):
    def close(self) -> None: ...


class Background:
    """A sink that writes in its own thread, from a bounded queue.

    When the writer falls behind, the oldest waiting events are lost and counted in `lost`; with `lossless`, `emit` waits
    instead (until `stop` is set), which is right for a file that is read completely. With `on_gone`, which is called when the
    reader of the output went away, that ends the writing. `on_trouble` is called with a message when writing begins to fail,
    and when it works again; it is tried again with the next event. `queue` events may wait, or PICTURES of a PictureWriter.
    Events are collected for `apart_s` seconds between writes, unless half of the queue is full.
    """

    def __init__(
        self,
        writer: Writer | PictureWriter,
        name: str,
        lossless: bool = False,
        stop: threading.Event | None = None,
        on_gone: Callable[[], None] | None = None,
        on_trouble: Callable[[str], None] = lambda message: None,
        queue: int | None = None,
        apart_s: float = 0.0,
    ) -> None:
        self.name, self.lost = name, 0
        self._writer, self._lossless, self._apart_s = writer, lossless, apart_s
        self._wants = writer.wants if isinstance(writer, PictureWriter) else None
        self._limit = queue or (PICTURES if self._wants else QUEUE)
        self._stop = stop or threading.Event()
        self._on_gone, self._on_trouble = on_gone, on_trouble
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = self._gone = self._failing = False
        self._failed = 0  # events, since writing began to fail
        self._written_s = self._ended_s = 0.0
        self._thread = threading.Thread(target=self._work, name=f"edgeclf-sink-{name}", daemon=True)
        self._thread.start()

    def emit(self, event: Event, image: Pixels | None = None) -> None:
        if self._wants and not self._wants(event):
            return
        with self._changed:
            while self._lossless and len(self._waiting) >= self._limit and not (self._gone or self._stop.is_set()):
                self._changed.wait(NAP_S)
            if self._gone:
                return
            if len(self._waiting) >= self._limit:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append((event, image if self._wants else None))
            if len(self._waiting) == 1 or self._is_half_full():
                self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended_s = self._ended_s or time.monotonic()
            self._closed = True
            self._changed.notify_all()

    def close(self) -> bool:
        self.end()
        self._thread.join(max(0.0, self._ended_s + CLOSE_S - time.monotonic()))
        with self._changed:
            self.lost += len(self._waiting)
            self._waiting.clear()
        return not self._thread.is_alive()

    def _is_half_full(self) -> bool:
        return 2 * len(self._waiting) >= self._limit

    def _work(self) -> None:
        while not self._gone and (items := self._next()):
            self._write(items)
        if isinstance(self._writer, _Closing):
            with contextlib.suppress(Exception):  # as when writing: it must not end the classifying
                self._writer.close()

    def _next(self) -> list[Item]:
        """What is to be written now; nothing at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            left = self._written_s + self._apart_s - time.monotonic()
            if left > 0:
                self._changed.wait_for(lambda: self._closed or self._is_half_full(), left)
            count = min(len(self._waiting), 1) if self._wants else len(self._waiting)
            items = [self._waiting.popleft() for _ in range(count)]
            self._changed.notify_all()
            return items

    def _write(self, items: list[Item]) -> None:
        writer = self._writer
        if isinstance(writer, PictureWriter):
            self._guard(lambda: writer.write_picture(*items[0]), 1)
        else:
            self._guard(lambda: writer.write([event for event, _ in items]), len(items))
        self._written_s = time.monotonic()

    def _guard(self, work: Callable[[], None], count: int) -> None:
        """Do `work` for so many events; whatever fails here must not end the classifying."""
        try:
            work()
        except Exception as error:
            if isinstance(error, BrokenPipeError) and self._on_gone:
                self._gone = True
                self._on_gone()
                return
            count = 0 if isinstance(error, Paused) else count
            with self._changed:
                self.lost += count
            if not self._failing:
                self._on_trouble(
                    f"{self.name}: cannot write: {getattr(error, 'strerror', None) or error}; results are being lost"
                )
            self._failing = True
            self._failed += count
        else:
            if self._failing:
                self._on_trouble(f"{self.name}: writing works again; {self._failed} results were lost")
            self._failing, self._failed = False, 0


def end_all(sinks: Sequence[Sink]) -> None:
    """Tell every sink to finish, so that closing them takes as long as the slowest and not all together."""
    for sink in sinks:
        if isinstance(sink, Ending):
            sink.end()
