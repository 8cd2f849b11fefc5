"""Static int8 quantisation of an ONNX model: float32 in, the same with QuantizeLinear and DequantizeLinear around it out.

`onnxruntime.quantization` writes them; the ranges are recorded here, on the pictures that calibrate the TFLite file and by
the same rule for outlying ones (`activations.robust_range`).

Weights are int8, one scale a channel, symmetric; activations int8, asymmetric. On processors with AVX2 or AVX-512 but no VNNI,
ONNX Runtime adds pairs of products in 16 bits, which overflow; on ARM and with VNNI nothing does. A file must answer alike
wherever it runs, so dense convolutions and dense layers get weights of 7 bits, whose sums fit; depthwise kernels, which are
summed in 32 bits, keep 8. The logits are not rounded. uint8 weights overflow nowhere, but they are not what int8 promises.

MEASURED against the float model on x86 with AVX2 alone: share of equal answers, error of the logits (rms).

    weights, activations          compact, digits, 269   resnet8, digits, 269   MobileNet V1 0.25, cats-dogs, 500
    8 bits, int8                  93.3%  1.113           98.5%  0.015           97.4%  0.256
    8 bits, uint8                 93.3%  1.113           77.3%  0.206           97.4%  0.256
    7 bits, int8 or uint8         100%   0.091           96.3%  0.016           98.2%  0.197
    as here                       100%   0.087           97.8%  0.016           99.0%  0.148 (1,000 pictures)
    8 bits, computed in floats    99.6%  0.078           98.5%  0.015
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from edgeclf.core.errors import DataError, MissingExtra, ModelError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.host.export.activations import robust_range
from edgeclf.host.export.to_onnx import serialized
from edgeclf.host.imports import house_onnx
from edgeclf.host.quiet import quiet
from edgeclf.runtime.engine import cores

FLOAT = 1  # TensorProto.FLOAT
IN_FLOATS = ("Softmax",)  # of 256 steps a probability keeps too little
MOVES = ("Transpose", "Reshape", "Squeeze", "Flatten", "MaxPool")  # named after a layer, whose output they need not be
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")

Ranges = dict[str, tuple[float, float]]
"""(low, high) of every float tensor that is computed at run time, by name."""


def record_ranges(float32: bytes, image: ImageSpec, batches: Iterable[Pixels]) -> Ranges:
    """Run uint8 batches (n, height, width, channels) through the model and note the range of every tensor.

    Pictures are computed one by one, and of each two numbers a tensor are kept, so memory does not grow with the pictures
    but for those. The input's range is that of all pixel values. Raises DataError when there is no picture.
    """
    tree = _inferred(float32)
    given = tree.graph.input[0]
    watched = [value for value in tree.graph.value_info if value.type.tensor_type.elem_type == FLOAT]
    known = {value.name for value in tree.graph.output}
    tree.graph.output.extend(value for value in watched if value.name not in known)
    session, last = _session(serialized(tree)), given.type.tensor_type.shape.dim[3].dim_value
    names = [value.name for value in session.get_outputs()]
    extremes = [
        [(found.min(), found.max()) for found in session.run(names, {given.name: normalised(picture[None], image, last)})]
        for batch in batches
        for picture in batch
    ]
    if not extremes:
        raise DataError("no calibration picture; the training part is empty")
    seen = np.asarray(extremes, np.float32)
    ranges = {name: robust_range(seen[:, i, 0], seen[:, i, 1]) for i, name in enumerate(names)}
    return {**ranges, given.name: ((0 - image.mean) / image.std, (255 - image.mean) / image.std)}


def computed(float32: bytes) -> list[str]:
    """Names of the tensors whose range is their own, and not that of what was moved into them."""
    tree = house_onnx.read(float32, "float32 model")
    return [node.output[0] for node in tree.graph.node if node.op_type not in MOVES]


def quantize(float32: bytes, ranges: Ranges) -> bytes:
    """The model in int8, as the module says. Same input, same bytes. Raises ModelError where the quantiser fails."""
    tree = _inferred(float32)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = _quantized(tree, ranges)
        except Exception as error:  # the quantiser raises ValueError, KeyError, AttributeError and others of its own
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"onnx-int8: onnxruntime's quantiser refused the model: {lines[0][:300]}; run again as: edgeclf --debug …"
            ) from error
    _leave_logits(made)
    del made.graph.value_info[:], made.metadata_props[:]  # sizes that everybody infers again, and the quantiser's own notes
    return serialized(made)


def _quantized(tree: Any, ranges: Ranges) -> Any:
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    found = {
        name: TensorData(lowest=np.asarray(low, np.float32), highest=np.asarray(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    quantizer = quantization.QDQQuantizer(
        tree, per_channel=True, reduce_range=True, weight_qType=quantization.QuantType.QInt8,
        activation_qType=quantization.QuantType.QInt8,
        tensors_range=TensorsData(quantization.CalibrationMethod.MinMax, found), nodes_to_quantize=[], nodes_to_exclude=[],
        op_types_to_quantize=_operators(),
        extra_options={"ForceQuantizeNoInputCheck": True, "TensorQuantOverrides": _depthwise(tree)},
    )  # fmt: skip
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    return quantizer.model.model


def _operators() -> list[str]:
    """Every operator that the quantiser knows, but those that stay in floats."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted({*QDQRegistry, *QLinearOpsRegistry} - set(IN_FLOATS))


