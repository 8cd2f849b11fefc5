"""Catalogue: which pictures a data set holds, without reading them; and reading one of them by index.

A data set is a folder of class folders, optionally under train/val/test; a .zip or .tar of that; or an .npz of arrays.
Archives are never unpacked to disk: a picture is read at its offset, so no name inside can reach outside.
"""

from __future__ import annotations

import array
import hashlib
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeclf.core import archive
from edgeclf.core.archive import Entry
from edgeclf.core.errors import DataError
from edgeclf.core.image import EXTENSIONS, ImageSpec, Pixels, decode, picture_bytes, prepare
from edgeclf.core.text import has_control_character

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"
}  # fmt: skip
UNSPLIT = -1
MAX_CLASSES = 100_000


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Pictures of one data set in a fixed order: sorted by name, so equal on every machine.

    `names` are paths relative to the top, with `/`. `classes` is int32 (pictures,), indices into `labels`.
    `folders` is int8 (pictures,): the index in SPLITS of the folder a picture lies under, or UNSPLIT. `places` is int64
    (pictures, 3): offset, stored bytes and compression method inside an archive, zeros elsewhere. `arrays` holds RGB or grey
    pictures for the kind `arrays`, and gives one by index for `shards`, which `host.data.shards` opens. `fingerprint` is a
    hexadecimal SHA-256 over names below the top and sizes (of the contents, for arrays), equal for the same data in a folder,
    a zip and a copy on another machine; `cache_key` also covers checksums or times, to notice a changed picture.
    `empty_classes` are class folders without a picture.
    """

    source: Path
    kind: Literal["folder", "zip", "tar", "arrays", "shards"]
    labels: tuple[str, ...]
    names: Sequence[str]
    classes: npt.NDArray[np.int32]
    folders: npt.NDArray[np.int8]
    places: npt.NDArray[np.int64]
    fingerprint: str
    cache_key: str
    arrays: Pixels | Any = None
    empty_classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def scan(source: Path) -> Catalogue:
    """List the pictures of a folder, .zip, .tar or .npz.

    Raises DataError when there is no such thing, no picture, fewer than two classes, a class without pictures, or one whose
    name cannot stand on a line of its own, as it must in an exported file.
    """
    if source.is_dir():
        return _catalogue(source, "folder", archive.folder_entries(source))
    if not source.is_file():
        raise DataError(f"{source}: no such folder or file; give a folder of class folders, a .zip, .tar or .npz of it")
    if zipfile.is_zipfile(source):
        return _scan_npz(source) if source.suffix == ".npz" else _catalogue(source, "zip", archive.zip_entries(source))
    if tarfile.is_tarfile(source):
        return _catalogue(source, "tar", archive.tar_entries(source))
    raise DataError(f"{source}: neither a folder nor a readable .zip, .tar or .npz archive")


def from_arrays(
    source: Path,
    pictures: Pixels,
    classes: npt.NDArray[np.integer[Any]],
    labels: tuple[str, ...],
    folders: npt.NDArray[np.int8] | None = None,
) -> Catalogue:
    """A catalogue of pictures held in memory.

    `pictures` is uint8 (pictures, height, width) or (…, 1 or 3), RGB; `classes` are integers in [0, len(labels)).
    Raises DataError when shapes, types or counts do not fit together.
    """
    if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[3] not in (1, 3)):
        raise DataError(
            f"{source}: x must be uint8 of (pictures, height, width[, 1 or 3]), not {pictures.dtype} of {pictures.shape}"
        )
    if classes.shape != (len(pictures),) or not np.issubdtype(classes.dtype, np.integer):
        raise DataError(
            f"{source}: y must hold one whole number a picture: {len(pictures)}, not {classes.dtype} of {classes.shape}"
        )
    if len(classes) and not (classes.min() >= 0 and classes.max() < len(labels)):
        raise DataError(f"{source}: y reaches from {classes.min()} to {classes.max()}, but there are {len(labels)} classes")
    counts = np.bincount(classes, minlength=len(labels))
    digest = hashlib.sha256(repr((pictures.shape, labels)).encode())
    for part in (pictures, classes.astype(np.int32), folders if folders is not None else np.zeros(0, np.int8)):
        digest.update(np.ascontiguousarray(part).data)
    catalogue = Catalogue(
        source, "arrays", labels, tuple(f"{i:07d}" for i in range(len(pictures))), classes.astype(np.int32),
        np.full(len(pictures), UNSPLIT, np.int8) if folders is None else folders, np.zeros((len(pictures), 3), np.int64),
        digest.hexdigest(), digest.hexdigest(), pictures, tuple(label for label, n in zip(labels, counts, strict=True) if not n),
    )  # fmt: skip
    return _checked(catalogue)


def reader(catalogue: Catalogue) -> Callable[[int], Pixels]:
    """A function that gives picture `i` decoded, (height, width, 3) BGR uint8; it raises DataError for a broken one.

    It keeps one file handle open and is not safe to share between threads; make one in each.
    """
    if catalogue.arrays is not None:
        arrays = catalogue.arrays
        return lambda i: _bgr(arrays[i])
    read = bytes_reader(catalogue)
    return lambda i: decode(read(i), catalogue.names[i])


def bytes_reader(catalogue: Catalogue) -> Callable[[int], bytes]:
    """A function that gives the encoded bytes of picture `i`, as they lie in the folder or archive."""
    if catalogue.arrays is not None:
        arrays = catalogue.arrays
        return lambda i: arrays[i].tobytes()
    if catalogue.kind == "folder":
        return lambda i: picture_bytes(catalogue.source / catalogue.names[i])
    handle = catalogue.source.open("rb")
    if catalogue.kind == "tar":
        return lambda i: archive.range_bytes(handle, *catalogue.places[i, :2].tolist())
    return lambda i: archive.zip_bytes(handle, catalogue.names[i], *catalogue.places[i].tolist())


def prepared(catalogue: Catalogue, spec: ImageSpec) -> Callable[[int], Pixels]:
    """A function that gives picture `i` ready for the network: uint8 of `spec.shape`."""
    read = reader(catalogue)
    return lambda i: prepare(read(i), spec)


def split(catalogue: Catalogue, seed: int, val: float, val_pictures: int, test: float) -> dict[str, npt.NDArray[np.int64]]:
    """Indices of the `train`, `val` and `test` pictures, each sorted; a function of names, classes and `seed` alone.

    Folders named train, val or test are kept as they are; what is missing is drawn from train, stratified: `test` as a
    share, then `val` as a share of what is left, at most `val_pictures` in all. Every class keeps at least one picture
    in train and in each part that is drawn, or DataError is raised.
    """
    parts = {name: np.flatnonzero(catalogue.folders == i) for i, name in enumerate(SPLITS)}
    parts["train"] = np.flatnonzero((catalogue.folders == 0) | (catalogue.folders == UNSPLIT))
    _check_enough(catalogue, parts)
    random = np.random.RandomState(seed)  # the frozen generator: the same stream in every numpy
    if not len(parts["test"]):
        parts["test"], parts["train"] = _draw(catalogue, parts["train"], test, random)
    if not len(parts["val"]):
        share = min(val, val_pictures / max(1, len(parts["train"])))
        parts["val"], parts["train"] = _draw(catalogue, parts["train"], share, random)
    return parts


def _check_enough(catalogue: Catalogue, parts: dict[str, npt.NDArray[np.int64]]) -> None:
    """One training picture a class, and one for each part that must be drawn from them."""
    drawn = [name for name in ("val", "test") if not len(parts[name])]
    purpose = f" to hold some out for {' and '.join(drawn)}" if drawn else ""
    counts = np.bincount(catalogue.classes[parts["train"]], minlength=len(catalogue.labels)).tolist()
    for label, count in zip(catalogue.labels, counts, strict=True):
        if count <= len(drawn):
            raise DataError(
                f"{catalogue.source}: class {label!r} has {count} picture(s) to train on; "
                f"it needs at least {1 + len(drawn)}{purpose}"
            )


def _draw(
    catalogue: Catalogue, pool: npt.NDArray[np.int64], share: float, random: np.random.RandomState
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Take `share` of each class from `pool`, at least one picture; returns (taken, left), both sorted."""
    taken = []
    for i in range(len(catalogue.labels)):
        members = pool[catalogue.classes[pool] == i]
        count = min(len(members) - 1, max(1, round(len(members) * share)))
        taken.append(random.permutation(members)[:count])
    chosen = np.sort(np.concatenate(taken))
    return chosen, np.setdiff1d(pool, chosen, assume_unique=True)


