"""Conversion and post-training quantisation: a Keras model or a float32 TFLite file in, a TFLite file of a named scheme out.

`TFLiteConverter` makes the float32 file; `litert-quantizer` makes the others from it, with ranges that are recorded here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.card import Io
from edgeclf.core.errors import ConfigError, DataError, ModelError
from edgeclf.core.image import MEAN, STD, Pixels
from edgeclf.core.tflite import TfliteModel, read_model
from edgeclf.host.faces import with_io
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.quiet import quiet
from edgeclf.runtime.engine import cores

INPUT_RANGE = (-MEAN / STD, (255 - MEAN) / STD)  # gives scale 1/128 and zero point 0, so that a quantised input is pixel - 128
OUTLYING_SHARE, OUTLYING_FACTOR = 0.02, 1.5
ACTIVATION_BYTES = 64 << 20  # of all tensors of one calibration batch
MAX_BATCH = 50

Extremes = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Ranges:
    """(low, high) of every tensor that is computed at run time, by name, as seen on `pictures` calibration pictures."""

    by_tensor: dict[str, tuple[float, float]]
    pictures: int


def with_softmax(model: Any) -> Any:
    """The Keras model that ends in logits, with a softmax behind it."""
    layers = keras().layers
    return keras().Model(model.input, layers.Softmax(name="probabilities")(model.output), name=model.name)


def to_float32(model: Any) -> bytes:
    """A Keras model as a float32 TFLite flatbuffer: batch 1, which an interpreter may resize.

    Raises ModelError when the converter refuses it.
    """
    lite = tensorflow().lite

    def convert() -> bytes:
        converter = lite.TFLiteConverter.from_keras_model(model)
        converter.target_spec.supported_ops = [lite.OpsSet.TFLITE_BUILTINS]
        return bytes(converter.convert())

    return _made(convert, f"{model.name}: TensorFlow's converter refused it")


def quantize(float32: bytes, variant: str, ranges: Ranges | None = None, io: Io = "uint8") -> bytes:
    """The float32 TFLite model in another scheme: `float32` (itself), `float16`, `dynamic-w8` or `int8`.

    int8 is per-channel int8 throughout and needs `ranges`; `io` is the type of its input and output, the other schemes
    stay float32 there. Same input, same bytes. Raises ConfigError for an unknown variant, ModelError when it fails.

    Why litert-quantizer and not the converter's own (deprecated) quantisation: measured on a resnet8-like net (4,000 CIFAR-10
    pictures, float 58.35%) and MobileNet V1 0.25 (2,000 cats and dogs, float 87.95%), int8 with 500 calibration pictures:
    top-1 58.35 against 58.53% and 86.45 against 86.40%, error of the logits (rms) 0.0448 against 0.0455 and 0.6683
    against 0.6684, all the same within noise; time 0.2 and 1.1 s against 2.5 and 12 s, and ranges are ours to set.
    """
    if variant == "float32":
        return float32
    if variant not in RECIPES:
        raise ConfigError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    if variant in CALIBRATED and ranges is None:
        raise ConfigError(f"{variant} needs calibration ranges")
    statistics = _statistics(float32, ranges) if variant in CALIBRATED and ranges else None

    def make() -> bytes:
        from litert_quantizer import quantizer

        made = quantizer.Quantizer(float32, RECIPES[variant]()).quantize(statistics, enable_progress_report=False)
        return bytes(made.quantized_model)

    return with_io(_made(make, f"{variant}: litert-quantizer refused the model"), io if variant == "int8" else "float32")


def record_ranges(float32: bytes, batches: Iterable[Pixels]) -> Ranges:
    """Run uint8 batches (n, height, width, channels) through the float32 model and note the range of every tensor.

    Batches are taken one at a time and cut further where tensors are large, so memory does not grow with the number of
    pictures but for two numbers a tensor and picture. Raises DataError when there is no picture.
    """
    structure = read_model(float32, "float32 model")
    used = {i for op in structure.operators for i in (*op.inputs, *op.outputs)}  # a foreign file may hold tensors of no use
    watched = [i for i, t in enumerate(structure.tensors) if t.type == "float32" and not t.constant and i in used]
    runner = _Runner(float32, structure, watched)
    found = []
    for batch in _chunks(batches, _batch_size(structure, watched) if runner.takes_batches() else 1):
        found.append(runner.extremes(batch))
    if not found:
        raise DataError("no calibration picture; the training part is empty")
    extremes = np.concatenate(found, axis=2)
    ranges = {structure.tensors[t].name: robust_range(*extremes[i]) for i, t in enumerate(watched)}
    return Ranges({**ranges, structure.input.name: INPUT_RANGE}, extremes.shape[2])


def robust_range(lows: Extremes, highs: Extremes) -> tuple[float, float]:
    """One range from the lowest and highest value of each picture, both (pictures,).

    The extremes of all pictures, save where a few outlying ones reach far beyond the rest: no further than 1.5 times what
    98% of the pictures stay within. Measured on a resnet8-like net: clean pictures lose nothing by it (rms error of
    the logits 0.045); with 1% of hard black-and-white noise among them it is 0.048, where plain extremes give 0.060.
    """
    high = min(float(highs.max()), OUTLYING_FACTOR * max(0.0, float(np.quantile(highs, 1 - OUTLYING_SHARE))))
    low = max(float(lows.min()), OUTLYING_FACTOR * min(0.0, float(np.quantile(lows, OUTLYING_SHARE))))
    return min(low, 0.0), max(high, 0.0)


class _Runner:
    """The float32 model with every tensor kept, for one batch size at a time."""

    def __init__(self, float32: bytes, structure: TfliteModel, watched: list[int]) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with warnings.catch_warnings():
            # It warns that keeping every tensor costs memory, which is what is wanted here, within `ACTIVATION_BYTES`.
            warnings.simplefilter("ignore")
            self.interpreter = Interpreter(model_content=float32, num_threads=cores(), experimental_preserve_all_tensors=True)
        self.input, self.watched, self.size = structure.inputs[0], watched, 0

    def takes_batches(self) -> bool:
        """Whether the graph computes several pictures at once; one made elsewhere may have the 1 written into it."""
        shape = self.interpreter.get_input_details()[0]["shape"]
        try:
            self.extremes(np.zeros((2, *shape[1:]), np.uint8))
        except (RuntimeError, ValueError):
            self.size = 0
            self.interpreter.resize_tensor_input(self.input, shape)
            return False
        return True

    def extremes(self, pictures: Pixels) -> Extremes:
        """(tensors, 2, pictures): lowest and highest value of each watched tensor in each picture."""
        if self.size != len(pictures):
            self.interpreter.resize_tensor_input(self.input, pictures.shape)
            self.interpreter.allocate_tensors()
            self.size = len(pictures)
        self.interpreter.set_tensor(self.input, (pictures.astype(np.float32) - MEAN) / STD)
        self.interpreter.invoke()
        return np.stack([_extremes(self.interpreter.get_tensor(i), len(pictures)) for i in self.watched])


def _extremes(values: npt.NDArray[np.float32], pictures: int) -> Extremes:
    """(2, pictures): lowest and highest value of each picture; of all, when the tensor has no row a picture."""
    rows = (
        values.reshape(pictures, -1)
        if values.ndim and values.shape[0] == pictures
        else np.broadcast_to(values.reshape(1, -1), (pictures, values.size))
    )
    return np.stack([rows.min(axis=1), rows.max(axis=1)])


def _batch_size(structure: TfliteModel, watched: list[int]) -> int:
    """As many pictures as fit into ACTIVATION_BYTES with every tensor kept."""
    elements = sum(abs(structure.tensors[i].elements) for i in watched)
    return min(MAX_BATCH, max(1, ACTIVATION_BYTES // (4 * max(1, elements))))


def _chunks(batches: Iterable[Pixels], size: int) -> Iterator[Pixels]:
    for batch in batches:
        yield from (batch[first : first + size] for first in range(0, len(batch), size))


def _statistics(float32: bytes, ranges: Ranges) -> dict[str, dict[str, Extremes]]:
    """Ranges in the shape litert-quantizer wants: an array of as many dimensions as the tensor has."""
    shapes = {t.name: (1,) * len(t.shape) for t in read_model(float32, "float32 model").tensors}
    return {
        name: {"min": np.full(shapes[name], low, np.float32), "max": np.full(shapes[name], high, np.float32)}
        for name, (low, high) in ranges.by_tensor.items()
    }


def _float16() -> Any:
    from litert_quantizer import algorithm_manager, qtyping, recipe_manager

    manager = recipe_manager.RecipeManager()
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    every = qtyping.TFLOperationName.ALL_SUPPORTED
    manager.add_quantization_config(".*", every, config, algorithm_manager.AlgorithmName.FLOAT_CASTING)
    return manager.get_quantization_recipe()


def _dynamic() -> Any:
    """Weights of fewer than 1,024 elements stay float: measured on MobileNet V1 0.25, half the error and twice the speed."""
    from litert_quantizer import recipe

    return recipe.dynamic_legacy_wi8_afp32()


def _int8() -> Any:
    from litert_quantizer import recipe

    return recipe.static_wi8_ai8()


def _weight_only() -> Any:
    from litert_quantizer import recipe

    return recipe.weight_only_wi8_afp32()


def _w8a16() -> Any:
    from litert_quantizer import recipe

    return recipe.static_wi8_ai16()


RECIPES = {"float16": _float16, "dynamic-w8": _dynamic, "weight-only-w8": _weight_only, "int8": _int8, "w8a16": _w8a16}
VARIANTS = ("float32", *RECIPES)
CALIBRATED = ("int8", "w8a16")


def _made(make: Callable[[], bytes], complaint: str) -> bytes:
    """What `make` gives, its chatter held back; its failure as ModelError.

    Converter and quantiser raise private classes as well as KeyError and RuntimeError for a graph that they cannot handle.
    """
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # litert-quantizer makes the interpreter warn about an option that it sets itself
        try:
            return make()
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"{complaint}: {lines[0][:300]}; run again as: edgeclf --debug …") from error
