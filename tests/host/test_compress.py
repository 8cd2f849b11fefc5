"""Compression of a run: every step and their combinations, resumed and refused, on a network that trains in seconds."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_runs import flat_weights, tiny_recipe

from edgeclf.core.bundle import read_bundle
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.recipe import override
from edgeclf.core.tflite import read_model
from edgeclf.host.compress import compress, distill, preserve, qat, sparsity
from edgeclf.host.compress.compression import plan, tuned
from edgeclf.host.data.dataset import open_dataset
from edgeclf.host.export import quantize
from edgeclf.host.export.export import export
from edgeclf.host.export.to_onnx import OnnxRequest
from edgeclf.host.keras import keras
from edgeclf.host.run import open_run
from edgeclf.host.train import train as training
from edgeclf.host.train.fitting import Listeners


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A trained run with a layer large enough to be pruned and clustered."""
    recipe = tiny_recipe(training__epochs=6)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [8, 16, 16]}))
    return training.train(training.start(recipe, "digits", tmp_path_factory.mktemp("runs") / "tiny"))


def settings(**wanted):
    """Keywords of `override`; one epoch for each step unless told otherwise."""
    return {f"compression__{key}": value for key, value in {"epochs": 1, **wanted}.items()}


def compressed(source, folder, teacher=None, **wanted):
    """A finished compression."""
    return compress.compress(compress.start(source, override(compress.recipe_for(source), **settings(**wanted)), folder, teacher))


EVERYTHING = {"prune": 0.6, "cluster": 8, "qat": True, "epochs": 2}


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Pruned, clustered and trained with rounding, undisturbed; and its exported file."""
    run = compressed(source, tmp_path_factory.mktemp("runs") / "whole", **EVERYTHING)
    (made,) = export(run, ["int8"])
    return run, made


@pytest.fixture(scope="module")
def narrow(source, tmp_path_factory):
    """With fewer channels."""
    folder = tmp_path_factory.mktemp("runs") / "narrow"
    return compressed(source, folder, prune_channels=0.4, channel_steps=2, epochs=4)


def kernels(run):
    """Kernels that are large enough to be changed."""
    return [layer.kernel.numpy() for layer in run.model().layers if sparsity.is_pruned(layer)]


def top1(run):
    """On the test part."""
    return run.card.accuracy["model"]["test"]["top1"]


def test_pruned_channels_make_a_smaller_run_that_goes_on_to_export(source, narrow):
    """The new run is a run like any other; its files are compared with the network that it was made from."""
    assert narrow.model().count_params() < 0.8 * source.model().count_params()
    assert narrow.full_model().count_params() == source.model().count_params()
    (made,) = export(narrow, ["int8"])
    assert made.variant == "int8"
    assert made.top1 + made.drop.drop == pytest.approx(top1(source))
    assert [entry["step"] for entry in narrow.card.provenance["lineage"]] == ["trained", "channels-1", "channels-2"]


def test_zeros_and_clusters_survive_quantisation_aware_training(whole):
    """As sparse and as clustered as before it, and the file is an int8 file that says how it came to be."""
    run, made = whole
    for kernel in kernels(run):
        assert np.mean(kernel == 0) >= 0.55
        assert len(np.unique(kernel)) <= 8
    assert made.variant == "int8-qat"
    assert made.top1 > 0.5


def test_two_of_every_four_weights_become_zero(source, tmp_path):
    """The 2:4 pattern holds along the inputs of each kernel."""
    run = compressed(source, tmp_path / "two", prune_2_4=True)
    for kernel in kernels(run):
        fours = np.moveaxis(kernel, -2, -1).reshape(-1, 4)
        assert np.all(np.sum(fours == 0, axis=1) >= 2)


def test_the_best_epoch_is_chosen_by_the_int8_file(whole):
    """Every epoch of quantisation-aware training has an int8 score, and the card says which was kept."""
    last = whole[0].card.provenance["lineage"][-1]
    assert len(last["int8_val_top1"]) == EVERYTHING["epochs"]
    assert last["int8_val_top1"][last["kept_epoch"] - 1] == max(last["int8_val_top1"])


def test_the_int8_file_has_the_ranges_that_training_found(whole):
    """Ranges of ranges.json stand in the file, and the input's are those of a pixel."""
    run, made = whole
    model = read_model(made.path.read_bytes(), "file")
    steps = {round(t.scales[0], 6) for t in model.tensors if t.type == "int8" and len(t.scales) == 1}
    relus = [pair for pair in run.ranges().values() if pair[0] == 0]
    assert relus
    assert all(round(high / 255, 6) in steps for _, high in relus)
    assert model.input.scales == (1 / 128,)


