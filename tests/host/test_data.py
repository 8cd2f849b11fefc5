"""Ingest, cache and parts of a data set."""

import os

import cv2
import numpy as np
import pytest

from edgeclf.core import catalogue as catalogues
from edgeclf.core import files
from edgeclf.core.errors import DataError
from edgeclf.core.image import ImageSpec
from edgeclf.core.recipe import DataSection, ImageSection, ModelSection, Recipe
from edgeclf.host.data.dataset import ingest, make_dataset

SPLIT = {"seed": 1, "val": 0.1, "val_pictures": 100, "test": 0.2}
RECIPE = Recipe("t", "t", ModelSection("compact"), ImageSection(8), data=DataSection())


def _folder(top, per_class=10, size=(12, 10)):
    random = np.random.RandomState(0)
    for label in ("cat", "dog"):
        (top / label).mkdir(parents=True)
        for i in range(per_class):
            cv2.imwrite(str(top / label / f"{i:02d}.png"), random.randint(0, 255, (*size, 3), np.uint8))
    return top


def test_shards_hold_exactly_what_prepare_gives(tmp_path):
    """Training sees the same bytes as the device."""
    catalogue, spec = catalogues.scan(_folder(tmp_path / "d")), ImageSpec(8, 8)
    shards, prepared = ingest(catalogue, spec), catalogues.prepared(catalogue, spec)
    order = np.array([7, 0, 19, 7])
    assert np.array_equal(shards.take(order), np.stack([prepared(i) for i in order]))


def test_pictures_spread_over_many_shards_come_back_in_order(tmp_path, monkeypatch):
    """A shard boundary is invisible."""
    monkeypatch.setattr("edgeclf.host.data.dataset.SHARD_BYTES", 8 * 8 * 8 * 3 * 3)
    catalogue, spec = catalogues.scan(_folder(tmp_path / "d")), ImageSpec(8, 8, fit="crop")
    shards, prepared = ingest(catalogue, spec), catalogues.prepared(catalogue, spec)
    assert len(shards.maps) == 7
    assert np.array_equal(shards.take(np.arange(20)), np.stack([prepared(i) for i in range(20)]))


def test_second_ingest_decodes_nothing(tmp_path, monkeypatch):
    """The cache answers; the pictures are not opened again."""
    catalogue, spec = catalogues.scan(_folder(tmp_path / "d")), ImageSpec(8, 8)
    first = ingest(catalogue, spec).take(np.arange(20))
    monkeypatch.setattr(catalogues, "prepared", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(ingest(catalogue, spec).take(np.arange(20)), first)


def test_the_same_size_fitted_in_another_way_is_another_cache(tmp_path):
    """Everything that preprocessing follows is part of the key."""
    catalogue = catalogues.scan(_folder(tmp_path / "d"))
    stretched, cropped = (ingest(catalogue, ImageSpec(8, 8, fit)).take(np.arange(20)) for fit in ("stretch", "crop"))
    assert not np.array_equal(stretched, cropped)


def test_changed_picture_is_read_again(tmp_path):
    """The cache is keyed by names, sizes and times."""
    top = _folder(tmp_path / "d")
    before = ingest(catalogues.scan(top), ImageSpec(8, 8)).take(np.array([0]))
    cv2.imwrite(str(top / "cat" / "00.png"), np.zeros((9, 9, 3), np.uint8))
    assert not np.array_equal(ingest(catalogues.scan(top), ImageSpec(8, 8)).take(np.array([0])), before)


@pytest.mark.parametrize("file", ["00000.npy", "digests.npy", "index.json"])
def test_damaged_cache_is_made_again(tmp_path, monkeypatch, file):
    """As a power cut leaves it: a file cut short never costs more than reading the pictures once more."""
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path / "cache"))
    catalogue, spec = catalogues.scan(_folder(tmp_path / "d")), ImageSpec(8, 8)
    first = ingest(catalogue, spec).take(np.arange(20))
    damaged = next((tmp_path / "cache" / "shards").glob(f"*/{file}"))
    damaged.write_bytes(damaged.read_bytes()[:50])
    assert np.array_equal(ingest(catalogue, spec).take(np.arange(20)), first)


