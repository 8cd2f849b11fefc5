"""The index of a sharded data set: what `index.json` and the tables beside it say, read strictly and written last.

`records.npy` has a row for each stored picture, shard after shard; `pictures.npy` one for each picture of the data that was
sharded, in the order of its catalogue; `names.txt` their names, a line each. The tables are mapped, never loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from edgeclf.core import config, files
from edgeclf.core.catalogue import SPLITS
from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.image import ImageSpec
from edgeclf.host.data.shards.place import ShardFolder

INDEX, RECORDS, PICTURES, NAMES = "index.json", "records.npy", "pictures.npy", "names.txt"
TABLES = RECORDS, PICTURES, NAMES
FORMAT, VERSION = "edgeclf shards", 1
MAX_INDEX_BYTES = 256 << 20
ABSENT = -1  # in `row`: the picture could not be read, or stands among the held-out ones too

# Where a record begins in its shard, where the pixels begin in the record, and which picture of the catalogue it is.
RECORD = np.dtype([("offset", "<u8"), ("pixels", "<u4"), ("picture", "<u8")])
# The row of its record or ABSENT, class, folder as in the catalogue, digest as in the picture cache, start of its name.
PICTURE = np.dtype([("row", "<i8"), ("class", "<i4"), ("folder", "i1"), ("digest", "<u8"), ("name", "<u8")])

Table = npt.NDArray[Any]


@dataclass(frozen=True)
class Shard:
    """One TFRecord file."""

    file: str
    part: str
    pictures: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """What `index.json` holds.

    `source` names the data that was sharded, `fingerprint` is its catalogue's, `split` the keywords of
    `core.catalogue.split` that parted it, `pipeline` the version of the preprocessing. `skipped` lists (name, reason) of
    unreadable pictures; `leaked` counts training pictures that were left out because the same picture is held out.
    `files` has the SHA-256 of each table.
    """

    source: str
    fingerprint: str
    labels: tuple[str, ...]
    image: ImageSpec
    split: dict[str, Any]
    pipeline: int
    leaked: int
    skipped: tuple[tuple[str, str], ...]
    shards: tuple[Shard, ...]
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """With counts by part, for a person who looks in."""
        counts = {part: sum(s.pictures for s in self.shards if s.part == part) for part in SPLITS}
        return json.dumps({"format": FORMAT, "version": VERSION, "pictures": counts, **asdict(self)}, indent=1).encode() + b"\n"


@dataclass(frozen=True, eq=False)
class Index:
    """A whole, checked index. `firsts` is int64 (shards + 1,): the row of each shard's first record, and their number."""

    place: ShardFolder
    header: Header
    records: Table
    pictures: Table
    names: Sequence[str]
    firsts: npt.NDArray[np.int64]
    digest: str

    def members(self, part: str) -> npt.NDArray[np.int64]:
        """The pictures of a part, sorted, as catalogue indices."""
        rows = [self.records["picture"][self.firsts[n] : self.firsts[n + 1]] for n in self.shards_of(part)]
        return np.sort(np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64))

    def shards_of(self, part: str) -> list[int]:
        """The numbers of the shards of a part."""
        return [n for n, shard in enumerate(self.header.shards) if shard.part == part]

    def damaged(self, number: int, what: str) -> DataError:
        """The error for a shard that is not what it was when the index was written."""
        shard = self.header.shards[number]
        return DataError(f"{self.place.where(shard.file)}: {what}; restore it, or shard the pictures again")


def is_sharded(folder: Path) -> bool:
    """Whether a folder here holds an index of shards."""
    try:
        with (folder / INDEX).open("rb") as file:
            return FORMAT.encode() in file.read(200)
    except OSError:
        return False


def read_index(place: ShardFolder) -> Index:
    """The index at a place, checked against itself and the sizes of its shards. Raises DataError, naming the file."""
    sizes = place.sizes()
    header, digest = _header(place, sizes)
    tables = _local_tables(place, header, sizes)
    records, pictures = (_table(tables, name, dtype, place) for name, dtype in ((RECORDS, RECORD), (PICTURES, PICTURE)))
    firsts = np.concatenate([[0], np.cumsum([shard.pictures for shard in header.shards])]).astype(np.int64)
    names = Names(np.memmap(tables / NAMES, np.uint8, "r"), pictures)
    found = Index(place, header, records, pictures, names, firsts, digest)
    _check(found, sizes)
    return found


