"""Models that were made elsewhere: what they compute stays, what is risky is refused, and a run of them goes the whole way."""

import dataclasses
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgeclf.core.bundle import read_bundle
from edgeclf.core.errors import ConfigError, DataError, ModelError
from edgeclf.core.tflite import read_model
from edgeclf.host import graphs
from edgeclf.host.data.dataset import open_catalogue, open_dataset
from edgeclf.host.export import activations, quantize
from edgeclf.host.export.export import export
from edgeclf.host.full_model import open_full
from edgeclf.host.imports import house, house_onnx, import_child, imports, keras_files
from edgeclf.host.imports.house_tflite import house_tflite
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.report.report import make_report
from edgeclf.host.run import open_run
from edgeclf.runtime.accuracy import held_out
from edgeclf.runtime.engine import open_engine
from edgeclf.runtime.onnx import OnnxEngine

SIDE = 12
HALF = (127.5,), (127.5,)
CHANNELS = (120.0, 110.0, 100.0), (60.0, 61.0, 62.0)


def _network(*before, padding="valid", end=(("dense", 3, "softmax"),), shape=(SIDE, SIDE, 3)):
    """Convolution, pooling, and what is asked for; random weights, the same each time."""
    keras().utils.set_random_seed(1)
    layers = keras().layers
    ends = [layers.Dense(*e[1:2], activation=e[2]) if e[0] == "dense" else layers.Activation(e[1]) for e in end]
    middle = [layers.Conv2D(6, 3, padding=padding, activation="relu"), layers.GlobalAveragePooling2D()]
    return keras().Sequential([layers.Input(shape), *before, *middle, *ends])


def _difference(original, made, normalize):
    """Between both on the same pixels, each in its own terms."""
    pixels = house.trial_pixels(made.input_shape[1:])
    mean, std = (np.asarray(values) for values in normalize or house.RAW)
    before = original(((pixels - mean) / std).astype(np.float32), training=False).numpy().astype(np.float64)
    return house.difference(before.reshape(len(pixels), -1), made((pixels - 128.0) / 128.0).numpy().astype(np.float64))


@pytest.mark.parametrize(
    ("padding", "normalize", "front"),
    [
        ("valid", HALF, False),
        ("valid", CHANNELS, False),
        ("same", HALF, True),
        ("same", CHANNELS, True),
        ("same", ((128.0,), (64.0,)), False),
    ],
)
def test_normalisation_is_folded_into_the_first_convolution_where_that_is_exact(padding, normalize, front):
    """Zeros that are padded are zeros of the foreign network, so an offset stays in front of a padding one."""
    model = _network(padding=padding)
    made, _ = house.house(model, normalize, 3)
    assert (house.NORMALISATION in {layer.name for layer in made.layers}) == front
    assert _difference(model, made, normalize) < 1e-5


@pytest.mark.parametrize(
    ("end", "classes"),
    [
        ([("dense", 3, "softmax")], 3), ([("dense", 3, None)], 3), ([("dense", 3, None), ("activation", "softmax")], 3),
        ([("dense", 1, "sigmoid")], 2), ([("dense", 1, None), ("activation", "sigmoid")], 2), ([("dense", 1, None)], 2),
        ([("dense", 3, "sigmoid")], 3),
    ],
)  # fmt: skip
def test_whatever_ends_a_network_its_logits_come_out(end, classes):
    """Softmax is taken off; one output for two classes becomes 0 and z, of which softmax is what sigmoid of z was."""
    model = _network(end=end)
    made, _ = house.house(model, HALF, classes)
    assert made.output_shape == (None, classes)
    assert (made.layers[-1].name, made.layers[-2].name) == ("logits", "features")
    assert house.squash_of(made) == ""
    assert _difference(model, made, HALF) < 1e-5


def test_a_network_that_normalises_itself_needs_to_be_told_nothing():
    """Rescaling, Normalization and plain arithmetic at its start become part of the one map; random layers go."""
    layers = keras().layers
    inputs = layers.Input((SIDE, SIDE, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(layers.RandomFlip()(inputs)) / 2.0 - 0.25
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 4.0, 9.0])(x)
    model = keras().Model(inputs, _network()(x))
    made, notes = house.house(model, None, 3)
    assert {type(layer).__name__ for layer in made.layers} == {"InputLayer", "Conv2D", "GlobalAveragePooling2D", "Dense"}
    assert "normalises by itself" in notes[0]
    assert _difference(model, made, None) < 1e-5


