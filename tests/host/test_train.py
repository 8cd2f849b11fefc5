"""Training: run folders, repeatability, resuming, and the parts of a step."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from tiny_runs import flat_weights, tiny_recipe

from edgeclf.core import files
from edgeclf.core.errors import ConfigError, DataError, EdgeclfError, ModelError
from edgeclf.core.image import ImageSpec
from edgeclf.core.recipe import AugmentationSection, load_recipe, override
from edgeclf.host import architectures
from edgeclf.host.augment.augment import augment, normalise
from edgeclf.host.keras import tensorflow
from edgeclf.host.run import open_run
from edgeclf.host.train import objective
from edgeclf.host.train import train as stage


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Red against blue noise, 12x12: learnt within two epochs."""
    random = np.random.RandomState(0)
    x = random.randint(0, 120, (160, 12, 12, 3)).astype(np.uint8)
    y = np.arange(160) % 2
    x[y == 0, :, :, 0] += 120
    x[y == 1, :, :, 2] += 120
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, x=x, y=y, labels=np.array(["red", "blue"]))
    return path


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """A finished run of four epochs."""
    return stage.train(stage.start(tiny_recipe(), str(data), tmp_path_factory.mktemp("runs") / "whole"))


def test_run_folder_holds_recipe_model_history_curves_split_and_card(undisturbed):
    """Everything a later stage or a person needs, and no leftover checkpoint."""
    names = {path.name for path in undisturbed.folder.iterdir()}
    assert names == {"recipe.toml", "model.keras", "history.csv", "curves.png", "split.json", "card.json", "started.json"}
    rows = list(csv.DictReader((undisturbed.folder / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    split = json.loads((undisturbed.folder / "split.json").read_text())
    assert sum(len(split[part]) for part in ("train", "val", "test")) == 160


def test_card_says_what_was_trained_on_what_and_how_well(undisturbed, data):
    """Provenance is enough to repeat the training; the accuracy is the measured one."""
    card = open_run(undisturbed.folder).card
    assert card.labels == ("red", "blue")
    assert card.provenance["data"] == str(data)
    assert card.provenance["split"]["seed"] == 1
    assert card.accuracy["model"]["test"]["top1"] > 0.9


@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_training_resumes_to_the_same_weights(undisturbed, data, tmp_path, after):
    """Ctrl-C after an epoch, then resume: bit for bit the run that was never disturbed."""

    def stop(row, epochs):
        if row["epoch"] == after:
            raise KeyboardInterrupt

    job = stage.start(tiny_recipe(), str(data), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        stage.train(job, stop)
    resumed = stage.train(stage.resume(tmp_path / "run"))
    assert np.array_equal(flat_weights(resumed), flat_weights(undisturbed))


def test_other_seed_gives_other_weights(undisturbed, data, tmp_path):
    """The seed reaches the weights; otherwise the test above would prove nothing."""
    other = stage.train(stage.start(tiny_recipe(training__seed=2), str(data), tmp_path / "run"))
    assert not np.array_equal(flat_weights(other), flat_weights(undisturbed))


def test_finished_run_is_not_overwritten_nor_resumed(undisturbed, data):
    """A folder with a run in it is kept."""
    with pytest.raises(ConfigError, match="finished run"):
        stage.start(tiny_recipe(), str(data), undisturbed.folder)
    with pytest.raises(ConfigError, match="is finished"):
        stage.resume(undisturbed.folder)


def test_two_trainings_in_one_folder_do_not_mix(data, tmp_path):
    """The second is told, whether it starts, resumes or only began to read pictures before the first had written."""
    job = stage.start(tiny_recipe(training__epochs=1), str(data), tmp_path / "run")
    with files.locked(job.folder):
        for another in (stage.train, lambda job: stage.train(stage.resume(job.folder))):
            with pytest.raises(ConfigError, match="another training is at work there"):
                another(job)
    assert stage.train(job).folder == job.folder


def test_start_looks_again_after_reading_pictures(data, tmp_path, monkeypatch):
    """Reading takes minutes, in which another training may have taken the folder."""
    make, recipe = stage.make_dataset, tiny_recipe()

    def slow(*arguments):
        monkeypatch.setattr(stage, "make_dataset", make)
        stage.start(recipe, str(data), tmp_path / "run")
        return make(*arguments)

    monkeypatch.setattr(stage, "make_dataset", slow)
    with pytest.raises(ConfigError, match="already holds an interrupted run"):
        stage.start(recipe, str(data), tmp_path / "run")


def test_default_folders_of_two_starts_differ(data, tmp_path, monkeypatch):
    """Also when both read pictures at the same time."""
    monkeypatch.chdir(tmp_path)
    make, recipe, started = stage.make_dataset, tiny_recipe(), []

    def slow(*arguments):
        monkeypatch.setattr(stage, "make_dataset", make)
        started.append(stage.start(recipe, str(data)))
        return make(*arguments)

    monkeypatch.setattr(stage, "make_dataset", slow)
    started.append(stage.start(recipe, str(data)))
    assert [job.folder.name for job in started] == ["compact-digits-colours", "compact-digits-colours-2"]


@pytest.mark.parametrize(("file", "error"), [("checkpoint.npz", ModelError), ("started.json", ConfigError)])
def test_damaged_state_is_one_line(data, tmp_path, file, error):
    """As after a power cut: what is damaged, and what to do."""

    def stop(row, epochs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.train(stage.start(tiny_recipe(), str(data), tmp_path / "run"), stop)
    path = tmp_path / "run" / file
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(error, match=file):
        stage.train(stage.resume(tmp_path / "run"))


def test_leftovers_of_a_killed_training_go_when_it_is_finished(data, tmp_path):
    """`kill -9` in the middle of a checkpoint leaves a temporary file."""
    job = stage.start(tiny_recipe(training__epochs=1), str(data), tmp_path / "run")
    (job.folder / ".checkpoint-abc.npz").write_bytes(b"half")
    stage.train(job)
    assert not list(job.folder.glob(".*"))


def test_resume_refuses_changed_data(data, tmp_path):
    """Other pictures would make another model under the same name."""
    copy = tmp_path / "copy.npz"
    copy.write_bytes(data.read_bytes())
    stage.start(tiny_recipe(), str(copy), tmp_path / "run")
    with np.load(data) as arrays:
        np.savez(copy, x=255 - arrays["x"], y=arrays["y"], labels=arrays["labels"])
    with pytest.raises(DataError, match="has changed"):
        stage.resume(tmp_path / "run")


def test_loss_that_is_no_number_stops_the_training_and_keeps_the_run(data, tmp_path):
    """One line naming the epoch and the remedy; no card, so it does not count as finished."""
    with pytest.raises(EdgeclfError, match="learning-rate"):
        stage.train(stage.start(tiny_recipe(training__learning_rate=1e30), str(data), tmp_path / "run"))
    assert not (tmp_path / "run" / "card.json").exists()


def test_label_smoothing_trains(data, tmp_path):
    """The smoothed loss takes the same integer classes."""
    run = stage.train(stage.start(tiny_recipe(training__label_smoothing=0.1, training__epochs=2), str(data), tmp_path / "run"))
    assert run.card.accuracy["model"]["test"]["pictures"] == 24


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "muon"])
def test_every_optimizer_trains(data, tmp_path, optimizer):
    """One epoch ends with a finite loss and a finished run."""
    recipe = tiny_recipe(training__optimizer=optimizer, training__learning_rate=0.01, training__epochs=1)
    assert stage.train(stage.start(recipe, str(data), tmp_path / "run")).folder == tmp_path / "run"


def test_resnet8_is_the_mlperf_tiny_reference():
    """78,666 parameters at 32x32x3 and ten classes."""
    assert architectures.build(load_recipe("resnet8"), 10).count_params() == 78_666


def test_compact_stays_under_250_000_parameters_and_has_int8_kernels_for_every_layer():
    """Layers that fuse into convolutions, and SiLU, which is two operators with int8 kernels."""
    model = architectures.build(load_recipe("compact"), 10)
    kinds = {type(layer).__name__ for layer in model.layers}
    assert model.count_params() < 250_000
    assert kinds == {
        "InputLayer",
        "Conv2D",
        "BatchNormalization",
        "ReLU",
        "Activation",
        "Multiply",
        "Add",
        "MaxPooling2D",
        "GlobalAveragePooling2D",
        "Dense",
    }


def test_unknown_architecture_names_the_nearest():
    """A typo costs seconds."""
    recipe = load_recipe("compact")
    wrong = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, architecture="resnet9"))
    with pytest.raises(ConfigError, match="did you mean 'resnet8'"):
        architectures.build(wrong, 10)


def test_unknown_model_option_is_a_config_error():
    """Options are the builder's keywords and nothing else."""
    recipe = load_recipe("resnet8")
    wrong = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"depth": 3}))
    with pytest.raises(ConfigError, match=r"\[model.options\]"):
        architectures.build(wrong, 10)


