"""Sparse encoding: pruned float files become smaller as they are, and answer with the same bits."""

import numpy as np
import pytest

from edgeclf.core.errors import QualityError
from edgeclf.core.tflite import read_model, scheme
from edgeclf.host.export import quantize
from edgeclf.host.inside import look_inside
from edgeclf.host.keras import keras
from edgeclf.runtime.engine import tflite_runtime

SIDE, KEPT = 16, 0.2


@pytest.fixture(scope="module")
def network():
    """A stem, a depthwise, a 1x1 and a 3x3 convolution, and a wide dense layer, whose rows need places beyond one byte."""
    layers = keras().layers
    keras().utils.set_random_seed(3)
    inputs = layers.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(16, 3, 2, "same", activation="relu")(inputs)
    x = layers.Conv2D(32, 1, activation="relu", name="pointwise")(layers.DepthwiseConv2D(3, padding="same")(x))
    x = layers.Conv2D(32, 3, 2, "same", activation="relu", name="square")(x)
    return keras().Model(inputs, layers.Dense(4, name="wide")(layers.Flatten()(x)))


@pytest.fixture(scope="module")
def dense(network):
    """The float32 file of the network before it is pruned."""
    return quantize.to_float32(quantize.with_softmax(network))


@pytest.fixture(scope="module")
def pruned(network, dense):
    """A float32 file that keeps a fifth of the weights of three kernels; `dense` was made before."""
    random = np.random.RandomState(0)
    for name in ("pointwise", "square", "wide"):
        kernel, *rest = network.get_layer(name).get_weights()
        network.get_layer(name).set_weights([kernel * (random.rand(*kernel.shape) < KEPT), *rest])
    return quantize.to_float32(quantize.with_softmax(network))


def answers(model: bytes) -> np.ndarray:
    interpreter = tflite_runtime().interpreter(model_content=model)
    interpreter.allocate_tensors()
    given, answer = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    rows = []
    for picture in np.random.RandomState(1).randn(5, 1, SIDE, SIDE, 3).astype(np.float32):
        interpreter.set_tensor(given, picture)
        interpreter.invoke()
        rows.append(interpreter.get_tensor(answer)[0])
    return np.array(rows)


@pytest.mark.parametrize("variant", quantize.SPARSE)
def test_a_sparse_file_answers_as_the_dense_one_and_is_smaller(pruned, variant):
    """To the bit where kernels are dense after all, to rounding on ARM; with four fifths of zeros it is less than half."""
    before, after = quantize.quantize(pruned, variant.removesuffix("-sparse")), quantize.quantize(pruned, variant)
    assert np.allclose(answers(before), answers(after), atol=1e-6)
    assert len(after) < len(before) / 2


@pytest.mark.parametrize("variant", quantize.SPARSE)
def test_its_name_is_found_in_its_tensors(pruned, variant):
    """DENSIFY says so, and only the three kernels that are mostly zeros have one."""
    found = read_model(quantize.quantize(pruned, variant), variant)
    assert scheme(found) == variant
    assert sum(op.name == "DENSIFY" for op in found.operators) == 3


@pytest.mark.parametrize("variant", quantize.SPARSE)
def test_what_is_counted_inside_is_the_same(pruned, variant):
    """Zeros that are not stored are zeros nevertheless."""
    assert look_inside(quantize.quantize(pruned, variant)) == look_inside(
        quantize.quantize(pruned, variant.removesuffix("-sparse"))
    )


def test_same_file_gives_the_same_bytes(pruned):
    """Or two exports could not be compared."""
    assert quantize.quantize(pruned, "float32-sparse") == quantize.quantize(pruned, "float32-sparse")


def test_a_network_without_zeros_is_refused_with_their_number(dense):
    """The line says how many there are, and how to get them."""
    with pytest.raises(QualityError, match=r"float32-sparse: 0 of [\d,]+ weights are zero \(0.0%\).* --prune 0.8"):
        quantize.quantize(dense, "float32-sparse")
