"""The verbs tune and crossval: what they print, where, and with which exit code; each trains for real, briefly."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest

from edgeclf.core import config

WANTED = "tensorflow", "optuna"
pytestmark = pytest.mark.skipif(not all(map(importlib.util.find_spec, WANTED)), reason="needs the extras train and tune")
KEEP = [part for name in ("mixup", "cutout", "colour", "batch_size") for part in ("--keep", name)]


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A folder with a data set and the recipe of a tiny network."""
    from edgeclf.core.recipe import load_recipe, override

    top, random, y = tmp_path_factory.mktemp("choose"), np.random.RandomState(0), np.arange(80) % 2
    x = random.randint(0, 120, (80, 8, 8, 3)).astype(np.uint8)
    x[np.arange(80), :, :, 2 * y] += 100
    np.savez(top / "colours.npz", x=x, y=y, labels=np.array(["red", "blue"]))
    recipe = override(load_recipe("compact-digits"), image__size=8, training__epochs=5, training__batch_size=16)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [4, 8]}))
    (top / "tiny.toml").write_text(config.to_toml(dataclasses.replace(recipe, name="tiny")))
    return top


@pytest.fixture(scope="module")
def pictures_taken():
    """Which pictures were read in this module, by index."""
    from edgeclf.host.data.dataset import Shards

    taken, real = [], Shards.take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "take", lambda self, indices: taken.extend(np.asarray(indices).tolist()) or real(self, indices))
        yield taken


def test_tune_prints_trials_and_the_best_recipe_and_goes_on_when_asked_again(top, cli_here, pictures_taken):
    """A line a trial on standard error, the table and what is next on standard output; test pictures are never read."""
    first = cli_here("tune", "tiny.toml", "colours.npz", "--trials", 1, "--epochs", 1, *KEEP, cwd=top)
    assert first.code == 0, first.text
    again = cli_here("tune", "tiny.toml", "colours.npz", "--trials", 2, "--epochs", 1, *KEEP, cwd=top)
    assert "trial 2/2" in again.stderr
    assert "trial 1/2" not in again.stderr
    assert "learning_rate" in again.stdout
    assert "next: edgeclf train runs/tiny-colours-tune/best.toml" in again.stdout
    assert config.read(top / "runs/tiny-colours-tune/best.toml")["training"]["epochs"] == 5
    from edgeclf.core.recipe import load_recipe
    from edgeclf.host.tune import tune

    test = tune.resume(top / "runs" / "tiny-colours-tune").dataset.parts["test"]
    assert pictures_taken
    assert not set(test) & set(pictures_taken)
    assert load_recipe(str(top / "runs/tiny-colours-tune/best.toml")).name == "tiny-tuned"


def test_tune_resumes_by_its_folder_alone_and_prints_json(top, cli_here):
    """Nothing is left to train, so the answer comes at once."""
    answer = cli_here("tune", "--resume", "--trials", 2, "--json", cwd=top)
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)
    assert [trial["number"] for trial in found["trials"]] == [1, 2]
    assert found["best"]["interval"]["low"] <= found["best"]["accuracy"] <= found["best"]["interval"]["high"]
    assert found["given"]["values"]["learning_rate"] == 0.05


def test_crossval_prints_each_fold_the_mean_and_what_the_intervals_mean(top, cli_here):
    """Then the same as JSON, without training again."""
    answer = cli_here("crossval", "tiny.toml", "colours.npz", "--folds", 2, "--epochs", 1, cwd=top)
    assert answer.code == 0, answer.text
    assert "fold 2/2" in answer.stderr
    assert "Bengio and Grandvalet 2004" in answer.stdout
    assert "Wilson" in answer.stdout
    assert "runs/tiny-colours-crossval/predictions.csv" in answer.stdout
    found = json.loads(cli_here("crossval", "--resume", "--json", cwd=top).stdout)
    assert [fold["pictures"] for fold in found["folds"]] == [40, 40]
    assert found["mean"]["interval"]["low"] <= found["mean"]["top1"] <= found["mean"]["interval"]["high"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tune", "tiny.toml"], "give MODEL and DATA"),
        (["tune", "--resume", "--epochs", 3], "leave MODEL, DATA and their options out"),
        (["crossval", "tiny.toml", "colours.npz", "--resume"], "leave MODEL, DATA"),
        (["tune", "tiny.toml", "colours.npz", "--keep", "rate", "--out", "other"], "--keep rate"),
        (["crossval", "tiny.toml", "colours.npz", "--set", "training.epoch=3"], "did you mean 'epochs'"),
        (["crossval", "--resume", "--out", "nowhere"], "nowhere: holds no crossval"),
        (["tune", "tiny.toml", "colours.npz", "--address", "10.0.0.1:6379"], "--address 10.0.0.1:6379: is about Ray"),
        (["crossval", "tiny.toml", "colours.npz", "--cpus-per-trial", 2], "--cpus-per-trial 2: is about Ray; give --engine ray"),
    ],
)
def test_what_cannot_work_exits_with_2_in_one_line(top, cli_here, arguments, says):
    """What was wrong and what to do."""
    answer = cli_here(*arguments, cwd=top)
    assert answer.code == 2, answer.text
    assert says in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("verb", ["tune", "crossval"])
def test_help_shows_an_example(cli_here, verb):
    """And that interrupted work goes on."""
    answer = cli_here(verb, "--help")
    assert f"Example: edgeclf {verb} compact photos/" in answer.stdout
    assert "goes on" in answer.stdout
