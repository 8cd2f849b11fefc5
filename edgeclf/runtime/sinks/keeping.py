"""A folder that a run of months keeps pictures in: never on the wrong disk, never past its limits, never a torn file."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from edgeclf.core.errors import StorageError

MB = 1 << 20
NAME_BYTES = 60
ABANDONED_S = 3600.0
_KEPT = re.compile(r"\d{8}T\d{6}\.\d{6}Z_.+\.(?:jpg|json|avi)")
_PART = re.compile(r"\.edgeclf-(\d+)-\d+\.part\.\w+")


class Folder:
    """Files named by time, written whole or not at all, the oldest removed when all take more than `max_mb`, if there is one.

    Only files that carry such names are counted and removed. Where less than `min_free_mb` of the disk would stay free,
    where the folder is gone, or where another disk stands in its place, nothing is written: that raises OSError, and is
    looked at afresh the next time. A disk that comes back to its mount point is taken up again. Used by several threads.
    """

    def __init__(self, path: Path, min_free_mb: int = 0, max_mb: int | None = 1000) -> None:
        """Makes the folder where it is missing and removes what a killed run left half-written. Raises StorageError."""
        self._floor, self._most = min_free_mb * MB, math.inf if max_mb is None else max_mb * MB
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._kept: dict[str, int] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
            self.path = path.resolve()
            self._mount = mount_point(self.path)
            there = self.path.stat()
            self._identity = there.st_dev, there.st_ino
            self._take_stock()
            probe = self.path / self.part(".tmp")
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error

    @property
    def count(self) -> int:
        """How many names are taken; files that belong together share one."""
        return len(self._kept)

    def part(self, suffix: str) -> str:
        """A name for a file of that kind while it is being written; swept at the next start if it is left."""
        return f".edgeclf-{os.getpid()}-{next(self._numbers)}.part{suffix}"

    def check(self, more_bytes: int = 0) -> None:
        """Raise OSError unless so much can be written now."""
        with self._lock, self._opened(more_bytes):
            pass

    def keep(self, files: Mapping[str, bytes]) -> None:
        """Write files that belong together; they appear in their order, each whole. Raises OSError, and then none does."""
        size = sum(map(len, files.values()))
        parts = {self.part(Path(name).suffix): name for name in files}
        with self._lock, self._opened(size) as folder:
            try:
                for part, name in parts.items():
                    _write(folder, part, files[name])
                self._reveal(folder, parts, size)
            except OSError as error:
                raise OSError(f"{self.path}: {error.strerror or error}") from error

    def adopt(self, part: str, name: str) -> None:
        """Give a finished file that was written under the name `part` its own. Raises OSError, and then it is removed."""
        with self._lock, self._opened() as folder:
            try:
                file = os.open(part, os.O_RDONLY, dir_fd=folder)
                try:
                    os.fsync(file)
                    size = os.fstat(file).st_size
                finally:
                    os.close(file)
                self._reveal(folder, {part: name}, size)
            except OSError as error:
                raise OSError(f"{self.path}: {error.strerror or error}") from error

    def discard(self, part: str) -> None:
        """Remove an unfinished file, if that can be done."""
        with contextlib.suppress(OSError):
            (self.path / part).unlink()

    @contextlib.contextmanager
    def _opened(self, more_bytes: int = 0) -> Iterator[int]:
        """A handle of the folder, so that what follows happens in the one that was looked at."""
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise OSError(f"{self.path} is gone; is its disk mounted?") from error
        except OSError as error:
            raise OSError(f"{self.path} is no folder any more: {error.strerror}") from error
        try:
            self._recognise(os.fstat(folder))
            disk = os.fstatvfs(folder)
            free = disk.f_bavail * disk.f_frsize
            if self._floor and free - more_bytes < self._floor:
                raise OSError(
                    f"{self.path}: {free // MB} MB of the disk are free, and {self._floor // MB} are to stay so (min_free_mb)"
                )
            yield folder
        finally:
            os.close(folder)

    def _recognise(self, there: os.stat_result) -> None:
        """Raise OSError when this is not the folder of the start, nor another on its disk or on the disk that came back."""
        if (there.st_dev, there.st_ino) == self._identity:
            return
        came_back = self._mount != Path("/") and mount_point(self.path) == self._mount
        if there.st_dev != self._identity[0] and not came_back:
            raise OSError(f"{self.path} is on another disk than at the start; is its own mounted?")
        self._take_stock()
        self._identity = there.st_dev, there.st_ino

    def _take_stock(self) -> None:
        sizes: dict[str, int] = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                if _KEPT.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        stem = _stem(entry.name)
                        sizes[stem] = sizes.get(stem, 0) + entry.stat(follow_symlinks=False).st_size
                elif (part := _PART.fullmatch(entry.name)) and _is_abandoned(entry, int(part[1])):
                    self.discard(entry.name)
        self._kept = dict(sorted(sizes.items()))
        self._total = sum(sizes.values())

    def _reveal(self, folder: int, parts: Mapping[str, str], size: int) -> None:
        """Make room for `size` bytes and rename; on failure nothing of `parts` stays."""
        revealed: list[str] = []
        try:
            self._make_room(folder, size)
            for part, name in parts.items():
                os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
                revealed.append(name)
            os.fsync(folder)
        except OSError:
            for name in (*parts, *revealed):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
            raise
        stem = _stem(next(iter(parts.values())))
        self._kept[stem] = self._kept.get(stem, 0) + size
        self._total += size

    def _make_room(self, folder: int, size: int) -> None:
        while self._kept and self._total + size > self._most:
            stem = next(iter(self._kept))
            for suffix in (".jpg", ".json", ".avi"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(stem + suffix, dir_fd=folder)
            self._total -= self._kept.pop(stem)


def mount_point(path: Path) -> Path:
    """The folder, `path` or above it, that the disk of `path` is mounted at."""
    disk = path.stat().st_dev
    while path != path.parent and path.parent.stat().st_dev == disk:
        path = path.parent
    return path


def stem(time_s: float, source: str, label: str) -> str:
    """The name, without suffix, of what belongs to that moment: UTC, source and label, fit for any file system."""
    moment = datetime.fromtimestamp(time_s, UTC)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond:06d}Z_{plain_name(source)}_{plain_name(label)}"


def plain_name(text: str) -> str:
    """`text` with a hyphen for everything but letters, digits, hyphens and underscores, cut to NAME_BYTES in UTF-8."""
    plain = re.sub(r"[^\w-]+", "-", text).strip("-_")
    return plain.encode()[:NAME_BYTES].decode(errors="ignore") or "x"


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _write(folder: int, name: str, data: bytes) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=folder)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    except OSError:
        os.unlink(name, dir_fd=folder)
        raise
    finally:
        os.close(file)


def _is_abandoned(entry: os.DirEntry[str], process: int) -> bool:
    """Whether nobody is writing that file any more; another process may be keeping pictures in the same folder."""
    if process == os.getpid() or not Path(f"/proc/{process}").exists():
        return True
    with contextlib.suppress(FileNotFoundError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED_S
    return False
