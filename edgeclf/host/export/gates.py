"""Gates: what an exported file must be before it may exist. Each raises QualityError in one line, and nothing is written."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeclf.core import onnx
from edgeclf.core.card import Io
from edgeclf.core.errors import QualityError
from edgeclf.core.onnx import OnnxModel
from edgeclf.core.results import PairedDrop
from edgeclf.core.tflite import PASSES_VALUES_ON, TfliteModel, named_scheme, scheme
from edgeclf.runtime.engine import Scores

SAME_AS_KERAS = 1e-4
COLLAPSE = 0.10  # a drop whose whole 95% interval lies above this is no model to ship
ENOUGH_TO_JUDGE = 20  # pictures; a working model may give so few of them one answer
INPUT_SCALE = 1 / 128
ZERO_POINTS = {"uint8": 128, "int8": 0}
NO_INT8_KERNEL = ("LOCAL_RESPONSE_NORMALIZATION",)  # TFLite computes these in floats only, so an int8 file holds them as islands


def check_structure(model: TfliteModel, variant: str, io: Io, labels: int) -> None:
    """The tensors are what the name says: one input and output of type `io`, as many outputs as labels, scheme, pixel input."""
    outputs = model.output.shape[-1] if model.output.shape else 0
    if outputs != labels:
        raise QualityError(f"{variant}: the network has {outputs} outputs for {labels} labels; train again on this data")
    found = scheme(model)
    if found != named_scheme(variant):
        raise QualityError(f"{variant}: its tensors are {found}, not {variant}{_culprit(model)}")
    for name, tensor in (("input", model.input), ("output", model.output)):
        if tensor.type != io:
            raise QualityError(f"{variant}: its {name} is {tensor.type}, not {io}")
    if named_scheme(variant) == "int8":
        _check_integers_only(model)
    wanted = (INPUT_SCALE,), (ZERO_POINTS.get(io),)
    if io != "float32" and (model.input.scales, model.input.zero_points) != wanted:
        raise QualityError(
            f"{variant}: its input has scale {model.input.scales} and zero point {model.input.zero_points}, "
            f"not 1/128 and {ZERO_POINTS[io]}, so it would not see the pixels as they are"
        )


def check_onnx(model: OnnxModel, variant: str, labels: int) -> None:
    """The same of an ONNX model: float32 pictures in, as many probabilities as labels out, and the scheme of its name."""
    outputs = model.outputs[0].shape[-1] if model.outputs[0].shape else 0
    if outputs != labels:
        raise QualityError(f"onnx-{variant}: the network has {outputs} outputs for {labels} labels; train again on this data")
    found = onnx.scheme(model)
    if found != named_scheme(variant):
        raise QualityError(f"onnx-{variant}: its tensors are {found}, not {variant}")
    if len(model.inputs) != 1:
        raise QualityError(f"onnx-{variant}: it takes {len(model.inputs)} inputs; an image classifier takes one picture")
    if onnx.logits_tensor(model) is None:
        raise QualityError(f"onnx-{variant}: it does not end in a Softmax of logits")


def check_agreement(keras: Scores, file: Scores, variant: str = "float32") -> float:
    """The float32 file computes what the Keras model does; returns the largest difference of two logits.

    Within 1e-4, relative to the largest logit where that is above 1: float sums of another order differ in proportion.
    """
    largest = float(np.max(np.abs(keras - file), initial=0.0))
    limit = SAME_AS_KERAS * max(1.0, float(np.abs(keras).max(initial=0.0)))
    if not largest <= limit:
        raise QualityError(
            f"{variant}: its logits differ from the Keras model's by {largest:.3g}; at most {limit:.3g} is allowed"
        )
    return largest


def check_answers(variant: str, scores: Scores, labels: tuple[str, ...]) -> None:
    """The logits are numbers, and pictures make a difference to them; `scores` is (pictures, classes) on held-out pictures."""
    broken = int(np.sum(~np.isfinite(scores).all(axis=1)))
    if broken:
        raise QualityError(f"{variant}: NaN or infinite scores for {broken} of {len(scores)} pictures; its training diverged")
    if len(scores) > 1 and np.all(scores == scores[0]):
        raise QualityError(f"{variant}: its output is constant: the same scores for all {len(scores)} held-out pictures")
    answers = np.unique(scores.argmax(axis=1))
    if len(scores) >= ENOUGH_TO_JUDGE and len(answers) == 1:
        raise QualityError(f"{variant}: its output is constant: {labels[answers[0]]!r} for all {len(scores)} held-out pictures")


def check_probabilities(variant: str, probabilities: Scores, step: float) -> None:
    """Every row is a distribution; `step` is the resolution of one value (1/256 in an int8 file, 0 in a float one)."""
    sums = probabilities.sum(axis=1)
    tolerance = 1e-3 + step * (probabilities.shape[1] + 1)
    if not np.isfinite(probabilities).all() or np.any(probabilities < 0) or np.any(probabilities > 1 + 1e-3):
        raise QualityError(f"{variant}: its probabilities are not all between 0 and 1")
    if np.any(np.abs(sums - 1) > tolerance):
        raise QualityError(f"{variant}: its probabilities sum to {sums[np.argmax(np.abs(sums - 1))]:.3g}, not 1")


def check_drop(variant: str, drop: PairedDrop, instead: str = "--float16 or --dynamic") -> None:
    """The accuracy did not collapse; `instead` names the options that may do better."""
    if drop.interval.low > COLLAPSE:
        raise QualityError(
            f"{variant}: top-1 collapses by {drop.drop * 100:.1f} points (95% interval {drop.interval.low * 100:.1f} to "
            f"{drop.interval.high * 100:.1f}) on {drop.total} held-out pictures; try {instead}"
        )


def float_islands(model: TfliteModel) -> tuple[str, ...]:
    """Names of the operators, in order, that have no int8 kernel and so compute in floats between integers."""
    return tuple(op.name for op in model.operators if op.name in NO_INT8_KERNEL)


def _check_integers_only(model: TfliteModel) -> None:
    """No operator in the middle works in floats: those are what an int8 accelerator or a microcontroller refuses.

    Exempt are the operators that have no int8 kernel, and the conversions on their shores.
    """
    shores = {i for op in model.operators if op.name in NO_INT8_KERNEL for i in (*op.inputs, *op.outputs)}
    for op in model.operators:
        floats = {i for i in (*op.inputs, *op.outputs) if i >= 0 and model.tensors[i].type in ("float32", "float16")}
        exempt = shores if op.name in (*NO_INT8_KERNEL, *PASSES_VALUES_ON) else set[int]()
        if floats - exempt - set(model.inputs) - set(model.outputs):
            raise QualityError(f"int8: its operator {op.name} still computes in floats, so it is not int8 throughout")


def _culprit(model: TfliteModel) -> str:
    """The first operator that a mixed file keeps in floats, for the message."""
    kinds: dict[Any, str] = {}
    for op in model.operators:
        if op.inputs and op.inputs[0] >= 0:
            kinds.setdefault(model.tensors[op.inputs[0]].type, op.name)
    return f" ({', '.join(f'{kind} in {name}' for kind, name in kinds.items())})" if len(kinds) > 1 else ""
