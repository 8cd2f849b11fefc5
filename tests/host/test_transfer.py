"""Transfer learning: where weights come from, files that do not fit, frozen features, the head, and what thaws."""

import dataclasses
import email.message
import io
import urllib.error
import urllib.request
from pathlib import Path

import h5py
import numpy as np
import pytest

from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.recipe import load_recipe, override
from edgeclf.host import architectures
from edgeclf.host.architectures.backbones import SYMMETRIC
from edgeclf.host.augment.augment import normalise
from edgeclf.host.data.dataset import make_dataset, open_catalogue
from edgeclf.host.keras import keras
from edgeclf.host.train import train as stage
from edgeclf.host.train import transfer, weight_files, weights
from edgeclf.host.train.fitting import Options

SIDE, NAME = 32, "mobilenet-v1-0.25"


@pytest.fixture(scope="module")
def recipe():
    """MobileNet V1, a quarter wide, at 32 pixels, with a short first stage."""
    return override(load_recipe(NAME), image__size=SIDE, training__batch_size=16, transfer__frozen_epochs=15)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, recipe):
    """120 pictures of noise, red or blue."""
    random = np.random.RandomState(0)
    x = random.randint(70, 80, (120, SIDE, SIDE, 3)).astype(np.uint8)
    y = np.arange(120) % 2
    x[y == 0, :, :, 0] += 120
    x[y == 1, :, :, 2] += 120
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, x=x, y=y, labels=np.array(["red", "blue"]))
    return make_dataset(open_catalogue(str(path)), recipe, {"seed": 1, "val": 0.2, "val_pictures": 2000, "test": 0.2})


@pytest.fixture(scope="module")
def plain(dataset):
    """Keras' own network with lively statistics, as if it had been trained on symmetric pixels."""
    keras().utils.set_random_seed(5)
    model = keras().applications.MobileNet((SIDE, SIDE, 3), alpha=0.25, include_top=False, weights=None)
    for layer in model.layers:
        if isinstance(layer, keras().layers.BatchNormalization):
            layer.momentum = 0.0
    model(dataset.pictures("train") / np.float32(127.5) - 1, training=True)
    return model


@pytest.fixture(scope="module")
def file(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "plain.h5"
    plain.save_weights(path)
    return path


def _build(recipe):
    return architectures.build(recipe, 2)


def _values(weights):
    return np.concatenate([v.ravel() for v in weights])


def _backbone(model):
    """All values but those of the head, which loading leaves alone."""
    return _values(model.get_weights()[:-2])


@pytest.fixture(scope="module")
def loaded(recipe, file):
    """The house's network with the weights of `file`."""
    model = _build(recipe)
    weight_files.load(model, file, SYMMETRIC)
    return model


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".full.h5"])
def test_every_kind_of_keras_file_gives_the_same_network(recipe, plain, loaded, suffix, tmp_path):
    """Weights alone in either layout, and whole models in either format."""
    path = tmp_path / f"other{suffix}"
    (plain.save_weights if suffix == ".weights.h5" else plain.save)(path)
    model = _build(recipe)
    weight_files.load(model, path, SYMMETRIC)
    assert np.array_equal(_backbone(model), _backbone(loaded))


def test_the_model_of_a_run_is_taken_as_it_is(recipe, loaded, tmp_path):
    """Its pixels are the house's already, so nothing is folded twice."""
    loaded.save(tmp_path / "model.keras")
    model = _build(recipe)
    weight_files.load(model, tmp_path / "model.keras", None)
    assert np.array_equal(_backbone(model), _backbone(loaded))


def test_weights_of_another_width_are_refused_with_both_shapes(recipe, file):
    """The message names the layer, what the file has, and what the network needs."""
    wide = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"alpha": 0.5}))
    with pytest.raises(ModelError, match=r"layer 'conv1' has weights of \(3, 3, 3, 8\), this network needs \(3, 3, 3, 16\)"):
        weight_files.load(_build(wide), file, SYMMETRIC)


def test_weights_of_another_network_are_refused(recipe, tmp_path):
    """Fewer layers than needed: both counts, and one that is missing."""
    layers = keras().layers
    other = keras().Sequential([layers.Input((SIDE, SIDE, 3)), layers.Conv2D(8, 3, use_bias=False, name="conv1")])
    other.save_weights(tmp_path / "other.h5")
    with pytest.raises(ModelError, match="has 1 layers with weights where this network has 54, for instance 'conv1_bn'"):
        weight_files.load(_build(recipe), tmp_path / "other.h5", SYMMETRIC)


def _linked(path, file):
    with h5py.File(path, "w") as made:
        made.attrs["layer_names"] = [b"conv1"]
        made["conv1"] = h5py.ExternalLink(str(file), "/conv1")


def _cut(path, file):
    path.write_bytes(file.read_bytes()[:20_000])


