"""Files of Keras 3: read with Keras 3 itself, which comes with TensorFlow, and built again in tf-keras, layer by layer.

Only in a process of its own (see import_child.py): Keras 3 is loaded beside tf-keras, and a file is a stranger's.
"""

from __future__ import annotations

import inspect
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.errors import ModelError
from edgeclf.host.graphs import Call, with_weights
from edgeclf.host.keras import keras, tensorflow

RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
ELSEWHERE = ("_initializer", "_regularizer", "_constraint")  # they matter to training alone, and are written another way


ARITHMETIC: dict[str, Call] = {
    "Add": operator.add, "Subtract": operator.sub, "Multiply": operator.mul, "TrueDivide": operator.truediv,
    "Divide": operator.truediv,
}  # fmt: skip


class Untranslatable(Exception):
    """A layer or operation that tf-keras does not have."""


def keras3() -> Any:
    """The module `keras`, version 3, on TensorFlow."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    tensorflow()
    import keras as module

    return module


def load(path: Path, trust: bool) -> Any:
    """The Keras 3 model in a `.keras` or `.h5` file. Raises ModelError."""
    try:
        return keras3().models.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # Keras names its failures in many ways
        raise ModelError(f"Keras {keras3().__version__} cannot load it: {' '.join(str(error).split())[:200]}") from error


def translate(model: Any) -> Any:
    """The same network as a functional `tf_keras.Model`. Raises Untranslatable, naming what tf-keras lacks."""
    graph = _graph(model)
    if graph is None or len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise Untranslatable("its graph, which is no functional one with one input and one output")
    inputs = keras().layers.Input(tuple(graph.inputs[0].shape)[1:])
    outputs = _walk(graph, inputs, {})
    return keras().Model(inputs, outputs, name=model.name)


def _graph(model: Any) -> Any:
    """The functional graph of a model: itself, or what a Sequential holds inside; None for any other."""
    if hasattr(model, "_nodes_by_depth"):
        return model
    inner = getattr(model, "_functional", None)
    return inner if inner is not None and hasattr(inner, "_nodes_by_depth") else None


def _walk(graph: Any, tensor: Any, made: dict[int, Call]) -> Any:
    values = {id(graph.inputs[0]): tensor}
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if node.operation is None or node.is_input:
                continue
            arguments, keywords = node.arguments.fill_in(values)
            inner = _graph(node.operation)
            if inner is not None:
                answer = _walk(inner, arguments[0], made)
            else:
                call = made.setdefault(id(node.operation), _translated(node.operation))
                answer = call(*arguments, **{k: v for k, v in keywords.items() if k not in ("training", "mask")})
            if len(node.outputs) != 1:
                raise Untranslatable(f"{node.operation.name} with {len(node.outputs)} outputs")
            values[id(node.outputs[0])] = answer
    return values[id(graph.outputs[0])]


def _translated(operation: Any) -> Call:
    kind = type(operation).__name__
    cls = getattr(keras().layers, kind, None)
    if not isinstance(operation, keras3().layers.Layer):
        cls = None
        if kind in ARITHMETIC:
            return ARITHMETIC[kind]
    if cls is None:
        raise Untranslatable(f"{kind} ({operation.name})")
    try:
        return _same_layer(operation, cls, kind)
    except (TypeError, ValueError) as error:  # a setting that the older Keras does not know
        raise Untranslatable(f"{kind} ({operation.name}) as it is set") from error


def _same_layer(operation: Any, cls: Any, kind: str) -> Call:
    if kind == "Normalization":
        numbers = {"mean": np.asarray(operation.mean).reshape(-1), "variance": np.asarray(operation.variance).reshape(-1)}
        return with_weights(cls, {"name": operation.name, **numbers}, [])
    known = inspect.signature(cls.__init__).parameters
    config = {RENAMED.get(kind, {}).get(key, key): _plain(value) for key, value in operation.get_config().items()}
    kept = {key: value for key, value in config.items() if key in known and not key.endswith(ELSEWHERE)}
    return with_weights(cls, {**kept, "name": operation.name}, operation.get_weights())


def _plain(value: Any) -> Any:
    """A function's name where Keras 3 writes a description of it."""
    if isinstance(value, dict) and value.get("class_name") == "function":
        return value["config"]
    return value
