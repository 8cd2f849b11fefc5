"""The only preprocessing there is, for training and for the device: decode, fit, resize, channel order.

The result is uint8; no arithmetic follows on the device, because networks see (pixel - 128) / 128 and an int8 file's
input quantisation is exactly that. Every step gives the same bytes on x86 and on ARM: halving and
`INTER_LINEAR_EXACT` are integer arithmetic in OpenCV, where plain `INTER_LINEAR` and `INTER_AREA` differ by CPU.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

# A limit before any memory is taken; 134 megapixels is more than any camera, less than a decompression bomb.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 27))
os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")

from edgeclf.core.errors import ConfigError, DataError, MissingExtra

try:
    import cv2  # reads the two variables above when it is imported
except ImportError as error:  # its build with windows links against libraries that a bare system lacks
    raise MissingExtra(
        f"OpenCV cannot be loaded ({error}); install what it links to: apt-get install libgl1 libglib2.0-0; "
        "or take the build without windows: pip uninstall opencv-python, then pip install opencv-python-headless"
    ) from error

Pixels: TypeAlias = npt.NDArray[np.uint8]
Fit = Literal["stretch", "crop", "pad"]
Colour = Literal["rgb", "bgr", "grey"]

MEAN = STD = 128.0
MOST = 1e6  # of mean and std; beyond it float32 has no room for pixels
MAX_ENCODED_BYTES = 256 << 20
# In entropy-coded data FF is followed by 00 or a restart marker; anything else begins a segment.
_MARKER, _END_OF_IMAGE, _MARKERS_ALONE = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]"), 0xD9, frozenset((0x01, 0xD8))
PAD_VALUE = 128  # the pixel that the network sees as 0
EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
    ".jp2", ".avif", ".hdr", ".exr",
})  # fmt: skip


class Box(NamedTuple):
    """A rectangle of pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class ImageSpec:
    """What a network wants of a picture: the part of the model card that preprocessing follows.

    `width` and `height` are pixels. `fit`: `stretch` ignores the aspect ratio (as phone libraries do), `crop` takes the
    largest centred rectangle of the wanted shape, `pad` shows the whole picture between borders of value 128.
    `colour` is the channel order; `grey` gives one channel. `mean` and `std` are what the network was trained with:
    it sees (pixel - mean) / std.
    """

    width: int
    height: int
    fit: Fit = "stretch"
    colour: Colour = "rgb"
    mean: float = MEAN
    std: float = STD

    def __post_init__(self) -> None:
        if not (1 <= self.width <= 4096 and 1 <= self.height <= 4096):
            raise ConfigError(f"image size {self.width}x{self.height}: each side must lie between 1 and 4096 pixels")
        if self.fit not in get_args(Fit):
            raise ConfigError(f"fit {self.fit!r}: expected one of: {', '.join(get_args(Fit))}")
        if self.colour not in get_args(Colour):
            raise ConfigError(f"colour {self.colour!r}: expected one of: {', '.join(get_args(Colour))}")
        if not (abs(self.mean) <= MOST and 1 / MOST <= self.std <= MOST):
            raise ConfigError(f"mean {self.mean:g}, std {self.std:g}: must be finite, below {MOST:g}, and std above {1 / MOST:g}")

    @property
    def channels(self) -> int:
        return 1 if self.colour == "grey" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a prepared picture."""
        return self.height, self.width, self.channels


def decode(data: bytes, name: str = "picture") -> Pixels:
    """Decode an encoded picture to (height, width, 3) BGR uint8.

    EXIF orientation is applied, grey becomes three channels, 16 bits become 8, and transparency is laid over white.
    Raises DataError for anything that is not a whole picture, a truncated JPEG included.
    """
    if not data:
        raise DataError(f"{name}: is empty")
    if len(data) > MAX_ENCODED_BYTES:
        raise DataError(f"{name}: {len(data) >> 20} MB is more than the limit of {MAX_ENCODED_BYTES >> 20} MB")
    if _is_truncated_jpeg(data):
        raise DataError(f"{name}: the JPEG is cut short")
    encoded = np.frombuffer(data, np.uint8)
    try:
        bgr: Any = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        alpha = _alpha(encoded) if _may_have_alpha(data) else None
    except cv2.error as error:
        raise DataError(f"{name}: cannot be decoded ({_reason(error)})") from error
    if bgr is None or bgr.size == 0:
        raise DataError(f"{name}: is not a picture that OpenCV can read")
    if alpha is not None and alpha.shape == bgr.shape[:2]:
        return _over_white(bgr, alpha)
    return _pixels(bgr)


def read_picture(path: Path) -> Pixels:
    """The picture in a file, as `decode` gives it. Raises DataError for anything that is not a readable picture file."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: {'is no file' if path.exists() else 'no such file'}; give a picture")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return decode(picture_bytes(path), str(path))


