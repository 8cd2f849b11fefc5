"""Job: what is to be done, cut into parts, and what of it is done; the output folder is all that a resumed job needs.

`part-0000012.parquet` holds the answers to the inputs of row group 12 of the listing, `_inputs`. It appears whole or not at
all and its name says what is in it, so that whoever finishes parts, in whatever order and however often, leaves every input
in the output exactly once. `_manifest.json` says which model and inputs these are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
from pyarrow import parquet

from edgeclf.core.bundle import parse_bundle
from edgeclf.core.errors import ConfigError, StorageError
from edgeclf.core.files import locked
from edgeclf.core.text import refusal
from edgeclf.runtime.bulk.answering import answer
from edgeclf.runtime.bulk.inputs import SCHEMA, STREAM, TABLE, Item, batch_of, items_of, listing
from edgeclf.runtime.bulk.places import REFUSALS, UNFINISHED, Place, place, shown
from edgeclf.runtime.bulk.reading import Reader
from edgeclf.runtime.classifier import from_bundle
from edgeclf.runtime.engine import Normalize

MANIFEST, LISTING, MODEL = "_manifest.json", "_inputs", "_model"
SCHEMA_VERSION = 1
# Pictures of a part: few at first, so that a small job is soon seen to go on, and then more, so that a large one leaves not
# too many files.
FEWEST, MOST, GROWTH, EVERY = 1024, 16_384, 4, 64


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    `model` is the name of its file, `roots` the filesystems that inputs lie on, `folder` where relative paths begin, `task`
    how many pictures are answered at a time.
    """

    model: str
    model_sha256: str
    roots: tuple[str, ...]
    out: Place
    top: int = 5
    column: str | None = None
    labels: tuple[str, ...] = ()
    normalize: Normalize | None = None
    folder: str = field(default_factory=os.getcwd)
    task: int = 64


@dataclass(frozen=True)
class Job:
    """A request whose inputs were listed. `counts` are the pictures of each part, UNKNOWN where nobody counted them yet."""

    request: Request
    counts: tuple[int, ...]

    @property
    def out(self) -> Place:
        return self.request.out

    def done(self) -> set[int]:
        """The parts that are there."""
        names = {_part_name(number): number for number in range(len(self.counts))}
        return {names[name] for name in _names(self.out) if name in names}

    def size(self, number: int) -> tuple[int, int]:
        """(pictures, of them with an error) of a part that is done, from its footer. Raises StorageError."""
        try:
            with (self.out / _part_name(number)).open() as file, parquet.ParquetFile(file) as opened:
                rows, groups = opened.metadata.num_rows, range(opened.metadata.num_row_groups)
                column = opened.metadata.schema.names.index("error")
                return rows, sum(rows - opened.metadata.row_group(i).column(column).statistics.null_count for i in groups)
        except (*REFUSALS, AttributeError) as error:
            raise StorageError(
                f"{self.out / _part_name(number)}: cannot be read back: {refusal(error)}; remove it, and it is made again"
            ) from error


class Worker:
    """One interpreter with one thread, and what it takes to answer any part. Not safe to share between threads."""

    def __init__(self, request: Request, model: bytes) -> None:
        self._request = request
        cv2.setNumThreads(1)  # another process uses the other core
        bundle = parse_bundle(model, request.model)
        self._classifier = from_bundle(bundle, 1, request.labels, request.normalize, probed=True)
        self._reader = Reader(request.roots, request.column)
        self._items: tuple[int, list[Item]] = -1, []

    @cached_property
    def _listing(self) -> Any:
        return parquet.ParquetFile((self._request.out / LISTING).open())

    def answers(self, part: int, start: int, stop: int | None) -> Any:
        """A RecordBatch of answers to a range of a part's pictures. Raises StorageError when the listing cannot be read."""
        if self._items[0] != part:
            try:
                self._items = part, items_of(self._listing.read_row_group(part, use_threads=False))
            except REFUSALS as error:
                raise StorageError(
                    f"{self._request.out / LISTING}: cannot be read: {refusal(error)}; every machine must see the output folder"
                ) from error
        return answer(self._classifier, self._reader.pictures(self._items[1], start, stop), self._request.top)


def write_part(out: Place, number: int, batches: list[Any]) -> tuple[int, int]:
    """Write a part, whole; returns (pictures, of them with an error). Raises StorageError."""
    table = pa.Table.from_batches(batches).combine_chunks()
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, row_group_size=max(1, len(table)))
    (out / _part_name(number)).write(sink.getvalue().to_pybytes())
    return len(table), len(table) - table.column("error").null_count


