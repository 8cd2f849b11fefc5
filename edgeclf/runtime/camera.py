"""Frame sources: what `--source` names, and how each is opened and read.

A reader blocks until it has the next picture; `runtime/capture.py` runs it in a thread of its own.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import SourceError
from edgeclf.core.image import EXTENSIONS, Pixels, decode, picture_bytes

# FFmpeg writes addresses, credentials included, into its log; V4L2 waits 10 s for a camera that was pulled out.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "5")

import cv2

SCHEMES = ("rtsp", "rtsps", "http", "https")
SYNTHETIC = "synthetic"
NETWORK_MS = 5000
KINDS = "a camera index, /dev/video*, a video file, a folder or glob of pictures, rtsp://…, http://…, or synthetic"


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture from a source: BGR uint8 (height, width, 3), and its file name where it has one.

    `taken_s` is when the source gave it, by the monotonic clock, before it was decoded; 0 means when it was read.
    `decode_s` is what decoding took, where it can be told apart.
    """

    image: Pixels
    name: str = ""
    taken_s: float = 0.0
    decode_s: float = 0.0


class Reader(Protocol):
    """An open source.

    `interval_s` is the time between two pictures when they are to be played at the source's own rate, 0 when the source
    sets the pace itself. `note` says, once `read` gave None, what was wrong with the end, as `after 14 of 30 frames`.
    """

    interval_s: float
    note: str

    def read(self) -> Picture | None:
        """The next picture; None at the end. Raises DataError for one that is broken, SourceError when the source is lost."""

    def close(self) -> None:
        """Release the camera, file or connection; called by the thread that reads."""


@dataclass(frozen=True)
class Source:
    """Something that pictures come from, not opened yet.

    `name` is fit to be shown: credentials are removed. `live`: only the newest picture counts, else every one does.
    `reopen`: when it is lost, it is opened again. `device` is the device file of a camera.
    """

    name: str
    open: Callable[[], Reader]
    live: bool
    reopen: bool = False
    device: Path | None = None


def find_source(text: str, wanted: CameraSection | None = None, realtime: bool = False) -> Source:
    """The source that `text` names; it is not opened, but a missing file or camera is noticed here.

    Video files and folders are read completely, as fast as possible; with `realtime` they are played at their own rate
    (a folder at `wanted.fps`) and only the newest picture counts. Raises SourceError.
    """
    wanted = wanted or CameraSection()
    if text == SYNTHETIC:
        return Source(SYNTHETIC, partial(SyntheticReader, wanted), live=True)
    if text.isdecimal():
        return _camera(int(text), wanted)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme:
        return _stream(text, scheme[1].lower())
    if text.startswith("/dev/"):
        return _camera(Path(text), wanted)
    interval_s = 1 / wanted.fps if realtime else 0.0
    path = Path(text).expanduser()
    try:
        if path.is_file() and path.suffix.lower() not in EXTENSIONS:
            return Source(text, partial(VideoReader.of_file, path), live=realtime)
        pictures = _pictures(path)
    except OSError as error:
        raise SourceError(f"{redact(text)}: cannot be read: {error.strerror}") from error
    if not pictures:
        raise SourceError(_nothing_there(path, redact(text)))
    return Source(text, partial(FolderReader, pictures, interval_s), live=realtime)


def redact(text: str) -> str:
    """`text` as it may be shown: an address without user, password, query, fragment and `name=value` path parts.

    A password may hold any character, unescaped too, so everything up to the last `@` is hidden; and everything at all
    when it cannot be told where the host begins.
    """
    scheme, mark, address = text.partition("://")
    hidden, at, host = (address if mark else text).rpartition("@")
    if not mark:
        return f"***@{_bare(host)}" if at and ":" in hidden else text
    if at and re.search(r"[?#]", hidden):
        return f"{scheme}://***"
    return f"{scheme}://{'***@' if at else ''}{_bare(host)}"


def _bare(address: str) -> str:
    """Host and path without query, fragment and path parts such as `password=x`."""
    bare = re.split(r"[?#]", address, maxsplit=1)[0]
    kept = re.sub(r"[^/]*=.*", "***", bare, count=1, flags=re.DOTALL)
    return kept + ("?***" if len(bare) < len(address) else "")


def cameras(dev: Path = Path("/dev"), names: Path = Path("/sys/class/video4linux")) -> list[str]:
    """The video devices of this machine, as `/dev/video0 (HD Webcam)`, in order of their number."""
    found = [p for p in dev.glob("video*") if p.name[5:].isdecimal()]
    return [_named(path, names / path.name / "name") for path in sorted(found, key=lambda p: int(p.name[5:]))]


