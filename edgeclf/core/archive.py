"""Listing folders and archives entry by entry, and reading one picture's bytes; nothing is ever unpacked to disk."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn, TypeAlias

from edgeclf.core.errors import DataError
from edgeclf.core.image import EXTENSIONS, MAX_ENCODED_BYTES

MAX_ENTRIES = 5_000_000

# Name with `/` (folders end in one), size, mark, offset, stored bytes, method. The mark is what tells a changed picture
# from the old one for nothing: the CRC in a zip, the modification time elsewhere. The last three are zero in a folder.
Entry: TypeAlias = tuple[str, int, int, int, int, int]

_END, _END64, _CENTRAL, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x01\x02", b"PK\x03\x04"
_END_BYTES, _LOCATOR_BYTES, _END64_BYTES, _CENTRAL_BYTES, _LOCAL_BYTES = 22, 20, 56, 46, 30
_LOCAL_NAMES = 256  # what is read ahead for name and extra field of a local header
_MAX_COMMENT = 65_535
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


def folder_entries(top: Path) -> Iterator[Entry]:
    """Pictures and folders below `top`; hidden ones are passed over.

    Links are followed, since data sets are often made of them; a folder that was visited is not entered again.
    """
    visited: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(top, onerror=_unreadable, followlinks=True):
        here = Path(folder).stat()
        if (here.st_dev, here.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((here.st_dev, here.st_ino))
        subfolders[:] = sorted(d for d in subfolders if not hidden(d))
        relative = Path(folder).relative_to(top)
        if relative.parts:
            yield relative.as_posix() + "/", 0, 0, 0, 0, 0
        for name in files:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in EXTENSIONS:
                continue
            try:
                status = path.stat()
            except FileNotFoundError as error:
                raise DataError(f"{path}: is a link to nowhere; remove it or restore what it leads to") from error
            except OSError as error:
                _unreadable(error)
            if stat.S_ISREG(status.st_mode):
                yield (relative / name).as_posix(), status.st_size, status.st_mtime_ns, 0, 0, 0


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def tar_entries(path: Path) -> Iterator[Entry]:
    """Entries of an uncompressed tar. Raises DataError for a damaged or compressed one."""
    try:
        with tarfile.open(path, "r:") as archive:
            count = 0
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # do not keep what was passed
                count = _counted(path, count)
                if hidden(member.name) or not (member.isfile() or member.isdir()):
                    continue
                name = PurePosixPath(member.name).as_posix()  # without "./", which `tar -C photos .` puts before every name
                if name == ".":
                    continue
                name += "/" if member.isdir() else ""
                yield name, member.size, int(member.mtime), member.offset_data, member.size, 0
    except tarfile.TarError as error:
        hint = f"; unpack the compression first: gunzip {path.name}" if path.suffix in (".gz", ".tgz") else ""
        raise DataError(f"{path}: cannot be read as a plain .tar{hint}") from error


def zip_entries(path: Path) -> Iterator[Entry]:
    """Entries of a zip archive, streamed from its central directory (APPNOTE 4.3.12; zip64 included).

    The standard library builds an object for every entry, which for 60,000 pictures costs more memory than all of
    ingest. Raises DataError for a damaged or encrypted archive, or one with too many or too large entries.
    """
    with path.open("rb") as file:
        yield from zip_entries_in(file, path)


def zip_entries_in(file: IO[bytes], path: object) -> Iterator[Entry]:
    """As `zip_entries`, of an open file that `path` names in messages."""
    count, offset = _central_directory(path, file)
    if count > MAX_ENTRIES:
        raise DataError(f"{path}: {count} entries are more than the limit of {MAX_ENTRIES}")
    file.seek(offset)
    for _ in range(count):
        entry = _central_entry(path, file)
        if not hidden(entry[0]):
            yield entry


def _central_directory(path: object, file: IO[bytes]) -> tuple[int, int]:
    """(number of entries, offset of the first), from the end records."""
    size = file.seek(0, os.SEEK_END)
    tail_at = max(0, size - _END_BYTES - _MAX_COMMENT)
    file.seek(tail_at)
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) - end < _END_BYTES:
        raise DataError(f"{path}: the zip archive is damaged: no end record")
    count, length, offset = struct.unpack_from("<HII", tail, end + 10)
    border = tail_at + end
    if count == _FULL16 or offset == _FULL32:
        file.seek(max(0, border - _LOCATOR_BYTES))
        locator = file.read(_LOCATOR_BYTES)
        if locator[:4] == b"PK\x06\x07":
            border = int(struct.unpack_from("<Q", locator, 8)[0])
            file.seek(min(border, size))
            record = file.read(_END64_BYTES)
            if record[:4] != _END64 or len(record) < _END64_BYTES:
                raise DataError(f"{path}: the zip archive is damaged: no zip64 end record")
            count, length, offset = struct.unpack_from("<QQQ", record, 32)
    if offset + length > border:
        raise DataError(f"{path}: the zip archive is damaged: its directory is cut short")
    return int(count), int(offset)


def _central_entry(path: object, file: IO[bytes]) -> Entry:
    header = file.read(_CENTRAL_BYTES)
    if header[:4] != _CENTRAL or len(header) < _CENTRAL_BYTES:
        raise DataError(f"{path}: the zip archive is damaged: its directory is cut short")
    flags, method = struct.unpack_from("<HH", header, 8)
    crc, stored, size, name_bytes, extra_bytes, comment_bytes = struct.unpack_from("<IIIHHH", header, 16)
    offset = struct.unpack_from("<I", header, 42)[0]
    name = file.read(name_bytes).decode("utf-8" if flags & 0x800 else "cp437", "replace")
    name = name.replace("\\", "/")  # some Windows programs write those
    extra = file.read(extra_bytes)
    file.seek(comment_bytes, os.SEEK_CUR)
    if _FULL32 in (size, stored, offset):
        size, stored, offset = _zip64_sizes(extra, size, stored, offset)
    if flags & 1 and not hidden(name):
        raise DataError(f"{path}: {name}: is encrypted; unpack it first")
    if size > MAX_ENCODED_BYTES and not hidden(name):
        raise DataError(f"{path}: {name}: {size >> 20} MB is more than the limit of {MAX_ENCODED_BYTES >> 20} MB")
    return name, size, crc, offset, stored, method


def _zip64_sizes(extra: bytes, *sizes: int) -> tuple[int, int, int]:
    """The 64-bit values of those of (size, stored, offset) that are saturated (APPNOTE 4.5.3)."""
    values, at = b"", 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = extra[at + 4 : at + 4 + length]
        at += 4 + length
    found = []
    for size in sizes:
        if size == _FULL32 and len(values) >= 8:
            size, values = struct.unpack_from("<Q", values)[0], values[8:]
        found.append(size)
    return found[0], found[1], found[2]


def hidden(name: str) -> bool:
    """True for dot files and the resource forks that macOS puts into archives."""
    return any((part.startswith(".") and part != ".") or part == "__MACOSX" for part in name.split("/"))


def _counted(path: Path, count: int) -> int:
    if count >= MAX_ENTRIES:
        raise DataError(f"{path}: more than {MAX_ENTRIES} entries")
    return count + 1


def range_bytes(file: IO[bytes], offset: int, size: int) -> bytes:
    """`size` bytes from `offset` on; fewer at the end of the file."""
    size = min(size, MAX_ENCODED_BYTES)
    if isinstance(file, io.BufferedReader) and hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)  # one call where seek and read are two
    file.seek(offset)
    return file.read(size)


def zip_bytes(file: IO[bytes], name: str, offset: int, stored: int, method: int) -> bytes:
    """The bytes of the zip entry whose local header is at `offset`. Raises DataError, naming `name`."""
    entry = range_bytes(file, offset, _LOCAL_BYTES + _LOCAL_NAMES + stored)
    if entry[:4] != _LOCAL or len(entry) < _LOCAL_BYTES:
        raise DataError(f"{name}: the zip archive is damaged there")
    start = _LOCAL_BYTES + sum(struct.unpack_from("<HH", entry, 26))
    far = start > _LOCAL_BYTES + _LOCAL_NAMES  # its names are longer than was read ahead for them
    data = range_bytes(file, offset + start, stored) if far else entry[start : start + stored]
    if method == zipfile.ZIP_STORED:
        return data
    if method != zipfile.ZIP_DEFLATED:
        raise DataError(f"{name}: zip method {method} is not supported; store or deflate it")
    try:
        return zlib.decompressobj(-15).decompress(data, MAX_ENCODED_BYTES)
    except zlib.error as error:
        raise DataError(f"{name}: the zip archive is damaged there") from error
