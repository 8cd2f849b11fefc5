"""Core ML packages: what they hold, what their programs compute, what is refused. Core ML runs on Apple's systems alone."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_runs import replace_network, tiny_recipe

pytest.importorskip("tensorflow", reason="needs the train extra")
pytest.importorskip("coremltools", reason="needs the coreml extra")

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, MissingExtra, QualityError
from edgeclf.core.image import ImageSpec
from edgeclf.host.data.dataset import open_dataset
from edgeclf.host.export import export_coreml, mil_values
from edgeclf.host.export.export_coreml import FLOAT16, W8, export
from edgeclf.host.export.mil_values import Program
from edgeclf.host.full_model import answering
from edgeclf.host.keras import keras
from edgeclf.host.run import open_run
from edgeclf.host.train import train as training

SIZE = 12
PICTURES = np.random.RandomState(0).randint(0, 256, (4, SIZE, SIZE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Red against blue noise, trained in seconds; the last convolution is large enough for 8-bit weights."""
    folder, random = tmp_path_factory.mktemp("coreml"), np.random.RandomState(0)
    x, y = random.randint(0, 120, (300, SIZE, SIZE, 3)).astype(np.uint8), np.arange(300) % 2
    x[np.arange(300), :, :, 2 * y] += 60
    np.savez(folder / "colours.npz", x=x, y=y, labels=np.array(["red", "blue"]))
    recipe = tiny_recipe()
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [8, 24]}))
    return training.train(training.start(recipe, str(folder / "colours.npz"), folder / "colours"))


@pytest.fixture(scope="module")
def packages(run):
    """Both packages, by variant."""
    return {p.variant: p for p in export(run, [FLOAT16, W8])}


@pytest.fixture
def copied(run, tmp_path):
    """The run where nothing was exported yet, to be changed."""
    shutil.copytree(run.folder, tmp_path / "colours", ignore=shutil.ignore_patterns("*.mlpackage"))
    return open_run(tmp_path / "colours")


def opened(path):
    """(the model as coremltools reads it, its program); of a copy, for it writes the manifest anew."""
    from coremltools.models import MLModel

    copy = shutil.copytree(path, path.parent / "opened" / path.name, dirs_exist_ok=True)
    model = MLModel(str(copy), skip_model_load=True)
    return model, Program(model.get_spec(), model.weights_dir)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("variant", [FLOAT16, W8])
def test_package_takes_a_picture_and_gives_a_class(run, packages, variant):
    """Size, colour and labels as in the card, which is inside; nothing is said of an author."""
    model, program = opened(packages[f"coreml-{variant}"].path)
    spec = model.get_spec()
    image = spec.description.input[0].type.imageType
    assert packages[f"coreml-{variant}"].path == run.folder / f"colours-{variant}.mlpackage"
    assert (image.width, image.height, image.ColorSpace.Name(image.colorSpace)) == (SIZE, SIZE, "RGB")
    assert program.labels == ("red", "blue")
    assert [output.name for output in spec.description.output] == ["classLabel", "classLabel_probs"]
    card = ModelCard.from_json(model.user_defined_metadata["edgeclf.json"], "the package")
    assert (card.variant, card.labels, card.image) == (variant, ("red", "blue"), run.card.image)
    assert card.accuracy["file"]["runtime"] == "worked out by edgeclf, not run by Core ML"
    assert (model.author, model.license, model.version) == ("", "", "")
    assert model.short_description == "Image classifier of 2 classes."


def test_picture_reaches_the_network_exactly_as_in_training(packages):
    """The first operators scale and shift every pixel value to (pixel - 128) / 128, in float32 and to the bit."""
    _, program = opened(packages["coreml-float16"].path)
    scale, bias = program.operators[0], program.operators[1]
    assert (scale.op_type, bias.op_type) == ("mul", "add")
    pixels = np.arange(256, dtype=np.float32)
    seen = (pixels * np.float32(scale.y.val) + np.asarray(bias.y.val, np.float32).reshape(3, 1)).astype(np.float32)
    assert np.array_equal(seen, np.tile((pixels - 128) / 128, (3, 1)))