def test_a_killed_compression_goes_on_to_the_same_network(source, whole, tmp_path):
    """Killed within clustering, and again between two epochs of quantisation-aware training, it ends with the same weights."""
    job = compress.start(source, override(source.recipe, **settings(**EVERYTHING)), tmp_path / "killed")
    rows = []

    def kill(row, epochs):
        rows.append(row)
        if len(rows) in (3, 6):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress.compress(job, Listeners(kill))
    with pytest.raises(KeyboardInterrupt):
        compress.compress(compress.resume(tmp_path / "killed"), Listeners(kill))
    again = compress.compress(compress.resume(tmp_path / "killed"))
    np.testing.assert_array_equal(flat_weights(again), flat_weights(whole[0]))
    assert again.ranges() == whole[0].ranges()
    assert again.card.provenance["lineage"] == whole[0].card.provenance["lineage"]


def test_distillation_is_a_step_of_its_own(source, narrow, tmp_path):
    """Without another option it fine-tunes, and the lineage goes on."""
    taught = compressed(narrow, tmp_path / "taught", teacher=source)
    steps = [entry["step"] for entry in taught.card.provenance["lineage"]]
    assert steps == ["trained", "channels-1", "channels-2", "distillation"]  # and no channels twice
    assert top1(taught) > 0.8


def test_a_student_follows_its_teacher_and_not_the_labels():
    """With all weight on the teacher it comes to answer as the teacher does, though every label says something else."""
    keras().utils.set_random_seed(0)
    layers, random = keras().layers, np.random.RandomState(0)
    inputs = layers.Input((6,))
    student, teacher = (keras().Model(inputs, layers.Dense(3)(inputs)) for _ in range(2))
    pictures = random.normal(size=(256, 6)).astype(np.float32)
    wanted = teacher(pictures).numpy().argmax(axis=1)
    taught = distill.taught(student, distill.Teacher(teacher, 1.0, 2.0))
    taught.compile("adam", keras().losses.SparseCategoricalCrossentropy(from_logits=True))
    taught.optimizer.learning_rate = 0.05
    taught.fit(pictures, (wanted + 1) % 3, epochs=20, verbose=0)
    assert np.mean(student(pictures).numpy().argmax(axis=1) == wanted) > 0.95


def test_a_teacher_of_other_pictures_is_refused(source):
    """Labels, fit and colour must be the student's."""
    other = dataclasses.replace(source.card, labels=("a", "b"))
    with pytest.raises(ConfigError, match="same labels"):
        distill.open_teacher(source, other, 0.5, 4.0)
    grey = dataclasses.replace(source.card, image=dataclasses.replace(source.card.image, fit="pad"))
    with pytest.raises(ConfigError, match=r"by stretch .*the student by pad"):
        distill.open_teacher(source, grey, 0.5, 4.0)


def test_a_teacher_of_another_size_sees_the_same_pictures(source):
    """Twice as large to the student and normalised otherwise: what the teacher answers is nearly what it answers to its own."""
    image, pixels = source.card.image, open_dataset(source).pictures("test")[:64].astype(np.float32)
    larger = dataclasses.replace(image, width=2 * image.width, height=2 * image.height, mean=0.0, std=255.0)
    student = dataclasses.replace(source.card, image=larger)
    own, other = (distill.open_teacher(source, card, 0.5, 4.0) for card in (source.card, student))
    doubled = pixels.repeat(2, axis=1).repeat(2, axis=2) / 255
    expected = own.logits((pixels - image.mean) / image.std).numpy()
    assert other.logits(doubled).shape == expected.shape
    assert np.mean(other.logits(doubled).numpy().argmax(axis=1) == expected.argmax(axis=1)) > 0.9


