"""A foreign Keras network in, the house's network out: it takes (pixel - 128) / 128 and ends in logits.

What the foreign network takes is (pixel - mean) / std, an affine map of what the house gives. The map is folded into the
first convolution where that is exact; elsewhere it stands in front as a depthwise 1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Number
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core.calibrate import softmax
from edgeclf.core.errors import ModelError
from edgeclf.core.image import MEAN, STD
from edgeclf.host.graphs import Call, nodes, rebuild, with_weights
from edgeclf.host.keras import keras

Floats: TypeAlias = npt.NDArray[np.float64]
Normalize: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, one number or one a channel

NORMALISATION, FEATURES, LOGITS, PAIR = "normalisation", "features", "logits", "logit_pair"
RAW: Normalize = (0.0,), (1.0,)  # of a network that takes pixels as they are
# Layers that do nothing after training.
FOR_TRAINING = (
    "RandomFlip", "RandomRotation", "RandomZoom", "RandomTranslation", "RandomContrast", "RandomBrightness", "RandomHeight",
    "RandomWidth", "GaussianNoise", "GaussianDropout", "ActivityRegularization",
)  # fmt: skip
SHAPES_ONLY = ("Flatten", "Reshape", "Dropout")  # they change no value, and a softmax may stand before them
POOLS = ("GlobalAveragePooling2D", "GlobalMaxPooling2D", "Flatten")
SQUASHES = ("softmax", "log_softmax", "sigmoid")
FUNCTIONS = {"nn.softmax": "softmax", "nn.log_softmax": "log_softmax", "math.sigmoid": "sigmoid", "nn.sigmoid": "sigmoid"}
NOISE_PICTURES = 4
SAME = 1e-4  # of scores, relative to the largest where that is above 1
SHARED = (
    "it ended in {outputs} sigmoids, each for itself; here they share one softmax, so the answers are the same and the scores "
    "are not"
)
UNKNOWN_NORMALISATION = (
    "it takes float pixels, and nothing says how they are normalised; say it: --normalize MEAN,STD "
    "(often 127.5,127.5 or 0,255 or 0,1)"
)


@dataclass(frozen=True, eq=False)
class Affine:
    """x = scale * house + offset, for each channel: what the foreign network takes, in terms of what the house gives."""

    scale: Floats
    offset: Floats

    def then(self, scale: Any, offset: Any) -> Affine:
        """This map, and after it scale * x + offset."""
        return Affine(self.scale * scale, self.offset * scale + offset)

    @property
    def nothing(self) -> bool:
        return bool(np.all(self.scale == 1) and np.all(self.offset == 0))


def affine(normalize: Normalize, channels: int) -> Affine:
    """(pixel - mean) / std in terms of (pixel - 128) / 128."""
    mean, std = (np.broadcast_to(np.asarray(values, np.float64), channels) for values in normalize)
    return Affine(STD / std, (MEAN - mean) / std)


def house(model: Any, normalize: Normalize | None, classes: int, side: int | None = None) -> tuple[Any, list[str]]:
    """The network as the house has it, flat and in float32, and what was done to it, a line each.

    `normalize` is of what the foreign network takes; None is right for one that begins with a Rescaling or Normalization
    layer of its own. Raises ModelError when it is no classifier of `classes` classes, or its normalisation is unknown.
    """
    flat = rebuild(model, lambda layer: _same if type(layer).__name__ in FOR_TRAINING else None, side=side)
    given = affine(normalize or RAW, flat.inputs[0].shape[-1])
    swap, found, first = _beginning(flat, given)
    if normalize is None and found is given:
        raise ModelError(UNKNOWN_NORMALISATION)
    notes = ["it normalises by itself, so it was taken to want pixels of 0 to 255"] if normalize is None else []
    front, folded = _front(found, first)
    squash, end = _end(flat, classes)
    notes += _remarks(squash, flat.output_shape[-1])
    swap = {**swap, **folded, **end}
    reserved = frozenset((NORMALISATION, FEATURES, LOGITS, PAIR))
    made = rebuild(flat, lambda layer: swap.get(id(layer)), front, lambda x: _row(x, classes), reserved=reserved)
    if made.output_shape[-1] != classes:
        raise ModelError(f"{classes} labels for {made.output_shape[-1]} outputs; give one label a line for each output")
    return made, notes


def squash_of(model: Any) -> str:
    """What a network that should end in logits ends in: "" for logits, else `softmax`, `log_softmax` or `sigmoid`."""
    return _end(model, 0)[0]


def trial_pixels(shape: tuple[int, ...]) -> Floats:
    """Pictures to compare two models on: noise, black, grey and white; float64 (pictures, *shape) of 0 to 255."""
    noise = np.random.RandomState(0).randint(0, 256, (NOISE_PICTURES, *shape))
    return np.stack([*noise, *(np.full(shape, value) for value in (0, 128, 255))]).astype(np.float64)


def difference(before: Floats, logits: Floats) -> float:
    """The largest between the foreign model's answers and those of the house's, which may be squashed: both (pictures, …).

    Raises ModelError when it is no rounding, or when what the house has are probabilities where logits should be.
    """
    probabilities = softmax(logits.astype(np.float32)).astype(np.float64)
    if before.shape[1] == 1:
        forms: list[Floats] = [logits[:, 1:] - logits[:, :1], probabilities[:, 1:]]
    else:
        sigmoids = 0.5 + 0.5 * np.tanh(logits / 2)
        forms = [logits, probabilities, sigmoids, np.log(np.maximum(probabilities, 1e-37))]
    found = [float(np.abs(before - np.asarray(form)).max()) for form in forms]
    if not min(found) <= SAME * max(1.0, float(np.abs(before).max())):
        raise ModelError(f"taken over, it answers otherwise than it did (by {min(found):.3g})")
    shares = bool((before >= 0).all() and (abs(before.sum(axis=1) - 1) < 1e-3).all())
    if before.shape[1] > 1 and shares and min(found) == found[0]:
        raise ModelError("it answers with probabilities, and no softmax was found at its end; save it without its last step")
    return min(found)


def _same(tensor: Any, *_: Any, **__: Any) -> Any:
    return tensor


def _beginning(flat: Any, found: Affine) -> tuple[dict[int, Call], Affine, Any]:
    """Layers at the start that are affine maps, taken out; the map with them in it; the node behind them, if just one."""
    swap: dict[int, Call] = {}
    key = str(id(flat.inputs[0]))
    while True:
        readers = [node for node in nodes(flat) if key in node.flat_input_ids]
        step = _affine_step(readers[0]) if len(readers) == 1 and _uses(flat, readers[0].layer) == 1 else None
        if step is None:
            return swap, found, readers[0] if len(readers) == 1 else None
        found, key = found.then(*step), readers[0].flat_output_ids[0]
        swap[id(readers[0].layer)] = _same


def _affine_step(node: Any) -> tuple[Any, Any] | None:
    """(scale, offset) of a layer that is such a map for each channel, else None."""
    layer, kind = node.layer, type(node.layer).__name__
    if kind == "Rescaling":
        return np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    if kind == "Normalization" and not getattr(layer, "invert", False):
        mean, variance = (np.asarray(v, np.float64).reshape(-1) for v in (layer.mean, layer.variance))
        deviation = np.maximum(np.sqrt(variance), keras().backend.epsilon())
        return (1 / deviation, -mean / deviation) if len(mean) in (1, int(node.outputs.shape[-1])) else None
    if kind == "TFOpLambda":
        return _arithmetic(layer.function_name if hasattr(layer, "function_name") else layer.symbol, node)
    return None


def _arithmetic(name: str, node: Any) -> tuple[Any, Any] | None:
    """As `_affine_step`, of `x / 127.5` and its like."""
    numbers = [v for v in (*node.call_args, *node.call_kwargs.values()) if isinstance(v, Number)]
    if len(numbers) != 1 or isinstance(node.call_args[0], Number):
        return None
    y: Any = numbers[0]
    steps = {
        "multiply": (y, 0),
        "truediv": (1 / y if y else 0, 0),
        "divide": (1 / y if y else 0, 0),
        "subtract": (1, -y),
        "sub": (1, -y),
        "add": (1, y),
    }
    return steps.get(name.rpartition(".")[2])


def _uses(flat: Any, layer: Any) -> int:
    return sum(node.layer is layer for node in nodes(flat))


def _front(found: Affine, first: Any) -> tuple[Call, dict[int, Call]]:
    """The map as something in front of the network, or folded into its first convolution.

    Zero padding is zero in the foreign network's terms, so an offset can be folded only where nothing is padded.
    """
    if found.nothing:
        return _same, {}
    layer: Any = first.layer if first is not None else None
    if type(layer).__name__ == "Conv2D" and layer.groups == 1 and (layer.padding == "valid" or not found.offset.any()):
        return _same, {id(layer): _folded(layer, found)}
    config = {"kernel_size": 1, "name": NORMALISATION}
    kernel = found.scale.reshape(1, 1, -1, 1).astype(np.float32)
    return with_weights(keras().layers.DepthwiseConv2D, config, [kernel, found.offset.astype(np.float32)]), {}


def _folded(layer: Any, found: Affine) -> Call:
    kernel = layer.get_weights()[0].astype(np.float64)
    bias = layer.get_weights()[1] if layer.use_bias else 0.0
    bias = bias + np.einsum("hwio,i->o", kernel, found.offset)
    kernel = kernel * found.scale[:, None]
    config = {**layer.get_config(), "use_bias": True}
    return with_weights(type(layer), config, [kernel.astype(np.float32), bias.astype(np.float32)])


def _backwards(flat: Any) -> Iterator[Any]:
    """Layers from the last one on, as long as each has one input."""
    makers = {key: node for node in nodes(flat) for key in node.flat_output_ids}
    node = makers.get(str(id(flat.outputs[0])))
    while node is not None:
        yield node.layer
        node = makers.get(node.flat_input_ids[0]) if len(node.flat_input_ids) == 1 else None


def _end(flat: Any, classes: int) -> tuple[str, dict[int, Call]]:
    """What squashes the logits at the end, "" for nothing; and the layers to exchange for the logits themselves.

    A single output for two classes becomes two, of which the first is always 0: softmax of (0, z) is sigmoid of z.
    """
    squash, swap = "", dict[int, Call]()
    for layer in _backwards(flat):
        kind, own = type(layer).__name__, _activation(layer)
        if not squash and kind in ("Activation", "Softmax", "TFOpLambda") and own:
            squash, swap[id(layer)] = own, _same
        elif kind not in SHAPES_ONLY:
            squash = squash or own
            if kind == "Dense":
                swap |= _dense_end(flat, layer, own, classes)
            elif own:
                swap[id(layer)] = with_weights(type(layer), {**layer.get_config(), "activation": "linear"}, layer.get_weights())
            break
    return squash, swap


def _activation(layer: Any) -> str:
    """`softmax`, `log_softmax` or `sigmoid` where a layer ends in that."""
    kind = type(layer).__name__
    if kind == "Softmax":
        return "softmax"
    if kind == "TFOpLambda":
        return FUNCTIONS.get(str(getattr(layer, "symbol", "")), "")
    name = getattr(getattr(layer, "activation", None), "__name__", "")
    return name if name in SQUASHES else ""


def _dense_end(flat: Any, layer: Any, own: str, classes: int) -> dict[int, Call]:
    """The last dense layer under the house's name, without its squash, and the vector before it under its own."""
    weights, config = layer.get_weights(), {**layer.get_config(), "name": LOGITS}
    if own:
        config["activation"] = "linear"
    if layer.units == 1 and classes == 2:
        weights, config["units"] = [np.concatenate([np.zeros_like(w), w], axis=-1) for w in weights], 2
    swap = {id(layer): with_weights(type(layer), config, weights)}
    before = [found for found in _backwards(flat) if type(found).__name__ not in ("Dropout", "Activation", "Softmax")]
    after = before.index(layer) + 1 if layer in before else len(before)
    if after < len(before) and type(before[after]).__name__ in POOLS:
        swap[id(before[after])] = with_weights(type(before[after]), {**before[after].get_config(), "name": FEATURES}, [])
    return swap


def _row(x: Any, classes: int) -> Any:
    """One row of scores a picture; two where the network gives one."""
    layers = keras().layers
    if len(x.shape) > 2:
        x = layers.Flatten(name="row")(x)
    if x.shape[-1] == 1 and classes == 2:
        x = with_weights(layers.Dense, {"units": 2, "use_bias": False, "name": PAIR}, [np.array([[0, 1]], np.float32)])(x)
    return x


def single_remark(sigmoid: bool) -> str:
    """What to tell of a network with one output for two classes."""
    kind = "a sigmoid" if sigmoid else "a single number, taken as a logit"
    return f"it ended in {kind}: the second label is what a high answer means"


def _remarks(squash: str, outputs: int) -> list[str]:
    if outputs == 1:
        return [single_remark(squash == "sigmoid")]
    if squash == "sigmoid":
        return [SHARED.format(outputs=outputs)]
    return []
