"""Networks by name. A builder takes the input shape and the number of classes, and gives a model that ends in logits."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.core.recipe import Recipe
from edgeclf.host.architectures.compact import compact
from edgeclf.host.architectures.resnet8 import resnet8

BUILDERS: dict[str, Callable[..., Any]] = {"compact": compact, "resnet8": resnet8}


def build(recipe: Recipe, classes: int) -> Any:
    """The untrained `tf_keras.Model` of a recipe: float32 (pictures, *spec.shape) → float32 logits (pictures, classes).

    Raises ConfigError for an unknown architecture or option.
    """
    name, options = recipe.model.architecture, recipe.model.options
    if name not in BUILDERS:
        close = difflib.get_close_matches(name, BUILDERS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"unknown architecture {name!r}{hint} (known: {', '.join(sorted(BUILDERS))})")
    try:
        return BUILDERS[name](recipe.image.spec().shape, classes, **options)
    except TypeError as error:
        raise ConfigError(f"architecture {name!r}: unknown or wrong option in [model.options]: {error}") from error