def picture_bytes(path: Path | str) -> bytes:
    """The bytes of an encoded picture, of a bounded size. Raises DataError, from the OSError when the system refused."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # a file object takes two system calls for each of these
        try:
            size, data = os.fstat(file).st_size, b""
            if size <= MAX_ENCODED_BYTES:
                data = os.read(file, size + 1)
                while len(data) != size and len(data) <= MAX_ENCODED_BYTES and (more := os.read(file, MAX_ENCODED_BYTES)):
                    data += more  # it grows, or says nothing of its size, as a pipe
        finally:
            os.close(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if max(size, len(data)) > MAX_ENCODED_BYTES:
        raise DataError(f"{path}: larger than the limit of {MAX_ENCODED_BYTES >> 20} MB")
    return data


def prepare(frame_bgr: Pixels, spec: ImageSpec) -> Pixels:
    """Fit, resize and reorder one BGR frame; returns contiguous uint8 of `spec.shape`.

    `frame_bgr` is (height, width, 3), or (height, width[, 1]) grey, or (height, width, 4) BGRA, uint8.
    Raises DataError for anything else.
    """
    frame_bgr = _three_channels(frame_bgr)
    if spec.fit == "crop":
        frame_bgr = _centre_crop(frame_bgr, spec.width, spec.height)
    resized = (_pad if spec.fit == "pad" else _resize)(frame_bgr, spec.width, spec.height)
    # Colour after the resize: four times cheaper from 1080p than before it.
    return _in_colour(resized, spec.colour)


def placement(rows: int, columns: int, spec: ImageSpec) -> tuple[Box, Box]:
    """(the part of a picture of that size that the network sees, the part of its input that this fills), as `prepare` fits it."""
    whole, full = Box(0, 0, columns, rows), Box(0, 0, spec.width, spec.height)
    if spec.fit == "crop":
        return _crop_box(rows, columns, spec.width, spec.height), full
    return whole, _pad_box(rows, columns, spec.width, spec.height) if spec.fit == "pad" else full


def resize(image: Pixels, width: int, height: int) -> Pixels:
    """Resize without aliasing and with the same bytes on every CPU.

    Halve (2x2 mean, rounded) while the picture stays at least twice as large as wanted, then `INTER_LINEAR_EXACT`:
    a mip-map walk (Williams 1983). An odd last row or column is dropped before a halving.
    """
    resized = _resize(image, width, height)
    return resized if image.ndim == 2 or image.shape[2] != 3 else _in_colour(resized, "bgr")


def _resize(image: Pixels, width: int, height: int) -> Pixels:
    """As `resize`; a picture of three channels may come back with a fourth that means nothing."""
    while image.shape[1] >= 2 * width and image.shape[0] >= 2 * height:
        image = _halve(image)
    if image.shape[:2] == (height, width):
        return image
    if image.ndim == 3 and image.shape[2] == 3:
        # OpenCV interpolates four channels in two thirds of the time of three, to the same bytes.
        image = _pixels(cv2.cvtColor(image, cv2.COLOR_BGR2BGRA))
    return _linear(image, width, height)


def _halve(image: Pixels) -> Pixels:
    """The mean of 2x2: integer arithmetic in AREA, for which OpenCV has a path of its own."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return _pixels(cv2.resize(image[: height * 2, : width * 2], (width, height), interpolation=cv2.INTER_AREA))


