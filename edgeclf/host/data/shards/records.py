"""Pictures of a sharded data set by index, read by byte ranges: the catalogue and the prepared pictures of every later stage."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.catalogue import SPLITS, Catalogue
from edgeclf.core.errors import DataError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.core.text import printable
from edgeclf.host.data.shards.index import ABSENT, INDEX, Index, read_index
from edgeclf.host.data.shards.place import Data, Handle, place

GAP_BYTES = 64 << 10  # between two pictures that are still read in one range
RANGE_BYTES = 4 << 20
REQUESTS = 8  # at a time, to object storage
OPEN_FILES = 64

Indices = npt.NDArray[np.integer[Any]]


class Records:
    """The prepared pictures of a data set, as `host.data.dataset.Shards` gives them; rows of those that are not stored are zero.

    `parts` are the pictures of train, val and test as the shards hold them. Every picture that is read is compared with
    the digest in the index: DataError, naming the shard, when it is another.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.shape = index.header.image.shape
        self.size = int(np.prod(self.shape))
        self.skipped = index.header.skipped
        self.parts = {part: index.members(part) for part in SPLITS}
        self.checked = set[int]()  # shards that were read whole and found to be what the index says
        self._handle = functools.lru_cache(OPEN_FILES)(self._open)

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Whether a picture is stored: bool (pictures,)."""
        return np.asarray(self.index.pictures["row"] != ABSENT)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """As `host.data.dataset.Shards` has them: uint64 (pictures,)."""
        return np.asarray(self.index.pictures["digest"])

    def _open(self, number: int) -> Handle:
        return self.index.place.open(self.index.header.shards[number].file)

    def take(self, indices: Indices) -> Pixels:
        """Pictures by index, in that order: uint8 (len(indices), height, width, channels)."""
        out = np.zeros((len(indices), *self.shape), np.uint8)
        rows = self.index.pictures["row"][indices]
        order = np.argsort(rows, kind="stable")
        spans = list(self._spans(rows, order[np.searchsorted(rows[order], 0) :]))
        read = functools.partial(self._copy, out, np.asarray(indices))
        if self.index.place.filesystem is None or len(spans) == 1:
            for span in spans:
                read(span)
        else:
            with ThreadPoolExecutor(REQUESTS) as pool:
                list(pool.map(read, spans))
        return out

    def read(
        self, shard: int, part: tuple[int, int], scratch: bytearray | None = None, following: tuple[int, int] | None = None
    ) -> Data:
        """The `part` (begin, end) of a shard's bytes; may be called from several threads. Raises DataError.

        What is given may lie in `scratch`, where that is given. `following` is what will be asked for next.
        """
        begin, end = part
        try:
            handle = self._handle(shard)
            if following:
                handle.expect(following[1] - following[0], following[0])
            data = handle.read_at(end - begin, begin, scratch)
        except OSError as error:
            raise self.index.damaged(shard, f"cannot be read ({' '.join(str(error).split())[:200]})") from error
        if len(data) != end - begin:
            raise self.index.damaged(shard, "is cut short")
        return data

    def check(self, shard: int, pictures: Pixels, members: Indices) -> None:
        """Raise DataError where one of `pictures`, read from a shard, is not the one of `members` that it should be."""
        for picture, digest, i in zip(pictures, self.index.pictures["digest"][members].tolist(), members.tolist(), strict=True):
            if digest_of(picture) != digest:
                raise self.index.damaged(shard, f"{printable(self.index.names[i])} in it is not what the index says")

    def release(self) -> None:
        """Nothing is mapped."""

    def matching(self, spec: ImageSpec) -> Records:
        """These, where they were prepared as `spec` says; else DataError: they cannot be prepared again."""
        stored = self.index.header.image
        if (stored.shape, stored.fit, stored.colour) != (spec.shape, spec.fit, spec.colour):
            raise DataError(
                f"{self.index.place.where(INDEX)}: its pictures are {_words(stored)}, the network takes {_words(spec)}; "
                f"{_remedy(stored, spec)}shard the pictures again: edgeclf data shard DATA --image-size {spec.width}"
            )
        return self

    def _spans(self, rows: Indices, order: Indices) -> Iterator[_Span]:
        """Pictures `order`, which are sorted by row, in ranges of a shard that are worth one request."""
        if not len(order):
            return
        sorted_rows = rows[order]
        shards = np.searchsorted(self.index.firsts, sorted_rows, side="right") - 1
        records = self.index.records[sorted_rows]
        starts = records["offset"].astype(np.int64) + records["pixels"]
        first = 0
        for i in range(1, len(order) + 1):
            ends = i == len(order) or shards[i] != shards[first] or starts[i] - starts[i - 1] > self.size + GAP_BYTES
            if ends or starts[i] + self.size - starts[first] > RANGE_BYTES:
                yield _Span(int(shards[first]), order[first:i], starts[first:i])
                first = i

    def _copy(self, out: Pixels, indices: Indices, span: _Span) -> None:
        begin, end = int(span.starts[0]), int(span.starts[-1]) + self.size
        pixels = np.frombuffer(self.read(span.shard, (begin, end)), np.uint8)
        for place_in_out, start in zip(span.places, span.starts - begin, strict=True):
            out[place_in_out] = pixels[start : start + self.size].reshape(self.shape)
        self.check(span.shard, out[span.places], indices[span.places])


@dataclass(frozen=True, eq=False)
class _Span:
    """Pictures of a shard that are read at once: their places in the result, and where their pixels start."""

    shard: int
    places: Indices
    starts: Indices


class Stored:
    """The same pictures one by one, as a catalogue's `arrays`: RGB or grey, (height, width, 3 or 1)."""

    ndim = 4

    def __init__(self, records: Records) -> None:
        self.records = records
        self.shape = (len(records.index.pictures), *records.shape)
        self._reasons = dict(records.skipped)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> Pixels:
        index = self.records.index
        if index.pictures["row"][i] == ABSENT:
            name = index.names[i]
            raise DataError(f"{name}: {self._reasons.get(name, 'equals a held-out picture, so it was left out of the shards')}")
        picture: Pixels = self.records.take(np.array([i]))[0]
        return picture[:, :, ::-1] if index.header.image.colour == "bgr" else picture


def open_shards(address: str) -> Catalogue:
    """The catalogue of the data that was sharded, its pictures those in the shards at a path or an address.

    Equal to the catalogue of that data in names, order, classes, folders and fingerprint. Raises DataError.
    """
    records = Records(read_index(place(address)))
    header, table = records.index.header, records.index.pictures
    return Catalogue(
        Path(address), "shards", header.labels, records.index.names, np.ascontiguousarray(table["class"]),
        np.ascontiguousarray(table["folder"]), np.broadcast_to(np.zeros(3, np.int64), (len(table), 3)),
        header.fingerprint, records.index.digest, Stored(records),
    )  # fmt: skip


def records_of(catalogue: Catalogue) -> Records | None:
    """What a catalogue's pictures are stored in, where these are shards."""
    return catalogue.arrays.records if isinstance(catalogue.arrays, Stored) else None


def digest_of(picture: Pixels) -> int:
    """Of prepared pixels, below 2^64: equal digests are equal pictures."""
    return int.from_bytes(hashlib.blake2b(picture.data, digest_size=8).digest(), "little")


def _words(spec: ImageSpec) -> str:
    return f"{spec.width}x{spec.height} {spec.fit} {spec.colour}"


def _remedy(stored: ImageSpec, spec: ImageSpec) -> str:
    same = (stored.fit, stored.colour) == (spec.fit, spec.colour) and stored.width == stored.height
    return f"train with --image-size {stored.width}, or " if same else ""