def test_nested_and_shared_layers_come_out_flat_and_the_same():
    """Fake quantisation wants a flat graph; names that occur twice are told apart, weights that are shared stay shared."""
    layers = keras().layers
    inner = keras().Sequential([layers.Input((SIDE, SIDE, 3)), layers.Conv2D(3, 3, padding="same", name="twice")])
    inputs = layers.Input((SIDE, SIDE, 3))
    shared = layers.Conv2D(3, 1, name="shared")
    x = layers.Conv2D(3, 1, name="twice")(layers.Concatenate()([shared(inputs), shared(inner(inputs))]))
    model = keras().Model(inputs, layers.Dense(3)(layers.Flatten()(x * 2 + 1)))
    flat = graphs.rebuild(model)
    pictures = np.random.RandomState(0).randn(2, SIDE, SIDE, 3).astype(np.float32)
    assert not any(graphs.is_graph(layer) for layer in flat.layers)
    assert flat.count_params() == model.count_params()
    assert np.array_equal(flat(pictures), model(pictures))


def test_what_cannot_be_a_classifier_of_these_labels_is_one_line():
    """Both counts, the missing option, or the shape are named."""
    with pytest.raises(ModelError, match="4 labels for 3 outputs"):
        house.house(_network(), HALF, 4)
    with pytest.raises(ModelError, match="--normalize MEAN,STD"):
        house.house(_network(), None, 3)
    with pytest.raises(ModelError, match="--image-size"):
        house.house(_network(shape=(None, None, 3)), HALF, 3)
    assert house.house(_network(shape=(None, None, 3)), HALF, 3, side=20)[0].input_shape == (None, 20, 20, 3)
    with pytest.raises(ModelError, match="channels first"):
        graphs.rebuild(keras().Sequential([keras().layers.Input((3, 40, 40)), keras().layers.Flatten()]))


def test_probabilities_without_a_softmax_at_the_end_are_noticed():
    """Taken for logits they would give wrong confidences for ever after."""
    shares = np.array([[0.2, 0.8], [0.5, 0.5]])
    with pytest.raises(ModelError, match="no softmax was found"):
        house.difference(shares, shares)
    with pytest.raises(ModelError, match="answers otherwise"):
        house.difference(shares, np.array([[3.0, 1.0], [0.0, 0.0]]))


CODE = [
    {"class_name": "Lambda", "config": {"name": "evil", "function": ["4wEA", None, None]}},
    {"module": "os", "class_name": "function", "config": "system"},
    {"module": "keras.utils", "class_name": "function", "config": "get_file"},
    {"module": "builtins", "class_name": "eval", "config": {}},
    {"class_name": "TFOpLambda", "config": {"name": "tf.io.write_file", "function": "io.write_file"}},
    {"class_name": "TFOpLambda", "config": {"name": "tf.py_function", "function": "py_function"}},
]


@pytest.mark.parametrize("part", CODE, ids=lambda p: p["class_name"])
def test_python_code_is_found_however_deep_it_lies(part):
    """Beside layers that are none."""
    config = json.loads(_network(keras().layers.Rescaling(1 / 255)).to_json())
    assert keras_files.python_code(config) == ""
    config["config"]["layers"].append({"class_name": "Sequential", "config": {"layers": [[{"deep": part}]]}})
    assert keras_files.python_code(config) != ""


def _zip(path, **entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name.replace("__", "."), data)
    return path


