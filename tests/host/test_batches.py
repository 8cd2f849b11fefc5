"""Batches: what an epoch draws, and what augmentation does to it."""

from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

from edgeclf.core.recipe import AugmentationSection, TrainingSection
from edgeclf.host.augment.augment import augment
from edgeclf.host.data.batches import _batches
from edgeclf.host.keras import tensorflow

STEPS = 3
PART = np.arange(100, 150)


def _drawn(first_epoch=0, epochs=2, seed=1):
    """(indices, seed of the augmentation) of each step; 50 pictures in batches of 16."""
    shards = SimpleNamespace(take=lambda chosen: chosen)
    dataset = SimpleNamespace(parts={"train": PART}, shards=shards, catalogue=SimpleNamespace(classes=np.arange(200)))
    section = TrainingSection(batch_size=16, seed=seed)
    return [(taken, tuple(s)) for taken, _, s in islice(_batches(dataset, section, first_epoch), epochs * STEPS)]


def test_an_epoch_takes_every_picture_at_most_once_and_the_next_another_order():
    """The two left over by batches of 16 are not always the same ones."""
    epochs = [np.concatenate([taken for taken, _ in _drawn()[i * STEPS : (i + 1) * STEPS]]) for i in (0, 1)]
    for taken in epochs:
        assert len(set(taken.tolist())) == len(taken) == 48
        assert set(taken.tolist()) <= set(PART.tolist())
    assert (epochs[0] != epochs[1]).any()


def test_every_step_of_every_epoch_augments_by_a_seed_of_its_own():
    """Otherwise each epoch would show the same few changes again."""
    seeds = [seed for _, seed in _drawn(epochs=20)]
    assert len(set(seeds)) == len(seeds) == 20 * STEPS


def test_an_epoch_is_the_same_whether_or_not_the_training_was_interrupted_before_it():
    """And another for another seed."""
    whole, resumed, other = _drawn(epochs=2)[STEPS:], _drawn(first_epoch=1, epochs=1), _drawn(first_epoch=1, epochs=1, seed=2)
    for (a, seed_a), (b, seed_b), (c, seed_c) in zip(whole, resumed, other, strict=True):
        assert np.array_equal(a, b)
        assert seed_a == seed_b != seed_c
        assert not np.array_equal(a, c)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_shift_reflects_what_lies_beyond_the_border(axis):
    """Every row of a shifted ramp is a window of the ramp padded as NumPy's `reflect` does, by at most the given share."""
    size, reach = 16, 4
    ramp = np.arange(size, dtype=np.uint8)
    shape = [1, 1, 1, 1]
    shape[axis] = size
    pictures = np.broadcast_to(ramp.reshape(shape), (64, size, size, 1)).copy()
    found = augment(tensorflow().constant(pictures), (1, 2), AugmentationSection(flip=False, shift=reach / size)).numpy()
    padded = np.pad(ramp, reach, mode="reflect")
    windows = {tuple(padded[i : i + size].tolist()) for i in range(2 * reach + 1)}
    seen = {tuple((picture[:, 0, 0] if axis == 1 else picture[0, :, 0]).tolist()) for picture in found}
    assert seen <= windows
    assert len(seen) > reach
