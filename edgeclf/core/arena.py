"""The tensor arena of TensorFlow Lite Micro, estimated from a file: which tensors live at once, and what is kept beside them.

The plan is that of `greedy_memory_planner.cc` in tflite-micro: the largest tensor first, each at the lowest place that is
free during its whole life. What kernels ask for besides is a rule of thumb, so the sum is an estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeclf.core.errors import ModelError
from edgeclf.core.tflite import TfliteModel

ALIGNMENT = 16  # MicroArenaBufferAlignment of tflite-micro
ITEM_BYTES = {"float32": 4, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1, "int64": 8, "float16": 2}

# Kept for good, on a 64-bit host (a 32-bit target needs less): the sizes of TfLiteEvalTensor and NodeAndRegistration, and of
# the two ends' TfLiteTensor with its quantisation, as tflite-micro's recording allocator shows them. The last two were fitted
# to what that allocator gave for the int8 files of this project.
TENSOR_BYTES, OPERATOR_BYTES, ENDS_BYTES = 24, 64, 192
KERNEL_BYTES, FIXED_BYTES = 112, 512
CHANNEL_BYTES = 8  # a convolution keeps an int32 multiplier and an int32 shift of every output channel
PER_CHANNEL = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")


@dataclass(frozen=True)
class Life:
    """A tensor that is computed: its bytes, and the first and last operator during which it must exist, inclusive."""

    size: int
    first: int
    last: int


def estimate(model: TfliteModel, where: str) -> int:
    """Bytes of arena that `model` is likely to need. Raises ModelError for a tensor of open size or unknown type."""
    return _rounded(planned(lives(model, where)) + _kept(model))


def planned(tensors: list[Life]) -> int:
    """Bytes of a buffer that holds all `tensors`, two of which share a place only when their lives do not meet."""
    placed: list[tuple[int, Life]] = []
    for tensor in sorted(tensors, key=lambda t: -t.size):
        taken = sorted((at, at + other.size) for at, other in placed if other.first <= tensor.last and tensor.first <= other.last)
        place = 0
        for start, end in taken:
            if place + tensor.size <= start:
                break
            place = max(place, end)
        placed.append((place, tensor))
    return max((at + tensor.size for at, tensor in placed), default=0)


def lives(model: TfliteModel, where: str) -> list[Life]:
    """The life of every tensor that is no constant, sizes rounded up to the alignment; inputs begin and outputs end outside."""
    first = dict.fromkeys(model.inputs, 0)
    last = dict.fromkeys(model.inputs, 0)
    for number, op in enumerate(model.operators):
        for tensor in op.outputs:
            first.setdefault(tensor, number)
            last[tensor] = number
        last.update((tensor, number) for tensor in op.inputs if tensor in first)
    last.update((tensor, len(model.operators)) for tensor in model.outputs if tensor in first)
    return [Life(_bytes(model, tensor, where), first[tensor], last[tensor]) for tensor in first]


def _bytes(model: TfliteModel, index: int, where: str) -> int:
    tensor = model.tensors[index]
    shape = [abs(tensor.shape[0]), *tensor.shape[1:]] if tensor.shape else []  # an open batch, -1, is of one picture
    if tensor.type not in ITEM_BYTES or min(shape, default=1) < 1:
        raise ModelError(f"{where}: the arena cannot be planned: {tensor.name!r} is {tensor.type} of shape {tensor.shape}")
    return _rounded(math.prod(shape) * ITEM_BYTES[tensor.type])


def _kept(model: TfliteModel) -> int:
    operators = len(model.operators)
    channels = sum(
        max(len(model.tensors[op.inputs[1]].scales), 1)
        for op in model.operators
        if op.name in PER_CHANNEL and len(op.inputs) > 1 and op.inputs[1] >= 0
    )
    each = len(model.tensors) * TENSOR_BYTES + operators * (OPERATOR_BYTES + KERNEL_BYTES)
    return each + channels * CHANNEL_BYTES + ENDS_BYTES + FIXED_BYTES


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