def test_programs_answer_as_the_network_they_were_made_of(run, packages):
    """Read back from the files: float16 within its rounding, 8-bit weights a little further off."""
    pictures = open_dataset(run).pictures("test")[:20]
    wanted = answering(run.model())(pictures)
    for variant, apart in ((FLOAT16, 0.02), (W8, 0.2)):
        _, program = opened(packages[f"coreml-{variant}"].path)
        logits, probabilities = program.answer(pictures)
        assert np.abs(logits - wanted).max() < apart
        assert probabilities.sum(axis=1) == pytest.approx(1, abs=2e-3)
        assert packages[f"coreml-{variant}"].agreement == 1.0


def test_weights_are_stored_as_the_variant_says(packages):
    """Half the bytes in float16, a quarter and the small tensors in 8 bits."""
    kinds = {}
    for name, package in packages.items():
        _, program = opened(package.path)
        kinds[name] = [op.quantized_data.val.dtype for op in program.operators if op.op_type.startswith("constexpr")]
    assert kinds["coreml-float16"] == []
    assert set(kinds["coreml-weight-only-w8"]) == {np.dtype("int8")}
    weights = {name: (p.path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for name, p in packages.items()}
    assert weights["coreml-weight-only-w8"] < 0.8 * weights["coreml-float16"]


def test_same_export_twice_gives_the_same_bytes_and_takes_the_old_ones_place(run, packages, tmp_path):
    """No date, no random name; files that lay in the old package are gone, and nothing else is left in the folder."""
    old = tmp_path / "colours-float16.mlpackage"
    (old / "Data").mkdir(parents=True)
    (old / "Manifest.json").write_text("{}")
    (old / "Data" / "left-over").write_text("old")
    (again,) = export(run, [FLOAT16], out=tmp_path)
    assert files(again.path) == files(packages["coreml-float16"].path)
    assert [p.name for p in tmp_path.iterdir()] == ["colours-float16.mlpackage"]


def test_network_that_answers_wrongly_leaves_no_package(copied):
    """A constant one, as for other formats."""
    model = copied.model()
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    replace_network(copied, model)
    with pytest.raises(QualityError, match="coreml-float16: its output is constant"):
        export(open_run(copied.folder), [FLOAT16])
    assert not list(copied.folder.glob("*.mlpackage")) + list(copied.folder.glob(".*"))


def test_conversion_that_went_wrong_leaves_no_package(copied, monkeypatch):
    """The program computes something else than the network."""
    monkeypatch.setitem(mil_values.OWN, "conv", lambda op, look: np.full(op.outputs[0].shape, look(op.x).mean(), np.float16))
    with pytest.raises(QualityError, match="not exported: coreml-float16: its "):
        export(copied, [FLOAT16])
    assert not list(copied.folder.glob("*.mlpackage"))


def test_program_that_cannot_be_worked_out_is_written_and_called_unchecked(copied, monkeypatch):
    """No answer was compared, and no figure is claimed."""
    monkeypatch.setitem(mil_values.OWN, "conv", refuse)
    (found,) = export(copied, [FLOAT16])
    assert (found.pictures, found.agreement, found.largest_logit_difference) == (0, None, None)
    assert "its answers were not: nothing here works out the operator conv" in found.notes[0]
    model, _ = opened(found.path)
    assert "file" not in json.loads(model.user_defined_metadata["edgeclf.json"])["accuracy"]


def refuse(op, look):
    raise ValueError("no such thing")


def test_folder_that_is_no_package_is_left_alone(copied):
    """Somebody's own, under the name of the package."""
    own = copied.folder / "colours-float16.mlpackage"
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"colours-float16.mlpackage: is there and is no Core ML package; move it away"):
        export(copied, [FLOAT16])
    assert files(own) == {"notes.txt": b"mine"}


