"""ONNX export: what the converted network computes, what is quantised in it and how, and what is refused."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import tiny_recipe

from edgeclf.core.bundle import attach_onnx, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, MissingExtra, ModelError, QualityError
from edgeclf.core.image import ImageSpec
from edgeclf.core.onnx import read_model
from edgeclf.host.data.dataset import open_catalogue, open_dataset
from edgeclf.host.export import export_onnx, gates, quantize_onnx, to_onnx
from edgeclf.host.export.export import export
from edgeclf.host.export.to_onnx import OnnxRequest
from edgeclf.host.full_model import FullModel, answering, open_full
from edgeclf.host.imports import imports
from edgeclf.host.keras import keras
from edgeclf.host.report import report
from edgeclf.host.run import MODEL, ONNX, open_run
from edgeclf.host.train import train as training
from edgeclf.host.understand import recalibrate
from edgeclf.runtime.classifier import load
from edgeclf.runtime.engine import open_engine
from edgeclf.runtime.selftest import self_test

onnx = pytest.importorskip("onnx")

SIZE = 12
BOTH = OnnxRequest(("float32", "int8"))
PICTURES = np.random.RandomState(0).randint(0, 256, (20, SIZE, SIZE, 3)).astype(np.uint8)
CARD = ModelCard("net", ("red", "blue"), ImageSpec(SIZE, SIZE), outputs="logits")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Red against blue noise, trained in seconds."""
    folder, random = tmp_path_factory.mktemp("onnx"), np.random.RandomState(0)
    x, y = random.randint(0, 120, (300, SIZE, SIZE, 3)).astype(np.uint8), np.arange(300) % 2
    x[y == 0, :, :, 0] += 60
    x[y == 1, :, :, 2] += 60
    np.savez(folder / "colours.npz", x=x, y=y, labels=np.array(["red", "blue"]))
    return training.train(training.start(tiny_recipe(), str(folder / "colours.npz"), folder / "colours"))


@pytest.fixture(scope="module")
def exported(run):
    """Both ONNX files and the int8 TFLite file, by variant."""
    return {e.variant: e for e in export(run, ["int8"], onnx=BOTH)}


def _varied():
    """A residual sum, max pooling, a depthwise convolution, ReLU6 and padding: (the network, its full model)."""
    layers = keras().layers
    keras().utils.set_random_seed(3)
    inputs = layers.Input((SIZE, SIZE, 3))
    stem = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(inputs)))
    added = layers.ReLU()(layers.Add()([stem, layers.Conv2D(8, 3, padding="same")(stem)]))
    deep = layers.ReLU(6.0)(layers.DepthwiseConv2D(3, strides=2)(layers.ZeroPadding2D(1)(layers.MaxPooling2D()(added))))
    model = keras().Model(inputs, layers.Dense(2)(layers.Dense(6, activation="relu")(layers.Flatten()(deep))))
    random = np.random.RandomState(1)  # no weight is zero, as after a training
    model.set_weights([w if w.ndim > 1 else w + random.uniform(0.1, 0.5, w.shape) for w in model.get_weights()])
    return FullModel(answering(model), Path(MODEL), 2, 1, "", "", model)


@pytest.fixture(scope="module")
def varied():
    """(full model, its float32 ONNX model, the int8 one) of `_varied`."""
    full = _varied()
    float32 = to_onnx.to_onnx(full, CARD, OnnxRequest(("float32",)))
    return full, float32, quantize_onnx.quantize(float32, quantize_onnx.record_ranges(float32, CARD.image, [PICTURES]))


def _weights(model):
    tree = onnx.load_model_from_string(model)
    return tree, {t.name: onnx.numpy_helper.to_array(t) for t in tree.graph.initializer}


