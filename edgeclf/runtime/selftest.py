"""The golden self-test: does this device compute what was shipped?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeclf.core.card import ModelCard, golden_inputs
from edgeclf.runtime.engine import Engine


@dataclass(frozen=True)
class SelfTestResult:
    """`difference` is the largest between an output here and the exporter's, in the output's own unit; `runtime` ran here."""

    passed: bool
    difference: float
    tolerance: float
    runtime: str
    exporter: str


def self_test(engine: Engine, card: ModelCard) -> SelfTestResult | None:
    """Compute the card's golden inputs and compare; None when the card has no self-test.

    Where an engine shows its logits as the model holds them (`raw`), those are compared, so that a single bit shows.
    """
    test = card.self_test
    if test is None:
        return None
    compute = getattr(engine, "raw", engine.infer)
    expected = np.asarray(test.outputs, np.float64)
    found = np.asarray(compute(golden_inputs(test.seed, len(expected), card.image.shape)), np.float64)
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    return SelfTestResult(difference <= test.tolerance, difference, test.tolerance, engine.runtime, test.runtime)
