"""Where shards lie: a folder here, or a prefix in object storage; files appear there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import parse_qs, urlsplit

from edgeclf.core import files
from edgeclf.core.errors import ConfigError, DataError, MissingExtra, StorageError
from edgeclf.core.text import redacted, refusal

COPY_BYTES = 1 << 20
BUCKETS = frozenset(("s3", "gcs", "abfs"))  # which have no folders
SECRETS = frozenset(("access_key", "secret_key", "session_token", "password", "token"))


Data: TypeAlias = bytes | memoryview


class Handle(Protocol):
    """A file that is open for reading, safe to share between threads."""

    def read_at(self, nbytes: int, offset: int, scratch: bytearray | None = None) -> Data:
        """Up to `nbytes` from `offset` on, fewer at the end of the file; it may lie in `scratch`, which is as long at least."""

    def expect(self, nbytes: int, offset: int) -> None:
        """Say what will be asked for next."""


def is_address(data: str) -> bool:
    """Whether `data` names a place in object storage, as s3://bucket/photos does, rather than a path."""
    return "://" in data


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards. `address` is what the user gave; `filesystem` a pyarrow one, None on this machine's disks.

    Reading raises DataError, writing StorageError, each naming the file and saying what the storage answered.
    """

    address: str
    base: str
    filesystem: Any = None

    def where(self, name: str) -> str:
        """A file here, as messages name it."""
        return f"{self.address.partition('?')[0].rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """The whole of a small file."""
        try:
            if self.filesystem is None:
                return Path(self.base, name).read_bytes()
            with self.filesystem.open_input_file(self._path(name)) as file:
                return bytes(file.read())
        except OSError as error:
            raise DataError(f"{self.where(name)}: cannot be read: {refusal(error)}") from error

    def open(self, name: str) -> Handle:
        """A file for reading by ranges."""
        try:
            if self.filesystem is None:
                return _Local(Path(self.base, name))
            return _Remote(self.filesystem.open_input_file(self._path(name)))
        except OSError as error:
            raise DataError(f"{self.where(name)}: cannot be read: {refusal(error)}") from error

    def sizes(self) -> dict[str, int]:
        """Bytes of every file here by name; nothing where there is no such folder."""
        try:
            if self.filesystem is None:
                return {p.name: p.stat().st_size for p in Path(self.base).iterdir() if p.is_file()}
            from pyarrow.fs import FileSelector

            found = self.filesystem.get_file_info(FileSelector(self.base, allow_not_found=True))
            return {info.base_name: int(info.size) for info in found if info.is_file}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise DataError(f"{redacted(self.address)}: cannot be listed: {refusal(error)}") from error

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A temporary path on this machine, whose contents stand under `name` here when the block ends well."""
        if self.filesystem is None:
            with files.writing(Path(self.base, name)) as path:
                yield path
            return
        with tempfile.TemporaryDirectory(prefix="edgeclf-") as scratch:
            path = Path(scratch, name)
            yield path
            try:
                if self.filesystem.type_name not in BUCKETS:
                    self.filesystem.create_dir(self.base, recursive=True)
                with path.open("rb") as source, self.filesystem.open_output_stream(self._path(name)) as target:
                    while piece := source.read(COPY_BYTES):
                        target.write(piece)
            except OSError as error:
                raise StorageError(f"{self.where(name)}: cannot write: {refusal(error)}") from error

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole."""
        with self.writing(name) as path:
            path.write_bytes(data)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold a folder here against other processes; object storage has no such locks. Raises ConfigError, StorageError."""
        with files.locked(Path(self.base)) if self.filesystem is None else contextlib.nullcontext():
            yield

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self.filesystem is None:
                Path(self.base, name).unlink()
            else:
                self.filesystem.delete_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.base}/{name}"


def place(address: str) -> ShardFolder:
    """The place that a path or an address such as s3://bucket/photos names.

    Raises ConfigError for one with a password in it, which would be written down with the run, DataError for one that no
    filesystem takes, and MissingExtra without pyarrow.
    """
    if not is_address(address):
        return ShardFolder(address, address)
    parts = urlsplit(address)
    if parts.password or "@" in parts.netloc or SECRETS & parse_qs(parts.query).keys():
        raise ConfigError(
            f"{redacted(address).partition('?')[0]}: has a key or password in it, which would be kept with the run; "
            "leave it to the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the storage's own settings"
        )
    try:
        from edgeclf.runtime.bulk import places
    except ImportError as error:
        raise MissingExtra.for_extra("bulk", f"{address}: object storage is read through pyarrow") from error
    there = places.place(address)
    return ShardFolder(address, there.path.rstrip("/"), there.system)


class _Local:
    """A file on this machine's disks; closed when it is forgotten."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def expect(self, nbytes: int, offset: int) -> None:
        if hasattr(os, "posix_fadvise"):  # the disk reads it while other pictures are used
            os.posix_fadvise(self._file.fileno(), offset, nbytes, os.POSIX_FADV_WILLNEED)

    def read_at(self, nbytes: int, offset: int, scratch: bytearray | None = None) -> Data:
        if scratch is None:
            return os.pread(self._file.fileno(), nbytes, offset)
        view = memoryview(scratch)[:nbytes]
        return view[: os.preadv(self._file.fileno(), [view], offset)]


class _Remote:
    """A file in object storage; each read is a request."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def expect(self, nbytes: int, offset: int) -> None:
        """Each request is one of its own."""

    def read_at(self, nbytes: int, offset: int, scratch: bytearray | None = None) -> Data:
        return bytes(self._file.read_at(nbytes, offset))
