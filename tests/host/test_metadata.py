"""TFLite Metadata: what is written, that the model stays as it was, and that a phone library's own code reads it."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf.core.bundle import METADATA, attach, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ModelError
from edgeclf.core.flatbuffer import Flatbuffer, Number, Numbers, Table, pack
from edgeclf.core.image import ImageSpec
from edgeclf.core.tflite import IDENTIFIER, read_model
from edgeclf.host.export.metadata import metadata, with_metadata

FIXTURES = Path(__file__).parent.parent / "fixtures"
FOREIGN = (FIXTURES / "foreign-float32.tflite").read_bytes()
CARD = ModelCard("shapes", ("a", "b", "c", "d"), ImageSpec(16, 16))
PICTURES = sorted((FIXTURES / "pictures").glob("*-*.png"))


def tensor_tables(card: ModelCard) -> tuple[Table, Table]:
    """TensorMetadata of the input and of the output."""
    file = Flatbuffer(metadata(card), "x")
    graph = Table(file, file.follow(0)).tables(3)[0]
    return graph.tables(2)[0], graph.tables(3)[0]


def inner(table: Table, slot: int) -> Table:
    found = table.table(slot)
    assert found is not None
    return found


def test_input_says_rgb_and_how_to_normalise() -> None:
    """ImageProperties (member 2) of colour space 1, and NormalizationOptions (member 1) of mean and std 128."""
    given, _ = tensor_tables(CARD)
    content, unit = inner(given, 3), given.tables(4)[0]
    assert (content.number(0, "<B"), inner(content, 1).number(0, "<b")) == (2, 1)
    assert unit.number(0, "<B") == 1
    assert (inner(unit, 1).vector(0, "f"), inner(unit, 1).vector(1, "f")) == ((128.0,), (128.0,))
    assert [inner(given, 5).vector(slot, "f") for slot in (0, 1)] == [(127 / 128,), (-1.0,)]


def test_output_names_the_label_file() -> None:
    """One associated file of type TENSOR_AXIS_LABELS; probabilities lie between 0 and 1."""
    _, output = tensor_tables(CARD)
    (labels,) = output.tables(6)
    assert (labels.text(0), labels.number(2, "<b")) == ("labels.txt", 2)
    assert [inner(output, 5).vector(slot, "f") for slot in (0, 1)] == [(1.0,), (0.0,)]


@pytest.mark.parametrize(("colour", "space"), [("rgb", 1), ("grey", 2), ("bgr", 0)])
def test_colour_space_is_never_a_wrong_one(colour: Any, space: int) -> None:
    """The format has no name for BGR; unknown is better than RGB."""
    given, _ = tensor_tables(dataclasses.replace(CARD, image=ImageSpec(16, 16, colour=colour)))
    assert inner(inner(given, 3), 1).number(0, "<b") == space


def test_the_model_itself_stays_as_the_converter_wrote_it() -> None:
    """The old bytes follow the new ones, aligned as before; same graph; one metadata entry more; the same bytes again."""
    data = with_metadata(FOREIGN, CARD)
    assert data.endswith(FOREIGN)
    assert (len(data) - len(FOREIGN)) % 16 == 0
    before, after = read_model(FOREIGN, "x"), read_model(data, "x")
    assert after.metadata == {**before.metadata, METADATA: metadata(CARD)}
    assert dataclasses.replace(after, metadata=before.metadata) == before
    assert with_metadata(FOREIGN, CARD) == data


def test_metadata_is_replaced_not_doubled() -> None:
    """Readers take the first entry of that name."""
    second = dataclasses.replace(CARD, name="other")
    found = read_model(with_metadata(with_metadata(FOREIGN, CARD), second), "x")
    assert found.metadata[METADATA] == metadata(second)
    assert len(found.metadata) == 3


def test_the_official_schema_reads_the_same() -> None:
    """LiteRT's generated reader finds the entry, its buffer and the old signature."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromPackedBuf(with_metadata(FOREIGN, CARD))
    entry = model.metadata[-1]
    assert (entry.name, bytes(model.buffers[entry.buffer].data)) == (METADATA.encode(), metadata(CARD))
    assert model.signatureDefs[0].signatureKey == b"serving_default"
    assert model.description == b"MLIR Converted."


def test_interpreter_gives_the_same_scores() -> None:
    """Metadata changes no number."""
    pixels = np.random.RandomState(1).rand(1, 16, 16, 3).astype(np.float32)
    one, other = (litert_scores(data, pixels) for data in (FOREIGN, attach(with_metadata(FOREIGN, CARD), CARD)))
    assert one.tobytes() == other.tobytes()


def test_model_of_two_inputs_is_refused() -> None:
    """Phone libraries want one picture and one list of scores."""
    graph = {0: [{}, {}], 1: Numbers("i", (0, 1)), 2: Numbers("i", (0,)), 3: []}
    two = pack({0: Number("I", 3), 1: [], 2: [graph], 4: [{}]}, IDENTIFIER)
    with pytest.raises(ModelError, match="2 inputs and 1 outputs"):
        with_metadata(two, CARD)


def litert_scores(data: bytes, value: Any) -> Any:
    """Dequantised output of LiteRT for one input value."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=data)
    interpreter.allocate_tensors()
    given, wanted = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.set_tensor(given["index"], value)
    interpreter.invoke()
    scale, zero_point = wanted["quantization"]
    raw = interpreter.get_tensor(wanted["index"])[0].astype(np.float32)
    return (raw - np.float32(zero_point)) * np.float32(scale) if scale else raw


@pytest.mark.parametrize("variant", ["int8", "float32", "float16", "dynamic-w8", "w8a16"])
def test_mediapipe_gives_the_scores_of_litert(variant: str) -> None:
    """The phone library opens the file unaided and agrees bit for bit on pictures of the input size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mediapipe = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    path = FIXTURES / f"tiny-{variant}.tflite"
    data, labels = path.read_bytes(), read_bundle(path).labels
    quantised = read_model(data, "x").input.type == "uint8"
    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=str(path)), max_results=-1)
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for picture in PICTURES:
            rgb = np.ascontiguousarray(cv2.imread(str(picture))[:, :, ::-1])
            answer = classifier.classify(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=rgb))
            found = {c.category_name: c.score for c in answer.classifications[0].categories}
            value = rgb[None] if quantised else ((rgb.astype(np.float32) - 128) / 128)[None]
            assert [found[label] for label in labels] == litert_scores(data, value).tolist()
            assert max(found, key=lambda label: found[label]).replace(" ", "-") == picture.stem
