"""The TFLite files of an export: made and checked as far as needs no answers; `host.export.export` measures and writes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.bundle import Bundle, model_bytes
from edgeclf.core.card import Io, ModelCard
from edgeclf.core.errors import ModelError
from edgeclf.core.progress import Bar
from edgeclf.core.tflite import read_model
from edgeclf.host.compress import qat
from edgeclf.host.data.calibration import CalibrationSet, Indices
from edgeclf.host.data.dataset import Dataset
from edgeclf.host.export import activations, gates, quantize
from edgeclf.host.export.metadata import with_metadata
from edgeclf.host.full_model import FullModel
from edgeclf.host.report.comparison import FULL
from edgeclf.host.run import Run
from edgeclf.host.understand import compare
from edgeclf.runtime.engine import TfliteEngine, open_engine
from edgeclf.runtime.onnx import OnnxEngine

AGREEMENT_PICTURES = 500
LEFT_OUT = ("command", "compressed_from", "teacher")  # of the provenance, when a file leaves the machine


@dataclass(frozen=True, eq=False)
class Setting:
    """What all files of one export share: `own` is the network that becomes files, `full` what they are compared with."""

    run: Run
    dataset: Dataset
    held_out: Indices
    own: FullModel
    full: FullModel
    calibration: CalibrationSet


@dataclass(frozen=True, eq=False)
class Candidate:
    """A variant before its gates: the model with its metadata, its card so far, and an engine that runs it."""

    model: bytes
    card: ModelCard
    engine: TfliteEngine | OnnxEngine

    @property
    def onnx(self) -> bool:
        """Whether it is an ONNX file."""
        return isinstance(self.engine, OnnxEngine)

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"onnx-{self.card.variant}" if self.onnx else self.card.variant


@dataclass(frozen=True, eq=False)
class Source:
    """The float32 flatbuffer that all variants are made from, and what calibration pictures showed of it, once they ran."""

    float32: bytes
    recorded: activations.Recorded | None = None


def source(setting: Setting, calibrated: bool, bar: Bar) -> Source:
    """The float32 file, whose answers are those of the network; with what calibration shows when that is wanted.

    Raises QualityError when the conversion went wrong.
    """
    float32 = _float32(setting.own)
    check_same(open_tflite(float32, float32_card(setting)), "float32", setting)  # though nobody asked for it
    if not calibrated:
        return Source(float32)
    with bar("calibrating") as report:
        return Source(float32, activations.record(float32, setting.calibration.batches(report)))


def _float32(full: FullModel) -> bytes:
    """The full model as a float32 flatbuffer that ends in SOFTMAX."""
    return model_bytes(full.path) if full.keras is None else quantize.to_float32(quantize.with_softmax(full.keras))


def float32_card(setting: Setting) -> ModelCard:
    """What describes a float32 file of the run."""
    return replace(setting.run.card, variant="float32", io="float32", outputs="probabilities")


def check_same(engine: TfliteEngine | OnnxEngine, name: str, setting: Setting) -> None:
    """Raise QualityError unless a float32 file answers some held-out pictures as the network that it was made from."""
    few = np.random.RandomState(0).permutation(setting.held_out)[:AGREEMENT_PICTURES]
    scores = compare.answers({FULL: setting.own.infer, name: engine.infer}, setting.dataset.shards.take, few)
    gates.check_answers(FULL, scores[FULL], setting.dataset.labels)
    gates.check_agreement(scores[FULL], scores[name], name)


def make(variant: str, io: Io, made_from: Source, setting: Setting) -> Candidate:
    """One variant; `io` is for int8 alone. Raises ModelError, QualityError where it cannot be."""
    calibrated, ends = variant in quantize.CALIBRATED, io if variant == "int8" else "float32"
    recorded = made_from.recorded if calibrated else None
    ranges = trained_ranges(made_from.float32, recorded.ranges(), setting) if recorded else None
    model = quantize.quantize(made_from.float32, variant, ranges, ends)
    return described(model, setting.run.named(variant), ends, setting, calibrated)


def trained_ranges(float32: bytes, calibrated: activations.Ranges, setting: Setting) -> activations.Ranges:
    """The calibrated ranges, with those that quantisation-aware training found where there are any."""
    trained = setting.run.ranges()
    return qat.by_tensor(trained, calibrated, read_model(float32, "float32"), setting.own.keras) if trained else calibrated


def described(
    model: bytes, variant: str, io: Io, setting: Setting, calibrated: bool, notes: dict[str, Any] | None = None
) -> Candidate:
    """A quantised model with its card, checked as far as no picture is needed; `notes` go into the card's provenance."""
    card = replace(
        setting.run.card, variant=variant, io=io, outputs="probabilities",
        provenance={**shipped(setting.run.card.provenance), **(notes or {})},
        calibration=_calibration_record(setting.calibration) if calibrated else {},
    )  # fmt: skip
    gates.check_structure(read_model(model, variant), variant, io, len(card.labels))
    model = with_metadata(model, card)
    return Candidate(model, card, open_tflite(model, card))


def shipped(provenance: dict[str, Any]) -> dict[str, Any]:
    """What may leave the machine: the data by its name alone, and no command line, for both hold the maker's folders."""
    kept = {key: value for key, value in provenance.items() if key not in LEFT_OUT}
    return {**kept, "data": Path(str(kept["data"])).name}


def open_tflite(model: bytes, card: ModelCard) -> TfliteEngine:
    """An engine for a file that is not written yet. Raises ModelError."""
    engine = open_engine(Bundle(model, card, card.labels, card.variant), probed=True)
    if not isinstance(engine, TfliteEngine):
        raise ModelError(f"{card.variant}: opened with {engine.runtime}, which is no TFLite runtime")
    return engine


def _calibration_record(chosen: CalibrationSet) -> dict[str, Any]:
    return {**chosen.manifest(), "quantizer": f"litert-quantizer {packages.version('litert-quantizer')}"}