def test_a_source_that_was_altered_is_refused(source, tmp_path):
    """One byte of model.keras is enough, and so is a missing file; no folder is left."""
    copied = tmp_path / "copied"
    shutil.copytree(source.folder, copied)
    data = bytearray((copied / "model.keras").read_bytes())
    data[len(data) // 2] ^= 1
    (copied / "model.keras").write_bytes(bytes(data))
    with pytest.raises(ModelError, match="was altered"):
        compressed(open_run(copied), tmp_path / "out", qat=True)
    assert not (tmp_path / "out").exists()


def test_nothing_to_do_is_said(source, tmp_path):
    """The options that do something are named."""
    with pytest.raises(ConfigError, match=r"--prune-channels.*--qat"):
        compressed(source, tmp_path / "out")


def test_the_steps_come_in_their_order(source):
    """Channels, zeros, clusters, rounding, whatever the order of the options."""
    recipe = override(source.recipe, compression__qat=True, compression__cluster=8, compression__prune=0.5)
    recipe = override(recipe, compression__prune_channels=0.5, compression__channel_steps=2)
    assert [s.name for s in plan(recipe, False)] == ["channels-1", "channels-2", "sparsity", "clustering", "qat"]
    assert tuned(recipe, "qat").optimizer == "adam"


@pytest.mark.parametrize(("key", "value"), [("prune", 1.0), ("prune", -0.1), ("cluster", 1), ("prune_channels", 1.5)])
def test_values_out_of_range_name_the_key(source, key, value):
    """As every value of a recipe."""
    with pytest.raises(ConfigError, match=key):
        override(source.recipe, **{f"compression__{key}": value})


def test_structure_is_kept_by_projection():
    """Zeros stay zero; weights that were equal become equal again, at their mean."""
    layers = keras().layers
    inputs = layers.Input((32,))
    model = keras().Model(inputs, layers.Dense(64, name="large")(inputs))
    kernel = np.random.RandomState(0).choice([0.0, 0.5, -0.25], (32, 64)).astype(np.float32)
    model.layers[1].set_weights([kernel, np.zeros(64, np.float32)])
    nearest = preserve.kept_structure(model)["large"]
    moved = kernel + np.random.RandomState(1).normal(0, 0.1, kernel.shape).astype(np.float32)
    found = nearest(moved).numpy()
    assert np.all(found[kernel == 0] == 0)
    assert found[kernel == 0.5].std() < 1e-6
    assert abs(found[kernel == 0.5][0] - moved[kernel == 0.5].mean()) < 1e-5


def test_every_fused_tensor_has_its_layer(source):
    """The converter's names lead to the layer whose output a tensor is: the activation, or the folded normalisation."""
    model = source.model()
    structure = read_model(quantize.to_float32(quantize.with_softmax(model)), "float32")
    kinds = {name: type(model.get_layer(name)).__name__ for name in qat.tensor_layers(qat.computed(structure), model).values()}
    assert set(kinds.values()) == {"ReLU", "BatchNormalization", "GlobalAveragePooling2D", "Dense"}
    assert len(kinds) == len(structure.operators) - 1  # all but the softmax


def test_onnx_int8_takes_the_ranges_that_training_found(whole, tmp_path):
    """Every trained range of an activation is 255 steps of some quantiser in the file."""
    run, _ = whole
    (made,) = export(run, [], onnx=OnnxRequest(("int8",)), out=tmp_path)
    tree = onnx.load(made.path)
    scales = [numpy_helper.to_array(t) for t in tree.graph.initializer if t.name.endswith("_scale")]
    steps = np.array([float(scale) for scale in scales if scale.ndim == 0])
    ranges = {name: pair for name, pair in run.ranges().items() if name != "logits"}
    assert made.variant == "onnx-int8-qat"
    assert len(ranges) >= 4
    for low, high in ranges.values():
        assert np.abs(steps / ((max(high, 0) - min(low, 0)) / 255) - 1).min() < 1e-5


def test_the_lineage_leaves_the_machine_without_its_folders(source, whole):
    """What the exported card says of the past names steps, and no path."""
    text = json.dumps(read_bundle(whole[1].path).card.provenance)
    assert "lineage" in text
    assert str(source.folder.parent) not in text
