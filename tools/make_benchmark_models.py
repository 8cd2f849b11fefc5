"""Make int8 files of known sizes for latency benchmarks: untrained networks, calibrated on noise; their answers mean nothing.

    python tools/make_benchmark_models.py FOLDER

Writes mobilenet-v1-0.25-224, mobilenet-v2-224 and resnet8 as `NAME-int8.tflite`, in the same form as an export.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core import files
from edgeclf.core.bundle import attach
from edgeclf.core.card import ModelCard
from edgeclf.core.image import ImageSpec
from edgeclf.core.recipe import load_recipe
from edgeclf.host import architectures
from edgeclf.host.export import activations, quantize
from edgeclf.host.export.metadata import with_metadata
from edgeclf.host.keras import keras

CLASSES = 100


def mobilenets() -> dict[str, Any]:
    """Keras' own MobileNets, without weights, ending in logits."""
    applications = keras().applications
    common = {"weights": None, "classes": CLASSES, "classifier_activation": None}
    return {
        "mobilenet-v1-0.25-224": applications.MobileNet((224, 224, 3), alpha=0.25, **common),
        "mobilenet-v2-224": applications.MobileNetV2((224, 224, 3), **common),
    }


def write(name: str, model: Any, folder: Path) -> Path:
    """Quantise `model` and write it with a card."""
    height, width, _ = shape = model.input_shape[1:]
    noise = np.random.RandomState(0).randint(0, 256, (8, *shape)).astype(np.uint8)
    float32 = quantize.to_float32(quantize.with_softmax(model))
    ranges = activations.record_ranges(float32, [noise])
    labels = tuple(f"class {i:03d}" for i in range(model.output_shape[-1]))
    card = ModelCard(name, labels, ImageSpec(width, height), variant="int8", io="uint8")
    path = folder / f"{name}-int8.tflite"
    files.write_bytes(path, attach(with_metadata(quantize.quantize(float32, "int8", ranges), card), card))
    return path


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    models = {**mobilenets(), "resnet8": architectures.build(load_recipe("resnet8"), 10)}
    for name, model in models.items():
        print(write(name, model, Path(sys.argv[1])))


if __name__ == "__main__":
    main()
