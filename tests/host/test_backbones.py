"""Backbones: shapes, sizes in parameters, what they make of pixels, training, and the files that they become."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgeclf.core.bundle import Bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError
from edgeclf.core.image import ImageSpec
from edgeclf.core.recipe import load_recipe, override
from edgeclf.core.tflite import read_model
from edgeclf.host import architectures
from edgeclf.host.architectures.backbones import CAFFE, SYMMETRIC, TORCH, WANTED
from edgeclf.host.augment.augment import normalise
from edgeclf.host.export import activations, export, quantize
from edgeclf.host.keras import keras
from edgeclf.host.train import objective, weight_files
from edgeclf.runtime.engine import open_engine
from edgeclf.runtime.selftest import self_test

SIDE = 32
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "mobilenet_2_5_224_tf_no_top.h5"

# Parameters in front of the logits: Keras' own count of each network without its top.
PARAMETERS = {
    "mobilenet-v1-0.25": (218_544, 256),
    "mobilenet-v2-0.35": (410_208, 1280),
    "mobilenet-v3-small": (939_120, 576),
    "mobilenet-v3-small-minimalistic": (441_000, 576),
    "efficientnet-lite0": (3_413_024, 1280),
}
LARGE = {
    "mobilenet-v1": (3_228_864, 1024),
    "mobilenet-v2": (2_257_984, 1280),
    "mobilenet-v3-large": (2_996_352, 960),
    "efficientnet-b0": (4_049_564, 1280),  # without the seven numbers of Keras' Normalization
    "efficientnet-v2-b0": (5_919_312, 1280),
    "resnet50": (23_587_712, 2048),
    "densenet121": (7_037_504, 1024),
    "nasnet-mobile": (4_269_716, 1056),
}
SLOW = pytest.mark.slow


def _build(name, classes=3, side=SIDE, **options):
    recipe = override(load_recipe(name), image__size=side)
    model = dataclasses.replace(recipe.model, options={**recipe.model.options, **options})
    return architectures.build(dataclasses.replace(recipe, model=model), classes)


def _lively(model, pictures):
    """Random statistics in every batch normalisation, scaled so that pictures still differ at the end of a deep network."""
    random = np.random.RandomState(0)
    for layer in model.layers:
        if isinstance(layer, keras().layers.BatchNormalization):
            layer.momentum = 0.0
            layer.beta.assign(random.normal(0, 0.3, layer.beta.shape))
    model(pictures, training=True)
    for layer in model.layers:
        # A channel that is all but constant in these pictures would blow rounding up, a hundred layers over.
        if isinstance(layer, keras().layers.BatchNormalization):
            variance = layer.moving_variance.numpy()
            layer.moving_variance.assign(np.maximum(variance, 0.4 * variance.mean()))
    return model


def _features(model, inputs):
    return keras().Model(model.input, model.get_layer("features").output)(inputs, training=False).numpy()


def _pictures(count, side=SIDE):
    return np.random.RandomState(1).randint(0, 256, (count, side, side, 3)).astype(np.float32)


@pytest.mark.parametrize("name", [*PARAMETERS, *(pytest.param(name, marks=SLOW) for name in LARGE)])
def test_a_backbone_builds_at_its_smallest_size_with_the_published_parameters(name):
    """Flat, from 32x32, with the layers `features` and `logits` and two or more logits."""
    parameters, channels = (PARAMETERS | LARGE)[name]
    model = _build(name)
    if WANTED[load_recipe(name).model.architecture] in (TORCH, CAFFE):
        parameters += 6  # of `centre`, which is never trained
    assert model.output_shape == (None, 3)
    assert model.count_params() == parameters + (channels + 1) * 3
    assert model.get_layer("features").output.shape == (None, channels)
    assert not any(isinstance(layer, keras().Model) for layer in model.layers)


def test_averages_of_batch_normalisation_forget_their_beginning_in_a_short_training():
    """A hundred steps leave nothing of it; with Keras' own 0.999 a MobileNetV3 gave one answer to every validation picture."""
    layers = _build("mobilenet-v3-small").layers
    momenta = [layer.momentum for layer in layers if hasattr(layer, "momentum")]
    assert momenta
    assert max(momenta) ** 100 < 1e-4


