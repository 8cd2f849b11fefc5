"""Frames through a pipe: standard input, and the standard output of a camera program that runs as a child process."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import DataError, SourceError
from edgeclf.core.text import printable
from edgeclf.runtime.sources.jpegs import Splitter, picture_of
from edgeclf.runtime.sources.source import Picture

CHUNK = 1 << 16
PIPE_BYTES = 1 << 20  # a whole frame fits, so that it costs few switches between processes
NAP_S = 0.2  # between looks whether the reading was aborted
SILENCE_S = 5.0  # without a picture, a camera program counts as hung
FIRST_S = 10.0  # to start and give its first picture
END_S = 0.5  # to end after it was asked to
KEPT_ERRORS = 2000
STDIN_FD = 0
RPICAM = ("rpicam-vid", "libcamera-vid")  # the name of today and the one before


class Hung(SourceError):
    """Nothing came through a pipe in time."""


class Pipe:
    """Bytes from a file descriptor, each read with a time-out; `abort` from another thread ends it."""

    def __init__(self, handle: int, name: str) -> None:
        self._handle, self._name = handle, name
        self._aborted = threading.Event()
        self._poll = select.poll()
        self._poll.register(handle, select.POLLIN)
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import fcntl

            fcntl.fcntl(handle, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def some(self, limit_s: float | None) -> bytes:
        """What is there, at least one byte; empty at the end. Raises Hung when nothing came within `limit_s`."""
        self._wait(limit_s)
        return os.read(self._handle, CHUNK)

    def fill(self, target: memoryview, limit_s: float | None) -> int:
        """Fill `target`; fewer bytes than its length only at the end. Raises Hung."""
        due = None if limit_s is None else time.monotonic() + limit_s
        filled = 0
        while filled < len(target):
            self._wait(None if due is None else due - time.monotonic())
            count = os.readv(self._handle, [target[filled:]])
            if not count:
                break
            filled += count
        return filled

    def abort(self) -> None:
        self._aborted.set()

    def _wait(self, limit_s: float | None) -> None:
        due = None if limit_s is None else time.monotonic() + limit_s
        while not self._aborted.is_set():
            left = NAP_S if due is None else min(NAP_S, due - time.monotonic())
            if self._poll.poll(max(0.0, left) * 1000):
                return
            if due is not None and time.monotonic() >= due:
                raise Hung(f"{self._name}: gave nothing in time")
        raise SourceError(f"{self._name}: the reading was ended")


class JpegPipe:
    """JPEG frames one after the other, alone or as a multipart stream, from a pipe."""

    def __init__(self, pipe: Pipe, name: str) -> None:
        self._pipe, self._name = pipe, name
        self._splitter = Splitter(name)
        self._ended = False

    def read(self, limit_s: float | None) -> Picture | None:
        """The next picture; None at the end. Raises DataError, Hung and SourceError."""
        due = None if limit_s is None else time.monotonic() + limit_s
        while (data := self._cut()) is None:
            if self._ended:
                return None
            self._feed(None if due is None else due - time.monotonic())
        return picture_of(data, self._name, time.monotonic())

    def _cut(self) -> bytes | None:
        try:
            return self._splitter.next()
        except EOFError as error:
            raise SourceError(f"{self._name}: {error}; expected a stream of JPEG frames") from error

    def _feed(self, limit_s: float | None) -> None:
        data = self._pipe.some(limit_s)
        self._splitter.feed(data)
        self._ended = not data
        if self._ended and self._splitter.rest():
            raise DataError(f"{self._name}: the last frame is cut short")


class RawPipe:
    """Frames of BGR bytes of one size, without anything between them, from a pipe."""

    def __init__(self, pipe: Pipe, name: str, width: int, height: int) -> None:
        self._pipe, self._name, self._shape = pipe, name, (height, width, 3)

    def read(self, limit_s: float | None) -> Picture | None:
        """As `JpegPipe.read`."""
        image = np.empty(self._shape, np.uint8)
        filled = self._pipe.fill(image.data.cast("B"), limit_s)
        if not filled:
            return None
        if filled < image.size:
            raise DataError(f"{self._name}: the last frame has {filled} of {image.size} bytes; is the size right?")
        return Picture(image, taken_s=time.monotonic())


class StdinReader:
    """Frames from standard input: JPEG frames, or BGR bytes when their size (width, height) is given."""

    interval_s, note = 0.0, ""

    def __init__(self, size: tuple[int, int] | None, name: str = "stdin") -> None:
        if os.isatty(STDIN_FD):
            raise SourceError(
                f"{name}: standard input is a terminal; pipe frames into it, as in: ffmpeg … -f mjpeg - | edgeclf run …"
            )
        self._pipe = Pipe(STDIN_FD, name)
        self._frames = RawPipe(self._pipe, name, *size) if size else JpegPipe(self._pipe, name)
        self._name, self._any, self._ended = name, False, False

    def read(self) -> Picture | None:
        if self._ended:
            return None
        try:
            picture = self._frames.read(None)
        except OSError as error:
            raise SourceError(f"{self._name}: cannot be read: {error.strerror}") from error
        except DataError:
            self._any = True
            raise
        self._ended = picture is None
        if picture is None and not self._any:
            raise SourceError(f"{self._name}: no frame came")
        self._any = True
        return picture

    def abort(self) -> None:
        self._pipe.abort()

    def close(self) -> None:
        """Standard input belongs to the process."""


class Child:
    """A camera program as a child process: its standard output is a pipe, and it is killed when that falls silent."""

    def __init__(self, command: Sequence[str], name: str) -> None:
        """Raises SourceError when it cannot be started."""
        self.name = name
        self._errors = bytearray()
        try:
            # A session of its own: Ctrl-C in the terminal is for this process, which then ends the child itself.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        except OSError as error:
            raise SourceError(f"{name}: {command[0]} cannot be started: {error.strerror}") from error
        self.pipe = Pipe(self._process.stdout.fileno(), name)  # type: ignore[union-attr]
        self._listener = threading.Thread(target=self._listen, name="edgeclf-child-errors", daemon=True)
        self._listener.start()

    def lost(self, what: str) -> SourceError:
        """The error to raise when it gave no picture: what it did, and its own last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            what = f"ended with code {self._process.wait(END_S)}"
        self._listener.join(END_S)
        lines = self._errors.decode("utf-8", "replace").strip().splitlines()
        return SourceError(f"{self.name}: {what}{': ' + printable(lines[-1].strip())[:200] if lines else ''}")

    def abort(self) -> None:
        """Make a read that blocks come back; by any thread."""
        self.pipe.abort()
        with contextlib.suppress(OSError):
            self._process.kill()

    def close(self) -> None:
        """End it: ask, wait a moment, kill."""
        process = self._process
        with contextlib.suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
            process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._listener.join(END_S)
        process.stdout.close()  # type: ignore[union-attr]
        if not self._listener.is_alive():
            process.stderr.close()  # type: ignore[union-attr]

    def _listen(self) -> None:
        """Keep the end of what it says on standard error, so that its pipe never fills."""
        errors = self._process.stderr
        with contextlib.suppress(OSError, ValueError):
            while data := errors.read(CHUNK):  # type: ignore[union-attr]
                self._errors += data
                del self._errors[:-KEPT_ERRORS]


