"""Tuning: the search space, the loop around a stand-in for training, and what is left in the folder."""

import contextlib
import dataclasses
import math
import sys
import types

import cv2
import numpy as np
import pytest

from edgeclf.core import config
from edgeclf.core.errors import ConfigError, EdgeclfError, MissingExtra, StorageError
from edgeclf.core.recipe import load_recipe, override
from edgeclf.host.architectures import BUILDERS
from edgeclf.host.train.checkpoint import State
from edgeclf.host.train.fitting import Listeners
from edgeclf.host.tune import files as tune_files
from edgeclf.host.tune import search_space, tune
from edgeclf.host.tune.search_space import Choice, recipe_at, space
from edgeclf.host.tune.study import DATABASE, Trial, open_study

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Red against blue noise, 12x12."""
    random, y = np.random.RandomState(0), np.arange(80) % 2
    x = random.randint(0, 120, (80, 12, 12, 3)).astype(np.uint8)
    x[np.arange(80), :, :, 2 * y] += 120
    path = tmp_path_factory.mktemp("tune-data") / "colours.npz"
    np.savez(path, x=x, y=y, labels=np.array(["red", "blue"]))
    return path


def _recipe(**changes):
    recipe = override(load_recipe("compact-digits"), image__size=12, training__epochs=9, training__batch_size=16)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [8, 16]}))
    return override(recipe, **changes)


@pytest.fixture
def started(data, tmp_path):
    """A tuning of six epochs a trial, nothing trained yet."""
    return tune.start(_recipe(), str(data), tmp_path / "tuning", epochs=6)


def _stand_in(recipe, dataset, folder, options, listeners):
    """Training that takes no time: the nearer the rate to 0.02, the better; it leaves a file, as a checkpoint is one."""
    (folder / "checkpoint.npz").write_bytes(b"x")
    final = 0.9 - abs(math.log10(recipe.training.learning_rate / 0.02)) / 10
    for epoch in range(1, recipe.training.epochs + 1):
        listeners.on_epoch({"epoch": epoch, "val_accuracy": final * epoch / recipe.training.epochs}, recipe.training.epochs)
    return None, State()


@contextlib.contextmanager
def _training_by(fit):
    """Let `tune` train by a stand-in; no network is built, no figure drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "fit", fit)
        patch.setattr(tune.architectures, "build", lambda *arguments: types.SimpleNamespace(count_params=lambda: 7))
        patch.setattr(tune_files, "draw", lambda tuned: None)
        yield lambda fit: patch.setattr(tune, "fit", fit)


@pytest.fixture
def trains():
    """Train by the stand-in, or by what a test gives: `trains(fit)`."""
    with _training_by(_stand_in) as use:
        yield use


@pytest.fixture(scope="module")
def tuned(data, tmp_path_factory):
    """Twelve trials by the stand-in."""
    with _training_by(_stand_in):
        return tune.tune(tune.start(_recipe(), str(data), tmp_path_factory.mktemp("tuned") / "t", epochs=6), trials=12)


def _values(trials):
    return [(t.state, t.accuracy, config.to_table(t.recipe)) for t in trials]


@pytest.mark.parametrize("name", [n for n in config.names("models") if load_recipe(n).model.architecture in BUILDERS])
def test_every_recipe_lies_inside_its_own_search_space(name):
    """The first trial is the recipe itself, to the bit."""
    recipe = load_recipe(name)
    dimensions = space(recipe, 10_000)
    own = search_space.own_point(recipe, dimensions)
    assert recipe_at(recipe, own) == recipe
    for dimension in dimensions:
        value = own[dimension.name]
        assert value in dimension.values if isinstance(dimension, Choice) else dimension.low <= value <= dimension.high


def test_another_optimizer_keeps_the_place_against_its_usual_rate_and_the_decay_of_a_step():
    """0.1 with SGD is as usual as 0.002 with AdamW, and so is a decay of 0.0002 a step as one of 0.0001."""
    found = recipe_at(_recipe(training__learning_rate=0.1, training__weight_decay=0.002), {"optimizer": "adamw"}).training
    assert (found.optimizer, found.learning_rate, found.weight_decay) == ("adamw", 0.002, pytest.approx(0.05))


