"""A bounds-checked reader of the TFLite flatbuffer: tensors, operators and metadata, without an interpreter.

The slots below are the places of fields in the tables of TensorFlow Lite's `schema.fbs`. Hostile bytes raise ModelError,
after bounded work.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property

from edgeclf.core.errors import ModelError
from edgeclf.core.flatbuffer import Flatbuffer, Table

IDENTIFIER = b"TFL3"
MAX_RANK = 16
# The converter leaves weights with fewer elements as they are when it quantises weights only.
SMALL_WEIGHTS = 1024

TYPES = (
    "float32", "float16", "int32", "uint8", "int64", "string", "bool", "int16", "complex64", "int8", "float64", "complex128",
    "uint64", "resource", "variant", "uint32", "uint16", "int4", "bfloat16", "int2", "uint4", "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip

OPERATORS = {
    0: "ADD", 1: "AVERAGE_POOL_2D", 2: "CONCATENATION", 3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 5: "DEPTH_TO_SPACE",
    6: "DEQUANTIZE", 8: "FLOOR", 9: "FULLY_CONNECTED", 11: "L2_NORMALIZATION", 12: "L2_POOL_2D",
    13: "LOCAL_RESPONSE_NORMALIZATION", 14: "LOGISTIC", 16: "LSTM", 17: "MAX_POOL_2D", 18: "MUL", 19: "RELU",
    20: "RELU_N1_TO_1", 21: "RELU6", 22: "RESHAPE", 23: "RESIZE_BILINEAR", 25: "SOFTMAX", 26: "SPACE_TO_DEPTH",
    27: "SVDF", 28: "TANH", 34: "PAD", 36: "GATHER", 37: "BATCH_TO_SPACE_ND", 38: "SPACE_TO_BATCH_ND", 39: "TRANSPOSE",
    40: "MEAN", 41: "SUB", 42: "DIV", 43: "SQUEEZE", 45: "STRIDED_SLICE", 47: "EXP", 48: "TOPK_V2", 49: "SPLIT",
    50: "LOG_SOFTMAX", 53: "CAST", 54: "PRELU", 55: "MAXIMUM", 56: "ARG_MAX", 57: "MINIMUM", 59: "NEG", 60: "PADV2",
    65: "SLICE", 67: "TRANSPOSE_CONV", 69: "TILE", 70: "EXPAND_DIMS", 73: "LOG", 74: "SUM", 75: "SQRT", 76: "RSQRT",
    77: "SHAPE", 78: "POW", 80: "FAKE_QUANT", 82: "REDUCE_MAX", 83: "PACK", 88: "UNPACK", 89: "REDUCE_MIN",
    92: "SQUARE", 97: "RESIZE_NEAREST_NEIGHBOR", 98: "LEAKY_RELU", 99: "SQUARED_DIFFERENCE", 100: "MIRROR_PAD",
    101: "ABS", 102: "SPLIT_V", 111: "ELU", 114: "QUANTIZE", 117: "HARD_SWISH", 118: "IF", 119: "WHILE",
    124: "DENSIFY", 126: "BATCH_MATMUL", 130: "BROADCAST_TO", 150: "GELU", 152: "RELU_0_TO_1", 206: "STABLEHLO_COMPOSITE",
}  # fmt: skip
CUSTOM, SOFTMAX_OPTIONS = 32, 9
PASSES_VALUES_ON = ("QUANTIZE", "DEQUANTIZE")

# (activation, weights) of one compute operator → the scheme of a file in which all are so.
SCHEMES = {
    ("float32", "float32"): "float32",
    ("float32", "float16"): "float16",
    ("float16", "float16"): "float16",
    ("float32", "int8"): "dynamic-w8",
    ("float32", "int4"): "dynamic-w4",
    ("int8", "int8"): "int8",
    ("int8", "int4"): "w4a8",
    ("int16", "int8"): "w8a16",
    ("uint8", "uint8"): "uint8",
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the main graph. real = scale * (stored - zero_point).

    `scales` and `zero_points` are empty when the tensor is not quantised, of length 1 when it is so as a whole, and one
    per channel along `quantized_dimension` otherwise. `shape` holds -1 where a size is open. `buffer_bytes` is 0 for what
    is computed at run time and the stored size for a constant.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    quantized_dimension: int
    buffer: int
    buffer_bytes: int

    @property
    def constant(self) -> bool:
        return self.buffer_bytes > 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operator:
    """One operator: builtin name, `BUILTIN_n`, or a custom operator's own name; tensor indices, -1 for one left out."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class TfliteModel:
    """The main graph of a file: operators in the order of execution; `inputs` and `outputs` are tensor indices."""

    description: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: dict[str, bytes]

    @property
    def input(self) -> Tensor:
        """The first input tensor."""
        return self.tensors[self.inputs[0]]

    @property
    def output(self) -> Tensor:
        """The first output tensor."""
        return self.tensors[self.outputs[0]]

    def producer(self, tensor: int) -> Operator | None:
        """The operator that computes that tensor; None for inputs and constants."""
        return self._producers.get(tensor)

    @cached_property
    def _producers(self) -> dict[int, Operator]:
        return {tensor: op for op in reversed(self.operators) for tensor in op.outputs}


