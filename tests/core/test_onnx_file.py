"""The reader of ONNX files, and the card in their metadata: no runtime, hostile bytes, altered files."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeclf.core.bundle import CARD, attach_onnx, parse_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ModelError
from edgeclf.core.image import ImageSpec
from edgeclf.core.onnx import logits_tensor, logits_view, read_model, scheme, split_metadata, with_metadata
from edgeclf.core.protobuf import MAX_FIELDS, delimited, varint

onnx = pytest.importorskip("onnx")

CARD_OF_TWO = ModelCard("tiny", ("red", "blue"), ImageSpec(4, 4), sha256="0" * 64)
FLOAT = 1
KINDS = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "uint8": np.uint8}


def classifier(activation: str = "float32", weights: str = "float32", dense: str = "", end: str = "Softmax") -> Any:
    """Conv → mean → Gemm → `end`; quantised types get QuantizeLinear and DequantizeLinear in front, `dense` is for Gemm."""
    helper, nodes, constants = onnx.helper, [], []

    def constant(name: str, kind: str, shape: tuple[int, ...]) -> str:
        constants.append(onnx.numpy_helper.from_array(np.ones(shape, KINDS[kind]), name))
        return name

    def quantizers(name: str, kind: str, of_weights: bool) -> str:
        if kind.startswith("float"):
            return name
        ends = [constant(f"{name}_scale", "float32", ()), constant(f"{name}_zero", kind, ())]
        if not of_weights:
            nodes.append(helper.make_node("QuantizeLinear", [name, *ends], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [name if of_weights else f"{name}_q", *ends], [f"{name}_d"]))
        return f"{name}_d"

    kernel = quantizers(constant("kernel", weights, (2, 3, 1, 1)), weights, True)
    nodes.append(helper.make_node("Conv", [quantizers("input", activation, False), kernel], ["maps"]))
    nodes.append(helper.make_node("ReduceMean", ["maps"], ["means"], axes=[2, 3], keepdims=0))
    matrix = quantizers(constant("matrix", dense or weights, (2, 2)), dense or weights, True)
    inside = quantizers("means", "float32" if dense == "float32" else activation, False)
    nodes.append(helper.make_node("Gemm", [inside, matrix], ["logits"]))
    nodes.append(helper.make_node(end, ["logits"], ["scores"]))
    ends = [helper.make_tensor_value_info(n, FLOAT, s) for n, s in (("input", ["pictures", 3, 4, 4]), ("scores", [1, 2]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def bytes_of(*arguments: str, **named: str) -> bytes:
    return bytes(classifier(*arguments, **named).SerializeToString())


def test_the_graph_is_read_as_the_package_onnx_reads_it() -> None:
    """Nodes, weights, shapes with open sizes, opset; the weights' values stay where they are."""
    tree, found = classifier("int8", "int8"), read_model(bytes_of("int8", "int8"), "x.onnx")
    assert [n.operator for n in found.nodes] == [n.op_type for n in tree.graph.node]
    assert [list(n.inputs) for n in found.nodes] == [list(n.input) for n in tree.graph.node]
    assert {name: list(v.shape) for name, v in found.weights.items()} == {t.name: list(t.dims) for t in tree.graph.initializer}
    assert found.weights["kernel"].type == "int8"
    assert (found.opset, found.inputs[0].shape, found.outputs[0].shape) == (17, (-1, 3, 4, 4), (1, 2))


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("float32", "float32"), "float32"),
        (("float32", "float16"), "float16"),
        (("int8", "int8"), "int8"),
        (("uint8", "int8"), "int8"),
        (("uint8", "uint8"), "uint8"),
        (("float32", "int8"), "weight-only-w8"),
        (("int8", "int8", "float32"), "mixed"),
    ],
)
def test_the_scheme_is_what_the_operands_are(types: tuple[str, ...], expected: str) -> None:
    """Of the convolution and the dense layer both: one that stays in floats makes a mixed file."""
    assert scheme(read_model(bytes_of(*types), "x.onnx")) == expected


@pytest.mark.parametrize(("operator", "places", "expected"), [("QLinearConv", 9, "uint8"), ("ConvInteger", 2, "dynamic-w8")])
def test_the_older_ways_of_quantising_are_known(operator: str, places: int, expected: str) -> None:
    """Operators that take integers themselves, with uint8 weights; the former with a bias at its end."""
    tree = classifier("uint8", "uint8")
    conv = next(node for node in tree.graph.node if node.op_type == "Conv")
    before = next(node for node in tree.graph.node if node.op_type == "QuantizeLinear")
    conv.op_type, names = operator, ["input_d", "input_scale", "input_zero", "kernel", *["kernel_scale", "kernel_zero"] * 3]
    conv.input[:] = names[:places] if places > 2 else [before.output[0], "kernel"]
    del tree.graph.node[[n.op_type for n in tree.graph.node].index("Gemm")]
    assert scheme(read_model(tree.SerializeToString(), "x.onnx")) == expected


