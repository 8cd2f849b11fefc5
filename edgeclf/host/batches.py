"""Batches for training and validation: drawn, augmented and normalised, as `tf.data`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeclf.core.recipe import Recipe, TrainingSection
from edgeclf.host.augment import augment, normalise
from edgeclf.host.data import Dataset
from edgeclf.host.keras import tensorflow

VALIDATION_BATCH = 500
MAX_STEPS = 100_000  # an epoch; keeps the seeds of two epochs apart


def training_batches(dataset: Dataset, recipe: Recipe, first_epoch: int = 0) -> Any:
    """An endless `tf.data.Dataset` of augmented, normalised batches; epoch and step alone decide what each holds."""
    tf = tensorflow()
    shape = dataset.shards.shape
    batches = tf.data.Dataset.from_generator(
        lambda: _batches(dataset, recipe.training, first_epoch),
        output_signature=(
            tf.TensorSpec((None, *shape), tf.uint8),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((2,), tf.int32),
        ),
    )

    def ready(pictures: Any, classes: Any, seed: Any) -> tuple[Any, Any]:
        return normalise(augment(pictures, seed, recipe.augmentation)), classes

    return batches.map(ready, num_parallel_calls=1, deterministic=True).prefetch(4)


def _batches(dataset: Dataset, section: TrainingSection, first_epoch: int) -> Iterator[tuple[Any, Any, Any]]:
    part, size = dataset.parts["train"], batch_size(dataset, section)
    epoch = first_epoch
    while True:
        order = np.random.RandomState([section.seed, epoch]).permutation(part)
        for step in range(len(order) // size):
            chosen = order[step * size : (step + 1) * size]
            seed = np.array([section.seed, epoch * MAX_STEPS + step], np.int32)
            yield dataset.shards.take(chosen), dataset.catalogue.classes[chosen], seed
        epoch += 1


def validation_batches(dataset: Dataset) -> Any:
    """The validation part in order, normalised, as a finite `tf.data.Dataset`."""
    tf = tensorflow()
    part = dataset.parts["val"]

    def batches() -> Iterator[tuple[Any, Any]]:
        for first in range(0, len(part), VALIDATION_BATCH):
            chosen = part[first : first + VALIDATION_BATCH]
            yield dataset.shards.take(chosen), dataset.catalogue.classes[chosen]

    signature = tf.TensorSpec((None, *dataset.shards.shape), tf.uint8), tf.TensorSpec((None,), tf.int32)
    return tf.data.Dataset.from_generator(batches, output_signature=signature).map(lambda x, y: (normalise(x), y))


def batch_size(dataset: Dataset, section: TrainingSection) -> int:
    """Pictures a step: the recipe's, or all training pictures where there are fewer."""
    return min(section.batch_size, len(dataset.parts["train"]))
