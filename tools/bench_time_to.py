"""Time to a wanted top-1 of a quick recipe against a plain AdamW run with cosine, in one process, an epoch of each in turn.

Both train the same network on the same pictures; accuracy is that on the whole test part after every epoch, which is not
timed. Because epochs alternate, a noisy machine disturbs both; `processor_seconds` leave out what other programs took.

    python tools/bench_time_to.py resnet8 ../shared/data/cifar10-jpeg.zip --target 0.8 --out results.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from edgeclf.core.catalogue import scan
from edgeclf.core.files import write_json
from edgeclf.core.recipe import load_recipe, override, override_by_text
from edgeclf.host import architectures
from edgeclf.host.data.batches import steps_of, training_batches
from edgeclf.host.data.dataset import make_dataset
from edgeclf.host.full_model import measure
from edgeclf.host.keras import keras
from edgeclf.host.train.objective import compile_model
from edgeclf.runtime.latency import this_machine

SPLIT = {"seed": 1, "val": 0.1, "val_pictures": 2000, "test": 0.15}


class Training:
    """A recipe in training, one epoch at a call."""

    def __init__(self, recipe, dataset):
        keras().utils.set_random_seed(recipe.training.seed)
        self.recipe, self.dataset = recipe, dataset
        self.steps = steps_of(dataset, recipe.training)
        self.model = architectures.build(recipe, len(dataset.labels))
        compile_model(self.model, recipe.training, self.steps)
        self.batches = iter(training_batches(dataset, recipe))
        self.model.train_on_batch(*next(self.batches))  # tracing is not what is compared
        self.seconds, self.processor_seconds, self.top1 = 0.0, 0.0, []

    def epoch(self):
        """Train one, then measure; False when none is left."""
        if len(self.top1) == self.recipe.training.epochs:
            return False
        began, before = time.perf_counter(), time.process_time()
        self.model.fit(self.batches, steps_per_epoch=self.steps, epochs=1, verbose=0)
        self.seconds += time.perf_counter() - began
        self.processor_seconds += time.process_time() - before
        self.top1.append(measure(self.model, self.dataset, "test")["top1"])
        return True

    def described(self):
        """The part of the recipe that differs between the two."""
        section = self.recipe.training
        kept = ("optimizer", "learning_rate", "weight_decay", "epochs", "batch_size", "schedule", "precision", "label_smoothing")
        return {key: getattr(section, key) for key in kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("data", type=Path)
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--plain-epochs", type=int, default=25)
    parser.add_argument("--set", dest="settings", action="append", default=[], help="for the quick one, as in edgeclf train")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    plain = override(
        recipe, training__optimizer="adamw", training__learning_rate=0.002, training__weight_decay=0.05,
        training__warmup_epochs=1.0, training__epochs=options.plain_epochs, training__schedule="cosine",
        training__precision="float32", training__label_smoothing=0.0, training__ema=0.0,
    )  # fmt: skip
    dataset = make_dataset(scan(options.data), recipe, SPLIT)
    trainings = {"plain": Training(plain, dataset), "quick": Training(override_by_text(recipe, options.settings), dataset)}
    result = {
        "machine": vars(this_machine()),
        "network": recipe.model.architecture,
        "target": options.target,
        **race(trainings, options.target),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        write_json(options.out, result)


def race(trainings, target):
    """Alternate epochs until each has reached the target or its end."""
    running = dict(trainings)
    while running:
        for name, training in list(running.items()):
            if not training.epoch() or training.top1[-1] >= target:
                del running[name]
            print(f"{name}: epoch {len(training.top1)}, test top-1 {training.top1[-1]:.2%}, {training.seconds:.0f} s", flush=True)
    found = {name: outcome(training, target) for name, training in trainings.items()}
    reached = all(one["reached"] for one in found.values())
    ratios = {
        of: round(found["quick"][of] / found["plain"][of], 3) if reached else None for of in ("seconds", "processor_seconds")
    }
    return {**found, "ratio": ratios}


def outcome(training, target):
    """Figures of one of the two."""
    return {
        **training.described(),
        "reached": bool(np.max(training.top1) >= target),
        "epochs_trained": len(training.top1),
        "seconds": round(training.seconds, 1),
        "processor_seconds": round(training.processor_seconds, 1),
        "top1": [round(value, 4) for value in training.top1],
    }


if __name__ == "__main__":
    main()
