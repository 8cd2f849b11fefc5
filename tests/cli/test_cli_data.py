"""data inspect, data preview and errors, as typed."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf.core.recipe import load_recipe, override

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red against blue noise, 12x12, 40 of each; one picture is there twice."""
    random = np.random.RandomState(0)
    x = random.randint(0, 120, (80, 12, 12, 3)).astype(np.uint8)
    y = np.arange(80) % 2
    x[y == 0, :, :, 0] += 120
    x[y == 1, :, :, 2] += 120
    x[78] = x[0]
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, x=x, y=y, labels=np.array(["red", "blue"]))
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch of a tiny net."""
    from edgeclf.host.train import train

    recipe = override(load_recipe("compact-digits"), image__size=12, training__epochs=1, training__batch_size=16)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [4, 8]}))
    return train.train(train.start(recipe, str(data), tmp_path_factory.mktemp("runs") / "tiny")).folder


@pytest.fixture(scope="module")
def shapes(fixtures_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture pictures under the classes of the fixture model, two of them under a wrong one."""
    path = tmp_path_factory.mktemp("data") / "shapes.zip"
    homes = {
        "red-square": "red square", "green-disc": "green disc", "blue-cross": "blue cross", "yellow-bars": "yellow bars",
    }  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        for name, label in homes.items():
            picture = (fixtures_folder / "pictures" / f"{name}.png").read_bytes()
            archive.writestr(f"test/{label}/{name}.png", picture)
            archive.writestr(f"test/{homes['blue-cross']}/again-{name}.png", picture)
        archive.writestr("test/red square/broken.png", b"")
    return path


def test_data_inspect_tells_what_is_there_and_what_is_wrong(cli_here: Cli, shapes: Path, tmp_path: Path) -> None:
    """As text, as JSON, and as a page."""
    answer = cli_here("data", "inspect", shapes, "--html", tmp_path / "x.html")
    assert answer.code == 0, answer.text
    assert "equal pictures: 8 pictures in 4 groups" in answer.stdout
    assert "broken: test/red square/broken.png: is empty" in answer.stdout
    assert "6 pictures have doubles under another class" in answer.stdout
    found = json.loads(cli_here("data", "inspect", shapes, "--json").stdout)
    assert found["duplicates"]["across_classes"] == {"groups": 3, "pictures": 6}
    assert found["counts"]["test"]["blue cross"] == 5
    assert found["imbalance"] is None  # nothing to train on
    assert "again-red-square.png" in (tmp_path / "x.html").read_text()


def test_data_inspect_offers_what_evens_classes_out(cli_here: Cli, tmp_path: Path) -> None:
    """By the name of the recipe's key."""
    x, y = np.random.RandomState(0).randint(0, 256, (40, 9, 9), dtype=np.uint8), np.array([0] * 30 + [1] * 10)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    answer = cli_here("data", "inspect", tmp_path / "x.npz")
    assert "3.0 times the pictures of the smallest" in answer.stdout
    assert "--set training.class_balance=weights" in answer.stdout


def test_the_short_inspect_points_to_the_long_one(cli_here: Cli, shapes: Path) -> None:
    """With the data as it was typed; not in JSON."""
    answer = cli_here("inspect", shapes)
    assert answer.code == 0, answer.text
    assert f"edgeclf data inspect {shapes}" in answer.stderr


def test_data_preview_draws_a_row_for_each_picture(cli_here: Cli, data: Path, tmp_path: Path) -> None:
    """Wider with more versions; mixing writes the soft labels, which needs room."""
    sizes = {}
    for name, extra in (("plain", ["--versions", 2]), ("mixed", ["--versions", 5, "--set", "augmentation.mixup=1"])):
        out = tmp_path / f"{name}.png"
        answer = cli_here("data", "preview", data, "--model", "compact-digits", "--pictures", 3, "--out", out, *extra)
        assert answer.code == 0, answer.text
        sizes[name] = cv2.imread(str(out)).shape
    assert sizes["mixed"][1] == pytest.approx(2 * sizes["plain"][1], abs=2)
    assert sizes["mixed"][0] > sizes["plain"][0]
    assert "mixup 1\n" in answer.stdout


