"""Models that come with edgeclf: called by name, whole, small, and nothing of their maker's machine in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgeclf
from edgeclf.core.bundle import read_bundle
from edgeclf.core.errors import ModelError
from edgeclf.core.recipe import load_recipe
from edgeclf.runtime import shipped
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.selftest import self_test

MOST_BYTES = 500_000
NAMES = ["compact-cifar10", "compact-digits"]


def test_these_are_shipped_and_small_enough_for_a_wheel() -> None:
    """Under 500 KB together."""
    assert shipped.names() == NAMES
    assert sum(shipped.path_of(name).stat().st_size for name in NAMES) < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_int8_bears_its_name_and_computes_what_was_shipped(name: str) -> None:
    """Loaded by its name; the self-test in its card holds here."""
    model = edgeclf.load(name)
    result = self_test(model.engine, model.card)
    assert (model.card.name, model.card.variant, model.card.io) == (name, "int8", "uint8")
    assert result is not None
    assert result.passed
    assert load_recipe(model.card.provenance["recipe"]).image.spec() == model.card.image


@pytest.mark.parametrize("name", NAMES)
def test_its_card_says_how_good_it_is_and_nothing_of_the_machine_it_was_made_on(name: str) -> None:
    """No folders, no command line."""
    card = read_bundle(shipped.path_of(name)).card
    assert card is not None
    assert card.accuracy["file"]["top1"] > 0.85
    assert "command" not in card.provenance
    assert "/" not in card.provenance["data"]
    assert str(Path.home()) not in card.to_json()
    assert str(shipped.path_of(name).parent.parent) not in card.to_json()


def test_a_handwritten_digit_is_read() -> None:
    """A drawn one and a drawn nought: by the network, not by its card alone."""
    nought, one = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)
    nought[1:7, 2:6] = 255
    nought[2:6, 3:5] = 0
    one[0:8, 3:5] = 255
    model = Classifier.load("compact-digits")
    assert [model.classify(picture)[0].label for picture in (nought, one)] == ["0", "1"]


def test_a_file_of_the_same_name_goes_before_the_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies here is what is meant; paths and suffixes are never looked up."""
    monkeypatch.chdir(tmp_path)
    assert shipped.resolve("compact-digits") == shipped.path_of("compact-digits")
    (tmp_path / "compact-digits").write_bytes(b"mine")
    for given in ("compact-digits", "./compact-digits", "compact-digits.tflite", str(tmp_path / "compact-cifar10")):
        assert shipped.resolve(given) == Path(given)


def test_an_unknown_name_is_told_the_nearest() -> None:
    """And all there are."""
    with pytest.raises(ModelError, match=r"did you mean 'compact-cifar10'\? \(ready to run: compact-cifar10, compact-digits\)"):
        shipped.resolve("compact-cifar")


@pytest.mark.parametrize("verb", [("inspect", "--json"), ("bench", "--threads", "1", "--seconds", "0.2", "--json")])
def test_verbs_take_the_name(verb: tuple[str, ...], cli_here, tmp_path: Path) -> None:
    """As they take a file."""
    answer = cli_here(verb[0], "compact-digits", *verb[1:], cwd=tmp_path)
    assert answer.code == 0, answer.text
    assert json.loads(answer.stdout)["file"].endswith("compact-digits.tflite")


def test_run_and_predict_take_the_name_and_hint_at_it(cli_here, tmp_path: Path, fixtures_folder: Path) -> None:
    """From any folder, on a base install."""
    picture = fixtures_folder / "pictures" / "red-square.png"
    assert cli_here("predict", "compact-cifar10", picture, cwd=tmp_path).code == 0
    assert cli_here("run", "compact-cifar10", "--source", picture.parent, "--max-frames", "1", cwd=tmp_path).code == 0
    answer = cli_here("predict", "compact-digit", picture, cwd=tmp_path)
    assert (answer.code, answer.stderr.count("\n")) == (4, 1)
    assert "did you mean 'compact-digits'?" in answer.stderr


def test_models_lists_them_as_ready_to_run(cli_here) -> None:
    """Beside the recipes, in text and in JSON."""
    text = cli_here("models").stdout.partition("\n\n")[2]
    assert [line.split()[0] for line in text.splitlines()[1:3]] == NAMES
    listed = {row["name"]: row["ready_to_run"] for row in json.loads(cli_here("models", "--json").stdout)}
    assert (listed["compact"], listed["compact-digits"], listed["resnet8"]) == (["compact-cifar10"], ["compact-digits"], [])
