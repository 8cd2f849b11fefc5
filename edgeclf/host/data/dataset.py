"""Data sets for training: pictures read once into cached uint8 shards, and their train, validation and test parts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core import catalogue as catalogues
from edgeclf.core.catalogue import Catalogue
from edgeclf.core.errors import ConfigError, DataError, StorageError
from edgeclf.core.files import cache_folder, locked, write_json
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.core.progress import Report
from edgeclf.core.recipe import Recipe
from edgeclf.host.data import builtin
from edgeclf.host.data.shards.index import is_sharded
from edgeclf.host.data.shards.place import is_address
from edgeclf.host.data.shards.records import Records, digest_of, open_shards, records_of
from edgeclf.host.run import Run
from edgeclf.runtime.accuracy import matching_classes
from edgeclf.runtime.engine import cores

PIPELINE = 1  # part of the cache key: raise it when core/image.py gives other bytes
SHARD_BYTES = 32 << 20
INDEX = "index.json"


def open_catalogue(data: str) -> Catalogue:
    """The catalogue of a path, of shards there or in object storage, or of a data set by name (`digits`, `cifar10`, `cifar100`).

    Raises DataError.
    """
    if is_address(data) or is_sharded(Path(data)):
        return _prepared_as_now(open_shards(data))
    if data in builtin.LOADERS and not Path(data).exists():
        return builtin.LOADERS[data]()
    if builtin.is_cifar_archive(Path(data)):
        return builtin.cifar_archive(Path(data))
    return catalogues.scan(Path(data))


def _prepared_as_now(catalogue: Catalogue) -> Catalogue:
    """Raise DataError for shards that another version of core/image.py prepared."""
    records = records_of(catalogue)
    if records and records.index.header.pipeline != PIPELINE:
        raise DataError(f"{catalogue.source}: prepared by another version of edgeclf, to other pixels; shard the pictures again")
    return catalogue


def place_of(data: str) -> str:
    """What the user gave as DATA so that it is found again from another folder: a name, an address, or an absolute path."""
    named = is_address(data) or (data in builtin.LOADERS and not Path(data).exists())
    return data if named else str(Path(data).resolve())


def split_of(catalogue: Catalogue, recipe: Recipe) -> dict[str, Any]:
    """The keywords of `core.catalogue.split` for a training: the recipe's, or those by which shards were parted."""
    records = records_of(catalogue)
    return records.index.header.split if records else recipe.split


@dataclass(frozen=True, eq=False)
class Shards:
    """Every picture of a catalogue, prepared, in files that are mapped and not loaded.

    `skipped` lists (name, reason) of unreadable pictures, whose rows are zero and `readable` False. `digests` is uint64
    (pictures,), of the prepared pixels: equal digests are equal pictures.
    """

    shape: tuple[int, int, int]
    rows: int
    maps: tuple[Pixels, ...]
    readable: npt.NDArray[np.bool_]
    digests: npt.NDArray[np.uint64]
    skipped: tuple[tuple[str, str], ...]

    def take(self, indices: npt.NDArray[np.integer[Any]]) -> Pixels:
        """Pictures by index, in that order: uint8 (len(indices), height, width, channels)."""
        out = np.empty((len(indices), *self.shape), np.uint8)
        shard = np.asarray(indices) // self.rows
        for number in np.unique(shard):
            chosen = np.flatnonzero(shard == number)
            out[chosen] = self.maps[number][np.asarray(indices)[chosen] - number * self.rows]
        return out

    def release(self) -> None:
        """Let go of pages that `take` mapped, which otherwise count as memory of this process; a later `take` maps them again."""
        for pictures in self.maps:
            mapped = getattr(pictures, "_mmap", None)  # no public way leads from a numpy.memmap to its map
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)


def ingest(catalogue: Catalogue, spec: ImageSpec, progress: Report | None = None) -> Shards | Records:
    """Decode, fit and resize every picture once, on all cores, in bounded memory; a second call opens the cache.

    Unreadable pictures are listed in the result, never fatal; DataError when none is readable, StorageError when the
    cache cannot be written. Pictures in shards were prepared when these were made; DataError when that was for other sizes.
    """
    if records := records_of(catalogue):
        return records.matching(spec)
    key = hashlib.sha256(json.dumps([PIPELINE, catalogue.cache_key, asdict(spec)]).encode()).hexdigest()[:24]
    folder = cache_folder() / "shards" / key
    shards = _open(folder, catalogue, spec)
    if shards is None or _readable_now(folder, catalogue, spec):
        _fill(folder, catalogue, spec, progress)
        shards = _open(folder, catalogue, spec)
    if shards is None:
        raise StorageError(f"{folder}: the picture cache is damaged as soon as it is written; set EDGECLF_CACHE to another disk")
    return shards


