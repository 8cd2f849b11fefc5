"""The guard inside an export: the training that it does when nothing else holds, and what that leaves."""

import dataclasses

import pytest
from tiny_runs import tiny_recipe

from edgeclf.core.bundle import read_bundle
from edgeclf.core.errors import ConfigError
from edgeclf.host.compress import compress
from edgeclf.host.export import guard
from edgeclf.host.export.export import export
from edgeclf.host.export.guarded import Budget
from edgeclf.host.train import train as training


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A trained run."""
    return training.train(training.start(tiny_recipe(), "digits", tmp_path_factory.mktemp("runs") / "tiny"))


@pytest.fixture
def only_training(monkeypatch):
    """Every other way is left out."""
    monkeypatch.setattr(guard.Guard, "_ways", lambda self, tried: iter([("trained", guard.RETRAINED, self.retrained)]))


def exported(source, out, **budget):
    """(the file, folders that were trained in, epochs heard of)."""
    folders, epochs = [], []
    budget = Budget(0.5, on_training=folders.append, on_epoch=lambda row, total: epochs.append(row), **budget)
    (made,) = export(source, ["int8"], budget=budget, out=out)
    return made, folders, epochs


def test_the_guard_trains_once_and_its_run_stays(source, tmp_path, only_training):
    """The file is named after the training and tells its lineage; a second export trains nothing."""
    made, folders, epochs = exported(source, tmp_path / "one")
    card = read_bundle(made.path).card
    assert made.variant == "int8-qat"
    assert made.path.name == "tiny-int8-qat.tflite"
    assert [step["step"] for step in card.provenance["lineage"]] == ["trained", "qat"]
    assert card.provenance["guard"]["attempts"][0]["held"]
    assert folders == [source.folder.resolve().with_name("tiny-qat")]
    assert len(epochs) == 3
    again, folders, epochs = exported(source, tmp_path / "two")
    assert not folders
    assert not epochs
    assert again.path.read_bytes() == made.path.read_bytes()


def test_an_interrupted_training_of_the_guard_goes_on(source, tmp_path, only_training):
    """A run that was laid out and not finished is resumed, with the same file in the end."""
    other = dataclasses.replace(source, folder=tmp_path / "moved")
    source.folder.rename(tmp_path / "moved")
    try:
        recipe = compress.recipe_for(other)
        wanted = dataclasses.replace(recipe, compression=dataclasses.replace(recipe.compression, qat=True))
        job = compress.start(other, wanted, tmp_path / "moved-qat")
        with pytest.raises(KeyboardInterrupt):
            compress.compress(job, on_stage=_interrupt)
        made, folders, epochs = exported(other, tmp_path / "one")
    finally:
        (tmp_path / "moved").rename(source.folder)
    assert made.variant == "int8-qat"
    assert folders == [tmp_path / "moved-qat"]
    assert epochs


def _interrupt(stage):
    raise KeyboardInterrupt


def test_another_run_in_the_place_of_the_training_is_left_alone(source, tmp_path, only_training):
    """One line that names it, before anything is written."""
    place = source.folder.resolve().with_name("tiny-qat")
    kept = place.rename(tmp_path / "kept") if place.exists() else None
    try:
        training.train(training.start(tiny_recipe(training__epochs=1), "digits", place))
        with pytest.raises(ConfigError, match=r"tiny-qat: is another run.*--no-qat"):
            exported(source, tmp_path / "one")
        assert not (tmp_path / "one").exists()
    finally:
        place.rename(tmp_path / "other")
        if kept:
            kept.rename(place)
