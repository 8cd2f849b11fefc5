"""Make tests/fixtures: tiny real models with their cards, and pictures that a decoder meets. Needs the `train` extra.

    python tools/make_fixtures.py [FOLDER]

The network learns to tell four coloured shapes apart in a few seconds; it is right on all its test pictures, so a test
may ask for the answer and not only for a number. Everything is seeded; run it again only to change the fixtures.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeclf.core.bundle import attach
from edgeclf.core.card import ModelCard, SelfTest, golden_inputs
from edgeclf.core.files import write_bytes
from edgeclf.core.image import ImageSpec, Pixels, prepare
from edgeclf.core.tflite import logits_view, read_model, scheme
from edgeclf.host.export.metadata import with_metadata
from edgeclf.host.keras import keras, tensorflow

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures"
LABELS = ("red square", "green disc", "blue cross", "yellow bars")
COLOURS_BGR = ((40, 40, 220), (60, 190, 50), (220, 90, 30), (40, 210, 230))
SPEC = ImageSpec(16, 16)
SEED, TRAIN, TEST, GOLDEN = 1, 2400, 400, 4
GOLDEN_TOLERANCE = {"float": 1e-3, "int": 0.0}


def main() -> None:
    """Train, convert to every scheme, write models and pictures, and say how right each is."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    write_pictures(folder / "pictures")
    model = train(*pictures(TRAIN, SEED))
    foreign = convert(model, "float32")
    write_bytes(folder / "foreign-float32.tflite", foreign)
    test = pictures(TEST, SEED + 1)
    for variant in ("float32", "float16", "dynamic-w8", "int8", "w8a16"):
        converted = foreign if variant == "float32" else convert(model, variant)
        data = finish(converted, variant, test)
        write_bytes(folder / f"tiny-{variant}.tflite", data)
        print(f"tiny-{variant}: {len(data)} bytes, top-1 {top1(converted, *test):.4f} on {TEST} pictures")


def draw(kind: int, width: int, height: int, random: np.random.RandomState) -> Pixels:
    """A BGR picture of one shape, off centre, on a noisy grey ground."""
    ground = int(random.randint(50, 200))
    picture = np.clip(random.normal(ground, 12, (height, width, 3)), 0, 255).astype(np.uint8)
    side = min(width, height)
    radius = int(side * random.uniform(0.22, 0.34))
    x, y = (int(n / 2 + side * random.uniform(-0.12, 0.12)) for n in (width, height))
    colour = tuple(int(c) for c in np.clip(np.array(COLOURS_BGR[kind]) + random.randint(-25, 26, 3), 0, 255))
    third = max(1, radius // 3)
    if kind == 0:
        cv2.rectangle(picture, (x - radius, y - radius), (x + radius, y + radius), colour, -1)
    elif kind == 1:
        cv2.circle(picture, (x, y), radius, colour, -1)
    elif kind == 2:
        cv2.rectangle(picture, (x - third, y - radius), (x + third, y + radius), colour, -1)
        cv2.rectangle(picture, (x - radius, y - third), (x + radius, y + third), colour, -1)
    else:
        for top in (y - radius, y + third):
            cv2.rectangle(picture, (x - radius, top), (x + radius, top + 2 * third), colour, -1)
    return picture


def pictures(count: int, seed: int) -> tuple[Pixels, Any]:
    """(prepared uint8 pictures, classes), classes taking turns."""
    random = np.random.RandomState(seed)
    classes = np.arange(count) % len(LABELS)
    sides = random.randint(24, 80, (count, 2))
    return np.stack([prepare(draw(k, w, h, random), SPEC) for k, (w, h) in zip(classes, sides, strict=True)]), classes


def train(x: Pixels, y: Any) -> Any:
    """A Keras model of (pixel - 128) / 128 → logits."""
    tensorflow().config.experimental.enable_op_determinism()
    k = keras()
    k.utils.set_random_seed(SEED)
    layers = k.layers
    model = k.Sequential(
        [
            layers.Input(SPEC.shape),
            *(layers.Conv2D(n, 3, s, "same", activation="relu") for n, s in ((8, 2), (16, 2), (16, 1))),
            layers.GlobalAveragePooling2D(),
            layers.Dense(len(LABELS)),
        ]
    )
    # Smoothed labels keep the answers away from 0 and 1, so that scores can be told apart.
    model.compile(k.optimizers.Adam(0.004), k.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2))
    model.fit(normalised(x), np.eye(len(LABELS))[y], batch_size=32, epochs=15, verbose=0)
    return model


