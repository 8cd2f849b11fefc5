"""Which channels of a functional network belong together, and the same network without some of them.

A channel that a convolution computes is read by the layers behind it; sums, products and depthwise convolutions tie channels
of several convolutions to each other, concatenations lay them side by side. Here every channel of every tensor is a number,
and what must go together has the same number, so one walk over the layers serves residual nets, depthwise nets and
attention alike. The idea of dependency groups is that of Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ConfigError
from edgeclf.host.keras import keras

Ids = npt.NDArray[np.int64]  # (channels,): the number of each channel of a tensor, before `Channels.root` is asked

PASS_ON = (
    "BatchNormalization", "ReLU", "LeakyReLU", "ELU", "Activation", "Dropout", "SpatialDropout2D", "MaxPooling2D",
    "AveragePooling2D", "GlobalAveragePooling2D", "GlobalMaxPooling2D", "ZeroPadding2D", "DepthwiseConv2D", "Rescaling",
    "Cropping2D", "UpSampling2D", "Softmax",
)  # fmt: skip
TIE = ("Add", "Multiply", "Subtract", "Average", "Maximum", "Minimum")
COMPUTE = ("Conv2D", "Dense")


@dataclass
class Channels:
    """The channels of a network: `inputs` and `outputs` give those of each layer's first input and output, by its name.

    `kept_whole` holds the numbers of channels that must stay: the picture's and the answer's.
    """

    inputs: dict[str, Ids] = field(default_factory=dict)
    outputs: dict[str, Ids] = field(default_factory=dict)
    kept_whole: set[int] = field(default_factory=set)
    parents: list[int] = field(default_factory=list)
    computed: set[str] = field(default_factory=set)  # the layers that make new channels

    def new(self, count: int) -> Ids:
        """Numbers for channels that nothing else has."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def root(self, number: int) -> int:
        """The number that stands for all that are tied to this one."""
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def roots(self, numbers: Ids) -> Ids:
        """`root` of each."""
        return np.array([self.root(int(n)) for n in numbers], np.int64)

    def tie(self, one: Ids, other: Ids) -> None:
        """Make channels of two tensors go together, pair by pair."""
        for a, b in zip(one, other, strict=True):
            self.parents[self.root(int(a))] = self.root(int(b))

    def keep(self, numbers: Ids) -> None:
        """These must stay."""
        self.kept_whole.update(int(n) for n in numbers)

    def prunable(self) -> dict[frozenset[str], Ids]:
        """Roots of the channels that may go, by the names of the layers that compute them together."""
        makers: dict[int, set[str]] = {}
        for name, numbers in self.outputs.items():
            if name in self.computed:
                for root in self.roots(numbers):
                    makers.setdefault(int(root), set()).add(name)
        whole = {self.root(n) for n in self.kept_whole}
        groups: dict[frozenset[str], list[int]] = {}
        for root, names in makers.items():
            if root not in whole:
                groups.setdefault(frozenset(names), []).append(root)
        return {names: np.array(sorted(roots), np.int64) for names, roots in groups.items()}


def trace(model: Any) -> Channels:
    """Number the channels of a functional `tf_keras.Model` whose last layer gives the answer.

    Raises ConfigError, naming the layer, for one whose channels cannot be followed, and for a layer that is used twice.
    """
    found = Channels()
    for layer in model.layers:
        if len(layer.inbound_nodes) > 1:
            raise _refused(layer, "is used more than once")
        given = [found.outputs[before.name] for before in _before(layer)]
        if given:
            found.inputs[layer.name] = given[0]
        found.outputs[layer.name] = _output(layer, given, found)
    found.keep(found.outputs[model.layers[-1].name])
    for output in model.output_names:
        found.keep(found.outputs[output])
    return found


def _before(layer: Any) -> list[Any]:
    nodes = layer.inbound_nodes[0].inbound_layers if layer.inbound_nodes else []
    return list(nodes) if isinstance(nodes, list) else [nodes]


def _output(layer: Any, given: list[Ids], found: Channels) -> Ids:
    kind = type(layer).__name__
    if kind == "InputLayer":
        numbers = found.new(int(layer.output_shape[0][-1]))
        found.keep(numbers)
        return numbers
    if kind in COMPUTE:
        _check_plain(layer)
        found.computed.add(layer.name)
        return found.new(int(layer.output_shape[-1]))
    if kind in PASS_ON:
        _check_plain(layer)
        return given[0]
    if kind in TIE:
        return _tied(layer, given, found)
    if kind == "Concatenate":
        return _side_by_side(layer, given)
    if kind in ("Flatten", "Reshape"):
        return _reshaped(layer, given[0], found)
    raise _refused(layer, f"is a {kind}")


def _check_plain(layer: Any) -> None:
    """No groups, no depth multiplier, channels last, statistics over the last axis."""
    if getattr(layer, "groups", 1) != 1:
        raise _refused(layer, f"convolves in {layer.groups} groups")
    if getattr(layer, "depth_multiplier", 1) != 1:
        raise _refused(layer, f"has a depth multiplier of {layer.depth_multiplier}")
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _refused(layer, "has its channels first")


def _tied(layer: Any, given: list[Ids], found: Channels) -> Ids:
    widest = max(given, key=len)
    for numbers in given:
        if len(numbers) == len(widest):
            found.tie(numbers, widest)
        elif len(numbers) != 1:
            raise _refused(layer, f"joins {len(numbers)} and {len(widest)} channels")
        else:
            found.keep(numbers)  # one map for all channels, as in spatial attention
    return widest


