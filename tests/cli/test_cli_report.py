"""`edgeclf report` from a run folder to its three files, and what it says when something is missing or broken."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("needs TensorFlow", allow_module_level=True)

from edgeclf.core import config
from edgeclf.core.bundle import attach, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.recipe import Recipe, load_recipe, override
from edgeclf.host.data.dataset import make_dataset, open_catalogue
from edgeclf.host.export import quantize
from edgeclf.host.full_model import open_reference
from edgeclf.host.keras import keras
from edgeclf.host.report import emulate, memory
from edgeclf.host.report.memory import of_full
from edgeclf.host.run import Run, open_run

LABELS = ("a<b", "c|d", "e")
SPLIT = {"seed": 1, "val": 0.1, "val_pictures": 2000, "test": 0.4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a linear model on noise with a brighter channel for each class, exported as float32 and float16."""
    folder = tmp_path_factory.mktemp("report") / "tiny"
    folder.mkdir()
    random = np.random.RandomState(0)
    y = np.repeat(np.arange(3), 60)
    x = random.randint(0, 200, (180, 8, 8, 3)).astype(np.uint8)
    x[np.arange(180), :, :, y] += 20
    np.savez(folder.parent / "pictures.npz", x=x, y=y, labels=np.array(LABELS))
    recipe = override(load_recipe("compact"), image__size=8)
    make_run(folder, recipe, folder.parent / "pictures.npz")
    return folder


def make_run(folder: Path, recipe: Recipe, data: Path) -> None:
    dataset = make_dataset(open_catalogue(str(data)), recipe, SPLIT)
    layers = keras().layers
    keras().utils.set_random_seed(0)
    model = keras().Sequential(
        [layers.Input((8, 8, 3)), layers.GlobalAveragePooling2D(), layers.Dense(16, "relu"), layers.Dense(3)]
    )
    model.compile("adam", keras().losses.SparseCategoricalCrossentropy(from_logits=True))
    pixels = (dataset.pictures("train").astype(np.float32) - 128) / 128
    model.fit(pixels, dataset.classes_of("train"), epochs=3, verbose=0)
    model.save(folder / "model.keras")
    provenance = {
        "data": str(data),
        "fingerprint": dataset.catalogue.fingerprint,
        "split": SPLIT,
        "created": "2026-11-20T12:00:00+00:00",
    }
    card = ModelCard("tiny", dataset.labels, recipe.image.spec(), outputs="logits", provenance=provenance)
    (folder / "recipe.toml").write_text(config.to_toml(recipe))
    (folder / "card.json").write_text(card.to_json())
    (folder / "history.csv").write_text("epoch,loss,accuracy,val_loss,val_accuracy\n1,1,0.5,1,0.4\n2,0.5,0.7,0.6,0.7\n")
    float32, run = quantize.to_float32(quantize.with_softmax(model)), open_run(folder)
    for variant in ("float32", "float16"):
        data_ = quantize.quantize(float32, variant, None, "float32")
        run.exported(variant).write_bytes(attach(data_, dataclasses.replace(card, variant=variant, outputs="probabilities")))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    """A copy of the run that a test may damage."""
    shutil.copytree(finished, tmp_path / "tiny")
    return open_run(tmp_path / "tiny")


Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report starts a process that imports TensorFlow; one test does, by `of_full` itself."""
    monkeypatch.setattr(memory, "of_full", lambda run, full: None)


def test_a_file_takes_a_fraction_of_the_memory_that_the_full_model_takes(run: Run) -> None:
    """Both in fresh processes: one with LiteRT, one with TensorFlow, in which the model itself is the smaller part."""
    full, file = of_full(run, open_reference(run)), memory.of_file(run.exported("float32"), 1)
    assert full is not None
    assert file is not None
    assert file.process_bytes < full.process_bytes / 2
    assert 0 < full.model_bytes < full.process_bytes / 2


def test_report_writes_three_files_that_say_the_same(run: Run, cli_here: Cli) -> None:
    """The page, the text and the JSON name every file, and the full model's accuracy is that of the test part."""
    answer = cli_here("report", run.folder, "--rounds", 6)
    assert answer.code == 0, answer.text
    document = json.loads((run.folder / "report.json").read_text())
    assert [v["name"] for v in document["variants"]] == ["float32", "float16"]
    assert document["pictures"] == 72
    assert document["data"] == "pictures.npz"
    assert 1 << 20 < document["variants"][0]["memory"]["process_bytes"] < 1 << 30
    page, text = (run.folder / "report.html").read_text(), (run.folder / "report.md").read_text()
    top1 = f"{document['full']['accuracy']['top1'] * 100:.1f}"
    assert top1 in page
    assert top1 in text
    assert top1 in answer.stdout
    assert "a&lt;b" in page
    assert str(run.folder / "report.html") in answer.stderr