def _numbered(count=64, side=8):
    """Pictures whose red channel is the row and whose green channel is the column."""
    rows, columns = np.mgrid[0:side, 0:side]
    picture = np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8)
    return np.repeat(picture[None], count, axis=0)


def test_augmentation_shifts_within_reach_and_flips_about_half():
    """Each picture is moved whole, by at most the stated share, and some are mirrored."""
    out = augment(_numbered(400), np.array([1, 2], np.int32), AugmentationSection(flip=True, shift=0.25)).numpy().astype(int)
    mirrored = out[:, 4, 3, 1] > out[:, 4, 4, 1]
    assert 0.4 < mirrored.mean() < 0.6
    shifts = out[:, 4, 4, 0] - 4
    assert set(shifts) == {-2, -1, 0, 1, 2}


def test_augmentation_depends_on_its_seed_alone():
    """Equal seeds, equal pictures: what makes a resumed run equal."""
    section, pictures = AugmentationSection(), _numbered()
    one, again, other = (augment(pictures, np.array(seed, np.int32), section).numpy() for seed in ([1, 5], [1, 5], [1, 6]))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_no_augmentation_changes_nothing():
    """flip = false and shift = 0 is the picture itself."""
    pictures = _numbered()
    assert np.array_equal(augment(pictures, np.array([1, 1], np.int32), AugmentationSection(flip=False, shift=0)), pictures)


