"""How long the device waits for pictures: training on the real pipeline against the same batches ready in memory.

Rounds alternate, so a noisy machine disturbs both; idle is the share of a real step that ready batches would save. Both are
also compared by CPU time, which other work on the machine does not lengthen. `policies` says what each augmentation adds, in
CPU time of a batch and as a share of a step's.

    python tools/bench_pipeline.py resnet8 ../shared/data/cifar10-jpeg.zip --out tools/results/pipeline.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgeclf.core.catalogue import scan
from edgeclf.core.files import write_json
from edgeclf.core.recipe import AugmentationSection, load_recipe, override
from edgeclf.host import architectures
from edgeclf.host.augment.augment import augment, mix, normalise
from edgeclf.host.data.batches import training_batches
from edgeclf.host.data.dataset import make_dataset
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.train.objective import compile_model
from edgeclf.runtime.latency import this_machine

READY = 16  # batches that are kept in memory
REPEATS = 5
POLICIES = {
    "flip": {"flip": True}, "flip and shift": {"flip": True, "shift": 0.125}, "rotate 15": {"rotate": 15.0},
    "rotate 15, zoom 0.2, shear 0.2": {"rotate": 15.0, "zoom": 0.2, "shear": 0.2}, "colour 0.4": {"colour": 0.4},
    "cutout 0.5": {"cutout": 0.5}, "randaugment 2": {"randaugment": 2}, "mixup 0.2": {"mixup": 0.2}, "cutmix 1": {"cutmix": 1.0},
}  # fmt: skip


def ready_batches(dataset, recipe):
    """Some batches of the real pipeline, augmented and normalised, repeated from memory."""
    tf = tensorflow()
    parts = zip(*training_batches(dataset, recipe).take(READY).as_numpy_iterator(), strict=True)
    return tf.data.Dataset.from_tensor_slices(tuple(np.stack(part) for part in parts)).repeat().prefetch(4)


def trainer(batches, recipe, classes, steps):
    """A function that trains `steps` steps and says how long one took: (wall, CPU) seconds."""
    model = architectures.build(recipe, classes)
    compile_model(model, recipe.training, 1000)
    model.fit(batches.take(5), verbose=0)

    def run():
        wall, cpu = time.perf_counter(), time.process_time()
        model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
        return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps

    return run


def policy_costs(pictures, classes):
    """CPU milliseconds that each policy adds to casting and normalising a batch; the least of some rounds."""
    tf = tensorflow()
    targets = tf.one_hot(np.arange(len(pictures)) % classes, classes)

    def cost(section):
        change = tf.function(
            lambda seed: mix(normalise(augment(pictures, seed, section)), targets, seed, section), autograph=False
        )
        change(tf.constant([1, 0]))
        rounds = []
        for _ in range(5):
            began = time.process_time()
            for step in range(REPEATS):
                change(tf.constant([1, step]))
            rounds.append((time.process_time() - began) / REPEATS * 1000)
        return min(rounds)

    off = {"flip": False, "shift": 0.0}
    nothing = cost(AugmentationSection(**off))
    return {name: max(0.0, cost(AugmentationSection(**(off | changes))) - nothing) for name, changes in POLICIES.items()}


def measure(recipe, data, steps, rounds):
    """The whole comparison for one recipe and data set, as a dict."""
    dataset = make_dataset(scan(data), recipe, {"seed": 1, "val": 0.1, "val_pictures": 2000, "test": 0.15})
    keras().utils.set_random_seed(1)
    classes = len(dataset.labels)
    real = trainer(training_batches(dataset, recipe), recipe, classes, steps)
    ready = trainer(ready_batches(dataset, recipe), recipe, classes, steps)
    times = [(ready(), real()) for _ in range(rounds)]
    idle = [1 - r[0] / p[0] for r, p in times]
    cpu = statistics.median(p[1] for _, p in times)
    pictures = tensorflow().constant(dataset.shards.take(dataset.parts["train"][: recipe.training.batch_size]))
    costs = policy_costs(pictures, classes)
    return {
        "recipe": recipe.name,
        "data": data.name,
        "image_size": recipe.image.size,
        "batch_size": recipe.training.batch_size,
        "augmentation": {key: value for key, value in asdict(recipe.augmentation).items() if value},
        "idle_share": round(statistics.median(idle), 4),
        "rounds": [round(share, 4) for share in idle],
        "step_ms": round(statistics.median(p[0] for _, p in times) * 1000, 2),
        "cpu_share": round(statistics.median(1 - r[1] / p[1] for r, p in times), 4),
        "policies": {
            name: {"cpu_ms": round(ms, 2), "share_of_step": round(ms / 1000 / cpu, 4)} for name, ms in costs.items()
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, help="side of the input, in place of the recipe's")
    parser.add_argument("--batch", type=int, help="pictures a step, in place of the recipe's")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, help="results file; one entry for each recipe, data set and size")
    options = parser.parse_args()
    recipe = override(load_recipe(options.recipe), image__size=options.size, training__batch_size=options.batch)
    result = {"machine": vars(this_machine()), **measure(recipe, options.data, options.steps, options.rounds)}
    print(json.dumps(result, indent=2))
    if options.out:
        known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
        write_json(options.out, {**known, f"{recipe.name} {options.data.stem} {recipe.image.size}": result})


if __name__ == "__main__":
    main()
