"""Architectures: shapes and parameters as published, a step of training, and an int8 file that answers as the network does."""

import dataclasses

import numpy as np
import pytest
from tiny_runs import replace_network

from edgeclf.core.bundle import Bundle, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, QualityError
from edgeclf.core.image import ImageSpec
from edgeclf.core.recipe import load_recipe, override
from edgeclf.core.tflite import read_model
from edgeclf.host import architectures
from edgeclf.host.architectures import attention
from edgeclf.host.architectures.alexnet import local_response
from edgeclf.host.export import activations, gates, quantize
from edgeclf.host.export.export import export
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.train import train as training
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.engine import open_engine
from edgeclf.runtime.selftest import self_test

# Small enough for a step and a conversion in a second, with every kind of layer of the real one.
SMALL = {
    "cnn2": {"architecture": "cnn2", "size": 16, "dense": 16},
    "cnn3": {"architecture": "cnn3", "size": 16, "dense": 16},
    "cnn3-avg": {"architecture": "cnn3", "size": 16, "dense": 16, "pooling": "avg"},
    "alexnet": {"architecture": "alexnet", "size": 67, "dense": 32},
    "alexnet-bn": {"architecture": "alexnet", "size": 67, "dense": 32, "normalisation": "batch"},
    "alexnet-small": {"architecture": "alexnet-small", "size": 32, "dense": 32},
    "compact-se": {"architecture": "compact", "size": 12, "widths": [8, 16], "attention": "se"},
    "compact-silu": {"architecture": "compact", "size": 12, "widths": [8, 16], "activation": "silu"},
    "compact-cbam": {"architecture": "compact", "size": 12, "widths": [8, 16], "attention": "cbam"},
}


def _small(name):
    options = dict(SMALL[name])
    build, side = architectures.BUILDERS[options.pop("architecture")], options.pop("size")
    keras().utils.set_random_seed(1)
    return build((side, side, 3), 2, **options)


def _pictures(model, count=60):
    return np.random.RandomState(0).randint(0, 256, (count, *model.input_shape[1:]), dtype=np.uint8)


def _normalised(pictures):
    return (pictures.astype(np.float32) - 128) / 128


@pytest.mark.parametrize(
    ("recipe", "classes", "parameters"),
    [("cnn2", 2, 813_217 + 2), ("cnn3", 10, 357_482), ("cnn3-avg", 10, 357_482), ("alexnet-small", 2, 1_840_578)],
)
def test_recipe_builds_the_network_it_names(recipe, classes, parameters):
    """Logits for each class, the vector before the last dense layer under its name, and as many parameters as stated."""
    model = architectures.build(load_recipe(recipe), classes)
    assert model.output_shape == (None, classes)
    assert len(model.get_layer("features").output_shape) == 2
    assert model.get_layer("logits").output is model.output
    assert model.count_params() == parameters


# Krizhevsky et al. (2012), section 3.5 and figure 2; height, width, maps and parameters, both towers together.
ALEXNET = {
    "conv1": ((55, 55, 96), 96 * (11 * 11 * 3 + 1)),
    "pool1": ((27, 27, 96), 0),
    "conv2": ((27, 27, 256), 256 * (5 * 5 * 48 + 1)),
    "pool2": ((13, 13, 256), 0),
    "conv3": ((13, 13, 384), 384 * (3 * 3 * 256 + 1)),
    "conv4": ((13, 13, 384), 384 * (3 * 3 * 192 + 1)),
    "conv5": ((13, 13, 256), 256 * (3 * 3 * 192 + 1)),
    "pool5": ((6, 6, 256), 0),
    "dense6": ((4096,), 4096 * (6 * 6 * 256 + 1)),
    "features": ((4096,), 4096 * (4096 + 1)),
    "logits": ((1000,), 1000 * (4096 + 1)),
}


@pytest.fixture(scope="module")
def published():
    return architectures.build(load_recipe("alexnet"), 1000)


