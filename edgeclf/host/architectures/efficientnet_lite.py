"""efficientnet-lite0: EfficientNet-B0 for integer hardware, as Google published it in 2020.

Against B0 it has no squeeze-and-excite, ReLU6 for SiLU, and stem and head that do not scale. Keras has no file of weights
for it, so it starts from nothing, or from a run of its own.
"""

from __future__ import annotations

from typing import Any

from edgeclf.host.architectures.backbones import LEAST_SIDE, head
from edgeclf.host.architectures.blocks import check_side
from edgeclf.host.keras import keras

# (kernel, repeats, input channels, output channels, expansion, stride) of each stage
STAGES = (
    (3, 1, 32, 16, 1, 1),
    (3, 2, 16, 24, 6, 2),
    (5, 2, 24, 40, 6, 2),
    (3, 3, 40, 80, 6, 2),
    (5, 3, 80, 112, 6, 1),
    (5, 4, 112, 192, 6, 2),
    (3, 1, 192, 320, 6, 1),
)
STEM, TOP = 32, 1280
MOMENTUM, EPSILON = 0.99, 1e-3


def efficientnet_lite0(shape: tuple[int, int, int], classes: int, dropout: float = 0.2) -> Any:
    """3,413,024 parameters in front of the logits. Raises ConfigError for pictures of less than 32x32."""
    check_side("efficientnet-lite0", shape, LEAST_SIDE)
    inputs = keras().layers.Input(shape)
    x = _conv(inputs, STEM, "stem", size=3, stride=2)
    for number, (size, repeats, given, filters, expansion, stride) in enumerate(STAGES, 1):
        for repeat in range(repeats):
            first = repeat == 0
            name = f"block{number}{'abcd'[repeat]}"
            x = _block(x, given if first else filters, filters, expansion, size, stride if first else 1, name)
    return keras().Model(inputs, head(_conv(x, TOP, "top"), classes, dropout), name="efficientnet-lite0")


def _block(x: Any, given: int, filters: int, expansion: int, size: int, stride: int, name: str) -> Any:
    """Inverted residual: expand by 1x1, depthwise, project by 1x1 without activation; and the sum where shapes allow."""
    layers, y = keras().layers, x
    if expansion > 1:
        y = _conv(y, given * expansion, f"{name}_expand")
    y = layers.DepthwiseConv2D(
        size, stride, "same", use_bias=False, depthwise_initializer=_initial(), name=f"{name}_depthwise_conv"
    )(y)
    y = _conv(_normalised(y, f"{name}_depthwise"), filters, f"{name}_project", relu=False)
    return layers.Add(name=f"{name}_add")([x, y]) if stride == 1 and given == filters else y


def _conv(x: Any, filters: int, name: str, size: int = 1, stride: int = 1, relu: bool = True) -> Any:
    x = keras().layers.Conv2D(filters, size, stride, "same", use_bias=False, kernel_initializer=_initial(), name=f"{name}_conv")(
        x
    )
    return _normalised(x, name, relu)


def _normalised(x: Any, name: str, relu: bool = True) -> Any:
    layers = keras().layers
    x = layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x


def _initial() -> Any:
    return keras().initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
