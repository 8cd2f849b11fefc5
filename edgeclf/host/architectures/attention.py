"""Attention blocks that weigh the channels, or channels and places, of a feature map; all of it in layers with int8 kernels."""

from __future__ import annotations

from typing import Any

from edgeclf.host.architectures.blocks import check_option
from edgeclf.host.keras import keras

KINDS = ("none", "se", "cbam")
REDUCTION, LEAST_HIDDEN = 8, 4  # both papers divide by 16, but their narrowest map has 64 channels and more
SPATIAL_KERNEL = 7


def attend(x: Any, kind: str) -> Any:
    """Feature maps (pictures, height, width, channels) weighed by their own content; `none` gives `x` itself.

    `se` is squeeze-and-excite (Hu et al. 2018), `cbam` the convolutional block attention module (Woo et al. 2018).
    Raises ConfigError for another kind.
    """
    check_option("attention", kind, KINDS)
    if kind == "se":
        return _squeeze_excite(x)
    return spatial_gate(channel_gate(x)) if kind == "cbam" else x


def _squeeze_excite(x: Any) -> Any:
    layers = keras().layers
    means = layers.GlobalAveragePooling2D(keepdims=True)(x)
    return layers.Multiply()([x, layers.Activation("sigmoid")(_bottleneck(means, x.shape[-1]))])


def channel_gate(x: Any) -> Any:
    """Weights from each channel's mean and largest value, both through one bottleneck.

    The two lie side by side as a map of 2x1, so that one pair of convolutions serves both and no layer is called twice.
    The paper adds the two results; this takes their mean, and the last convolution learns the factor.
    """
    layers = keras().layers
    means = layers.GlobalAveragePooling2D(keepdims=True)(x)
    largest = layers.MaxPooling2D(x.shape[1:3])(x)  # and not GlobalMaxPooling2D, whose REDUCE_MAX would stay in floats
    both = _bottleneck(layers.Concatenate(axis=1)([means, largest]), x.shape[-1])
    return layers.Multiply()([x, layers.Activation("sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(both))])


def spatial_gate(x: Any) -> Any:
    """Weights from the mean and the largest value over the channels of each place.

    Width and channels change places, so that ordinary pooling runs over the channels.
    """
    layers, channels = keras().layers, x.shape[-1]
    turned = layers.Permute((1, 3, 2))(x)
    pooled = [layers.AveragePooling2D((1, channels))(turned), layers.MaxPooling2D((1, channels))(turned)]
    both = layers.Permute((1, 3, 2))(layers.Concatenate(axis=2)(pooled))
    return layers.Multiply()([x, layers.Conv2D(1, SPATIAL_KERNEL, padding="same", activation="sigmoid")(both)])


def _bottleneck(x: Any, channels: int) -> Any:
    layers = keras().layers
    hidden = max(LEAST_HIDDEN, channels // REDUCTION)
    x = layers.Conv2D(hidden, 1, activation="relu", kernel_initializer="he_normal")(x)
    return layers.Conv2D(channels, 1)(x)
