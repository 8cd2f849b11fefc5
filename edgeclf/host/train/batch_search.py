"""The batch size that trains fastest on this machine, by trying."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from edgeclf.core.errors import ConfigError
from edgeclf.core.recipe import Recipe, override
from edgeclf.host import architectures
from edgeclf.host.data.batches import training_batches
from edgeclf.host.data.dataset import Dataset
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.train import precision
from edgeclf.host.train.objective import compile_model

SIZES = (16, 32, 64, 128, 256, 512)
WORTH = 1.1  # a larger batch must be this much faster: smaller ones take more steps, and learn more in an epoch
STEPS, LEAST_STEPS_AN_EPOCH = 4, 10


def fastest(recipe: Recipe, dataset: Dataset) -> int:
    """Pictures a step: the smallest of 16 to 512 that no larger one beats by 10% in pictures a second.

    A size that does not fit into memory ends the search, as does one that leaves fewer than ten steps an epoch. The
    network that is tried is thrown away. Raises ConfigError when not even the smallest fits.
    """
    most = max(SIZES[0], len(dataset.parts["train"]) // LEAST_STEPS_AN_EPOCH)
    speeds: dict[int, float] = {}
    for size in SIZES:
        if size > most:
            break
        try:
            speeds[size] = _pictures_a_second(override(recipe, training__batch_size=size), dataset)
        except tensorflow().errors.ResourceExhaustedError:
            break
    if not speeds:
        raise ConfigError(
            f"{recipe.name}: not even {SIZES[0]} pictures a step fit into memory; take a smaller model or --image-size"
        )
    return chosen(speeds)


def chosen(speeds: dict[int, float]) -> int:
    """The smallest size whose speed no larger one beats by `WORTH`."""
    return min(size for size, speed in speeds.items() if all(speed * WORTH >= other for s, other in speeds.items() if s > size))


def _pictures_a_second(recipe: Recipe, dataset: Dataset) -> float:
    """Speed of training steps after two to warm up, the median of a few."""
    keras().utils.set_random_seed(recipe.training.seed)
    with precision.computing_in(recipe.training.precision):
        model = architectures.build(recipe, len(dataset.labels))
    compile_model(model, recipe.training, STEPS)
    batches: Any = iter(training_batches(dataset, recipe))
    seconds = []
    for _ in range(2 + STEPS):
        batch = next(batches)
        began = time.perf_counter()
        model.train_on_batch(*batch)
        seconds.append(time.perf_counter() - began)
    return recipe.training.batch_size / float(np.median(seconds[2:]))
