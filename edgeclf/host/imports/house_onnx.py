"""A foreign ONNX model in, one that carries its model card out; nodes are put in only where a card cannot say it.

There is no maintained converter from ONNX to TFLite to build on, so such a run keeps ONNX: ONNX Runtime is its full model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclf.core.bundle import CARD, CARD_SHA256
from edgeclf.core.errors import MissingExtra, ModelError
from edgeclf.core.onnx import split_metadata
from edgeclf.host.imports.house import LOGITS, NORMALISATION, Normalize, affine, single_remark


def house_onnx(model: bytes, normalize: Normalize | None, classes: int, where: str) -> tuple[bytes, list[str]]:
    """The model with a normalisation for each channel built in, and two outputs where it has one for two classes.

    What `normalize` gives a number a channel becomes the house's (pixel - 128) / 128; a single number is left to the card.
    Raises ModelError for a file that the `onnx` package cannot read.
    """
    tree, notes = read(model, where), list[str]()
    if normalize and max(map(len, normalize)) > 1:
        _begin(tree, normalize, where)
    shape = tree.graph.output[0].type.tensor_type.shape.dim
    if len(shape) and shape[-1].dim_value == 1 and classes == 2:
        notes.append(_pair(tree))
    return bytes(tree.SerializeToString()), notes


def without_card(model: bytes, where: str) -> bytes:
    """`model` with what `attach_onnx` put into its metadata taken out."""
    for key in (CARD, CARD_SHA256):
        model, _ = split_metadata(model, key, where)
    return model


def parameters(model: bytes, where: str) -> int:
    """How many numbers its weights are."""
    return sum(int(np.prod(tensor.dims)) for tensor in read(model, where).graph.initializer)


def read(model: bytes, where: str) -> Any:
    """The model as a protocol buffer. Raises ModelError, MissingExtra."""
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra.for_extra("train", "the package onnx is not installed") from error
    try:
        tree = onnx.load_model_from_string(model)
    except Exception as error:  # DecodeError, whose module differs between versions of protobuf
        raise ModelError(f"{where}: not a whole ONNX model; copy it again") from error
    if not tree.graph.input or not tree.graph.output:
        raise ModelError(f"{where}: the model has no input or no output")
    return tree


def _begin(tree: Any, normalize: Normalize, where: str) -> None:
    """Scale and offset behind the input, whose name everything else keeps reading from another tensor."""
    from onnx import helper

    weights = {tensor.name for tensor in tree.graph.initializer}  # old files list them among the inputs
    given = next(value for value in tree.graph.input if value.name not in weights)
    dims = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
    if len(dims) != 4 or not {dims[1], dims[3]} & {1, 3}:
        raise ModelError(f"{where}: its input has shape {dims}; a picture has 1 or 3 channels")
    first = dims[3] not in (1, 3)
    found, inner = affine(normalize, dims[1] if first else dims[3]), f"{given.name}_{NORMALISATION}"
    for node in tree.graph.node:
        node.input[:] = [inner if name == given.name else name for name in node.input]
    for name, values in (("scale", found.scale), ("offset", found.offset)):
        _weight(tree, f"{inner}_{name}", values.reshape(-1, 1, 1) if first else values)
    nodes = [
        helper.make_node("Mul", [given.name, f"{inner}_scale"], [f"{inner}_scaled"]),
        helper.make_node("Add", [f"{inner}_scaled", f"{inner}_offset"], [inner]),
    ]
    for place, node in enumerate(nodes):
        tree.graph.node.insert(place, node)


def _pair(tree: Any) -> str:
    """(0, z) instead of z or its sigmoid; returns a remark."""
    from onnx import TensorProto, helper

    output = tree.graph.output[0]
    last = next((node for node in tree.graph.node if output.name in node.output), None)
    squashed = last is not None and last.op_type == "Sigmoid"
    logit = last.input[0] if squashed else output.name  # type: ignore[union-attr]
    _weight(tree, f"{LOGITS}_kernel", np.array([[0, 1]]))
    tree.graph.node.append(helper.make_node("MatMul", [logit, f"{LOGITS}_kernel"], [LOGITS]))
    del tree.graph.output[:]
    tree.graph.output.append(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["pictures", 2]))
    return single_remark(squashed)


def _weight(tree: Any, name: str, values: Any) -> None:
    from onnx import numpy_helper

    tree.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
