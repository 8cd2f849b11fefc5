"""A foreign float32 TFLite model in, the house's out: it takes (pixel - 128) / 128 and ends in SOFTMAX.

The same as house.py, on a flatbuffer, where there is no Keras network: operators are put in at both ends.
"""

from __future__ import annotations

import copy
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ModelError
from edgeclf.core.tflite import TfliteModel, read_model, scheme
from edgeclf.host.export.faces import operator_code, packed, take_in
from edgeclf.host.imports.house import LOGITS, NORMALISATION, SHARED, Affine, Normalize, affine, single_remark

Values = npt.NDArray[np.float32]
PROBABILITIES = "probabilities"


def house_tflite(model: bytes, normalize: Normalize, classes: int, where: str) -> tuple[bytes, list[str]]:
    """The flatbuffer as the house has it, and what was done to it, a line each. Same input, same bytes.

    `model` is a classifier of one picture that `runtime.foreign.check_ports` accepts but for a single output, which becomes
    two for two classes. Raises ModelError when it is not float32 throughout or has not one output a class.
    """
    structure = read_model(model, where)
    check_float32(structure, where)
    try:
        return _operated(model, affine(normalize, structure.input.shape[-1]), classes, where)
    except (AttributeError, IndexError, OverflowError, TypeError, ValueError, struct.error) as error:  # unchecked reading
        raise ModelError(f"{where}: its structure is damaged ({' '.join(str(error).split())[:100]}); copy it again") from error


def _operated(model: bytes, found: Affine, classes: int, where: str) -> tuple[bytes, list[str]]:
    from ai_edge_litert import schema_py_generated as schema

    tree = schema.ModelT.InitFromPackedBuf(model)
    if len(tree.subgraphs) != 1:
        raise ModelError(f"{where}: it has {len(tree.subgraphs)} graphs (control flow); a classifier has one")
    take_in(tree, model)
    tree.metadata, tree.metadataBuffer, tree.signatureDefs = [], [], []
    surgery = _Surgery(tree, schema, where)
    surgery.name_apart()
    surgery.begin(found)
    notes = surgery.finish(classes)
    return packed(tree, schema), notes


def check_float32(structure: TfliteModel, where: str) -> None:
    """Raise ModelError unless weights, input and output are float32."""
    found = scheme(structure)
    if found not in ("float32", "unknown"):
        raise ModelError(
            f"{where}: its weights are {found}; import the float32 file that it was made from "
            f"(as it is, it can be run: edgeclf predict {where} PICTURE --labels FILE)"
        )
    if structure.input.type != "float32" or structure.output.type != "float32":
        raise ModelError(f"{where}: takes {structure.input.type} and gives {structure.output.type}; import the float32 file")


