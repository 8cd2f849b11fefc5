"""The model card: JSON there and back, what it refuses, and the self-test's inputs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from edgeclf.core.card import ModelCard, SelfTest, golden_inputs
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import ImageSpec

CARD = ModelCard(
    name="pets",
    labels=("cat", "dög"),
    image=ImageSpec(96, 64, "crop"),
    variant="int8",
    io="uint8",
    temperature=1.25,
    thresholds=(0.5, 0.75),
    provenance={"seed": 1, "split": {"test": 0.15}},
    calibration={"pictures": ["a.jpg"]},
    accuracy={"top1": 0.9},
    self_test=SelfTest(7, ((1.0, -3.5), (0.0, 2.0)), 0.0, "LiteRT, XNNPACK"),
    sha256="00",
)


def test_card_survives_json() -> None:
    """Every field, text outside ASCII included; the same card gives the same bytes."""
    again = ModelCard.from_json(CARD.to_json(), "x")
    assert again == CARD
    assert again.to_json() == CARD.to_json()


def test_optional_parts_may_be_absent() -> None:
    """A card of name, labels and picture is whole."""
    bare = ModelCard("pets", ("cat", "dog"), ImageSpec(8, 8))
    assert ModelCard.from_json(bare.to_json(), "x") == bare
    assert bare.self_test is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "another schema"),
        ('{"edgeclf": 2}', "another schema"),
        ('{"edgeclf": 1, "name": "x", "labels": ["a", "b"]}', "missing key 'image'"),
        ('{"edgeclf": 1, "name": "x", "labels": 3, "image": {}}', "labels: expected a list"),
    ],
)
def test_what_is_no_card_is_a_model_error(text: str, message: str) -> None:
    """The message says which key is wrong."""
    with pytest.raises(ModelError, match=message):
        ModelCard.from_json(text, "x.tflite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ("cat",)}, "at least 2"),
        ({"labels": ("cat", "cat")}, "twice"),
        ({"labels": ("cat", " ")}, "blank"),
        ({"labels": ("cat", "a\nb")}, "line break"),
        ({"labels": ("cat", "a\rb")}, "line break"),
        ({"thresholds": (0.5,)}, "1 for 2 labels"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"temperature": float("inf")}, "above 0"),
        ({"labels": ("cat", "\x1b[2J")}, "control character"),
        ({"labels": ("cat", "\ud800")}, "control character"),
        ({"name": "\x1b[31mpets"}, "control character"),
        ({"thresholds": (0.5, 2.0)}, "between 0 and 1"),
        ({"thresholds": (0.5, float("nan"))}, "between 0 and 1"),
    ],
)
def test_card_that_cannot_work_cannot_be_made(change: dict[str, Any], message: str) -> None:
    """Labels and thresholds are checked where the card is made."""
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CARD, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "between 0"),
        ({"seed": 1 << 32}, "between 0"),
        ({"outputs": ()}, "rows of one length"),
        ({"outputs": ((1.0,), (1.0, 2.0))}, "rows of one length"),
        ({"outputs": ((1.0,),) * 1000}, "1 to 64 rows"),
        ({"tolerance": float("inf")}, "finite"),
        ({"tolerance": -1.0}, "not below 0"),
    ],
)
def test_self_test_that_cannot_be_computed_cannot_be_made(change: dict[str, Any], message: str) -> None:
    """A card may come from anywhere, and `inspect` computes what it says."""
    assert CARD.self_test is not None
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CARD.self_test, **change)


def test_labels_may_hold_any_letter() -> None:
    """Emoji, other scripts and wide spaces steer no terminal."""
    labels = ("\N{FAMILY}\u200d", "犬\u3000", "caf\u00e9\u00a0noir")
    assert dataclasses.replace(CARD, labels=labels, thresholds=()).labels == labels


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_numbers_that_json_lacks_are_refused_when_read(number: str) -> None:
    """Wherever they stand: what was read must be writable again."""
    text = CARD.to_json().replace('"top1": 0.9', f'"top1": {number}')
    with pytest.raises(ModelError, match="not valid JSON"):
        ModelCard.from_json(text, "x.tflite")


def test_nan_never_reaches_the_file() -> None:
    """JSON has no NaN; other readers would fail on it."""
    with pytest.raises(ValueError, match="JSON"):
        dataclasses.replace(CARD, accuracy={"top1": float("nan")}).to_json()


def test_json_names_its_schema() -> None:
    """Readers tell the schema before anything else."""
    assert json.loads(CARD.to_json())["edgeclf"] == 1


def test_golden_inputs_are_frozen() -> None:
    """The same bytes in every NumPy: an exported self-test must hold for ever."""
    pictures = golden_inputs(1, 2, (4, 5, 3))
    assert (pictures.shape, pictures.dtype.name) == ((2, 4, 5, 3), "uint8")
    assert hashlib.sha256(pictures.tobytes()).hexdigest() == "4708a2f0fce259f481c18d006e2da486e9f877b0b78b47212876ec646432203d"
    assert (golden_inputs(2, 2, (4, 5, 3)) != pictures).any()