def test_normalised_pixels_are_exact_and_span_minus_one_to_127_128ths():
    """(pixel - 128) / 128 has no rounding in float32."""
    out = normalise(tensorflow().constant(np.arange(256, dtype=np.uint8))).numpy()
    assert out[0] == -1
    assert out[128] == 0
    assert out[255] == 127 / 128
    assert ImageSpec(8, 8).mean == ImageSpec(8, 8).std == 128


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "adam", "adamw", "rmsprop"])
def test_weight_decay_spares_biases_and_batch_normalisation(optimizer):
    """With gradients of nought, kernels shrink and nothing else moves."""
    section = tiny_recipe(training__optimizer=optimizer, training__weight_decay=0.1).training
    made, model = objective.optimizer(section, steps=10), architectures.build(tiny_recipe(), 2)
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    made.apply_gradients([(np.zeros(variable.shape, np.float32), variable) for variable in model.trainable_variables])
    shrunk = {variable.name: bool((variable.numpy() < 1).all()) for variable in model.trainable_variables}
    assert {name for name, moved in shrunk.items() if moved} == {name for name in shrunk if "kernel" in name}
    assert any("gamma" in name for name in shrunk)
    assert "logits/bias:0" in shrunk


def test_schedule_warms_up_to_the_peak_and_ends_at_zero():
    """Linear up, cosine down."""
    section = override(
        load_recipe("compact"), training__epochs=10, training__learning_rate=0.5, training__warmup_epochs=2
    ).training
    rate = objective.schedule(section, steps=10)
    values = [float(rate(step)) for step in range(101)]
    assert values[0] == pytest.approx(0.5 / 20)
    assert max(values) == pytest.approx(0.5)
    assert values[20:] == sorted(values[20:], reverse=True)
    assert values[100] == pytest.approx(0, abs=1e-6)
