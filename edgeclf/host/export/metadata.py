"""Standard TFLite Metadata inside a model: how to feed it and where its labels are, as phone libraries want to be told.

Tables and slots: `metadata_schema.fbs` of tflite-support (identifier M001). The new tables are written in front of the
model's own bytes, which stay as the converter wrote them, weights and their alignment included; only the table `Model`
is written anew, pointing into them.
"""

from __future__ import annotations

from typing import Any

from edgeclf.core.bundle import AXIS_LABELS, INPUT_TENSORS, LABELS, METADATA, METADATA_IDENTIFIER, OUTPUT_TENSORS, SUBGRAPHS
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ModelError
from edgeclf.core.flatbuffer import Number, Numbers, Outside, Table, pack
from edgeclf.core.tflite import IDENTIFIER, read_model, root_table

MIN_PARSER_VERSION = "1.0.0"
# Members of the unions ContentProperties and ProcessUnitOptions, and of ColorSpaceType, which has no name for BGR.
FEATURE_PROPERTIES, IMAGE_PROPERTIES, NORMALIZATION_OPTIONS = 1, 2, 1
COLOUR_SPACES = {"bgr": 0, "rgb": 1, "grey": 2}


def with_metadata(model: bytes, card: ModelCard) -> bytes:
    """`model` (a flatbuffer without anything behind it) with TFLite Metadata made from `card`; same input, same bytes.

    Metadata that was there before is replaced. Raises ModelError for a model that is not one input and one output.
    """
    structure = read_model(model, card.name)
    if len(structure.inputs) != 1 or len(structure.outputs) != 1:
        found = f"{len(structure.inputs)} inputs and {len(structure.outputs)} outputs"
        raise ModelError(f"{card.name}: {found}; an image classifier has one of each")
    root = root_table(model, card.name)
    buffers, entries = root.tables(4), [t for t in root.tables(6) if t.text(0) != METADATA]
    if any(buffer.number(1, "<Q") > 1 for buffer in buffers):
        raise ModelError(f"{card.name}: weights behind the flatbuffer are not supported")
    fields: dict[int, Any] = {slot: _kept(root, slot) for slot in range(len(root.slots)) if root.place(slot) is not None}
    fields[0] = Number("I", root.number(0, "<I"))
    fields[4] = [*(Outside(t.at) for t in buffers), {0: metadata(card)}]
    fields[6] = [*(Outside(t.at) for t in entries), {0: METADATA, 1: Number("I", len(buffers))}]
    return pack(fields, IDENTIFIER, behind=model)


def metadata(card: ModelCard) -> bytes:
    """The flatbuffer ModelMetadata for a classifier of one picture."""
    description = f"Image classifier of {len(card.labels)} classes, {card.variant}."
    graph = {INPUT_TENSORS: [_input(card)], OUTPUT_TENSORS: [_output(card)]}
    return pack({0: card.name, 1: description, SUBGRAPHS: [graph], 7: MIN_PARSER_VERSION}, METADATA_IDENTIFIER)


def _kept(root: Table, slot: int) -> Outside:
    place = root.place(slot)
    return Outside(root.file.follow(place) if place is not None else 0)


def _input(card: ModelCard) -> dict[int, Any]:
    """The normalisation holds for float input; integer input follows the tensor's own scale and zero point."""
    image = card.image
    low, high = (0.0, 255.0) if card.io == "uint8" else ((0 - image.mean) / image.std, (255 - image.mean) / image.std)
    return {
        0: "image",
        1: f"Picture of {image.width}x{image.height} pixels, {image.colour.upper()}, fitted by: {image.fit}.",
        3: {0: Number("B", IMAGE_PROPERTIES), 1: {0: Number("b", COLOUR_SPACES[image.colour])}},
        4: [{0: Number("B", NORMALIZATION_OPTIONS), 1: {0: Numbers("f", (image.mean,)), 1: Numbers("f", (image.std,))}}],
        5: _stats(low, high),
    }


def _output(card: ModelCard) -> dict[int, Any]:
    labels = {0: LABELS, 1: "One label a line, in the order of the output.", 2: Number("b", AXIS_LABELS)}
    return {
        0: "probability" if card.outputs == "probabilities" else "logit",
        1: f"{card.outputs.capitalize()}, one for each label.",
        3: {0: Number("B", FEATURE_PROPERTIES), 1: {}},
        6: [labels],
        **({5: _stats(0.0, 1.0)} if card.outputs == "probabilities" else {}),
    }


def _stats(low: float, high: float) -> dict[int, Any]:
    return {0: Numbers("f", (high,)), 1: Numbers("f", (low,))}
