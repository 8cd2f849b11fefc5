"""Pictures on their way to and from browsers: frames as small JPEGs, and the size of an upload before it is decoded."""

from __future__ import annotations

import time

import cv2

from edgeclf.core.errors import DataError
from edgeclf.core.image import Pixels, decode, resize
from edgeclf.runtime.web.board import Board

MOST_WIDE, MOST_HIGH = 640, 1280
QUALITY = 75
APART_S = 1 / 15  # a picture is made at most so often, however many ask for it
MOST_PIXELS = 16_000_000  # of an upload: 48 MB decoded
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def jpeg(image: Pixels, quality: int = QUALITY) -> bytes:
    """A BGR picture, uint8 (height, width, 3), as JPEG of at most MOST_WIDE by MOST_HIGH pixels."""
    height, width = image.shape[:2]
    scale = min(1.0, MOST_WIDE / width, MOST_HIGH / height)
    if scale < 1:
        image = resize(image, max(1, round(width * scale)), max(1, round(height * scale)))
    done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise DataError("the frame cannot be written as a JPEG")
    return data.tobytes()


class Newest:
    """The newest frame of each source as JPEG, made once for all who ask. For one thread."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._made: dict[int, tuple[int, float, bytes]] = {}

    def picture(self, place: int) -> tuple[int, bytes] | None:
        """(number of the frame, JPEG) of the source at `place`; None before its first frame."""
        made, now = self._made.get(place), time.monotonic()
        if made and now - made[1] < APART_S * 0.8:
            return made[0], made[2]
        shown = self._board.shown()[place]
        if shown.seen is None or shown.image is None:
            return None
        if made is None or made[0] != shown.seen.frame:
            made = shown.seen.frame, now, jpeg(shown.image)
            self._made[place] = made
        return made[0], made[2]


def read_upload(data: bytes) -> Pixels:
    """An uploaded picture as BGR uint8 (height, width, 3). Raises DataError, before decoding when it has too many pixels."""
    width, height = size_of(data)
    if width * height > MOST_PIXELS:
        raise DataError(f"the picture has {width}x{height} pixels; the limit is {MOST_PIXELS // 1_000_000} million")
    return decode(data, "the picture")


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) that a JPEG, PNG or WebP says it has. Raises DataError for anything else."""
    size = _png(data) or _webp(data) or _jpeg_size(data)
    if size is None or min(size) < 1:
        raise DataError("that is not a whole JPEG, PNG or WebP picture")
    return size


def _png(data: bytes) -> tuple[int, int] | None:
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _webp(data: bytes) -> tuple[int, int] | None:
    """After "WebP Container Specification" (RFC 9649) and "VP8 Data Format" (RFC 6386, 9.1)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the frame header (ITU T.81, B.2.2), walking from segment to segment."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _FRAME_HEADERS:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return None
