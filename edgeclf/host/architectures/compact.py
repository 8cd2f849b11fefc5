"""compact: this project's own small network, for int8 on CPUs with and without dot-product instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeclf.host.architectures.blocks import conv_bn, pooled_logits
from edgeclf.host.keras import keras


def compact(shape: tuple[int, int, int], classes: int, widths: Sequence[int] = (16, 32, 64, 80)) -> Any:
    """A stem and one stage for each further width: a strided 3x3 convolution, then a residual 3x3 convolution.

    Nothing but dense 3x3 convolutions, batch normalisation, ReLU and one sum a stage: each fuses into one int8 kernel,
    where depthwise convolutions are poorly served. Early strides keep most of the work at small maps, where channels
    (and so kernel tiles) are full. Widths are multiples of 16 for the same reason.
    """
    layers = keras().layers
    inputs = layers.Input(shape)
    x = conv_bn(inputs, widths[0])
    for width in widths[1:]:
        x = conv_bn(x, width, stride=2)
        x = layers.ReLU()(layers.Add()([x, conv_bn(x, width, relu=False)]))
    return keras().Model(inputs, pooled_logits(x, classes), name="compact")
