"""Batches for training and validation: drawn, augmented and normalised, as `tf.data`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.recipe import Recipe, TrainingSection
from edgeclf.host.augment.augment import augment, mix, normalise
from edgeclf.host.data.dataset import Dataset
from edgeclf.host.data.shards import stream
from edgeclf.host.data.shards.records import Records
from edgeclf.host.keras import tensorflow

VALIDATION_BATCH = 500
MAX_STEPS = 100_000  # an epoch; keeps the seeds of two epochs apart


@dataclass(frozen=True)
class Share:
    """What one worker of several takes of each batch, in as many pieces as it has devices."""

    worker: int = 0
    workers: int = 1
    devices: int = 1

    @property
    def pieces(self) -> int:
        """Of a batch, over all workers."""
        return self.workers * self.devices


def training_batches(dataset: Dataset, recipe: Recipe, first_epoch: int = 0, share: Share | None = None) -> Any:
    """An endless `tf.data.Dataset` of augmented, normalised batches; epoch and step alone decide what each holds.

    Elements are (pictures, class indices), or targets (pictures, classes) in place of the indices where the recipe mixes
    pictures; with `class_balance` of "weights" a weight of each picture comes third. With a `share`, which needs shards, they
    are the pieces of one worker, from shards of its own.
    """
    tf = tensorflow()
    section, augmentation, classes = recipe.training, recipe.augmentation, len(dataset.labels)
    weights = tf.constant(class_weights(dataset)) if section.class_balance == "weights" else None
    batches = tf.data.Dataset.from_generator(
        lambda: _batches(dataset, section, first_epoch, share or Share()),
        output_signature=(
            tf.TensorSpec((None, *dataset.shards.shape), tf.uint8),
            tf.TensorSpec((None,), tf.int32),
            tf.TensorSpec((2,), tf.int32),
        ),
    )

    def ready(pictures: Any, truth: Any, seed: Any) -> tuple[Any, ...]:
        given = (tf.gather(weights, truth),) if weights is not None else ()
        pictures = normalise(augment(pictures, seed, augmentation))
        if not mixes(recipe):
            return pictures, truth, *given
        return *mix(pictures, tf.one_hot(truth, classes), seed, augmentation), *given

    plain = tf.autograph.experimental.do_not_convert(ready)  # nothing in it branches on tensors
    return batches.map(plain, num_parallel_calls=1, deterministic=True).prefetch(4)


def mixes(recipe: Recipe) -> bool:
    """Whether pictures of a batch are mixed, so that targets are distributions and no classes."""
    return bool(recipe.augmentation.mixup or recipe.augmentation.cutmix)


def class_weights(dataset: Dataset) -> npt.NDArray[np.float32]:
    """What a picture of each class counts in the loss, float32 (classes,): 1 on average, inverse to the class's share."""
    counts = np.bincount(dataset.classes_of("train"), minlength=len(dataset.labels))
    return np.asarray(counts.sum() / (len(counts) * np.maximum(counts, 1)), np.float32)


def streamed(dataset: Dataset) -> Records | None:
    """The shards that training pictures come from one after another; None where a part of them was chosen, or there are none."""
    shards = dataset.shards
    return shards if isinstance(shards, Records) and dataset.parts["train"] is shards.parts["train"] else None


def _batches(
    dataset: Dataset, section: TrainingSection, first_epoch: int, share: Share = Share()
) -> Iterator[tuple[Any, Any, Any]]:
    epoch, size = first_epoch, batch_size(dataset, section) // share.pieces
    while True:
        drawn = islice(_epoch(dataset, section, epoch, size, share), steps_of(dataset, section) * share.devices)
        for step, (pictures, chosen) in enumerate(drawn):
            seed = np.array([(section.seed + share.worker) % 2**31, epoch * MAX_STEPS + step], np.int32)
            yield pictures, dataset.catalogue.classes[chosen], seed
        epoch += 1


def _epoch(dataset: Dataset, section: TrainingSection, epoch: int, size: int, share: Share) -> Iterator[tuple[Any, Any]]:
    """(pictures, which they are) of each batch; the epoch again where a worker's own pictures are too few, as may happen
    when some are drawn more often than others."""
    records = streamed(dataset)
    if not records:
        order = _order(dataset, section, epoch)
        for first in range(0, len(order) - size + 1, size):
            yield dataset.shards.take(order[first : first + size]), order[first : first + size]
        return
    times = None
    if section.class_balance == "sampling":
        times = np.bincount(_order(dataset, section, epoch), minlength=len(dataset.catalogue))
    drawn = 0
    while True:
        for batch in stream.batches(records, stream.Draw(section.seed, epoch, size, share.worker, share.workers, times)):
            drawn += 1
            yield batch
        if not drawn:
            raise DataError(f"{dataset.catalogue.source}: too few pictures for {share.workers} workers; train with fewer")


def _order(dataset: Dataset, section: TrainingSection, epoch: int) -> npt.NDArray[np.int64]:
    """The training pictures of an epoch; with balanced sampling as many, but equally many of each class."""
    random, part = np.random.RandomState([section.seed, epoch]), dataset.parts["train"]
    if section.class_balance != "sampling":
        return random.permutation(part)
    truth, classes = dataset.classes_of("train"), len(dataset.labels)
    shares = np.bincount(np.arange(len(part)) % classes, minlength=classes)  # sums to the number of pictures
    drawn = [_repeated(random, part[truth == number], share) for number, share in enumerate(shares)]
    return random.permutation(np.concatenate(drawn))


def _repeated(random: np.random.RandomState, pictures: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """`count` of `pictures`, each before any comes again."""
    rounds = [random.permutation(pictures) for _ in range(-(-count // len(pictures)))]
    return np.concatenate([*rounds, pictures[:0]])[:count]


def validation_batches(dataset: Dataset, recipe: Recipe) -> Any:
    """The validation part in order, normalised, as a finite `tf.data.Dataset`; targets are of the kind of the training's."""
    tf = tensorflow()
    part, classes, dense = dataset.parts["val"], len(dataset.labels), mixes(recipe)

    def batches() -> Iterator[tuple[Any, Any]]:
        for first in range(0, len(part), VALIDATION_BATCH):
            chosen = part[first : first + VALIDATION_BATCH]
            yield dataset.shards.take(chosen), dataset.catalogue.classes[chosen]

    signature = tf.TensorSpec((None, *dataset.shards.shape), tf.uint8), tf.TensorSpec((None,), tf.int32)
    return tf.data.Dataset.from_generator(batches, output_signature=signature).map(
        lambda x, y: (normalise(x), tf.one_hot(y, classes) if dense else y)
    )


def batch_size(dataset: Dataset, section: TrainingSection) -> int:
    """Pictures a step: the recipe's, or all training pictures where there are fewer."""
    return min(section.batch_size, len(dataset.parts["train"]))


def check_shares(size: int, pieces: int) -> None:
    """Raise ConfigError for a batch that cannot be divided evenly among workers and their devices."""
    if not size:
        raise ConfigError("batch size 0: each worker would find one of its own; give --batch-size")
    if size % pieces:
        raise ConfigError(
            f"batch size {size}: cannot be divided among {pieces} workers; take a multiple of {pieces}: --batch-size"
        )


def steps_of(dataset: Dataset, section: TrainingSection) -> int:
    """Steps of an epoch; pictures that fill no batch wait for another epoch."""
    return len(dataset.parts["train"]) // batch_size(dataset, section)
