"""Channel pruning: what goes together, and that a narrower network computes what the wide one computes without it."""

import numpy as np
import pytest

from edgeclf.core.errors import ConfigError
from edgeclf.core.recipe import load_recipe
from edgeclf.host import architectures
from edgeclf.host.compress import channels, prune_channels
from edgeclf.host.keras import keras


def network(name, shape=(32, 32, 3), classes=10, **options):
    """A network with random weights and statistics."""
    recipe = load_recipe(name)
    builder = architectures.BUILDERS[recipe.model.architecture]
    model = builder(shape, classes, **{**recipe.model.options, **options})
    random = np.random.RandomState(0)

    def drawn(weights):
        """Vectors stay positive, for some are variances; kernels have both signs."""
        moved = np.abs(weights) + random.uniform(0.1, 0.4, weights.shape)
        return moved * random.choice([-1, 1], weights.shape) if weights.ndim > 1 else moved

    model.set_weights([drawn(weights) for weights in model.get_weights()])
    return model


def some_of(found, share=0.4):
    """Roots of about that share of every group that may be pruned."""
    random = np.random.RandomState(1)
    return {int(r) for roots in found.prunable().values() for r in random.permutation(roots)[: int(share * len(roots))]}


def deaf(model, found, gone):
    """The same network, its kernels deaf to the channels that are gone."""
    copied = keras().models.clone_model(model)
    copied.set_weights(model.get_weights())
    for layer in copied.layers:
        if type(layer).__name__ in channels.COMPUTE:
            unheard = np.array([found.root(int(n)) in gone for n in found.inputs[layer.name]])
            weights = layer.get_weights()
            weights[0][..., unheard, :] = 0
            layer.set_weights(weights)
    return copied


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8", {}), ("compact", {}), ("compact", {"attention": "se"}), ("cnn3", {}),
        ("cnn3-avg", {}),
    ],
)  # fmt: skip
def test_a_narrow_network_computes_what_the_wide_one_does_without_the_channels(name, options):
    """Through residual sums, attention, pooling, flattening and normalisation."""
    model = network(name, **options)
    found = channels.trace(model)
    gone = some_of(found)
    narrow = channels.without(model, found, gone)
    pictures = np.random.RandomState(2).uniform(-1, 1, (4, 32, 32, 3)).astype(np.float32)
    wanted, got = deaf(model, found, gone)(pictures).numpy(), narrow(pictures).numpy()
    assert narrow.count_params() < 0.8 * model.count_params()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["mobilenet-v1-0.25", "mobilenet-v2-0.35"])
def test_depthwise_channels_leave_with_what_they_read(name):
    """The backbones' own layers: depthwise convolutions and inverted bottlenecks."""
    model = network(name, (64, 64, 3))
    found = channels.trace(model)
    gone = some_of(found, 0.25)
    narrow = channels.without(model, found, gone)
    pictures = np.random.RandomState(2).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    wanted, got = deaf(model, found, gone)(pictures).numpy(), narrow(pictures).numpy()
    assert gone
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


def test_concatenated_channels_stay_in_their_places():
    """Channels that lie side by side leave one by one, and those that a sum ties to them with them."""
    layers = keras().layers
    inputs = layers.Input((8, 8, 3))
    one, other = (layers.Conv2D(width, 3, padding="same", activation="relu")(inputs) for width in (6, 10))
    joined = layers.Add()([layers.Concatenate()([one, other]), layers.Conv2D(16, 1)(inputs)])
    model = keras().Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(joined)))
    found = channels.trace(model)
    gone = set(map(int, found.roots(found.outputs[model.layers[1].name])[[0, 2]]))
    pictures = np.random.RandomState(2).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)
    narrow = channels.without(model, found, gone)
    assert sorted(layer.filters for layer in narrow.layers if hasattr(layer, "filters")) in ([4, 10, 14], [6, 8, 14])
    np.testing.assert_allclose(narrow(pictures), deaf(model, found, gone)(pictures), rtol=1e-4, atol=1e-5)


def test_layers_of_a_residual_stage_are_one_group():
    """In resnet8 the first convolution, the second of its block and the sum between share their channels."""
    groups = channels.trace(network("resnet8")).prunable()
    assert sorted(len(names) for names in groups) == [1, 1, 1, 2, 2, 2]


