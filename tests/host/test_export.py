"""Export end to end on a run that trains in seconds: files, cards, gates, and what is left when a gate closes."""

import dataclasses
import shutil

import numpy as np
import pytest
from tiny_runs import replace_network

from edgeclf.core.bundle import read_bundle
from edgeclf.core.card import golden_inputs
from edgeclf.core.errors import ConfigError, DataError, ModelError, QualityError
from edgeclf.core.recipe import load_recipe, override
from edgeclf.core.tflite import scheme
from edgeclf.host.data.dataset import open_dataset
from edgeclf.host.export import gates, guard
from edgeclf.host.export.export import export
from edgeclf.host.export.guarded import Budget
from edgeclf.host.keras import keras
from edgeclf.host.run import MODEL, open_run
from edgeclf.host.train import train as training
from edgeclf.runtime.engine import open_engine
from edgeclf.runtime.selftest import self_test

ALL = ["float32", "float16", "dynamic-w8", "int8"]
SIZE = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Red against blue noise, 12x12, trained for two epochs."""
    folder, random = tmp_path_factory.mktemp("export"), np.random.RandomState(0)
    x = random.randint(0, 120, (400, SIZE, SIZE, 3)).astype(np.uint8)
    y = np.arange(400) % 2
    x[y == 0, :, :, 0] += 60
    x[y == 1, :, :, 2] += 60
    np.savez(folder / "colours.npz", x=x, y=y, labels=np.array(["red", "blue"]))
    recipe = override(load_recipe("compact-digits"), image__size=SIZE, training__epochs=3, training__batch_size=16)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [8, 16]}))
    recipe = override(recipe, export__calibration_pictures=100)
    return training.train(training.start(recipe, str(folder / "colours.npz"), folder / "colours"))


@pytest.fixture(scope="module")
def exported(run):
    """All four files, by variant."""
    return {e.variant: e for e in export(run, ALL)}


def _with_model(run, folder, model):
    """The same run with another network in it."""
    shutil.copytree(run.folder, folder, ignore=shutil.ignore_patterns("*.tflite"))
    replace_network(open_run(folder), model)
    return open_run(folder)


def _network(*, outputs=2, scale=1.0, bias=0.0):
    """Mean colours, then a dense layer of constant weights."""
    layers = keras().layers
    inputs = layers.Input((SIZE, SIZE, 3))
    dense = layers.Dense(outputs)
    model = keras().Model(inputs, dense(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(inputs))))
    dense.set_weights([np.full((8, outputs), scale, np.float32), np.full(outputs, bias, np.float32)])
    return model


def _files(folder):
    return {path.name for path in folder.rglob("*") if path.name.endswith(".tflite") or path.name.startswith(".")}


@pytest.mark.parametrize("variant", ALL)
def test_exported_file_is_what_its_card_says(run, exported, variant):
    """Labels, scheme and type agree with the tensors; the file lies where the run says."""
    bundle = read_bundle(exported[variant].path)
    assert bundle.card.labels == run.card.labels == ("red", "blue")
    assert scheme(bundle.structure) == bundle.card.variant == variant
    assert bundle.structure.input.type == bundle.card.io == ("uint8" if variant == "int8" else "float32")
    assert exported[variant].path == run.exported(variant)
    assert exported[variant].file_bytes == exported[variant].path.stat().st_size


def test_shipped_card_tells_the_data_and_not_where_its_maker_keeps_it(run, exported):
    """Everything else of the provenance travels; folders and the command line stay at home."""
    shipped, own = read_bundle(exported["int8"].path).card.provenance, run.card.provenance
    assert shipped["data"] == "colours.npz"
    assert "command" not in shipped
    assert {**own, "data": "colours.npz"} == {**shipped, "command": own["command"]}
    assert str(run.folder.parent).encode() not in exported["int8"].path.read_bytes()


@pytest.mark.parametrize("variant", ALL)
def test_accuracy_is_what_the_runtime_answers_on_the_test_part(run, exported, variant):
    """Counted again from the written file, picture by picture."""
    dataset = open_dataset(run)
    scores = open_engine(read_bundle(exported[variant].path)).infer(dataset.pictures("test"))
    top1 = float(np.mean(scores.argmax(axis=1) == dataset.classes_of("test")))
    assert exported[variant].top1 == pytest.approx(top1)
    assert read_bundle(exported[variant].path).card.accuracy["file"]["top1"] == pytest.approx(top1)
    assert exported[variant].drop.total == len(dataset.parts["test"])


def test_float32_agrees_with_keras_and_int8_nearly(exported):
    """1e-4 for float32, as the gate asks; int8 answers as the full model does on nearly every picture."""
    assert exported["float32"].largest_logit_difference < 1e-4
    assert exported["float32"].agreement == 1.0
    assert exported["int8"].agreement > 0.9


def test_golden_floats_come_back_to_the_bit(exported):
    """Nine digits are enough for a float32, so `verify` can say bit-exact of float files too."""
    bundle = read_bundle(exported["float32"].path)
    assert self_test(open_engine(bundle), bundle.card).difference == 0.0


@pytest.mark.parametrize("variant", ALL)
def test_self_test_in_the_card_holds_for_the_written_file(exported, variant):
    """Noise from the card's seed gives the card's outputs, within its tolerance."""
    bundle = read_bundle(exported[variant].path)
    golden = bundle.card.self_test
    stored = open_engine(bundle).raw(golden_inputs(golden.seed, len(golden.outputs), bundle.card.image.shape))
    assert np.abs(stored.astype(float) - np.array(golden.outputs)).max() <= golden.tolerance


def test_calibration_is_listed_and_came_from_the_training_part(run, exported):
    """Every listed picture is a training picture, in equal shares; float files list none."""
    listed = read_bundle(exported["int8"].path).card.calibration
    indices = [int(i) for i in listed["indices"].split()]
    assert len(indices) == listed["pictures"] == 100
    assert set(indices) <= set(open_dataset(run).parts["train"].tolist())
    assert set(listed["per_class"].values()) == {50}
    assert read_bundle(exported["float32"].path).card.calibration == {}


def test_same_export_twice_gives_the_same_bytes(run, exported, tmp_path):
    """Nothing of the time or the folder gets into a file."""
    for again in export(run, ALL, out=tmp_path):
        assert again.path.read_bytes() == exported[again.variant].path.read_bytes()


def test_io_changes_the_type_of_the_int8_file_alone(run, tmp_path):
    """int8 input and output for microcontrollers; the float file stays float."""
    types = {e.variant: read_bundle(e.path).structure for e in export(run, ["float16", "int8"], io="int8", out=tmp_path)}
    assert (types["int8"].input.type, types["int8"].output.type) == ("int8", "int8")
    assert types["float16"].input.type == "float32"


def test_constant_output_fails_loudly_and_leaves_no_file(run, tmp_path):
    """A network that says the same of every picture."""
    broken = _with_model(run, tmp_path / "colours", _network(scale=0.0, bias=0.5))
    with pytest.raises(QualityError, match="output is constant"):
        export(broken, ALL)
    assert _files(tmp_path) == set()


def test_nan_fails_loudly_and_leaves_no_file(run, tmp_path):
    """A network whose training diverged."""
    broken = _with_model(run, tmp_path / "colours", _network(bias=np.nan))
    with pytest.raises(QualityError, match="NaN"):
        export(broken, ["int8"])
    assert _files(tmp_path) == set()


def test_wrong_label_count_fails_loudly_and_leaves_no_file(run, tmp_path):
    """Three outputs for two labels: both counts are named."""
    broken = _with_model(run, tmp_path / "colours", _network(outputs=3))
    with pytest.raises(QualityError, match="3 outputs for 2 labels"):
        export(broken, ["float32"])
    assert _files(tmp_path) == set()


def _brittle():
    """Right in floats; in int8 a channel ten thousand times as large swallows the one that decides."""
    layers = keras().layers
    inputs = layers.Input((SIZE, SIZE, 3))
    mixed, last = layers.Dense(2, activation="relu"), layers.Dense(2)
    model = keras().Model(inputs, last(mixed(layers.GlobalAveragePooling2D()(inputs))))
    mixed.set_weights([np.array([[1, 0], [0, 1e5], [-1, 0]], np.float32), np.array([0, 1e5], np.float32)])
    last.set_weights([np.array([[8, 0], [0, 0]], np.float32), np.array([0, 1], np.float32)])
    return model


def test_variant_that_fails_is_named_and_the_others_are_written(run, tmp_path):
    """int8 collapses, float32 does not: exit code 7, one file, and the message says which is missing."""
    told = []
    with pytest.raises(QualityError, match=r"not exported: int8: .*; written: float32") as failure:
        export(_with_model(run, tmp_path / "colours", _brittle()), ["float32", "int8"], on_exported=told.append)
    assert failure.value.exit_code == 7
    assert _files(tmp_path) == {"colours-float32.tflite"}
    assert [e.variant for e in told] == ["float32"]


@pytest.mark.parametrize("gate", ["check_structure", "check_agreement", "check_answers", "check_probabilities", "check_drop"])
def test_every_gate_is_asked_before_a_file_appears(run, tmp_path, monkeypatch, gate):
    """A gate that nobody asks is none, however right its own tests are."""

    def closed(*_):
        raise QualityError(f"{gate} says no")

    monkeypatch.setattr(gates, gate, closed)
    with pytest.raises(QualityError, match=f"{gate} says no"):
        export(run, ["int8"], out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_variants_and_types_are_refused_before_any_work(run):
    """The message lists what there is."""
    with pytest.raises(ConfigError, match="expected one of: float32, float16, dynamic-w8, weight-only-w8, int8, w8a16"):
        export(run, ["int9"])
    with pytest.raises(ConfigError, match="given twice"):
        export(run, ["int8", "int8"])
    with pytest.raises(ConfigError, match="expected one of: uint8, int8, float32"):
        export(run, ["int8"], io="int16")


def test_changed_data_and_missing_model_are_clear_errors(run, tmp_path):
    """Another fingerprint, and a run folder that lost its network."""
    card = dataclasses.replace(run.card, provenance={**run.card.provenance, "fingerprint": "0" * 64})
    with pytest.raises(DataError, match="has changed"):
        export(dataclasses.replace(run, card=card), ["float32"])
    shutil.copytree(run.folder, tmp_path / "colours")
    (tmp_path / "colours" / MODEL).unlink()
    with pytest.raises(ModelError, match="is missing"):
        export(open_run(tmp_path / "colours"), ["float32"])


def test_a_mixed_file_of_the_guard_passes_every_gate(run, tmp_path, monkeypatch):
    """Where only layers in floats hold the budget, that file is written, named mixed, its probabilities rounded as int8's."""
    tried = []

    def only_mixed(drop, budget):
        tried.append(drop)
        return len(tried) > 6

    monkeypatch.setattr(guard, "holds", only_mixed)
    (made,) = export(run, ["int8"], budget=Budget(0.5), out=tmp_path)
    assert made.variant == "mixed"
    assert _files(tmp_path) == {"colours-mixed.tflite"}