def _catalogue(source: Path, kind: Literal["folder", "zip", "tar"], entries: Iterable[Entry]) -> Catalogue:
    """Columns instead of objects: a listing of millions of pictures must fit a small machine."""
    names: list[str] = []
    columns = array.array("q")  # size, mark, offset, stored, method of each name
    folders = set()
    for name, *numbers in entries:
        if name.endswith("/"):
            folders.add(name)
        elif PurePosixPath(name).suffix.lower() in EXTENSIONS:
            names.append(name)
            columns.extend(numbers)
    top = _common_top(names)
    homes, parts = [], array.array("b")
    for name in names:
        part, label = _home(name, top)
        homes.append(label)
        parts.append(part)
    chosen = [i for i in sorted(range(len(names)), key=names.__getitem__) if homes[i]]
    labels = tuple(sorted({homes[i] for i in chosen}))
    index = {label: i for i, label in enumerate(labels)}
    table = np.frombuffer(columns, np.int64).reshape(-1, 5) if names else np.zeros((0, 5), np.int64)
    same, changed = hashlib.sha256(), hashlib.sha256()
    for i in chosen:
        below = names[i].split("/", top)[-1]
        same.update(f"{below}\0{table[i, 0]}\n".encode("utf-8", "surrogateescape"))
        changed.update(f"{names[i]}\0{table[i, 0]}\0{table[i, 1]}\n".encode("utf-8", "surrogateescape"))
    classes = np.array([index[homes[i]] for i in chosen], np.int32)
    empty = {_home(f"{name}.", top)[1] for name in folders} - set(labels) - {""}
    return _checked(
        Catalogue(
            source, kind, labels, tuple(names[i] for i in chosen), classes,
            np.array(parts, np.int8)[chosen], table[chosen, 2:],
            same.hexdigest(), changed.hexdigest(), None, tuple(sorted(empty)),
        )
    )  # fmt: skip


