"""An AVI file of JPEGs as they are (Motion JPEG): OpenCV's own writer would decode and encode each of them again.

After Microsoft's AVI RIFF File Reference: a header whose counts are filled in at the end, one chunk a picture, an index.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

LARGEST = 1 << 30  # bytes; players and the file's own 32-bit offsets allow no more
SCALE = 1000  # of the rate, which may be a fraction
HAS_INDEX = KEY_FRAME = 0x10
_INDEX_ENTRY = struct.Struct("<4s3I")


class Avi:
    """A video being written; it can be played once `finish` has returned."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        """`size` is (width, height) of every picture. Raises OSError, as when there is such a file already."""
        self.size = size
        self._fps = fps
        self._sizes: list[int] = []
        self._total = 0
        self._file = path.open("xb")
        self._file.write(self._header())

    def write(self, jpeg: bytes) -> None:
        """Add a picture, unless the file would become too large. Raises OSError."""
        if self._total + len(jpeg) > LARGEST:
            return
        self._file.write(struct.pack("<4sI", b"00dc", len(jpeg)) + jpeg + b"\0" * (len(jpeg) % 2))
        self._sizes.append(len(jpeg))
        self._total += 8 + len(jpeg) + len(jpeg) % 2

    def finish(self) -> None:
        """Write index and counts, and close. Raises OSError, and then the file is not whole."""
        with self._file:
            at, entries = 4, []  # offsets count from the word `movi`
            for size in self._sizes:
                entries.append(_INDEX_ENTRY.pack(b"00dc", KEY_FRAME, at, size))
                at += 8 + size + size % 2
            self._file.write(_chunk(b"idx1", b"".join(entries)))
            self._file.seek(0)
            self._file.write(self._header())

    def close(self) -> None:
        """Leave it as it is."""
        with contextlib.suppress(OSError):
            self._file.close()

    def _header(self) -> bytes:
        """Everything before the first picture."""
        (width, height), count, largest = self.size, len(self._sizes), max(self._sizes, default=0)
        main = struct.pack(
            "<14I",
            round(1e6 / self._fps),
            round(largest * self._fps),
            0,
            HAS_INDEX,
            count,
            0,
            1,
            largest,
            width,
            height,
            0,
            0,
            0,
            0,
        )
        rate = round(self._fps * SCALE)
        stream = struct.pack(
            "<4s4sI2H8I4H", b"vids", b"MJPG", 0, 0, 0, 0, SCALE, rate, 0, count, largest, 0xFFFFFFFF, 0, 0, 0, width, height
        )
        bitmap = struct.pack("<I2i2H4s5I", 40, width, height, 1, 24, b"MJPG", width * height * 3, 0, 0, 0, 0)
        streams = _list(b"strl", _chunk(b"strh", stream) + _chunk(b"strf", bitmap))
        headers = _list(b"hdrl", _chunk(b"avih", main) + streams)
        pictures = struct.pack("<4sI4s", b"LIST", 4 + self._total, b"movi")
        length = 4 + len(headers) + len(pictures) + self._total + 8 + _INDEX_ENTRY.size * count
        return struct.pack("<4sI4s", b"RIFF", length, b"AVI ") + headers + pictures


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack("<4sI", name, len(data)) + data


def _list(name: bytes, data: bytes) -> bytes:
    return _chunk(b"LIST", name + data)