def _linear(image: Pixels, width: int, height: int) -> Pixels:
    """Halve the side that is still twice as long, where both weights of LINEAR_EXACT are 1/2; then interpolate."""
    while (half := image.shape[1] // 2) >= width:
        image = _exact(image[:, : half * 2], half, image.shape[0])
    while (half := image.shape[0] // 2) >= height:
        image = _exact(image[: half * 2], image.shape[1], half)
    return image if image.shape[:2] == (height, width) else _exact(image, width, height)


def _exact(image: Pixels, width: int, height: int) -> Pixels:
    return _pixels(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT))


def _in_colour(image: Pixels, colour: Colour) -> Pixels:
    """(height, width, channels) of BGR, or BGRA whose last channel is dropped, contiguous."""
    four = image.shape[2] == 4
    if colour == "rgb":
        return _pixels(cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if four else cv2.COLOR_BGR2RGB))
    if colour == "grey":
        return _pixels(cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY if four else cv2.COLOR_BGR2GRAY)[:, :, None])
    return _pixels(cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)) if four else np.ascontiguousarray(image)


def _three_channels(frame: Pixels) -> Pixels:
    if frame.dtype != np.uint8 or frame.ndim not in (2, 3) or frame.size == 0:
        raise DataError(f"a frame must be uint8 of (height, width, channels), not {frame.dtype} of {frame.shape}")
    channels = 1 if frame.ndim == 2 else frame.shape[2]
    if channels == 3:
        return frame
    if channels == 1:
        return _pixels(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    if channels == 4:
        return _over_white(frame[:, :, :3], frame[:, :, 3])
    raise DataError(f"a frame has 1, 3 or 4 channels, not {channels}")


def _centre_crop(image: Pixels, width: int, height: int) -> Pixels:
    """The largest centred rectangle with the shape width:height."""
    box = _crop_box(image.shape[0], image.shape[1], width, height)
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _pad(image: Pixels, width: int, height: int) -> Pixels:
    """The whole picture, its shape kept, centred on a field of PAD_VALUE."""
    box = _pad_box(image.shape[0], image.shape[1], width, height)
    canvas = np.full((height, width, 3), PAD_VALUE, np.uint8)
    canvas[box.top : box.top + box.height, box.left : box.left + box.width] = resize(image, box.width, box.height)
    return canvas


def _crop_box(rows: int, columns: int, width: int, height: int) -> Box:
    """The part of a picture of (rows, columns) that `crop` keeps for an input of width x height, in integer arithmetic."""
    if columns * height > rows * width:
        keep = max(1, rows * width // height)
        return Box((columns - keep) // 2, 0, keep, rows)
    keep = max(1, columns * height // width)
    return Box(0, (rows - keep) // 2, columns, keep)


def _pad_box(rows: int, columns: int, width: int, height: int) -> Box:
    """The part of an input of width x height that a picture of (rows, columns) fills under `pad`."""
    if columns * height > rows * width:
        inner = width, max(1, rows * width // columns)
    else:
        inner = max(1, columns * height // rows), height
    return Box((width - inner[0]) // 2, (height - inner[1]) // 2, *inner)


def _is_truncated_jpeg(data: bytes) -> bool:
    """True when a JPEG has no end-of-image marker of its own; one in an embedded preview does not count.

    Segments are walked, since phones append films to pictures, in which any bytes occur.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] == b"\xff\xd9":
        return False
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = found.group()[1], found.end()
        if marker == _END_OF_IMAGE:
            return False
        if marker not in _MARKERS_ALONE:
            at += int.from_bytes(data[at : at + 2], "big")
    return True


def _may_have_alpha(data: bytes) -> bool:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data[25:26] in (b"\x04", b"\x06") or b"tRNS" in data[:4096]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return data[12:16] in (b"VP8X", b"VP8L")
    return data[:4] in (b"II*\0", b"MM\0*", b"GIF8")


def _alpha(encoded: Any) -> Pixels | None:
    picture: Any = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
        return None
    alpha = picture[:, :, 3]
    return _pixels((alpha >> 8 if alpha.dtype == np.uint16 else alpha).astype(np.uint8))


def _over_white(bgr: Pixels, alpha: Pixels) -> Pixels:
    weight = alpha[:, :, None].astype(np.uint16)
    return _pixels(((bgr * weight + (255 - weight) * 255 + 127) // 255).astype(np.uint8))


def _pixels(array: Any) -> Pixels:
    """OpenCV's result under its true type; the stubs promise any integer or float."""
    pixels: Pixels = array
    return pixels


def _reason(error: cv2.error) -> str:
    return str(getattr(error, "err", "") or error).strip().splitlines()[0][:120]
