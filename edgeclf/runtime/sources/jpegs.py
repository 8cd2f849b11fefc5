"""JPEG frames of cameras: cutting a stream into them, and decoding one with an eye for what cameras leave out."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from edgeclf.core.errors import DataError
from edgeclf.core.image import Pixels, decode
from edgeclf.runtime.sources.source import Picture

START, END = b"\xff\xd8", b"\xff\xd9"
MAX_FRAME_BYTES = 32 << 20
MAX_GAP_BYTES = 1 << 20  # between two frames; more means that this is no stream of JPEG frames
# In entropy-coded data FF is followed by 00 or a restart marker; anything else begins a segment.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_START, _END, _ALONE = 0xD8, 0xD9, 0x01
_CORNER = 4  # rows and columns that an undecoded end is looked for in; fewer than one block has
_GREY = 128  # what the decoder fills blocks with that it has no data for
_MORE_DATA = b"\x12\x34\x56\x78" * 4


def is_jpeg(data: Any) -> bool:
    """Whether an array is the bytes of a JPEG frame, not pixels."""
    return bool(
        data.dtype == np.uint8 and data.size > len(START) and data.size == max(data.shape) and data.flat[0] == 0xFF
        and data.flat[1] == 0xD8
    )  # fmt: skip


def decode_frame(data: bytes, name: str) -> Pixels:
    """A camera's JPEG as BGR uint8 (height, width, 3). Raises DataError, also for a frame whose lower part is missing.

    A USB camera that runs out of bandwidth ends a frame early but properly, and decoders fill the rest with grey. Where the
    last corner is of that grey, the frame is decoded once more with bytes added to its end: a whole frame does not change.
    """
    image = decode(data, name)
    if (image[-_CORNER:, -_CORNER:] == _GREY).all():
        body = data[: data.rfind(END)] if END in data else data
        if (decode(body + _MORE_DATA + END, name) != image).any():
            raise DataError(f"{name}: the lower part of the JPEG is missing")
    return image


def picture_of(data: bytes, name: str, taken_s: float = 0.0) -> Picture:
    """The frame decoded, with the time that this took. Raises DataError."""
    start = time.monotonic()
    image = decode_frame(data, name)
    return Picture(image, taken_s=taken_s, decode_s=time.monotonic() - start)


class Splitter:
    """Cuts bytes as they come into JPEG frames, in bounded memory: `feed`, then `next` until it gives None.

    What lies between frames, such as the headers of a multipart stream, is passed over. Segments are walked, so that an
    embedded preview does not end its frame.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._data = bytearray()
        self._at = 0  # how far the frame at the beginning of the data was walked; 0 before its start was found
        self._gap = 0

    def feed(self, data: bytes | memoryview) -> None:
        self._data += data

    def next(self) -> bytes | None:
        """The next whole frame; None when more bytes are needed.

        Raises DataError for a frame that is cut short or too long, and then goes on behind it; EOFError when so much came
        that is no frame that none will.
        """
        if not self._at and not self._find_start():
            return None
        while marker := _MARKER.search(self._data, self._at):
            kind, after = self._data[marker.start() + 1], marker.end()
            if kind == _END:
                return self._cut(after)
            if kind == _START:
                self._cut(marker.start())
                raise DataError(f"{self._name}: a frame is cut short")
            if kind == _ALONE:
                self._at = after
                continue
            length = int.from_bytes(self._data[after : after + 2], "big")
            if after + max(length, 2) > len(self._data):
                self._at = marker.start()
                break
            self._at = after + max(length, 2)
        else:
            self._at = max(self._at, len(self._data) - 1)
        self._bound()
        return None

    def rest(self) -> int:
        """How many bytes of an unfinished frame are left."""
        return len(self._data) if self._at else 0

    def _find_start(self) -> bool:
        start = self._data.find(START)
        dropped = start if start >= 0 else max(0, len(self._data) - 1)
        self._gap += dropped
        del self._data[:dropped]
        if self._gap > MAX_GAP_BYTES:
            raise EOFError(f"{self._gap >> 20} MB came without a JPEG frame in it")
        if start >= 0:
            self._at, self._gap = len(START), 0
        return start >= 0

    def _cut(self, end: int) -> bytes:
        frame = bytes(self._data[:end])
        del self._data[:end]
        self._at = 0
        return frame

    def _bound(self) -> None:
        if len(self._data) > MAX_FRAME_BYTES:
            self._data.clear()
            self._at = 0
            raise DataError(f"{self._name}: a frame is longer than the limit of {MAX_FRAME_BYTES >> 20} MB")
