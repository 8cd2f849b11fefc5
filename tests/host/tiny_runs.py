"""A network and a recipe so small that a test trains them in seconds."""

import dataclasses

import numpy as np

from edgeclf.core.recipe import load_recipe, override
from edgeclf.host.run import CARD, MODEL, sha256_of


def tiny_recipe(**changes):
    """Four epochs of a compact of 4 and 8 channels on pictures of 12x12; changes as `override` takes them."""
    recipe = override(load_recipe("compact-digits"), image__size=12, training__epochs=4, training__batch_size=16)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [4, 8]}))
    return override(recipe, **changes)


def flat_weights(run):
    """Every weight of a run's model in one row."""
    return np.concatenate([w.ravel() for w in run.model().get_weights()])


def replace_network(run, model):
    """Put another network into a run, as if it had been trained to it: file and card agree."""
    model.save(run.folder / MODEL, save_format="keras")
    card = dataclasses.replace(run.card, sha256=sha256_of(run.folder / MODEL))
    (run.folder / CARD).write_text(card.to_json())
