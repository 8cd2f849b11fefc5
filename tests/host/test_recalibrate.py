"""A run's full model: evaluated as its files are, calibrated with all of them, its card carried into later exports."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Cli

from edgeclf.core.bundle import read_bundle
from edgeclf.core.catalogue import scan
from edgeclf.core.errors import DataError, ModelError
from edgeclf.host.run import Run, open_run
from edgeclf.host.understand.evaluation import evaluate_run, home_of, pictures
from edgeclf.runtime.accuracy import evaluate, held_out

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs the train extra")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/greys`: dark and light pictures that overlap; trained for a moment, calibrated, then exported."""
    from edgeclf.core.recipe import load_recipe, override
    from edgeclf.host.export.export import export
    from edgeclf.host.train import train as training
    from edgeclf.host.understand.recalibrate import calibrate_run

    top, random = tmp_path_factory.mktemp("recalibrate"), np.random.RandomState(0)
    for label, mean in (("dark", 118), ("light", 138)):
        (top / "data" / label).mkdir(parents=True)
        for i in range(150):
            picture = np.full((10, 8, 3), np.clip(random.normal(mean, 12), 0, 255), np.uint8)
            cv2.imwrite(str(top / "data" / label / f"{i:03d}.png"), picture)
    (top / "data" / "dark" / "broken.png").write_bytes(b"no picture")
    recipe = override(load_recipe("compact-digits"), image__size=8, training__epochs=2, training__batch_size=16)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [8, 16], "residuals": [1]}))
    run = training.train(training.start(recipe, str(top / "data"), top / "runs" / "greys"))
    calibrate_run(run, scan(top / "data"), True, "f1")
    export(open_run(run.folder), ["float32", "float16"])
    return run.folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """A copy to write into."""
    return open_run(Path(shutil.copytree(trained, tmp_path / "greys")))


def test_a_run_answers_as_its_float32_file_does(trained: Path) -> None:
    """The same pictures, the same unreadable one, logits that differ by rounding alone."""
    run = open_run(trained)
    catalogue = scan(Path(run.data))
    everything = np.arange(len(catalogue))
    mine = evaluate_run(run, catalogue, everything)
    theirs = evaluate(run.exported("float32"), catalogue, everything)
    assert np.allclose(mine.scores, theirs.scores, atol=1e-3)
    assert (mine.truth == theirs.truth).all()
    assert [name for name, _ in mine.skipped] == [name for name, _ in theirs.skipped] == ["dark/broken.png"]


def test_what_answers_may_know_the_true_classes(trained: Path) -> None:
    """For attacks on the pictures: here an answer that is always right, and one that never is."""
    run = open_run(trained)
    catalogue = scan(Path(run.data))
    chosen, _ = held_out(catalogue, run.card)
    for sign, top1 in ((1, 1.0), (-1, 0.0)):
        found = evaluate_run(run, catalogue, chosen, answer=lambda x, y, s=sign: s * np.eye(2, dtype=np.float32)[y])
        assert found.accuracy.top1 == top1