def _not_a_number(path, file):
    path.write_bytes(file.read_bytes())
    with h5py.File(path, "r+") as made:
        made["conv1/conv1/kernel:0"][0, 0, 0, 0] = np.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_linked, "is missing, or a link"),
        (_cut, "cannot be read as weights"),
        (_not_a_number, "layer 'conv1' holds values that are no numbers"),
        (lambda path, file: path.write_text("no weights at all"), "neither an HDF5 nor a .keras file"),
        (lambda path, file: path.write_bytes(b"PK\x03\x04" + bytes(50)), "cannot be read as weights"),
    ],
)
def test_a_hostile_or_damaged_file_gives_one_line(recipe, file, tmp_path, spoil, message):
    """No link is followed, and nothing but ModelError comes out."""
    spoil(tmp_path / "spoilt.h5", file)
    with pytest.raises(ModelError, match=message) as raised:
        weight_files.load(_build(recipe), tmp_path / "spoilt.h5", SYMMETRIC)
    assert len(str(raised.value).splitlines()) == 1


def test_no_weights_are_looked_for_where_none_are_wanted(recipe):
    """A recipe that starts from nothing."""
    assert weights.find(override(recipe, transfer__weights="none")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image__size": 100}, "image.size = 100: ImageNet weights for 'mobilenet-v1' are published for 128, 160, 192, 224"),
        ({"image__size": 128, "image__colour": "bgr"}, "image.colour = 'bgr': trained weights want rgb"),
    ],
)
def test_imagenet_weights_that_cannot_be_used_are_refused_before_any_work(recipe, changes, message):
    """A size without a file, an order of colours that they do not know."""
    with pytest.raises(ConfigError, match=message):
        weights.find(override(recipe, **changes))


def test_a_network_without_imagenet_weights_says_so():
    """EfficientNet-Lite0 has none in Keras."""
    with pytest.raises(ConfigError, match="there are no ImageNet weights for it; give a file with --weights"):
        weights.find(override(load_recipe("efficientnet-lite0"), transfer__weights="imagenet"))


@pytest.mark.parametrize("name", [n for n in weights.FILES if n != "nasnet-mobile"])
def test_keras_names_an_address_for_every_backbone(name):
    """The tables agree with the installed Keras: an https address, a no-top .h5, and a hash wherever Keras has one."""
    recipe = override(load_recipe("mobilenet-v1"), image__size=224, model__architecture=name, model__options={})
    found = weights.imagenet(recipe)
    assert found.url.startswith("https://")
    assert found.url.endswith(f"/{found.name}")
    assert found.name.endswith(("no_top.h5", "notop.h5", "no_top_v2.h5"))
    assert len(found.digest) in ((0,) if name in ("mobilenet-v1", "mobilenet-v2") else (32, 64))


class _Answer(io.BytesIO):
    """What a web server would send."""

    def __init__(self, data, promised):
        super().__init__(data)
        self.headers = email.message.Message()
        self.headers["Content-Length"] = str(promised)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    return tmp_path / "models"


def test_a_download_is_announced_and_kept_in_keras_cache(recipe, file, own_cache, monkeypatch):
    """Name, size and place are said; the second time nothing is fetched."""
    data, said = file.read_bytes(), []
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: _Answer(data, len(data)))
    found = weights.find(override(recipe, image__size=128), say=said.append)
    assert found.path == own_cache / "mobilenet_2_5_128_tf_no_top.h5"
    assert found.path.read_bytes() == data
    assert said[0].startswith(f"downloading mobilenet_2_5_128_tf_no_top.h5 ({len(data) / 1e6:.1f} MB) from")
    monkeypatch.delattr(urllib.request, "urlopen")
    assert weights.find(override(recipe, image__size=128), say=said.append) == found
    assert len(said) == 1


def _unreachable(url, timeout):
    raise urllib.error.URLError("no route to host")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (_unreachable, r"cannot be downloaded from .* \(no route to host\); put the file into .* give it with --weights"),
        (lambda url, timeout: _Answer(b"half", 8), "only 4 of 8 bytes came"),
    ],
)
def test_a_download_that_fails_names_the_file_and_leaves_nothing(recipe, own_cache, monkeypatch, answer, message):
    """One line that says how to go on without a network."""
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(ModelError, match=f"^mobilenet_2_5_128_tf_no_top.h5: {message}"):
        weights.find(override(recipe, image__size=128), say=lambda line: None)
    assert not own_cache.exists() or not list(own_cache.iterdir())


