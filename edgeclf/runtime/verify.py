"""Verify: whether this machine computes what the exporter of a file saw, by the golden self-test in its model card."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgeclf.core.errors import ModelError
from edgeclf.runtime.classifier import from_bundle, read_file
from edgeclf.runtime.selftest import self_test

Outcome = Literal["bit-exact", "within tolerance", "wrong"]
NO_CARD = (
    "{where}: carries no model card, so nothing says what it should compute; verify a file that 'edgeclf export' wrote, "
    "or see what this one is: edgeclf inspect"
)
NO_SELF_TEST = "{where}: its model card holds no self-test; export it again with 'edgeclf export', which writes one"


@dataclass(frozen=True)
class Verdict:
    """How the outputs here compare with the exporter's. `difference` is the largest, in the output's own unit.

    `difference` is None where an output is no number or of another shape, which is `wrong`. `runtime` names runtime,
    version and kernels here, `exporter` those that made the expected outputs; `sha256` is of the model, as in its card.
    """

    file: str
    outcome: Outcome
    sha256: str
    difference: float | None
    tolerance: float
    runtime: str
    exporter: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(path: Path) -> Verdict:
    """Check the file at `path` against its card, and compute the card's golden inputs on one thread.

    A file that was never opened here is tried in a child process first. Raises ModelError for a file that is broken,
    altered or without card or self-test, MissingExtra when no runtime for it is installed.
    """
    bundle = read_file(path)
    if bundle.card is None:
        raise ModelError(NO_CARD.format(where=bundle.name))
    if not bundle.card.sha256:  # an ONNX file whose card was put there by other means
        raise ModelError(f"{bundle.name}: its model card holds no SHA-256 of the model; export it again with 'edgeclf export'")
    classifier = from_bundle(bundle, threads=1)
    result = self_test(classifier.engine, classifier.card)
    if result is None:
        raise ModelError(NO_SELF_TEST.format(where=bundle.name))
    outcome: Outcome = "wrong"
    if result.passed:
        outcome = "within tolerance" if result.difference else "bit-exact"
    return Verdict(
        bundle.name, outcome, bundle.card.sha256, result.known_difference, result.tolerance, result.runtime, result.exporter
    )
