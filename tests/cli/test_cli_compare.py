"""compare and calibrate on exported files, which need the base install alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf.core.bundle import read_bundle

Cli = Callable[..., Any]
NAMES = ("red-square", "green-disc", "blue-cross", "yellow-bars")
EACH = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, fixtures_folder: Path) -> Path:
    """Val and test folders of the four shapes under noise, in which some drown."""
    top, random = tmp_path_factory.mktemp("noisy"), np.random.RandomState(0)
    for part in ("val", "test", "train"):
        for name in NAMES:
            folder, picture = top / part / name.replace("-", " "), cv2.imread(str(fixtures_folder / "pictures" / f"{name}.png"))
            folder.mkdir(parents=True)
            for i in range(EACH):
                noisy = picture * (1 - i / EACH) + random.randint(0, 256, picture.shape) * (i / EACH)
                cv2.imwrite(str(folder / f"{i}.png"), noisy.astype(np.uint8))
    return top


@pytest.fixture
def file(tmp_path: Path, fixtures_folder: Path) -> Path:
    return Path(shutil.copy(fixtures_folder / "tiny-int8.tflite", tmp_path / "shapes.tflite"))


def test_calibrate_changes_the_card_and_nothing_else(cli_here: Cli, file: Path, data: Path) -> None:
    """The model, its self-test and its labels stay to the bit; the card says what it was fitted on."""
    before = read_bundle(file)
    answer = cli_here("calibrate", file, data, "--thresholds", "f1", "--json")
    assert answer.code == 0, answer.text
    after, found = read_bundle(file), json.loads(answer.stdout)["fitted"][0]
    assert before.card is not None
    assert after.card is not None
    assert (after.model, after.card.self_test, after.card.sha256) == (before.model, before.card.self_test, before.card.sha256)
    assert after.card.temperature == found["temperature"]["value"] != 1
    assert list(after.card.thresholds) == [row["value"] for row in found["thresholds"]] != [0] * 4
    assert after.card.accuracy["fitted"]["which"] == "its val folder"
    assert found["pictures"] == 4 * EACH
    assert found["after"]["nll"] < found["before"]["nll"]


def test_calibrate_takes_out_what_is_not_asked_for(cli_here: Cli, file: Path, data: Path) -> None:
    """Thresholds belong to the temperature that they were fitted with; back to the file as it was exported."""
    before = file.read_bytes()
    cli_here("calibrate", file, data, "--thresholds", "precision=0.9")
    assert file.read_bytes() != before
    assert cli_here("calibrate", file, data, "--no-temperature").code == 0
    assert file.read_bytes() == before


def test_calibrate_prints_what_it_set_and_where_to_measure(cli_here: Cli, file: Path, data: Path) -> None:
    """Few answers are pointed out."""
    answer = cli_here("calibrate", file, data, "--thresholds", "precision=0.8")
    for words in (
        "temperature",
        "ECE",
        "thresholds, precision=0.8",
        "yellow bars",
        "fitted on its val folder",
        "edgeclf evaluate",
    ):
        assert words in answer.stdout
    assert "its threshold rests on" in answer.stderr


@pytest.mark.parametrize("wish", ["f2", "precision", "precision=2", "precision=0", "recall=0.9", "precision=nan"])
def test_calibrate_refuses_other_thresholds(wish: str, cli_here: Cli, file: Path, data: Path) -> None:
    """With the forms there are."""
    answer = cli_here("calibrate", file, data, "--thresholds", wish)
    assert (answer.code, "precision=0.95" in answer.stderr) == (2, True)


def test_calibrate_never_fits_on_the_test_folder(cli_here: Cli, file: Path, data: Path, tmp_path: Path) -> None:
    """Data without a val folder is refused, and the file stays."""
    before = file.read_bytes()
    shutil.copytree(data / "train", tmp_path / "d" / "train")
    shutil.copytree(data / "test", tmp_path / "d" / "test")
    answer = cli_here("calibrate", file, tmp_path / "d")
    assert (answer.code, "has no val folder" in answer.stderr) == (5, True)
    assert file.read_bytes() == before


def test_calibrate_refuses_a_file_without_a_card(cli_here: Cli, fixtures_folder: Path, data: Path) -> None:
    """There is nothing to keep a temperature in; and a file that is not there is another matter."""
    answer = cli_here("calibrate", fixtures_folder / "foreign-float32.tflite", data)
    assert (answer.code, answer.stderr.count("\n")) == (2, 1), answer.text
    assert "card" in answer.stderr
    missing = cli_here("calibrate", fixtures_folder / "other.onnx", data)
    assert (missing.code, missing.stderr.count("\n")) == (4, 1), missing.text


def test_compare_sets_files_side_by_side(cli_here: Cli, fixtures_folder: Path, data: Path) -> None:
    """On the test folder: differences to the first with their test, sizes, times."""
    files = [fixtures_folder / f"tiny-{variant}.tflite" for variant in ("float32", "int8", "dynamic-w8")]
    answer = cli_here("compare", *files, "--data", data, "--rounds", 2, "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)
    assert (found["pictures"], found["which"], found["winner"]) == (4 * EACH, "its test folder", None)
    assert [row["name"] for row in found["rows"]] == [file.name for file in files]
    assert [row["size"]["file_bytes"] for row in found["rows"]] == [file.stat().st_size for file in files]
    assert len(found["pairs"]) == 3
    assert all(row["timing"]["latency"]["p50_ms"] > 0 for row in found["rows"])
    assert found["rows"][0]["agreement"] == 1


def test_compare_prints_a_table_and_a_sentence(cli_here: Cli, fixtures_folder: Path, data: Path) -> None:
    """Without timing where none is asked for."""
    files = [fixtures_folder / f"tiny-{variant}.tflite" for variant in ("float32", "float16")]
    answer = cli_here("compare", *files, "--data", data, "--rounds", 0)
    assert "No difference in accuracy shown" in answer.stdout
    assert "p50" not in answer.stdout
    assert "tiny-float16.tflite" in answer.stdout


def test_compare_needs_two_models_and_pictures(cli_here: Cli, file: Path, fixtures_folder: Path, data: Path) -> None:
    """One line each: a single model, the same one twice, no data."""
    assert "at least two" in cli_here("compare", file, "--data", data).stderr
    assert "each once" in cli_here("compare", file, file, "--data", data).stderr
    answer = cli_here("compare", file, fixtures_folder / "tiny-float32.tflite")
    assert (answer.code, "give --data" in answer.stderr) == (2, True)