def read_model(data: bytes, where: str) -> TfliteModel:
    """The structure of a `.tflite` file; what follows the flatbuffer in `data` is ignored.

    Raises ModelError, naming `where`, when the bytes are not a whole TFLite model with at least one input and output.
    """
    model = root_table(data, where)
    graph = _main_graph(model)
    buffers = [_buffer(table) for table in model.tables(4)]
    tensors = tuple(_tensor(table, buffers) for table in graph.tables(0))
    codes = [_operator_name(table) for table in model.tables(1)]
    operators = tuple(_operator(table, codes, len(tensors)) for table in graph.tables(3))
    inputs, outputs = (_indices(graph, slot, 0, len(tensors)) for slot in (1, 2))
    if not inputs or not outputs:
        raise ModelError(f"{where}: the model has no input or no output")
    metadata = {table.text(0): _metadata_bytes(table, buffers) for table in model.tables(6)}
    return TfliteModel(model.text(3), tensors, operators, inputs, outputs, metadata)


def scheme(model: TfliteModel) -> str:
    """The compression scheme that the operands of convolutions and dense layers show; the type of input and output is no part.

    One of `float32`, `float16`, `dynamic-w8`, `dynamic-w4`, `weight-only-w8`, `int8`, `w4a8`, `w8a16`, `uint8`; `mixed` when
    operators differ or a pair of types is none of these, `unknown` when no operator has weights. `-sparse` behind it says that
    some weights are stored without their zeros.
    """
    kinds = [(kind, small) for op in model.operators for kind, small in _compute_kinds(model, op)]
    large = {kind for kind, small in kinds if not small} or {kind for kind, _ in kinds}
    # Small weights stay float in weight-only schemes; in any other company a float layer is a layer that was left out.
    if not all(kind.startswith(("dynamic", "weight-only", "float")) for kind, _ in kinds):
        large = {kind for kind, _ in kinds}
    if not large:
        return "unknown"
    found = large.pop() if len(large) == 1 else "mixed"
    return f"{found}-sparse" if any(op.name == "DENSIFY" for op in model.operators) else found


def named_scheme(variant: str) -> str:
    """The scheme that the name of a variant claims: `int8` of `int8-qat`, every other its own."""
    return variant.removesuffix("-qat")


def logits_view(data: bytes) -> bytes:
    """The model with its first output moved to the tensor that feeds the final SOFTMAX; `data` itself when there is none.

    A QUANTIZE or DEQUANTIZE behind the SOFTMAX is looked through. Sizes and offsets stay; one int32 changes. Raises
    ModelError for a broken file, or a SOFTMAX that multiplies its input (`beta` other than 1).
    """
    logits = logits_tensor(read_model(data, "model"))
    if logits is None:
        return data
    at, _ = _main_graph(root_table(data, "model")).vector_place(2, 4)
    rest = memoryview(data)
    return b"".join((rest[:at], struct.pack("<i", logits), rest[at + 4 :]))


def logits_tensor(model: TfliteModel) -> int | None:
    """Index of the tensor that feeds the SOFTMAX at the end of the graph; None when the graph does not end in one."""
    tensor = model.outputs[0]
    for _ in range(len(model.operators)):
        op = model.producer(tensor)
        if op is None or not op.inputs or op.inputs[0] < 0:
            return None
        if op.name == "SOFTMAX":
            return op.inputs[0]
        if op.name not in PASSES_VALUES_ON:
            return None
        tensor = op.inputs[0]
    return None


