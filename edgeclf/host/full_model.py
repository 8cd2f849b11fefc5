"""The full model, against which every exported file is measured: the float Keras network run by TensorFlow.

A run that was imported without a Keras network has a float32 `.tflite` or an `.onnx` in its place, run by their runtimes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.bundle import Bundle, model_bytes
from edgeclf.core.image import Pixels
from edgeclf.core.results import score
from edgeclf.host.augment.augment import normalise
from edgeclf.host.data.dataset import Dataset
from edgeclf.host.keras import tensorflow
from edgeclf.host.run import FULL, MODEL, ONNX, Run
from edgeclf.runtime.engine import cores, open_engine

PREDICT_BATCH = 500


@dataclass(frozen=True, eq=False)
class FullModel:
    """The full model of a run, ready to answer: `infer` takes uint8 pictures, prepared, and gives float32 logits.

    `keras` is the `tf_keras.Model`, None where the run holds none; `runtime` and `threads` are in words.
    """

    infer: Callable[[Pixels], Any]
    path: Path
    classes: int
    parameters: int
    runtime: str
    threads: str
    keras: Any = None


def open_full(run: Run) -> FullModel:
    """The full model of a run, whatever it is. Raises ModelError when it cannot be loaded."""
    path = run.model_file
    if path.name == MODEL:
        return _of_keras(run.model(), path)
    bundle = Bundle(model_bytes(path), run.card, run.card.labels, str(path))
    engine = open_engine(bundle)
    if path.name == ONNX:
        from edgeclf.host.imports.house_onnx import parameters

        count = parameters(bundle.model, bundle.name)
    else:
        count = sum(t.elements for t in bundle.structure.tensors if t.constant and t.type == "float32")
    return FullModel(engine.infer, path, len(run.card.labels), count, engine.runtime, str(engine.threads))


def open_reference(run: Run) -> FullModel:
    """What the files of a run are compared with: its full model or, of a compressed run, that of the run it was made from."""
    return _of_keras(run.full_model(), run.full_file) if run.full_file.name == FULL else open_full(run)


def _of_keras(model: Any, path: Path) -> FullModel:
    return FullModel(answering(model), path, model.output_shape[-1], int(model.count_params()), *runtime_names(), model)


def answering(model: Any) -> Callable[[Pixels], Any]:
    """The Keras model as one compiled function: uint8 (pictures, …), prepared → float32 logits (pictures, classes)."""
    tf = tensorflow()
    pixels = tf.TensorSpec(model.input_shape, tf.uint8)  # one trace for batches of any size
    call = tf.function(lambda x: model(normalise(x), training=False), input_signature=[pixels], autograph=False)
    # Of one function for each of several models TensorFlow thinks that it is traced too often, and says so; not of this.
    traced = cache(call.get_concrete_function)
    return lambda pictures: traced()(tf.constant(pictures)).numpy()


def runtime_names() -> tuple[str, str]:
    """Runtime and threads of the full model, in words."""
    tf = tensorflow()
    threads = tf.config.threading.get_intra_op_parallelism_threads() or f"all of {cores()}"
    device = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return f"TensorFlow {tf.__version__}, tf.function on {device}", str(threads)


def measure(model: Any, dataset: Dataset, part: str) -> dict[str, Any]:
    """Top-1 and top-5 of the full Keras model on a part, as fractions, with the 95% interval of top-1."""
    answer, indices = answering(model), dataset.parts[part]
    batches = (indices[i : i + PREDICT_BATCH] for i in range(0, len(indices), PREDICT_BATCH))  # a large part never lies in memory
    found = score(np.concatenate([answer(dataset.shards.take(b)) for b in batches]), dataset.classes_of(part), dataset.labels)
    interval = found.top1_interval
    return {"top1": found.top1, "top5": found.top5, "low": interval.low, "high": interval.high, "pictures": found.pictures}
