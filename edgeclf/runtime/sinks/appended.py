"""A file that grows by whole lines for months: shared by JSON lines and CSV."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from edgeclf.core.errors import StorageError


class Appended:
    """Lines appended to a file; what a full disk cut short is taken back, so that no line is torn but by a kill.

    A file that is moved away or removed while the program runs (log rotation) is begun anew, unless its folder is no longer
    on the same disk: that of an unplugged one must not be filled in its place.
    """

    def __init__(self, path: Path, prepare: Callable[[int], bytes] | None = None) -> None:
        """`prepare` gets the opened file and says what comes before the first new line: the end of a torn line, a header.

        Raises StorageError when the file cannot be opened for appending, and what `prepare` does.
        """
        self._path, self._prepare = path, prepare or end_torn_line
        self._first = b""  # before the first line
        try:
            self._disk = path.parent.stat().st_dev
            self._file = self._open()
        except OSError as error:
            raise StorageError(f"{path}: cannot write: {error.strerror}") from error

    def append(self, data: bytes) -> None:
        """Write whole lines. Raises OSError; then none of them is in the file."""
        self._follow()
        before = os.fstat(self._file)
        left = memoryview(self._first + data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            self._take_back(before, len(self._first) + len(data) - len(left))
            raise
        self._first = b""

    def close(self) -> None:
        os.close(self._file)

    def _open(self) -> int:
        # Reading too where that is allowed, to see how the file ends; a pipe is opened for writing alone.
        pipe = self._path.exists() and not self._path.is_file()
        file = os.open(self._path, (os.O_WRONLY if pipe else os.O_RDWR) | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._first = b"" if pipe else self._prepare(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _follow(self) -> None:
        """Open the path again when another file or none stands there."""
        ours = os.fstat(self._file)
        if not stat.S_ISREG(ours.st_mode):
            return
        try:
            there = self._path.stat()
        except FileNotFoundError:
            there = None
        if there is not None and (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            return
        if self._path.parent.stat().st_dev != self._disk:
            raise OSError(f"{self._path.parent} is not on the same disk as before")
        file = self._open()
        os.close(self._file)
        self._file = file

    def _take_back(self, before: os.stat_result, written: int) -> None:
        if stat.S_ISREG(before.st_mode) and os.fstat(self._file).st_size == before.st_size + written:
            os.ftruncate(self._file, before.st_size)


def end_torn_line(file: int) -> bytes:
    """A line end when the file's last line has none."""
    size = os.fstat(file).st_size
    return b"\n" if size and os.pread(file, 1, size - 1) != b"\n" else b""
