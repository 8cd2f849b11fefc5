"""The faces of one int8 body: uint8 for phones and cameras, int8 for microcontrollers, float32 for whoever wants that.

A face is one operator at each end, so the body and its scores stay the same to the bit.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from edgeclf.core.card import Io
from edgeclf.core.tflite import IDENTIFIER

ALIGNMENT = 16  # of every weight buffer, as schema.fbs asks
VERSIONS = {"int8": (1, 2), "int16": (2, 3)}  # of QUANTIZE and DEQUANTIZE that take this type


def with_io(model: bytes, io: Io) -> bytes:
    """The model with its int8 input and output turned to `io`, and all weights inside the flatbuffer.

    int16 ones are turned to float32 where that is asked for; tensors of other types stay as they are. Weights that `model`
    keeps behind the flatbuffer, where microcontrollers and the metadata writer do not look, are moved in. Same input, same
    bytes.
    """
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromPackedBuf(model)
    take_in(tree, model)
    if io != "int8":
        graph = tree.subgraphs[0]
        for place, tensor in enumerate(graph.inputs):
            _face(tree, schema, io, tensor, place, "inputs")
        for place, tensor in enumerate(graph.outputs):
            _face(tree, schema, io, tensor, place, "outputs")
    return packed(tree, schema)


def _face(tree: Any, schema: Any, io: Io, inner: int, place: int, side: str) -> None:
    """Put one operator between the int8 tensor `inner` and a new tensor, which takes its name and its place outside."""
    graph, types = tree.subgraphs[0], schema.TensorType
    body = graph.tensors[inner]
    kind = {types.INT8: "int8", types.INT16: "int16"}.get(body.type)
    if kind is None or (kind == "int16" and io != "float32"):
        return
    face, outer = copy.deepcopy(body), len(graph.tensors)
    body.name = body.name + f"_{kind}".encode()
    if io == "uint8":
        face.type, face.quantization.zeroPoint = types.UINT8, np.asarray(body.quantization.zeroPoint) + 128
    else:
        face.type, face.quantization = types.FLOAT32, None
    graph.tensors.append(face)
    to_floats = io == "float32" and side == "outputs"
    name = schema.BuiltinOperator.DEQUANTIZE if to_floats else schema.BuiltinOperator.QUANTIZE
    operator = schema.OperatorT()
    operator.opcodeIndex = operator_code(tree, schema, name, VERSIONS[kind][to_floats])
    operator.inputs, operator.outputs = ([outer], [inner]) if side == "inputs" else ([inner], [outer])
    graph.operators.insert(0 if side == "inputs" else len(graph.operators), operator)
    ends = list(getattr(graph, side))
    ends[place] = outer
    setattr(graph, side, ends)
    for signature in tree.signatureDefs or []:
        for entry in getattr(signature, side):
            entry.tensorIndex = outer if entry.tensorIndex == inner else entry.tensorIndex


def operator_code(tree: Any, schema: Any, builtin: int, version: int) -> int:
    """Index of that operator in the model's table of operators, entered when it is not there yet."""
    for index, code in enumerate(tree.operatorCodes):
        if code.builtinCode == builtin:
            code.version = max(code.version, version)
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, builtin, version
    tree.operatorCodes.append(code)
    return len(tree.operatorCodes) - 1


def take_in(tree: Any, model: bytes) -> None:
    for buffer in tree.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(model, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0


def packed(tree: Any, schema: Any) -> bytes:
    """The model as a flatbuffer; same model, same bytes."""
    import flatbuffers

    class Aligned(schema.BufferT):  # type: ignore[misc]
        """A buffer whose bytes start at a multiple of 16, which the generated code forgets."""

        def Pack(self, builder: Any) -> Any:
            builder.Prep(ALIGNMENT, len(self.data))
            data = builder.CreateByteVector(bytes(self.data))
            schema.BufferStart(builder)
            schema.BufferAddData(builder, data)
            return schema.BufferEnd(builder)

    shared: dict[bytes, Any] = {}

    class Sharing(flatbuffers.Builder):  # type: ignore[misc]
        """Equal zero points once: those of every channel are a seventh of a small MobileNet, and nearly all are zero."""

        def CreateNumpyVector(self, x: Any) -> Any:
            create = super().CreateNumpyVector
            if x.dtype != np.int64:
                return create(x)
            key = x.tobytes()
            if key not in shared:
                shared[key] = create(x)
            return shared[key]

    for buffer in tree.buffers:
        if buffer.data is not None and len(buffer.data):
            buffer.__class__ = Aligned
    builder = Sharing(1 << 20)
    builder.Finish(tree.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())
