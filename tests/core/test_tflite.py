"""The reader of TFLite flatbuffers: what it finds in real files, and that no bytes can hurt it."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeclf.core.errors import ModelError
from edgeclf.core.flatbuffer import MAX_READ_BYTES, TABLE_BYTES, Number, Numbers, Outside, pack
from edgeclf.core.tflite import (
    IDENTIFIER,
    OPERATORS,
    SOFTMAX_OPTIONS,
    TYPES,
    TfliteModel,
    logits_tensor,
    logits_view,
    read_model,
    scheme,
)  # fmt: skip

FIXTURES = Path(__file__).parent.parent / "fixtures"
VARIANTS = ("float32", "float16", "dynamic-w8", "int8", "w8a16")
INT8 = (FIXTURES / "tiny-int8.tflite").read_bytes()
CODES = {name: code for code, name in OPERATORS.items()}


def fixture(variant: str) -> bytes:
    return (FIXTURES / f"tiny-{variant}.tflite").read_bytes()


def tensor(kind: str, shape: tuple[int, ...] = (1, 64), constant: bool = False) -> dict[int, Any]:
    return {0: Numbers("i", shape), 1: Number("b", TYPES.index(kind)), 2: Number("I", int(constant)), 3: kind}


def operator(code: int, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> dict[int, Any]:
    return {0: Number("I", code), 1: Numbers("i", inputs), 2: Numbers("i", outputs)}


def model(names: list[str], tensors: list[Any], operators: list[Any], outputs: tuple[int, ...] = (1,)) -> bytes:
    """A flatbuffer of these tables, with one empty buffer and one of four bytes."""
    graph = {0: tensors, 1: Numbers("i", (0,)), 2: Numbers("i", outputs), 3: operators}
    codes = [{3: Number("i", CODES[name])} for name in names]
    return pack({0: Number("I", 3), 1: codes, 2: [graph], 3: "made", 4: [{}, {0: b"1234"}]}, IDENTIFIER)


def dense(activation: str, weights: str, elements: int = 4096) -> bytes:
    tensors = [tensor(activation), tensor(activation), tensor(weights, (elements // 64, 64), True)]
    return model(["FULLY_CONNECTED"], tensors, [operator(0, (0, 2, -1), (1,))])


@pytest.mark.parametrize("variant", VARIANTS)
def test_scheme_of_every_committed_file_is_its_name(variant: str) -> None:
    """The tensors show what the converter was asked for."""
    assert scheme(read_model(fixture(variant), "x")) == variant


def test_int8_file_takes_pixels_as_they_are() -> None:
    """uint8 in and out, scale 1/128 and zero point 128 exactly, int8 per-channel weights inside."""
    found = read_model(INT8, "x")
    assert (found.input.type, found.input.scales, found.input.zero_points) == ("uint8", (1 / 128,), (128,))
    assert (found.output.type, found.output.scales, found.output.shape) == ("uint8", (1 / 256,), (-1, 4))
    convolution = next(op for op in found.operators if op.name == "CONV_2D")
    weights = found.tensors[convolution.inputs[1]]
    assert (weights.type, weights.shape, len(weights.scales), weights.quantized_dimension) == ("int8", (8, 3, 3, 3), 8, 0)
    assert weights.constant
    assert weights.buffer_bytes == weights.elements == 8 * 27


def test_operators_come_by_name_in_the_order_of_execution() -> None:
    """The graph of the int8 fixture, from QUANTIZE to QUANTIZE."""
    names = [op.name for op in read_model(INT8, "x").operators]
    assert names == ["QUANTIZE", *["CONV_2D"] * 3, "MEAN", "FULLY_CONNECTED", "SOFTMAX", "QUANTIZE"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_agree_with_the_interpreter(variant: str) -> None:
    """Names, types, shapes, scales and zero points are those that LiteRT reports."""
    interpreters = pytest.importorskip("ai_edge_litert.interpreter")
    details = interpreters.Interpreter(model_content=fixture(variant)).get_tensor_details()
    tensors = read_model(fixture(variant), "x").tensors
    for theirs, ours in zip(details, tensors, strict=False):
        assert (theirs["name"], np.dtype(theirs["dtype"]).name) == (ours.name, ours.type)
        assert tuple(theirs["shape_signature"]) == ours.shape
        assert theirs["quantization_parameters"]["scales"].tolist() == list(ours.scales)
        assert theirs["quantization_parameters"]["zero_points"].tolist() == list(ours.zero_points)


def test_metadata_and_description_are_read() -> None:
    """Metadata entries by name with their bytes."""
    found = read_model(INT8, "x")
    assert found.description == "MLIR Converted."
    assert found.metadata["TFLITE_METADATA"][4:8] == b"M001"
    assert found.metadata["min_runtime_version"].rstrip(b"\0") == b"1.14.0"


@pytest.mark.parametrize(
    ("activation", "weights", "wanted"),
    [
        ("float32", "float32", "float32"), ("float32", "int8", "dynamic-w8"), ("float32", "int4", "dynamic-w4"),
        ("int8", "int8", "int8"), ("int8", "int4", "w4a8"), ("int16", "int8", "w8a16"), ("uint8", "uint8", "uint8"),
        ("int16", "int16", "mixed"),
    ],
)  # fmt: skip
def test_scheme_follows_the_operands(activation: str, weights: str, wanted: str) -> None:
    """One dense layer of these types names the scheme."""
    assert scheme(read_model(dense(activation, weights), "x")) == wanted


@pytest.mark.parametrize(("stored", "wanted"), [("float16", "float16"), ("int8", "weight-only-w8")])
def test_weights_behind_dequantize_count_as_stored(stored: str, wanted: str) -> None:
    """A float layer whose weights are expanded at run time is not a float32 file."""
    tensors = [tensor("float32"), tensor("float32"), tensor("float32", (64, 64)), tensor(stored, (64, 64), True)]
    operators = [operator(1, (3,), (2,)), operator(0, (0, 2, -1), (1,))]
    assert scheme(read_model(model(["FULLY_CONNECTED", "DEQUANTIZE"], tensors, operators), "x")) == wanted


@pytest.mark.parametrize(("elements", "wanted"), [(512, "dynamic-w8"), (1024, "mixed"), (4096, "mixed")])
def test_only_small_weights_may_stay_float_in_a_dynamic_file(elements: int, wanted: str) -> None:
    """The converter leaves weights under 1024 elements alone; a large float layer makes the file mixed."""
    small = tensor("float32", (elements // 64, 64), True)
    tensors = [tensor("float32"), tensor("float32"), tensor("int8", (64, 64), True), small, tensor("float32")]
    operators = [operator(0, (0, 2, -1), (4,)), operator(0, (4, 3, -1), (1,))]
    assert scheme(read_model(model(["FULLY_CONNECTED"], tensors, operators), "x")) == wanted


def test_one_small_float_layer_makes_an_int8_file_mixed() -> None:
    """An int8 file in which any layer stayed float is not int8."""
    tensors = [tensor("int8"), tensor("float32"), tensor("int8", (64, 64), True), tensor("float32", (4, 4), True)]
    operators = [operator(0, (0, 2, -1), (0,)), operator(0, (1, 3, -1), (1,))]
    assert scheme(read_model(model(["FULLY_CONNECTED"], tensors, operators), "x")) == "mixed"


def test_scheme_without_weights_is_unknown() -> None:
    """Nothing can be said of a graph without convolutions or dense layers."""
    assert scheme(read_model(model(["RELU"], [tensor("float32")] * 2, [operator(0, (0,), (1,))]), "x")) == "unknown"


def test_logits_view_changes_one_tensor_index() -> None:
    """At most one int32 differs, and the output is then what fed the SOFTMAX."""
    view = logits_view(INT8)
    different = [i for i, (a, b) in enumerate(zip(INT8, view, strict=True)) if a != b]
    assert different
    assert max(different) - min(different) < 4
    before, after = read_model(INT8, "x"), read_model(view, "x")
    assert after.outputs == (logits_tensor(before),)
    assert (after.output.type, after.tensors, after.operators) == ("int8", before.tensors, before.operators)


@pytest.mark.parametrize("variant", VARIANTS)
def test_softmax_of_the_view_is_the_answer_of_the_file(variant: str) -> None:
    """LiteRT runs both; softmax of dequantised logits equals the file's probabilities up to their resolution."""
    data = fixture(variant)
    pixels = np.random.RandomState(1).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    logits, probabilities = (_run(m, pixels) for m in (logits_view(data), data))
    e = np.exp(logits - logits.max())
    assert e / e.sum() == pytest.approx(probabilities, abs=1 / 128)
    assert not np.allclose(logits, probabilities, atol=0.05)