def test_what_a_killed_ingest_left_is_swept_and_one_at_work_is_not(tmp_path, monkeypatch):
    """`kill -9` cannot clean up after itself."""
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path / "cache"))
    left, busy, fresh = (tmp_path / "cache" / "shards" / f".building-{name}" for name in ("left", "busy", "fresh"))
    for folder in (left, busy, fresh):
        folder.mkdir(parents=True)
    for folder in (left, busy):
        os.utime(folder, (0, 0))
    with files.locked(busy):
        ingest(catalogues.scan(_folder(tmp_path / "d")), ImageSpec(8, 8))
    assert [folder.exists() for folder in (left, busy, fresh)] == [False, True, True]


def test_picture_that_could_not_be_opened_is_tried_again(tmp_path, monkeypatch):
    """A missing permission is mended without touching the picture, so the cache must not remember it for ever."""
    top = _folder(tmp_path / "d")
    catalogue, real = catalogues.scan(top), catalogues.picture_bytes

    def refused(path):
        if path.name == "03.png":
            raise DataError(f"{path}: cannot be read: Permission denied") from PermissionError()
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(catalogues, "picture_bytes", refused)
        skipped = ingest(catalogue, ImageSpec(8, 8)).skipped
        assert skipped == (
            ("cat/03.png", "cannot be read: Permission denied"),
            ("dog/03.png", "cannot be read: Permission denied"),
        )
    assert ingest(catalogue, ImageSpec(8, 8)).skipped == ()


def test_classes_emptied_by_duplicates_say_so(tmp_path):
    """When every training picture is held out too, 'add some' alone would puzzle."""
    _folder(tmp_path / "d" / "train")
    _folder(tmp_path / "d" / "test")
    with pytest.raises(DataError, match=r"no usable picture in train \(pictures that are also held out"):
        make_dataset(catalogues.scan(tmp_path / "d"), RECIPE, SPLIT)


def test_unreadable_pictures_are_listed_and_left_out(tmp_path):
    """One broken file costs one picture, not the run."""
    top = _folder(tmp_path / "d")
    (top / "cat" / "03.png").write_bytes(b"not a picture")
    dataset = make_dataset(catalogues.scan(top), RECIPE, SPLIT)
    assert [name for name, _ in dataset.shards.skipped] == ["cat/03.png"]
    assert dataset.shards.skipped[0][1] == "is not a picture that OpenCV can read"
    assert sum(len(p) for p in dataset.parts.values()) == 19


def test_nothing_readable_is_an_error_and_leaves_no_cache(tmp_path, monkeypatch):
    """All broken: one line, and no half-made shards."""
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path / "cache"))
    for label in ("cat", "dog"):
        (tmp_path / "d" / label).mkdir(parents=True)
        (tmp_path / "d" / label / "a.jpg").write_bytes(b"\xff\xd8 no")
    with pytest.raises(DataError, match="none of 2 pictures"):
        ingest(catalogues.scan(tmp_path / "d"), ImageSpec(8, 8))
    assert list((tmp_path / "cache" / "shards").iterdir()) == []


def test_training_pictures_that_are_also_held_out_are_dropped(tmp_path):
    """The same picture under train and test would make the test lie."""
    top = tmp_path / "d"
    _folder(top / "train")
    _folder(top / "test", per_class=1)  # the same random stream: its pictures repeat some of train's
    dataset = make_dataset(catalogues.scan(top), RECIPE, SPLIT)
    digests = dataset.shards.digests
    assert dataset.leaked >= 1
    assert not np.isin(digests[dataset.parts["train"]], digests[dataset.parts["test"]]).any()


def test_parts_are_disjoint_stratified_and_repeatable(tmp_path):
    """Every class stands in every part; the seed decides."""
    catalogue = catalogues.scan(_folder(tmp_path / "d", per_class=20))
    one, two = make_dataset(catalogue, RECIPE, SPLIT), make_dataset(catalogue, RECIPE, SPLIT)
    joined = np.concatenate(list(one.parts.values()))
    assert sorted(joined) == list(range(40))
    assert all(np.array_equal(one.parts[p], two.parts[p]) for p in one.parts)
    assert all(len(set(one.classes_of(p))) == 2 for p in one.parts)


def test_full_disk_is_one_line_that_names_the_cache(tmp_path, monkeypatch):
    """A cache that cannot be made is a StorageError."""
    from edgeclf.core.errors import StorageError

    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("EDGECLF_CACHE", str(blocked))
    with pytest.raises(StorageError, match="EDGECLF_CACHE"):
        ingest(catalogues.scan(_folder(tmp_path / "d")), ImageSpec(8, 8))