def test_costs_are_those_of_the_layers():
    """MACs of a network are the sum over its convolutions of taps, inputs, outputs and places."""
    layers = keras().layers
    inputs = layers.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, padding="same")(layers.Conv2D(4, 3, 2, "same", name="conv")(inputs))
    model = keras().Model(inputs, layers.Dense(5)(layers.Flatten()(x)))
    found = channels.trace(model)
    macs, weights = (channels.Ledger(model, found, what) for what in ("macs", "parameters"))
    assert macs.total == 9 * 3 * 4 * 16 + 9 * 4 * 16 + 64 * 5
    assert weights.total == 9 * 3 * 4 + 9 * 4 + 64 * 5
    root = found.root(int(found.outputs["conv"][0]))
    assert macs.saving([root]) == 9 * 3 * 16 + 9 * 16 + 16 * 5
    macs.remove([root])
    assert macs.total == 9 * 3 * 3 * 16 + 9 * 3 * 16 + 48 * 5


def test_channels_without_effect_are_the_least_important():
    """A channel that no later layer hears has an importance of zero."""
    model = network("cnn3")
    conv, heard = model.layers[1], model.layers[5]
    weights = heard.get_weights()
    weights[0][:, :, :8] = 0
    heard.set_weights(weights)
    found = channels.trace(model)
    random = np.random.RandomState(0)
    batch = random.uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32), random.randint(0, 10, 16)
    scores = prune_channels.importance(model, found, [batch])[found.roots(found.outputs[conv.name])]
    assert np.all(scores[:8] == 0)
    assert np.count_nonzero(scores[8:]) > 12


def test_the_target_is_reached_and_no_layer_vanishes():
    """Half of the MACs leave, and a little more; every layer keeps some channels, in whole tiles."""
    model = network("compact")
    random = np.random.RandomState(0)
    batch = random.uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32), random.randint(0, 10, 16)
    narrow, pruned = prune_channels.prune(model, 0.5, "macs", [batch], lambda m: 0.0)
    assert 0.5 <= pruned.share < 0.6
    assert all(layer.filters >= 8 and layer.filters % 8 == 0 for layer in narrow.layers if hasattr(layer, "kernel_size"))


def test_steps_remove_no_more_together_than_was_asked():
    """Each aims at its part of the whole, so what one takes too much the next takes less."""
    model = whole = network("resnet8")
    random = np.random.RandomState(0)
    batch = random.uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32), random.randint(0, 10, 16)
    shares = []
    for wanted in (0.2, 0.35, 0.5):
        model, pruned = prune_channels.prune(model, wanted, "macs", [batch], lambda m: 0.0, whole)
        shares.append(1 - pruned.after / 12.5e6)
        assert wanted <= shares[-1] + 1e-3
    assert shares[-1] < 0.62


def test_a_latency_is_reached_by_measuring():
    """The measured function decides how many channels leave, not a count."""
    model = network("compact")
    random = np.random.RandomState(0)
    batch = random.uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32), random.randint(0, 10, 16)
    narrow, pruned = prune_channels.prune(model, 0.3, "latency", [batch], lambda m: m.count_params() / 1000)
    assert narrow.count_params() <= 0.7 * model.count_params()
    assert pruned.after == narrow.count_params() / 1000


def test_what_cannot_be_reached_is_refused_with_what_can():
    """99% of the MACs cannot leave a small network."""
    batch = np.zeros((2, 32, 32, 3), np.float32), np.zeros(2, np.int64)
    with pytest.raises(ConfigError, match=r"at most \d+% of the macs can go"):
        prune_channels.prune(network("compact"), 0.99, "macs", [batch], lambda m: 0.0)


def test_a_layer_that_cannot_be_followed_is_named():
    """Grouped convolutions are refused by name, with what to use instead."""
    layers = keras().layers
    inputs = layers.Input((8, 8, 4))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, groups=2, name="grouped")(inputs))
    model = keras().Model(inputs, layers.Dense(2)(x))
    with pytest.raises(ConfigError, match=r"'grouped' convolves in 2 groups.*--cluster"):
        channels.trace(model)