def _run(data: bytes, pixels: Any) -> Any:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=data)
    interpreter.allocate_tensors()
    given, wanted = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    value = pixels if given["dtype"] == np.uint8 else (pixels.astype(np.float32) - 128) / 128
    interpreter.set_tensor(given["index"], value[None])
    interpreter.invoke()
    scale, zero_point = wanted["quantization"]
    raw = interpreter.get_tensor(wanted["index"])[0].astype(np.float32)
    return (raw - zero_point) * scale if scale else raw


def test_view_of_a_model_without_softmax_is_the_model() -> None:
    """A view of a view has nothing left to look behind."""
    view = logits_view(INT8)
    assert logits_view(view) is view


def test_softmax_with_another_beta_is_refused() -> None:
    """Its logits would be of another temperature than the file's own answer."""
    options = {3: Number("B", SOFTMAX_OPTIONS), 4: {0: Number("f", 2.0)}}
    data = model(["SOFTMAX"], [tensor("float32")] * 2, [operator(0, (0,), (1,)) | options])
    with pytest.raises(ModelError, match=r"beta = 2\.0"):
        logits_view(data)


@pytest.mark.parametrize("data", [b"", b"hello", b"\0" * 64, b"\x1c\0\0\0TFL3", IDENTIFIER * 40, b"PK\x03\x04" + bytes(60)])
def test_what_is_no_model_is_refused_by_name(data: bytes) -> None:
    """The message names the file."""
    with pytest.raises(ModelError, match=r"^some\.tflite: "):
        read_model(data, "some.tflite")


