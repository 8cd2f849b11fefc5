"""Core ML packages of a run, for iPhones and Macs: converted, checked as far as that goes where Core ML cannot run, written.

The picture goes in as it is (an image input whose scale and bias give (pixel - 128) / 128), class and probabilities come out;
the model card is in the package's own metadata. Arithmetic is float16 whatever the weights are stored in.
"""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core import files
from edgeclf.core.bundle import CARD, CORE_ML
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, MissingExtra, ModelError, QualityError
from edgeclf.core.image import ImageSpec
from edgeclf.core.progress import Bar, no_bar
from edgeclf.host.export import gates, quantize
from edgeclf.host.export.candidates import Setting, shipped
from edgeclf.host.export.export import not_exported, set_up
from edgeclf.host.export.mil_values import Program, Unfoldable
from edgeclf.host.keras import tensorflow
from edgeclf.host.quiet import quiet
from edgeclf.host.run import MODEL, Run
from edgeclf.host.understand import compare
from edgeclf.host.understand.compare import Against
from edgeclf.runtime.engine import Scores

FLOAT16, W8 = "float16", "weight-only-w8"
VARIANTS = (FLOAT16, W8)
OLDEST = {FLOAT16: "iOS 15, macOS 12", W8: "iOS 16, macOS 13"}  # that opens the file: specification versions 6 and 7
INPUT, MANIFEST = "image", "Manifest.json"
PICTURES = 32  # of the held-out ones, worked out operator by operator, which takes a second each for a larger network
FLOAT16_APART = 0.05  # of the largest logit, or of 1; five of the house's networks were 0.001 to 0.021 apart in all
FLOAT16_STEP = 1 / 1024  # of a probability near 1
DATED = "com.github.apple.coremltools.conversion_date"


