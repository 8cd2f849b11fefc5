"""explain and probe as a user meets them: a run, its files, a device without TensorFlow, and bad input."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_layers import run_without_training

Cli = Callable[..., Any]
SPLIT = {"seed": 1, "val": 0.2, "val_pictures": 2000, "test": 0.4}
needs_training = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow")


@pytest.fixture
def int8(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


@pytest.fixture
def pictures(fixtures_folder: Path) -> Path:
    return fixtures_folder / "pictures"


def test_a_file_is_explained_where_tensorflow_cannot_be_imported(int8: Path, pictures: Path, tmp_path: Path) -> None:
    """The device path in an interpreter without the training packages: an occlusion map of the int8 file."""
    done = run_without_training("explain", int8, pictures / "red-square.png", "--out", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["method"], found["layer"]) == ("occlusion", None)
    assert found["images"][0]["label"] == "red square"
    drawn = cv2.imread(found["images"][0]["file"])
    assert drawn.shape[1] > 2 * 300


def test_each_picture_gets_a_file_and_a_line(cli_here: Cli, int8: Path, pictures: Path, tmp_path: Path) -> None:
    """Two pictures of one name get two files, and what was there before in the folder stays."""
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        shutil.copy(pictures / "green-disc.png", tmp_path / part / "x.png")
    answer = cli_here("explain", int8, tmp_path / "a", tmp_path / "b", cwd=tmp_path)
    assert answer.code == 0, answer.text
    assert len(answer.stdout.splitlines()) == 2
    assert "green disc" in answer.stdout
    assert sorted(p.name for p in (tmp_path / "explain").iterdir()) == ["x-occlusion-2.png", "x-occlusion.png"]


def test_a_picture_is_never_written_over(cli_here: Cli, int8: Path, pictures: Path, tmp_path: Path) -> None:
    """Not even one that has the name of its own explanation."""
    own = tmp_path / "x-occlusion.png"
    shutil.copy(pictures / "green-disc.png", own)
    shutil.copy(pictures / "red-square.png", tmp_path / "x.png")
    before = own.read_bytes()
    assert cli_here("explain", int8, own, tmp_path / "x.png", "--out", tmp_path).code == 0
    assert own.read_bytes() == before
    assert (tmp_path / "x-occlusion-2.png").is_file()


def test_two_files_are_shown_side_by_side(cli_here: Cli, int8: Path, pictures: Path, tmp_path: Path) -> None:
    """Both answers, and how alike the maps are."""
    other = int8.with_name("tiny-float32.tflite")
    answer = cli_here("explain", int8, pictures / "red-square.png", "--against", other, "--out", tmp_path, "--json")
    row = json.loads(answer.stdout)["images"][0]
    assert [a["model"] for a in row["answers"]] == ["int8", "float32"]
    assert row["spearman_of_occlusion_maps"] > 0.8
    assert cv2.imread(row["file"]).shape[1] > 3 * 300


def test_a_broken_picture_is_named_and_the_others_are_explained(
    cli_here: Cli, int8: Path, pictures: Path, tmp_path: Path
) -> None:
    """Exit code 5, one line."""
    answer = cli_here("explain", int8, pictures / "text.png", pictures / "red-square.png", "--out", tmp_path)
    assert answer.code == 5
    assert len(answer.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["red-square-occlusion.png"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--method", "gradcam"), 2, "--method gradcam needs the layers of a run folder"),
        (("--layer", "conv"), 2, "--layer conv needs the layers of a run folder"),
        (("--method", "lime"), 2, "expected one of: gradcam, gradcam++, cam, occlusion"),
        (("--class", "red squares"), 2, "did you mean 'red square'?"),
        (("--against", "gone.tflite"), 4, "gone.tflite: cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: tuple[str, str], code: int, message: str, cli_here: Cli, int8: Path, pictures: Path, tmp_path: Path
) -> None:
    """With what to do instead, and no file."""
    answer = cli_here("explain", int8, pictures / "red-square.png", "--out", tmp_path / "out", *options)
    assert answer.code == code, answer.text
    assert message in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["explain", "probe"])
def test_help_shows_an_example(verb: str, cli_here: Cli) -> None:
    """As every verb does."""
    assert f"Example: edgeclf {verb} runs/photos" in cli_here(verb, "--help").stdout


@pytest.mark.parametrize("arguments", [("probe", "."), ("explain", ".", "x.png")])
def test_without_the_training_packages_the_extra_is_named(arguments: tuple[str, ...]) -> None:
    """Exit code 6 for what needs a run's layers."""
    done = run_without_training(*arguments)
    assert done.returncode == 6
    assert "pip install 'edgeclf[train]'" in done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network set by hand, which tells bright from dark, with a file that passes for its int8 export."""
    from edgeclf.core import config
    from edgeclf.core.bundle import attach
    from edgeclf.core.card import ModelCard
    from edgeclf.core.recipe import load_recipe, override
    from edgeclf.host.data.dataset import make_dataset, open_catalogue
    from edgeclf.host.export import quantize
    from edgeclf.host.keras import keras

    folder = tmp_path_factory.mktemp("understand") / "tiny"
    folder.mkdir()
    random, y = np.random.RandomState(0), np.repeat(np.arange(2), 40)
    x = np.clip(random.normal(70, 20, (80, 16, 16, 3)) + 110 * y[:, None, None, None], 0, 255).astype(np.uint8)
    np.savez(folder.parent / "data.npz", x=x, y=y, labels=np.array(["dark", "bright"]))
    recipe = override(load_recipe("compact"), image__size=16)
    dataset = make_dataset(open_catalogue(str(folder.parent / "data.npz")), recipe, SPLIT)
    layers = keras().layers
    inputs = layers.Input((16, 16, 3))
    maps = layers.Conv2D(2, 4, strides=2, padding="same", activation="relu", name="light")(inputs)
    outputs = layers.Dense(2, name="logits")(layers.GlobalAveragePooling2D(name="features")(maps))
    model = keras().Model(inputs, outputs)
    model.get_layer("light").set_weights([np.stack([-np.ones((4, 4, 3)), np.ones((4, 4, 3))], axis=3) / 9, np.zeros(2)])
    model.get_layer("logits").set_weights([np.eye(2), np.zeros(2)])
    model.save(folder / "model.keras")
    provenance = {"data": str(folder.parent / "data.npz"), "fingerprint": dataset.catalogue.fingerprint, "split": SPLIT,
                  "created": "2026-11-20T12:00:00+00:00"}  # fmt: skip
    card = ModelCard("tiny", dataset.labels, recipe.image.spec(), outputs="logits", provenance=provenance)
    (folder / "recipe.toml").write_text(config.to_toml(recipe))
    (folder / "card.json").write_text(card.to_json())
    data = quantize.to_float32(quantize.with_softmax(model))
    (folder / "tiny-int8.tflite").write_bytes(attach(data, dataclasses.replace(card, variant="int8", outputs="probabilities")))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(finished, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def lit_corner(tmp_path: Path) -> Path:
    """A dark picture with a bright upper right corner."""
    picture = np.full((64, 64, 3), 40, np.uint8)
    picture[:24, 40:] = 255
    cv2.imwrite(str(tmp_path / "corner.png"), picture)
    return tmp_path / "corner.png"


@needs_training
def test_a_run_shows_what_float_and_int8_looked_at(run: Path, lit_corner: Path, cli_here: Cli) -> None:
    """Grad-CAM of the float network, occlusion of both, in the run folder; all three peak in the lit corner."""
    answer = cli_here("explain", run, lit_corner, "--class", "bright", "--json")
    assert answer.code == 0, answer.text
    document = json.loads(answer.stdout)
    assert (document["method"], document["layer"]) == ("gradcam", "light")
    row = document["images"][0]
    assert [(m["model"], m["method"]) for m in row["maps"]] == [
        ("float", "gradcam"), ("float", "occlusion"), ("int8", "occlusion"),
    ]  # fmt: skip
    for found in row["maps"]:
        x, y = found["peak"]
        assert x >= 36
        assert y < 28
    assert row["spearman_of_occlusion_maps"] > 0.99
    assert row["answers"][0]["score"] == pytest.approx(row["answers"][1]["score"], abs=1e-4)
    assert Path(row["file"]) == run / "explain" / "corner-gradcam.png"


@needs_training
@pytest.mark.parametrize("method", ["gradcam++", "cam", "occlusion"])
def test_every_method_of_a_run_is_drawn(method: str, run: Path, lit_corner: Path, cli_here: Cli) -> None:
    """Without an int8 file there is one map."""
    (run / "tiny-int8.tflite").unlink()
    answer = cli_here("explain", run, lit_corner, "--method", method, "--class", "bright", "--json")
    assert answer.code == 0, answer.text
    row = json.loads(answer.stdout)["images"][0]
    assert [m["method"] for m in row["maps"]] == [method]
    assert row["maps"][0]["peak"][0] >= 36
    assert row["spearman_of_occlusion_maps"] is None


@needs_training
def test_an_int8_file_of_another_training_is_refused(run: Path, lit_corner: Path, cli_here: Cli) -> None:
    """Side by side they would look like a loss of compression."""
    card = json.loads((run / "card.json").read_text())
    card["provenance"]["created"] = "another day"
    (run / "card.json").write_text(json.dumps(card))
    answer = cli_here("explain", run, lit_corner)
    assert answer.code == 2
    assert "is of another training than this run" in answer.stderr
    assert cli_here("explain", run, lit_corner, "--against", run / "tiny-int8.tflite").code == 0


@needs_training
def test_a_layer_that_is_not_there_is_one_line(run: Path, lit_corner: Path, cli_here: Cli) -> None:
    """With the nearest name."""
    answer = cli_here("explain", run, lit_corner, "--layer", "lights")
    assert answer.code == 2
    assert "did you mean 'light'?" in answer.stderr


@needs_training
def test_probe_prints_a_table_and_writes_figure_and_numbers(run: Path, cli_here: Cli) -> None:
    """A line a layer, the network itself, and the same in JSON."""
    answer = cli_here("probe", run)
    assert answer.code == 0, answer.text
    assert "fitted on 38 training pictures, scored on 32 held-out ones" in answer.stdout
    assert "light" in answer.stdout
    assert "the network itself: 100.00%" in answer.stdout
    document = json.loads((run / "probe.json").read_text())
    assert document["layers"][-1]["alone"]["top1"] == 1.0
    assert (run / "probe.png").stat().st_size > 5000


@needs_training
def test_probe_json_is_the_file(run: Path, cli_here: Cli, tmp_path: Path) -> None:
    """On the terminal and in --out; --layers conv leaves blocks out."""
    answer = cli_here("probe", run, "--layers", "conv", "--pictures", 20, "--out", tmp_path / "out", "--json")
    document = json.loads(answer.stdout)
    assert document == json.loads((tmp_path / "out" / "probe.json").read_text())
    assert document["train_pictures"] == 20
    assert [layer["name"] for layer in document["layers"]] == ["input", "light"]
    assert not (run / "probe.json").exists()


@needs_training
def test_probe_of_data_that_is_gone_is_one_line(run: Path, cli_here: Cli) -> None:
    """Exit code 5."""
    answer = cli_here("probe", run, "gone.zip")
    assert answer.code == 5
    assert "gone.zip" in answer.stderr
    assert cli_here("probe", run, "--layers", "some").code == 2