def _files(folder):
    return {path.name for path in folder.rglob("*") if path.suffix in (".tflite", ".onnx") or path.name.startswith(".")}


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_onnx_file_is_what_its_card_says_and_passes_the_checker(run, exported, variant):
    """Labels, scheme, golden self-test, accuracy and where it lies; any client finds probabilities at its end."""
    found = exported[f"onnx-{variant}"]
    bundle = read_bundle(found.path)
    assert found.path == run.folder / f"colours-{variant}.onnx"
    assert (bundle.card.variant, bundle.precision, bundle.card.io) == (variant, variant, "float32")
    assert bundle.card.labels == ("red", "blue")
    assert self_test(open_engine(bundle), bundle.card).passed
    assert bundle.card.accuracy["file"]["top1"] == found.top1
    onnx.checker.check_model(str(found.path), full_check=True)
    assert export_onnx.file_output(bundle.model, bundle.card, PICTURES).sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_float32_agrees_with_keras_and_int8_with_the_tflite_file(run, exported):
    """1e-4 as the gate asks; the two int8 files give one answer on nearly every held-out picture."""
    pictures = open_dataset(run).pictures("test")
    answers = [open_engine(read_bundle(exported[v].path)).infer(pictures).argmax(axis=1) for v in ("int8", "onnx-int8")]
    assert exported["onnx-float32"].largest_logit_difference < 1e-4
    assert np.mean(answers[0] == answers[1]) >= 0.97


def test_both_int8_files_are_calibrated_on_the_same_pictures(exported):
    """The cards list the same ones and name the quantiser that each went through."""
    tflite, other = (dict(read_bundle(exported[v].path).card.calibration) for v in ("int8", "onnx-int8"))
    assert (tflite.pop("quantizer")[:9], other.pop("quantizer")[:9]) == ("litert-qu", "onnxrunti")
    assert tflite == other
    assert read_bundle(exported["onnx-float32"].path).card.calibration == {}


def test_same_export_twice_gives_the_same_bytes(run, exported, tmp_path):
    """The converter counts on through the process, and none of that gets into a file."""
    for again in export(run, [], onnx=BOTH, out=tmp_path):
        assert again.path.read_bytes() == exported[again.variant].path.read_bytes()


def test_opset_and_open_batch_are_as_asked_for(run, tmp_path):
    """Several pictures at once are answered as each alone; without the option a file takes one."""
    path = export(run, [], onnx=OnnxRequest(("int8",), opset=13, dynamic_batch=True), out=tmp_path)[0].path
    bundle, pixels = read_bundle(path), PICTURES[:4]
    assert (bundle.graph.opset, bundle.graph.inputs[0].shape) == (13, (-1, SIZE, SIZE, 3))
    export_onnx.check_batch(bundle.model, bundle.card, pixels)
    assert load(path).card.labels == ("red", "blue")


def test_a_file_of_one_picture_is_told_from_one_of_many(exported):
    """The gate behind --dynamic-batch can fail."""
    bundle = read_bundle(exported["onnx-int8"].path)
    assert bundle.graph.inputs[0].shape == (1, SIZE, SIZE, 3)
    with pytest.raises(QualityError, match="one picture at a time; leave --dynamic-batch out"):
        export_onnx.check_batch(bundle.model, bundle.card, PICTURES)


def test_every_kind_of_layer_computes_the_same(varied):
    """Residual sums, max pooling, depthwise kernels, ReLU6: float32 to 1e-4, int8 near it."""
    full, float32, int8 = varied
    logits = full.infer(PICTURES)
    card = dataclasses.replace(CARD, outputs="probabilities")
    found = [export_onnx.open_onnx(model, card).infer(PICTURES) for model in (float32, int8)]
    assert gates.check_agreement(logits, found[0]) < 1e-4
    assert np.abs(found[1] - logits).max() < 0.1 * np.abs(logits).max()


def test_int8_holds_int8_weights_of_7_bits_and_depthwise_ones_of_8(varied):
    """So that 16-bit sums of two products cannot overflow; one scale a channel."""
    tree, weights = _weights(varied[2])
    kernels = {n.input[1].removesuffix("_DequantizeLinear_Output"): n for n in tree.graph.node if n.op_type in ("Conv", "Gemm")}
    largest = {name: np.abs(weights[f"{name}_quantized"].astype(int)).max() for name in kernels}
    depthwise = {name: any(a.name == "group" and a.i > 1 for a in node.attribute) for name, node in kernels.items()}
    assert {weights[f"{name}_quantized"].dtype for name in kernels} == {np.dtype(np.int8)}
    assert all(weights[f"{name}_scale"].size > 1 for name in kernels)
    assert sorted(depthwise.values()) == [False, False, False, False, True]
    assert all((largest[name] == 127) if depthwise[name] else (largest[name] <= 64) for name in kernels)


