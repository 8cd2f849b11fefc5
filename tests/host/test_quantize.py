"""Conversion and quantisation: schemes, exact pixel input, faces, ranges, and bytes that microcontrollers can read."""

import flatbuffers
import numpy as np
import pytest

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, DataError, ModelError
from edgeclf.core.image import ImageSpec
from edgeclf.core.tflite import logits_view, read_model, scheme
from edgeclf.host.export import activations, quantize
from edgeclf.host.export.metadata import with_metadata
from edgeclf.host.keras import keras, tensorflow

SIZE = 12


def _pictures(count, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def _outputs(model, pictures):
    """The file's own output for each picture, as it is stored."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    given, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.resize_tensor_input(given["index"], pictures.shape)
    interpreter.allocate_tensors()
    normalised = (pictures.astype(np.float32) - 128) / 128
    fed = {np.uint8: pictures, np.int8: (pictures.astype(np.int16) - 128).astype(np.int8), np.float32: normalised}
    interpreter.set_tensor(given["index"], fed[given["dtype"]])
    interpreter.invoke()
    return interpreter.get_tensor(answer["index"])


@pytest.fixture(scope="module")
def network():
    """A small residual network with random weights, ending in a softmax."""
    keras().utils.set_random_seed(3)
    layers = keras().layers
    inputs = layers.Input((SIZE, SIZE, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, 2, "same")(inputs)))
    y = layers.Conv2D(16, 3, 1, "same", activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(layers.Add()([x, y]))
    return quantize.with_softmax(keras().Model(inputs, layers.Dense(4)(x)))


@pytest.fixture(scope="module")
def float32(network):
    return quantize.to_float32(network)


@pytest.fixture(scope="module")
def ranges(float32):
    return activations.record_ranges(float32, [_pictures(60)])


def test_float32_file_computes_what_the_keras_model_does(network, float32):
    """Probabilities agree to float precision, for any batch size."""
    pictures = _pictures(7, seed=1)
    wanted = network((pictures.astype(np.float32) - 128) / 128).numpy()
    assert np.allclose(_outputs(float32, pictures), wanted, atol=1e-6)


@pytest.mark.parametrize("variant", quantize.VARIANTS)
def test_tensors_are_what_the_variant_is_called(float32, ranges, variant):
    """The name that core.tflite derives from the tensors is the one that was asked for."""
    assert scheme(read_model(quantize.quantize(float32, variant, ranges), variant)) == variant


@pytest.mark.parametrize(("io", "zero_point"), [("uint8", 128), ("int8", 0)])
def test_quantised_input_is_the_pixel_itself(float32, io, zero_point):
    """Scale 1/128 and zero point 128 (uint8) or 0 (int8), exactly, even when calibration saw nothing but grey."""
    ranges = activations.record_ranges(float32, [np.full((50, SIZE, SIZE, 3), 128, np.uint8)])
    given = read_model(quantize.quantize(float32, "int8", ranges, io), io).input
    assert (given.type, given.scales, given.zero_points) == (io, (1 / 128,), (zero_point,))


def test_equal_zero_points_are_written_once_and_read_as_often_as_before(float32, ranges):
    """Those of every channel of every layer are the same zeros; a plain writer repeats them."""
    from ai_edge_litert import schema_py_generated as schema

    def zero_points(tree):
        found = [tensor.quantization.zeroPoint for tensor in tree.subgraphs[0].tensors if tensor.quantization]
        return [[] if points is None else list(points) for points in found]

    model = quantize.quantize(float32, "int8", ranges)
    tree = schema.ModelT.InitFromPackedBuf(model)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(tree.Pack(builder), b"TFL3")
    plain = bytes(builder.Output())
    assert zero_points(tree) == zero_points(schema.ModelT.InitFromPackedBuf(plain))
    longest = max(map(len, zero_points(tree)))
    assert len(model) < len(plain) - 8 * longest


def test_faces_of_one_body_answer_with_the_same_bits(float32, ranges):
    """uint8, int8 and float32 input and output change nothing inside: the logits are equal integers."""
    pictures = _pictures(20, seed=2)
    logits = [
        _outputs(logits_view(quantize.quantize(float32, "int8", ranges, io)), pictures) for io in ("uint8", "int8", "float32")
    ]
    assert logits[0].dtype == np.int8
    assert np.array_equal(logits[0], logits[1])
    assert np.array_equal(logits[0], logits[2])


@pytest.mark.parametrize(("io", "shift"), [("uint8", 0), ("int8", 128)])
def test_int8_probabilities_sum_to_one(float32, ranges, io, shift):
    """256 steps share one, whatever the type of the output."""
    answers = _outputs(quantize.quantize(float32, "int8", ranges, io), _pictures(20, seed=3)).astype(int) + shift
    assert np.abs(answers.sum(axis=1) - 256).max() <= 4


def test_int8_stays_near_the_float_model(float32, ranges):
    """Logits are off by a hundredth of their spread, on average."""
    pictures, made = _pictures(40, seed=4), quantize.quantize(float32, "int8", ranges)
    logits = read_model(logits_view(made), "int8").output
    stored, exact = _outputs(logits_view(made), pictures).astype(np.float32), _outputs(logits_view(float32), pictures)
    error = (stored - logits.zero_points[0]) * logits.scales[0] - exact
    assert np.abs(error).mean() < 0.01 * np.ptp(exact)


def test_same_model_and_pictures_give_the_same_bytes(network, float32, ranges):
    """Conversion and every scheme are reproducible."""
    assert quantize.to_float32(network) == float32
    for variant in ("float16", "dynamic-w8", "int8"):
        assert quantize.quantize(float32, variant, ranges) == quantize.quantize(float32, variant, ranges)


def test_ranges_do_not_depend_on_the_batches(float32):
    """One at a time or all at once: the same ranges, unlike the moving average of litert-quantizer's own calibration."""
    pictures = _pictures(30)
    whole = activations.record_ranges(float32, [pictures])
    single = activations.record_ranges(float32, (pictures[i : i + 1] for i in range(30)))
    assert whole.pictures == single.pictures == 30
    assert {n: pytest.approx(r, rel=1e-5, abs=1e-6) for n, r in single.by_tensor.items()} == whole.by_tensor


def test_calibration_pictures_are_streamed(float32):
    """A batch is computed before the next is asked for, so they are never in memory together."""
    alive, most = [], 0

    def batches():
        nonlocal most
        for i in range(5):
            alive.append(i)
            most = max(most, len(alive))
            yield _pictures(10, seed=i)
            alive.pop()

    assert activations.record_ranges(float32, batches()).pictures == 50
    assert most == 1


def test_samples_are_of_so_many_pictures_at_most_evenly_spread(float32, monkeypatch):
    """However many calibrate; extremes are of all of them."""
    pictures = np.repeat(np.arange(240, dtype=np.uint8), SIZE * SIZE * 3).reshape(240, SIZE, SIZE, 3)
    monkeypatch.setattr(activations, "MAX_BATCH", 2)
    monkeypatch.setattr(activations, "SAMPLED_PICTURES", 40)
    found = activations.record(float32, [pictures])
    seen = np.unique(np.rint(found.samples[found.names.index(found.input_name)] * 128 + 128).astype(int))
    assert found.extremes.shape[2] == 240
    assert 20 <= len(seen) <= 40
    assert (seen[0], np.unique(np.diff(seen[::2])).tolist()) == (0, [16])


def test_no_calibration_picture_is_refused(float32):
    """Ranges out of nothing would make a file that answers noise."""
    with pytest.raises(DataError, match="no calibration picture"):
        activations.record_ranges(float32, [])


def test_a_few_outlying_pictures_do_not_stretch_the_range():
    """One in a hundred a hundred times as bright: the range ends at 1.5 times the rest; clean pictures keep their extremes."""
    highs = np.linspace(0.9, 1.0, 100, dtype=np.float32)
    assert activations.robust_range(-highs, highs) == (-1.0, 1.0)
    highs[50] = 100
    assert activations.robust_range(0 * highs, highs) == (0.0, pytest.approx(1.5, rel=0.01))


def test_range_always_holds_zero():
    """Padding is zero and must be exact, even where every value is positive."""
    assert activations.robust_range(np.full(5, 2, np.float32), np.full(5, 3, np.float32)) == (0.0, 3.0)


def test_large_weights_lie_inside_the_flatbuffer_and_aligned():
    """Above 256 kB litert-quantizer puts weights behind the model, where microcontrollers and the metadata writer do not look."""
    layers = keras().layers
    inputs = layers.Input((SIZE, SIZE, 3))
    model = quantize.with_softmax(keras().Model(inputs, layers.Dense(3)(layers.Dense(700)(layers.Flatten()(inputs)))))
    float32 = quantize.to_float32(model)
    made = quantize.quantize(float32, "int8", activations.record_ranges(float32, [_pictures(50)]))
    card = ModelCard("large", ("a", "b", "c"), ImageSpec(SIZE, SIZE), variant="int8", io="uint8")
    assert len(_outputs(with_metadata(made, card), _pictures(2))) == 2
    from ai_edge_litert import schema_py_generated as schema

    buffers = [schema.Model.GetRootAs(made).Buffers(i) for i in range(schema.Model.GetRootAs(made).BuffersLength())]
    starts = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if not b.DataIsNone()]
    assert len(starts) > 3
    assert all(start % 16 == 0 for start in starts)
    assert not any(b.Offset() > 1 for b in buffers)


def test_converters_do_not_write_to_the_terminal(network, capfd):
    """Nothing that TensorFlow or litert-quantizer says reaches the user while all goes well."""
    capfd.readouterr()
    quantize.quantize(quantize.to_float32(network), "dynamic-w8")
    assert capfd.readouterr() == ("", "")


def test_layer_without_a_tflite_operator_is_one_clear_error(capfd):
    """A determinant has no TFLite operator; the converter's pages of output stay hidden."""
    layers, tf = keras().layers, tensorflow()
    inputs = layers.Input((SIZE, SIZE, 3))
    square = layers.Lambda(lambda x: tf.linalg.det(tf.transpose(x, (0, 3, 1, 2))))(inputs)
    with pytest.raises(ModelError, match="converter refused it"):
        quantize.to_float32(quantize.with_softmax(keras().Model(inputs, square)))
    assert len(capfd.readouterr().err) < 200


def test_unknown_variant_and_missing_ranges_are_named(float32):
    """The message lists what there is."""
    with pytest.raises(ConfigError, match=r"unknown variant 'int3'; known: float32, float16"):
        quantize.quantize(float32, "int3")
    with pytest.raises(ConfigError, match="ranges"):
        quantize.quantize(float32, "int8")
