"""Data sets known by name."""

import io
import tarfile

import numpy as np
import pytest

from edgeclf.core.errors import DataError
from edgeclf.host.data import builtin
from edgeclf.host.data.dataset import open_catalogue


def _archive(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def _record(label, red, green, blue):
    return bytes([label]) + bytes([red]) * 1024 + bytes([green]) * 1024 + bytes([blue]) * 1024


def test_digits_are_the_real_scans_with_ten_classes():
    """All 1,797 scans, full contrast, no folders of their own."""
    digits = open_catalogue("digits")
    assert len(digits) == 1797
    assert digits.labels == tuple("0123456789")
    assert digits.arrays.max() == 255


def test_cifar_binary_archive_gives_pictures_labels_and_the_official_split(tmp_path):
    """Planes become channels, the label byte becomes the class, test_batch becomes the test part."""
    meta = b"red\nblue\n\n"
    files = {
        "batches.meta.txt": meta,
        "data_batch_1.bin": _record(0, 255, 0, 0) + _record(1, 0, 0, 255),
        "test_batch.bin": _record(1, 0, 0, 250),
    }
    found = open_catalogue(str(_archive(tmp_path / "cifar-10-binary.tar.gz", files)))
    assert found.labels == ("red", "blue")
    assert found.classes.tolist() == [0, 1, 1]
    assert found.folders.tolist() == [0, 0, 2]
    assert found.arrays[0, 0, 0].tolist() == [255, 0, 0]
    assert np.array_equal(found.arrays[1, 31, 31], [0, 0, 255])


def test_cifar_python_archive_is_refused_because_of_its_pickles(tmp_path):
    """The message names the version to use instead."""
    path = _archive(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": b"\x80\x02."})
    with pytest.raises(DataError, match="binary version"):
        open_catalogue(str(path))


def test_cifar_batch_cut_short_is_an_error(tmp_path):
    """A batch whose length is no multiple of a record cannot be trusted."""
    path = _archive(tmp_path / "cifar-10-binary.tar.gz", {"batches.meta.txt": b"a\nb\n", "data_batch_1.bin": b"\0" * 3000})
    with pytest.raises(DataError, match="cut short"):
        builtin.cifar_archive(path)
