"""A network and a recipe so small that a test trains them in seconds."""

import dataclasses

import numpy as np

from edgeclf.core.recipe import load_recipe, override


def tiny_recipe(**changes):
    """Four epochs of a compact of 4 and 8 channels on pictures of 12x12; changes as `override` takes them."""
    recipe = override(load_recipe("compact-digits"), image__size=12, training__epochs=4, training__batch_size=16)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [4, 8]}))
    return override(recipe, **changes)


def flat_weights(run):
    """Every weight of a run's model in one row."""
    return np.concatenate([w.ravel() for w in run.model().get_weights()])