class _Surgery:
    """One graph, under the knife; tensors are known by their index."""

    def __init__(self, tree: Any, schema: Any, where: str) -> None:
        self.tree, self.schema, self.graph, self.where = tree, schema, tree.subgraphs[0], where

    def name_apart(self) -> None:
        """Give every tensor a name of its own: calibration knows tensors by their names."""
        seen: set[bytes] = set()
        for index, tensor in enumerate(self.graph.tensors):
            name = tensor.name or b"tensor"
            tensor.name = name if name not in seen else name + f"_{index}".encode()
            seen.add(tensor.name)

    def begin(self, found: Affine) -> None:
        """The map from what the house gives to what the model takes, folded into its first convolution or in front of it."""
        given = int(self.graph.inputs[0])
        readers = [op for op in self.graph.operators if given in list(op.inputs)]
        if found.nothing or (len(readers) == 1 and self._fold(readers[0], found)):
            return
        outer = self._tensor(NORMALISATION + "_input", self.graph.tensors[given].shape)
        self.graph.tensors[outer].shapeSignature = self.graph.tensors[given].shapeSignature
        kernel = self._constant(NORMALISATION + "_kernel", found.scale.reshape(1, 1, 1, -1))
        bias = self._constant(NORMALISATION + "_bias", found.offset)
        options = self.schema.DepthwiseConv2DOptionsT()
        options.padding, options.strideW, options.strideH, options.depthMultiplier = self.schema.Padding.VALID, 1, 1, 1
        options.dilationWFactor = options.dilationHFactor = 1
        self._operator("DEPTHWISE_CONV_2D", [outer, kernel, bias], [given], "DepthwiseConv2DOptions", options, first=True)
        self.graph.inputs = [outer]

    def finish(self, classes: int) -> list[str]:
        """A SOFTMAX at the end, over one score a class; returns remarks."""
        output = int(self.graph.outputs[0])
        outputs = int(self.graph.tensors[output].shape[-1])
        last = next((op for op in self.graph.operators if output in list(op.outputs)), None)
        squash = self._name(last) if last is not None else ""
        notes = []
        if squash in ("SOFTMAX", "LOG_SOFTMAX", "LOGISTIC"):
            logits = int(last.inputs[0])  # type: ignore[union-attr]
            self.graph.operators.remove(last)
        else:
            logits = output
        if outputs == 1 and classes == 2:
            logits = self._pair(logits)
            notes = [single_remark(squash == "LOGISTIC")]
        elif outputs != classes:
            raise ModelError(f"{self.where}: {classes} labels for {outputs} outputs; give one label a line for each output")
        elif squash == "LOGISTIC":
            notes = [SHARED.format(outputs=outputs)]
        options = self.schema.SoftmaxOptionsT()
        options.beta = 1.0
        answer = self._tensor(PROBABILITIES, self.graph.tensors[logits].shape)
        self.graph.tensors[answer].shapeSignature = self.graph.tensors[logits].shapeSignature
        self._operator("SOFTMAX", [logits], [answer], "SoftmaxOptions", options)
        self.graph.outputs = [answer]
        return notes

    def _fold(self, op: Any, found: Affine) -> bool:
        """Whether the map went into that operator: a convolution of constant weights in which no zeros are padded to it."""
        options = op.builtinOptions
        if self._name(op) != "CONV_2D" or (options.padding != self.schema.Padding.VALID and found.offset.any()):
            return False
        kernel, bias = self._values(op.inputs[1]), self._values(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] >= 0 else 0.0
        if kernel is None or bias is None or kernel.shape[-1] != len(found.scale):
            return False
        bias = bias + np.einsum("ohwi,i->o", kernel.astype(np.float64), found.offset)
        name = self.graph.tensors[op.inputs[1]].name.decode("utf-8", "replace")
        op.inputs = [
            int(op.inputs[0]),
            self._constant(f"{name}_folded", kernel * found.scale),
            self._constant(f"{name}_bias", bias),
        ]
        return True

    def _pair(self, logit: int) -> int:
        """(0, z) from z: softmax of that is sigmoid of z."""
        shape = [*list(self.graph.tensors[logit].shape)[:-1], 2]
        pair = self._tensor(LOGITS, np.array(shape, np.int32))
        kernel, bias = self._constant(LOGITS + "_kernel", np.array([[0], [1]])), self._constant(LOGITS + "_zeros", np.zeros(2))
        options = self.schema.FullyConnectedOptionsT()
        options.keepNumDims = len(shape) > 2
        self._operator("FULLY_CONNECTED", [logit, kernel, bias], [pair], "FullyConnectedOptions", options)
        return pair

    def _values(self, index: int) -> Values | None:
        """A constant float32 tensor; None for any other."""
        tensor = self.graph.tensors[index]
        data = self.tree.buffers[tensor.buffer].data
        if tensor.type != self.schema.TensorType.FLOAT32 or data is None or not len(data):
            return None
        values: Values = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
        return values

    def _name(self, op: Any) -> str:
        code = self.tree.operatorCodes[op.opcodeIndex]
        names = {value: name for name, value in vars(self.schema.BuiltinOperator).items() if not name.startswith("_")}
        return str(names.get(max(code.builtinCode, code.deprecatedBuiltinCode), ""))

    def _tensor(self, name: str, shape: Any, buffer: int = 0) -> int:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.type = (
            f"edgeclf_{name}".encode(),
            np.asarray(shape, np.int32),
            self.schema.TensorType.FLOAT32,
        )
        tensor.buffer = buffer
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _constant(self, name: str, values: Any) -> int:
        stored = np.ascontiguousarray(values, np.float32)
        buffer = self.schema.BufferT()
        buffer.data, buffer.offset, buffer.size = np.frombuffer(stored.tobytes(), np.uint8), 0, 0
        self.tree.buffers.append(buffer)
        return self._tensor(name, stored.shape, len(self.tree.buffers) - 1)

    def _operator(self, name: str, inputs: list[int], outputs: list[int], options: str, values: Any, first: bool = False) -> None:
        op = self.schema.OperatorT()
        op.opcodeIndex = operator_code(self.tree, self.schema, getattr(self.schema.BuiltinOperator, name), 1)
        op.inputs, op.outputs = inputs, outputs
        op.builtinOptionsType, op.builtinOptions = getattr(self.schema.BuiltinOptions, options), copy.copy(values)
        self.graph.operators.insert(0 if first else len(self.graph.operators), op)
