"""CIFAR's binary archives, byte by byte: which byte is the label, and how a picture's planes lie."""

import io
import tarfile

import numpy as np
import pytest

from edgeclf.host.data.builtin import cifar_archive


@pytest.mark.parametrize(("name", "before", "names"), [("10", [], "batches.meta.txt"), ("100", [7], "fine_label_names.txt")])
def test_the_fine_label_and_the_planes_are_read_as_cifars_page_says(tmp_path, name, before, names):
    """CIFAR-100 puts the coarse label first; pixels are 1,024 bytes of red, green and blue each, row by row."""
    picture = np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype=np.uint8)
    record = [bytes([*before, label]) + picture.transpose(2, 0, 1).tobytes() for label in (1, 0)]
    contents = {"train.bin": record[0] + record[1], "test.bin": record[1] + record[0], names: b"apple\nbaby\n"}
    path = tmp_path / f"cifar-{name}-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inside, data in contents.items():
            entry = tarfile.TarInfo(f"cifar/{inside}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    found = cifar_archive(path)
    assert found.labels == ("apple", "baby")
    assert sorted(zip(found.folders.tolist(), found.classes.tolist(), strict=True)) == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert all((one == picture).all() for one in found.arrays)
    assert found.classes[found.folders == 0].tolist() == [1, 0]
