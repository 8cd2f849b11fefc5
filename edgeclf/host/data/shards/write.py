"""Sharding: pictures in, TFRecord files with an index out; whole shards or none, so a killed one goes on where it stopped."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core import catalogue as catalogues
from edgeclf.core import files
from edgeclf.core.catalogue import SPLITS, Catalogue
from edgeclf.core.errors import ConfigError, DataError, StorageError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.core.progress import Report
from edgeclf.host.data.dataset import PIPELINE, bounded, reason_of
from edgeclf.host.data.shards.index import (
    ABSENT,
    INDEX,
    NAMES,
    PICTURE,
    PICTURES,
    RECORD,
    RECORDS,
    Header,
    Index,
    Shard,
    Table,
    read_index,
)
from edgeclf.host.data.shards.place import ShardFolder, place
from edgeclf.host.data.shards.records import digest_of, records_of
from edgeclf.host.keras import tensorflow
from edgeclf.runtime.engine import cores

PLAN, DONE = "plan.json", ".done.npz"  # of a sharding under way: what is made, and of each shard what went into it
TARGET_BYTES, LEAST_SHARDS, MOST_SHARDS = 128 << 20, 8, 100_000
FRAME_BYTES, HEADER_BYTES = 16, 12  # that a TFRecord adds to each record, and those of them before it
ORDER = 71  # a stream of random numbers of its own

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Task:
    """A shard to write: its file, its part and its pictures, in their order."""

    file: str
    part: str
    pictures: Indices


@dataclass(frozen=True, eq=False)
class _Done:
    """What a written shard holds: a row (of RECORD) and a digest for each record; and the pictures that are not in it."""

    shard: Shard
    rows: Table
    digests: npt.NDArray[np.uint64]
    broken: tuple[tuple[int, str], ...]
    leaked: Indices


def shard(
    catalogue: Catalogue,
    spec: ImageSpec,
    split: dict[str, Any],
    out: str,
    shards: int = 0,
    progress: Report | None = None,
) -> Index:
    """Write every picture of `catalogue`, prepared as `spec` says and parted by `split`, into shards at a path or address.

    `shards` are those of the training part (0: of about 128 MB, at least 8); those of the other parts are as large. Pictures
    lie in random order, so each shard is a sample of its part. Training pictures that equal held-out ones are left out.
    Memory does not grow with the pictures but for 80 bytes of each. Called again after it was killed, it goes on; where the
    same is finished it does nothing. Raises ConfigError when `out` holds something else, DataError when a class has no
    usable picture, StorageError.
    """
    if records_of(catalogue):
        raise ConfigError(f"{catalogue.source}: is sharded already; give the pictures that it was made from")
    parts = catalogues.split(catalogue, **split)
    tasks = _tasks(parts, spec, split["seed"], shards)
    counts = {part: sum(task.part == part for task in tasks) for part in SPLITS}
    plan = {"pipeline": PIPELINE, "data": catalogue.cache_key, "image": asdict(spec), "split": split, "shards": counts}
    target = place(out)
    with target.held():
        if _begin(target, plan):
            _finish(target, catalogue, spec, split, _write_all(target, catalogue, spec, tasks, progress))
    return read_index(target)


def _tasks(parts: dict[str, Indices], spec: ImageSpec, seed: int, shards: int) -> list[_Task]:
    """Held-out parts first: what they hold is left out of training."""
    train = len(parts["train"])
    if shards > min(train, MOST_SHARDS):
        raise ConfigError(f"--shards {shards}: more than the {min(train, MOST_SHARDS)} that these pictures can fill")
    wanted = shards or min(train, max(LEAST_SHARDS, train * int(np.prod(spec.shape)) // TARGET_BYTES))
    tasks = []
    for part in ("test", "val", "train"):
        members = np.random.RandomState([seed, ORDER, SPLITS.index(part)]).permutation(parts[part])
        count = min(len(members), max(1, round(wanted * len(members) / train)))
        pieces = np.array_split(members, count) if count else []
        tasks += [_Task(f"{part}-{i:05d}-of-{count:05d}.tfrecord", part, piece) for i, piece in enumerate(pieces)]
    return tasks


def _begin(target: ShardFolder, plan: dict[str, Any]) -> bool:
    """Whether there is something to do; the plan is then written down. Raises ConfigError for a place with something else."""
    found = [name for name in target.sizes() if not name.startswith(".")]
    wanted = (json.dumps(plan, sort_keys=True) + "\n").encode()
    if PLAN not in found and found:
        raise ConfigError(f"{target.address}: holds other files, such as {min(found)}; choose another --out")
    if PLAN in found and target.read(PLAN) != wanted:
        what = "shards" if INDEX in found else "an interrupted sharding"
        raise ConfigError(f"{target.address}: holds {what} of other pictures, or in another way; choose another --out")
    if PLAN not in found:
        target.write(PLAN, wanted)
    return INDEX not in found


def _write_all(
    target: ShardFolder, catalogue: Catalogue, spec: ImageSpec, tasks: list[_Task], progress: Report | None
) -> list[_Done]:
    """Every shard, in the order of the tasks; those that are there from before are not written again."""
    local, sizes = threading.local(), target.sizes()
    total, finished = sum(len(task.pictures) for task in tasks), 0
    results: list[_Done] = []
    tensorflow()  # imported here, not in the threads
    with ThreadPoolExecutor(cores()) as pool:
        for group in (("test", "val"), ("train",)):
            chosen = [task for task in tasks if task.part in group]
            held_out = _sorted_digests(results)

            def work(number: int, chosen: list[_Task] = chosen, held_out: Any = held_out) -> _Done:
                if not hasattr(local, "read"):
                    local.read = catalogues.prepared(catalogue, spec)
                task = chosen[number]
                return _kept(target, task, sizes) or _written(target, catalogue, spec, task, local.read, held_out)

            for done in bounded(pool, work, len(chosen)):
                results.append(done)
                finished += len(done.rows) + len(done.broken) + len(done.leaked)
                if progress:
                    progress(finished, total)
    place_of = {task.file: i for i, task in enumerate(tasks)}
    return sorted(results, key=lambda done: place_of[done.shard.file])


def _sorted_digests(results: list[_Done]) -> npt.NDArray[np.uint64]:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *(done.digests for done in results)]))


def _written(
    target: ShardFolder,
    catalogue: Catalogue,
    spec: ImageSpec,
    task: _Task,
    read: Callable[[int], Pixels],
    held_out: npt.NDArray[np.uint64],
) -> _Done:
    """Write one shard, and then what it holds; only with both is it there."""
    rows, digests, broken, leaked, offset = [], [], [], [], 0
    with target.writing(task.file) as path:
        with _full_disk_told(target.where(task.file)), tensorflow().io.TFRecordWriter(str(path)) as writer:
            for i in task.pictures.tolist():
                try:
                    picture = read(i)
                except DataError as error:
                    broken.append((i, reason_of(error, catalogue, i)))
                    continue
                digest = digest_of(picture)
                if task.part == "train" and _contains(held_out, digest):
                    leaked.append(i)
                    continue
                record, pixels = _example(catalogue, i, picture, spec)
                writer.write(record)
                rows.append((offset, HEADER_BYTES + pixels, i))
                digests.append(digest)
                offset += len(record) + FRAME_BYTES
        size = path.stat().st_size
    made = Shard(task.file, task.part, len(rows), size)
    done = _Done(made, np.array(rows, RECORD), np.array(digests, np.uint64), tuple(broken), np.array(leaked, np.int64))
    buffer = io.BytesIO()
    notes = json.dumps({"shard": asdict(made), "broken": broken}).encode()
    np.savez(buffer, rows=done.rows, digests=done.digests, leaked=done.leaked, notes=np.frombuffer(notes, np.uint8))
    target.write(task.file + DONE, buffer.getvalue())
    return done


@contextlib.contextmanager
def _full_disk_told(where: str) -> Iterator[None]:
    """What TensorFlow says of a disk that refuses, as StorageError."""
    try:
        yield
    except tensorflow().errors.OpError as error:
        raise StorageError(f"{where}: cannot write: {error.message.rpartition(';')[2].strip()}") from error


def _contains(sorted_digests: npt.NDArray[np.uint64], digest: int) -> bool:
    at = int(np.searchsorted(sorted_digests, np.uint64(digest)))
    return at < len(sorted_digests) and int(sorted_digests[at]) == digest


def _kept(target: ShardFolder, task: _Task, sizes: dict[str, int]) -> _Done | None:
    """A shard that an earlier process wrote; None where it did not, or not to the end."""
    if task.file + DONE not in sizes or task.file not in sizes:
        return None
    try:
        with np.load(io.BytesIO(target.read(task.file + DONE)), allow_pickle=False) as saved:
            notes = json.loads(saved["notes"].tobytes())
            made = Shard(**notes["shard"])
            broken = tuple((int(i), str(reason)) for i, reason in notes["broken"])
            done = _Done(made, saved["rows"], saved["digests"], broken, saved["leaked"])
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return done if made.bytes == sizes[task.file] else None


def _example(catalogue: Catalogue, i: int, picture: Pixels, spec: ImageSpec) -> tuple[bytes, int]:
    """(a tf.train.Example in the names that TF-Slim gave them, where in it the pixels begin)."""
    train, pixels = tensorflow().train, picture.tobytes()

    def of_bytes(value: bytes) -> Any:
        return train.Feature(bytes_list=train.BytesList(value=[value]))

    def of_number(value: int) -> Any:
        return train.Feature(int64_list=train.Int64List(value=[value]))

    number = int(catalogue.classes[i])
    features = {
        "image/encoded": of_bytes(pixels),
        "image/format": of_bytes(b"raw"),
        "image/height": of_number(spec.height),
        "image/width": of_number(spec.width),
        "image/channels": of_number(spec.channels),
        "image/colorspace": of_bytes(spec.colour.encode()),
        "image/class/label": of_number(number),
        "image/class/text": of_bytes(catalogue.labels[number].encode()),
        "image/filename": of_bytes(catalogue.names[i].encode("utf-8", "surrogateescape")),
    }
    record = train.Example(features=train.Features(feature=features)).SerializeToString(deterministic=True)
    return record, record.index(pixels)


def _finish(target: ShardFolder, catalogue: Catalogue, spec: ImageSpec, split: dict[str, Any], done: list[_Done]) -> None:
    """Write the tables and, last, the index; then remove what only a sharding under way needs."""
    _check_classes(catalogue, done)
    records = np.concatenate([part.rows for part in done])
    pictures = np.zeros(len(catalogue), PICTURE)
    pictures["row"], pictures["class"], pictures["folder"] = ABSENT, catalogue.classes, catalogue.folders
    pictures["row"][records["picture"]] = np.arange(len(records))
    pictures["digest"][records["picture"]] = np.concatenate([part.digests for part in done])
    with target.writing(NAMES) as path, path.open("wb") as file:
        for i, name in enumerate(catalogue.names):
            pictures["name"][i] = file.tell()
            file.write(name.encode("utf-8", "surrogateescape") + b"\n")
        file.flush()
        sums = {NAMES: files.sha256(path)}
    for table, values in ((RECORDS, records), (PICTURES, pictures)):
        with target.writing(table) as path:
            with path.open("wb") as file:
                np.save(file, values)
            sums[table] = files.sha256(path)
    broken = sorted(entry for part in done for entry in part.broken)
    header = Header(
        catalogue.source.resolve().name, catalogue.fingerprint, catalogue.labels, spec, split, PIPELINE,
        sum(len(part.leaked) for part in done), tuple((catalogue.names[i], reason) for i, reason in broken),
        tuple(part.shard for part in done), sums,
    )  # fmt: skip
    target.write(INDEX, header.to_json())
    for name in target.sizes():
        if name.endswith(DONE) or (name.startswith(".") and ".tfrecord" in name):  # the latter a killed one left half written
            target.remove(name)


def _check_classes(catalogue: Catalogue, done: list[_Done]) -> None:
    """Raise DataError when a class has no picture to train on or to test with."""
    for name in ("train", "test"):
        held = [catalogue.classes[part.rows["picture"]] for part in done if part.shard.part == name]
        missing = np.setdiff1d(np.arange(len(catalogue.labels)), np.concatenate(held))
        if len(missing):
            why = " (pictures that are also held out for val or test do not count)" if name == "train" else ""
            raise DataError(
                f"{catalogue.source}: class {catalogue.labels[missing[0]]!r} has no usable picture in {name}{why}; add some"
            )
