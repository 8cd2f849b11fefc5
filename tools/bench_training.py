"""Training speed of this project's pipeline against a bare `tf_keras` fit of the same model, in one run, interleaved.

Both train the same architecture on the same pictures with flip and shift; the bare one holds arrays in memory and
augments with Keras-style code in `tf.data`. Rounds alternate, so a noisy machine disturbs both.

    python tools/bench_training.py resnet8 ../shared/data/cifar10-jpeg.zip --out results.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from edgeclf.core.catalogue import scan
from edgeclf.core.files import write_json
from edgeclf.core.recipe import load_recipe
from edgeclf.host import architectures
from edgeclf.host.augment.augment import normalise
from edgeclf.host.data.batches import training_batches
from edgeclf.host.data.dataset import make_dataset
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.train.objective import compile_model
from edgeclf.runtime.latency import this_machine


def bare_batches(dataset, recipe):
    """Pictures in memory, shuffled and batched by `tf.data`; pad and random crop, random flip."""
    tf = tensorflow()
    size, reach = dataset.shards.shape[0], round(recipe.augmentation.shift * dataset.shards.shape[0])

    def change(pictures, classes):
        padded = tf.pad(pictures, [[0, 0], [reach, reach], [reach, reach], [0, 0]], "REFLECT")
        cropped = tf.image.random_crop(padded, [tf.shape(pictures)[0], size, size, 3])
        return normalise(tf.image.random_flip_left_right(cropped)), classes

    arrays = tf.data.Dataset.from_tensor_slices((dataset.pictures("train"), dataset.classes_of("train")))
    batched = arrays.shuffle(10_000).repeat().batch(recipe.training.batch_size, drop_remainder=True)
    return batched.map(change, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def trainer(batches, recipe, classes):
    """A function that trains `steps` steps and says how long that took, in seconds."""
    model = architectures.build(recipe, classes)
    compile_model(model, recipe.training, 1000)
    model.fit(batches.take(5), verbose=0)

    def run(steps):
        began = time.perf_counter()
        model.fit(batches, steps_per_epoch=steps, epochs=1, verbose=0)
        return time.perf_counter() - began

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    dataset = make_dataset(scan(options.data), recipe, {"seed": 1, "val": 0.1, "val_pictures": 2000, "test": 0.15})
    keras().utils.set_random_seed(1)
    classes = len(dataset.labels)
    ours = trainer(training_batches(dataset, recipe), recipe, classes)
    bare = trainer(bare_batches(dataset, recipe), recipe, classes)
    times = [(bare(options.steps), ours(options.steps)) for _ in range(options.rounds)]
    ratios = [b / o for b, o in times]
    result = {
        "machine": vars(this_machine()),
        "recipe": recipe.name,
        "speed_against_bare_fit": round(statistics.median(ratios), 3),
        "rounds": [round(r, 3) for r in ratios],
        "pictures_per_second": round(options.steps * recipe.training.batch_size / statistics.median(o for _, o in times)),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