@dataclass(frozen=True)
class Package:
    """A Core ML package that was written. `variant` begins with `coreml-`, `file_bytes` is of all files in it.

    `agreement` and `largest_logit_difference` are against the full model on `pictures` held-out pictures, as worked out by
    `host.export.mil_values`, not by Core ML; None, with 0 pictures, where `unfoldable` names an operator that it does not know.
    """

    variant: str
    path: Path
    file_bytes: int
    pictures: int
    agreement: float | None
    largest_logit_difference: float | None
    unfoldable: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know, in sentences: what was checked here, and what was not."""
        name = self.path.name
        if self.agreement is None:
            checked = (
                f"its specification was checked, its answers were not: nothing here works out the operator {self.unfoldable}"
            )
        else:
            same = round(self.agreement * self.pictures)
            checked = (
                f"worked out here operator by operator, {same} of {self.pictures} held-out pictures get the full model's answer, "
                f"logits at most {self.largest_logit_difference:.2g} apart"
            )
        opens = OLDEST[self.variant.removeprefix("coreml-")]
        return (
            f"{name}: {checked}; Core ML itself, which runs on Apple's systems alone, has not run it (it takes {opens} or newer)",
        )


def export(
    run: Run,
    variants: Sequence[str],
    *,
    out: Path | None = None,
    bar: Bar = no_bar,
    on_exported: Callable[[Package], None] | None = None,
) -> list[Package]:
    """Write `NAME-VARIANT.mlpackage` for each of VARIANTS that is asked for into the run folder, or into `out`.

    A package whose answers are wrong is not written, the others are, and QualityError then names it. Raises ConfigError for
    a run without a Keras network, an unknown variant, and a path where something else lies; MissingExtra without coremltools,
    ModelError when it cannot be converted, DataError when the data is gone or has changed.
    """
    check_request(run, variants)
    paths = {variant: (out or run.folder) / run.exported(variant, CORE_ML).name for variant in variants}
    for path in paths.values():
        if path.exists() and not (path / MANIFEST).is_file():
            raise ConfigError(f"{path}: is there and is no Core ML package; move it away")
    setting = set_up(run, bar)
    with bar("converting to Core ML"):
        float16 = convert(setting.own.keras, setting.run.card)
    done, refused = list[Package](), list[str]()
    for variant, path in paths.items():
        try:
            done.append(_finish(float16 if variant == FLOAT16 else _with_w8(float16), variant, setting, path, bar))
        except (QualityError, ModelError) as error:
            refused.append(str(error))
            continue
        if on_exported:
            on_exported(done[-1])
    if refused:
        raise not_exported(refused, [package.path.name for package in done])
    return done


def check_request(run: Run, variants: Sequence[str]) -> None:
    """Raise ConfigError or MissingExtra before any work where there is no way to what is asked for."""
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown or len(set(variants)) != len(variants):
        raise ConfigError(f"Core ML variants {', '.join(variants)}: expected each once, of: {', '.join(VARIANTS)}")
    if importlib.util.find_spec("coremltools") is None:
        raise MissingExtra.for_extra("coreml", "the package coremltools is not installed")
    if run.model_file.name != MODEL:
        raise ConfigError(
            f"{run.folder}: was imported as {run.model_file.suffix}, and Core ML packages are made of Keras networks; "
            "import the .keras or .h5 file that it was made from"
        )


def _coremltools() -> Any:
    """The module, which finds much to say when it is imported; TensorFlow comes first, with its settings."""
    tensorflow()
    with quiet():
        import coremltools
        import coremltools.optimize.coreml
    return coremltools


def convert(model: Any, card: ModelCard) -> Any:
    """A Keras network that ends in logits as a `coremltools.models.MLModel` of float16 weights, with a softmax and a class.

    Raises ModelError when coremltools refuses it.
    """
    ct, tf, network = _coremltools(), tensorflow(), quantize.with_softmax(model)
    signature = tf.TensorSpec((1, *card.image.shape), "float32", name=INPUT)

    def converted() -> Any:
        from coremltools.converters.mil.mil import Builder

        getattr(Builder, "name_count", {}).clear()  # which numbers names on through a process, so that no two were the same
        call = tf.function(lambda image: network(image, training=False)).get_concrete_function(signature)
        return ct.convert(
            [call], source="tensorflow", convert_to="mlprogram", inputs=[_picture(ct, card.image)],
            classifier_config=ct.ClassifierConfig(list(card.labels)), compute_precision=ct.precision.FLOAT16,
            minimum_deployment_target=ct.target.iOS15, skip_model_load=True,
        )  # fmt: skip

    return quantize.made(converted, f"{card.name}: coremltools cannot convert it")


def _picture(ct: Any, image: ImageSpec) -> Any:
    """The input of that size and colour; scale and bias are exact in float32."""
    layout = {"rgb": ct.colorlayout.RGB, "bgr": ct.colorlayout.BGR, "grey": ct.colorlayout.GRAYSCALE}[image.colour]
    bias = -image.mean / image.std
    return ct.ImageType(
        name=INPUT, shape=(1, *image.shape), scale=1 / image.std, bias=bias if image.colour == "grey" else [bias] * 3,
        color_layout=layout,
    )  # fmt: skip


def _with_w8(model: Any) -> Any:
    """The same with 8-bit weights, symmetric and per channel, in tensors of more than 2,048; coremltools' own choice."""
    optimize = _coremltools().optimize.coreml
    config = optimize.OptimizationConfig(global_config=optimize.OpLinearQuantizerConfig(mode="linear_symmetric"))
    return quantize.made(lambda: optimize.linear_quantize_weights(model, config), f"coreml-{W8}: coremltools cannot quantise it")


def _finish(model: Any, variant: str, setting: Setting, path: Path, bar: Bar) -> Package:
    """Check what can be checked, put the card in, write. Raises QualityError, ModelError."""
    name, card, spec = f"coreml-{variant}", setting.run.card, model.get_spec()
    program = Program(spec, model.weights_dir)
    check_spec(spec, program.labels, card, name)
    if variant == W8 and not any(op.op_type.startswith("constexpr_") for op in program.operators):
        raise QualityError(f"{name}: none of its tensors has the 2,048 weights from which on 8 bits are worth it; take --coreml")
    found, unfoldable = None, ""
    try:
        found = _checked_answers(program, variant, setting, bar)
    except Unfoldable as error:
        unfoldable = str(error)
    _write(model, _card(card, variant, found), path)
    return Package(
        name, path, sum(part.stat().st_size for part in path.rglob("*") if part.is_file()),
        found.drop.total if found else 0, found.agreement if found else None,
        found.largest_logit_difference if found else None, unfoldable,
    )  # fmt: skip