def test_the_quantised_input_is_the_pixel_and_the_logits_are_not_rounded(varied):
    """Scale 1/128 and zero point 0 at the input; nothing between the last sums and the Softmax."""
    tree, weights = _weights(varied[2])
    first = next(node for node in tree.graph.node if node.input[0] == "input")
    assert first.op_type == "QuantizeLinear"
    assert (weights[first.input[1]], weights[first.input[2]]) == (np.float32(1 / 128), 0)
    makers = {node.output[0]: node.op_type for node in tree.graph.node}
    assert makers[tree.graph.node[-1].input[0]] == "Gemm"


def test_a_dense_layer_that_stays_in_floats_is_found(varied):
    """A file that is called int8 and is not: the gate names what its tensors are."""
    tree = onnx.load_model_from_string(varied[2])
    dense = next(node for node in tree.graph.node if node.op_type == "Gemm")
    tree.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((72, 6), np.float32), "floats"))
    dense.input[1] = "floats"
    with pytest.raises(QualityError, match="onnx-int8: its tensors are mixed, not int8"):
        gates.check_onnx(read_model(tree.SerializeToString(), "x"), "int8", 2)


def test_the_checker_and_the_number_of_outputs_are_asked(varied):
    """A node of no operator, and three labels for two outputs."""
    with pytest.raises(QualityError, match="2 outputs for 3 labels"):
        export_onnx.check(varied[1], dataclasses.replace(CARD, labels=("a", "b", "c")))
    tree = onnx.load_model_from_string(varied[1])
    next(node for node in tree.graph.node if node.op_type == "MaxPool").op_type = "MinPool"
    with pytest.raises(QualityError, match=r"the ONNX checker refuses it: .*MinPool"):
        export_onnx.check(tree.SerializeToString(), CARD)