def test_float32_answers_as_the_full_model_does(run: Run, cli_here: Cli) -> None:
    """The exported float32 file agrees on every picture, so the two paths prepare pictures alike; --json is the document."""
    answer = cli_here("report", run.folder, "--rounds", 1, "--json")
    document = json.loads(answer.stdout)
    float32 = document["variants"][0]
    assert float32["against_full"]["agreement"] == 1.0
    assert float32["against_full"]["largest_logit_difference"] < 1e-4
    assert float32["precision"] == "float32"
    assert float32["named_right"]
    assert document == json.loads((run.folder / "report.json").read_text())


def test_counted_instructions_are_in_every_report(
    run: Run, cli_here: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Under their own name, and no latency; where there is no emulated board that is told before anything is measured."""
    monkeypatch.setattr(emulate, "default_home", lambda: tmp_path / "boards")
    refused = cli_here("report", run.folder, "--emulate", "pi5")
    assert refused.code == 6
    assert not list(run.folder.glob("report*"))
    monkeypatch.setattr(emulate, "need", lambda home: None)
    count = emulate.Count("pi5", 1_234_567, {}, (1_234_567,), True, True, 2, False, True, 0.0)
    monkeypatch.setattr(emulate, "count", lambda bundle, device, home: count)
    assert cli_here("report", run.folder, "--emulate", "pi5", "--rounds", 1).code == 0
    document = json.loads((run.folder / "report.json").read_text())
    counts = {"float32": 1_234_567, "float16": 1_234_567}
    assert document["emulated"] == [{"device": "pi5", "name": "Raspberry Pi 5", "instructions": counts}]
    for name in ("report.html", "report.md"):
        text = (run.folder / name).read_text()
        assert text.count("1,234,567") >= 2
        assert "instructions, emulated Raspberry Pi 5" in text
        assert "no latency" in text


def test_out_leaves_the_run_folder_alone(run: Run, cli_here: Cli, tmp_path: Path) -> None:
    """--out takes all three files, and makes the folder."""
    cli_here("report", run.folder, "--rounds", 1, "--out", tmp_path / "site" / "new")
    assert sorted(p.name for p in (tmp_path / "site" / "new").iterdir()) == ["report.html", "report.json", "report.md"]
    assert not list(run.folder.glob("report*"))


def test_a_damaged_file_is_listed_and_not_fatal(run: Run, cli_here: Cli) -> None:
    """Its weights have a flipped bit: the others are measured, and the reason is on the page."""
    path = run.exported("float16")
    data = bytearray(path.read_bytes())
    data[len(read_bundle(path).model) // 2] ^= 1
    path.write_bytes(data)
    assert cli_here("report", run.folder, "--rounds", 1).code == 0
    document = json.loads((run.folder / "report.json").read_text())
    assert [v["name"] for v in document["variants"]] == ["float32"]
    assert [u["file"] for u in document["unusable"]] == ["tiny-float16.tflite"]
    assert "tiny-float16.tflite" in (run.folder / "report.html").read_text()


def test_a_wrong_name_is_found_in_the_tensors(run: Run, cli_here: Cli) -> None:
    """float16 tensors under the name int8 are called what they are, and not recommended."""
    bundle = read_bundle(run.exported("float16"))
    assert bundle.card is not None
    run.exported("int8").write_bytes(attach(bundle.model, dataclasses.replace(bundle.card, variant="int8")))
    cli_here("report", run.folder, "--rounds", 1)
    document = json.loads((run.folder / "report.json").read_text())
    int8 = next(v for v in document["variants"] if v["name"] == "int8")
    assert (int8["precision"], int8["named_right"]) == ("float16", False)
    assert document["recommendation"]["variant"] != "int8"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"provenance": {"created": "another day"}}, "another training"),
        ({"labels": ("x", "y", "z")}, "labels"),
        ({"calibration": {"indices": " ".join(map(str, range(180)))}}, "calibrated on test pictures"),
    ],
)
def test_files_of_another_training_are_not_measured(run: Run, cli_here: Cli, change: dict[str, Any], reason: str) -> None:
    """An old export, other labels, or test pictures among those that calibrated: named, never compared."""
    bundle = read_bundle(run.exported("float16"))
    assert bundle.card is not None
    run.exported("float16").write_bytes(attach(bundle.model, dataclasses.replace(bundle.card, **change)))
    cli_here("report", run.folder, "--rounds", 1)
    document = json.loads((run.folder / "report.json").read_text())
    assert [v["name"] for v in document["variants"]] == ["float32"]
    assert reason in document["unusable"][0]["reason"]


def test_a_damaged_history_costs_only_its_figure(run: Run, cli_here: Cli) -> None:
    """The page is written without training curves."""
    (run.folder / "history.csv").write_bytes(b"\xff\xfe")
    assert cli_here("report", run.folder, "--rounds", 1).code == 0
    page = (run.folder / "report.html").read_text()
    assert "Accuracy against size" in page
    assert "Training curves" not in page


def test_without_exports_the_next_command_is_named(run: Run, cli_here: Cli) -> None:
    """One line, exit code 2, and no half report."""
    for path in run.exports():
        path.unlink()
    answer = cli_here("report", run.folder)
    assert answer.code == 2
    assert f"edgeclf export {run.folder} --all" in answer.stderr
    assert not list(run.folder.glob("report*"))


def test_when_every_file_is_damaged_nothing_is_written(run: Run, cli_here: Cli) -> None:
    """Exit code 4 with the first reason."""
    for path in run.exports():
        path.write_bytes(path.read_bytes()[:-100])
    answer = cli_here("report", run.folder)
    assert answer.code == 4
    assert "tiny-float16.tflite" in answer.stderr
    assert not list(run.folder.glob("report*"))


def test_changed_pictures_are_refused(run: Run, cli_here: Cli, tmp_path: Path) -> None:
    """The card names data with another fingerprint: exit code 5, as the test part would be another one."""
    card = dataclasses.replace(run.card, provenance={**run.card.provenance, "fingerprint": "0" * 64})
    (run.folder / "card.json").write_text(card.to_json())
    answer = cli_here("report", run.folder)
    assert answer.code == 5
    assert "has changed" in answer.stderr


def test_help_shows_an_example(cli_here: Cli) -> None:
    """And takes no TensorFlow to do so."""
    assert "edgeclf report runs/" in cli_here("report", "--help").stdout


def test_report_adds_what_a_board_measured(run: Run, cli_here: Cli, tmp_path: Path) -> None:
    """From `bench --device-report` of a copied file to one table of the page; two boards, in two reports."""
    board = tmp_path / "board"
    board.mkdir()
    copied = shutil.copy(run.exported("float16"), board / "renamed.tflite")
    for name in ("a.json", "b.json"):
        answer = cli_here("bench", copied, "--seconds", 0.2, "--threads", 1, "--device-report", board / name)
        assert answer.code == 0, answer.text
    answer = cli_here("report", run.folder, "--rounds", 2, "--add", board / "a.json", "--add", board / "b.json")
    assert answer.code == 0, answer.text
    boards = json.loads((run.folder / "report.json").read_text())["boards"]
    assert [entry["variants"] for entry in boards] == [["float16"], ["float16"]]
    for name in ("report.html", "report.md"):
        text = (run.folder / name).read_text()
        assert "On the boards" in text
        assert "renamed.tflite" in text


def test_a_device_report_of_another_file_is_refused_before_anything_is_measured(
    run: Run, cli_here: Cli, fixtures_folder: Path, tmp_path: Path
) -> None:
    """One line, exit code 5, and no report; so is a file that is none."""
    out = tmp_path / "out.json"
    cli_here("bench", fixtures_folder / "tiny-int8.tflite", "--seconds", 0.2, "--threads", 1, "--device-report", out)
    (tmp_path / "none.json").write_text("[]")
    for path, words in ((out, "no file of this run as it is now"), (tmp_path / "none.json", "is no device report")):
        answer = cli_here("report", run.folder, "--rounds", 2, "--add", path)
        assert (answer.code, words in answer.stderr, answer.stderr.count("\n")) == (5, True, 1), answer.text
    assert not (run.folder / "report.json").exists()