def _of_both_towers(model, name):
    layers = [layer for layer in model.layers if layer.name in (name, f"{name}a", f"{name}b")]
    shapes = [layer.output_shape[1:] for layer in layers]
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes)), sum(layer.count_params() for layer in layers)


@pytest.mark.parametrize("layer", ALEXNET)
def test_alexnet_is_the_papers_layer_by_layer(published, layer):
    """Output shape and number of weights and biases."""
    assert _of_both_towers(published, layer) == ALEXNET[layer]


def test_alexnet_has_61_million_parameters_and_normalises_twice(published):
    """60,965,224, all of them in the layers above; local response normalisation after each of the first two convolutions."""
    assert published.input_shape == (None, 227, 227, 3)
    assert published.count_params() == sum(parameters for _, parameters in ALEXNET.values()) == 60_965_224
    normalised = [layer.output_shape[1:] for layer in published.layers if "response" in layer.name]
    assert sorted(normalised) == 2 * [(27, 27, 128)] + 2 * [(55, 55, 48)]


def test_alexnet_bn_has_batch_normalisation_in_those_places():
    """Four numbers a map more, and no local response normalisation."""
    with_bn, published = _small("alexnet-bn"), _small("alexnet")
    assert with_bn.count_params() == published.count_params() + 4 * (96 + 256)
    assert not any("response" in layer.name for layer in with_bn.layers)


def test_cnn3_is_the_tutorials_without_batch_normalisation():
    """Weights and biases of three convolutions and two dense layers, and nothing else."""
    model = architectures.BUILDERS["cnn3"]((32, 32, 3), 10, batch_norm=False)
    assert model.count_params() == 896 + 18_496 + 73_856 + 128 * (2048 + 1) + 10 * (128 + 1)


def test_a_tower_sees_only_its_own_maps_until_they_join():
    """In two groups: the fourth convolution of tower a does not depend on the third of tower b, the third does on both."""
    model = _small("alexnet")
    fourth = keras().Model(model.input, [model.get_layer(name).output for name in ("conv3a", "conv4a")])
    pictures = _normalised(_pictures(model, 2))

    def changed(layer):
        before = [x.numpy() for x in fourth(pictures)]
        model.get_layer(layer).bias.assign_add(np.ones(model.get_layer(layer).bias.shape, np.float32))
        return [not np.array_equal(x.numpy(), was) for x, was in zip(fourth(pictures), before, strict=True)]

    assert changed("conv3b") == [False, False]
    assert changed("conv2b") == [True, True]


def test_local_response_normalisation_is_the_papers_formula():
    """b = a / (2 + 1e-4 * sum of squares over the 5 maps around)^0.75, with fewer at the edges."""
    a = np.random.RandomState(0).normal(scale=100, size=(1, 1, 1, 8)).astype(np.float32)
    squares = [sum(a[..., j] ** 2 for j in range(max(0, i - 2), min(7, i + 2) + 1)) for i in range(8)]
    wanted = np.stack([a[..., i] / (2 + 1e-4 * squares[i]) ** 0.75 for i in range(8)], axis=-1)
    assert np.allclose(local_response(tensorflow().constant(a)).numpy(), wanted, rtol=1e-5)


def test_cnn2_is_a_sigmoid_with_binary_cross_entropy():
    """softmax([0, z]) = [1 - sigmoid(z), sigmoid(z)], and the losses are equal; nothing else is trained than that sigmoid's."""
    model, tf = _small("cnn2"), tensorflow()
    z = keras().Model(model.input, model.get_layer("logit").output)
    model.get_layer("logit").kernel.assign(model.get_layer("logit").kernel * 20)
    pictures, truth = _normalised(_pictures(model)), np.arange(60) % 2
    logits, single = model(pictures), z(pictures)[:, 0]
    assert np.abs(single).max() > 3
    assert np.allclose(tf.nn.softmax(logits)[:, 1], tf.sigmoid(single), atol=1e-6)
    binary = keras().losses.BinaryCrossentropy(from_logits=True)(truth, single)
    assert np.isclose(keras().losses.SparseCategoricalCrossentropy(from_logits=True)(truth, logits), binary, rtol=1e-5)
    assert not any(weight.name.startswith("logits") for weight in model.trainable_weights)