def _home(name: str, top: int) -> tuple[int, str]:
    """(index in SPLITS or UNSPLIT, label) of a picture's path below the `top` shared folders; label "" outside a class."""
    parts = name.split("/")[top:]
    folder = SPLIT_FOLDERS.get(parts[0].lower())
    inner = parts[1:] if folder else parts
    label = sys.intern(inner[0]) if len(inner) >= 2 else ""
    return (SPLITS.index(folder) if folder else UNSPLIT), label


def _checked(catalogue: Catalogue) -> Catalogue:
    source, labels = catalogue.source, catalogue.labels
    if not len(catalogue):
        raise DataError(f"{source}: no pictures found; expected CLASS/picture.jpg, optionally under train/, val/, test/")
    if catalogue.empty_classes:
        raise DataError(f"{source}: class {catalogue.empty_classes[0]!r} has no pictures; add some or remove the folder")
    if len(labels) < 2:
        raise DataError(f"{source}: only one class, {labels[0]!r}; a classifier needs at least two class folders")
    for label in labels:
        if not label.strip() or has_control_character(label):
            raise DataError(f"{source}: class {label!r}: is blank, or has a line break or a broken character; rename it")
    if len(set(labels)) < len(labels):
        raise DataError(f"{source}: class {max(labels, key=labels.count)!r} is named twice; give each its own name")
    return catalogue


def _common_top(names: list[str]) -> int:
    """How many leading folders all pictures share, as in an archive with one top folder; class folders are never such.

    A shared folder only counts as a wrapper when at least two more levels, class and picture, lie below it everywhere.
    """
    depth = 0
    while names:
        first = names[0].split("/")[depth]
        if first.lower() in SPLIT_FOLDERS or not all(_lies_under(name, first, depth) for name in names):
            break
        depth += 1
    return depth


def _lies_under(name: str, folder: str, depth: int) -> bool:
    parts = name.split("/")
    return len(parts) > depth + 2 and parts[depth] == folder


def _scan_npz(path: Path) -> Catalogue:
    """x and y, or x_train, y_train, x_test, y_test (and _val); optionally `labels`."""
    try:
        with np.load(path, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as .npz: {error}") from error
    suffixes = [""] if "x" in arrays else [f"_{s}" for s in SPLITS if f"x_{s}" in arrays]
    missing = [f"{letter}{s}" for s in suffixes for letter in "xy" if letter + s not in arrays]
    if not suffixes or missing:
        raise DataError(f"{path}: expected the arrays x and y, or x_train, y_train, x_test, y_test; found: {', '.join(arrays)}")
    try:
        x = np.concatenate([arrays[f"x{s}"] for s in suffixes])
        y = np.concatenate([arrays[f"y{s}"].reshape(-1) for s in suffixes])
    except ValueError as error:
        raise DataError(f"{path}: the arrays of its parts do not fit together: {error}") from error
    folders = np.concatenate([np.full(len(arrays[f"x{s}"]), SPLITS.index(s[1:]) if s else UNSPLIT, np.int8) for s in suffixes])
    labels, y = _npz_labels(path, y, arrays.get("labels"))
    return from_arrays(path, x, y, labels, folders)


def _npz_labels(path: Path, y: npt.NDArray[Any], known: npt.NDArray[Any] | None) -> tuple[tuple[str, ...], npt.NDArray[Any]]:
    """(labels, class indices): from the array `labels`, from names in y, or numbers from 0 to the largest in y."""
    if known is not None:
        return tuple(map(str, known.reshape(-1))), y
    if y.dtype.kind in "US":
        found, indices = np.unique(y, return_inverse=True)
        return tuple(map(str, found)), indices
    if not np.issubdtype(y.dtype, np.integer) or y.max(initial=0) >= MAX_CLASSES:
        raise DataError(f"{path}: y must hold class names, or whole numbers from 0 to {MAX_CLASSES - 1}; it is {y.dtype}")
    return tuple(str(i) for i in range(int(y.max(initial=0)) + 1)), y


def _bgr(picture: Pixels) -> Pixels:
    if picture.ndim == 2 or picture.shape[2] == 1:
        return np.repeat(picture.reshape(*picture.shape[:2], 1), 3, axis=2)
    return picture[:, :, ::-1]