def test_what_there_is_no_way_to_is_told_at_once(copied, monkeypatch):
    """An unknown variant, a run without a Keras network, a missing package."""
    with pytest.raises(ConfigError, match="Core ML variants int8: expected each once, of: float16, weight-only-w8"):
        export(copied, ["int8"])
    (copied.folder / "model.keras").rename(copied.folder / "model.tflite")
    card = dataclasses.replace(copied.card, provenance={**copied.card.provenance, "imported": {}})
    with pytest.raises(ConfigError, match=r"was imported as .tflite.*import the .keras or .h5 file"):
        export(dataclasses.replace(copied, card=card), [FLOAT16])
    monkeypatch.setattr(export_coreml, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))
    with pytest.raises(MissingExtra, match=r"pip install 'edgeclf\[coreml\]'"):
        export(copied, [FLOAT16])


@pytest.mark.parametrize(
    ("labels", "image", "reason"),
    [
        (("blue", "red"), ImageSpec(SIZE, SIZE), "its labels are not those of the model card"),
        (("red", "blue"), ImageSpec(SIZE, 16), "it takes 12x12 RGB, not 12x16"),
        (("red", "blue"), ImageSpec(SIZE, SIZE, colour="bgr"), "it takes 12x12 RGB"),
    ],
)
def test_specification_of_another_classifier_is_refused(packages, labels, image, reason):
    """What an app would see differs from the card."""
    model, program = opened(packages["coreml-float16"].path)
    with pytest.raises(QualityError, match=reason):
        export_coreml.check_spec(model.get_spec(), program.labels, ModelCard("net", labels, image), "coreml-float16")


def varied(colour="rgb"):
    """Every kind of window: strided and dilated, depthwise with a multiplier, both poolings with and without a border."""
    layers = keras().layers
    keras().utils.set_random_seed(3)
    inputs = layers.Input((SIZE, SIZE, 1 if colour == "grey" else 3))
    stem = layers.Conv2D(8, 3, strides=2, padding="same", activation="swish")(layers.ZeroPadding2D(((1, 0), (2, 1)))(inputs))
    deep = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(stem)
    wide = layers.Conv2D(16, 3, padding="same", dilation_rate=2, activation="hard_sigmoid")(stem)
    pooled = layers.AveragePooling2D(3, strides=2, padding="same")(layers.Add()([deep, wide]))
    both = layers.Concatenate()([pooled, layers.MaxPooling2D(2, strides=2, padding="same")(wide)])
    normal = layers.BatchNormalization()(layers.ReLU(6.0)(both))
    gate = layers.Reshape((1, 1, 32))(layers.Dense(32, activation="sigmoid")(layers.GlobalMaxPooling2D()(normal)))
    model = keras().Model(inputs, layers.Dense(2)(layers.Flatten()(layers.Multiply()([normal, gate]))))
    random = np.random.RandomState(1)
    model.set_weights([w if w.ndim > 1 else w + random.uniform(0.1, 0.5, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("colour", ["bgr", "grey"])
def test_every_kind_of_window_is_worked_out_as_tensorflow_does(colour):
    """Two readings of one network: Keras, and the program that coremltools made of it."""
    model, card = varied(colour), ModelCard("net", ("a", "b"), ImageSpec(SIZE, SIZE, colour=colour))
    made = export_coreml.convert(model, card)
    program = Program(made.get_spec(), made.weights_dir)
    export_coreml.check_spec(made.get_spec(), program.labels, card, "coreml-float16")
    pictures = PICTURES[..., : 1 if colour == "grey" else 3]
    wanted = answering(model)(pictures)
    assert np.abs(program.answer(pictures)[0] - wanted).max() < 0.01 * max(1, np.abs(wanted).max())
