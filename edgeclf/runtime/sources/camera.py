"""Frame sources: what `--source` names.

A source is opened to a reader, which blocks until it has the next picture; `runtime/sources/capture.py` runs it in a thread
of its own.
"""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import SourceError
from edgeclf.core.image import EXTENSIONS
from edgeclf.runtime.sources.picamera import open_picamera
from edgeclf.runtime.sources.pipes import StdinReader, open_rpicam
from edgeclf.runtime.sources.readers import FolderReader, SyntheticReader, VideoReader
from edgeclf.runtime.sources.source import Picture, Reader, Source
from edgeclf.runtime.sources.streams import PORTS, answers, redact, scheme_of
from edgeclf.runtime.sources.v4l import Camera, cameras

__all__ = ["KINDS", "SYNTHETIC", "Picture", "Reader", "Source", "cameras", "find_source", "redact"]

SYNTHETIC = "synthetic"
STDIN = ("-", "stdin:")
BOARD = {"picamera2": open_picamera, "rpicam": open_rpicam}
MAX_SIDE = 8192
KINDS = (
    "a camera index, /dev/video*, picamera2:, rpicam:, a video file, a folder or glob of pictures, rtsp://…, http://…, "
    "- or stdin:640x480 for frames on standard input, or synthetic"
)


def find_source(text: str, wanted: CameraSection | None = None, realtime: bool = False, wait: bool = False) -> Source:
    """The source that `text` names; it is not opened, but a missing file or camera is noticed here.

    Video files, folders and standard input are read completely, as fast as possible; with `realtime` they are played at
    their own rate (a folder at `wanted.fps`) and only the newest picture counts. With `wait`, a camera that is not there
    is no error. Raises SourceError.
    """
    wanted = wanted or CameraSection()
    scheme = scheme_of(text)
    if scheme:
        return _stream(text, scheme)
    if text == SYNTHETIC:
        return Source(SYNTHETIC, partial(SyntheticReader, wanted), live=True)
    if text in STDIN or text.startswith("stdin:"):
        return Source("stdin", partial(StdinReader, _size(text)), live=realtime)
    if text.partition(":")[0] in BOARD:
        return _board_camera(text, wanted)
    if text.isdecimal() or text.startswith("/dev/"):
        return _camera(text, wanted, wait)
    return _files(text, 1 / wanted.fps if realtime else 0.0)


def _board_camera(text: str, wanted: CameraSection) -> Source:
    kind, _, index = text.partition(":")
    if index and not re.fullmatch(r"\d{1,3}", index):
        raise SourceError(f"{redact(text)}: expected {kind}: for the first camera, or {kind}:1 for the second")
    name = text.removesuffix(":")
    return Source(name, partial(BOARD[kind], int(index or 0), name, wanted), live=True, reopen=True)


def _camera(text: str, wanted: CameraSection, wait: bool) -> Source:
    if not sys.platform.startswith("linux"):
        if not text.isdecimal():
            raise SourceError(f"{text}: there are no device files here; give the camera's index, as 0")
        return Source(f"camera {text}", partial(VideoReader.of_index, int(text), wanted), live=True, reopen=True)
    device = Path(f"/dev/video{text}" if text.isdecimal() else text)
    camera = Camera(device)
    if not wait:
        camera.check()
    opener: Callable[[], Reader] = partial(VideoReader.of_camera, camera, str(device), wanted)
    return Source(str(device), opener, live=True, reopen=True, plugged=camera.plugged)


def _stream(url: str, scheme: str) -> Source:
    name = redact(url)
    if scheme not in PORTS:
        raise SourceError(f"{name}: cannot read {scheme}:// addresses; expected one of: {', '.join(PORTS)}")
    return Source(name, partial(VideoReader.of_url, url, name), live=True, reopen=True, answers=partial(answers, url))


def _size(text: str) -> tuple[int, int] | None:
    """The size in `stdin:640x480`; None where there is none."""
    if text in STDIN:
        return None
    size = re.fullmatch(r"stdin:(\d{1,5})x(\d{1,5})", text)
    if size is None or not all(1 <= int(side) <= MAX_SIDE for side in size.groups()):
        raise SourceError(f"{redact(text)}: expected stdin: for JPEG frames, or stdin:640x480 for BGR frames of that size")
    return int(size[1]), int(size[2])


def _files(text: str, interval_s: float) -> Source:
    path, live = Path(text).expanduser(), interval_s > 0
    try:
        if path.is_file() and path.suffix.lower() not in EXTENSIONS:
            return Source(text, partial(VideoReader.of_file, path), live=live)
        pictures = _pictures(path)
    except OSError as error:
        raise SourceError(f"{redact(text)}: cannot be read: {error.strerror}") from error
    if not pictures:
        raise SourceError(_nothing_there(path, redact(text)))
    return Source(text, partial(FolderReader, pictures, interval_s), live=live)


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
