"""Sinks: where results go. Each writes in a thread of its own, so a slow one loses its own messages and nobody's time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TextIO

from edgeclf.core.errors import StorageError
from edgeclf.core.image import Pixels
from edgeclf.runtime.events import Event, Health, Seen, Skipped, describe, record

QUEUE = 256
CLOSE_S = 1.0
NAP_S = 0.2
REFRESH_S = 0.1
REPEAT_S = 1.0


class Sink(Protocol):
    """What the loop hands results to; neither method may take noticeable time."""

    def emit(self, event: Event, image: Pixels | None) -> None:
        """`image` is the BGR frame of a Seen; it must not be changed."""

    def close(self) -> bool:
        """Nothing more will come; finish what is waiting, for at most CLOSE_S. False when a write still blocks."""


class Writer(Protocol):
    """The slow part of a sink: one method, so a fake is three lines."""

    def write(self, events: Sequence[Event]) -> None:
        """Raises OSError when the events cannot be written, BrokenPipeError when nobody reads them any more."""


class Background:
    """A sink that writes in its own thread, from a bounded queue.

    When the writer falls behind, the oldest waiting events are lost and counted in `lost`; with `lossless`, `emit` waits
    instead (until `stop` is set), which is right for a file that is read completely. `on_gone` is called when the reader of
    the output went away, `on_trouble` with a message when writing begins to fail; it is tried again with the next event.
    """

    def __init__(
        self,
        writer: Writer,
        name: str,
        lossless: bool = False,
        stop: threading.Event | None = None,
        on_gone: Callable[[], None] = lambda: None,
        on_trouble: Callable[[str], None] = lambda message: None,
        queue: int = QUEUE,
    ) -> None:
        self.name, self.lost = name, 0
        self._writer, self._lossless, self._limit = writer, lossless, queue
        self._stop = stop or threading.Event()
        self._on_gone, self._on_trouble = on_gone, on_trouble
        self._waiting: deque[Event] = deque()
        self._changed = threading.Condition()
        self._closed = self._gone = self._failing = False
        self._thread = threading.Thread(target=self._work, name=f"edgeclf-sink-{name}", daemon=True)
        self._thread.start()

    def emit(self, event: Event, image: Pixels | None = None) -> None:
        with self._changed:
            while self._lossless and len(self._waiting) >= self._limit and not (self._gone or self._stop.is_set()):
                self._changed.wait(NAP_S)
            if self._gone:
                return
            if len(self._waiting) >= self._limit:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(event)
            self._changed.notify_all()

    def close(self) -> bool:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)
        with self._changed:
            self.lost += len(self._waiting)
            self._waiting.clear()
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                events = list(self._waiting)
                self._waiting.clear()
                self._changed.notify_all()
            if not events:
                return
            self._write(events)
            if self._gone:
                return

    def _write(self, events: list[Event]) -> None:
        try:
            self._writer.write(events)
            self._failing = False
        except BrokenPipeError:
            self._gone = True
            self._on_gone()
        except Exception as error:  # whatever fails here must not end the classifying
            self.lost += len(events)
            if not self._failing:
                self._on_trouble(
                    f"{self.name}: cannot write: {getattr(error, 'strerror', None) or error}; results are being lost"
                )
            self._failing = True


class JsonLines:
    """Writes events as JSON lines, appended to a file or to a stream; a line cut short by a full disk stays alone."""

    def __init__(self, target: Path | TextIO) -> None:
        """Raises StorageError when the file cannot be opened for appending."""
        self._stream = None if isinstance(target, Path) else target
        self._torn = False
        if isinstance(target, Path):
            try:
                self._file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            except OSError as error:
                raise StorageError(f"{target}: cannot write: {error.strerror}") from error

    def write(self, events: Sequence[Event]) -> None:
        text = "".join(json.dumps(record(event), allow_nan=False) + "\n" for event in events)
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
        else:
            self._append(text.encode("ascii"))

    def _append(self, data: bytes) -> None:
        left = memoryview((b"\n" if self._torn else b"") + data)
        while left:
            written = os.write(self._file, left)
            self._torn = written < len(left)
            left = left[written:]


class Lines:
    """Writes for a person: one line kept up to date on a terminal, else a line when the answer changes, or each second."""

    def __init__(self, stream: TextIO, terminal: bool | None = None) -> None:
        self._stream = stream
        self._terminal = stream.isatty() if terminal is None else terminal
        self._written_s = -REPEAT_S
        self._open = False

    def write(self, events: Sequence[Event]) -> None:
        for event in events:
            if self._terminal:
                self._show(event, last=event is events[-1])
            elif self._is_due(event):
                self._stream.write(describe(event) + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the line that was kept up to date."""
        if self._open:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write("\n")
                self._stream.flush()
        self._open = False

    def _is_due(self, event: Event) -> bool:
        now = time.monotonic()
        if isinstance(event, Health):
            return False
        if isinstance(event, Seen) and not event.decision.changed and now - self._written_s < REPEAT_S:
            return False
        self._written_s = now
        return True

    def _show(self, event: Event, last: bool) -> None:
        if isinstance(event, Health):
            return
        now = time.monotonic()
        # Every event would be more than an eye can read or a slow terminal can take.
        if isinstance(event, Seen) and (not last or now - self._written_s < REFRESH_S):
            return
        self._written_s = now
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[K{describe(event)[:width]}")
        if isinstance(event, Skipped):
            self._stream.write("\n")
        self._open = not isinstance(event, Skipped)