def check_spec(spec: Any, labels: Sequence[str], card: ModelCard, name: str) -> None:
    """What an app sees: one picture of that size and colour in, a class and its probabilities out. Raises QualityError."""
    inputs, image = list(spec.description.input), card.image
    colours = {"rgb": "RGB", "bgr": "BGR", "grey": "GRAYSCALE"}
    if len(inputs) != 1 or inputs[0].type.WhichOneof("Type") != "imageType":
        raise QualityError(f"{name}: it does not take one picture")
    given = inputs[0].type.imageType
    colour = given.ColorSpace.Name(given.colorSpace)
    if (given.width, given.height, colour) != (image.width, image.height, colours[image.colour]):
        raise QualityError(f"{name}: it takes {given.width}x{given.height} {colour}, not {image.width}x{image.height}")
    if tuple(labels) != card.labels:
        raise QualityError(f"{name}: its labels are not those of the model card")
    if not spec.description.predictedFeatureName or not spec.description.predictedProbabilitiesName:
        raise QualityError(f"{name}: it does not name its class and probabilities")


def _checked_answers(program: Program, variant: str, setting: Setting, bar: Bar) -> Against:
    """The gates, on a seeded draw of held-out pictures. Raises QualityError, Unfoldable."""
    name, dataset = f"coreml-{variant}", setting.dataset
    drawn = np.sort(np.random.RandomState(0).permutation(setting.held_out)[:PICTURES])
    pictures, rows = dataset.shards.take(drawn), []
    with bar(f"working out {name}") as report:
        for number in range(len(pictures)):
            rows.append(program.answer(pictures[number : number + 1]))
            report(number + 1, len(pictures))
    logits, probabilities = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    gates.check_answers(name, logits, dataset.labels)
    gates.check_probabilities(name, probabilities, FLOAT16_STEP / len(dataset.labels))
    if variant == FLOAT16:
        _check_conversion(setting.own.infer(pictures), logits)
    found = compare.against(setting.full.infer(pictures), logits, dataset.catalogue.classes[drawn], dataset.labels)
    gates.check_drop(name, found.drop, "--coreml or --float16")
    return found


def _check_conversion(keras: Scores, logits: Scores) -> None:
    """Apart by no more than float16 explains."""
    apart, largest = float(np.abs(keras - logits).max()), max(1.0, float(np.abs(keras).max()))
    if not apart <= FLOAT16_APART * largest:
        raise QualityError(f"coreml-{FLOAT16}: its logits differ from the Keras model's by {apart:.3g}; take --float16 or --onnx")


def _card(card: ModelCard, variant: str, found: Against | None) -> ModelCard:
    measured = {
        "part": "test", "pictures": found.drop.total, "agreement": found.agreement,
        "largest_logit_difference": found.largest_logit_difference, "runtime": "worked out by edgeclf, not run by Core ML",
    } if found else {}  # fmt: skip
    accuracy = {**card.accuracy, "file": measured} if measured else card.accuracy
    return replace(
        card, variant=variant, io="float32", outputs="probabilities", provenance=shipped(card.provenance), accuracy=accuracy,
        sha256="",
    )  # fmt: skip


def _write(model: Any, card: ModelCard, path: Path) -> None:
    """The package with its card and its description, whole or not at all; same model, same bytes."""
    image, what = card.image, model.get_spec().description
    model.short_description = f"Image classifier of {len(card.labels)} classes."
    model.input_description[INPUT] = f"A picture of {image.width}x{image.height} pixels as it is; fit: {image.fit}."
    model.output_description[what.predictedFeatureName] = "The likeliest class."
    model.output_description[what.predictedProbabilitiesName] = "The probability of each class."
    model.user_defined_metadata[CARD] = card.to_json()
    model.user_defined_metadata.pop(DATED, None)
    with files.writing_folder(path) as folder:
        with quiet():
            model.save(str(folder))
        _settle(folder)


def _settle(folder: Path) -> None:
    """Take chance out of a package: random names in its manifest, the order of entries in its specification."""
    text = (folder / MANIFEST).read_text(encoding="utf-8")
    entries = json.loads(text)["itemInfoEntries"]
    for key, entry in entries.items():
        text = text.replace(key, str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])))
    manifest = json.loads(text)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    specification = folder / "Data" / manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    specification.write_bytes(_coremltools().utils.load_spec(str(specification)).SerializeToString(deterministic=True))
    for part in folder.rglob("*"):
        part.chmod(0o755 if part.is_dir() else 0o644)
