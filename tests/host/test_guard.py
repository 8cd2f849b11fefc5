"""The accuracy guard and what it works with: range estimators, errors by layer, bias correction, mixed files."""

import numpy as np
import pytest

from edgeclf.core.errors import ConfigError, ModelError, QualityError
from edgeclf.core.results import paired_drop
from edgeclf.core.tflite import read_model, scheme
from edgeclf.host.export import activations, bias_correction, guard, quant_errors, quantize
from edgeclf.host.keras import keras

SIZE = 12


def pictures(count, seed=0):
    """Noise, uint8."""
    return np.random.RandomState(seed).randint(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def float32():
    """A float32 file whose second convolution has one channel a hundred times larger than the others: hard for int8."""
    keras().utils.set_random_seed(3)
    layers = keras().layers
    inputs = layers.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(16, 3, 2, "same", activation="relu", name="first")(inputs)
    x = layers.Conv2D(16, 3, 1, "same", name="loud")(x)
    x = layers.Conv2D(16, 3, 1, "same", activation="relu", name="after")(x)
    model = keras().Model(inputs, layers.Dense(4, name="logits")(layers.GlobalAveragePooling2D()(x)), name="net")
    kernel, bias = model.get_layer("loud").get_weights()
    kernel[..., 0] *= 100
    model.get_layer("loud").set_weights([kernel, bias])
    return quantize.to_float32(quantize.with_softmax(model))


@pytest.fixture(scope="module")
def recorded(float32):
    return activations.record(float32, [pictures(60)])


def drop_of(before, after, total=1000):
    """A paired drop: `before` right answers, of which `after` stay right."""
    rows = np.arange(total)
    return paired_drop(rows < before, rows < after)


@pytest.mark.parametrize("estimator", activations.ESTIMATORS)
def test_every_estimator_contains_zero_and_lies_within_the_extremes(recorded, estimator):
    """A range holds 0, which must be exact, and nothing that was never seen."""
    widest = recorded.ranges("min-max").by_tensor
    for name, (low, high) in recorded.ranges(estimator).by_tensor.items():
        assert low <= 0 <= high
        if name != recorded.input_name:
            assert widest[name][0] - 1e-5 <= low
            assert high <= widest[name][1] + 1e-5


def test_least_error_draws_an_outlier_in():
    """One value in a million far outside makes plain extremes waste the steps that mse keeps."""
    values = np.append(np.random.RandomState(0).normal(0, 1, 1_000_000), 40.0).astype(np.float32)
    extremes = np.array([[values.min()], [values.max()]], np.float32)
    low, high = activations._least_error(extremes, values)
    wide = activations._rounding_error(values, *activations._min_max(extremes, values))
    assert high < 25
    assert activations._rounding_error(values, low, high) < 0.6 * wide


def test_layer_errors_name_the_layer_that_loses(float32, recorded):
    """The layer with the loud channel has a worse signal to noise ratio than what it reads, and its ranges are those seen."""
    int8 = quantize.quantize(float32, "int8", recorded.ranges())
    errors = quant_errors.layer_errors(float32, int8, [pictures(8, seed=1)])
    by_layer = {e.layer.split("/")[1]: e for e in errors if "/" in e.layer}
    assert {"first", "loud", "after", "logits"} <= by_layer.keys()
    assert all(0 < e.snr_db <= quant_errors.PERFECT_DB for e in errors)
    assert by_layer["loud"].low <= by_layer["loud"].seen_low * 0.5
    assert by_layer["after"].remedy


def test_files_that_have_nothing_in_common_are_refused(float32):
    """An int8 file of another network."""
    layers = keras().layers
    inputs = layers.Input((SIZE, SIZE, 3))
    other = keras().Model(inputs, layers.Dense(3, name="else")(layers.Flatten()(inputs)), name="other")
    file = quantize.to_float32(other)
    int8 = quantize.quantize(file, "int8", activations.record_ranges(file, [pictures(50)]))
    with pytest.raises(ModelError, match="no tensor in common"):
        quant_errors.layer_errors(float32, int8, [pictures(1)])


def test_bias_correction_moves_the_mean_back(float32, recorded):
    """A bias that was shifted by hand comes back to what makes the layer's mean that of the float32 file."""
    from ai_edge_litert import schema_py_generated as schema

    int8 = quantize.quantize(float32, "int8", recorded.ranges(), "int8")
    structure = read_model(int8, "int8")
    operator = next(op for op in structure.operators if "after" in structure.tensors[op.outputs[0]].name)
    shifted = bias_correction._moved(int8, operator, np.full(16, 0.5), schema)
    name = structure.tensors[operator.outputs[0]].name
    mended = bias_correction.corrected(float32, shifted, pictures(40))
    wanted, wrong, found = (bias_correction._means(m, [name], pictures(40))[name] for m in (float32, shifted, mended))
    assert np.abs(found - wanted).mean() < 0.3 * np.abs(wrong - wanted).mean()


def test_a_mixed_file_keeps_the_named_layer_in_floats(float32, recorded):
    """Its scheme is mixed, its input stays the pixel itself, and it runs."""
    name = next(t.name for t in read_model(float32, "f").tensors if "net/after/" in t.name and not t.constant)
    mixed = quantize.quantize(float32, "mixed", recorded.ranges(), "uint8", [name])
    model = read_model(mixed, "mixed")
    kinds = {model.tensors[op.inputs[0]].type for op in model.operators if op.name == "CONV_2D"}
    assert scheme(model) == "mixed"
    assert kinds == {"int8", "float32"}
    assert (model.input.type, model.input.scales) == ("uint8", (1 / 128,))


def search(float32, recorded, drops, budget=0.005):
    """The guard over measured drops that are given, in their order."""
    given = iter(drops)
    return guard.Guard(float32, recorded, pictures(40), lambda model, variant: next(given), budget).search()


def test_the_first_way_that_holds_is_taken(float32, recorded):
    """The third estimator holds; nothing after it is tried."""
    found = search(float32, recorded, [drop_of(900, 850), drop_of(900, 880), drop_of(900, 900)])
    assert [a.held for a in found.attempts] == [False, False, True]
    assert found.attempts[-1].name == "int8, percentile ranges"
    assert scheme(read_model(found.model, "found")) == "int8"


def test_layers_are_kept_in_floats_when_nothing_else_helps(float32, recorded):
    """After the estimators, bias correction and equalisation the worst layer leaves int8."""
    found = search(float32, recorded, [*[drop_of(900, 850)] * 6, drop_of(900, 900)])
    assert found.variant == "mixed"
    assert scheme(read_model(found.model, "found")) == "mixed"
    assert len(found.attempts) == 7


def retrained(float32, recorded, drops, budget=0.005):
    """The guard with a training as its last way, which here gives a plain int8 file and tells that it ran."""
    given, ran = iter(drops), []

    def train():
        ran.append(True)
        return quantize.quantize(float32, "int8", recorded.ranges())

    search = guard.Guard(float32, recorded, pictures(40), lambda m, v: next(given), budget, retrained=train).search
    return search, ran


def test_a_training_is_the_last_way(float32, recorded):
    """When no other holds, the network is trained with the rounding."""
    search, ran = retrained(float32, recorded, [*[drop_of(900, 850)] * 8, drop_of(900, 900)])
    found = search()
    assert ran
    assert found.variant == guard.RETRAINED
    assert found.attempts[-1].held


def test_nothing_is_trained_for_what_the_pictures_cannot_show(float32, recorded):
    """20 pictures that all agree leave an interval wider than half a point, so hours of training would show nothing."""
    search, ran = retrained(float32, recorded, [drop_of(18, 18, 20)] * 20)
    with pytest.raises(QualityError, match="20 validation pictures are too few"):
        search()
    assert not ran


def test_without_success_the_nearest_way_and_a_remedy_are_told(float32, recorded):
    """Nothing is returned; the message says what came nearest and what to do."""
    with pytest.raises(QualityError, match=r"none of \d+ ways holds it.*compress RUN --qat"):
        search(float32, recorded, [drop_of(900, 800)] * 20)


def test_too_few_pictures_are_not_taken_for_a_loss(float32, recorded):
    """No loss at all on 20 pictures shows nothing about half a point."""
    with pytest.raises(QualityError, match="20 validation pictures are too few"):
        search(float32, recorded, [drop_of(18, 18, 20)] * 20)


@pytest.mark.parametrize("points", [0, -1, 100])
def test_a_budget_is_points_between_0_and_100(points):
    """Said before any work is done."""
    with pytest.raises(ConfigError, match="points of top-1"):
        guard.check_budget(points)