def read_or_refuse(data: bytes) -> None:
    """Everything that is done with foreign bytes; any other exception than ModelError fails the test."""
    try:
        found = read_model(data, "x")
        assert isinstance(found, TfliteModel)
        scheme(found)
        logits_view(data)
    except ModelError:
        pass


@given(st.integers(0, len(INT8)))
def test_truncated_file_gives_a_model_or_a_model_error(length: int) -> None:
    """Never another exception."""
    read_or_refuse(INT8[:length])


@given(st.lists(st.tuples(st.integers(0, len(INT8) - 1), st.integers(0, 7)), min_size=1, max_size=40))
def test_flipped_bits_give_a_model_or_a_model_error(flips: list[tuple[int, int]]) -> None:
    """Anywhere in the file, one or many."""
    data = bytearray(INT8)
    for at, bit in flips:
        data[at] ^= 1 << bit
    read_or_refuse(bytes(data))


def test_every_word_of_the_structure_may_be_anything() -> None:
    """All 32-bit words of a small model, each replaced by extreme values: a model or a ModelError, in bounded time."""
    data, start = dense("int8", "int8"), time.monotonic()
    for at in range(0, len(data) - 4, 2):
        for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, len(data)):
            read_or_refuse(data[:at] + struct.pack("<I", value) + data[at + 4 :])
    assert time.monotonic() - start < 20


def test_many_references_to_one_table_are_refused_in_bounded_work() -> None:
    """A file of 1 MB cannot ask for more reading than the limit."""
    count, empty_table = 250_000, struct.pack("<HHi", 4, 4, 4)
    data = bytearray(pack({1: [], 2: [{}], 4: Outside(0)}, IDENTIFIER))
    vector = len(data)
    data += struct.pack(f"<{count + 1}I", count, *(4 * (count - i) + 4 for i in range(count))) + empty_table
    start = time.monotonic()
    with pytest.raises(ModelError, match="larger than"):
        read_model(bytes(data), "x")
    assert time.monotonic() - start < 5
    assert vector % 4 == 0
    assert count * TABLE_BYTES > MAX_READ_BYTES