def _named(path: Path, name: Path) -> str:
    try:
        return f"{path} ({name.read_text(errors='replace').strip()})"
    except OSError:
        return str(path)


def _camera(which: int | Path, wanted: CameraSection) -> Source:
    device = Path(f"/dev/video{which}") if isinstance(which, int) else which
    if not sys.platform.startswith("linux"):
        return Source(f"camera {which}", partial(VideoReader.of_camera, which, wanted), live=True, reopen=True)
    if not device.exists():
        found = ", ".join(cameras()) or "none; plug one in, or enable it in the board's settings"
        raise SourceError(f"{device}: no such camera; found: {found}")
    if not os.access(device, os.R_OK | os.W_OK):
        raise SourceError(f"{device}: no permission; add yourself to its group: sudo usermod -aG video $USER, then log in again")
    return Source(str(device), partial(VideoReader.of_camera, device, wanted), live=True, reopen=True, device=device)


def _stream(url: str, scheme: str) -> Source:
    name = redact(url)
    if scheme not in SCHEMES:
        raise SourceError(f"{name}: cannot read {scheme}:// addresses; expected one of: {', '.join(SCHEMES)}")
    return Source(name, partial(VideoReader.of_url, url, name), live=True, reopen=True)


def _pictures(path: Path) -> list[Path]:
    """The pictures under a folder, of a glob, or the one picture; hidden ones left out, sorted."""
    if path.is_file():
        return [path]
    found = [path.glob("**/*")] if path.is_dir() else [map(Path, glob.iglob(str(path), recursive=True))]  # noqa: PTH207
    wanted = (p for p in found[0] if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and p.is_file())
    return sorted(wanted)


def _nothing_there(path: Path, name: str) -> str:
    if path.is_dir():
        return f"{name}: no pictures in this folder; expected files such as *.jpg or *.png"
    if glob.has_magic(name):
        return f"{name}: no picture matches"
    return f"{name}: no such file or folder; a source is {KINDS}"


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
        return Picture(decode(picture_bytes(path), str(path)), str(path))

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
    """A camera, a video file or a network stream, read by OpenCV."""

    def __init__(self, capture: Any, name: str, trouble: str, endless: bool, rated: bool) -> None:
        """`capture` is a cv2.VideoCapture, released again when it gives no picture; `trouble` ends the message then.

        `endless`: a picture that does not come means that the source is lost, unless it is known how many there are.
        `rated`: to be played at the rate that the video names.
        """
        self.note = ""
        self._capture, self._name = capture, name
        self._total = _known_count(capture)
        self._endless = endless and not self._total
        self.interval_s = 1 / _rate(capture) if rated and not self._endless else 0.0
        self._read = 0
        self._first = self._next() if capture.isOpened() else None
        if self._first is None:
            capture.release()
            raise SourceError(f"{name}: {trouble}")

    @classmethod
    def of_file(cls, path: Path) -> VideoReader:
        capture = cv2.VideoCapture(str(path), _file_backend())
        return cls(capture, str(path), "OpenCV cannot read this as a video, or no frame in it can be decoded", False, True)

    @classmethod
    def of_camera(cls, which: int | Path, wanted: CameraSection) -> VideoReader:
        if isinstance(which, int):
            capture, name = cv2.VideoCapture(which), f"camera {which}"
        else:
            capture, name = cv2.VideoCapture(str(which), cv2.CAP_V4L2), str(which)
        # The format first, because a camera offers its sizes and rates by format; MJPG is what USB has room for.
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, wanted.width)
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, wanted.height)
        capture.set(cv2.CAP_PROP_FPS, wanted.fps)
        return cls(capture, name, "gives no picture; is another program using it, or is it no camera?", True, False)

    @classmethod
    def of_url(cls, url: str, name: str) -> VideoReader:
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, NETWORK_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, NETWORK_MS]
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits)
        trouble = f"no video came within {NETWORK_MS // 1000} s; check address, network, user and password (write @ as %40)"
        return cls(capture, name, trouble, True, True)

    def read(self) -> Picture | None:
        image = self._first if self._first is not None else self._next()
        self._first = None
        if image is not None:
            self._read += 1
            return Picture(image)
        if self._endless:
            raise SourceError(f"{self._name}: no more pictures came")
        # The count in a file's header is an estimate in some formats, so a few missing frames mean nothing.
        if self._read < self._total - max(2, self._total // 50):
            self.note = f"after {self._read} of {self._total} frames; the file seems to be cut short"
        return None

    def close(self) -> None:
        self._capture.release()

    def _next(self) -> Pixels | None:
        try:
            there, image = self._capture.read()
        except cv2.error as error:
            raise SourceError(f"{self._name}: OpenCV failed while reading (code {error.code})") from error
        return image if there and image is not None and image.size else None


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
