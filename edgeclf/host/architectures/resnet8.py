"""resnet8: the image-classification reference of MLPerf Tiny (Banbury et al. 2021)."""

from __future__ import annotations

from typing import Any

from edgeclf.host.architectures.blocks import conv_bn, pooled_logits
from edgeclf.host.keras import keras


def resnet8(shape: tuple[int, int, int], classes: int, dropout: float = 0.0) -> Any:
    """Three residual stacks of 16, 32 and 64 channels; 78,666 parameters at 32x32x3 and 10 classes."""
    layers = keras().layers
    inputs = layers.Input(shape)
    x = conv_bn(inputs, 16, bias=True)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        shortcut = x
        if stride > 1:
            shortcut = layers.Conv2D(filters, 1, stride, "same", kernel_initializer="he_normal")(x)
        y = conv_bn(x, filters, stride, bias=True)
        y = conv_bn(y, filters, relu=False, bias=True)
        x = layers.ReLU()(layers.Add()([shortcut, y]))
    return keras().Model(inputs, pooled_logits(x, classes, dropout), name="resnet8")