def test_a_cached_file_that_is_not_the_published_one_is_refused(own_cache):
    """Where Keras publishes a hash, it is checked."""
    own_cache.mkdir(parents=True)
    (own_cache / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5").write_bytes(b"something else")
    with pytest.raises(ModelError, match="is not the file that Keras publishes under this name"):
        weights.find(load_recipe("resnet50"))


def test_features_are_those_of_the_frozen_network_and_computed_once(recipe, dataset, loaded, monkeypatch):
    """Training pictures, the same mirrored, validation pictures; a second call reads the cache, a damaged one is made again."""
    found = transfer.frozen_features(loaded, recipe, dataset, "digest")
    train, val = dataset.pictures("train"), dataset.pictures("val")
    frozen = keras().Model(loaded.input, loaded.get_layer("features").output)
    expected = frozen(normalise(np.concatenate([train, train[:, :, ::-1], val])), training=False).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())  # other batches, other order of sums
    assert np.abs(found[: len(train)] - found[len(train) : 2 * len(train)]).max() > 0.02 * np.abs(expected).max()
    path = Path(found.filename)
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: len(whole) // 2])
    np.testing.assert_array_equal(transfer.frozen_features(loaded, recipe, dataset, "digest"), found)
    monkeypatch.setattr(transfer, "answering", None)
    np.testing.assert_array_equal(transfer.frozen_features(loaded, recipe, dataset, "digest"), found)


def test_the_first_stage_trains_the_head_alone_and_the_same_every_time(recipe, dataset, file, loaded, tmp_path):
    """Loss falls, the network behind the head is the file's, rows are kept; what a kill interrupts can be done again."""
    models, rows = [_build(recipe), _build(recipe)], []
    for model in models:
        found = weights.find(recipe, file)
        rows.append(transfer.prepare(model, recipe, dataset, tmp_path, found))
    assert rows[0][-1]["loss"] < 0.8 * rows[0][0]["loss"]
    assert np.array_equal(_values(models[0].get_weights()), _values(models[1].get_weights()))
    assert np.array_equal(_backbone(models[0]), _backbone(loaded))
    answers = models[0](normalise(dataset.pictures("val")), training=False).numpy().argmax(axis=1)
    assert (answers == dataset.classes_of("val")).mean() == pytest.approx(rows[0][-1]["val_accuracy"])
    lines = (tmp_path / "frozen.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate,seconds"
    assert len(lines) == 1 + recipe.transfer.frozen_epochs


def test_what_thaws_is_an_option_and_batch_normalisation_never_does(recipe):
    """All, nothing but the head, or everything from a layer on."""
    model, normalisations = _build(recipe), keras().layers.BatchNormalization
    for thaw, layers in (("all", 27 + 1), ("none", 1), ("conv_pw_12", 3 + 1)):
        transfer.freeze(model, override(recipe, transfer__thaw=thaw))
        trainable = [layer for layer in model.layers if layer.trainable_weights]
        assert len(trainable) == layers, thaw
        assert not any(isinstance(layer, normalisations) for layer in trainable)


def test_an_unknown_layer_to_thaw_is_refused_with_the_nearest(recipe):
    """A slip of the finger is told before any feature is computed."""
    with pytest.raises(ConfigError, match=r"thaw = 'conv_pw12': no such layer; did you mean 'conv_pw_12'\?"):
        transfer.freeze(_build(recipe), override(recipe, transfer__thaw="conv_pw12"))


def test_a_recipe_that_would_train_nothing_is_refused(recipe):
    """No first stage, and nothing that thaws."""
    with pytest.raises(ConfigError, match="nothing would be trained"):
        transfer.freeze(_build(recipe), override(recipe, transfer__thaw="none", transfer__frozen_epochs=0))


def test_both_stages_in_a_run_resume_to_the_same_weights(recipe, dataset, file, tmp_path):
    """Dropout included: interrupted in the second stage, it ends where the undisturbed run ends; frozen.csv holds the first."""
    short = override(recipe, training__epochs=2, transfer__frozen_epochs=2)
    source, options = str(dataset.catalogue.source), Options(weights=str(file))

    def stop(row, epochs):
        raise KeyboardInterrupt

    whole = stage.train(stage.start(short, source, tmp_path / "whole", options=options))
    with pytest.raises(KeyboardInterrupt):
        stage.train(stage.start(short, source, tmp_path / "run", options=options), stop)
    resumed = stage.train(stage.resume(tmp_path / "run"))
    for ours, theirs in zip(whole.model().get_weights(), resumed.model().get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len((tmp_path / "run" / "frozen.csv").read_text().splitlines()) == 3
    assert whole.card.provenance["weights"]["file"] == file.name


def test_weights_that_changed_since_the_start_are_refused(recipe, dataset, file, tmp_path):
    """Before the first checkpoint a resumed training reads them again."""
    copy = tmp_path / "copy.h5"
    copy.write_bytes(file.read_bytes())
    stage.start(recipe, str(dataset.catalogue.source), tmp_path / "run", options=Options(weights=str(copy)))
    with h5py.File(copy, "a") as opened:
        opened.attrs["touched"] = 1
    with pytest.raises(ModelError, match="has changed since"):
        stage.train(stage.resume(tmp_path / "run"))
