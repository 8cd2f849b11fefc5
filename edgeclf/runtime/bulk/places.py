"""Place: a file or folder here or on object storage, by pyarrow's filesystems, or fsspec's where pyarrow has none."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from pyarrow import ArrowException, fs

from edgeclf.core.errors import DataError, StorageError
from edgeclf.core.files import write_bytes
from edgeclf.core.text import printable, redacted, refusal

_SCHEME = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
UNFINISHED = ".unfinished"  # of hidden files; a reader that takes *.parquet must not see them
# What storage and its clients raise; ValueError is for an address that is none.
REFUSALS = (OSError, ArrowException, ValueError, ImportError)


@dataclass(frozen=True)
class Place:
    """`path` on the filesystem that `root` names: "" is this machine's, else the user's URL without its path.

    `str()` of it is what messages and results may show: neither user, password nor options of a URL.
    """

    path: str
    root: str = field(default="", repr=False)

    @property
    def local(self) -> bool:
        return not self.root

    def __str__(self) -> str:
        return self.path if self.local else f"{_SCHEME.match(self.root)['scheme']}://{self.path}"  # type: ignore[index]

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.path.rstrip('/')}/{name}" if self.path else name, self.root)

    @property
    def system(self) -> fs.FileSystem:
        return _system(self.root)

    def open(self) -> IO[bytes]:
        """For reading, at any offset. Raises one of REFUSALS."""
        return Path(self.path).open("rb") if self.local else cast("IO[bytes]", self.system.open_input_file(self.path))

    def stream(self) -> IO[bytes]:
        """For reading from the beginning to the end."""
        return Path(self.path).open("rb") if self.local else cast("IO[bytes]", self.system.open_input_stream(self.path))

    def read(self) -> bytes:
        with self.stream() as file:
            return file.read()

    def info(self) -> Any:
        """pyarrow's FileInfo."""
        return self.system.get_file_info(self.path)

    def below(self, recursive: bool = False) -> list[Any]:
        """FileInfo of what lies in this folder; none when it is not there."""
        found = self.system.get_file_info(fs.FileSelector(self.path, allow_not_found=True, recursive=recursive))
        return cast("list[Any]", found)

    def write(self, data: bytes) -> None:
        """Write a file, whole or not at all. Raises StorageError."""
        if self.local:
            write_bytes(Path(self.path), data, suffix=UNFINISHED)
            return
        try:
            with self.system.open_output_stream(self.path) as file:
                file.write(data)
        except REFUSALS as error:
            raise StorageError(f"{self}: cannot write: {refusal(error)}") from error

    def remove(self) -> None:
        """Raises StorageError."""
        try:
            self.system.delete_file(self.path)
        except REFUSALS as error:
            raise StorageError(f"{self}: cannot be removed: {refusal(error)}") from error


def place(text: str) -> Place:
    """A path, or a URL such as s3://bucket/folder. Raises DataError for one that no filesystem takes."""
    found = _SCHEME.match(text)
    if not found:
        return Place(text)
    try:
        path = fs.FileSystem.from_uri(text)[1] if _is_pyarrows(text) else fsspec.core.url_to_fs(text)[1]
    except REFUSALS as error:
        raise DataError(f"{shown(text)}: this address cannot be used: {refusal(error)}") from error
    if found["scheme"] == "file":
        return Place(path)
    where, mark, options = found["rest"].partition("?")
    return Place(path, f"{found['scheme']}://{where.partition('/')[0]}{mark}{options}")


def _is_pyarrows(url: str) -> bool:
    try:
        fs.FileSystem.from_uri(url)
    except ArrowException as error:
        return "Unrecognized filesystem type" not in str(error)
    return True


@cache
def _system(root: str) -> fs.FileSystem:
    """One connection for a root and process."""
    if not root:
        return fs.LocalFileSystem()
    if _is_pyarrows(root):
        return fs.FileSystem.from_uri(root)[0]
    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.core.url_to_fs(root)[0]))


def unreadable(where: object, error: Exception) -> DataError:
    """The DataError for an input that a filesystem refuses."""
    return DataError(f"{where}: cannot be read: {refusal(error)}")


def shown(text: str) -> str:
    """An argument as it may be shown: a URL without user, password and options."""
    return printable(redacted(text).partition("?")[0] if _SCHEME.match(text) else text)
