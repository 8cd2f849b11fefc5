"""Layers that several architectures share."""

from __future__ import annotations

from typing import Any

from edgeclf.host.keras import keras


def conv_bn(x: Any, filters: int, stride: int = 1, size: int = 3, relu: bool = True, bias: bool = False) -> Any:
    """Convolution (same padding, He normal), batch normalisation and, unless told otherwise, ReLU."""
    layers = keras().layers
    x = layers.Conv2D(filters, size, stride, "same", use_bias=bias, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if relu else x


def pooled_logits(x: Any, classes: int) -> Any:
    """Global average pooling and a dense layer without activation."""
    layers = keras().layers
    return layers.Dense(classes, name="logits")(layers.GlobalAveragePooling2D()(x))
