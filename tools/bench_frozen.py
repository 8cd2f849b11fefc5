"""An epoch of training a head on features kept from a frozen network, against one that computes them again, in one run.

Both train the same head on the same pictures in batches of the recipe's size. Recomputing pays for one pass of the network
over the pictures; the kept features are read from their file, and with the mirrored view they are twice as many. What
happens once in a stage (computing the features that are kept, TensorFlow's compiling) is in neither. Rounds alternate, so
a noisy machine disturbs both.

    python tools/bench_frozen.py mobilenet-v1-0.25 ../shared/data/cats-dogs.zip \\
        --weights ../shared/data/mobilenet_2_5_224_tf_no_top.h5 --out tools/results/frozen.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from edgeclf.core.catalogue import scan
from edgeclf.core.files import write_json
from edgeclf.core.recipe import load_recipe, override
from edgeclf.host import architectures
from edgeclf.host.architectures.backbones import WANTED
from edgeclf.host.data.dataset import make_dataset
from edgeclf.host.full_model import answering
from edgeclf.host.keras import keras
from edgeclf.host.train import transfer, weight_files, weights
from edgeclf.runtime.latency import this_machine

EPOCHS = 6


def timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe = override(load_recipe(options.recipe), transfer__frozen_epochs=EPOCHS)
    once = override(recipe, augmentation__flip=False)
    dataset = make_dataset(scan(options.data), recipe, {"seed": 1, "val": 0.1, "val_pictures": 2000, "test": 0.15})
    file = weights.find(recipe, options.weights)
    model = architectures.build(recipe, len(dataset.labels))
    weight_files.load(model, file.path, WANTED[recipe.model.architecture])
    frozen = answering(keras().Model(model.input, model.get_layer("features").output))
    kept = transfer.frozen_features(model, recipe, dataset, file.sha256)
    indices = np.concatenate([dataset.parts["train"], dataset.parts["val"]])

    def head_epoch(features, chosen) -> float:
        rows = list(transfer.train_head(model, features, chosen, dataset))
        return statistics.median(row["seconds"] for row in rows[1:])  # TensorFlow compiles in the first, once a stage

    def network() -> np.ndarray:
        size = transfer.PICTURES_AT_ONCE
        return np.concatenate([frozen(dataset.shards.take(indices[i : i + size])) for i in range(0, len(indices), size)])

    features = network()
    times = [(timed(network) + head_epoch(features, once), head_epoch(kept, recipe)) for _ in range(options.rounds)]
    ratios = [again / kept_time for again, kept_time in times]
    result = {
        "machine": vars(this_machine()),
        "recipe": recipe.name,
        "data": options.data.name,
        "pictures": len(indices),
        "speed_against_recomputing": round(statistics.median(ratios), 1),
        "rounds": [round(r, 1) for r in ratios],
        "seconds_recomputing": round(statistics.median(a for a, _ in times), 2),
        "seconds_kept": round(statistics.median(k for _, k in times), 2),
    }
    print(json.dumps(result, indent=2))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
