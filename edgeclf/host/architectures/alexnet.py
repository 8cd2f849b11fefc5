"""alexnet: the network of Krizhevsky, Sutskever and Hinton (2012), and a version for pictures of 64x64."""

from __future__ import annotations

from typing import Any

from edgeclf.host.architectures.blocks import check_option, check_side, conv_bn
from edgeclf.host.keras import keras, tensorflow

NORMALISATION = ("lrn", "batch")
TOWERS = ("a", "b")


def alexnet(
    shape: tuple[int, int, int], classes: int, normalisation: str = "lrn", dense: int = 4096, dropout: float = 0.5
) -> Any:
    """As published: 60,965,224 parameters at 227x227x3 and 1000 classes.

    The convolutions run in two towers, as on the paper's two GPUs; the third sees the maps of both. That is what "in two
    groups" means, and TensorFlow trains it on a CPU, where it has no gradient for grouped convolution. Local response
    normalisation (`lrn`) sums over the maps of its own tower. `batch` puts batch normalisation in its two places, in front
    of the ReLU, where it folds into the convolution: TFLite has no int8 kernel for local response normalisation.

    Raises ConfigError for another normalisation and for pictures of less than 67x67.
    """
    check_option("normalisation", normalisation, NORMALISATION)
    check_side("alexnet", shape, 67)
    layers = keras().layers
    inputs = layers.Input(shape)
    first = [_normalised_pooled(_conv(inputs, f"1{t}", 48, 11, 4), f"1{t}", normalisation) for t in TOWERS]
    second = [
        _normalised_pooled(_conv(x, f"2{t}", 128, 5, bias=1), f"2{t}", normalisation) for t, x in zip(TOWERS, first, strict=True)
    ]
    joined = layers.Concatenate(name="joined2")(second)
    x = layers.Concatenate(name="joined5")([_last_convolutions(joined, tower) for tower in TOWERS])
    x = _dense(layers.Flatten()(x), dense, "dense6", dropout)
    x = _dense(x, dense, "features", dropout)
    logits = layers.Dense(classes, kernel_initializer=_gaussian(), name="logits")(x)
    return keras().Model(inputs, logits, name="alexnet")


def alexnet_small(shape: tuple[int, int, int], classes: int, dense: int = 512, dropout: float = 0.5) -> Any:
    """Five convolutions and overlapping pooling as in `alexnet`, for pictures of 64x64: 1,840,578 parameters for two classes.

    One tower, a first convolution of 5x5 and stride 2, and batch normalisation everywhere, so that a laptop trains it
    from nothing on a few thousand photos. Raises ConfigError for pictures of less than 29x29.
    """
    check_side("alexnet-small", shape, 29)
    layers = keras().layers
    inputs = layers.Input(shape)
    x = layers.MaxPooling2D(3, 2)(conv_bn(inputs, 64, stride=2, size=5))
    x = layers.MaxPooling2D(3, 2)(conv_bn(x, 128, size=5))
    x = layers.MaxPooling2D(3, 2)(conv_bn(conv_bn(conv_bn(x, 192), 192), 128))
    x = layers.Flatten()(x)
    for name in ("dense6", "features"):
        x = layers.Dropout(dropout)(layers.Dense(dense, "relu", kernel_initializer="he_normal", name=name)(x))
    return keras().Model(inputs, layers.Dense(classes, name="logits")(x), name="alexnet-small")


def local_response(x: Any) -> Any:
    """Local response normalisation over 5 neighbouring maps, with the paper's k = 2, alpha = 1e-4 and beta = 0.75.

    TensorFlow counts the neighbours to one side, and its alpha multiplies the sum of squares as the paper's does (Caffe
    divides by 5). It becomes a layer that Keras saves under the function's public name: no code in the file.
    """
    return tensorflow().nn.local_response_normalization(x, depth_radius=2, bias=2.0, alpha=1e-4, beta=0.75)


def _conv(x: Any, name: str, filters: int, size: int, stride: int = 1, bias: float = 0) -> Any:
    """Weights start with a standard deviation of 0.01, and some biases at 1, as in the paper; padded unless it strides."""
    layers, start = keras().layers, keras().initializers.Constant(bias)
    padding = "valid" if stride > 1 else "same"
    conv = layers.Conv2D(
        filters, size, stride, padding, kernel_initializer=_gaussian(), bias_initializer=start, name=f"conv{name}"
    )
    return conv(x)


def _normalised_pooled(x: Any, name: str, normalisation: str) -> Any:
    """ReLU and local response normalisation, or batch normalisation and ReLU; then 3x3 pooling of stride 2."""
    layers = keras().layers
    if normalisation == "batch":
        x = layers.BatchNormalization(momentum=0.9, name=f"norm{name}")(x)
    x = layers.ReLU(name=f"relu{name}")(x)
    return layers.MaxPooling2D(3, 2, name=f"pool{name}")(local_response(x) if normalisation == "lrn" else x)


def _last_convolutions(x: Any, tower: str) -> Any:
    layers = keras().layers
    for number, filters, bias in ((3, 192, 0), (4, 192, 1), (5, 128, 1)):
        x = layers.ReLU(name=f"relu{number}{tower}")(_conv(x, f"{number}{tower}", filters, 3, bias=bias))
    return layers.MaxPooling2D(3, 2, name=f"pool5{tower}")(x)


def _dense(x: Any, units: int, name: str, dropout: float) -> Any:
    layers = keras().layers
    x = layers.Dense(units, "relu", kernel_initializer=_gaussian(), bias_initializer="ones", name=name)(x)
    return layers.Dropout(dropout)(x)


def _gaussian() -> Any:
    return keras().initializers.RandomNormal(stddev=0.01)
