"""A run that several files of tests start from, trained in seconds."""

import dataclasses

import numpy as np

from edgeclf.core.recipe import load_recipe, override


def train_colours(top):
    """`runs/colours` in that folder, of red against blue noise in `colours.npz` beside it; returns the folder."""
    from edgeclf.host.train import train as training

    random, y = np.random.RandomState(0), np.arange(200) % 2
    x = random.randint(0, 120, (200, 8, 8, 3)).astype(np.uint8)
    x[np.arange(200), :, :, 2 * y] += 100
    np.savez(top / "colours.npz", x=x, y=y, labels=np.array(["red", "blue"]))
    recipe = override(load_recipe("compact-digits"), image__size=8, training__epochs=2, training__batch_size=16)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [8, 16]}))
    training.train(training.start(recipe, str(top / "colours.npz"), top / "runs" / "colours"))
    return top
