"""Cross-layer equalisation: the same answers, one range for all channels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeclf.core.errors import ModelError
from edgeclf.core.tflite import read_model
from edgeclf.host.export import activations, equalise, quant_errors, quantize
from edgeclf.host.keras import keras

SIZE = 12


def pictures(count, seed=0):
    """Noise, uint8."""
    return np.random.RandomState(seed).randint(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def plain(x, layers):
    """Two convolutions with ReLU and pooling between, then a mean and a dense layer."""
    x = layers.Conv2D(8, 3, 2, "same", activation="relu", name="first")(x)
    x = layers.MaxPooling2D()(x)
    return layers.Conv2D(8, 3, 1, "same", activation="relu", name="second")(x)


def depthwise(x, layers):
    """Pointwise, depthwise, pointwise."""
    x = layers.Conv2D(8, 1, activation="relu", name="first")(x)
    x = layers.DepthwiseConv2D(3, 1, "same", activation="relu", name="depth")(x)
    return layers.Conv2D(12, 1, activation="relu", name="second")(x)


def residual(x, layers):
    """A sum: what is added keeps its size, the convolution inside the branch does not."""
    x = layers.Conv2D(8, 3, 1, "same", activation="relu", name="first")(x)
    y = layers.Conv2D(8, 3, 1, "same", activation="relu", name="inside")(x)
    y = layers.Conv2D(8, 3, 1, "same", name="branch")(y)
    return layers.ReLU()(layers.Add()([x, y]))


NETWORKS = {"plain": (plain, 2), "depthwise": (depthwise, 3), "residual": (residual, 1)}


def file_of(body, uneven=30.0, made_up_for=""):
    """A float32 file of the network, whose first layer has channels of very different sizes; as those that read it, inverted."""
    keras().utils.set_random_seed(5)
    layers = keras().layers
    inputs = layers.Input((SIZE, SIZE, 3))
    x = layers.GlobalAveragePooling2D()(body(inputs, layers))
    model = keras().Model(inputs, layers.Dense(4, name="logits")(x), name="net")
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            factors = np.geomspace(1 / uneven, uneven, kernel.shape[-1]) if layer.name in ("first", "inside") else 1.0
            if layer.name == made_up_for:
                kernel = kernel / np.geomspace(1 / uneven, uneven, kernel.shape[2])[:, None]
            bias = np.random.RandomState(sum(layer.name.encode())).uniform(0.05, 0.2, bias.shape) * factors
            layer.set_weights([kernel * factors, bias])
    return quantize.to_float32(quantize.with_softmax(model))


def logits(file, few):
    """Every picture's logits, float32."""
    tensors = quant_errors.Tensors(file)
    name = next(n for n in tensors.by_name if "logits" in n)
    rows = []
    for picture in few:
        tensors.run(picture)
        rows.append(tensors.real(name)[0].copy())
    return np.stack(rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_equalised_network_answers_alike(name):
    """Logits agree to float rounding, and as many pairs are found as the network has."""
    from ai_edge_litert import schema_py_generated as schema

    body, count = NETWORKS[name]
    file = file_of(body)
    structure = read_model(file, "file")
    assert len(equalise.pairs(structure, schema.ModelT.InitFromPackedBuf(file), schema)) == count
    even, few = equalise.equalised(file), pictures(6, seed=1)
    before = logits(file, few)
    assert np.abs(before).max() > 0.1
    np.testing.assert_allclose(logits(even, few), before, rtol=1e-4, atol=1e-4)
    assert even != file


def test_int8_loses_less_where_channels_were_uneven():
    """The int8 file of the equalised network is nearer to the float logits, on pictures that did not calibrate."""
    file, few = file_of(plain, made_up_for="second"), pictures(12, seed=2)
    wanted = logits(file, few)

    def error(float32):
        int8 = quantize.quantize(float32, "int8", activations.record_ranges(float32, [pictures(50)]))
        return float(np.sqrt(np.mean((logits(int8, few) - wanted) ** 2)))

    assert error(equalise.equalised(file)) < 0.7 * error(file)


def test_a_capped_activation_is_left_alone():
    """ReLU6 clips at a size, so nothing may be scaled before it: one line."""

    def capped(x, layers):
        x = layers.ReLU(6.0)(layers.Conv2D(8, 3, name="first")(x))
        return layers.ReLU(6.0)(layers.Conv2D(8, 3, name="second")(x))

    with pytest.raises(ModelError, match="none can be equalised"):
        equalise.equalised(file_of(capped))


sizes = arrays.arrays(np.float64, 6, elements=st.floats(0, 1e6, allow_subnormal=False))


@given(sizes, sizes)
def test_factors_make_both_sides_alike(before, after):
    """Divided and multiplied by them, both have the same largest weights, unless a channel is dead or the factor at its end."""
    factors = equalise.factors_of(before, after)
    assert np.all(factors > 0)
    assert np.all(factors[(before == 0) | (after == 0)] == 1)
    inner = (before > 0) & (after > 0) & (factors > 1 / equalise.LARGEST_FACTOR) & (factors < equalise.LARGEST_FACTOR)
    np.testing.assert_allclose((before / factors)[inner], (after * factors)[inner], rtol=1e-9)