@pytest.mark.parametrize("classes", [1, 3])
def test_cnn2_wants_two_classes(classes):
    """One line that says so, and what to use."""
    with pytest.raises(ConfigError, match=f"2 classes apart, not {classes}; use cnn3"):
        architectures.build(load_recipe("cnn2"), classes)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("cnn3", {"pooling": "median"}, "pooling = 'median': expected one of: max, avg"),
        ("alexnet", {"normalisation": "group"}, "normalisation = 'group': expected one of: lrn, batch"),
        ("compact", {"attention": "eca"}, "attention = 'eca': expected one of: none, se, cbam"),
        ("compact", {"activation": "gelu"}, "activation = 'gelu': expected one of: relu, silu"),
    ],
)
def test_unknown_choice_lists_what_there_is(recipe, options, message):
    """In the words of the recipe."""
    found = load_recipe(recipe)
    with pytest.raises(ConfigError, match=message):
        architectures.build(dataclasses.replace(found, model=dataclasses.replace(found.model, options=options)), 2)


@pytest.mark.parametrize(("recipe", "least"), [("cnn2", 10), ("cnn3", 8), ("alexnet", 67), ("alexnet-small", 29)])
def test_pictures_too_small_for_the_pooling_are_refused(recipe, least):
    """The stated least size builds; one pixel less is one clear line."""
    found = load_recipe(recipe)
    small = dataclasses.replace(found, model=dataclasses.replace(found.model, options={"dense": 8}))
    assert architectures.build(override(small, image__size=least), 2).output_shape == (None, 2)
    with pytest.raises(ConfigError, match=f"at least {least}x{least}, not {least - 1}x{least - 1}"):
        architectures.build(override(small, image__size=least - 1), 2)


def _lively(model, seed=0):
    """Random kernels of unit gain in every layer, so that pictures make a difference to the logits."""
    random = np.random.RandomState(seed)
    for layer in model.layers:
        for kernel in [w for w in layer.trainable_weights if "kernel" in w.name]:
            kernel.assign(random.normal(scale=np.sqrt(2 / np.prod(kernel.shape[:-1])), size=kernel.shape))
    return model


def _coloured(model, count=50):
    """Noise around a colour of its own for each picture: uint8 (count, *input shape)."""
    random, shape = np.random.RandomState(0), model.input_shape[1:]
    colours = random.randint(0, 200, (count, 1, 1, shape[-1]))
    return (colours + random.randint(0, 56, (count, *shape))).astype(np.uint8)


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_has_a_gradient_and_a_step_lowers_the_loss(name):
    """On a CPU, where grouped convolutions would have none."""
    model, tf, truth = _lively(_small(name)), tensorflow(), np.arange(60) % 2
    pictures = _normalised(_coloured(model, 60))
    losses = []
    for _ in range(2):
        with tf.GradientTape() as tape:
            crossed = keras().losses.sparse_categorical_crossentropy(truth, model(pictures), from_logits=True)
            losses.append(tf.reduce_mean(crossed))
        gradients = tape.gradient(losses[-1], model.trainable_weights)
        assert all(g is not None and np.isfinite(g).all() for g in gradients)
        keras().optimizers.SGD(1e-4).apply_gradients(zip(gradients, model.trainable_weights, strict=True))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_int8_file_is_int8_throughout_and_answers_as_the_network_does(name):
    """No float operator but those without an int8 kernel; the margin between the classes follows the network's."""
    model = _lively(_small(name))
    pictures = _coloured(model)
    float32 = quantize.to_float32(quantize.with_softmax(model))
    file = quantize.quantize(float32, "int8", activations.record_ranges(float32, [pictures]))
    structure = read_model(file, name)
    gates.check_structure(structure, "int8", "uint8", 2)
    assert len(gates.float_islands(structure)) == (4 if name == "alexnet" else 0)
    card = ModelCard(name, ("no", "yes"), ImageSpec(*model.input_shape[1:3]), variant="int8", io="uint8")
    logits = open_engine(Bundle(file, card, card.labels, name), probed=True).infer(pictures)
    margins = [x[:, 1] - x[:, 0] for x in (logits, model(_normalised(pictures)).numpy())]
    assert np.corrcoef(margins)[0, 1] > 0.97
    if name == "cnn2":
        assert np.all(logits[:, 0] == 0)


