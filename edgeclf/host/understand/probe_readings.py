"""What probes read from the layers of a network, as frozen values; as `probe.json`, and as a figure.

`probe.json` is one object; shares are fractions, and nothing in it is NaN:

    edgeclf_probe    1, the version of this layout
    run data own_data labels train_pictures validation_pictures held_out_pictures layers_in_network seconds
    chance           share of the largest class: what an answer that looks at nothing reaches
    model            {top1, interval} of the network itself on the same held-out pictures; null for data with other classes
    layers           list of {name, kind, shape, features, alone, cumulated}, input first; cumulated reads all layers so far
                     alone and cumulated: {top1, interval, features, strength, iterations, converged}
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core import files
from edgeclf.core.results import Interval
from edgeclf.host import plots

SCHEMA = 1
JSON, PNG = "probe.json", "probe.png"


@dataclass(frozen=True)
class Reading:
    """How right one probe is on the held-out pictures. `strength` is 1 / lambda, as picked on the validation part.

    `converged` is what scikit-learn's L-BFGS says of the fit, `iterations` how many it took.
    """

    top1: float
    interval: Interval
    features: int
    strength: float
    iterations: int
    converged: bool


@dataclass(frozen=True)
class LayerReading:
    """What was read from one layer alone, and from it and all layers before it together."""

    name: str
    kind: str
    shape: tuple[int, ...]
    features: int
    alone: Reading
    cumulated: Reading


@dataclass(frozen=True)
class ModelReading:
    """The network itself on the same held-out pictures."""

    top1: float
    interval: Interval


@dataclass(frozen=True)
class Probing:
    """Every layer of a network, probed. `own_data` says that held-out pictures were held out from the network's training too."""

    run: str
    data: str
    own_data: bool
    labels: tuple[str, ...]
    train_pictures: int
    validation_pictures: int
    held_out_pictures: int
    layers_in_network: int
    seconds: float
    chance: float
    model: ModelReading | None
    layers: tuple[LayerReading, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of `probe.json`."""
        return {"edgeclf_probe": SCHEMA, **asdict(self)}

    def unfinished(self) -> int:
        """How many probes did not converge."""
        return sum(not reading.converged for layer in self.layers for reading in (layer.alone, layer.cumulated))


def write(probing: Probing, folder: Path) -> tuple[Path, Path]:
    """Write `probe.json` and `probe.png` into `folder`, each whole; returns their paths."""
    document, figure = folder / JSON, folder / PNG
    _draw(probing, figure)
    files.write_json(document, probing.to_json())
    return document, figure


def _draw(probing: Probing, path: Path) -> None:
    """Accuracy over depth: alone and cumulated with their intervals, the network itself as a dotted line."""
    names = [plots.short(layer.name, 24) for layer in probing.layers]
    with plots.drawing(path, max(plots.WIDTH_IN, 0.32 * len(names) + 1.6), 4.2) as figure:
        axes = figure.subplots()
        for i, which in enumerate(("alone", "cumulated")):
            found: list[Reading] = [getattr(layer, which) for layer in probing.layers]
            top1 = np.array([r.top1 for r in found]) * 100
            errors = np.array([[r.top1 - r.interval.low, r.interval.high - r.top1] for r in found]).T * 100
            axes.errorbar(
                range(len(found)), top1, yerr=np.maximum(errors, 0), label=which, color=plots.COLOURS[i],
                marker=plots.MARKERS[i], linestyle=("-", "--")[i], markersize=4, linewidth=1.6, elinewidth=1, capsize=2,
            )  # fmt: skip
        if probing.model:
            axes.axhline(probing.model.top1 * 100, color=plots.INK, linewidth=1, linestyle=":", label="the network")
        axes.axhline(probing.chance * 100, color=plots.INK, linewidth=1, linestyle="-.", label="chance")
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_title(f"linear probes, accuracy on {probing.held_out_pictures:,} held-out pictures, %")
        axes.set_ylim(bottom=0)
        axes.legend(loc="best")
