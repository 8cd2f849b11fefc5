"""Cross-layer equalisation: channels of one layer's output made alike in size, and the next layer's weights made up for it.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction". What a ReLU lets through scales
with what it is given, so a channel may be divided by any s > 0 before it and its readers multiplied by s: the network computes
the same, and one range then serves all channels of a tensor. Pooling, means and padding with zeros pass the factor on; ReLU6,
hard-swish and sums with another branch do not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ModelError
from edgeclf.core.tflite import Operator, TfliteModel, read_model
from edgeclf.host.export.faces import packed, take_in

OUT_AXIS = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": 3}  # of the weights
IN_AXIS = {"CONV_2D": 3, "FULLY_CONNECTED": 1, "DEPTHWISE_CONV_2D": 3}
PASSES_ON = ("MAX_POOL_2D", "AVERAGE_POOL_2D", "MEAN", "RELU", "PAD")
ROUNDS = 20  # of all pairs; a layer in two pairs is moved by both
SETTLED = 1e-3  # largest change of a factor in a round, from 1
LARGEST_FACTOR = 1e3  # a channel that is all but dead is left to its size

Factors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two operators, by their places in the file, of which the second reads what the first computes, channel by channel."""

    first: int
    second: int


def equalised(float32: bytes) -> bytes:
    """The float32 file with equalised layers: the same answers but for float rounding. Raises ModelError when none can be."""
    from ai_edge_litert import schema_py_generated as schema

    structure = read_model(float32, "float32")
    tree = schema.ModelT.InitFromPackedBuf(float32)
    take_in(tree, float32)
    weights = _Weights(structure, tree)
    found = [pair for pair in pairs(structure, tree, schema) if weights.belong_to(pair)]
    if not found:
        raise ModelError("no layer is followed by another with nothing but ReLU or pooling between, so none can be equalised")
    for _ in range(ROUNDS):
        if max(_even_out(pair, weights) for pair in found) < SETTLED:
            break
    weights.put_back()
    return packed(tree, schema)


def pairs(structure: TfliteModel, tree: Any, schema: Any) -> list[Pair]:
    """Every pair of layers that can be equalised, in the order of computation."""
    operators, found = structure.operators, []
    readers: dict[int, list[int]] = {}
    for place, operator in enumerate(operators):
        for tensor in operator.inputs:
            readers.setdefault(tensor, []).append(place)
    for place, operator in enumerate(operators):
        if operator.name not in OUT_AXIS or not _scales(place, tree, schema):
            continue
        second = _reader(place, operators, readers, tree, schema)
        if second is not None and _fits(operator, operators[second], structure):
            found.append(Pair(place, second))
    return found


def _reader(place: int, operators: Any, readers: dict[int, list[int]], tree: Any, schema: Any) -> int | None:
    """The layer that alone reads what this operator computes, through operators that pass a factor on."""
    while True:
        reading = readers.get(operators[place].outputs[0], [])
        if len(reading) != 1:
            return None
        place = reading[0]
        if operators[place].name in IN_AXIS:
            return place
        if operators[place].name not in PASSES_ON or not _scales(place, tree, schema):
            return None


def _scales(place: int, tree: Any, schema: Any) -> bool:
    """Whether the activation in the operator is none or ReLU."""
    options = tree.subgraphs[0].operators[place].builtinOptions
    kinds = schema.ActivationFunctionType
    return getattr(options, "fusedActivationFunction", kinds.NONE) in (kinds.NONE, kinds.RELU)


def _fits(first: Operator, second: Operator, structure: TfliteModel) -> bool:
    """Whether channels of the one are channels of the other: constant weights, no flattening, one output a depthwise input."""
    constant = [structure.tensors[i].constant for op in (first, second) for i in op.inputs[1:] if i >= 0]
    outputs = structure.tensors[first.inputs[1]].shape[OUT_AXIS[first.name]]
    inputs = structure.tensors[second.inputs[1]].shape[IN_AXIS[second.name]]
    multiplied = second.name == "DEPTHWISE_CONV_2D" and structure.tensors[second.inputs[0]].shape[-1] != inputs
    return all(constant) and outputs == inputs and not multiplied


class _Weights:
    """Weights and biases of the file as arrays, by tensor."""

    def __init__(self, structure: TfliteModel, tree: Any) -> None:
        self.structure, self.tree, self.arrays = structure, tree, dict[int, npt.NDArray[np.float32]]()
        self.reads = Counter(structure.tensors[i].buffer for op in structure.operators for i in op.inputs if i >= 0)

    def belong_to(self, pair: Pair) -> bool:
        """Whether no other operator reads them; zeros, which the converter keeps once for all, may be shared."""
        operators = self.structure.operators[pair.first], self.structure.operators[pair.second]
        tensors = [i for operator in operators for i in operator.inputs[1:] if i >= 0]
        return all(self.reads[self.structure.tensors[i].buffer] == 1 or not self.of(i).any() for i in tensors)

    def of(self, tensor: int) -> npt.NDArray[np.float32]:
        """To be changed in place."""
        if tensor not in self.arrays:
            found = self.structure.tensors[tensor]
            data = bytes(bytearray(self.tree.buffers[found.buffer].data))
            self.arrays[tensor] = np.frombuffer(data, np.float32).reshape(found.shape).copy()
        return self.arrays[tensor]

    def put_back(self) -> None:
        for tensor, array in self.arrays.items():
            self.tree.buffers[self.structure.tensors[tensor].buffer].data = np.frombuffer(array.tobytes(), np.uint8)


def _even_out(pair: Pair, weights: _Weights) -> float:
    """Move one pair to equal ranges of weights by channel; the largest change of a factor, from 1."""
    first, second = weights.structure.operators[pair.first], weights.structure.operators[pair.second]
    before, after = weights.of(first.inputs[1]), weights.of(second.inputs[1])
    factors = factors_of(_largest(before, OUT_AXIS[first.name]), _largest(after, IN_AXIS[second.name]))
    before /= _along(factors, OUT_AXIS[first.name], before.ndim)
    after *= _along(factors, IN_AXIS[second.name], after.ndim)
    if len(first.inputs) > 2 and first.inputs[2] >= 0:
        bias = weights.of(first.inputs[2])
        bias /= factors
    return float(np.abs(factors - 1).max())


def factors_of(before: Factors, after: Factors) -> Factors:
    """What each channel is divided by, from the largest weights that make it and that read it, both (channels,)."""
    alive = (before > 0) & (after > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        wanted = np.sqrt(before / after)
    return np.where(alive, np.clip(wanted, 1 / LARGEST_FACTOR, LARGEST_FACTOR), 1.0)


def _largest(weights: npt.NDArray[np.float32], axis: int) -> Factors:
    """The largest absolute weight of each channel along the axis."""
    found: Factors = np.abs(np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)).max(axis=1).astype(np.float64)
    return found


def _along(factors: Factors, axis: int, dimensions: int) -> npt.NDArray[np.float32]:
    shape = [1] * dimensions
    shape[axis] = len(factors)
    return factors.astype(np.float32).reshape(shape)