def test_files_that_are_no_models_are_refused_before_anything_opens_them(tmp_path):
    """Pickles whatever their name, bombs, names that lead out, and other things."""
    files = {
        "a.pkl": b"x", "b.h5": pickle.dumps([1]), "c.pth": b"PK", "d.h5": b"text", "e.keras": b"PK\x03\x04", "f.py": b"1",
        "g.onnx": b"",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    _zip(tmp_path / "bomb.keras", config__json=b"{}", model__weights__h5=bytes(50 << 20))
    _zip(tmp_path / "out.keras", config__json=b"{}", **{"../evil": b"x"})
    _zip(tmp_path / "other.keras", readme=b"x")
    reasons = {
        "a.pkl": "pickle", "b.h5": "pickle", "c.pth": "pickle", "d.h5": "not an HDF5", "e.keras": "not a whole",
        "f.py": "cannot be imported", "g.onnx": "0 bytes", "bomb.keras": "unpacks to", "out.keras": "leads out",
        "other.keras": "no config.json", "missing.keras": "no such file", ".": "no saved_model.pb",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(ModelError, match=reason):
            keras_files.kind_of(tmp_path / name)


def _asked(path, out, **changes):
    out.mkdir()
    return {"file": str(path), "kind": "keras", "normalize": HALF, "classes": 3, "side": None, "trust": False, **changes}, out


def test_code_runs_only_when_it_is_trusted_and_never_lives_in_the_run(tmp_path):
    """A Lambda layer: refused, or traced into operators, so that nobody after runs it."""
    _network(keras().layers.Lambda(lambda x: x * 2)).save(tmp_path / "lambda.keras")
    with pytest.raises(ModelError, match=r"the Lambda layer .*--trust"):
        import_child._import(*_asked(tmp_path / "lambda.keras", tmp_path / "no"))
    answer = import_child._import(*_asked(tmp_path / "lambda.keras", tmp_path / "yes", trust=True))
    assert {path.name for path in (tmp_path / "yes").iterdir()} == {import_child.TFLITE}
    assert "keeps a float32 .tflite" in answer["notes"][0]


def test_weights_without_a_network_say_so(tmp_path):
    """The usual mistake with .h5."""
    _network().save_weights(tmp_path / "w.h5")
    with pytest.raises(ModelError, match="weights alone"):
        import_child._import(*_asked(tmp_path / "w.h5", tmp_path / "out", kind="h5"))


@pytest.mark.parametrize(("script", "reason"), [("import os; os.abort()", "crashes"), ("print(1)", "cannot be opened")])
def test_a_child_that_dies_is_one_line(tmp_path, monkeypatch, script, reason):
    """As a hostile HDF5 file may make it."""
    (tmp_path / "child.py").write_text(script)
    monkeypatch.setattr(imports, "CHILD", tmp_path / "child.py")
    _zip(tmp_path / "a.keras", config__json=b"{}")
    with pytest.raises(ModelError, match=reason):
        imports.import_model(tmp_path / "a.keras", ("a", "b"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_of_keras_3_becomes_a_network_of_tf_keras(tmp_path):
    """The whole way, child and all: same answers, flat, and loadable as every run's network is."""
    from edgeclf.host.imports.keras3 import keras3

    layers = keras3().layers
    inner = keras3().Sequential(
        [layers.Input((SIDE, SIDE, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.LeakyReLU(0.1)]
    )
    inputs = layers.Input((SIDE, SIDE, 3))
    x = layers.GlobalAveragePooling2D()(inner(layers.RandomFlip()(inputs), training=False) * 2)
    model = keras3().Model(inputs, layers.Dense(3, activation="softmax")(layers.Dropout(0.5)(x)))
    model.save(tmp_path / "three.keras")
    found = imports.import_model(tmp_path / "three.keras", ("a", "b", "c"), normalize=HALF, out=tmp_path / "run")
    assert found.made_with.startswith("Keras 3.")
    assert open_run(tmp_path / "run").card.labels == ("a", "b", "c")
    pixels = house.trial_pixels((SIDE, SIDE, 3))
    before = np.asarray(model((pixels - 127.5) / 127.5, training=False), np.float64)
    assert house.difference(before, open_full(found.run).infer(pixels.astype(np.uint8)).astype(np.float64)) < 1e-5


def _reds(order=("red", "blue")):
    """A network that was not trained, and knows red from blue: of (pixel - 127.5) / 127.5, ends in softmax."""
    model = _network(padding="same", end=[("dense", 2, "softmax")])
    kernel, bias = model.layers[0].get_weights()
    kernel[:, :, :, :2] = 0
    kernel[1, 1, 0, 0] = kernel[1, 1, 2, 1] = 1
    model.layers[0].set_weights([kernel, bias + 1])
    weights = np.zeros((6, 2), np.float32)
    weights[0], weights[1] = [9, -9], [-9, 9]
    model.layers[-1].set_weights([weights, np.zeros(2, np.float32)])
    return model


@pytest.fixture(scope="module")
def flatbuffer(tmp_path_factory):
    """The same as a foreign `.tflite`."""
    path = tmp_path_factory.mktemp("foreign") / "reds.tflite"
    path.write_bytes(quantize.to_float32(_reds()))
    return path


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Pictures of both, whose classes stand in another order than the model's."""
    random = np.random.RandomState(0)
    x, y = random.randint(0, 120, (240, SIDE, SIDE, 3)).astype(np.uint8), np.arange(240) % 2
    x[y == 1, :, :, 0] += 100
    x[y == 0, :, :, 2] += 100
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, x=x, y=y, labels=np.array(["blue", "red"]))
    return path


@pytest.fixture(scope="module")
def run(flatbuffer, tmp_path_factory):
    """An imported run without data."""
    folder = tmp_path_factory.mktemp("runs") / "reds"
    return imports.import_model(flatbuffer, ("red", "blue"), normalize=HALF, out=folder).run


@pytest.mark.parametrize("normalize", [HALF, CHANNELS])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_flatbuffer_gets_the_house_input_and_keeps_its_answers(padding, normalize):
    """Operators are put in, and none where the first convolution can take the map."""
    foreign = quantize.to_float32(_network(padding=padding, end=[("dense", 1, "sigmoid")]))
    made, _ = house_tflite(foreign, normalize, 2, "x.tflite")
    assert ("DEPTHWISE_CONV_2D" in [op.name for op in read_model(made, "x").operators]) == (padding == "same")
    assert read_model(made, "x").output.shape[-1] == 2
    assert imports._compare(foreign, made, normalize, "x.tflite") < 1e-5


def test_a_graph_with_its_batch_written_into_it_is_calibrated_one_by_one():
    """Converters of other frameworks leave a RESHAPE to (1, n)."""
    tf, random = tensorflow(), np.random.RandomState(0)
    kernel, dense = random.randn(3, 3, 3, 4).astype(np.float32), random.randn(400, 3).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec((1, SIDE, SIDE, 3), tf.float32)])
    def network(x):
        return tf.reshape(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "VALID")), (1, 400)) @ dense

    foreign = bytes(tf.lite.TFLiteConverter.from_concrete_functions([network.get_concrete_function()]).convert())
    made, _ = house_tflite(foreign, HALF, 3, "x.tflite")
    ranges = activations.record_ranges(made, [random.randint(0, 256, (7, SIDE, SIDE, 3)).astype(np.uint8)])
    assert ranges.pictures == 7
    assert len(quantize.quantize(made, "int8", ranges)) < len(made)


def test_quantised_flatbuffers_and_unlabelled_ones_are_refused(fixtures_folder, flatbuffer):
    """What is lost cannot come back, and outputs without names say nothing."""
    with pytest.raises(ModelError, match=r"weights are int8; import the float32"):
        imports.import_model(fixtures_folder / "tiny-int8.tflite", ())
    with pytest.raises(ModelError, match="--labels"):
        imports.import_model(flatbuffer, (), normalize=HALF)
    with pytest.raises(ModelError, match="--normalize"):
        imports.import_model(flatbuffer, ("a", "b"))


def test_an_imported_run_says_what_it_lacks(run):
    """Data, and a Keras network: each with what to do."""
    with pytest.raises(ConfigError, match="--calibration DATA"):
        export(run, ["int8"])
    with pytest.raises(ModelError, match="no Keras network"):
        run.model()
    with pytest.raises(ConfigError, match="already holds a run"):
        imports.import_model(Path("x.tflite"), ("a", "b"), out=run.folder)


def test_data_must_show_classes_that_the_model_knows(run, tmp_path):
    """Both sides are named, and the run stays as it was."""
    np.savez(tmp_path / "pets.npz", x=np.zeros((20, 8, 8, 3), np.uint8), y=np.arange(20) % 2, labels=np.array(["cat", "dog"]))
    with pytest.raises(DataError, match="'cat', 'dog' unknown to the model"):
        imports.give_data(run, str(tmp_path / "pets.npz"))
    assert "data" not in open_run(run.folder).card.provenance


@pytest.fixture(scope="module")
def exported(run, colours):
    """Data given, float32 and int8 exported; the run as it is then."""
    given = imports.give_data(run, str(colours))
    return given, {e.variant: e for e in export(given, ["float32", "int8"])}


def test_an_imported_model_goes_on_to_int8_and_report(exported, colours):
    """Right in the model's order of classes, uint8 pixels in, calibrated on training pictures only, nothing of this machine."""
    run, files = exported
    assert files["float32"].top1 == files["int8"].top1 == 1.0
    bundle = read_bundle(files["int8"].path)
    assert (bundle.structure.input.scales, bundle.structure.input.zero_points) == ((1 / 128,), (128,))
    dataset = open_dataset(run)
    assert {int(i) for i in bundle.card.calibration["indices"].split()} <= set(dataset.parts["train"].tolist())
    assert str(colours.parent).encode() not in files["int8"].path.read_bytes()
    comparison = make_report(run, rounds=1)
    assert comparison.full.file == "model.tflite"
    assert comparison.made_elsewhere
    assert any("made elsewhere" in remark for remark in comparison.verdict.remarks)


def test_evaluation_takes_the_pictures_that_calibration_left_and_does_not_call_them_unseen(exported):
    """What a foreign training saw is not known."""
    run, files = exported
    dataset = open_dataset(run)
    indices, which = held_out(open_catalogue(run.data), read_bundle(files["int8"].path).card)
    assert np.array_equal(indices, dataset.parts["test"])
    assert "is not known" in which


def test_files_of_other_data_are_not_compared(exported, colours, tmp_path):
    """New data is new test pictures: what was exported before may have been calibrated on them."""
    run, _ = exported
    with np.load(colours) as arrays:
        np.savez(tmp_path / "other.npz", x=255 - arrays["x"], y=1 - arrays["y"], labels=arrays["labels"])
    kept = (run.folder / "card.json").read_bytes()
    with pytest.raises(ModelError, match="other data than the run has now"):
        make_report(imports.give_data(run, str(tmp_path / "other.npz")), rounds=1)
    (run.folder / "card.json").write_bytes(kept)


def test_a_trained_run_takes_its_own_data_elsewhere_and_no_other(exported, colours, tmp_path):
    """A moved folder is the same data; other data would make its held-out pictures a guess."""
    run, _ = exported
    provenance = {k: v for k, v in run.card.provenance.items() if k != "imported"}
    trained = dataclasses.replace(run, card=dataclasses.replace(run.card, provenance={**provenance, "data": "/gone"}))
    copy = tmp_path / "moved.npz"
    copy.write_bytes(colours.read_bytes())
    assert imports.give_data(trained, str(copy)).data == str(copy)
    with pytest.raises(ConfigError, match="not the data that"):
        imports.give_data(trained, "digits")


def _onnx(path):
    """Mean colours, then one sigmoid, channels first."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weights = numpy_helper.from_array(np.array([[2.0], [0.5], [-2.0]], np.float32), "w")
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["z"]), helper.make_node("Sigmoid", ["z"], ["y"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["n", 3, 8, 8]), ("y", ["n", 1]))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights]), opset_imports=[helper.make_opsetid("", 13)]
    )
    model.ir_version = 8
    checker.check_model(model)
    save(model, path)


@pytest.mark.parametrize("normalize", [HALF, CHANNELS])
def test_an_onnx_file_is_evaluated_as_it_is_and_says_that_it_cannot_become_tflite(tmp_path, normalize):
    """One sigmoid becomes two outputs, three means are built in; the card travels inside."""
    _onnx(tmp_path / "m.onnx")
    run = imports.import_model(tmp_path / "m.onnx", ("no", "yes"), normalize=normalize, out=tmp_path / "run").run
    pixels = np.random.RandomState(0).randint(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    mean, std = (np.asarray(v) for v in normalize)
    z = ((pixels - mean) / std).mean(axis=(1, 2)) @ [2.0, 0.5, -2.0]
    engine = OnnxEngine(read_bundle(run.model_file), 1, probed=True)
    found = engine.infer(pixels)
    assert engine.card.labels == ("no", "yes")
    assert np.abs(found[:, 1] - found[:, 0] - z).max() < 1e-4
    assert np.array_equal(open_full(run).infer(pixels), found)
    assert house_onnx.parameters(run.model_file.read_bytes(), "m") >= 3
    with pytest.raises(ConfigError, match="no maintained converter"):
        export(run, ["int8"])


def test_an_exported_float32_file_can_be_imported_again(fixtures_folder, tmp_path):
    """Its card says all there is to say, and it answers as before."""
    path = fixtures_folder / "tiny-float32.tflite"
    run = imports.import_model(path, (), out=tmp_path / "run").run
    pictures = np.random.RandomState(0).randint(0, 256, (4, *run.card.image.shape)).astype(np.uint8)
    assert run.card.labels == read_bundle(path).card.labels
    assert np.abs(open_full(run).infer(pictures) - open_engine(read_bundle(path)).infer(pictures)).max() < 1e-4


def test_a_damaged_flatbuffer_is_refused_and_never_a_traceback(fixtures_folder):
    """The generated reader checks nothing: whatever it stumbles over is a broken file."""
    whole, random = (fixtures_folder / "foreign-float32.tflite").read_bytes(), np.random.RandomState(0)
    refused = 0
    for _ in range(150):
        broken = bytearray(whole)
        for place in random.randint(0, 3000, 4):
            broken[place] = random.choice([0, 127, 255])
        try:
            house_tflite(bytes(broken), HALF, 4, "x.tflite")
        except ModelError:
            refused += 1
    assert 0 < refused < 150
