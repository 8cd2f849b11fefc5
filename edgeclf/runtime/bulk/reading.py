"""Reading the pictures of a part of the listing, encoded, one after another; what cannot be read is told, not raised."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import PurePosixPath
from typing import IO, Any, TypeAlias

from pyarrow import parquet

from edgeclf.core import archive
from edgeclf.core.errors import DataError
from edgeclf.core.image import EXTENSIONS, MAX_ENCODED_BYTES, picture_bytes
from edgeclf.core.text import refusal
from edgeclf.runtime.bulk.inputs import FILE, STREAM, TABLE, ZIP, Item, picture_column, suffix_of
from edgeclf.runtime.bulk.places import REFUSALS, Place, place, shown, unreadable

Picture: TypeAlias = tuple[str, bytes | DataError]
"""What results call it, and its encoded bytes or why there are none."""

AHEAD = 16  # requests to object storage at once, in each process
BLOCK = 4 << 20  # of an archive on object storage, read at once
ROWS = 16  # of a table in memory at once
MEMBERS = archive.MAX_ENTRIES
BUCKETS = "s3", "gs"  # whose paths begin with the bucket, so that one connection reaches all of them
STORAGE = *BUCKETS, "abfs", "abfss"


class Reader:
    """Reads ranges of a list of items; keeps the last container open. Not safe to share between threads."""

    def __init__(self, roots: tuple[str, ...], column: str | None) -> None:
        """`roots` are the filesystems that items refer to."""
        self._roots, self._column = roots, column
        self._pool: ThreadPoolExecutor | None = None
        self._opened: tuple[Place, IO[bytes]] | None = None
        self._cursor: tuple[Place, int, int, Iterator[Any]] | None = None  # table, row group, next row in it, the rows

    def pictures(self, items: list[Item], start: int, stop: int | None) -> Iterator[Picture]:
        """The pictures `start` to `stop` of those that `items` stand for; of a STREAM all."""
        if items[0].kind == STREAM:
            yield from self._streamed(items[0])
            return
        begin = 0
        chosen: list[Item] = []
        for item in items:
            first, last = max(start - begin, 0), min((item.pictures if stop is None else stop - begin), item.pictures)
            if item.kind == TABLE and first < last:
                yield from self._fetched(chosen)
                chosen = []
                yield from self._rows(item, first, last)
            elif first < last:
                chosen.append(item)
            begin += item.pictures
        yield from self._fetched(chosen)

    def _fetched(self, items: list[Item]) -> Iterator[Picture]:
        """Pictures that are files or lie in archives."""
        for far, some in groupby(items, lambda item: item.kind == FILE and bool(self._roots[item.root])):
            each = self._together if far else map
            yield from each(self._one, some)

    def _together(self, read: Callable[[Any], Picture], what: Iterable[Any]) -> Iterator[Picture]:
        """Many at once, from object storage, where each takes a round trip."""
        self._pool = self._pool or ThreadPoolExecutor(AHEAD)
        return self._pool.map(read, what)

    def _one(self, item: Item) -> Picture:
        path, root = item.name.decode("utf-8", "surrogateescape"), self._roots[item.root]
        if item.kind == FILE:
            where = Place(path, root)
            return _told(str(where)), _whole(where, item.size)
        container = self._container(item.container, root)
        name = _told(f"{container}/{path}")
        try:
            file = self._open(container)
            if item.kind == ZIP:
                return name, archive.zip_bytes(file, name, item.offset, item.stored, item.method)
            return name, archive.range_bytes(file, item.offset, item.stored)
        except DataError as error:
            return name, error
        except REFUSALS as error:
            return name, unreadable(name, error)

    def _container(self, path: str, root: str) -> Place:
        """The archive of that path: the one that is open, nearly always."""
        last = self._opened[0] if self._opened else None
        return last if last and (last.path, last.root) == (path, root) else Place(path, root)

    def _open(self, container: Place) -> IO[bytes]:
        if not self._opened or self._opened[0] is not container:
            self.close()
            self._opened = container, container.open() if container.local else _Blocks(container.open())  # type: ignore[assignment]
        return self._opened[1]  # type: ignore[index]

    def close(self) -> None:
        """Close what is open."""
        if self._opened:
            self._opened[1].close()
        self._opened = self._cursor = None

    def _rows(self, item: Item, first: int, last: int) -> Iterator[Picture]:
        """Rows of one row group. Reading goes on where the range before ended, since a row group has no way in but its start."""
        root = self._roots[item.root]
        table = Place(item.container, root)
        number = item.method + first  # `stored` rows of the row group come before the item

        def is_far(cell: object) -> bool:
            return isinstance(cell, str) and (bool(root) or "://" in cell)

        try:
            for far, some in groupby(self._given(table, item.offset, item.stored + first, item.stored + last), is_far):
                numbered = ((table, i, cell) for i, cell in enumerate(some, number))
                each = self._together if far else map
                for picture in each(_cell, numbered):
                    yield picture
                    number += 1
        except (*REFUSALS, DataError) as error:
            for rest in range(number, item.method + last):
                yield f"{_told(str(table))}#{rest}", unreadable(table, error)

    def _given(self, table: Place, group: int, start: int, stop: int) -> Iterator[Any]:
        cursor, self._cursor = self._cursor, None  # whoever stops in the middle leaves none
        if not cursor or cursor[:2] != (table, group) or cursor[2] > start:
            cursor = table, group, 0, self._cells(table, group)
        _, _, at, cells = cursor
        yield from islice(cells, start - at, stop - at)
        self._cursor = table, group, stop, cells

    def _cells(self, table: Place, group: int) -> Iterator[Any]:
        with table.open() as file, parquet.ParquetFile(file, memory_map=False, pre_buffer=False) as opened:
            name, how = picture_column(opened.schema_arrow, self._column, table)
            for batch in opened.iter_batches(ROWS, [group], [name]):
                for value in batch.column(0):
                    yield (value["bytes"].as_py() if value.is_valid else None) if how == "struct" else value.as_py()

    def _streamed(self, item: Item) -> Iterator[Picture]:
        """Pictures of a shard that is read from its beginning to its end."""
        shard = Place(item.container, self._roots[item.root])
        try:
            with shard.stream() as stream, tarfile.open(fileobj=stream, mode="r|") as opened:
                for count, member in enumerate(opened):
                    opened.members = []  # type: ignore[attr-defined]  # do not keep what was passed
                    if count >= MEMBERS:
                        raise DataError(f"{shard}: more than {MEMBERS} entries")
                    if _is_picture(member):
                        yield _member(shard, opened, member)
        except (tarfile.TarError, EOFError, DataError, *REFUSALS) as error:
            yield _told(str(shard)), DataError(f"{shard}: cannot be read to its end as a plain .tar: {refusal(error)}")


def _is_picture(member: tarfile.TarInfo) -> bool:
    return member.isfile() and suffix_of(member.name) in EXTENSIONS and not archive.hidden(member.name)


def _member(shard: Place, opened: tarfile.TarFile, member: tarfile.TarInfo) -> Picture:
    name = f"{shard}/{PurePosixPath(member.name).as_posix()}"
    if member.size > MAX_ENCODED_BYTES:
        return _told(name), DataError(f"{name}: {member.size >> 20} MB is more than the limit of {MAX_ENCODED_BYTES >> 20} MB")
    file = opened.extractfile(member)
    return _told(name), file.read() if file else DataError(f"{name}: is no file")


def _cell(row: tuple[Place, int, object]) -> Picture:
    """A picture in a table (table, number of the row, what stands there), or one whose path stands there."""
    table, number, given = row
    name = f"{_told(str(table))}#{number}"
    if isinstance(given, bytes):
        return name, given
    if not isinstance(given, str) or not given:
        return name, DataError(f"{name}: the cell is empty")
    try:
        where = _named_in(table, given)
    except DataError as error:
        return name, error
    return _told(str(where)), _whole(where, None)


def _named_in(table: Place, path: str) -> Place:
    """A path counts from the folder of the table. A URL is of the table's own storage, with its credentials, or of STORAGE.

    Raises DataError for others: whoever wrote the table must not send this machine to addresses of any kind.
    """
    scheme, mark, rest = path.partition("://")
    if not mark:
        return Place(path if path.startswith("/") and table.local else str(PurePosixPath(table.path).parent / path), table.root)
    if scheme in BUCKETS and scheme == table.root.partition("://")[0]:
        return Place(re.sub(r"^[^/@]*@", "", rest.partition("?")[0]), table.root)
    if scheme not in STORAGE:
        raise DataError(f"{table}: names {shown(path)}; expected a path, or a URL of {', '.join(STORAGE)}")
    return place(path)


def _whole(where: Place, size: int | None) -> bytes | DataError:
    """A picture that is a file; `size` where it is known."""
    try:
        if where.local:
            return picture_bytes(where.path)
        if (where.info().size or 0 if size is None else size) > MAX_ENCODED_BYTES:
            return DataError(f"{where}: larger than the limit of {MAX_ENCODED_BYTES >> 20} MB")
        return where.read()
    except DataError as error:
        return error
    except REFUSALS as error:
        return unreadable(where, error)


def _told(name: str) -> str:
    """A name as text that Parquet can hold."""
    return name.encode("utf-8", "replace").decode()


class _Blocks:
    """A file on object storage for reading at any offset, a large block at a time, since entries lie side by side."""

    def __init__(self, file: Any) -> None:
        self._file, self._at, self._start, self._block = file, 0, 0, b""

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, size: int) -> bytes:
        if not self._start <= self._at <= self._at + size <= self._start + len(self._block):
            self._file.seek(self._at)
            self._start, self._block = self._at, self._file.read(max(size, BLOCK))
        begin = self._at - self._start
        self._at += size
        return bytes(self._block[begin : begin + size])

    def close(self) -> None:
        self._file.close()
