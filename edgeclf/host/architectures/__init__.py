"""Networks by name. A builder takes the input shape and the number of classes, and gives a model that ends in logits."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.core.recipe import Recipe
from edgeclf.host.architectures import backbones
from edgeclf.host.architectures.alexnet import alexnet, alexnet_small
from edgeclf.host.architectures.cnn import cnn2, cnn3
from edgeclf.host.architectures.compact import compact
from edgeclf.host.architectures.efficientnet_lite import efficientnet_lite0
from edgeclf.host.architectures.resnet8 import resnet8
from edgeclf.host.train import custom

BUILDERS: dict[str, Callable[..., Any]] = {
    "alexnet": alexnet,
    "alexnet-small": alexnet_small,
    "cnn2": cnn2,
    "cnn3": cnn3,
    "compact": compact,
    "densenet121": backbones.densenet121,
    "efficientnet-b0": backbones.efficientnet_b0,
    "efficientnet-lite0": efficientnet_lite0,
    "efficientnet-v2-b0": backbones.efficientnet_v2_b0,
    "mobilenet-v1": backbones.mobilenet_v1,
    "mobilenet-v2": backbones.mobilenet_v2,
    "mobilenet-v3-large": backbones.mobilenet_v3_large,
    "mobilenet-v3-small": backbones.mobilenet_v3_small,
    "nasnet-mobile": backbones.nasnet_mobile,
    "resnet50": backbones.resnet50,
    "resnet8": resnet8,
}


def build(recipe: Recipe, classes: int, folder: Path | None = None) -> Any:
    """The untrained `tf_keras.Model` of a recipe: float32 (pictures, *spec.shape) → float32 logits (pictures, classes).

    `folder` is the run's, from which the path of a user's own file counts. Raises ConfigError for an unknown architecture
    or option.
    """
    name, options = recipe.model.architecture, recipe.model.options
    if custom.is_spec(name):
        return custom.load_builder(name, folder)(recipe.image.spec().shape, classes, **options)
    if name not in BUILDERS:
        close = difflib.get_close_matches(name, BUILDERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"unknown architecture {name!r}{hint} (known: {', '.join(sorted(BUILDERS))})")
    try:
        return BUILDERS[name](recipe.image.spec().shape, classes, **options)
    except TypeError as error:
        raise ConfigError(f"architecture {name!r}: unknown or wrong option in [model.options]: {error}") from error
