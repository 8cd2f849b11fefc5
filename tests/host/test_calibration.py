"""Which pictures calibrate: training pictures only, by class, seeded, streamed and listed."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from edgeclf.core.catalogue import from_arrays
from edgeclf.core.errors import DataError
from edgeclf.core.recipe import load_recipe, override
from edgeclf.host.data import calibration
from edgeclf.host.data.dataset import make_dataset


@pytest.fixture(scope="module")
def dataset():
    """400 pictures of noise, three classes of 50, 30 and 20%."""
    random = np.random.RandomState(1)
    pictures, classes = random.randint(0, 256, (400, 8, 8, 3), dtype=np.uint8), np.arange(400) % 10
    names = np.array([0] * 5 + [1] * 3 + [2] * 2)
    catalogue = from_arrays(Path("noise.npz"), pictures, names[classes], ("a", "b", "c"))
    recipe = override(load_recipe("compact"), image__size=8)
    return make_dataset(catalogue, recipe, {"seed": 1, "val": 0.1, "val_pictures": 100, "test": 0.2})


def test_calibration_pictures_are_never_held_out(dataset):
    """Not one of them lies in val or test."""
    chosen = calibration.draw(dataset, 150, seed=3).indices
    assert np.isin(chosen, dataset.parts["train"]).all()
    assert not np.isin(chosen, np.concatenate([dataset.parts["val"], dataset.parts["test"]])).any()


@pytest.mark.parametrize("part", ["val", "test"])
def test_asking_for_held_out_pictures_is_refused(dataset, part):
    """The message says why."""
    with pytest.raises(DataError, match=f"'{part}' is held out"):
        calibration.draw(dataset, 50, seed=1, part=part)


def test_damaged_split_is_refused(dataset):
    """A split whose parts overlap would calibrate on test pictures."""
    overlapping = dataclasses.replace(dataset, parts={**dataset.parts, "test": dataset.parts["train"][:5]})
    with pytest.raises(DataError, match="held out too"):
        calibration.draw(overlapping, 50, seed=1)


def test_every_class_calibrates_by_its_share(dataset):
    """50, 30 and 20% of the pictures, as in the training part."""
    manifest = calibration.draw(dataset, 100, seed=1).manifest()
    assert manifest["per_class"] == {"a": 50, "b": 30, "c": 20}


def test_seed_decides_and_manifest_lists(dataset):
    """The same seed draws the same pictures, another one others; the card lists them by index and by a hash of their names."""
    first, again, other = (calibration.draw(dataset, 60, seed=s) for s in (1, 1, 2))
    assert first.manifest() == again.manifest()
    assert first.manifest()["indices"] != other.manifest()["indices"]
    listed = [int(i) for i in first.manifest()["indices"].split()]
    assert listed == first.indices.tolist()
    names = "\n".join(dataset.catalogue.names[i] for i in listed)
    assert first.manifest()["names_sha256"] == hashlib.sha256(names.encode()).hexdigest()


def test_pictures_come_in_batches_with_progress(dataset):
    """A few at a time, in the order of the indices; progress ends at the total."""
    chosen, seen = calibration.draw(dataset, 115, seed=1), []
    batches = list(chosen.batches(lambda done, total: seen.append((done, total))))
    assert {len(b) for b in batches[:-1]} == {calibration.BATCH}
    assert np.array_equal(np.concatenate(batches), dataset.shards.take(chosen.indices))
    assert seen[-1] == (115, 115)


@pytest.mark.parametrize(
    ("members", "count", "dealt"),
    [([5, 3], 100, [5, 3]), ([100, 1], 10, [9, 1]), ([10, 10, 10], 4, [2, 1, 1]), ([50, 50, 50], 2, [1, 1, 1])],
)
def test_shares_are_proportional_with_at_least_one_each(members, count, dealt):
    """Small classes are not rounded away; few pictures are all taken."""
    assert calibration.shares(np.array(members), count) == dealt