def test_calibrating_a_run_fits_each_file_by_itself(run: Run, cli_here: Cli) -> None:
    """The card of the run, and every file, on the validation part of the training; reports in JSON."""
    answer = cli_here("calibrate", run.folder, "--thresholds", "precision=0.9", "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)["fitted"]
    assert [one["file"] for one in found] == ["full model", "greys-float16.tflite", "greys-float32.tflite"]
    assert {one["which"] for one in found} == {"the validation part of its training"}
    again, file = open_run(run.folder).card, read_bundle(run.exported("float32")).card
    assert file is not None
    assert again.temperature == found[0]["value"] != 1
    assert file.temperature == found[2]["value"] == pytest.approx(again.temperature, rel=1e-3)
    assert file.accuracy["fitted"]["model"] == "greys-float32.tflite"
    assert len(file.thresholds) == 2


def test_a_limit_for_what_is_unknown_is_fitted_for_the_run_and_each_file(run: Run, cli_here: Cli) -> None:
    """The full model answers the other pictures too, and its card carries the limit into later exports."""
    answer = cli_here("calibrate", run.folder, "--unknown-by", "energy", "--keep", "0.9", "--others", Path(run.data), "--json")
    assert answer.code == 0, answer.text
    full, *each = json.loads(answer.stdout)["fitted"]
    assert {one["turned"]["others"] for one in (full, *each)} == {300}
    assert {one["unreadable"] for one in (full, *each)} == {1}
    card, file = open_run(run.folder).card, read_bundle(run.exported("float32")).card
    assert card.unknown is not None
    assert file is not None
    assert file.unknown is not None
    assert card.unknown.limits["energy"] == pytest.approx(file.unknown.limits["energy"], abs=0.01)
    whole = json.loads(cli_here("evaluate", run.folder, "--json").stdout)
    assert whole["unknown"]["by"] == "energy"
    assert whole["with_thresholds"]["coverage"] < 1


def test_exports_carry_the_temperature_and_thresholds_of_their_run(trained: Path) -> None:
    """And say that these were fitted on the full model."""
    card = open_run(trained).card
    for path in open_run(trained).exports():
        carried = read_bundle(path).card
        assert carried is not None
        assert (carried.temperature, carried.thresholds) == (card.temperature, card.thresholds)
        assert carried.accuracy["fitted"]["model"] == "full model"
    assert card.temperature != 1
    assert len(card.thresholds) == 2


def test_a_damaged_file_does_not_keep_the_others_from_it(run: Run, cli_here: Cli) -> None:
    """It is named at the end, with exit code 4."""
    run.exported("float16").write_bytes(b"damaged")
    answer = cli_here("calibrate", run.folder, "--json")
    assert answer.code == ModelError.exit_code
    assert "greys-float16.tflite" in answer.stderr
    assert len(json.loads(answer.stdout)["fitted"]) == 2


def test_evaluate_and_compare_take_a_run_and_its_own_data(run: Run, cli_here: Cli, tmp_path: Path) -> None:
    """No DATA needed, for the run and for a file in its folder; plots where they are asked for."""
    whole = json.loads(cli_here("evaluate", run.folder, "--plots", tmp_path / "plots", "--json").stdout)
    file = json.loads(cli_here("evaluate", run.exported("float32"), "--json").stdout)
    assert whole["accuracy"]["confusion"] == file["accuracy"]["confusion"]
    assert "its training held out" in whole["pictures"]
    assert 0.5 < whole["curves"]["macro"]["auc"] <= 1
    assert (tmp_path / "plots" / "curves.json").is_file()
    both = json.loads(cli_here("compare", run.folder, run.exported("float32"), "--rounds", 0, "--json").stdout)
    assert [row["accuracy"]["top1"] for row in both["rows"]] == [whole["accuracy"]["top1"]] * 2


def test_the_run_of_a_file_is_the_one_that_made_it(run: Run, tmp_path: Path) -> None:
    """Not the run whose folder it was copied into, nor one that is not there."""
    card = read_bundle(run.exported("float32")).card
    assert card is not None
    assert home_of(run.exported("float32"), card) is not None
    assert home_of(run.exported("float32"), dataclasses.replace(card, provenance={"created": "another day"})) is None
    assert home_of(Path(shutil.copy(run.exported("float32"), tmp_path)), card) is None


def test_data_that_changed_since_is_not_taken_for_the_runs_own(run: Run, tmp_path: Path) -> None:
    """Its test part would be another one; named outright it is taken as it is."""
    shutil.copytree(run.data, tmp_path / "data", ignore=shutil.ignore_patterns("00*"))
    moved = dataclasses.replace(
        run, card=dataclasses.replace(run.card, provenance={**run.card.provenance, "data": str(tmp_path / "data")})
    )
    with pytest.raises(DataError, match="has changed since"):
        pictures(None, moved, run.folder)
    assert len(pictures(str(tmp_path / "data"), moved, run.folder)) == 281
