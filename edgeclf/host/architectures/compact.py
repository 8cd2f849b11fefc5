"""compact: this project's own small network, for int8 on CPUs with and without dot-product instructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.host.architectures.attention import attend
from edgeclf.host.architectures.blocks import activate, conv_bn, pooled_logits
from edgeclf.host.keras import keras


def compact(
    shape: tuple[int, int, int],
    classes: int,
    widths: Sequence[int] = (16, 32, 64, 80),
    residuals: Sequence[int] = (),
    pool: bool = False,
    attention: str = "none",
    activation: str = "relu",
    dropout: float = 0.0,
) -> Any:
    """A stem and one stage for each further width: a strided 3x3 convolution, then residual 3x3 convolutions,
    as many as `residuals` says for each stage (one, where it is empty).

    Nothing but dense 3x3 convolutions, batch normalisation, activations and sums: with ReLU each fuses into one int8 kernel,
    where depthwise convolutions are poorly served. The stem sees every pixel, since what it skips is lost; after it early
    strides, or `pool` (2x2 max pooling), put most of the work at small maps, where channels (and so kernel tiles) are full.
    Widths are multiples of 16 for the same reason. `attention` (`se` or `cbam`) weighs each residual branch before its sum.
    `activation` is that of all stages; the stem's, on the largest map, is always ReLU. SiLU does not fuse, but costs `compact`
    0.8% of its instructions on a Raspberry Pi 5.
    """
    residuals = residuals or [1] * (len(widths) - 1)
    if len(residuals) != len(widths) - 1:
        raise ConfigError(f"[model.options] residuals: {len(residuals)} given for the {len(widths) - 1} stages that widths name")
    layers = keras().layers
    inputs = layers.Input(shape)
    x = conv_bn(inputs, widths[0])
    if pool:
        x = layers.MaxPooling2D()(x)
    for width, count in zip(widths[1:], residuals, strict=True):
        x = activate(conv_bn(x, width, stride=2, relu=False), activation)
        for _ in range(count):
            x = activate(layers.Add()([x, attend(conv_bn(x, width, relu=False), attention)]), activation)
    return keras().Model(inputs, pooled_logits(x, classes, dropout), name="compact")
