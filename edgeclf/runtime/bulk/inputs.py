"""Listing what is to be classified, in an order that is the same at every start: pictures, archives, shards, tables.

Nothing but names is read. A row is one picture, or a range of a table, or a whole shard; millions of rows pass through as
tuples of a moment, sorted where they must be in Arrow's compact columns.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
from pyarrow import parquet

from edgeclf.core import archive
from edgeclf.core.errors import DataError
from edgeclf.core.image import EXTENSIONS
from edgeclf.runtime.bulk.places import REFUSALS, Place, shown, unreadable

FILE, ZIP, TAR, STREAM, TABLE = range(5)
CONTAINERS = {".zip": ZIP, ".tar": TAR, ".parquet": TABLE}
COLUMNS = "image", "jpg", "jpeg", "png", "picture", "bytes", "content", "path", "file", "file_name", "url"
UNKNOWN = 0  # pictures of a shard that nobody has read yet
WILD = re.compile(r"[*?\[]")
BATCH = 65_536


class Item(NamedTuple):
    """A row of the listing.

    `root` is the index of a filesystem among those of `roots_of`, `container` the archive or table ("" for a picture that is
    a file), `name` a path, or an entry's name inside. `mark` tells a changed picture from the old one (`core.archive.Entry`).
    `offset`, `stored` and `method` say where it lies: in an archive as there, in a table the row group, the first row in it
    and the number of that row in the file. `pictures` is how many pictures the row stands for, UNKNOWN for a STREAM.
    """

    root: int
    kind: int
    container: str
    name: bytes
    size: int
    mark: int
    offset: int = 0
    stored: int = 0
    method: int = 0
    pictures: int = 1


SCHEMA = pa.schema([
    ("root", pa.int32()), ("kind", pa.int8()), ("container", pa.string()), ("name", pa.binary()), ("size", pa.int64()),
    ("mark", pa.int64()), ("offset", pa.int64()), ("stored", pa.int64()), ("method", pa.int64()), ("pictures", pa.int64()),
])  # fmt: skip


def listing(places: Iterable[Place], column: str | None) -> Iterator[Item]:
    """Every input, in the order of the arguments, sorted by name below a folder or a pattern, as they lie in an archive.

    `column` names the one of tables that holds pictures or their paths; None looks for one of COLUMNS. Raises DataError for
    an argument that names nothing, or cannot be read.
    """
    places = tuple(places)
    numbers = {root: number for number, root in enumerate(roots_of(places))}
    for place in places:
        try:
            yield from _argument(numbers[place.root], place, column)
        except REFUSALS as error:
            raise unreadable(place, error) from error


def roots_of(places: Iterable[Place]) -> tuple[str, ...]:
    """The filesystems that are referred to, each once: with the secrets of their URLs, so for no file."""
    return tuple(dict.fromkeys(place.root for place in places))


def _argument(number: int, place: Place, column: str | None) -> Iterator[Item]:
    is_pattern = bool(WILD.search(place.path)) and not _exists(place)
    found = _matching(number, place, column) if is_pattern else _found(number, place, column, asked_for=True)
    first = next(found, None)
    if first is None:
        hint = "" if is_pattern else f"; for shards or tables in it give a pattern: '{place}/*.tar'"
        raise DataError(f"{place}: no pictures there{hint}")
    yield first
    yield from found


def _exists(place: Place) -> bool:
    return bool(place.info().type)


def _matching(number: int, place: Place, column: str | None) -> Iterator[Item]:
    """What a pattern names; what is hidden, and of other kinds, is passed over."""
    for name in _sorted_names(_local_matches(place) if place.local else _remote_matches(place)):
        yield from _found(number, Place(name, place.root), column, asked_for=False)


def _local_matches(place: Place) -> Iterator[str]:
    return glob.iglob(place.path, recursive=True)  # noqa: PTH207  (pathlib's enters hidden folders)


def _remote_matches(place: Place) -> Iterator[str]:
    fixed = place.path[: WILD.search(place.path).start()].rpartition("/")[0]  # type: ignore[union-attr]
    wanted = re.compile(fsspec.utils.glob_translate(place.path))
    deep = "**" in place.path or place.path.count("/") > fixed.count("/") + 1
    for info in Place(fixed, place.root).below(recursive=deep):
        if wanted.match(info.path) and not archive.hidden(info.path):
            yield info.path


def _found(number: int, place: Place, column: str | None, asked_for: bool) -> Iterator[Item]:
    """The inputs at one place. What is neither a picture nor a container is an error when it was `asked_for`."""
    info = place.info()
    if not info.type:
        raise DataError(f"{place}: no such file or folder")
    suffix = suffix_of(place.path)
    if not info.is_file:
        yield from _sorted(_local_folder(number, place) if place.local else _remote_folder(number, place))
    elif suffix in CONTAINERS:
        yield from _contained(number, place, CONTAINERS[suffix], info, column)
    elif suffix in EXTENSIONS:
        yield Item(number, FILE, "", _encoded(place.path), *_size_and_time(info))
    elif asked_for:
        raise DataError(f"{place}: neither a picture nor a folder, .zip, .tar or .parquet")


def _local_folder(number: int, place: Place) -> Iterator[Item]:
    top = Path(place.path)
    for name, size, mark, *_ in archive.folder_entries(top):
        if not name.endswith("/"):
            yield Item(number, FILE, "", _encoded(str(top / name)), size, mark)


def _remote_folder(number: int, place: Place) -> Iterator[Item]:
    for info in place.below():
        name = PurePosixPath(info.path).name
        if archive.hidden(name):
            continue
        if not info.is_file:
            yield from _remote_folder(number, Place(info.path, place.root))
        elif suffix_of(name) in EXTENSIONS:
            yield Item(number, FILE, "", _encoded(info.path), *_size_and_time(info))


def _contained(number: int, place: Place, kind: int, info: Any, column: str | None) -> Iterator[Item]:
    size, mark = _size_and_time(info)
    if kind == TABLE:
        yield from _rows_of_table(number, place, size, mark, column)
    elif kind == TAR and not place.local:  # its headers lie between the pictures, so whoever lists it has read it all
        yield Item(number, STREAM, place.path, b"", size, mark, pictures=UNKNOWN)
    else:
        with place.open() as file:
            entries = archive.zip_entries_in(file, place) if kind == ZIP else archive.tar_entries(Path(place.path))
            for name, size, mark, offset, stored, method in entries:
                if suffix_of(name) in EXTENSIONS:
                    yield Item(number, kind, place.path, _encoded(name), size, mark, offset, stored, method)


def _rows_of_table(number: int, place: Place, size: int, mark: int, column: str | None) -> Iterator[Item]:
    try:
        with place.open() as file, parquet.ParquetFile(file) as table:
            picture_column(table.schema_arrow, column, place)
            counts = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
    except pa.ArrowException as error:
        raise DataError(f"{place}: cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from error
    first = 0
    for group, count in enumerate(counts):
        if count:
            yield Item(number, TABLE, place.path, b"", size, mark, group, 0, first, count)
        first += count


def picture_column(schema: Any, wanted: str | None, where: object) -> tuple[str, str]:
    """(column, `bytes`, `struct` or `path`): which column holds pictures, and how. Raises DataError."""
    there = ", ".join(shown(name) for name in schema.names[:12]) or "none"
    name = wanted or next((name for name in COLUMNS if name in schema.names), None)
    if name is None:
        raise DataError(f"{where}: which column holds the pictures or their paths? name it with --column; there are: {there}")
    if name not in schema.names:
        raise DataError(f"{where}: has no column {shown(name)!r}; there are: {there}")
    kind = schema.field(name).type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return name, "bytes"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return name, "path"
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:  # as the library `datasets` writes pictures
        return name, "struct"
    raise DataError(f"{where}: column {shown(name)!r} is {kind}; expected pictures as binary, or their paths as string")


def suffix_of(name: str) -> str:
    """In small letters; as pathlib's, in a twentieth of its time."""
    name = name.rpartition("/")[2]
    return name[at:].lower() if (at := name.rfind(".")) > 0 else ""


def _size_and_time(info: Any) -> tuple[int, int]:
    return info.size or 0, info.mtime_ns or 0


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")  # a file's name need not be text


def _sorted(items: Iterator[Item]) -> Iterator[Item]:
    """By name. A million of them take about 100 MB meanwhile, a quarter of what tuples would."""
    table = pa.Table.from_batches(_batches(items), SCHEMA)
    yield from _items(table.sort_by("name").to_batches(BATCH))


def _sorted_names(names: Iterator[str]) -> Iterator[str]:
    for item in _sorted(Item(0, FILE, "", _encoded(name), 0, 0) for name in names):
        yield item.name.decode("utf-8", "surrogateescape")


def _batches(items: Iterator[Item]) -> Iterator[Any]:
    while some := list(islice(items, BATCH)):
        yield batch_of(some)


def batch_of(items: list[Item]) -> Any:
    """As a RecordBatch of SCHEMA."""
    columns = zip(*items, strict=True)
    return pa.record_batch([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def _items(batches: Iterable[Any]) -> Iterator[Item]:
    for batch in batches:
        yield from map(Item._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))


def items_of(table: Any) -> list[Item]:
    """The rows of a part of the listing."""
    return list(_items(table.to_batches()))
