"""inspect, models and devices: what there is, and what is inside."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeclf.cli import info
from edgeclf.core import config

Cli = Callable[..., Any]


def test_inspect_shows_card_tensors_precision_and_self_test(cli_here: Cli, fixtures_folder: Path) -> None:
    """Of a file of ours."""
    answer = cli_here("inspect", fixtures_folder / "tiny-int8.tflite", "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)
    assert found["precision"] == found["card"]["variant"] == "int8"
    assert found["input"] == {"shape": [-1, 16, 16, 3], "type": "uint8", "scale": 1 / 128, "zero_point": 128}
    assert found["labels"] == ["red square", "green disc", "blue cross", "yellow bars"]
    assert found["self_test"]["passed"] is True
    assert found["sha256"] == "matches the card"
    assert found["operators"]["CONV_2D"] == 3


@pytest.mark.parametrize("variant", ["float32", "float16", "dynamic-w8", "w8a16"])
def test_inspect_tells_the_precision_by_the_tensors(variant: str, cli_here: Cli, fixtures_folder: Path) -> None:
    """Not by the name of the file."""
    found = json.loads(cli_here("inspect", fixtures_folder / f"tiny-{variant}.tflite", "--json").stdout)
    assert found["precision"] == variant


def test_inspect_reads_for_people(cli_here: Cli, fixtures_folder: Path) -> None:
    """One fact a line."""
    answer = cli_here("inspect", fixtures_folder / "tiny-int8.tflite")
    assert "precision" in answer.stdout
    assert "red square, green disc, blue cross, yellow bars" in answer.stdout


def test_inspect_of_a_foreign_file_says_that_it_has_no_card(cli_here: Cli, fixtures_folder: Path) -> None:
    """And still shows tensors, and that it runs."""
    found = json.loads(cli_here("inspect", fixtures_folder / "foreign-float32.tflite", "--json").stdout)
    assert (found["card"], found["labels"], found["runs_here"]) == (None, [], True)
    assert found["precision"] == "float32"


def test_inspect_of_a_broken_model_is_exit_code_4(cli_here: Cli, tmp_path: Path) -> None:
    """One line."""
    (tmp_path / "x.tflite").write_bytes(b"no model")
    answer = cli_here("inspect", tmp_path / "x.tflite")
    assert (answer.code, answer.stderr.count("\n"), answer.stdout) == (4, 1, "")


def test_inspect_of_data_counts_classes_and_splits(cli_here: Cli, tmp_path: Path, fixtures_folder: Path) -> None:
    """With imbalance, sizes of a sample, and what cannot be read."""
    picture = (fixtures_folder / "pictures" / "grey.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("train/cat/1", "train/cat/2", "train/cat/3", "train/dog/1", "test/dog/1", "test/cat/1"):
            archive.writestr(f"{name}.png", picture)
        archive.writestr("test/cat/2.png", b"broken")
    found = json.loads(cli_here("inspect", tmp_path / "x.zip", "--json").stdout)
    assert found["classes"] == {"cat": {"train": 3, "test": 2}, "dog": {"train": 1, "test": 1}}
    assert (found["kind"], found["pictures"], found["imbalance"]) == ("zip", 7, 2.5)
    assert len(found["unreadable_in_sample"]) == 1
    assert found["width"][0] == found["width"][1] > 0
    assert "cat  train 3  test 2" in cli_here("inspect", tmp_path / "x.zip").stdout


def test_inspect_of_data_without_pictures_is_exit_code_5(cli_here: Cli, tmp_path: Path) -> None:
    """And a run folder is told apart from data."""
    answer = cli_here("inspect", tmp_path)
    assert (answer.code, "no pictures found" in answer.stderr) == (5, True)
    (tmp_path / "recipe.toml").write_text("")
    answer = cli_here("inspect", tmp_path)
    assert (answer.code, "is a run folder" in answer.stderr) == (2, True)


@pytest.mark.parametrize("kind", ["models", "devices"])
def test_lists_hold_everything_that_is_shipped(kind: str, cli_here: Cli) -> None:
    """In text and in JSON."""
    listed = [entry["name"] for entry in json.loads(cli_here(kind, "--json").stdout)]
    assert listed == config.names(kind)
    text = cli_here(kind).stdout
    assert [line.split()[0] for line in text.partition("\n\n")[0].splitlines()[1:]] == listed


def test_devices_as_json_hold_their_budgets(cli_here: Cli) -> None:
    """For scripts that choose a model by board."""
    found = {entry["name"]: entry for entry in json.loads(cli_here("devices", "--json").stdout)}
    assert found["raspberry-pi-5"]["dot_product"] is True
    assert found["raspberry-pi-zero-2w"]["budget"]["memory_mb"] < 512


def test_models_shows_what_was_measured_and_says_so_where_nothing_was(cli_here, tmp_path, monkeypatch):
    """The figures come from the results file beside the recipe."""
    results = {"full_model": {"top1": 0.5}, "variants": {"int8": {"top1": 0.25}}, "data": "pets.zip"}
    (tmp_path / "a.toml").write_text('name="a"\ndescription="d"\n[model]\narchitecture="compact"\n[image]\nsize=32\n')
    (tmp_path / "b.toml").write_text('name="b"\ndescription="d"\n[model]\narchitecture="compact"\n[image]\nsize=32\n')
    (tmp_path / "a.results.json").write_text(json.dumps(results))
    monkeypatch.setattr("edgeclf.core.config.shipped", lambda kind: tmp_path)
    answer = cli_here("models").stdout
    assert "50.00%, 25.00% on pets.zip" in answer
    assert "not measured" in answer
    measured = {row["name"]: row["measured"] for row in json.loads(cli_here("models", "--json").stdout)}
    assert measured == {"a": results, "b": None}


def test_what_a_file_says_of_itself_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Names and records come from a file of anybody's."""
    info._print_facts({"\x1b[2J": {"a": "b\x07", "c\n": ["\x9b1m"]}})
    assert capsys.readouterr().out == "?[2J  a b?  c? ?1m\n"