@pytest.mark.parametrize("name", ["mobilenet-v1", "resnet50", "efficientnet-lite0"])
def test_pictures_that_are_too_small_are_refused(name):
    """Below 32 pixels five halvings leave nothing."""
    with pytest.raises(ConfigError, match="at least 32x32, not 31x31"):
        _build(name, side=31)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilenet-v1", {"alpha": 0.3}, "alpha = 0.3: expected one of: 0.25, 0.5, 0.75, 1.0"),
        ("mobilenet-v3-small", {"minimalistic": True, "alpha": 0.75}, "alpha = 0.75: expected one of: 1.0"),
        ("mobilenet-v2", {"dropout": 1.5}, r"dropout = 1.5: must be in \[0, 1\)"),
    ],
)
def test_an_option_out_of_range_is_refused(name, options, message):
    """Only published widths, and only shares as dropout."""
    with pytest.raises(ConfigError, match=message):
        _build(name, **options)


KERAS = {
    "mobilenet-v1-0.25": ("MobileNet", {"alpha": 0.25}, "mobilenet"),
    "mobilenet-v2-0.35": ("MobileNetV2", {"alpha": 0.35}, "mobilenet_v2"),
    "mobilenet-v3-small-minimalistic": ("MobileNetV3Small", {"minimalistic": True}, "mobilenet_v3"),
    "efficientnet-b0": ("EfficientNetB0", {}, "efficientnet"),
    "resnet50": ("ResNet50", {}, "resnet50"),
    "mobilenet-v3-large": ("MobileNetV3Large", {}, "mobilenet_v3"),
    "efficientnet-v2-b0": ("EfficientNetV2B0", {}, "efficientnet_v2"),
    "densenet121": ("DenseNet121", {}, "densenet"),
    "nasnet-mobile": ("NASNetMobile", {}, "nasnet"),
}
QUICK = ("mobilenet-v1-0.25", "mobilenet-v3-small-minimalistic")


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=SLOW) for name in KERAS if name not in QUICK)])
def test_features_are_those_of_keras_with_its_own_preprocessing(name, tmp_path):
    """From house pixels, after loading a file of Keras'. Where padding differs by half a grey level, no weight sees it here."""
    builder, options, module = KERAS[name]
    keras().utils.set_random_seed(4)
    plain = getattr(keras().applications, builder)(input_shape=(SIDE, SIDE, 3), include_top=False, weights=None, **options)
    wanted, pictures = WANTED[load_recipe(name).model.architecture], _pictures(4)
    stem = next(layer for layer in plain.layers if isinstance(layer, keras().layers.Conv2D))
    if wanted is SYMMETRIC:
        stem.kernel.assign(stem.kernel.numpy() * np.array([1, 1, 0])[:, None, None, None] * np.array([1, 1, 0])[:, None, None])
    for layer in plain.layers:
        if isinstance(layer, keras().layers.Normalization) and layer.weights:
            layer.set_weights([np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]) ** 2, np.array(0)])
    inputs = getattr(keras().applications, module).preprocess_input(pictures.copy())
    _lively(plain, inputs).save_weights(tmp_path / "plain.h5")
    house = _build(name)
    weight_files.load(house, tmp_path / "plain.h5", wanted)
    expected = plain(inputs, training=False).numpy().mean(axis=(1, 2))
    assert np.abs(expected - expected[0]).max() > 0.05 * np.abs(expected).max()  # they tell pictures apart
    np.testing.assert_allclose(_features(house, normalise(pictures)), expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.skipif(not REAL.is_file(), reason="the shared ImageNet weights are not here")
def test_padding_moves_the_features_of_real_weights_by_less_than_a_thousandth():
    """Half a grey level at one row and one column is all that folding leaves."""
    pictures = np.random.RandomState(2).randint(0, 256, (2, 14, 14, 3)).repeat(16, 1).repeat(16, 2).astype(np.float32)
    plain = keras().applications.MobileNet((224, 224, 3), alpha=0.25, include_top=False, weights=str(REAL))
    house = _build("mobilenet-v1-0.25", side=224)
    weight_files.load(house, REAL, SYMMETRIC)
    expected = plain(pictures / 127.5 - 1, training=False).numpy().mean(axis=(1, 2))
    assert np.abs(_features(house, normalise(pictures)) - expected).max() < 1e-3 * np.abs(expected).max()


SMALL = ("mobilenet-v1-0.25", "mobilenet-v2-0.35", "mobilenet-v3-small-minimalistic", "efficientnet-lite0")


@pytest.mark.parametrize("name", [SMALL[0], *(pytest.param(name, marks=SLOW) for name in SMALL[1:])])
def test_a_step_of_training_changes_every_layer(name):
    """The loss is finite, and no weight that may change stays as it was."""
    recipe, model = load_recipe(name), _build(name)
    objective.compile_model(model, override(recipe, training__learning_rate=0.1, training__warmup_epochs=0).training, 10)
    before = [v.numpy() for v in model.trainable_variables]
    row = model.fit(normalise(_pictures(4)), np.array([0, 1, 2, 1]), batch_size=4, verbose=0).history
    assert np.isfinite(row["loss"]).all()
    still = [v.name for v, b in zip(model.trainable_variables, before, strict=True) if np.array_equal(v.numpy(), b)]
    assert len(still) < 0.05 * len(before), still  # ReLU6 may shut a channel or a layer for one batch


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_float32_and_int8_files_take_raw_pixels_and_pass_their_self_test(name):
    """The float file answers as the network does; the int8 file has uint8 input of scale 1/128 and zero point 128."""
    model = _lively(_build(name), normalise(_pictures(16)))
    pictures = _pictures(60).astype(np.uint8)
    float32 = quantize.to_float32(quantize.with_softmax(model))
    int8 = quantize.quantize(float32, "int8", activations.record_ranges(float32, [pictures]), "uint8")
    given = read_model(int8, "int8").input
    assert (given.type, list(given.scales), list(given.zero_points)) == ("uint8", [1 / 128], [128])
    expected = model(normalise(pictures[:8]), training=False).numpy()
    for variant, io, data in (("float32", "float32", float32), ("int8", "uint8", int8)):
        card = ModelCard(name, ("a", "b", "c"), ImageSpec(SIDE, SIDE), variant=variant, io=io, outputs="probabilities")
        engine = open_engine(Bundle(data, card, card.labels, variant), probed=True)
        answers = engine.infer(pictures[:8])
        assert np.ptp(answers, axis=0).min() > 0.1 * np.ptp(expected, axis=0).min(), variant  # no constant answer
        if variant == "float32":  # at 32 pixels and random weights, a deep network blows rounding up: int8 says little there
            np.testing.assert_allclose(answers, expected, atol=0.01 * np.ptp(expected))
        tested = self_test(engine, dataclasses.replace(card, self_test=export.self_test(engine, card)))
        assert tested is not None
        assert tested.passed, variant


def test_symmetric_padding_changes_where_strides_fall_and_nothing_else():
    """Weights of one fit the other, by name; no layer pads by itself for a stride, and every pad is alike on all sides."""
    usual, symmetric = (_build("mobilenet-v1-0.25", side=64, symmetric=wanted) for wanted in (False, True))
    assert [w.name for w in usual.weights] == [w.name for w in symmetric.weights]
    assert [w.shape for w in usual.weights] == [w.shape for w in symmetric.weights]
    for layer in symmetric.layers:
        config = layer.get_config()
        if type(layer).__name__ == "ZeroPadding2D":
            assert {side for pair in config["padding"] for side in pair} == {1}
        elif "strides" in config:
            assert config["padding"] == "valid" or max(config["strides"]) == 1
    assert usual.get_layer("features").input_shape == symmetric.get_layer("features").input_shape