def test_width_goes_in_whole_eights_and_only_where_weights_do_not_forbid_it():
    """Kernels are made for them; trained weights fit one width."""
    assert recipe_at(_recipe(), {"width": 1.5}).model.options["widths"] == [16, 24]
    assert "width" in {d.name for d in space(_recipe(), 100)}
    assert "width" not in {d.name for d in space(_recipe(), 100, trained=True)}
    assert "width" not in {d.name for d in space(load_recipe("resnet8"), 100)}


def test_what_is_kept_is_not_searched_and_a_typo_is_named():
    """--keep takes the names that the table shows."""
    assert "mixup" not in {d.name for d in space(_recipe(), 100, keep=["mixup"])}
    with pytest.raises(ConfigError, match=r"--keep mixupp.*learning_rate"):
        space(_recipe(), 100, keep=["mixupp"])


def test_tuning_beats_the_recipe_and_leaves_a_recipe_that_train_takes(tuned):
    """The best by validation, with the epochs that the model had; a table and JSON beside it, and no trial's folder."""
    folder = tuned.tuning.folder
    assert tuned.trials[0].recipe == tuned.tuning.recipe
    assert tuned.best.accuracy > tuned.trials[0].accuracy
    best = load_recipe(str(folder / "best.toml"))
    assert best.training == override(tuned.best.recipe, training__epochs=9).training
    assert best.name == "compact-digits-tuned"
    assert len((folder / "trials.csv").read_text().splitlines()) == 13
    assert {path.name for path in folder.iterdir()} == {"tune.json", "best.toml", "trials.csv", "settings.json", DATABASE}


def test_hopeless_trials_are_given_up_early(tuned):
    """Some of them; never in the first third of the epochs, and not at the last."""
    pruned = [t for t in tuned.trials if t.state == "pruned"]
    assert pruned
    assert all(2 < t.epochs < 6 for t in pruned)
    assert all(t.epochs == 6 for t in tuned.trials if t.state == "done")


def test_figures_are_drawn_also_of_trials_that_were_given_up_or_failed(started, data):
    """Each a PNG; importances from enough finished trials only."""
    recipes = [recipe_at(_recipe(), {"weight_decay": decay, "width": 0.5}) for decay in (1e-6, 1e-4, 1e-3)]
    outcomes = ("done", 0.5), ("pruned", 0.2), ("failed", None)
    trials = [Trial(i + 1, s, r, a, 3, 1.0, 7) for i, (r, (s, a)) in enumerate(zip(recipes, outcomes, strict=True))]
    started.folder.mkdir()
    tune_files.draw(tune.Tuned(started, tuple(trials), {"width": 0.7, "mixup": 0.3}))
    assert all(cv2.imread(str(started.folder / n)).std() > 5 for n in ("history.png", "slices.png", "importances.png"))


def test_interrupted_tuning_goes_on_to_the_same_trials(started, trains, data, tmp_path):
    """Ctrl-C in the middle of trial 4: it counts for nothing, and the rest is as if nothing had happened."""
    whole = tune.tune(dataclasses.replace(started, folder=tmp_path / "whole"), trials=5)

    def interrupt(trial, found):
        def cut(*arguments):
            _stand_in(*arguments[:4], Listeners(lambda row, epochs: None))
            raise KeyboardInterrupt

        if trial.number == 3:
            trains(cut)

    with pytest.raises(KeyboardInterrupt):
        tune.tune(started, 5, on_trial=interrupt)
    assert not list(started.folder.glob(".trial-*"))
    trains(_stand_in)
    again = tune.tune(tune.resume(started.folder), 5)
    assert _values(again.trials) == _values(whole.trials)


