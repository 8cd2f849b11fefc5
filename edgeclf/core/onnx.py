"""A bounds-checked reader of ONNX files: nodes, weights and metadata, without the package onnx and without a runtime.

The tags below are those of the messages in ONNX's `onnx.proto`. Hostile bytes raise ModelError, after bounded work.
Weights are not read: of each only its name, type and shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from edgeclf.core.errors import ModelError
from edgeclf.core.protobuf import DELIMITED, Field, Protobuf, delimited

GRAPH, OPSET, METADATA = 7, 8, 14  # of ModelProto
NODE, WEIGHT, INPUT, OUTPUT = 1, 5, 11, 12  # of GraphProto
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 21: "uint4", 22: "int4",
}  # fmt: skip

# Places of (activation, weights) among the inputs of the operators that have weights.
OPERANDS = {
    "Conv": (0, 1), "ConvTranspose": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1), "ConvInteger": (0, 1), "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3), "QLinearMatMul": (0, 3),
}  # fmt: skip
COMPUTES_RANGES = ("ConvInteger", "MatMulInteger")  # on activations that were quantised while it runs
PASSES_VALUES_ON = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast")

# (activation, weights) of one operator → the scheme of a file in which all are so; the names are those of core.tflite.
SCHEMES = {
    ("float32", "float32"): "float32",
    ("float32", "float16"): "float16",
    ("float16", "float16"): "float16",
    ("float32", "int8"): "weight-only-w8",
    ("float32", "uint8"): "weight-only-w8",
    ("int8", "int8"): "int8",
    ("uint8", "int8"): "int8",
    ("int8", "uint8"): "uint8",
    ("uint8", "uint8"): "uint8",
    ("int16", "int8"): "w8a16",
    ("uint16", "int8"): "w8a16",
}


@dataclass(frozen=True)
class Value:
    """An input, an output or a weight of the graph; `shape` holds -1 where a size is open."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One operator: its type, the names of its tensors (empty for one left out), and its attribute `axis` if it has one."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axis: int | None = None


@dataclass(frozen=True)
class OnnxModel:
    """The main graph of a file. `opset` is that of the standard operators, `inputs` are without weights, which old files list."""

    opset: int
    nodes: tuple[Node, ...]
    weights: dict[str, Value]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def producer(self, tensor: str) -> Node | None:
        """The node that computes that tensor; None for inputs and weights."""
        return self._producers.get(tensor)

    @cached_property
    def _producers(self) -> dict[str, Node]:
        return {tensor: node for node in reversed(self.nodes) for tensor in node.outputs}


def is_onnx(name: str) -> bool:
    """By its name: ONNX files have no identifier."""
    return name.lower().endswith(".onnx")


def read_model(data: bytes, where: str) -> OnnxModel:
    """The structure of an ONNX file. Raises ModelError, naming `where`, unless it has a graph with input and output."""
    file = Protobuf(data, where, "ONNX model")
    top = list(file.fields(0, len(data)))
    nodes, weights, inputs, outputs = list[Node](), dict[str, Value](), list[Value](), list[Value]()
    for part in file.inside(_graph(file, top)):
        if part.tag == NODE:
            nodes.append(_node(file, part, weights))
        elif part.tag == WEIGHT:
            found = _tensor(file, part)
            weights[found.name] = found
        elif part.tag in (INPUT, OUTPUT):
            (inputs if part.tag == INPUT else outputs).append(_value(file, part))
    given = tuple(value for value in inputs if value.name not in weights)
    if not given or not outputs:
        raise ModelError(f"{where}: the model has no input or no output")
    opsets = dict(_opset(file, part) for part in top if part.tag == OPSET)
    metadata = dict(_entry(file, part) for part in top if part.tag == METADATA)
    if "" not in opsets:
        raise file.broken("it does not say which operator set it uses")
    return OnnxModel(opsets[""], tuple(nodes), weights, given, tuple(outputs), metadata)


