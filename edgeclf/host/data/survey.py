"""A survey: every picture of a data set read once, as it lies there, with what is needed to judge the set and find doubles."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.catalogue import Catalogue, bytes_reader, reader
from edgeclf.core.errors import DataError
from edgeclf.core.image import ImageSpec, Pixels, decode, prepare
from edgeclf.core.progress import Report
from edgeclf.runtime.engine import cores

THUMB = 16  # pixels a side of the small grey picture that stands for one in comparisons
CHUNK = 64

_SMALL = ImageSpec(THUMB, THUMB, colour="grey")
_START_OF_FRAME = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_SIGNATURES = {
    b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF",
    b"P1": "PNM", b"P2": "PNM", b"P3": "PNM", b"P4": "PNM", b"P5": "PNM", b"P6": "PNM", b"\0\0\0\x0cjP": "JPEG 2000",
}  # fmt: skip
_PNG_MODES = {0: "grey", 2: "colour", 3: "palette", 4: "grey with transparency", 6: "colour with transparency"}
_JPEG_MODES = {1: "grey", 3: "colour", 4: "CMYK"}


@dataclass(frozen=True, eq=False)
class Survey:
    """One row for each of `indices`, int64 (pictures,), of a catalogue; the readable ones are told by `readable`, bool.

    `sizes` is int32 (pictures, 2): width and height as shown, after EXIF orientation. `formats` are such as "JPEG, colour".
    `digests` is uint64 (pictures,), of the decoded pixels: equal digests are equal pictures, however encoded. `thumbs` is
    uint8 (pictures, THUMB, THUMB), grey, the whole picture stretched. `broken` lists (name, reason).
    """

    indices: npt.NDArray[np.int64]
    readable: npt.NDArray[np.bool_]
    sizes: npt.NDArray[np.int32]
    formats: tuple[str, ...]
    digests: npt.NDArray[np.uint64]
    thumbs: Pixels
    broken: tuple[tuple[str, str], ...]


def survey(catalogue: Catalogue, indices: npt.NDArray[np.int64] | None = None, progress: Report | None = None) -> Survey:
    """Read the pictures `indices` (None: all) on all cores; what is kept of each takes about 300 bytes."""
    chosen = np.arange(len(catalogue)) if indices is None else np.asarray(indices, np.int64)
    found = Survey(
        chosen, np.zeros(len(chosen), bool), np.zeros((len(chosen), 2), np.int32), (), np.zeros(len(chosen), np.uint64),
        np.zeros((len(chosen), THUMB, THUMB), np.uint8), (),
    )  # fmt: skip
    formats, reasons = [""] * len(chosen), dict[int, str]()
    local, done = threading.local(), 0

    def work(first: int) -> int:
        if not hasattr(local, "read"):
            local.read = _reader(catalogue)
        rows = range(first, min(first + CHUNK, len(chosen)))
        for row in rows:
            try:
                frame, formats[row] = local.read(int(chosen[row]))
                found.thumbs[row] = prepare(frame, _SMALL)[:, :, 0]
            except DataError as error:
                reasons[row] = _reason(error, catalogue, int(chosen[row]))
                continue
            found.sizes[row], found.digests[row], found.readable[row] = frame.shape[1::-1], _digest(frame), True
        return len(rows)

    with ThreadPoolExecutor(cores()) as pool:
        for count in pool.map(work, range(0, len(chosen), CHUNK)):
            done += count
            if progress:
                progress(done, len(chosen))
    broken = tuple((catalogue.names[chosen[row]], reasons[row]) for row in sorted(reasons))
    return Survey(chosen, found.readable, found.sizes, tuple(formats), found.digests, found.thumbs, broken)


def describe(data: bytes) -> str:
    """Format and colour mode of an encoded picture by its first bytes, such as "PNG, palette"; "other" when neither is known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        flags = {b"VP8X": data[20:21], b"VP8L": data[24:25]}.get(data[12:16], b"")
        return f"WebP, colour{' with transparency' if flags and flags[0] & 0x10 else ''}"
    kind = next((name for signature, name in _SIGNATURES.items() if data.startswith(signature)), "other")
    mode = _png_mode(data) if kind == "PNG" else _jpeg_mode(data) if kind == "JPEG" else ""
    return f"{kind}, {mode}" if mode else kind


def _png_mode(data: bytes) -> str:
    mode = _PNG_MODES.get(data[25] if len(data) > 25 else -1, "")
    return f"{mode}, 16 bits" if mode and data[24] == 16 else mode


def _jpeg_mode(data: bytes) -> str:
    """By the number of components in the frame header (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _START_OF_FRAME:
            return _JPEG_MODES.get(data[at + 9], "")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return ""


def _reader(catalogue: Catalogue) -> Callable[[int], tuple[Pixels, str]]:
    """A function that gives picture `i` decoded, and its format; not safe to share between threads."""
    if catalogue.arrays is not None:
        read = reader(catalogue)
        form = f"array, {'colour' if catalogue.arrays.ndim == 4 and catalogue.arrays.shape[3] == 3 else 'grey'}"
        return lambda i: (read(i), form)
    encoded = bytes_reader(catalogue)

    def both(i: int) -> tuple[Pixels, str]:
        data = encoded(i)
        return decode(data, catalogue.names[i]), describe(data)

    return both


def _reason(error: DataError, catalogue: Catalogue, i: int) -> str:
    """The message without the name of picture `i`, which stands beside it."""
    name = catalogue.names[i]
    return str(error).removeprefix(f"{catalogue.source / name}: ").removeprefix(f"{name}: ")


def _digest(frame: Any) -> int:
    return int.from_bytes(hashlib.blake2b(repr(frame.shape).encode() + frame.tobytes(), digest_size=8).digest(), "little")
