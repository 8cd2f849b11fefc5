"""Files that appear whole or not at all, and where edgeclf keeps what it can make again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeclf.core.errors import ConfigError, StorageError


@contextlib.contextmanager
def writing(path: Path, suffix: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed to `path`, on failure removed.

    It is hidden, and ends as `path` does, or in `suffix`.

    Raises StorageError, naming `path`, when the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix if suffix is None else suffix, dir=path.parent
        )
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success it takes the place of `path` and all in it, on failure it is removed.

    It bears the name of `path`, for those who read meaning into a suffix. Raises StorageError, naming `path`, when the disk
    refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as scratch:
            made, before = Path(scratch) / path.name, Path(scratch) / "before"
            made.mkdir()
            yield made
            for file in sorted(made.rglob("*")):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            if path.exists():
                path.rename(before)
            made.rename(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror or error}") from error


def write_bytes(path: Path, data: bytes, suffix: str | None = None) -> None:
    """Write `data` to `path`, whole or not at all; `suffix` as for `writing`."""
    with writing(path, suffix) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys; NaN and infinity are refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path, who: str = "training") -> Iterator[None]:
    """Hold `folder`, which is made when it is not there, against other processes; a killed one lets go by itself.

    Raises ConfigError when another (`who`) holds it, StorageError when it cannot be made. Leaves no file. Where the system has no
    such locks (some network disks) nothing is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StorageError(f"{folder}: cannot write: {error.strerror or error}") from error
    try:
        _lock(folder, handle, who)
        yield
    finally:
        os.close(handle)


def _lock(folder: Path, handle: int, who: str) -> None:
    try:
        import fcntl  # not on Windows
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"{folder}: another {who} is at work there; wait for it, or choose another --out") from error
    except OSError:
        return  # a disk without locks


def cache_folder() -> Path:
    """Where shards and other remakeable files live: $EDGECLF_CACHE, else $XDG_CACHE_HOME/edgeclf, else ~/.cache/edgeclf."""
    chosen = os.environ.get("EDGECLF_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeclf"