def scheme(model: OnnxModel) -> str:
    """The compression scheme that the operands of convolutions and dense layers show, by the names of `core.tflite.scheme`.

    One of SCHEMES or `dynamic-w8`; `mixed` when operators differ, `unknown` when no operator has weights.
    """
    found = {kind for node in model.nodes for kind in _compute_kind(model, node)}
    if not found:
        return "unknown"
    return found.pop() if len(found) == 1 else "mixed"


def logits_tensor(model: OnnxModel) -> str | None:
    """The tensor that feeds the Softmax at the end of the graph; None when the first output does not come from one."""
    node = model.producer(model.outputs[0].name)
    for _ in range(len(model.nodes)):
        if node is None or node.operator != "Identity" or not node.inputs:
            break
        node = model.producer(node.inputs[0])
    if node is None or node.operator != "Softmax" or not node.inputs or node.axis not in (None, 1, -1):
        return None
    taken = node.inputs[0] in {value.name for value in (*model.inputs, *model.outputs)}
    return None if taken else node.inputs[0]


def logits_view(data: bytes, where: str) -> bytes:
    """The model with its first output moved to the tensor that feeds the final Softmax; `data` itself when there is none."""
    name = logits_tensor(read_model(data, where))
    if name is None:
        return data
    file = Protobuf(data, where, "ONNX model")
    graph = _graph(file, list(file.fields(0, len(data))))
    output = next(part for part in file.inside(graph) if part.tag == OUTPUT)
    kept = b"".join(data[part.start : part.end] for part in file.inside(output) if part.tag != 1)
    moved = delimited(OUTPUT, delimited(1, name.encode("utf-8")) + kept)
    inside = data[graph.at : output.start] + moved + data[output.end : graph.end]
    return data[: graph.start] + delimited(GRAPH, inside) + data[graph.end :]


def split_metadata(data: bytes, key: str, where: str) -> tuple[bytes, str | None]:
    """(the file without the metadata entry of that key, the entry's value or None). Raises ModelError when there are two."""
    file = Protobuf(data, where, "ONNX model")
    found = [part for part in file.fields(0, len(data)) if part.tag == METADATA and _entry(file, part)[0] == key]
    if len(found) > 1:
        raise file.broken(f"it has {len(found)} entries {key}")
    if not found:
        return data, None
    return data[: found[0].start] + data[found[0].end :], _entry(file, found[0])[1]


def with_metadata(data: bytes, key: str, value: str) -> bytes:
    """The file with one more metadata entry, at its end."""
    return data + delimited(METADATA, delimited(1, key.encode("utf-8")) + delimited(2, value.encode("utf-8")))


def _compute_kind(model: OnnxModel, node: Node) -> list[str]:
    """The scheme of a node with weights; empty for any other."""
    places = OPERANDS.get(node.operator)
    if places is None or max(places) >= len(node.inputs):
        return []
    weights = _stored_type(model, node.inputs[places[1]])
    if weights is None:
        return []
    if node.operator in COMPUTES_RANGES:
        return ["dynamic-w8"] if weights in ("int8", "uint8") else ["mixed"]
    return [SCHEMES.get((_activation_type(model, node.inputs[places[0]]), weights), "mixed")]


def _stored_type(model: OnnxModel, tensor: str) -> str | None:
    """The type in which a weight lies in the file, whatever turns it into floats; None for what is computed of the input."""
    for _ in range(len(model.nodes) + 1):
        if tensor in model.weights:
            return model.weights[tensor].type
        node = model.producer(tensor)
        if node is None or not node.inputs or node.operator not in (*PASSES_VALUES_ON, "DequantizeLinear"):
            return None
        tensor = node.inputs[0]
    return None


def _activation_type(model: OnnxModel, tensor: str) -> str:
    """The type in which an operator computes with that tensor: what a DequantizeLinear before it had, else a float.

    Half floats are not traced through the graph: a file whose float weights are all half floats computes in them.
    """
    node = model.producer(tensor)
    if node is not None and (node.operator == "DequantizeLinear" or node.operator.startswith("QLinear")):
        return _zero_point_type(model, node)
    floats = {weight.type for weight in model.weights.values()} & {"float16", "float32"}
    return "float16" if floats == {"float16"} else "float32"