def test_the_preview_shows_what_training_does(data: Path) -> None:
    """The changed pictures are those of `augment`, the soft labels those of `mix`; every class is shown."""
    from edgeclf.core.catalogue import scan
    from edgeclf.host.augment.augment import augment
    from edgeclf.host.augment.preview import preview
    from edgeclf.host.data.dataset import make_dataset

    recipe = override(load_recipe("compact-digits"), image__size=12, augmentation__colour=0.5)
    dataset = make_dataset(scan(data), recipe, {"seed": 1, "val": 0.1, "val_pictures": 20, "test": 0.15})
    shown = preview(dataset, recipe, 4, 3, seed=5)
    assert sorted(shown.labels) == ["blue", "blue", "red", "red"]
    wanted = augment(shown.originals, np.array([5, 2], np.int32), recipe.augmentation).numpy()
    assert np.array_equal(shown.versions[:, 2], wanted)
    mixed = preview(dataset, override(recipe, augmentation__mixup=1.0), 4, 3, seed=5)
    assert any("red 0." in caption and "blue 0." in caption for row in mixed.captions for caption in row)


def test_errors_of_a_file_are_shown_with_their_pictures(
    cli_here: Cli, fixtures_folder: Path, shapes: Path, tmp_path: Path
) -> None:
    """Three pictures stand under a wrong label; nothing tells what the fixture was trained on."""
    page = tmp_path / "e.html"
    answer = cli_here("errors", fixtures_folder / "tiny-int8.tflite", shapes, "--out", page, "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)
    names = {m["picture"] for m in found["misclassified"]["pictures"]}
    wrong = {f"test/blue cross/again-{name}.png" for name in ("red-square", "green-disc", "yellow-bars")}
    assert wrong <= names
    assert found["misclassified"]["count"] == len(names)
    assert found["seen_in_training"] is None
    assert page.read_text().count("data:image/") >= len(names)


def test_errors_of_a_run_are_of_its_own_test_part(cli_here: Cli, run: Path, data: Path, tmp_path: Path) -> None:
    """Without naming the data."""
    answer = cli_here("errors", run, "--out", tmp_path / "e.html", "--json")
    assert answer.code == 0, answer.text
    found, split = json.loads(answer.stdout), json.loads((run / "split.json").read_text())
    assert found["pictures"] == len(split["test"])
    assert {m["picture"] for m in found["misclassified"]["pictures"]} <= set(split["test"])
    assert found["top1"] == pytest.approx(1 - found["misclassified"]["count"] / found["pictures"])
    assert found["seen_in_training"] is not None


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("data", "inspect", "nowhere"), 5, "no such folder or file"),
        (("data", "preview", "digits", "--out", "x.jpg"), 2, "is a PNG"),
        (("data", "preview", "digits", "--set", "augmentation.colur=1"), 2, "did you mean 'colour'"),
        (("errors", "nowhere"), 4, "nowhere"),
        (("errors", "."), 2, "not a finished run"),
    ],
)
def test_bad_input_is_one_line(cli_here: Cli, arguments: tuple[str, ...], code: int, says: str, tmp_path: Path) -> None:
    """With the exit code that the README promises, and no file."""
    answer = cli_here(*arguments, cwd=tmp_path)
    assert (answer.code, answer.stderr.count("\n")) == (code, 1), answer.text
    assert says in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_data_inspect_of_a_run_says_what_to_do(cli_here: Cli, run: Path) -> None:
    """A run folder is no data."""
    answer = cli_here("data", "inspect", run)
    assert (answer.code, "edgeclf errors" in answer.stderr) == (2, True)