def test_an_operator_without_int8_kernel_excuses_no_other():
    """ABS beside local response normalisation computes in floats too, and nobody has allowed it to."""
    layers, inputs = keras().layers, keras().layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 1)(tensorflow().abs(local_response(layers.Conv2D(4, 3)(inputs))))
    model = keras().Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    float32 = quantize.to_float32(quantize.with_softmax(model))
    file = quantize.quantize(float32, "int8", activations.record_ranges(float32, [_coloured(model)]))
    with pytest.raises(QualityError, match="operator ABS still computes in floats"):
        gates.check_structure(read_model(file, "file"), "int8", "uint8", 2)


def test_network_with_local_response_normalisation_is_kept_without_code(tmp_path):
    """Saved and loaded in safe mode, with nothing registered: equal logits."""
    model = _lively(_small("alexnet"))
    model.save(tmp_path / "model.keras", save_format="keras")
    loaded = keras().models.load_model(tmp_path / "model.keras", compile=False, safe_mode=True)
    pictures = _normalised(_coloured(model, 4))
    assert np.array_equal(loaded(pictures), model(pictures))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Red against blue noise."""
    random, y = np.random.RandomState(0), np.arange(120) % 2
    x = random.randint(0, 120, (120, 16, 16, 3)).astype(np.uint8)
    x[np.arange(120), :, :, 2 * y] += 100
    path = tmp_path_factory.mktemp("architectures") / "colours.npz"
    np.savez(path, x=x, y=y, labels=np.array(["red", "blue"]))
    return path


def _run(name, colours, folder, **changes):
    """The recipe of that name, trained on red and blue for a moment."""
    options = {key: value for key, value in SMALL[name].items() if key not in ("architecture", "size")}
    recipe = load_recipe(name)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={**recipe.model.options, **options}))
    recipe = override(
        recipe, image__size=SMALL[name]["size"], training__batch_size=32, export__calibration_pictures=50, **changes
    )
    return training.train(training.start(recipe, str(colours), folder / name))


def test_cnn2_trains_and_passes_the_gates_of_export(colours, tmp_path):
    """Two outputs in label order, no worse in int8, and a self-test that holds."""
    (exported,) = export(_run("cnn2", colours, tmp_path, training__epochs=3), ["int8"])
    assert exported.top1 > 0.9
    assert exported.notes == ()
    bundle = read_bundle(exported.path)
    assert self_test(open_engine(bundle), bundle.card).passed
    assert Classifier.load(exported.path).classify(np.full((9, 9, 3), (255, 60, 60), np.uint8))[0].label == "blue"  # it is BGR


def test_alexnet_says_at_export_that_a_part_of_it_stays_in_floats(colours, tmp_path, cli_here):
    """From a run to the terminal; the self-test holds for such a file too."""
    run = _run("alexnet", colours, tmp_path, training__epochs=1)
    replace_network(run, _lively(run.model()))  # as if it had been trained for longer
    answer = cli_here("export", run.folder, "--int8")
    assert answer.code == 0, answer.text
    assert "note: int8: LOCAL_RESPONSE_NORMALIZATION has no int8 kernel" in answer.stderr
    bundle = read_bundle(run.exported("int8"))
    assert self_test(open_engine(bundle), bundle.card).passed


def test_attention_halves_a_branch_where_it_knows_nothing():
    """Weights of nought are a sigmoid of 1/2: once for squeeze-and-excite, twice for CBAM, never without."""
    x = np.random.RandomState(0).normal(size=(2, 6, 6, 16)).astype(np.float32)
    for kind, share in (("none", 1), ("se", 1 / 2), ("cbam", 1 / 4)):
        model = _gate(lambda given, kind=kind: attention.attend(given, kind))
        model.set_weights([np.zeros_like(w) for w in model.get_weights()])
        assert np.allclose(model(x), x * share)


def _gate(block, shape=(6, 6, 16)):
    inputs = keras().layers.Input(shape)
    return keras().Model(inputs, block(inputs))


def test_squeeze_and_excite_weighs_each_channel_by_the_means_of_all():
    """sigmoid(W2 relu(W1 mean + b1) + b2), times the channel (Hu et al. 2018)."""
    x = np.random.RandomState(0).normal(size=(2, 6, 6, 16)).astype(np.float32)
    model = _gate(lambda given: attention.attend(given, "se"))
    model.set_weights([np.random.RandomState(i).normal(size=w.shape) for i, w in enumerate(model.get_weights())])
    w1, b1, w2, b2 = (np.squeeze(w) for w in model.get_weights())
    hidden = np.maximum(x.mean(axis=(1, 2)) @ w1 + b1, 0)
    weights = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
    assert np.allclose(model(x), x * weights[:, None, None, :], atol=1e-5)


@pytest.mark.parametrize(("kernel", "statistic"), [((1, 0), np.mean), ((0, 1), np.max)])
def test_cbam_sees_the_mean_and_the_largest_channel_of_each_place(kernel, statistic):
    """A 7x7 kernel that is 1 in its middle, for one of the two maps."""
    x = np.random.RandomState(0).normal(size=(2, 5, 6, 16)).astype(np.float32)
    model = _gate(attention.spatial_gate, (5, 6, 16))
    weights = np.zeros((7, 7, 2, 1), np.float32)
    weights[3, 3, :, 0] = kernel
    model.set_weights([weights, np.zeros(1)])
    assert np.allclose(model(x), x / (1 + np.exp(-statistic(x, axis=-1, keepdims=True))), atol=1e-5)


def test_cbam_weighs_channels_by_their_mean_and_their_largest_value():
    """The mean of one bottleneck's two answers (Woo et al. 2018 add them: a factor that the last layer learns)."""
    x = np.random.RandomState(0).normal(size=(2, 5, 6, 16)).astype(np.float32)
    model = _gate(attention.channel_gate, (5, 6, 16))
    model.set_weights([np.random.RandomState(i).normal(size=w.shape) for i, w in enumerate(model.get_weights())])
    w1, b1, w2, b2 = (np.squeeze(w) for w in model.get_weights())
    answers = [np.maximum(seen @ w1 + b1, 0) @ w2 + b2 for seen in (x.mean(axis=(1, 2)), x.max(axis=(1, 2)))]
    assert np.allclose(model(x), x / (1 + np.exp(-np.mean(answers, axis=0)))[:, None, None, :], atol=1e-5)


def test_attention_adds_its_own_weights_to_compact_and_changes_no_other():
    """Without it the network is as ever; with it each of three branches has a block more."""
    build = architectures.BUILDERS["compact"]
    plain, same, se, cbam = (
        build((32, 32, 3), 10, (16, 32, 64, 80), **o) for o in ({}, *({"attention": k} for k in attention.KINDS))
    )
    bottleneck = sum(2 * c * max(4, c // 8) + max(4, c // 8) + c for c in (32, 64, 80))
    assert [w.shape for w in same.weights] == [w.shape for w in plain.weights]
    assert se.count_params() == plain.count_params() + bottleneck
    assert cbam.count_params() == plain.count_params() + bottleneck + 3 * (7 * 7 * 2 + 1)