class ChildReader:
    """Pictures that a child process writes; a silence of SILENCE_S or its end means that the source is lost."""

    interval_s, note = 0.0, ""

    def __init__(
        self, child: Child, read: Callable[[float | None], Picture | None], wanted: CameraSection, silence_s: float = SILENCE_S
    ) -> None:
        """`read` gives the next picture from the child's pipe within a time limit; None when the pipe ended."""
        self.remark = ""
        self._child, self._read, self._wanted, self._silence_s = child, read, wanted, silence_s
        self._limit_s = max(FIRST_S, silence_s)

    def read(self) -> Picture | None:
        try:
            picture = self._read(self._limit_s)
        except Hung as error:
            raise self._child.lost(f"gave no picture for {self._limit_s:g} s") from error
        except OSError as error:
            raise SourceError(f"{self._child.name}: cannot be read: {error.strerror}") from error
        if picture is None:
            raise self._child.lost("gives no more pictures")
        self._limit_s = self._silence_s
        height, width = picture.image.shape[:2]
        if (width, height) != (self._wanted.width, self._wanted.height):
            self.remark = f"gives {width}x{height} instead of {self._wanted.width}x{self._wanted.height}"
        return picture

    def abort(self) -> None:
        self._child.abort()

    def close(self) -> None:
        self._child.close()


def open_rpicam(index: int, name: str, wanted: CameraSection, silence_s: float = SILENCE_S) -> ChildReader:
    """A CSI camera through rpicam-vid, which writes JPEG frames. Raises SourceError."""
    program = next(filter(None, map(shutil.which, RPICAM)), None)
    if program is None:
        raise SourceError(f"{name}: there is no rpicam-vid here; install it with: sudo apt install rpicam-apps")
    child = Child(
        [
            program, "--camera", str(index), "--timeout", "0", "--nopreview", "--codec", "mjpeg", "--flush",
            "--width", str(wanted.width), "--height", str(wanted.height), "--framerate", str(wanted.fps), "--output", "-",
        ],
        name,
    )  # fmt: skip
    return ChildReader(child, JpegPipe(child.pipe, name).read, wanted, silence_s)


def python(script: str, *arguments: str) -> list[str]:
    """The command that runs a Python file in this environment, without the file's own folder among the places to import from."""
    return [sys.executable, "-P", script, *arguments]
