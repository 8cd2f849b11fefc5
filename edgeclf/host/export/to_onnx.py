"""Conversion to ONNX: the full model of a run in, a float32 ONNX model that ends in Softmax out, the same bytes every time.

`tf2onnx` converts Keras networks and float32 `.tflite`; an imported `.onnx` is taken as it is. The input stays as Keras has
it, (pictures, height, width, channels): a camera's frame goes in as it lies in memory, as with the TFLite files. The one
Transpose that convolutions in ONNX ask for cannot be told from noise (MobileNet V1 0.25 at 224, x86, least of 80 calls: 1.51
against 1.47 ms without it in float32, 1.95 against 2.00 in int8).
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.core.bundle import model_bytes
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, MissingExtra, ModelError
from edgeclf.core.onnx import logits_tensor, read_model
from edgeclf.host.export import quantize
from edgeclf.host.full_model import FullModel
from edgeclf.host.imports import house_onnx
from edgeclf.host.keras import tensorflow
from edgeclf.host.quiet import hushed, quiet
from edgeclf.host.run import ONNX

INPUT, OUTPUT, PICTURES = "input", "probabilities", "pictures"
OPSETS = range(13, 19)  # from 13 on weights are quantised per channel; 18 is the last that tf2onnx writes
USUAL_OPSET = 17
VARIANTS = ("float32", "int8")
LOGGERS = ("tf2onnx", "tensorflow")


@dataclass(frozen=True)
class OnnxRequest:
    """What is asked for: `variants` of VARIANTS; `opset` None for USUAL_OPSET or, of an imported `.onnx`, its own.

    `dynamic_batch` leaves the number of pictures open, which is 1 otherwise. Raises ConfigError.
    """

    variants: tuple[str, ...]
    opset: int | None = None
    dynamic_batch: bool = False

    def __post_init__(self) -> None:
        unknown = [variant for variant in self.variants if variant not in VARIANTS]
        if unknown or len(set(self.variants)) != len(self.variants):
            raise ConfigError(f"ONNX variants {', '.join(self.variants)}: expected each once, of: {', '.join(VARIANTS)}")
        if self.opset is not None and self.opset not in OPSETS:
            raise ConfigError(f"opset {self.opset}: expected one from {OPSETS[0]} to {OPSETS[-1]}")


def to_onnx(full: FullModel, card: ModelCard, request: OnnxRequest) -> bytes:
    """The full model as float32 ONNX with one input and, as its first output, probabilities (pictures, classes).

    `card` is the run's. Raises ModelError when it cannot be converted, MissingExtra when a package is missing.
    """
    opset = request.opset or USUAL_OPSET
    if full.path.name == ONNX:
        tree = _adopted(model_bytes(full.path), card, request.opset, str(full.path))
    elif full.keras is not None:
        tree = _of_keras(full.keras, opset, request.dynamic_batch)
    else:
        tree = _of_tflite(full.path, opset)
    _set_batch(tree, request.dynamic_batch)
    if full.path.name != ONNX:
        rename(tree)
    tree.graph.name, tree.graph.doc_string = card.name, ""
    return serialized(tree)


def serialized(tree: Any) -> bytes:
    """Same model, same bytes."""
    return bytes(tree.SerializeToString(deterministic=True))


def _of_keras(model: Any, opset: int, dynamic_batch: bool) -> Any:
    spec = tensorflow().TensorSpec((None if dynamic_batch else 1, *model.input_shape[1:]), "float32", name=INPUT)
    with_softmax = quantize.with_softmax(model)
    return _converted(lambda tf2onnx: tf2onnx.convert.from_keras(with_softmax, (spec,), opset=opset), model.name)


def _of_tflite(path: Path, opset: int) -> Any:
    """Of the flatbuffer that an import left, which ends in SOFTMAX; tf2onnx reads it from a file alone."""
    with tempfile.TemporaryDirectory(prefix="edgeclf-onnx-") as folder:
        plain = Path(folder) / "model.tflite"
        plain.write_bytes(model_bytes(path))
        return _converted(lambda tf2onnx: tf2onnx.convert.from_tflite(str(plain), opset=opset), str(path))


def _converted(convert: Callable[[Any], Any], name: str) -> Any:
    """What tf2onnx makes, its chatter held back. It raises whatever it stumbles over, ValueError and KeyError among others."""
    try:
        import tf2onnx
    except ImportError as error:
        raise MissingExtra.for_extra("train", "the package tf2onnx is not installed") from error
    with quiet(), hushed(*LOGGERS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return convert(tf2onnx)[0]
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"{name}: tf2onnx cannot convert it: {lines[0][:300]}; run again as: edgeclf --debug …") from error


def _adopted(data: bytes, card: ModelCard, opset: int | None, where: str) -> Any:
    """An imported model, with a Softmax behind its logits, in another opset where one is asked for."""
    tree = house_onnx.read(house_onnx.without_card(data, where), where)
    found = read_model(data, where)
    if opset is not None and opset != found.opset:
        tree = _in_opset(tree, opset, where)
    if card.outputs == "logits" and logits_tensor(found) is None:
        _add_softmax(tree)
    return tree


def _in_opset(tree: Any, opset: int, where: str) -> Any:
    from onnx import version_converter

    try:
        return version_converter.convert_version(tree, opset)
    except Exception as error:  # RuntimeError, ConvertError and others, below Exception alone
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{where}: cannot be converted to opset {opset}: {reason}; leave --opset out") from error


def _add_softmax(tree: Any) -> None:
    from onnx import helper

    output = tree.graph.output[0]
    logits, output.name = output.name, f"{output.name}_{OUTPUT}"
    tree.graph.node.append(helper.make_node("Softmax", [logits], [output.name], name=output.name, axis=-1))


def _set_batch(tree: Any, dynamic: bool) -> None:
    """The first size of input and outputs: 1, or open and of one name."""
    weights = {tensor.name for tensor in tree.graph.initializer}  # old files list them among the inputs
    for value in (*(given for given in tree.graph.input if given.name not in weights), *tree.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) and dynamic:
            dims[0].dim_param = PICTURES
        elif len(dims):
            dims[0].dim_value = 1
    del tree.graph.value_info[:]  # sizes that were inferred for another batch


def rename(tree: Any) -> None:
    """Names that follow from the graph alone: the converter numbers on through a process and draws names from sets.

    Nodes keep their layer's name; a tensor has the name of the node that makes it, a weight that of its first reader.
    """
    graph, used = tree.graph, {INPUT, OUTPUT}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    names, ordered = {graph.input[0].name: INPUT, graph.output[0].name: OUTPUT}, []
    for node in graph.node:
        node.name = _unused(re.sub(r"__\d+$", "", node.name) or node.op_type, used)
        for place, tensor in enumerate(node.input):
            if tensor in weights and tensor not in names:
                names[tensor] = f"{node.name}.{place}"
                ordered.append(weights[tensor])
        for place, tensor in enumerate(node.output):
            names.setdefault(tensor, node.name if not place else f"{node.name}:{place}")
        node.input[:] = [names.get(tensor, tensor) for tensor in node.input]
        node.output[:] = [names[tensor] for tensor in node.output]
    _set_weights(graph, ordered, names)
    graph.input[0].name, graph.output[0].name = INPUT, OUTPUT


def _set_weights(graph: Any, ordered: Sequence[Any], names: dict[str, str]) -> None:
    kept = [type(tensor).FromString(tensor.SerializeToString()) for tensor in ordered]
    del graph.initializer[:]
    for tensor in kept:
        tensor.name = names[tensor.name]
    graph.initializer.extend(kept)


def _unused(name: str, used: set[str]) -> str:
    found, number = name, 1
    while found in used:
        number += 1
        found = f"{name}_{number}"
    used.add(found)
    return found