def test_trial_of_a_killed_process_is_done_again(started, trains):
    """`kill -9` leaves a trial that runs for ever, and its folder."""
    started.folder.mkdir()
    with open_study(started.folder, started.recipe, started.dimensions) as study:
        study.ask(1)
    (started.folder / "settings.json").write_text(config.json.dumps(started.settings))
    (started.folder / ".trial-abc").mkdir()
    tuned = tune.tune(started, 2)
    assert [t.number for t in tuned.trials] == [1, 2]
    assert tuned.trials[0].recipe == started.recipe
    assert not (started.folder / ".trial-abc").exists()


def test_diverging_trial_has_failed_and_the_search_goes_on(started, trains):
    """Its reason stands in the table, without the folder that is gone."""

    def diverges(recipe, dataset, folder, options, listeners):
        if recipe.training.learning_rate != 0.05:
            raise EdgeclfError(f"{folder}: the loss stopped being a number in epoch 1; lower --learning-rate")
        return _stand_in(recipe, dataset, folder, options, listeners)

    trains(diverges)
    trials = tune.tune(started, 3).trials
    assert [t.state for t in trials] == ["done", "failed", "failed"]
    assert trials[1].reason == "the loss stopped being a number in epoch 1"
    assert trials[1].accuracy is None


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (EdgeclfError("the loss is no number"), EdgeclfError, "no trial came to its end"),
        (StorageError("disk: full"), StorageError, "disk: full"),
        (ConfigError("precision float16 needs a GPU"), ConfigError, "needs a GPU"),
    ],
)
def test_what_no_other_trial_would_mend_ends_the_tuning(started, trains, raised, kind, says):
    """A recipe that always fails, a full disk, a recipe that is wrong."""

    def fails(*arguments):
        raise raised

    trains(fails)
    with pytest.raises(kind, match=says):
        tune.tune(started, 2)


def test_time_that_is_over_inside_a_trial_ends_it_there(started, trains):
    """Finished trials count, and the one that was cut is done again later."""
    with pytest.raises(EdgeclfError, match=r"within 0 minutes; give more --time"):
        tune.tune(started, 5, minutes=0)
    tune.tune(started, 2)
    seen = []
    clock = iter([0.0, 0.0, *[100.0] * 50])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune.time, "monotonic", lambda: next(clock))
        tuned = tune.tune(started, 5, minutes=1, on_epoch=lambda done, total: seen.append(done))
    assert len(tuned.trials) == 2
    assert seen == [1]
    assert len(tune.tune(started, 4).trials) == 4


def test_a_folder_keeps_to_what_it_was_started_with(started, trains, data, tmp_path):
    """Other settings are named; a folder with something else in it is left alone."""
    tune.tune(started, 1)
    with pytest.raises(ConfigError, match=r"another epochs, keep"):
        tune.start(_recipe(), str(data), started.folder, epochs=5, keep=["width"])
    (started.folder / "settings.json").write_text('{"verb": "tune"}')
    with pytest.raises(ConfigError, match=r"settings\.json: lacks recipe"):
        tune.resume(started.folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds other files"):
        tune.start(_recipe(), str(data), tmp_path / "mine")


def test_damaged_database_and_a_batch_size_to_be_found_are_one_line(started, trains, data, tmp_path):
    """Nothing is overwritten."""
    started.folder.mkdir()
    (started.folder / "settings.json").write_text(config.json.dumps(started.settings))
    (started.folder / DATABASE).write_bytes(b"no database at all, but long enough" * 100)
    with pytest.raises(StorageError, match=r"trials\.db: cannot be used: file is not a database"):
        tune.tune(started, 1)
    with pytest.raises(ConfigError, match=r"--set training\.batch_size"):
        tune.start(_recipe(training__batch_size=0), str(data), tmp_path / "other")


def test_without_optuna_the_extra_is_named(data, tmp_path, monkeypatch):
    """Before any picture is read."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"edgeclf\[tune\]"):
        tune.start(_recipe(), str(data), tmp_path / "tuning")
