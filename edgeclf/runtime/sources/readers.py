"""Readers of pictures in files, of a synthetic picture, and of what OpenCV opens: video files, streams and cameras."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import DataError, SourceError
from edgeclf.core.image import Pixels, decode, picture_bytes
from edgeclf.runtime.sources.jpegs import is_jpeg, picture_of
from edgeclf.runtime.sources.source import Picture
from edgeclf.runtime.sources.v4l import Camera, holders_of, in_use

# FFmpeg writes addresses, credentials included, into its log; V4L2 waits 10 s for a camera that was pulled out.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "5")
# OpenCV's own choice, and without it FFmpeg takes 20 frames to find out a rate that nothing here needs: 2 s until the first.
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_flags;prefer_tcp|fpsprobesize;2")

import cv2

NETWORK_MS = 5000
# After its time limit on a read, OpenCV gives what the decoder held back, one old picture after each further limit.
LATE_S = 0.9 * NETWORK_MS / 1000


class FolderReader:
    """Pictures from files, in the given order."""

    note = ""

    def __init__(self, paths: list[Path], interval_s: float = 0.0) -> None:
        self.interval_s = interval_s
        self._paths = iter(paths)

    def read(self) -> Picture | None:
        path = next(self._paths, None)
        if path is None:
            return None
        data = picture_bytes(path)
        start = time.monotonic()
        image = decode(data, str(path))
        return Picture(image, str(path), decode_s=time.monotonic() - start)

    def close(self) -> None:
        self._paths = iter(())


class SyntheticReader:
    """A disc that moves over a coloured field: frame i is the same on every machine, no frame equals the one before."""

    note = ""

    def __init__(self, wanted: CameraSection) -> None:
        self.interval_s = 1 / wanted.fps
        across = np.linspace(0, 255, wanted.width, dtype=np.uint8)[None, :]
        down = np.linspace(0, 255, wanted.height, dtype=np.uint8)[:, None]
        shape = (wanted.height, wanted.width)
        self._field = np.dstack([np.broadcast_to(across, shape), np.broadcast_to(down, shape), np.full(shape, 96, np.uint8)])
        self._index = 0

    def read(self) -> Picture | None:
        image, i = self._field.copy(), self._index
        height, width = image.shape[:2]
        colour = (i * 5 % 256, i * 3 % 256, i * 7 % 256)
        cv2.circle(image, (i * 4 % width, height // 2), min(height, width) // 4, colour, -1)
        self._index += 1
        return Picture(image)

    def close(self) -> None:
        """Nothing is held."""


class VideoReader:
    """A camera, a video file or a network stream, read by OpenCV; compressed frames are decoded here where it gives them."""

    def __init__(self, capture: Any, name: str, trouble: str, endless: bool, rated: bool, remark: str = "") -> None:
        """`capture` is a cv2.VideoCapture, released again when it gives no picture; `trouble` ends the message then.

        `endless`: a picture that does not come means that the source is lost, unless it is known how many there are.
        `rated`: to be played at the rate that the video names.
        """
        self.note, self.remark = "", remark
        self._capture, self._name = capture, name
        self._total = _known_count(capture)
        self._endless = endless and not self._total
        self.interval_s = 1 / _rate(capture) if rated and not self._endless else 0.0
        self._read = 0
        self._first: Picture | DataError | None = None
        try:
            self._first = self._next_or_error() if capture.isOpened() else None
        finally:
            if self._first is None:
                capture.release()
        if self._first is None:
            raise SourceError(f"{name}: {trouble}")

    @classmethod
    def of_file(cls, path: Path) -> VideoReader:
        capture = cv2.VideoCapture(str(path), _file_backend())
        _ask_for_packets(capture)
        return cls(capture, str(path), "OpenCV cannot read this as a video, or no frame in it can be decoded", False, True)

    @classmethod
    def of_index(cls, index: int, wanted: CameraSection) -> VideoReader:
        """A camera where there are no device files."""
        return _of_camera(cls, cv2.VideoCapture(index), f"camera {index}", "gives no picture", wanted)

    @classmethod
    def of_camera(cls, camera: Camera, name: str, wanted: CameraSection) -> VideoReader:
        device = camera.check()
        capture = cv2.VideoCapture(str(device), cv2.CAP_V4L2)
        try:
            return _of_camera(cls, capture, name, "", wanted)
        except SourceError as error:
            used = in_use(device) if any(holders_of(device)) else "is another program using it, or is it no camera?"
            raise SourceError(f"{name}: gives no picture; {used}") from error

    @classmethod
    def of_url(cls, url: str, name: str) -> VideoReader:
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, NETWORK_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, NETWORK_MS]
        start = time.monotonic()
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
        _ask_for_packets(capture)
        waited = (time.monotonic() - start) * 1000 > NETWORK_MS / 2
        trouble = f"no video came within {NETWORK_MS // 1000} s" if waited else "refused, or gives no video"
        return cls(capture, name, f"{trouble}; check address, network, user and password (write @ as %40)", True, True)

    def read(self) -> Picture | None:
        given, self._first = self._first, None
        if given is None:
            given = self._next_or_error()
        self._read += given is not None
        if isinstance(given, DataError):
            raise given
        if given is not None:
            return given
        if self._endless:
            raise SourceError(f"{self._name}: no more pictures came")
        # The count in a file's header is an estimate in some formats, so a few missing frames mean nothing.
        if self._read < self._total - max(2, self._total // 50):
            self.note = f"after {self._read} of {self._total} frames; the file seems to be cut short"
        return None

    def close(self) -> None:
        self._capture.release()

    def _next_or_error(self) -> Picture | DataError | None:
        """The next picture, what is wrong with it, or None when none comes. Raises SourceError."""
        asked_s = time.monotonic()
        try:
            if not self._capture.grab():
                return None
            taken_s = time.monotonic()
            if self._endless and taken_s - asked_s > LATE_S:
                return None
            there, data = self._capture.retrieve()
            decode_s = time.monotonic() - taken_s
        except cv2.error as error:
            raise SourceError(f"{self._name}: OpenCV failed while reading (code {error.code})") from error
        if not there or data is None or not data.size:
            return DataError(f"{self._name}: a picture without content") if self._endless else None
        taken_s = taken_s if self._endless else 0.0
        if not is_jpeg(data):
            return Picture(data, taken_s=taken_s, decode_s=decode_s)
        try:
            return picture_of(data.tobytes(), f"{self._name}: frame {self._read}", taken_s)
        except DataError as error:
            return error


def _of_camera(reader: type[VideoReader], capture: Any, name: str, trouble: str, wanted: CameraSection) -> VideoReader:
    # The format first, because a camera offers its sizes and rates by format; MJPG is what USB has room for.
    capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*wanted.pixel_format))
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, wanted.width)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, wanted.height)
    capture.set(cv2.CAP_PROP_FPS, wanted.fps)
    if _fourcc(capture) in ("MJPG", "JPEG"):
        capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
    return reader(capture, name, trouble, True, False, given_instead(capture, wanted))


def given_instead(capture: Any, wanted: CameraSection) -> str:
    """What an opened camera gives, when it is not what was asked for; empty when it is, or does not say."""
    width, height = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    rate, pixels = float(capture.get(cv2.CAP_PROP_FPS)), _fourcc(capture)
    differs = (
        (width > 0 and height > 0 and (width, height) != (wanted.width, wanted.height))
        or (rate > 0 and abs(rate - wanted.fps) >= 1)
        or (pixels != "" and pixels != wanted.pixel_format)
    )
    if not differs:
        return ""
    rated = f" at {rate:g} fps" if rate > 0 else ""
    asked = f"{wanted.width}x{wanted.height} {wanted.pixel_format} at {wanted.fps} fps"
    return f"gives {width}x{height} {pixels or 'pixels'}{rated} instead of {asked}"


def _fourcc(capture: Any) -> str:
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    letters = code.to_bytes(4, "little").decode("latin-1") if 0 < code < 1 << 32 else ""
    return letters if letters.isprintable() else ""


def _ask_for_packets(capture: Any) -> None:
    """Compressed frames instead of pixels from FFmpeg, where every frame is a JPEG: a broken one is seen as such then."""
    if capture.isOpened() and _fourcc(capture) == "MJPG":
        capture.set(cv2.CAP_PROP_FORMAT, -1)


def _known_count(capture: Any) -> int:
    """How many frames the source says that it has; 0 when it does not know, as for a stream."""
    count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return int(count) if 0 < count < 1e9 else 0


def _rate(capture: Any) -> float:
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0.01 <= rate <= 1000 else 25.0


def _file_backend() -> int:
    """FFmpeg where OpenCV was built with it; otherwise OpenCV would also try a file name as a numbered picture series."""
    from cv2 import videoio_registry

    return cv2.CAP_FFMPEG if cv2.CAP_FFMPEG in videoio_registry.getStreamBackends() else cv2.CAP_ANY


def as_bgr(image: Pixels) -> Pixels:
    """Pixels as they come from a source, as BGR uint8 (height, width, 3). Raises DataError for what is no picture."""
    if image.dtype == np.uint8 and image.size and image.ndim in (2, 3):
        channels = 1 if image.ndim == 2 else image.shape[2]
        if channels == 3:
            return image
        if channels in (1, 4) and min(image.shape[:2]) > 1:
            converted: Any = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR)
            bgr: Pixels = converted
            return bgr
    raise DataError(f"a frame of {image.dtype} {image.shape} is no picture")
