"""What a plain float network is worth as an int8 file: the file is made and run, as `export` would, on pictures of a part."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclf.core.bundle import Bundle
from edgeclf.core.card import Io
from edgeclf.core.tflite import read_model
from edgeclf.host.compress import qat
from edgeclf.host.compress.compression import Setting
from edgeclf.host.compress.qat import LayerRanges
from edgeclf.host.data.calibration import CalibrationSet
from edgeclf.host.export import activations, quantize
from edgeclf.host.export.activations import Ranges
from edgeclf.host.report.timing import interleaved
from edgeclf.host.understand.compare import batches, predictions
from edgeclf.runtime.engine import Engine, open_engine


def calibrated(model: Any, setting: Setting) -> LayerRanges:
    """The range of each layer's output on the calibration pictures, by layer."""
    float32, ranges = _float32(model, setting.calibration)
    return qat.by_layer(ranges, read_model(float32, "float32"), model)


def accuracy(model: Any, ranges: LayerRanges, setting: Setting, part: str = "val") -> float:
    """Top-1, as a fraction, of the int8 file on a part; `ranges` replace the calibrated ones of their layers."""
    engine, truth = int8_engine(model, ranges, setting), setting.dataset.classes_of(part)
    indices = setting.dataset.parts[part]
    answers = [predictions(engine.infer(setting.dataset.shards.take(indices[rows]))) for rows in batches(len(indices))]
    return float(np.mean(np.concatenate(answers) == truth))


def latency_ms(model: Any, setting: Setting) -> float:
    """Milliseconds of one picture through the network's int8 file on this machine, one thread, the median."""
    engine = int8_engine(model, {}, setting)
    picture = setting.dataset.shards.take(setting.calibration.indices[:1])
    return interleaved({"int8": lambda: engine.infer(picture)})["int8"].latency.p50_ms


def int8_engine(model: Any, ranges: LayerRanges, setting: Setting) -> Engine:
    """An engine that runs the int8 file of a plain network."""
    made = int8_file(model, ranges, setting.calibration)
    return open_engine(Bundle(made, setting.card("int8"), setting.dataset.labels, "int8"), probed=True)


def int8_file(model: Any, ranges: LayerRanges, chosen: CalibrationSet, io: Io = "uint8") -> bytes:
    """The int8 file of a plain network; `ranges` replace the calibrated ones of their layers."""
    float32, found = _float32(model, chosen)
    return quantize.quantize(float32, "int8", qat.by_tensor(ranges, found, read_model(float32, "float32"), model), io)


def _float32(model: Any, chosen: CalibrationSet) -> tuple[bytes, Ranges]:
    float32 = quantize.to_float32(quantize.with_softmax(model))
    return float32, activations.record_ranges(float32, chosen.batches())