@pytest.mark.parametrize("gate", ["check_onnx", "check_agreement", "check_answers", "check_probabilities", "check_drop"])
def test_every_gate_is_asked_before_an_onnx_file_appears(run, exported, tmp_path, monkeypatch, gate):
    """A gate that nobody asks is none; the conversion itself is not repeated here."""
    model = read_bundle(exported["onnx-float32"].path).model

    def closed(*_):
        raise QualityError(f"{gate} says no")

    monkeypatch.setattr(to_onnx, "to_onnx", lambda *_: model)
    monkeypatch.setattr(gates, gate, closed)
    with pytest.raises(QualityError, match=f"{gate} says no"):
        export(run, [], onnx=BOTH, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_constant_network_leaves_no_file(run, tmp_path):
    """The weights are zero: one answer for all pictures."""
    shutil.copytree(run.folder, tmp_path / "colours", ignore=shutil.ignore_patterns("*.tflite", "*.onnx"))
    model = run.model()
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    model.save(tmp_path / "colours" / MODEL, save_format="keras")
    card = dataclasses.replace(run.card, sha256="")
    (tmp_path / "colours" / "card.json").write_text(card.to_json())
    with pytest.raises(QualityError, match="output is constant"):
        export(open_run(tmp_path / "colours"), [], onnx=BOTH)
    assert _files(tmp_path) == set()


def test_what_cannot_be_asked_for_is_refused_before_any_work():
    """Unknown variants, one twice, an operator set beyond the converter's."""
    for variants in (("float16",), ("int8", "int8")):
        with pytest.raises(ConfigError, match="expected each once, of: float32, int8"):
            OnnxRequest(variants)
    with pytest.raises(ConfigError, match="opset 99: expected one from 13 to 18"):
        OnnxRequest(("int8",), opset=99)


def test_a_missing_converter_names_the_extra(monkeypatch, varied):
    """As on a machine with TensorFlow alone."""
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(MissingExtra, match=r"tf2onnx is not installed; install it with: pip install 'edgeclf\[train\]'"):
        to_onnx.to_onnx(varied[0], CARD, BOTH)


def test_the_report_lists_onnx_files_beside_the_others(run, exported):
    """By the name of their option; run by ONNX Runtime, with the scheme that their tensors have."""
    entrants, unusable = report.enter(run, 1)
    assert unusable == []
    assert {e.name: e.bundle.precision for e in entrants} == {"int8": "int8", "onnx-float32": "float32", "onnx-int8": "int8"}
    assert {e.runtime.split()[0] for e in entrants} == {"ai-edge-litert", "onnxruntime"}
    assert all(report._claims(e.name, e.bundle.precision) for e in entrants)


def test_a_temperature_is_kept_in_an_onnx_file(run, exported, tmp_path):
    """The model and its self-test stay, the checksums fit."""
    path = tmp_path / "colours-int8.onnx"
    shutil.copy(exported["onnx-int8"].path, path)
    before = read_bundle(path)
    fitted = recalibrate.calibrate_file(path, open_catalogue(run.data), False, "f1")
    after = read_bundle(path)
    assert after.model == before.model
    assert after.card.thresholds == fitted.card.thresholds != ()
    assert after.card.self_test == before.card.self_test


def _foreign(path, opset=17):
    """Channels first, means of each channel, red against blue, ends in logits."""
    helper, kinds = onnx.helper, onnx.TensorProto
    weights = onnx.numpy_helper.from_array(np.array([[4, 0], [0, 0], [0, 4]], np.float32), "weights")
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixels"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("Gemm", ["means", "weights"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(n, kinds.FLOAT, s) for n, s in (("pixels", [1, 3, SIZE, SIZE]), ("logits", [1, 2]))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)


@pytest.fixture(scope="module")
def imported(run, tmp_path_factory):
    """A run of a foreign ONNX file, with data."""
    folder = tmp_path_factory.mktemp("foreign")
    _foreign(folder / "net.onnx")
    made = imports.import_model(folder / "net.onnx", ("red", "blue"), normalize=((0.0,), (255.0,)), out=folder / "net").run
    return imports.give_data(made, run.data)


def test_an_imported_onnx_model_is_exported_with_a_softmax_and_in_int8(imported):
    """Its own normalisation and channel order stay, and the card says them."""
    found = {e.variant: e for e in export(imported, [], onnx=BOTH)}
    bundle = read_bundle(found["onnx-int8"].path)
    assert (bundle.precision, bundle.card.image.std, bundle.graph.inputs[0].shape) == ("int8", 255.0, (1, 3, SIZE, SIZE))
    assert bundle.graph.nodes[-1].operator == "Softmax"
    assert found["onnx-float32"].largest_logit_difference < 1e-5
    assert found["onnx-int8"].top1 == found["onnx-float32"].top1 > 0.9


def test_an_imported_onnx_model_keeps_its_operator_set_unless_asked(imported):
    """Converted up or down by the package onnx; where it cannot, the message says so."""
    full = open_full(imported)
    assert read_model(to_onnx.to_onnx(full, imported.card, BOTH), "x").opset == 17
    assert read_model(to_onnx.to_onnx(full, imported.card, OnnxRequest(("float32",), opset=15)), "x").opset == 15
    assert imported.model_file.name == ONNX


def test_a_model_that_is_quantised_already_is_not_quantised_again(imported):
    """Twice rounded is no int8 export: the message says what it is."""
    int8 = read_bundle(export(imported, [], onnx=OnnxRequest(("int8",)))[0].path).model
    with pytest.raises(ModelError, match="onnx-int8: the model is int8 already"):
        export_onnx.int8_of(int8, None, None)


def test_an_exported_onnx_file_can_be_imported_again(exported, tmp_path):
    """Its card says all there is to say, and it answers as before."""
    path = exported["onnx-float32"].path
    run = imports.import_model(path, (), out=tmp_path / "run").run
    assert run.card.labels == ("red", "blue")
    assert np.array_equal(open_full(run).infer(PICTURES), open_engine(read_bundle(path)).infer(PICTURES))
    assert read_bundle(run.model_file).card.sha256


def test_an_imported_tflite_model_becomes_onnx(fixtures_folder, tmp_path):
    """By tf2onnx from the flatbuffer, where a run holds no Keras network; it answers as the file does."""
    run = imports.import_model(fixtures_folder / "tiny-float32.tflite", (), out=tmp_path / "run").run
    full, pixels = open_full(run), np.random.RandomState(0).randint(0, 256, (4, *run.card.image.shape)).astype(np.uint8)
    model = to_onnx.to_onnx(full, run.card, BOTH)
    gates.check_onnx(read_model(model, "x"), "float32", len(run.card.labels))
    assert gates.check_agreement(full.infer(pixels), export_onnx.open_onnx(model, run.card).infer(pixels)) < 1e-4


def test_a_card_is_replaced_and_not_added_to(varied):
    """Two would be two truths."""
    card = dataclasses.replace(CARD, outputs="probabilities")
    once = attach_onnx(varied[1], card)
    assert attach_onnx(once, card) == once
