"""cnn2 and cnn3: the two small convolutional networks that most courses begin with."""

from __future__ import annotations

from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.host.architectures.blocks import check_option, check_side, conv_bn
from edgeclf.host.keras import keras

POOLING = ("max", "avg")


def cnn2(shape: tuple[int, int, int], classes: int, dense: int = 128) -> Any:
    """Two unpadded 3x3 convolutions of 32, each max-pooled, a dense layer, and one logit z; 813,217 parameters at 64x64x3.

    The network was made for a sigmoid and binary cross-entropy. Its outputs here are the two logits [0, z], for
    softmax([0, z]) is exactly [1 - sigmoid(z), sigmoid(z)], and its cross-entropy exactly the binary one: training needs no
    loss of its own, and phones, which refuse a single output, get two. The second label is the positive one. The two come
    from a dense layer that is never trained, of weights 0 and 1 (which are not counted above): one int8 operator, that
    passes z on as it is and gives 0 exactly, where padding would need a reshape that stays in floats.

    Raises ConfigError for more or fewer than two classes, and for pictures of less than 10x10.
    """
    if classes != 2:
        raise ConfigError(
            f"architecture 'cnn2': has one sigmoid, so it tells 2 classes apart, not {classes}; use cnn3 or compact"
        )
    check_side("cnn2", shape, 10)
    layers = keras().layers
    inputs = x = layers.Input(shape)
    for name in ("1", "2"):
        x = layers.Conv2D(32, 3, activation="relu", name=f"conv{name}")(x)
        x = layers.MaxPooling2D(name=f"pool{name}")(x)
    x = layers.Dense(dense, activation="relu", name="features")(layers.Flatten()(x))
    z = layers.Dense(1, name="logit")(x)
    zero_and_z = keras().initializers.Constant([0.0, 1.0])
    logits = layers.Dense(2, use_bias=False, kernel_initializer=zero_and_z, trainable=False, name="logits")(z)
    return keras().Model(inputs, logits, name="cnn2")


def cnn3(
    shape: tuple[int, int, int],
    classes: int,
    pooling: str = "max",
    batch_norm: bool = True,
    dense: int = 128,
    dropout: float = 0.5,
) -> Any:
    """Three 3x3 convolutions of 32, 64 and 128, each pooled, then a dense layer and dropout; 357,482 parameters for CIFAR-10.

    `pooling` is `max` or `avg`. Without `batch_norm` it is the network of the tutorials. Raises ConfigError for another
    pooling and for pictures of less than 8x8.
    """
    check_option("pooling", pooling, POOLING)
    check_side("cnn3", shape, 8)
    layers = keras().layers
    inputs = x = layers.Input(shape)
    for filters in (32, 64, 128):
        x = conv_bn(x, filters) if batch_norm else layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x) if pooling == "max" else layers.AveragePooling2D()(x)
    x = layers.Dense(dense, activation="relu", name="features")(layers.Flatten()(x))
    return keras().Model(inputs, layers.Dense(classes, name="logits")(layers.Dropout(dropout)(x)), name="cnn3")