@contextlib.contextmanager
def prepared(request: Request, inputs: Sequence[str], overwrite: bool) -> Iterator[Job]:
    """List the inputs, paths or URLs, and yield the job, whose output folder is held meanwhile.

    Raises DataError for inputs, ConfigError for an output of another model, of other inputs or of other options unless
    `overwrite`, and StorageError when the folder cannot be written.
    """
    out = request.out
    if out.local and Path(out.path).exists() and not Path(out.path).is_dir():
        raise ConfigError(f"{out}: is a file; results are a folder of parts: choose another --out")
    with _held(out):
        there = _names(out)
        manifest = _manifest(out) if MANIFEST in there else None
        ours = {name for name in there if _is_ours(name)}
        if there - ours:
            raise ConfigError(f"{out}: holds other files, such as {min(there - ours)!r}; choose another --out")
        if manifest is None and any(name.startswith("part-") for name in there) and not overwrite:
            raise ConfigError(f"{out}: holds parts without {MANIFEST}; give --overwrite, or choose another --out")
        if manifest is not None and not overwrite:
            _same_work(out, manifest, request)
        data, counts, digest = _listed(inputs, request.column)
        wanted = _manifest_of(request, inputs, counts, digest)
        begins = manifest is None or overwrite
        if manifest is not None and not begins and manifest["inputs"]["sha256"] != digest:
            before, now = manifest["inputs"]["pictures"], wanted["inputs"]["pictures"]
            raise ConfigError(
                f"{out}: holds answers to other inputs: {_amount(before)} when it was begun, {_amount(now)} now, or pictures "
                "that changed since; give --overwrite to begin anew, or choose another --out"
            )
        # The manifest goes first: parts without one are never taken for another job's.
        for name in sorted(there, key=lambda name: name != MANIFEST):
            if overwrite or name.endswith(UNFINISHED):
                (out / name).remove()
        if begins or LISTING not in there:
            (out / LISTING).write(data)
        if begins:
            (out / MANIFEST).write((json.dumps(wanted, indent=2) + "\n").encode())
        yield Job(request, tuple(counts))


@contextlib.contextmanager
def _held(out: Place) -> Iterator[None]:
    """Against other jobs, where the folder is on this machine; one that was made for nothing is removed."""
    if not out.local:
        yield
        return
    folder = Path(out.path)
    is_new = not folder.exists()
    try:
        with locked(folder, "job"):
            yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it holds something
                folder.rmdir()
        raise


def _names(out: Place) -> set[str]:
    """What lies in the output folder. Raises StorageError."""
    try:
        return {info.base_name for info in out.below() if info.base_name}
    except REFUSALS as error:
        raise StorageError(f"{out}: cannot be used: {refusal(error)}") from error


def _is_ours(name: str) -> bool:
    return name in (MANIFEST, LISTING, MODEL) or name.endswith(UNFINISHED) or bool(re.fullmatch(r"part-\d{7,}\.parquet", name))


def _manifest(out: Place) -> dict[str, Any]:
    try:
        found = json.loads((out / MANIFEST).read())
        found["model"]["sha256"], found["inputs"]["sha256"], found["inputs"]["pictures"], found["options"]
    except REFUSALS as error:
        raise StorageError(f"{out / MANIFEST}: cannot be read: {refusal(error)}") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{out / MANIFEST}: is no manifest of classify; choose another --out") from error
    return found  # type: ignore[no-any-return]


def _same_work(out: Place, manifest: dict[str, Any], request: Request) -> None:
    """Raise ConfigError unless what was begun there is of this model, with these options."""
    again = "give --overwrite to begin anew, or choose another --out"
    if manifest["model"]["sha256"] != request.model_sha256:
        raise ConfigError(
            f"{out}: holds answers of another model ({manifest['model'].get('file')}, SHA-256 "
            f"{manifest['model']['sha256'][:12]}…); {again}"
        )
    wanted = _options(request)
    for name, value in wanted.items():
        if manifest["options"].get(name) != value:
            raise ConfigError(f"{out}: was begun with {name} = {manifest['options'].get(name)}, not {value}; {again}")


def _options(request: Request) -> dict[str, Any]:
    return {
        "top": request.top,
        "column": request.column,
        "labels": list(request.labels),
        "normalize": list(request.normalize) if request.normalize else None,
    }


def _manifest_of(request: Request, inputs: Sequence[str], counts: list[int], digest: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA_VERSION,
        "edgeclf": version("edgeclf"),
        "model": {"file": Path(request.model).name, "sha256": request.model_sha256},
        "inputs": {
            "given": [shown(one) for one in inputs[:100]],
            "sha256": digest,
            "pictures": sum(counts) if all(counts) else None,
            "parts": len(counts),
        },
        "options": _options(request),
    }


def _amount(pictures: int | None) -> str:
    return "an unknown number of pictures" if pictures is None else f"{pictures:,} pictures"


def _listed(inputs: Sequence[str], column: str | None) -> tuple[bytes, list[int], str]:
    """(the listing as a Parquet file with a row group for each part, pictures of each part, SHA-256 of all rows)."""
    digest, counts, sink = hashlib.sha256(repr((FEWEST, MOST, GROWTH, EVERY)).encode()), [], pa.BufferOutputStream()
    with parquet.ParquetWriter(sink, SCHEMA) as writer:
        for items in parts(listing(map(place, inputs), column)):
            for item in items:
                digest.update(repr(tuple(item)).encode())
            writer.write_batch(batch_of(items), row_group_size=len(items))
            counts.append(sum(item.pictures for item in items))
    return sink.getvalue().to_pybytes(), counts, digest.hexdigest()


def parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in lists of as many pictures as a part has; rows of a table are cut to fit, a STREAM is a part of its own."""
    number, part, room = 0, list[Item](), _room(0)
    for whole in items:
        item = whole
        while item.kind == TABLE and item.pictures > room:
            yield [*part, item._replace(pictures=room)]
            item = item._replace(stored=item.stored + room, method=item.method + room, pictures=item.pictures - room)
            number, part = number + 1, []
            room = _room(number)
        if item.kind == STREAM and part:
            yield part
            number, part = number + 1, []
        part.append(item)
        room -= item.pictures
        if room <= 0 or item.kind == STREAM:
            yield part
            number, part = number + 1, []
            room = _room(number)
    if part:
        yield part


def _part_name(number: int) -> str:
    return f"part-{number:07d}.parquet"


def _room(number: int) -> int:
    """Pictures of the part of that number."""
    return min(MOST, FEWEST * int(GROWTH ** min(number // EVERY, 8)))
