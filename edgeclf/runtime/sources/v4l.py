"""Cameras of Linux, `/dev/video*`: which there are, under which name one stays the same, and why one cannot be opened."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from edgeclf.core.errors import SourceError
from edgeclf.core.text import printable

DEV, NAMES, PROC = Path("/dev"), Path("/sys/class/video4linux"), Path("/proc")
MOST_HOLDERS = 3  # that a message names
STABLE = ("v4l/by-id", "v4l/by-path")  # a camera's own name, else the socket that it is plugged into


def cameras(dev: Path = DEV, names: Path = NAMES) -> list[str]:
    """The video devices of this machine, as `/dev/video0 (HD Webcam)`, in order of their number."""
    found = [p for p in dev.glob("video*") if p.name[5:].isdecimal()]
    return [_named(path, names / path.name / "name") for path in sorted(found, key=lambda p: int(p.name[5:]))]


def stable_name(device: Path, dev: Path = DEV) -> Path:
    """The link that goes on naming this camera when it comes back under another number; `device` where there is none."""
    with contextlib.suppress(OSError):
        if device.is_symlink():
            return device
        wanted = device.resolve(strict=True)
        for folder in STABLE:
            for link in sorted((dev / folder).glob("*")):
                if link.resolve() == wanted:
                    return link
    return device


def plugged(device: Path) -> object:
    """What is there now, None for nothing; another value after the camera was plugged in again."""
    try:
        status = device.stat()
    except OSError:
        return None
    return status.st_ino, status.st_rdev


class Camera:
    """A camera by its device file; once it was found, by the name that stays with it, so that no other takes its place."""

    def __init__(self, device: Path, dev: Path = DEV, names: Path = NAMES) -> None:
        self._asked, self._dev, self._names = device, dev, names
        self._pinned: Path | None = None
        if device.exists():
            self._pinned = stable_name(device, dev)

    @property
    def device(self) -> Path:
        """What is opened: the stable name where one is known."""
        return self._pinned or self._asked

    def plugged(self) -> object:
        return plugged(self.device)

    def check(self) -> Path:
        """The device file, when it is there and may be opened. Raises SourceError that says what to do."""
        try:
            os.close(os.open(self.device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            raise SourceError(f"{self._asked}: {self._reason(error)}") from error
        if self._pinned is None:
            self._pinned = stable_name(self._asked, self._dev)
        return self.device

    def _reason(self, error: OSError) -> str:
        if isinstance(error, FileNotFoundError):
            found = ", ".join(cameras(self._dev, self._names)) or "none; plug one in, or enable it in the board's settings"
            return f"{'no such camera' if self.device == self._asked else 'this camera is gone'}; found: {found}"
        if isinstance(error, PermissionError):
            return no_permission(self.device)
        if error.errno == errno.EBUSY:
            return in_use(self.device)
        return f"cannot be opened: {error.strerror}"


def no_permission(device: Path) -> str:
    """What to do where the device file may not be opened: the group to join."""
    group = "video"
    with contextlib.suppress(ImportError, KeyError, OSError):
        import grp

        group = grp.getgrgid(device.stat().st_gid).gr_name
    if group == "root":
        return "no permission, and its group is root; give it to the group video: a udev rule, or sudo chgrp video and chmod g+rw"
    return f"no permission; add yourself to its group: sudo usermod -aG {group} $USER, then log in again"


def in_use(device: Path, proc: Path = PROC) -> str:
    """Who uses the camera, as far as this user may see it."""
    holders = list(holders_of(device, proc))
    if holders:
        more = f" and {len(holders) - MOST_HOLDERS} more" if len(holders) > MOST_HOLDERS else ""
        return f"is in use by {', '.join(holders[:MOST_HOLDERS])}{more}; end that program first"
    return f"another program seems to use it; see which: sudo fuser -v {os.path.realpath(device)}"


def holders_of(device: Path, proc: Path = PROC) -> Iterator[str]:
    """The other processes that hold the device open, as `motion (pid 812)`; those of other users cannot be seen."""
    wanted = os.path.realpath(device)
    for process in proc.glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            if any(os.path.realpath(handle) == wanted for handle in (process / "fd").iterdir()):
                yield f"{printable((process / 'comm').read_text(errors='replace').strip())} (pid {process.name})"


def _named(path: Path, name: Path) -> str:
    try:
        return f"{path} ({printable(name.read_text(errors='replace').strip())})"
    except OSError:
        return str(path)
