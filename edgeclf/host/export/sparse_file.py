"""Sparse encoding: a TFLite file whose kernels, where they are mostly zeros, are stored as what is left and where it stands.

`SparsityParameters` of TensorFlow Lite's `schema.fbs`: the last dimension (input channels) is compressed row by row (CSR), the
others are dense. DENSIFY, an operator before the layer, writes the zeros back; LiteRT does so once, when it opens the file,
and on ARM its sparse kernels (Elsen et al. 2020, "Fast Sparse ConvNets") read what is stored where they take the network.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import QualityError
from edgeclf.core.tflite import read_model
from edgeclf.host.export.faces import operator_code, packed, take_in
from edgeclf.host.inside import STORED, stored_weights

LEAST_ZEROS = 0.5  # of a kernel; places cost a quarter to a half of what a float costs, so with fewer little is gained
SUFFIX = "-sparse"
WIDTHS = {"Uint8": "uint8", "Uint16": "uint16", "Int32": "int32"}  # of the places, as schema.fbs names them, and as NumPy does
KINDS = ("CONV_2D", "FULLY_CONNECTED")  # no runtime has sparse kernels for depthwise convolutions


def encoded(model: bytes, variant: str) -> bytes:
    """The float model with each kernel of which half the weights or more are zero in sparse encoding; answers stay the same.

    Same input, same bytes. Raises QualityError, with the share of zeros, when no kernel has so many.
    """
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromPackedBuf(model)
    take_in(tree, model)
    structure = read_model(model, variant)
    stored = dict.fromkeys(stored_weights(op, structure) for op in structure.operators if op.name in KINDS)
    kernels = {place: _values(tree, place, STORED[structure.tensors[place].type]) for place in stored}
    chosen = {place: values for place, values in kernels.items() if values.size and np.mean(values == 0) >= LEAST_ZEROS}
    if not chosen:
        raise QualityError(_refusal(kernels, variant))
    for place, values in chosen.items():
        _store(tree, schema, place, values)
        _densify(tree, schema, place)
    return packed(tree, schema)


def notes(variant: str) -> tuple[str, ...]:
    """What a user of a sparse file should know: one sentence; none for other variants."""
    if not variant.endswith(SUFFIX):
        return ()
    return (
        f"{variant}: smaller without gzip too; faster only where the runtime has sparse kernels for the network (on ARM, for "
        "MobileNet V1 and its like with two thirds of zeros), elsewhere as fast as the dense file",
    )


def _refusal(kernels: dict[int, npt.NDArray[Any]], variant: str) -> str:
    weights = sum(values.size for values in kernels.values())
    zeros = sum(int(np.sum(values == 0)) for values in kernels.values())
    return (
        f"{variant}: {zeros:,} of {weights:,} weights are zero ({zeros / max(1, weights):.1%}), and no kernel has the "
        f"{LEAST_ZEROS:.0%} from which sparse storage is smaller; prune first: edgeclf compress RUN --prune 0.8"
    )


def _values(tree: Any, place: int, kind: type) -> npt.NDArray[Any]:
    """A kernel in its shape; empty for one that is computed, or sparse already."""
    tensor = tree.subgraphs[0].tensors[place]
    data = tree.buffers[tensor.buffer].data
    if data is None or not len(data) or tensor.sparsity:
        return np.zeros((0, 1), kind)
    return np.frombuffer(bytes(data), kind).reshape(tensor.shape)


def _store(tree: Any, schema: Any, place: int, values: npt.NDArray[Any]) -> None:
    """Put what is not zero into a buffer of its own, since others may read the old one, and say where it stands."""
    tensors, tensor = tree.subgraphs[0].tensors, tree.subgraphs[0].tensors[place]
    before, tensor.buffer = tensor.buffer, len(tree.buffers)
    tensor.sparsity = _parameters(schema, values)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(values[values != 0].tobytes(), np.uint8)
    tree.buffers.append(buffer)
    if all(other.buffer != before for other in tensors):
        tree.buffers[before].data = None


def _parameters(schema: Any, values: npt.NDArray[Any]) -> Any:
    rows = values.reshape(-1, values.shape[-1])
    found = schema.SparsityParametersT()
    found.traversalOrder = np.arange(values.ndim, dtype=np.int32)
    found.dimMetadata = [schema.DimensionMetadataT() for _ in values.shape]
    for size, dimension in zip(values.shape[:-1], found.dimMetadata, strict=False):
        dimension.format, dimension.denseSize = schema.DimensionType.DENSE, size
    last = found.dimMetadata[-1]
    last.format = schema.DimensionType.SPARSE_CSR
    ends = np.concatenate([[0], np.cumsum(np.count_nonzero(rows, axis=1))])
    last.arraySegmentsType, last.arraySegments = _numbers(schema, ends)
    last.arrayIndicesType, last.arrayIndices = _numbers(schema, np.nonzero(rows)[1])
    return found


def _numbers(schema: Any, values: npt.NDArray[np.int64]) -> tuple[int, Any]:
    """A vector of the narrowest type that holds them, and the code of that type."""
    largest = values.max(initial=0)
    width, kind = next((name, kind) for name, kind in WIDTHS.items() if largest <= np.iinfo(kind).max)
    vector = getattr(schema, f"{width}VectorT")()
    vector.values = values.astype(kind)
    return getattr(schema.SparseIndexVector, f"{width}Vector"), vector


def _densify(tree: Any, schema: Any, place: int) -> None:
    """Whoever read the kernel reads a tensor that DENSIFY makes of it."""
    graph = tree.subgraphs[0]
    dense = copy.copy(graph.tensors[place])
    dense.buffer, dense.sparsity, dense.name = 0, None, dense.name + b"_dense"
    readers = [n for n, operator in enumerate(graph.operators) if place in operator.inputs]
    for reader in readers:
        inputs = graph.operators[reader].inputs
        graph.operators[reader].inputs = np.where(np.asarray(inputs) == place, len(graph.tensors), inputs)
    operator = schema.OperatorT()
    operator.opcodeIndex = operator_code(tree, schema, schema.BuiltinOperator.DENSIFY, 1)
    operator.inputs, operator.outputs = [place], [len(graph.tensors)]
    graph.tensors.append(dense)
    graph.operators.insert(readers[0], operator)
