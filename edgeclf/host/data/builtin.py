"""Data sets known by name: scikit-learn's digits, and CIFAR through Keras' own loader or from its binary archive."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.catalogue import UNSPLIT, Catalogue, from_arrays
from edgeclf.core.errors import DataError, MissingExtra

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN, _TEST = 0, 2
_MAX_CIFAR_BYTES = 64 << 20


def digits() -> Catalogue:
    """1,797 real scans of handwritten digits, 8x8 grey (Alpaydin and Kaynak 1998), shipped with scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra.for_extra("train", "the data set 'digits' comes with scikit-learn") from error
    bunch = load_digits()
    pictures = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    unsplit = np.full(len(pictures), UNSPLIT, np.int8)
    return from_arrays(Path("digits"), pictures, bunch.target, tuple(str(d) for d in range(10)), unsplit)


def cifar10() -> Catalogue:
    """CIFAR-10 (Krizhevsky 2009): from Keras' cache, else downloaded by Keras, which is announced."""
    return _cifar("cifar10", "cifar-10-batches-py", CIFAR10)


def cifar100() -> Catalogue:
    """CIFAR-100 with its fine labels, numbered as in the original; from Keras' cache, else downloaded."""
    return _cifar("cifar100", "cifar-100-python", tuple(f"{i:02d}" for i in range(100)))


def _cifar(name: str, folder: str, labels: tuple[str, ...]) -> Catalogue:
    from edgeclf.host.keras import keras

    loader: Any = getattr(keras().datasets, name)
    if not list(Path.home().joinpath(".keras", "datasets").glob(f"{folder}*")):
        print(f"downloading {name} (about 170 MB) into ~/.keras/datasets with Keras' loader", file=sys.stderr)
    try:
        (x, y), (x_test, y_test) = loader.load_data()
    except Exception as error:  # Keras raises bare Exception when a download fails
        raise DataError(f"{name}: could not be loaded by Keras ({error}); give a folder or archive of it instead") from error
    folders = np.concatenate([np.full(len(x), _TRAIN, np.int8), np.full(len(x_test), _TEST, np.int8)])
    return from_arrays(Path(name), np.concatenate([x, x_test]), np.concatenate([y, y_test]).reshape(-1), labels, folders)


def is_cifar_archive(path: Path) -> bool:
    """True for a file named like the archives on CIFAR's page: cifar-10-binary.tar.gz and its siblings."""
    return (
        path.name.startswith(("cifar-10-", "cifar-100-")) and path.name.endswith((".tar.gz", ".tgz", ".tar")) and path.is_file()
    )


def cifar_archive(path: Path) -> Catalogue:
    """CIFAR-10 or CIFAR-100 from its binary archive: label byte(s), then 32x32 red, green and blue bytes.

    Raises DataError for the Python archive, whose pickles could run code, and for anything cut short.
    """
    label_bytes, names = (1, "batches.meta.txt") if path.name.startswith("cifar-10-") else (2, "fine_label_names.txt")
    try:
        with tarfile.open(path) as archive:
            files = {Path(m.name).name: archive.extractfile(m) for m in archive if m.isfile() and m.size <= _MAX_CIFAR_BYTES}
            found = {name: file.read() for name, file in files.items() if file and name.endswith((".bin", ".txt"))}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: the archive is damaged: {error}") from error
    batches = sorted(name for name in found if name.endswith(".bin"))
    if not batches or names not in found:
        raise DataError(
            f"{path}: not CIFAR's binary version (its Python version holds pickles, which edgeclf does not open); use that"
        )
    record = label_bytes + 3 * 32 * 32
    if any(len(found[name]) % record for name in batches):
        raise DataError(f"{path}: a batch is cut short; fetch the archive again")
    rows = [np.frombuffer(found[name], np.uint8).reshape(-1, record) for name in batches]
    folders = np.concatenate(
        [np.full(len(r), _TEST if n.startswith("test") else _TRAIN, np.int8) for n, r in zip(batches, rows, strict=True)]
    )
    table = np.concatenate(rows)
    pictures = np.ascontiguousarray(table[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    labels = tuple(line for line in found[names].decode().splitlines() if line.strip())
    return from_arrays(path, pictures, table[:, label_bytes - 1].astype(np.int32), labels, folders)


LOADERS: dict[str, Callable[[], Catalogue]] = {"digits": digits, "cifar10": cifar10, "cifar100": cifar100}
