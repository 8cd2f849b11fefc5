"""Networks that others have trained on ImageNet, from `tf_keras.applications`, with a new head.

Each was trained on pixels of its own normalisation (`WANTED`). The house gives (pixel - 128) / 128 to every network, so the
difference is put into the first convolution and its batch normalisation when weights are loaded
(`host/train/weight_files.py`), where it costs nothing. Zero padding must then still mean what it meant. For networks that take
x/127.5 - 1 it does, to half a grey level. For the others it does not, so they begin with the layer `centre`, which moves the
padding's colour to zero; they are large, and it is less than a thousandth of their work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.core.image import MEAN, STD
from edgeclf.host.architectures.blocks import check_side
from edgeclf.host.graphs import walk
from edgeclf.host.keras import keras

LEAST_SIDE = 32  # of every network here: five halvings
CENTRE = "centre"
V1_ALPHAS, V2_ALPHAS, V3_ALPHAS = (0.25, 0.5, 0.75, 1.0), (0.35, 0.5, 0.75, 1.0, 1.3, 1.4), (0.75, 1.0)

Channels = tuple[float, ...]  # red, green, blue
Swap = Callable[[Any], Callable[..., Any]]


@dataclass(frozen=True)
class Wanted:
    """What a network was trained on: scale * pixel + offset, for red, green and blue; `bgr` when blue comes first there."""

    scale: Channels
    offset: Channels
    bgr: bool = False

    @property
    def zero(self) -> Channels:
        """The colour that it sees as 0, which is what zero padding shows it, as (pixel - 128) / 128."""
        return tuple((-o / s - MEAN) / STD for s, o in zip(self.scale, self.offset, strict=True))


TORCH_MEAN, TORCH_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels / 255
SYMMETRIC = Wanted((1 / 127.5,) * 3, (-1.0,) * 3)
LITE = Wanted((1 / 128,) * 3, (-127 / 128,) * 3)
CAFFE = Wanted((1.0,) * 3, (-123.68, -116.779, -103.939), bgr=True)
TORCH = Wanted(
    tuple(1 / 255 / std for std in TORCH_STD), tuple(-mean / std for mean, std in zip(TORCH_MEAN, TORCH_STD, strict=True))
)
WANTED: dict[str, Wanted] = {
    "mobilenet-v1": SYMMETRIC,
    "mobilenet-v2": SYMMETRIC,
    "mobilenet-v3-small": SYMMETRIC,
    "mobilenet-v3-large": SYMMETRIC,
    "nasnet-mobile": SYMMETRIC,
    "efficientnet-lite0": LITE,
    "efficientnet-b0": TORCH,
    "efficientnet-v2-b0": TORCH,
    "densenet121": TORCH,
    "resnet50": CAFFE,
}


MOMENTUM = 0.9


def mobilenet_v1(
    shape: tuple[int, int, int], classes: int, alpha: float = 1.0, dropout: float = 0.2, symmetric: bool = False
) -> Any:
    """MobileNet (Howard et al. 2017): depthwise separable convolutions, ReLU6. Raises ConfigError, as all here do.

    `symmetric` pads what strides on all four sides and not on two, which is what LiteRT's sparse kernels ask for. (With such
    padding they still left MobileNetV2 to dense kernels, LiteRT 2.3.0 on an emulated Pi 5, so that has no such option.)
    """
    check_alpha(alpha, V1_ALPHAS)
    swap = padded_on_all_sides if symmetric else None
    return _classifier("mobilenet-v1", "MobileNet", shape, classes, dropout, swap, alpha=alpha)


def mobilenet_v2(shape: tuple[int, int, int], classes: int, alpha: float = 1.0, dropout: float = 0.2) -> Any:
    """MobileNetV2 (Sandler et al. 2018): inverted residuals, ReLU6."""
    check_alpha(alpha, V2_ALPHAS)
    return _classifier("mobilenet-v2", "MobileNetV2", shape, classes, dropout, alpha=alpha)


def mobilenet_v3_small(
    shape: tuple[int, int, int], classes: int, alpha: float = 1.0, minimalistic: bool = False, dropout: float = 0.2
) -> Any:
    """MobileNetV3-Small (Howard et al. 2019). `minimalistic`: plain ReLU, 3x3 kernels, no squeeze-and-excite."""
    return _mobilenet_v3("mobilenet-v3-small", "MobileNetV3Small", shape, classes, alpha, minimalistic, dropout)


def mobilenet_v3_large(
    shape: tuple[int, int, int], classes: int, alpha: float = 1.0, minimalistic: bool = False, dropout: float = 0.2
) -> Any:
    """MobileNetV3-Large (Howard et al. 2019); options as `mobilenet_v3_small`."""
    return _mobilenet_v3("mobilenet-v3-large", "MobileNetV3Large", shape, classes, alpha, minimalistic, dropout)


def _mobilenet_v3(
    name: str, builder: str, shape: tuple[int, int, int], classes: int, alpha: float, minimalistic: bool, dropout: float
) -> Any:
    check_alpha(alpha, (1.0,) if minimalistic else V3_ALPHAS)
    options = {"alpha": alpha, "minimalistic": minimalistic, "include_preprocessing": False}
    return _classifier(name, builder, shape, classes, dropout, None, **options)


def efficientnet_b0(shape: tuple[int, int, int], classes: int, dropout: float = 0.2) -> Any:
    """EfficientNet-B0 (Tan and Le 2019): squeeze-and-excite, SiLU."""
    return _classifier("efficientnet-b0", "EfficientNetB0", shape, classes, dropout, _without_preprocessing)


def efficientnet_v2_b0(shape: tuple[int, int, int], classes: int, dropout: float = 0.2) -> Any:
    """EfficientNetV2-B0 (Tan and Le 2021): dense convolutions early, squeeze-and-excite late, SiLU."""
    return _classifier("efficientnet-v2-b0", "EfficientNetV2B0", shape, classes, dropout, include_preprocessing=False)


def resnet50(shape: tuple[int, int, int], classes: int, dropout: float = 0.2) -> Any:
    """ResNet-50 (He et al. 2015)."""
    return _classifier("resnet50", "ResNet50", shape, classes, dropout)


def densenet121(shape: tuple[int, int, int], classes: int, dropout: float = 0.2) -> Any:
    """DenseNet-121 (Huang et al. 2016)."""
    return _classifier("densenet121", "DenseNet121", shape, classes, dropout)


def nasnet_mobile(shape: tuple[int, int, int], classes: int, dropout: float = 0.2) -> Any:
    """NASNet-A (4 @ 1056), found by search (Zoph et al. 2018)."""
    return _classifier("nasnet-mobile", "NASNetMobile", shape, classes, dropout)


def _classifier(
    name: str, builder: str, shape: tuple[int, int, int], classes: int, dropout: float, swap: Swap | None = None, **options: Any
) -> Any:
    """One of Keras' networks without its top, flat, behind `centre` where it needs that, with the house's head.

    `swap(layer)` gives what is called in a layer's place.
    """
    check_side(name, shape, LEAST_SIDE)
    inputs = keras().layers.Input(shape)
    x = centred(inputs, WANTED[name].zero) if WANTED[name] in (TORCH, CAFFE) else inputs
    make = getattr(keras().applications, builder)
    if swap:
        features = walk(make(input_shape=shape, include_top=False, weights=None, **options), x, swap)
    else:
        features = make(input_shape=shape, include_top=False, weights=None, input_tensor=x, **options).output
    model = keras().Model(inputs, head(features, classes, dropout), name=name)
    for layer in model.layers:
        # MobileNetV3's own 0.999 wants some ten thousand steps before its averages forget what they began with: a short
        # training from nothing then answers all pictures alike. With trained weights they are frozen, and this is nothing.
        if isinstance(layer, keras().layers.BatchNormalization):
            layer.momentum = min(layer.momentum, MOMENTUM)
    return model


def centred(inputs: Any, zero: Channels) -> Any:
    """The pictures less the colour `zero`; grey ones less its mean.

    A depthwise convolution that is never trained, since quantisation-aware training knows no layer that only adds.
    """
    offset = [-z for z in zero] if inputs.shape[-1] == len(zero) else [-sum(zero) / len(zero)] * inputs.shape[-1]
    constant = keras().initializers.Constant(offset)
    centre = keras().layers.DepthwiseConv2D(
        1, depthwise_initializer="ones", bias_initializer=constant, trainable=False, name=CENTRE
    )
    return centre(inputs)


def _without_preprocessing(layer: Any) -> Callable[..., Any]:
    """A copy of a layer, or nothing for those that normalise."""
    if type(layer).__name__ in ("Rescaling", "Normalization"):
        return lambda tensor: tensor
    copy: Callable[..., Any] = type(layer).from_config(layer.get_config())
    return copy


def padded_on_all_sides(layer: Any) -> Callable[..., Any]:
    """A copy of a layer; one that pads for a stride, by itself or in front, pads alike on all sides."""
    kind, config = type(layer), layer.get_config()
    if kind.__name__ == "ZeroPadding2D":
        around: Callable[..., Any] = kind.from_config({**config, "padding": [[max(pair)] * 2 for pair in config["padding"]]})
        return around
    if config.get("padding") != "same" or max(config["strides"]) == 1:
        copy: Callable[..., Any] = kind.from_config(config)
        return copy
    pad = keras().layers.ZeroPadding2D(config["kernel_size"][0] // 2, name=f"{layer.name}_pad")
    strided = kind.from_config({**config, "padding": "valid"})
    return lambda tensor: strided(pad(tensor))


def head(x: Any, classes: int, dropout: float) -> Any:
    """Global average pooling (the layer `features`), dropout, and the logits. Raises ConfigError for a wrong share."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ConfigError(f"[model.options] dropout = {dropout!r}: must be in [0, 1)")
    layers = keras().layers
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return layers.Dense(classes, name="logits")(layers.Dropout(dropout, name="dropout")(x))


def check_alpha(alpha: float, known: tuple[float, ...]) -> None:
    """Raises ConfigError for a width that was never published."""
    if isinstance(alpha, bool) or alpha not in known:
        raise ConfigError(f"[model.options] alpha = {alpha!r}: expected one of: {', '.join(map(str, known))}")
