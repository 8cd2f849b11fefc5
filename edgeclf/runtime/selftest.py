"""The golden self-test: does this device compute what was shipped?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.card import ModelCard, golden_inputs
from edgeclf.runtime.engine import Engine


@dataclass(frozen=True)
class SelfTestResult:
    """`difference` is the largest between an output here and the exporter's, in the output's own unit; `runtime` ran here.

    It is infinite where outputs cannot be compared: one is no number, or they are of another shape.
    """

    passed: bool
    difference: float
    tolerance: float
    runtime: str
    exporter: str

    @property
    def known_difference(self) -> float | None:
        """`difference`, or None where outputs cannot be compared: what JSON can hold."""
        return self.difference if math.isfinite(self.difference) else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "difference": self.known_difference}


def self_test(engine: Engine, card: ModelCard) -> SelfTestResult | None:
    """Compute the card's golden inputs and compare; None when the card has no self-test.

    Where an engine shows its logits as the model holds them (`raw`), those are compared, so that a single bit shows.
    """
    test = card.self_test
    if test is None:
        return None
    compute = getattr(engine, "raw", engine.infer)
    with np.errstate(over="ignore"):  # a card may hold anything
        expected = np.asarray(test.outputs, np.float32)  # in whose digits the card writes floats
    found = np.asarray(compute(golden_inputs(test.seed, len(expected), card.image.shape)))
    difference = _largest_difference(found, expected)
    return SelfTestResult(difference <= test.tolerance, difference, test.tolerance, engine.runtime, test.runtime)


def _largest_difference(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return math.inf
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())