def _compute_kinds(model: TfliteModel, op: Operator) -> list[tuple[str, bool]]:
    """(scheme, weights are small) of an operator with weights; empty for any other."""
    places = {"CONV_2D": (0, 1), "DEPTHWISE_CONV_2D": (0, 1), "FULLY_CONNECTED": (0, 1), "TRANSPOSE_CONV": (2, 1)}.get(op.name)
    if places is None or max(places) >= len(op.inputs) or any(op.inputs[place] < 0 for place in places):
        return []
    activation, weights = (model.tensors[op.inputs[place]] for place in places)
    before = model.producer(op.inputs[places[1]])
    stored = weights
    if before is not None and before.name == "DEQUANTIZE" and before.inputs and before.inputs[0] >= 0:
        stored = model.tensors[before.inputs[0]]
    kind = SCHEMES.get((activation.type, stored.type), "mixed")
    if stored is not weights:
        kind = kind.replace("dynamic", "weight-only")
    return [(kind, weights.elements < SMALL_WEIGHTS)]


def root_table(data: bytes, where: str) -> Table:
    """The table `Model` of a TFLite flatbuffer. Raises ModelError when `data` is something else."""
    if not data:
        raise ModelError(f"{where}: is empty")
    if data[4:8] != IDENTIFIER:
        raise ModelError(f"{where}: not a TFLite model (the identifier TFL3 is missing)")
    file = Flatbuffer(data, where)
    return Table(file, file.follow(0))


def _main_graph(model: Table) -> Table:
    start, count = model.vector_place(2, 4)
    if not count:
        raise model.file.broken("it has no graph")
    return Table(model.file, model.file.follow(start))


def _buffer(table: Table) -> tuple[int, int]:
    """(byte position, length) of a buffer; one that is stored behind the flatbuffer says so in slots 1 and 2."""
    start, count = table.vector_place(0, 1)
    offset, size = table.number(1, "<Q"), table.number(2, "<Q")
    if offset <= 1:
        return start, count
    table.file.check(offset, size)
    return offset, size


def _tensor(table: Table, buffers: list[tuple[int, int]]) -> Tensor:
    file, code, buffer = table.file, table.number(1, "<b"), table.number(2, "<I")
    shape = table.vector(7, "i") or table.vector(0, "i")
    if not 0 <= code < len(TYPES) or buffer >= max(1, len(buffers)) or len(shape) > MAX_RANK or min(shape, default=0) < -1:
        raise file.broken("a tensor is damaged")
    quantization = table.table(4)
    scales = quantization.vector(2, "f") if quantization else ()
    zero_points = quantization.vector(3, "q") if quantization else ()
    dimension = quantization.number(6, "<i") if quantization else 0
    if not all(map(math.isfinite, scales)) or (scales and len(zero_points) not in (0, len(scales))):
        raise file.broken("a tensor's quantisation is damaged")
    size = buffers[buffer][1] if buffers else 0
    return Tensor(table.text(3), shape, TYPES[code], scales, zero_points or (0,) * len(scales), dimension, buffer, size)


def _operator_name(table: Table) -> str:
    # Codes above 126 do not fit the first field; old files have only that one.
    code = max(table.number(0, "<b"), table.number(3, "<i"))
    if code == CUSTOM:
        return table.text(1) or "CUSTOM"
    return OPERATORS.get(code, f"BUILTIN_{code}")


def _operator(table: Table, codes: list[str], tensors: int) -> Operator:
    index = table.number(0, "<I")
    if index >= len(codes):
        raise table.file.broken("an operator is damaged")
    name = codes[index]
    if name == "SOFTMAX":
        _check_beta(table)
    return Operator(name, _indices(table, 1, -1, tensors), _indices(table, 2, 0, tensors))


def _check_beta(softmax: Table) -> None:
    options = softmax.table(4) if softmax.number(3, "<B") == SOFTMAX_OPTIONS else None
    at = options.place(0) if options else None
    beta = softmax.file.unpack("<f", at) if at is not None else 1.0
    if beta != 1.0:
        raise ModelError(f"{softmax.file.where}: its SOFTMAX has beta = {beta}; only 1 is supported")


def _indices(table: Table, slot: int, lowest: int, tensors: int) -> tuple[int, ...]:
    indices = table.vector(slot, "i")
    if indices and not lowest <= min(indices) <= max(indices) < tensors:
        raise table.file.broken("a tensor index is out of range")
    return indices


def _metadata_bytes(table: Table, buffers: list[tuple[int, int]]) -> bytes:
    buffer = table.number(1, "<I")
    if buffer >= len(buffers):
        raise table.file.broken("a metadata entry is damaged")
    start, count = buffers[buffer]
    table.file.charge(count)
    return table.file.data[start : start + count]
