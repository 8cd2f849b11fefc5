"""Grad-CAM, Grad-CAM++ and CAM: where in the last feature maps of a float network the evidence for a class lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import Pixels
from edgeclf.core.text import nearest
from edgeclf.host.augment.augment import normalise
from edgeclf.host.keras import keras, tensorflow
from edgeclf.runtime.occlusion import Heat

Maps = npt.NDArray[np.float64]
"""(rows, columns, channels): the activations of a layer for one picture, or the gradient of a class score by them."""

PASSED = ("Dropout", "SpatialDropout2D", "Flatten", "Reshape", "InputLayer")  # they move values about, and change none


@dataclass(frozen=True, eq=False)
class ActivationMaps:
    """A float network with a layer to look at: `heat(pixels, target)` for one prepared picture and a class."""

    layer: str
    heat: Callable[[Pixels, int], Heat]


def open_maps(model: Any, method: str = "gradcam", layer: str | None = None) -> ActivationMaps:
    """Get ready to explain a flat functional `tf_keras.Model` that ends in logits, at `layer` or at the last feature maps.

    `method` is gradcam, gradcam++ or cam. `heat` gives float32 (height, width) over the input, interpolated from the layer's
    size; negative values, which only CAM has, speak against the class. Raises ConfigError for a layer that has no maps and for
    CAM where the head does not allow it, ModelError for a network without feature maps.
    """
    at = _map_layer(model, layer)
    formula = _cam_of(_head_kernel(model, at)) if method == "cam" else FORMULAS[method]
    look = _looking(model, at)

    def heat(pixels: Pixels, target: int) -> Heat:
        found = formula(*look(pixels, target), target).astype(np.float32)
        resized: Any = cv2.resize(found, (pixels.shape[1], pixels.shape[0]), interpolation=cv2.INTER_LINEAR)
        return resized  # type: ignore[no-any-return]

    return ActivationMaps(at.name, heat)


def grad_cam(activations: Maps, gradient: Maps) -> Maps:
    """ReLU(sum_k a_k A_k), a_k the mean gradient over channel k (Selvaraju et al. 2017): (rows, columns), not below 0."""
    found: Maps = np.maximum(activations @ gradient.mean((0, 1)), 0)
    return found


def grad_cam_plus(activations: Maps, gradient: Maps) -> Maps:
    """As Grad-CAM, a_k the sum of positive gradients weighed by g^2 / (2 g^2 + g^3 sum A) (Chattopadhay et al. 2018, eq. 19).

    With the class score taken as exp(logit), as there, higher derivatives are powers of the gradient of the logit.
    """
    square, total = gradient**2, activations.sum((0, 1))
    below = 2 * square + gradient**3 * total
    share = np.divide(square, below, out=np.zeros_like(square), where=np.abs(below) > 1e-30)
    found: Maps = np.maximum(activations @ (share * np.maximum(gradient, 0)).sum((0, 1)), 0)
    return found


def cam(activations: Maps, weights: npt.NDArray[np.float64]) -> Maps:
    """sum_k w_k A_k, w the class's weights (channels,) behind global average pooling (Zhou et al. 2016): signed."""
    found: Maps = activations @ weights
    return found


FORMULAS: dict[str, Callable[[Maps, Maps, int], Maps]] = {
    "gradcam": lambda activations, gradient, target: grad_cam(activations, gradient),
    "gradcam++": lambda activations, gradient, target: grad_cam_plus(activations, gradient),
}


def _cam_of(kernel: npt.NDArray[np.float64]) -> Callable[[Maps, Maps, int], Maps]:
    return lambda activations, gradient, target: cam(activations, _difference(kernel, target))


def map_layers(model: Any) -> list[Any]:
    """Layers whose output is a map of more than one place, (pictures, rows, columns, channels), in order."""
    return [layer for layer in model.layers if _area(layer) > 1 and type(layer).__name__ != "InputLayer"]


def _map_layer(model: Any, name: str | None) -> Any:
    layers = map_layers(model)
    if not layers:
        raise ModelError(f"{model.name}: has no layer with feature maps; use --method occlusion")
    if name is not None:
        found = next((layer for layer in layers if layer.name == name), None)
        if found is None:
            raise ConfigError(f"--layer {name!r}: no such layer with feature maps{nearest(name, [x.name for x in layers])}")
        return found
    own = [layer for layer in layers if not _only_passes(layer)]
    return (own or layers)[-1]


def _only_passes(layer: Any) -> bool:
    """Pooling, dropout and the like: what stands before them shows the same in finer detail."""
    kind = type(layer).__name__
    return kind in PASSED or "Pooling" in kind or "Padding" in kind


def _area(layer: Any) -> int:
    shape: Any = getattr(getattr(layer, "output", None), "shape", ())  # a layer that is called twice has no single output
    return int(shape[1] * shape[2]) if len(shape) == 4 and shape[1] and shape[2] else 0


def _looking(model: Any, layer: Any) -> Callable[[Pixels, int], tuple[Maps, Maps]]:
    tf = tensorflow()
    both = keras().Model(model.inputs, [layer.output, model.output])

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def look(picture: Any, weights: Any) -> Any:
        with tf.GradientTape() as tape:
            seen = normalise(picture)
            tape.watch(seen)  # else nothing is recorded where every weight is frozen
            activations, logits = both(seen, training=False)
            score = tf.reduce_sum(logits * weights)
        return activations, tape.gradient(score, activations)

    def answer(pixels: Pixels, target: int) -> tuple[Maps, Maps]:
        weights = _difference(np.eye(model.output_shape[-1]), target).astype(np.float32)
        activations, gradient = look(tf.constant(pixels[None]), tf.constant(weights))
        return activations.numpy()[0].astype(np.float64), gradient.numpy()[0].astype(np.float64)

    return answer


def _difference(columns: npt.NDArray[Any], target: int) -> npt.NDArray[Any]:
    """The column of a class; of two classes its difference to the other, for two logits mean nothing but their difference."""
    if columns.shape[1] != 2:
        return columns[:, target]
    difference: npt.NDArray[Any] = columns[:, target] - columns[:, 1 - target]
    return difference


def _head_kernel(model: Any, layer: Any) -> npt.NDArray[np.float64]:
    """Weights (channels, classes) of the dense layer behind global average pooling of `layer`. Raises ConfigError."""
    path = _path_back(model)
    kinds = [type(x).__name__ for x in path]
    if kinds[:2] != ["Dense", "GlobalAveragePooling2D"] or len(path) < 3:
        raise ConfigError(
            f"--method cam: needs a head of global average pooling and one dense layer; {model.name} ends in "
            f"{' → '.join(reversed(kinds[:3]))}; use --method gradcam"
        )
    if path[2] is not layer:
        raise ConfigError(f"--method cam: can be read at {path[2].name!r} alone, the layer before the pooling; leave --layer out")
    kernel: npt.NDArray[np.float64] = np.asarray(path[0].kernel, np.float64)
    return kernel


def _path_back(model: Any) -> list[Any]:
    """From the output towards the input as long as there is one way, without the layers that only pass values on."""
    path, layer = [], model.output.node.layer
    while layer is not None:
        if type(layer).__name__ not in PASSED:
            path.append(layer)
        before = layer.inbound_nodes[0].inbound_layers if layer.inbound_nodes else []
        layer = None if isinstance(before, list) else before
    return path