def test_the_view_of_the_logits_changes_the_output_and_nothing_else() -> None:
    """The same nodes and weights; a file that does not end in Softmax is its own view."""
    data = bytes_of()
    before, after = read_model(data, "x.onnx"), read_model(logits_view(data, "x.onnx"), "x.onnx")
    assert after == dataclasses.replace(before, outputs=(dataclasses.replace(before.outputs[0], name="logits"),))
    plain = bytes_of(end="Identity")
    assert logits_view(plain, "x.onnx") is plain
    assert logits_tensor(read_model(plain, "x.onnx")) is None


def test_a_card_travels_in_the_metadata_and_takes_the_place_of_an_older_one() -> None:
    """The package onnx sees it; the model's bytes stay; same input, same bytes."""
    model = bytes_of()
    data = attach_onnx(attach_onnx(model, dataclasses.replace(CARD_OF_TWO, name="old")), CARD_OF_TWO)
    bundle = parse_bundle(data, "x.onnx")
    assert (bundle.model, bundle.card.name, bundle.labels, bundle.precision) == (model, "tiny", ("red", "blue"), "float32")
    assert data == attach_onnx(model, CARD_OF_TWO) == bundle.with_card(bundle.card)
    seen = {entry.key: entry.value for entry in onnx.load_model_from_string(data).metadata_props}
    assert ModelCard.from_json(seen[CARD], "x") == bundle.card


def test_a_file_with_any_flipped_bit_is_refused() -> None:
    """In the model, in the card, in the names of both entries, and in the lengths between."""
    data = attach_onnx(bytes_of(), CARD_OF_TWO)
    for at in range(len(data)):
        flipped = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        with pytest.raises(ModelError, match=r"x\.onnx: "):
            parse_bundle(flipped, "x.onnx")


def test_a_file_that_was_cut_is_refused() -> None:
    """At any byte; where exactly the card is missing, the file is one without a card."""
    model = bytes_of()
    data = attach_onnx(model, CARD_OF_TWO)
    for length in (*range(0, len(model), 7), *range(len(model) + 1, len(data))):
        with pytest.raises(ModelError, match=r"^x\.onnx: "):
            parse_bundle(data[:length], "x.onnx")
    assert parse_bundle(data[: len(model)], "x.onnx").card is None


def test_a_card_with_another_number_of_labels_is_refused() -> None:
    """Both counts are named, and nothing is made of it."""
    with pytest.raises(ModelError, match="3 labels for 2 outputs"):
        attach_onnx(bytes_of(), dataclasses.replace(CARD_OF_TWO, labels=("a", "b", "c")))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "no graph"),
        (delimited(7, b"") * 2, "several graphs"),
        (delimited(7, b""), "no input or no output"),
        (varint(7 << 3), "has no end"),
        (delimited(7, b"")[:-1] + b"\x7f", "reaches to byte"),
        (b"\x3b", "starts no field"),  # a group
        (delimited(7, delimited(1, delimited(4, b"\xff"))), "not UTF-8"),
        (b"\x08\x01" * (MAX_FIELDS + 1), "larger than a classifier's"),
        (with_metadata(with_metadata(bytes_of(), CARD, "{}"), CARD, "{}"), "2 entries"),
    ],
)
def test_bytes_that_are_no_model_are_named(data: bytes, complaint: str) -> None:
    """Each in one line, after bounded work."""
    with pytest.raises(ModelError, match=complaint):
        read_model(split_metadata(data, CARD, "x.onnx")[0], "x.onnx")


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 200))
def test_no_bytes_raise_anything_but_model_error(noise: bytes, at: int, cut: int) -> None:
    """Noise alone, and noise in the place of a piece of a model."""
    whole = bytes_of("int8", "int8")
    for data in (noise, whole[:at] + noise + whole[at + cut :]):
        with contextlib.suppress(ModelError):
            bundle = parse_bundle(data, "x.onnx")
            assert isinstance(bundle.precision, str)
            read_model(logits_view(bundle.model, "x.onnx"), "x.onnx")
