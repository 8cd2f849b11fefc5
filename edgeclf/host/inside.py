"""What a TFLite file is made of, whatever it scores: multiply-accumulates, weights, and how many of them are zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeclf.core.tflite import Operator, TfliteModel, read_model

COMPUTE = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
WEIGHTS = 1  # their place among the inputs
STORED = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "uint8": np.uint8}


@dataclass(frozen=True)
class Inside:
    """Of one picture and the whole network: `macs` multiply-accumulates, `weights` of convolutions and dense layers.

    `zeros` is the share of these weights that are zero, so that they add nothing.
    """

    macs: int
    weights: int
    zeros: float


def look_inside(model: bytes) -> Inside:
    """Count in a TFLite flatbuffer. Raises ModelError for a broken one."""
    from ai_edge_litert import schema_py_generated as schema

    structure = read_model(model, "model")
    buffers = schema.ModelT.InitFromPackedBuf(model).buffers
    macs = weights = zeros = 0
    for operator in structure.operators:
        if operator.name not in COMPUTE:
            continue
        tensor = structure.tensors[stored_weights(operator, structure)]
        macs += _macs(operator, structure)
        weights += tensor.elements
        if tensor.type in STORED:
            values = np.frombuffer(_bytes(buffers[tensor.buffer], model), STORED[tensor.type])
            # of what is stored: in sparse encoding the zeros are left out
            zeros += tensor.elements - int(np.sum(values != (tensor.zero_points[0] if tensor.zero_points else 0)))
    return Inside(macs, weights, zeros / max(1, weights))


def _bytes(buffer: Any, model: bytes) -> bytes:
    """The content of a buffer, inside the flatbuffer or behind it."""
    if buffer.offset > 1:
        return model[buffer.offset : buffer.offset + buffer.size]
    return np.asarray([] if buffer.data is None else buffer.data, np.uint8).tobytes()


def stored_weights(operator: Operator, model: TfliteModel) -> int:
    """The tensor that holds the weights, behind the DEQUANTIZE of a weight-only file and the DENSIFY of a sparse one."""
    index = operator.inputs[WEIGHTS]
    for unpacked_by in ("DEQUANTIZE", "DENSIFY"):
        before = model.producer(index)
        index = before.inputs[0] if before is not None and before.name == unpacked_by else index
    return index


def _macs(operator: Operator, model: TfliteModel) -> int:
    """Each weight is used once at every place of the output map."""
    weights, out = model.tensors[operator.inputs[WEIGHTS]], model.tensors[operator.outputs[0]]
    places = int(np.prod(np.abs(out.shape[1:-1]))) if operator.name != "FULLY_CONNECTED" else 1
    return weights.elements * places
