"""The accuracy guard: the cheapest way to int8 whose loss, with its confidence interval, stays within a stated budget.

Ways are tried in the order of their cost: range estimators, bias correction, cross-layer equalisation, then more and more of
the worst layers kept in floats, and last a short training with the rounding. Each is judged on pictures that neither calibrate
nor test. The first that holds is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from edgeclf.core.card import Io
from edgeclf.core.errors import ConfigError, ModelError, QualityError
from edgeclf.core.image import Pixels
from edgeclf.core.results import PairedDrop, paired_drop
from edgeclf.core.tflite import read_model
from edgeclf.host.export import activations, bias_correction, equalise, quant_errors, quantize
from edgeclf.host.export.activations import ESTIMATORS, Estimator, Ranges, Recorded

ERROR_PICTURES = 32  # that the error of each layer is measured on
MOST_KEPT = 8  # layers in floats; with more, float16 is the honest name
RETRAINED = "int8-qat"  # the variant of the last way

Measure = Callable[[bytes, str], PairedDrop]


@dataclass(frozen=True)
class Attempt:
    """One way that was tried: its loss on the guard's pictures, and whether that holds the budget. `note` says why not run."""

    name: str
    variant: str
    drop: PairedDrop | None
    held: bool
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """For the model card: the drop and its interval as fractions, None where the way could not be made."""
        drop = self.drop
        interval = (drop.drop, drop.interval.low, drop.interval.high) if drop else (None, None, None)
        numbers = dict(zip(("drop", "low", "high"), interval, strict=True))
        return {"name": self.name, "variant": self.variant, "held": self.held, "note": self.note, **numbers}


@dataclass(frozen=True, eq=False)
class Found:
    """The way that holds: an int8 or mixed file with its ends as asked for, and everything that was tried, it last."""

    model: bytes
    variant: str
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, eq=False)
class Guard:
    """What the guard works with: the float32 file, what calibration showed of it, calibration pictures (uint8), and a measure.

    `measure` gives the paired drop of a file, named by its variant, against the full model on the guard's own pictures.
    `budget` is a fraction, 0.005 for half a point. `adjusted` puts ranges that training found in place of estimated ones;
    `retrained` trains the network with the rounding and gives its int8 file.
    """

    float32: bytes
    recorded: Recorded
    pictures: Pixels
    measure: Measure
    budget: float
    io: Io = "uint8"
    adjusted: Callable[[Ranges], Ranges] | None = None
    retrained: Callable[[], bytes] | None = None

    def search(self) -> Found:
        """The first way that holds. Raises QualityError, with all that was tried, when none does."""
        attempts: list[Attempt] = []
        for name, variant, make in self._ways(attempts):
            try:
                model = make()
            except ModelError as error:
                attempts.append(Attempt(name, variant, None, False, str(error)))
                continue
            drop = self.measure(model, variant)
            attempts.append(Attempt(name, variant, drop, holds(drop, self.budget)))
            if attempts[-1].held:
                return Found(model, variant, tuple(attempts))
        raise QualityError(refusal(attempts, self.budget))

    def _ways(self, tried: Sequence[Attempt]) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
        """Each way as it comes to its turn: name, variant, and what makes the file."""
        for estimator in ESTIMATORS:
            yield f"int8, {estimator} ranges", "int8", partial(self.int8, estimator)
        best = self._best_estimator(tried)
        yield f"int8, {best} ranges, biases corrected", "int8", partial(self.corrected, best)
        if not self.adjusted:  # equalised channels would not fit the ranges that training found
            yield f"int8, layers equalised, {best} ranges, biases corrected", "int8", partial(self.equalised, best)
        worst = self.worst_layers(best)
        count = 1
        while count <= min(MOST_KEPT, len(worst)):
            kept = worst[:count]
            named = ", ".join(_short(name) for name in kept)
            yield f"{best} ranges, in floats: {named}", "mixed", partial(self.mixed, best, kept)
            count *= 2
        if self.retrained and can_be_shown(tried, self.budget):
            yield "int8 after quantisation-aware training", RETRAINED, self.retrained

    def _best_estimator(self, tried: Sequence[Attempt]) -> Estimator:
        drops = [(a.drop.drop, i) for i, a in enumerate(tried[: len(ESTIMATORS)]) if a.drop]
        return ESTIMATORS[min(drops)[1]] if drops else ESTIMATORS[0]

    def int8(self, estimator: Estimator) -> bytes:
        """The whole network in int8."""
        return quantize.quantize(self.float32, "int8", self._ranges(estimator), self.io)

    def corrected(self, estimator: Estimator) -> bytes:
        """The same with its biases corrected."""
        return bias_correction.corrected(self.float32, self.int8(estimator), self.pictures)

    def equalised(self, estimator: Estimator) -> bytes:
        """The same of the network with its layers equalised. Raises ModelError where no two layers can be."""
        even = equalise.equalised(self.float32)
        ranges = activations.record_ranges(even, [self.pictures], estimator)
        return bias_correction.corrected(even, quantize.quantize(even, "int8", ranges, self.io), self.pictures)

    def mixed(self, estimator: Estimator, kept: Sequence[str]) -> bytes:
        """The network in int8 but for the operators that compute these tensors."""
        return quantize.quantize(self.float32, "mixed", self._ranges(estimator), self.io, kept)

    def _ranges(self, estimator: Estimator) -> Ranges:
        estimated = self.recorded.ranges(estimator)
        return self.adjusted(estimated) if self.adjusted else estimated

    def worst_layers(self, estimator: Estimator) -> list[str]:
        """Tensors of the layers that lose most, the worst first."""
        errors = quant_errors.layer_errors(self.float32, self.int8(estimator), [self.pictures[:ERROR_PICTURES]])
        first = _reading_the_input(self.float32)  # which must stay int8 for the input to be the pixel itself
        ranked = sorted((e for e in errors if e.operator in KEPT_KINDS and e.tensor not in first), key=lambda e: -e.added_db)
        return [e.tensor for e in ranked]