def _zero_point_type(model: OnnxModel, node: Node) -> str:
    """uint8 when it is left out, as the format says."""
    place = 7 if node.operator in ("QLinearConv", "QLinearMatMul") else len(node.inputs) - 1  # behind it they may have a bias
    zero_point = model.weights.get(node.inputs[place]) if 0 <= place < len(node.inputs) else None
    return zero_point.type if zero_point is not None and "int" in zero_point.type else "uint8"


def _graph(file: Protobuf, top: list[Field]) -> Field:
    found = [part for part in top if part.tag == GRAPH]
    if len(found) != 1 or found[0].wire != DELIMITED:
        raise file.broken("it has no graph" if not found else "it has several graphs")
    return found[0]


def _node(file: Protobuf, part: Field, weights: dict[str, Value]) -> Node:
    """A node; what a Constant holds is entered among `weights`."""
    names: dict[int, list[str]] = {1: [], 2: [], 4: []}
    axis, constants = None, []
    for piece in file.inside(part):
        if piece.tag in names:
            names[piece.tag].append(file.text(piece))
        elif piece.tag == 5:
            name, number, tensor = _attribute(file, piece)
            axis = number if name == "axis" else axis
            constants += [tensor] if name == "value" and tensor else []
    operator = names[4][-1] if names[4] else ""
    if operator == "Constant" and constants and names[2]:
        weights[names[2][0]] = Value(names[2][0], constants[0].type, constants[0].shape)
    return Node(operator, tuple(names[1]), tuple(names[2]), axis)


def _attribute(file: Protobuf, part: Field) -> tuple[str, int, Value | None]:
    name, number, tensor = "", 0, None
    for piece in file.inside(part):
        if piece.tag == 1:
            name = file.text(piece)
        elif piece.tag == 3:
            number = piece.number
        elif piece.tag == 5:
            tensor = _tensor(file, piece)
    return name, number, tensor


def _tensor(file: Protobuf, part: Field) -> Value:
    name, kind, shape = "", 0, list[int]()
    for piece in file.inside(part):
        if piece.tag == 1:
            shape += file.numbers(piece)
        elif piece.tag == 2:
            kind = piece.number
        elif piece.tag == 8:
            name = file.text(piece)
    return Value(name, TYPES.get(kind, f"type {kind}"), tuple(shape))


def _value(file: Protobuf, part: Field) -> Value:
    """A ValueInfoProto, whose type → tensor_type holds the type of its elements and its shape."""
    name, kind, shape = "", 0, list[int]()
    for piece in file.inside(part):
        if piece.tag == 1:
            name = file.text(piece)
        for tensor in (t for t in file.inside(piece) if t.tag == 1) if piece.tag == 2 else ():
            for detail in file.inside(tensor):
                kind = detail.number if detail.tag == 1 else kind
                shape = [_size(file, d) for d in file.inside(detail) if d.tag == 1] if detail.tag == 2 else shape
    return Value(name, TYPES.get(kind, f"type {kind}"), tuple(shape))


def _size(file: Protobuf, part: Field) -> int:
    return next((piece.number for piece in file.inside(part) if piece.tag == 1 and piece.number > 0), -1)


def _opset(file: Protobuf, part: Field) -> tuple[str, int]:
    domain, version = "", 0
    for piece in file.inside(part):
        domain = file.text(piece) if piece.tag == 1 else domain
        version = piece.number if piece.tag == 2 else version
    return ("" if domain == "ai.onnx" else domain), version


def _entry(file: Protobuf, part: Field) -> tuple[str, str]:
    pieces = {piece.tag: file.text(piece) for piece in file.inside(part) if piece.tag in (1, 2)}
    return pieces.get(1, ""), pieces.get(2, "")
