"""The question behind `debug-quant`: an int8 file in, the error of each of its layers against the float32 file out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeclf.core.bundle import model_bytes, parse_bundle, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import Pixels
from edgeclf.core.progress import Report
from edgeclf.core.tflite import scheme
from edgeclf.host import plots
from edgeclf.host.data import calibration
from edgeclf.host.data.dataset import ingest, open_catalogue, open_dataset
from edgeclf.host.export import quant_errors, quantize
from edgeclf.host.export.quant_errors import LayerError
from edgeclf.host.run import CARD, open_run

PICTURES = 64
QUANTISED = ("int8", "w8a16", "mixed", "w4a8")


@dataclass(frozen=True)
class Diagnosis:
    """The error of every layer in the order of computation, and the layers that bring it in, the worst first.

    `drop` is what the file's card says that export measured of top-1: lost, and the ends of the 95% interval, as fractions.
    """

    file: Path
    pictures: int
    layers: tuple[LayerError, ...]
    blamed: tuple[LayerError, ...]
    drop: tuple[float, float, float] | None = None


def diagnose(file: Path, float32: Path | None = None, data: str | None = None, progress: Report | None = None) -> Diagnosis:
    """Compare the file with the float32 network that it was made from, on 64 pictures.

    Both come from the run folder that the file lies in: its network, and its training pictures, as calibration draws them.
    Elsewhere `float32` names the float32 file and `data` the pictures. Raises ConfigError when one is missing, ModelError
    for a file that is not quantised throughout or that was made from another network, DataError for pictures.
    """
    bundle = read_bundle(file)
    if bundle.card is None:
        raise ModelError(f"{file}: has no model card, so its preprocessing is not known; import its model, and export that")
    found = scheme(bundle.structure)
    if found not in QUANTISED:
        raise ModelError(f"{file}: is {found}, whose activations are floats; give an int8 file")
    run = file.resolve().parent
    if not (run / CARD).is_file() and (float32 is None or data is None):
        raise ConfigError(f"{file}: lies in no run folder; give the float32 file and pictures: --float32 FILE --data DATA")
    original = parse_bundle(model_bytes(float32), str(float32)).model if float32 else _network(run)
    pictures = _given(data, bundle.card, progress) if data else _drawn(run, progress)
    layers = quant_errors.layer_errors(original, bundle.model, [pictures])
    return Diagnosis(file, len(pictures), layers, quant_errors.blamed(layers), _drop(bundle.card))


def _drop(card: ModelCard) -> tuple[float, float, float] | None:
    measured = card.accuracy.get("file")
    found = [measured.get(key) for key in ("drop", "drop_low", "drop_high")] if isinstance(measured, dict) else []
    numbers = [float(value) for value in found if isinstance(value, (int, float))]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def _network(folder: Path) -> bytes:
    return quantize.to_float32(quantize.with_softmax(open_run(folder).model()))


def _drawn(folder: Path, progress: Report | None) -> Pixels:
    run = open_run(folder)
    dataset = open_dataset(run, progress)
    return dataset.shards.take(calibration.draw(dataset, PICTURES, run.recipe.training.seed).indices)


def _given(data: str, card: ModelCard, progress: Report | None) -> Pixels:
    catalogue = open_catalogue(data)
    shards = ingest(catalogue, card.image, progress)
    readable = np.flatnonzero(shards.readable)
    return shards.take(np.sort(np.random.RandomState(0).permutation(readable)[:PICTURES]))


def draw(found: Diagnosis, out_png: Path) -> None:
    """Signal to noise of every layer from the input on, the blamed ones marked; into `out_png`, written whole."""
    names = [plots.short(layer.layer.rsplit("/", 2)[-2] if "/" in layer.layer else layer.layer, 26) for layer in found.layers]
    guilty = {layer.tensor for layer in found.blamed}
    colours = [plots.COLOURS[1] if layer.tensor in guilty else plots.COLOURS[0] for layer in found.layers]
    with plots.drawing(out_png, width_in=6.0, height_in=1.2 + 0.18 * len(names)) as figure:
        axes = figure.subplots()
        axes.barh(range(len(names)), [layer.snr_db for layer in found.layers], color=colours)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("signal to quantisation noise, dB")
        axes.set_title(f"orange: {quant_errors.BLAMED_DB:g} dB or more below what it reads")
