"""Where a network is probed: its input, its convolutions with what follows them, the ends of its blocks, hidden dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgeclf.core.errors import ConfigError, ModelError

Kind = Literal["input", "convolution", "block", "dense"]

MERGES = ("Add", "Concatenate", "Multiply", "Average", "Maximum", "Subtract")
FOLLOWERS = ("BatchNormalization", "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU")
MOST_POINTS = 24  # every further one makes all the cumulated probes larger
MOST_BYTES = 1 << 28  # of the features of all pictures

LAYERS = ("all", "conv")


@dataclass(frozen=True, eq=False)
class Point:
    """A place of the network: `output` is a Keras tensor, (pictures, rows, columns, features) or (pictures, features).

    `name` is the layer that it begins with; batch normalisation and activation that follow belong to it. `shape` is without
    the pictures.
    """

    name: str
    kind: Kind
    output: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.output.shape[1:])

    @property
    def features(self) -> int:
        """How many are left of it after global average pooling."""
        return self.shape[-1]


def points_of(model: Any, layers: str = "all") -> list[Point]:
    """The points of a flat functional `tf_keras.Model` from the input on; `layers` is `conv`, or `all` for blocks and dense too.

    Maps that are smaller than a later one are gates (squeeze-and-excite), not stages, and are left out; so is the last dense
    layer, which gives the logits. Raises ConfigError for another `layers`, ModelError when there is nothing to probe.
    """
    if layers not in LAYERS:
        raise ConfigError(f"--layers {layers}: expected one of: {', '.join(LAYERS)}")
    kinds: tuple[Kind, ...] = ("convolution",) if layers == "conv" else ("convolution", "block", "dense")
    largest_after = np.maximum.accumulate([_area(layer) for layer in model.layers][::-1])[::-1]
    last_dense = next((layer for layer in reversed(model.layers) if type(layer).__name__ == "Dense"), None)
    found = [Point("input", "input", model.inputs[0])]
    for layer, largest in zip(model.layers, largest_after, strict=True):
        kind = _kind(layer)
        if kind in kinds and _area(layer) >= largest and layer is not last_dense:
            found.append(Point(layer.name, kind, _end(model, layer).output))
    if len(found) == 1:
        raise ModelError(f"{model.name}: has no convolution that could be probed")
    return found


def thinned(points: Sequence[Point], pictures: int) -> list[Point]:
    """Evenly chosen points, the first and the last among them, no more than MOST_POINTS and MOST_BYTES of features allow."""
    count = min(len(points), MOST_POINTS)
    while True:
        places = np.unique(np.linspace(0, len(points) - 1, count).round().astype(int))
        chosen = [points[i] for i in places]
        if count <= 2 or 4 * pictures * sum(point.features for point in chosen) <= MOST_BYTES:
            return chosen
        count -= 1


def _kind(layer: Any) -> Kind | None:
    name = type(layer).__name__
    if _area(layer) == 0:
        return None
    if name.endswith("Conv2D"):
        return "convolution"
    if name == "Dense":
        return "dense"
    return "block" if name in MERGES and len(layer.output.shape) == 4 else None


def _area(layer: Any) -> int:
    """Places of the layer's map; 1 for a vector, 0 for what is neither, or is called twice and has no single output."""
    shape: Any = getattr(getattr(layer, "output", None), "shape", ())
    if len(shape) == 4 and shape[1] and shape[2]:
        return int(shape[1] * shape[2])
    return 1 if len(shape) == 2 else 0


def _end(model: Any, layer: Any) -> Any:
    """The last of the normalisations and activations that follow `layer` and nothing else does."""
    own = {id(x) for x in model.layers}
    while True:
        after = [node.layer for node in layer.outbound_nodes if id(node.layer) in own]
        if len(after) != 1 or type(after[0]).__name__ not in FOLLOWERS or _area(after[0]) == 0:
            return layer
        layer = after[0]