KEPT_KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MUL", "ADD", "LOGISTIC", "HARD_SWISH")


def holds(drop: PairedDrop, budget: float) -> bool:
    """Whether the whole 95% interval of the loss lies within the budget."""
    return drop.interval.high <= budget


def can_be_shown(attempts: Sequence[Attempt], budget: float) -> bool:
    """Whether a file that answers every picture as the full model does would hold the budget, on so many pictures."""
    same = np.ones(next((a.drop.total for a in attempts if a.drop), 0), bool)
    return bool(same.size) and holds(paired_drop(same, same), budget)


def refusal(attempts: Sequence[Attempt], budget: float) -> str:
    """Why no file is written, in one line: the nearest way, and what to do."""
    measured = [(a, a.drop) for a in attempts if a.drop]
    if not measured:
        return f"--max-drop {budget * 100:g}: no int8 file could be made: {attempts[-1].note}"
    nearest, drop = min(measured, key=lambda pair: pair[1].interval.high)
    why = (
        f"{drop.total} validation pictures are too few to show that it holds: more of them narrow the interval"
        if drop.drop <= budget
        else "train with the rounding first: edgeclf compress RUN --qat, then export that run"
    )
    return (
        f"--max-drop {budget * 100:g}: none of {len(attempts)} ways holds it with its 95% interval; the nearest, {nearest.name}, "
        f"loses {drop.drop * 100:+.2f} points ({drop.interval.low * 100:+.2f} to {drop.interval.high * 100:+.2f}); {why}"
    )


def check_budget(points: float) -> float:
    """Points of top-1 as a fraction. Raises ConfigError for none and for what is no loss at all."""
    if not 0 < points < 100:
        raise ConfigError(f"--max-drop {points:g}: points of top-1 between 0 and 100, as 0.5")
    return points / 100


def _reading_the_input(float32: bytes) -> set[str]:
    model = read_model(float32, "float32")
    return {model.tensors[op.outputs[0]].name for op in model.operators if model.inputs[0] in op.inputs}


def _short(tensor: str) -> str:
    return tensor.split(";")[0].split("/")[-2] if "/" in tensor else tensor