def _depthwise(tree: Any) -> dict[str, list[dict[str, Any]]]:
    """Options of the quantiser for depthwise kernels: one input channel a group, all 8 bits."""
    weights = {tensor.name: tensor for tensor in tree.graph.initializer}
    return {
        node.input[1]: [{"axis": 0, "reduce_range": False}]
        for node in tree.graph.node
        if node.op_type == "Conv" and node.input[1] in weights and _is_depthwise(node, weights[node.input[1]])
    }


def _is_depthwise(node: Any, weights: Any) -> bool:
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return bool(groups > 1 and weights.dims[1] == 1)


def _leave_logits(tree: Any) -> None:
    """Take out the pair of quantisers before the final Softmax, so that logits are what the last sums give."""
    makers = {tensor: node for node in tree.graph.node for tensor in node.output}
    last = makers.get(tree.graph.output[0].name)
    if last is None or last.op_type != "Softmax":
        return
    pair, node = [], makers.get(last.input[0])
    for wanted in reversed(QUANTIZERS):
        if node is None or node.op_type != wanted or _readers(tree, node.output[0]) != 1:
            return
        pair.append(node)
        node = makers.get(node.input[0])
    last.input[0] = pair[1].input[0]
    for done in pair:
        tree.graph.node.remove(done)
    used = {name for node in tree.graph.node for name in node.input}
    kept = [tensor for tensor in tree.graph.initializer if tensor.name in used]
    copies = [type(tensor).FromString(tensor.SerializeToString()) for tensor in kept]
    del tree.graph.initializer[:]
    tree.graph.initializer.extend(copies)


def _readers(tree: Any, tensor: str) -> int:
    return sum(list(node.input).count(tensor) for node in tree.graph.node)


def normalised(pictures: Pixels, image: ImageSpec, last: int, kind: str = "tensor(float)") -> Any:
    """Pictures as the input tensor takes them: channels first unless they are its `last` size, pixels where it takes uint8."""
    ready: Any = pictures
    if kind == "tensor(float)":
        ready = (pictures.astype(np.float32) - np.float32(image.mean)) / np.float32(image.std)
    return ready if last in (1, 3) else np.ascontiguousarray(ready.transpose(0, 3, 1, 2))


def _inferred(model: bytes) -> Any:
    """With types and shapes of every tensor; `strict_mode` off, because a foreign operator may have none."""
    from onnx import shape_inference

    tree = shape_inference.infer_shapes(house_onnx.read(model, "float32 model"))
    if tree.graph.input[0].type.tensor_type.elem_type != FLOAT:
        raise ModelError("onnx-int8: the model takes no floats, so its input has no range; import one that takes floats")
    return tree


def _session(model: bytes) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra.for_extra("train", "the package onnxruntime is not installed") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = cores(), 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
