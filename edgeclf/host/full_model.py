"""The full model: the float Keras network run by TensorFlow, against which every exported file is measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgeclf.core.image import Pixels
from edgeclf.core.results import score
from edgeclf.host.augment import normalise
from edgeclf.host.data import Dataset
from edgeclf.host.keras import tensorflow

PREDICT_BATCH = 500


def answering(model: Any) -> Callable[[Pixels], Any]:
    """The Keras model as one compiled function: uint8 (pictures, …), prepared → float32 logits (pictures, classes)."""
    tf = tensorflow()
    pixels = tf.TensorSpec(model.input_shape, tf.uint8)  # one trace for batches of any size
    call = tf.function(lambda x: model(normalise(x), training=False), input_signature=[pixels], autograph=False)
    return lambda pictures: call(tf.constant(pictures)).numpy()


def measure(model: Any, dataset: Dataset, part: str) -> dict[str, Any]:
    """Top-1 and top-5 of the full Keras model on a part, as fractions, with the 95% interval of top-1."""
    answer, indices = answering(model), dataset.parts[part]
    batches = (indices[i : i + PREDICT_BATCH] for i in range(0, len(indices), PREDICT_BATCH))  # a large part never lies in memory
    found = score(np.concatenate([answer(dataset.shards.take(b)) for b in batches]), dataset.classes_of(part), dataset.labels)
    interval = found.top1_interval
    return {"top1": found.top1, "top5": found.top5, "low": interval.low, "high": interval.high, "pictures": found.pictures}