def _fill(folder: Path, catalogue: Catalogue, spec: ImageSpec, progress: Report | None) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"{folder.parent}: cannot write the picture cache: {error.strerror}; set EDGECLF_CACHE") from error
    try:
        _sweep(folder.parent)
        with locked(building):
            _write_shards(building, catalogue, spec, progress)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one, or the same by another process, which may keep it open
        building.replace(folder)
    except OSError as error:
        if _open(folder, catalogue, spec) is None:  # else another process put its own there first
            reason = error.strerror or error  # numpy's own message when a write falls short
            raise StorageError(f"{folder}: cannot write the picture cache: {reason}; set EDGECLF_CACHE") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _sweep(shards: Path) -> None:
    """Remove what killed trainings left half made; one that is still being filled is locked, or a moment old."""
    for left in shards.glob(".building-*"):
        with contextlib.suppress(OSError, ConfigError, StorageError):
            if time.time() - left.stat().st_mtime > 60:
                with locked(left):
                    shutil.rmtree(left)


def _write_shards(folder: Path, catalogue: Catalogue, spec: ImageSpec, progress: Report | None) -> None:
    """One task a shard; threads, because decoding, resizing and writing run outside the interpreter's lock."""
    rows = _rows(spec)
    local = threading.local()
    retry: list[int] = []

    def work(number: int) -> tuple[int, npt.NDArray[np.uint64], list[tuple[int, str]]]:
        if not hasattr(local, "read"):
            local.read = catalogues.prepared(catalogue, spec)
        first, last = number * rows, min((number + 1) * rows, len(catalogue))
        pictures = np.zeros((last - first, *spec.shape), np.uint8)
        broken = []
        for i in range(first, last):
            try:
                pictures[i - first] = local.read(i)
            except DataError as error:
                if isinstance(error.__cause__, OSError):
                    retry.append(i)
                broken.append((i, reason_of(error, catalogue, i)))
        np.save(folder / f"{number:05d}.npy", pictures)
        return number, np.array([digest_of(picture) for picture in pictures], np.uint64), broken

    digests: dict[int, npt.NDArray[np.uint64]] = {}
    broken: list[tuple[int, str]] = []
    done = 0
    with ThreadPoolExecutor(cores()) as pool:
        for number, part, bad in bounded(pool, work, -(-len(catalogue) // rows)):
            digests[number] = part
            broken += bad
            done += len(part)
            if progress:
                progress(done, len(catalogue))
    if len(broken) == len(catalogue):
        raise DataError(f"{catalogue.source}: none of {len(broken)} pictures can be read; the first: {_first(catalogue, broken)}")
    np.save(folder / "digests.npy", np.concatenate([digests[number] for number in sorted(digests)]))
    write_json(folder / INDEX, {"broken": sorted(broken), "retry": sorted(retry), "source": str(catalogue.source)})


def reason_of(error: DataError, catalogue: Catalogue, i: int) -> str:
    """The message without the name of picture `i`, which stands beside it."""
    name = catalogue.names[i]
    return str(error).removeprefix(f"{catalogue.source / name}: ").removeprefix(f"{name}: ")


def _first(catalogue: Catalogue, broken: list[tuple[int, str]]) -> str:
    i, reason = min(broken)
    return f"{catalogue.names[i]}: {reason}"


def _readable_now(folder: Path, catalogue: Catalogue, spec: ImageSpec) -> bool:
    """Whether a picture that the system would not hand out when the cache was filled (permissions, a disk error) can be read."""
    refused = json.loads((folder / INDEX).read_text()).get("retry", ())
    if not refused:
        return False
    read = catalogues.prepared(catalogue, spec)
    for i in refused:
        with contextlib.suppress(DataError):
            read(i)
            return True
    return False


def bounded(pool: ThreadPoolExecutor, work: Callable[[int], Any], count: int) -> Any:
    """Results as they come, with no more than two tasks a core handed out: memory does not grow with the data."""
    running: set[Future[Any]] = set()
    for number in range(count):
        running.add(pool.submit(work, number))
        if len(running) >= 2 * cores():
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    yield from (future.result() for future in running)


def _open(folder: Path, catalogue: Catalogue, spec: ImageSpec) -> Shards | None:
    """The cache in `folder`; None when it is not there, or damaged as by a power cut, and must be filled again."""
    rows = _rows(spec)
    try:
        index = json.loads((folder / INDEX).read_text())
        maps = tuple(np.load(folder / f"{n:05d}.npy", mmap_mode="r") for n in range(-(-len(catalogue) // rows)))
        digests = np.load(folder / "digests.npy")
    except (OSError, ValueError, EOFError):
        return None
    if sum(map(len, maps)) != len(catalogue) or any(m.shape[1:] != spec.shape for m in maps) or len(digests) != len(catalogue):
        return None
    readable = np.ones(len(catalogue), bool)
    readable[[i for i, _ in index["broken"]]] = False
    skipped = tuple((catalogue.names[i], reason) for i, reason in index["broken"])
    return Shards(spec.shape, rows, maps, readable, digests, skipped)


def _rows(spec: ImageSpec) -> int:
    return max(1, SHARD_BYTES // int(np.prod(spec.shape)) // 8)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pictures with their classes and parts, all readable; no picture of `val` or `test` stands in `train` too.

    `leaked` counts the training pictures that were left out because the same picture is held out.
    """

    catalogue: Catalogue
    shards: Shards | Records
    parts: dict[str, npt.NDArray[np.int64]]
    leaked: int

    @property
    def labels(self) -> tuple[str, ...]:
        return self.catalogue.labels

    def pictures(self, part: str) -> Pixels:
        """All pictures of a part: uint8 (pictures, height, width, channels)."""
        return self.shards.take(self.parts[part])

    def classes_of(self, part: str) -> npt.NDArray[np.int32]:
        """Class indices of a part: int32 (pictures,)."""
        return self.catalogue.classes[self.parts[part]]


def make_dataset(
    catalogue: Catalogue, recipe: Recipe, split: dict[str, Any], progress: Report | None = None, spec: ImageSpec | None = None
) -> Dataset:
    """Ingest a catalogue and split it; `split` is the keywords of `core.catalogue.split`, sharded pictures stay in their parts.

    Raises DataError.
    """
    if records := records_of(catalogue):
        return Dataset(catalogue, records.matching(spec or recipe.image.spec()), records.parts, records.index.header.leaked)
    parts = catalogues.split(catalogue, **split)
    shards = ingest(catalogue, spec or recipe.image.spec(), progress)
    parts = {name: indices[shards.readable[indices]] for name, indices in parts.items()}
    held_out = np.concatenate([parts["val"], parts["test"]])
    leaked = np.isin(shards.digests[parts["train"]], shards.digests[held_out])
    parts["train"] = parts["train"][~leaked]
    for name, indices in parts.items():
        missing = np.setdiff1d(np.arange(len(catalogue.labels)), catalogue.classes[indices])
        if len(missing) and name != "val":
            why = " (pictures that are also held out for val or test do not count)" if name == "train" and leaked.any() else ""
            raise DataError(
                f"{catalogue.source}: class {catalogue.labels[missing[0]]!r} has no usable picture in {name}{why}; add some"
            )
    return Dataset(catalogue, shards, parts, int(leaked.sum()))


def open_dataset(run: Run, progress: Report | None = None) -> Dataset:
    """The data that a run was trained on, or was given after an import, split as then, its classes in the model's order.

    Raises DataError when it is gone or has changed, ConfigError when an imported run was given none.
    """
    if run.imported:
        since = f"it was given to {run.folder}; give it again: edgeclf export {run.folder} --calibration {run.data}"
        return _in_order(reopen(run.card.provenance, run.recipe, since, progress, run.card.image), run.card.labels)
    since = f"{run.folder} was trained on it; restore it, or train again"
    dataset = reopen(run.card.provenance, run.recipe, since, progress)
    if dataset.labels != run.card.labels:
        raise DataError(f"{run.data}: its classes are not those of {run.folder}; restore the data, or train again")
    return dataset


def _in_order(dataset: Dataset, labels: tuple[str, ...]) -> Dataset:
    """The same pictures with their classes counted as the model does; it may know more classes than there are pictures of.

    Only now that they are split: the order of classes decides which pictures are held out.
    """
    classes = matching_classes(dataset.labels, labels, str(dataset.catalogue.source)).astype(np.int32)
    return replace(dataset, catalogue=replace(dataset.catalogue, labels=labels, classes=classes[dataset.catalogue.classes]))


def reopen(
    provenance: dict[str, Any], recipe: Recipe, since: str, progress: Report | None = None, spec: ImageSpec | None = None
) -> Dataset:
    """The data that `provenance` names, split as it says. Raises DataError when it is gone, or changed since `since`.

    `spec` is what the network takes where the recipe cannot say it: a recipe's pictures are square.
    """
    catalogue = open_catalogue(provenance["data"])
    if catalogue.fingerprint != provenance["fingerprint"]:
        raise DataError(f"{provenance['data']}: has changed since {since}")
    if records_of(catalogue) and split_of(catalogue, recipe) != provenance["split"]:
        raise DataError(f"{provenance['data']}: was sharded again, with other pictures held out, since {since}")
    return make_dataset(catalogue, recipe, provenance["split"], progress, spec)
