"""Layers and checks that several architectures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.host.keras import keras


def conv_bn(x: Any, filters: int, stride: int = 1, size: int = 3, relu: bool = True, bias: bool = False) -> Any:
    """Convolution (same padding, He normal), batch normalisation and, unless told otherwise, ReLU."""
    layers = keras().layers
    x = layers.Conv2D(filters, size, stride, "same", use_bias=bias, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if relu else x


ACTIVATIONS = ("relu", "silu")


def activate(x: Any, kind: str) -> Any:
    """`relu`, or `silu` (Elfwing et al. 2018): x times its sigmoid, as layers that have int8 kernels. Raises ConfigError."""
    check_option("activation", kind, ACTIVATIONS)
    layers = keras().layers
    return layers.ReLU()(x) if kind == "relu" else layers.Multiply()([x, layers.Activation("sigmoid")(x)])


def pooled_logits(x: Any, classes: int, dropout: float = 0.0) -> Any:
    """Global average pooling (the layer `features`), dropout where there is any, and the dense layer `logits`, not activated."""
    layers = keras().layers
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return layers.Dense(classes, name="logits")(layers.Dropout(dropout)(x) if dropout else x)


def check_option(name: str, value: object, known: Sequence[str]) -> None:
    """Raises ConfigError when an option of [model.options] has none of its known values."""
    if value not in known:
        raise ConfigError(f"[model.options] {name} = {value!r}: expected one of: {', '.join(known)}")


def check_side(architecture: str, shape: tuple[int, int, int], least: int) -> None:
    """Raises ConfigError when pictures of `shape` are so small that pooling leaves nothing of them."""
    if min(shape[:2]) < least:
        raise ConfigError(f"architecture {architecture!r}: needs pictures of at least {least}x{least}, not {shape[1]}x{shape[0]}")
