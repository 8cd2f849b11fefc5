"""The ONNX files of an export: made and checked as far as needs no answers; `host.export.export` measures and writes them."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata as packages
from typing import Any

import numpy as np

from edgeclf.core.bundle import Bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ModelError, QualityError
from edgeclf.core.image import Pixels
from edgeclf.core.onnx import read_model, scheme
from edgeclf.core.progress import Bar
from edgeclf.host.compress import qat
from edgeclf.host.data.calibration import CalibrationSet
from edgeclf.host.export import gates, quantize_onnx, to_onnx
from edgeclf.host.export.candidates import Candidate, Setting, check_same, float32_card, shipped
from edgeclf.host.export.to_onnx import OnnxRequest
from edgeclf.host.imports import house_onnx
from edgeclf.runtime.engine import Scores
from edgeclf.runtime.onnx import OnnxEngine, onnxruntime

BATCH = 3  # pictures of the trial of a file that takes several


def make(request: OnnxRequest, setting: Setting, bar: Bar) -> tuple[list[Candidate], list[str]]:
    """One of each variant, and why the others cannot be; the float32 model comes first, for int8 is made from it."""
    with bar("converting to ONNX"):
        float32 = to_onnx.to_onnx(setting.own, setting.run.card, request)
    check(float32, float32_card(setting))
    check_same(open_onnx(float32, float32_card(setting)), "onnx-float32", setting)
    made, refused = [], []
    for variant in request.variants:
        try:
            made.append(_candidate(float32, variant, request, setting, bar))
        except (QualityError, ModelError) as error:
            refused.append(str(error))
    return made, refused


def _candidate(float32: bytes, variant: str, request: OnnxRequest, setting: Setting, bar: Bar) -> Candidate:
    own, chosen = setting.run.card, setting.calibration
    model = float32 if variant == "float32" else int8_of(float32, setting, bar)
    card = replace(
        own, variant=setting.run.named(variant), io="float32",
        outputs="probabilities", provenance=shipped(own.provenance),
        calibration=calibration_record(chosen) if variant == "int8" else {},
    )  # fmt: skip
    check(model, card)
    if request.dynamic_batch:
        check_batch(model, card, setting.dataset.shards.take(setting.held_out[:BATCH]))
    return Candidate(model, card, open_onnx(model, card))


def open_onnx(model: bytes, card: ModelCard) -> OnnxEngine:
    """An engine for a file that is not written yet. Raises ModelError."""
    return OnnxEngine(Bundle(model, card, card.labels, f"{card.variant}.onnx"), None, probed=True)


def int8_of(float32: bytes, setting: Setting, bar: Bar) -> bytes:
    """The model with the ranges of calibration and, where it was trained with the rounding, of that. Raises ModelError."""
    found = scheme(read_model(float32, "onnx-int8"))
    if found != "float32":
        raise ModelError(f"onnx-int8: the model is {found} already; import it as it was before that, in floats")
    with bar("calibrating for ONNX") as report:
        ranges = quantize_onnx.record_ranges(float32, setting.run.card.image, setting.calibration.batches(report))
    trained = setting.run.ranges()
    if trained:
        ranges |= qat.of_tensors(trained, quantize_onnx.computed(float32), setting.own.keras)
    return quantize_onnx.quantize(float32, ranges)


def check(model: bytes, card: ModelCard) -> None:
    """What the tensors must be, and the format's own checker. Raises QualityError."""
    import onnx

    gates.check_onnx(read_model(model, f"onnx-{card.variant}"), card.variant, len(card.labels))
    try:
        onnx.checker.check_model(house_onnx.read(model, card.name), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())[:200]
        raise QualityError(f"onnx-{card.variant}: the ONNX checker refuses it: {reason}") from error


def check_batch(model: bytes, card: ModelCard, pictures: Pixels) -> None:
    """Of a file that is to take several pictures: it does, and answers each as it does alone. Raises QualityError."""
    few = pictures[:BATCH]
    try:
        together = _outputs(model, card, [few])
    except ModelError as error:
        raise QualityError(f"onnx-{card.variant}: takes one picture at a time; leave --dynamic-batch out") from error
    if np.abs(together - file_output(model, card, few)).max() > gates.SAME_AS_KERAS:
        raise QualityError(f"onnx-{card.variant}: answers a picture otherwise beside others; leave --dynamic-batch out")


def file_output(model: bytes, card: ModelCard, pictures: Pixels) -> Scores:
    """What the file's own output tensor holds, picture by picture: float32 (pictures, classes)."""
    return _outputs(model, card, [pictures[i : i + 1] for i in range(len(pictures))])


def _outputs(model: bytes, card: ModelCard, batches: list[Pixels]) -> Scores:
    """The probabilities of each batch, one below the other, as a client without a card gets them."""
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    rows = []
    for batch in batches:
        try:
            found = session.run(None, {given.name: quantize_onnx.normalised(batch, card.image, given.shape[3], given.type)})
        except Exception as error:  # every failure of the runtime has a class of its own, all below Exception
            raise ModelError(f"onnx-{card.variant}: fails while it computes: {' '.join(str(error).split())[:200]}") from error
        rows.append(found[0].reshape(len(batch), -1))
    answers: Scores = np.concatenate(rows).astype(np.float32)
    return answers


def calibration_record(chosen: CalibrationSet) -> dict[str, Any]:
    """Which pictures set the ranges, and what put them into the file."""
    return {**chosen.manifest(), "quantizer": f"onnxruntime {packages.version('onnxruntime')}"}
