"""Bias correction: int8 rounding shifts the mean of a layer's outputs, and the layer's bias takes the shift back.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", the empirical form: means are
those over calibration pictures, layer by layer, each after those before it were corrected.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclf.core.image import Pixels
from edgeclf.core.tflite import Operator, TfliteModel, read_model
from edgeclf.host.export.faces import packed, take_in
from edgeclf.host.export.quant_errors import Tensors

PLACES = {"CONV_2D": (0, 1, 2), "DEPTHWISE_CONV_2D": (0, 1, 2), "FULLY_CONNECTED": (0, 1, 2)}  # input, weights, bias
MOST_PICTURES = 100
ROUNDS = 3  # behind a ReLU a mean moves less than the bias, so one step falls short


def corrected(float32: bytes, int8: bytes, pictures: Pixels) -> bytes:
    """The int8 file with int32 biases changed so that each layer's mean output is the float32 file's; the rest stays.

    `pictures` are uint8 (n, height, width, channels), of which the first 100 are used.
    """
    from ai_edge_litert import schema_py_generated as schema

    pictures, structure = pictures[:MOST_PICTURES], read_model(int8, "int8")
    wanted = _means(float32, [structure.tensors[o.outputs[0]].name for o in _with_bias(structure)], pictures)
    for operator in _with_bias(structure):
        name = structure.tensors[operator.outputs[0]].name
        if name not in wanted:
            continue
        for _ in range(ROUNDS):
            int8 = _moved(int8, operator, wanted[name] - _means(int8, [name], pictures)[name], schema)
    return int8


def _with_bias(model: TfliteModel) -> list[Operator]:
    return [
        operator
        for operator in model.operators
        if operator.name in PLACES and len(operator.inputs) > 2 and operator.inputs[2] >= 0
        and model.tensors[operator.inputs[0]].type == "int8" and model.tensors[operator.inputs[2]].type == "int32"
    ]  # fmt: skip


def _means(model: bytes, names: list[str], pictures: Pixels) -> dict[str, Any]:
    """The mean of each channel of those tensors over places and pictures, as real numbers, float64 (channels,)."""
    tensors = Tensors(model)
    present = [name for name in names if name in tensors.by_name]
    sums: dict[str, Any] = dict.fromkeys(present, 0.0)
    for picture in pictures:
        tensors.run(picture)
        for name in present:
            values = tensors.real(name).reshape(-1, tensors.by_name[name].shape[-1])
            sums[name] = sums[name] + values.mean(axis=0, dtype=np.float64)
    return {name: total / len(pictures) for name, total in sums.items()}


def _moved(model: bytes, operator: Operator, shift: Any, schema: Any) -> bytes:
    """The file with the bias of one operator moved by `shift`, in real numbers."""
    structure = read_model(model, "int8")
    given, weights, bias = (structure.tensors[operator.inputs[place]] for place in PLACES[operator.name])
    step = np.asarray(weights.scales) * given.scales[0]
    tree = schema.ModelT.InitFromPackedBuf(model)
    take_in(tree, model)
    buffer = tree.buffers[bias.buffer]
    old = np.frombuffer(bytes(bytearray(buffer.data)), np.int32).astype(np.int64)
    limits = np.iinfo(np.int32)
    new = np.clip(old + np.round(shift / step).astype(np.int64), limits.min, limits.max).astype(np.int32)
    buffer.data = np.frombuffer(new.tobytes(), np.uint8)
    return packed(tree, schema)
