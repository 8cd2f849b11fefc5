"""Where an int8 file loses what its float32 file knew: the error of every layer, and which layers bring it in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ModelError
from edgeclf.core.image import MEAN, STD, Pixels
from edgeclf.core.tflite import Operator, Tensor, TfliteModel, read_model
from edgeclf.runtime.engine import cores, without_greeting

PERFECT_DB = 120.0  # shown where there is no error at all
MUCH_SATURATED = 0.01  # share of values at an end of the range: it was drawn too narrow
WIDE = 4.0  # times what all but one in a thousand values need: most of the 256 steps are not used
GUARD, QAT = "edgeclf export RUN --int8 --max-drop 0.5", "edgeclf compress RUN --qat"  # the first tries all that helps
BLAMED_DB = 3.0  # that a layer loses against the worst of what it reads

Values = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LayerError:
    """One operator's output in the int8 file beside the same tensor in the float32 file, over some pictures.

    `snr_db` is signal to quantisation noise, 10 log10 of the power of the float values over that of the difference;
    `added_db` is what this layer loses against the worst tensor that it reads. `saturated` is the share of values at an end
    of the range `low` to `high`; `seen_low` and `seen_high` are what the float32 file showed.
    """

    tensor: str
    operator: str
    snr_db: float
    added_db: float
    saturated: float
    low: float
    high: float
    seen_low: float
    seen_high: float

    @property
    def layer(self) -> str:
        """The first name of those that the converter joined."""
        return self.tensor.split(";")[0]

    @property
    def remedy(self) -> str:
        """What would help this layer, in words."""
        if self.saturated > MUCH_SATURATED:
            return f"a wider range, of more calibration pictures or the min-max estimator: {GUARD}"
        if self.high - self.low > WIDE * (self.seen_high - self.seen_low):
            return f"a narrower range, by the percentile or mse estimator: {GUARD}"
        if self.operator in ("LOGISTIC", "HARD_SWISH", "MUL", "SOFTMAX"):
            return f"finer steps than int8 has, in floats or learned: {GUARD}, or {QAT}"
        return f"training with the rounding, or floats: {QAT}, or {GUARD}"


def layer_errors(float32: bytes, int8: bytes, pictures: Iterable[Pixels]) -> tuple[LayerError, ...]:
    """The error of every quantised tensor that both files compute, in the order of computation.

    `pictures` are uint8 batches (n, height, width, channels). Raises ModelError when the files have no tensor in common,
    so one was not made from the other.
    """
    whole, small = Tensors(float32), Tensors(int8)
    ends = {whole.structure.output.name, whole.structure.input.name}  # which are called alike in every file
    shared = [name for name in small.by_name if name in whole.by_name and name not in ends and small.by_name[name].scales]
    if not shared:
        raise ModelError("the int8 file and the float32 file have no tensor in common; give the file it was made from")
    sums = {name: _Sums() for name in shared}
    for batch in pictures:
        for picture in batch:
            whole.run(picture)
            small.run(picture)
            for name in shared:
                sums[name].add(whole.real(name), small.stored(name), small.by_name[name])
    return tuple(_errors(shared, sums, small))


def blamed(errors: tuple[LayerError, ...]) -> tuple[LayerError, ...]:
    """The layers that bring in the error, the worst first: those that lose much against what they read."""
    guilty = [e for e in errors if e.added_db >= BLAMED_DB and e.operator != "SOFTMAX"]
    return tuple(sorted(guilty, key=lambda e: (e.snr_db - PERFECT_DB) * e.added_db))


class _Sums:
    """Running sums over pictures of one tensor."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0
        self.count = self.saturated = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, real: Values, stored: Any, tensor: Tensor) -> None:
        limits = np.iinfo(stored.dtype)
        found = (stored.astype(np.float32) - tensor.zero_points[0]) * np.float32(tensor.scales[0])
        self.signal += float(np.sum(real.astype(np.float64) ** 2))
        self.noise += float(np.sum((real.astype(np.float64) - found) ** 2))
        self.count += real.size
        step = tensor.scales[0]
        outside = ((real > found + step) & (stored == limits.max)) | ((real < found - step) & (stored == limits.min))
        self.saturated += int(np.sum(outside))
        self.low, self.high = min(self.low, float(real.min())), max(self.high, float(real.max()))

    @property
    def snr_db(self) -> float:
        if self.noise == 0 or self.signal == 0:
            return PERFECT_DB if self.noise == 0 else 0.0
        return min(PERFECT_DB, 10 * math.log10(self.signal / self.noise))


def _errors(shared: list[str], sums: dict[str, _Sums], small: Tensors) -> list[LayerError]:
    found, model = [], small.structure
    for operator in model.operators:
        tensor = model.tensors[operator.outputs[0]]
        if tensor.name not in sums:
            continue
        mine, limits = sums[tensor.name], np.iinfo(np.int16 if tensor.type == "int16" else np.int8)
        low, high = ((limit - tensor.zero_points[0]) * tensor.scales[0] for limit in (limits.min, limits.max))
        before = [sums[model.tensors[i].name].snr_db for i in _read(operator, model) if model.tensors[i].name in sums]
        added = max(0.0, min(before, default=PERFECT_DB) - mine.snr_db) if before else 0.0
        found.append(
            LayerError(
                tensor.name,
                operator.name,
                mine.snr_db,
                added,
                mine.saturated / max(1, mine.count),
                low,
                high,
                mine.low,
                mine.high,
            )
        )
    return found


def _read(operator: Operator, model: TfliteModel) -> list[int]:
    return [i for i in operator.inputs if i >= 0 and not model.tensors[i].constant]


class Tensors:
    """An interpreter that keeps every tensor, one picture at a time."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with warnings.catch_warnings(), without_greeting():
            warnings.simplefilter("ignore")  # that keeping every tensor costs memory
            self.interpreter = Interpreter(model_content=model, num_threads=cores(), experimental_preserve_all_tensors=True)
            self.interpreter.allocate_tensors()
        self.structure = read_model(model, "model")
        made = {i for operator in self.structure.operators for i in operator.outputs}
        self.by_name = {self.structure.tensors[i].name: self.structure.tensors[i] for i in sorted(made)}
        self.index = {self.structure.tensors[i].name: i for i in made}

    def run(self, picture: Pixels) -> None:
        """Compute every tensor of one picture, uint8 (height, width, channels)."""
        given = self.interpreter.get_input_details()[0]
        kinds = {np.uint8: picture, np.int8: (picture.astype(np.int16) - 128).astype(np.int8)}
        self.interpreter.set_tensor(given["index"], kinds.get(given["dtype"], (picture.astype(np.float32) - MEAN) / STD)[None])
        self.interpreter.invoke()

    def real(self, name: str) -> Values:
        """A tensor's values as real numbers, whatever they are stored as."""
        stored, tensor = self.stored(name), self.by_name[name]
        if not tensor.scales:
            return np.asarray(stored, np.float32)
        found: Values = (stored.astype(np.float32) - tensor.zero_points[0]) * np.float32(tensor.scales[0])
        return found

    def stored(self, name: str) -> Any:
        """A tensor's values as they are stored."""
        return self.interpreter.get_tensor(self.index[name])
