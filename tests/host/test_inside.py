"""Counting in a file: multiply-accumulates, weights and zeros."""

import numpy as np
import pytest

from edgeclf.host.export import activations, quantize
from edgeclf.host.inside import look_inside
from edgeclf.host.keras import keras


@pytest.fixture(scope="module")
def float32():
    """A convolution of 8x8x3 to 4x4x4, a depthwise one, and a dense layer of which half the weights are zero."""
    layers = keras().layers
    inputs = layers.Input((8, 8, 3))
    x = layers.DepthwiseConv2D(3, padding="same")(layers.Conv2D(4, 3, 2, "same")(inputs))
    model = keras().Model(inputs, layers.Dense(6, name="half")(layers.Flatten()(x)))
    kernel, bias = model.get_layer("half").get_weights()
    kernel[::2] = 0
    model.get_layer("half").set_weights([kernel, bias])
    return quantize.to_float32(quantize.with_softmax(model))


@pytest.mark.parametrize("variant", ["float32", "float16", "weight-only-w8", "int8"])
def test_counts_are_those_of_the_layers_in_every_variant(float32, variant):
    """9 taps, 3 inputs, 4 outputs at 16 places; 9 taps of 4 channels at 16 places; 64 inputs and 6 outputs, half of them zero."""
    pictures = np.random.RandomState(0).randint(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    ranges = activations.record_ranges(float32, [pictures])
    found = look_inside(quantize.quantize(float32, variant, ranges))
    assert found.macs == 9 * 3 * 4 * 16 + 9 * 4 * 16 + 64 * 6
    assert found.weights == 9 * 3 * 4 + 9 * 4 + 64 * 6
    assert found.zeros == pytest.approx(32 * 6 / found.weights, abs=0.02)