def _side_by_side(layer: Any, given: list[Ids]) -> Ids:
    rank = len(layer.output_shape)
    if layer.axis not in (-1, rank - 1):
        if any(not np.array_equal(given[0], numbers) for numbers in given):
            raise _refused(layer, f"concatenates along axis {layer.axis}")
        return given[0]
    return np.concatenate(given)


def _reshaped(layer: Any, given: Ids, found: Channels) -> Ids:
    """Flattening repeats the channels at each place; other reshapes are followed where the channels stay last."""
    channels = int(layer.output_shape[-1])
    if channels == len(given):
        return given
    if type(layer).__name__ == "Flatten" and channels % len(given) == 0:
        return np.tile(given, channels // len(given))
    raise _refused(layer, f"turns {len(given)} channels into {channels}")


def _refused(layer: Any, why: str) -> ConfigError:
    return ConfigError(
        f"layer {layer.name!r} {why}, so its channels cannot be pruned; leave --prune-channels out, or use --prune "
        "(single weights), --cluster or --qat"
    )


def without(model: Any, channels: Channels, gone: set[int]) -> Any:
    """The network without the channels whose roots are in `gone`: new layers of the same names, weights of what stays."""
    kept = {name: _kept(numbers, channels, gone) for name, numbers in channels.outputs.items()}
    config = model.get_config()
    for layer in config["layers"]:
        _narrow(layer["class_name"], layer["config"], int(kept[layer["config"]["name"]].sum()))
    narrow = keras().Model.from_config(config)
    for layer in model.layers:
        if layer.weights:
            before = _kept(channels.inputs[layer.name], channels, gone)
            sliced = SLICES.get(type(layer).__name__, _vectors)(layer.get_weights(), before, kept[layer.name])
            narrow.get_layer(layer.name).set_weights(sliced)
    return narrow


def _kept(numbers: Ids, channels: Channels, gone: set[int]) -> npt.NDArray[np.bool_]:
    return np.array([channels.root(int(n)) not in gone for n in numbers], bool)


def _narrow(kind: str, config: dict[str, Any], width: int) -> None:
    if kind == "Conv2D":
        config["filters"] = width
    elif kind == "Dense":
        config["units"] = width
    elif kind == "Reshape":
        config["target_shape"] = (*config["target_shape"][:-1], width)


Slice = Callable[[list[Any], npt.NDArray[np.bool_], npt.NDArray[np.bool_]], list[Any]]


def _convolution(weights: list[Any], before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> list[Any]:
    return [weights[0][:, :, before][..., after], *(bias[after] for bias in weights[1:])]


def _depthwise(weights: list[Any], before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> list[Any]:
    del before
    return [weights[0][:, :, after], *(bias[after] for bias in weights[1:])]


def _dense(weights: list[Any], before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> list[Any]:
    return [weights[0][before][:, after], *(bias[after] for bias in weights[1:])]


def _vectors(weights: list[Any], before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> list[Any]:
    del before
    return [w[after] if w.ndim else w for w in weights]


SLICES: dict[str, Slice] = {"Conv2D": _convolution, "DepthwiseConv2D": _depthwise, "Dense": _dense}


class Ledger:
    """What a network costs as channels leave it: multiply-accumulates (`macs`) or weights (`parameters`) of a picture.

    A layer with a kernel costs so much for each pair of a channel that it reads and one that it makes; a depthwise layer for
    each that it makes. Biases and normalisation are not counted.
    """

    def __init__(self, model: Any, channels: Channels, what: str) -> None:
        layers = [layer for layer in model.layers if type(layer).__name__ in (*COMPUTE, "DepthwiseConv2D")]
        numbers = len(channels.parents)
        # How often each root stands among the channels that a layer reads and makes; flattened maps repeat them.
        self.made = np.stack([np.bincount(channels.roots(channels.outputs[n.name]), minlength=numbers) for n in layers])
        self.read = np.stack([np.bincount(channels.roots(channels.inputs[n.name]), minlength=numbers) for n in layers])
        self.alone = np.array([type(layer).__name__ == "DepthwiseConv2D" for layer in layers])
        self.price = np.array([_price(layer, what) for layer in layers])
        self.makes, self.reads = self.made.sum(axis=1).astype(float), self.read.sum(axis=1).astype(float)

    @property
    def total(self) -> float:
        """Of what is left."""
        return self._cost(self.reads, self.makes)

    def saving(self, roots: Iterable[int]) -> float:
        """What the network would cost less without these channels too."""
        chosen = list(roots)
        reads, makes = (self.read[:, chosen].sum(axis=1), self.made[:, chosen].sum(axis=1))
        return self.total - self._cost(self.reads - reads, self.makes - makes)

    def remove(self, roots: Iterable[int]) -> None:
        """These channels have left."""
        chosen = list(roots)
        self.reads -= self.read[:, chosen].sum(axis=1)
        self.makes -= self.made[:, chosen].sum(axis=1)

    def _cost(self, reads: Any, makes: Any) -> float:
        return float(np.sum(self.price * makes * np.where(self.alone, 1.0, reads)))


def _price(layer: Any, what: str) -> float:
    """What one pair of channels costs."""
    if type(layer).__name__ == "Dense":
        return 1.0
    taps = float(np.prod(layer.kernel_size))
    return taps if what == "parameters" else taps * float(np.prod(layer.output_shape[1:-1]))