def _header(place: ShardFolder, sizes: dict[str, int]) -> tuple[Header, str]:
    where = place.where(INDEX)
    if INDEX not in sizes:
        raise DataError(f"{where}: not found; make shards of pictures with: edgeclf data shard DATA --out {place.address}")
    if sizes[INDEX] > MAX_INDEX_BYTES:
        raise DataError(f"{where}: {sizes[INDEX] >> 20} MB is more than the limit of {MAX_INDEX_BYTES >> 20} MB")
    data = place.read(INDEX)
    try:
        table = json.loads(data)
        if not isinstance(table, dict) or table.pop("format", None) != FORMAT:
            raise DataError(f"{where}: is no index of shards; make some with: edgeclf data shard DATA --out {place.address}")
        if table.pop("version", None) != VERSION:
            raise DataError(f"{where}: was written by another version of edgeclf; shard the pictures again")
        table.pop("pictures", None)
        return config.build(Header, table, where), hashlib.sha256(data).hexdigest()
    except (ValueError, TypeError, ConfigError) as error:
        raise DataError(f"{where}: is damaged ({' '.join(str(error).split())[:200]}); shard the pictures again") from error


def _local_tables(place: ShardFolder, header: Header, sizes: dict[str, int]) -> Path:
    """A folder on this machine with the tables, which are copied into the cache from object storage; each as it was written."""
    for name in TABLES:
        if name not in header.files or name not in sizes:
            raise DataError(f"{place.where(name)}: is missing; restore it, or shard the pictures again")
    if place.filesystem is None:
        folder = Path(place.base)
    else:
        key = hashlib.sha256(" ".join(header.files[name] for name in TABLES).encode()).hexdigest()[:24]
        folder = files.cache_folder() / "indexes" / key
    for name in TABLES:
        if _is_as_written(folder / name, header):
            continue
        if place.filesystem is not None:
            _fetch(place, name, sizes[name], folder / name)
            if _is_as_written(folder / name, header):
                continue
        raise DataError(f"{place.where(name)}: is not what {INDEX} says; restore it, or shard the pictures again")
    return folder


def _is_as_written(table: Path, header: Header) -> bool:
    return table.is_file() and files.sha256(table) == header.files[table.name]


def _fetch(place: ShardFolder, name: str, size: int, target: Path) -> None:
    handle = place.open(name)
    with files.writing(target) as path, path.open("wb") as file:
        for offset in range(0, size, 8 << 20):
            file.write(handle.read_at(8 << 20, offset))


def _table(folder: Path, name: str, dtype: np.dtype[Any], place: ShardFolder) -> Table:
    where = place.where(name)
    try:
        found: Table = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{where}: cannot be read: {error}; shard the pictures again") from error
    if found.dtype != dtype or found.ndim != 1:
        raise DataError(f"{where}: is no table of this version; shard the pictures again")
    return found


def _check(index: Index, sizes: dict[str, int]) -> None:
    """Raise DataError for a shard that is missing or cut short, or a class that a part lacks."""
    header, labels = index.header, index.header.labels
    where = index.place.where(INDEX)
    inside = (
        index.firsts[-1] == len(index.records)
        and _within(index.records["picture"], 0, len(index.pictures))
        and _within(index.pictures["row"], ABSENT, len(index.records))
        and _within(index.pictures["class"], 0, len(labels))
        and not any("/" in shard.file or "\\" in shard.file for shard in header.shards)
    )
    if not inside:
        raise DataError(f"{where}: does not fit its tables; shard the pictures again")
    for number, shard in enumerate(header.shards):
        if shard.file not in sizes:
            raise index.damaged(number, "is missing")
        if sizes[shard.file] != shard.bytes:
            raise index.damaged(number, f"has {sizes[shard.file]:,} bytes where its index says {shard.bytes:,}")
    for part in ("train", "test"):
        counts = np.bincount(index.pictures["class"][index.members(part)], minlength=len(labels))
        if not counts.all():
            raise DataError(f"{where}: class {labels[int(counts.argmin())]!r} has no picture in {part}; add some and shard again")


def _within(values: Table, least: int, end: int) -> bool:
    return not len(values) or (int(values.min()) >= least and int(values.max()) < end)


class Names(Sequence[str]):
    """The names of the pictures, read from the mapped file when asked for."""

    def __init__(self, text: npt.NDArray[np.uint8], pictures: Table) -> None:
        self._text, self._pictures = text, pictures

    def __len__(self) -> int:
        return len(self._pictures)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            return tuple(self[k] for k in range(*i.indices(len(self))))
        i = range(len(self))[i]  # counts from the end, and raises IndexError, as sequences do
        first = int(self._pictures["name"][i])
        last = int(self._pictures["name"][i + 1]) if i + 1 < len(self) else len(self._text)
        return self._text[first : last - 1].tobytes().decode("utf-8", "surrogateescape")