def normalised(x: Pixels) -> Any:
    return (x.astype(np.float32) - SPEC.mean) / SPEC.std


def convert(model: Any, variant: str) -> bytes:
    """The TFLite flatbuffer, ending in SOFTMAX; an int8 body gets uint8 input and output."""
    tf, k = tensorflow(), keras()
    whole = k.Model(model.inputs, k.layers.Softmax()(model.outputs[0]))
    converter = tf.lite.TFLiteConverter.from_keras_model(whole)
    if variant != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if variant == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if variant in ("int8", "w8a16"):
        converter.representative_dataset = calibration
        ops = tf.lite.OpsSet
        wide = ops.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [wide if variant == "w8a16" else ops.TFLITE_BUILTINS_INT8]
    if variant == "int8":
        converter.inference_input_type = converter.inference_output_type = tf.uint8
    return bytes(converter.convert())


def calibration() -> Any:
    """One picture at a time; the first and last are black and white, so that the input range is exactly [-1, 127/128]."""
    x, _ = pictures(200, SEED + 2)
    ends = np.stack([np.full(SPEC.shape, value, np.uint8) for value in (0, 255)])
    for picture in normalised(np.concatenate([ends[:1], x, ends[1:]])):
        yield [picture[None]]


def finish(converted: bytes, variant: str, test: tuple[Pixels, Any]) -> bytes:
    """The deployable file: metadata, card, golden self-test."""
    structure = read_model(converted, variant)
    if scheme(structure) != variant:
        raise SystemExit(f"{variant}: the tensors say {scheme(structure)}")
    outputs = infer(logits_view(converted), golden_inputs(SEED, GOLDEN, SPEC.shape))
    kind = "float" if outputs.dtype == np.float32 else "int"
    card = ModelCard(
        name="tiny",
        labels=LABELS,
        image=SPEC,
        variant=variant,
        io="uint8" if structure.input.type == "uint8" else "float32",
        provenance={"recipe": "tiny", "data": "drawn shapes", "seed": SEED},
        accuracy={"top1": top1(converted, *test), "pictures": TEST},
        self_test=SelfTest(SEED, tuple(tuple(map(float, row)) for row in outputs), GOLDEN_TOLERANCE[kind], "LiteRT, XNNPACK"),
    )
    return attach(with_metadata(converted, card), card)


def infer(model: bytes, batch: Pixels) -> Any:
    """Raw values of the output tensor, one row a picture."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    given, wanted = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for picture in batch:
        value = picture if given["dtype"] == np.uint8 else normalised(picture)
        interpreter.set_tensor(given["index"], value[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(wanted["index"])[0].copy())
    return np.stack(rows)


def top1(model: bytes, x: Pixels, y: Any) -> float:
    return float((infer(model, x).argmax(axis=1) == y).mean())


def write_pictures(folder: Path) -> None:
    """One picture a class, and what a decoder meets: EXIF orientation, grey, alpha, a cut JPEG, no picture at all."""
    random = np.random.RandomState(SEED)
    for kind, label in enumerate(LABELS):
        small = prepare(draw(kind, 48, 48, random), ImageSpec(16, 16, colour="bgr"))
        write_bytes(folder / f"{label.replace(' ', '-')}.png", encoded(".png", small))
    upright = draw(0, 64, 48, random)
    jpeg = encoded(".jpg", upright)
    write_bytes(folder / "upright.jpg", jpeg)
    write_bytes(folder / "exif-rotated.jpg", with_orientation(encoded(".jpg", np.rot90(upright)), 6))
    write_bytes(folder / "truncated.jpg", jpeg[: len(jpeg) // 2])
    write_bytes(folder / "grey.png", encoded(".png", cv2.cvtColor(draw(1, 32, 32, random), cv2.COLOR_BGR2GRAY)))
    write_bytes(folder / "alpha.png", encoded(".png", on_glass(draw(2, 32, 32, random))))
    write_bytes(folder / "text.png", b"This is no picture.\n")


def encoded(extension: str, picture: Any) -> bytes:
    return bytes(cv2.imencode(extension, picture)[1])


def on_glass(picture: Pixels) -> Pixels:
    """BGRA of the same picture whose left half is fully transparent."""
    alpha = np.full(picture.shape[:2], 255, np.uint8)
    alpha[:, : picture.shape[1] // 2] = 0
    return np.dstack([picture, alpha])


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """`jpeg` with an EXIF segment of one entry, tag 0x0112; 6 means: turn by 90 degrees clockwise to show."""
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + bytes([0, orientation, 0, 0])
    exif = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]


if __name__ == "__main__":
    main()
