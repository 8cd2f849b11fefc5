"""Comparison: every exported file of a run beside its full model, as measured here; the value behind the three reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from edgeclf.core.calibrate import Calibration
from edgeclf.core.results import Accuracy, Interval, Memory, Size
from edgeclf.host.inside import Inside
from edgeclf.host.report.devices import Board
from edgeclf.host.report.timing import Speedup, Timing
from edgeclf.host.understand.compare import Against
from edgeclf.runtime.latency import Machine

SCHEMA = 1
FULL = "full model"


@dataclass(frozen=True)
class Model:
    """One model as measured: where it lies, what ran it, how right it is, how long it takes, how large it is.

    `runtime` names runtime, version and kernels, `threads` what it was allowed to use; `trust` is how far its probabilities
    are off. `memory` is None where it could not be measured.
    """

    name: str
    file: str
    runtime: str
    threads: str
    size: Size
    accuracy: Accuracy
    top5_interval: Interval
    timing: Timing
    trust: Calibration
    memory: Memory | None = None


@dataclass(frozen=True)
class Variant:
    """An exported file: the model in it, and how it compares with the full one.

    `precision` is the scheme found in the tensors; `named_right` says whether the name in the card claims the same.
    `over_float32` is None for float32 itself and when there is no float32 file; `inside` for a file that is not TFLite.
    """

    model: Model
    io: str
    precision: str
    named_right: bool
    against: Against
    over_full: Speedup
    over_float32: Speedup | None
    inside: Inside | None = None

    @property
    def name(self) -> str:
        return self.model.name


@dataclass(frozen=True)
class Unusable:
    """An exported file that could not be measured, and why, in one line."""

    file: str
    reason: str


@dataclass(frozen=True)
class Emulated:
    """Instructions of one inference on one thread of an emulated board, by variant: counts, and no latency."""

    device: str
    name: str
    instructions: dict[str, int]


@dataclass(frozen=True)
class Verdict:
    """A recommendation: the variant (None when none can be recommended), a sentence or two, and further remarks."""

    variant: str | None
    sentence: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """A whole report. `names` are the pictures of the test part in the order of every `Flip.row`.

    `made_elsewhere` says that the model was imported, so that its training may have seen some of them. `boards` are devices
    on which files of the run were measured too, `emulated` such on which their instructions were counted.
    """

    run: str
    recipe: str
    data: str
    fingerprint: str
    created: str
    parameters: int
    labels: tuple[str, ...]
    names: tuple[str, ...]
    machine: Machine
    versions: dict[str, str]
    full: Model
    variants: tuple[Variant, ...]
    unusable: tuple[Unusable, ...]
    verdict: Verdict
    made_elsewhere: bool = False
    boards: tuple[Board, ...] = ()
    emulated: tuple[Emulated, ...] = ()

    @property
    def pictures(self) -> int:
        """How many test pictures every model answered."""
        return self.full.accuracy.pictures

    def variant(self, name: str) -> Variant | None:
        return next((v for v in self.variants if v.name == name), None)

    def focus(self) -> Variant:
        """The variant whose mistakes are shown in pictures: the smallest int8 file, else the smallest file."""
        return min(self.variants, key=lambda v: (v.precision != "int8", v.model.size.file_bytes))

    def to_json(self) -> dict[str, Any]:
        """The document of `report.json`; `edgeclf.host.report.report` describes it."""
        return {
            "edgeclf_report": SCHEMA,
            **{key: getattr(self, key) for key in ("run", "recipe", "data", "fingerprint", "created", "parameters", "pictures")},
            "labels": list(self.labels),
            "machine": asdict(self.machine),
            "versions": self.versions,
            "full": _model(self.full),
            "variants": [self._variant(v) for v in self.variants],
            "unusable": [asdict(u) for u in self.unusable],
            "boards": [
                {"name": board.name, "variants": [name for name, _ in board.files], "report": board.report.to_json()}
                for board in self.boards
            ],
            "emulated": [asdict(board) for board in self.emulated],
            "recommendation": asdict(self.verdict),
        }

    def _variant(self, variant: Variant) -> dict[str, Any]:
        flips = [
            {
                "picture": self.names[flip.row],
                "truth": self.labels[flip.truth],
                "answer": self.labels[flip.after] if flip.after >= 0 else None,
                "full_confidence": flip.confidence,
            }
            for flip in variant.against.flips
        ]
        found = variant.against
        return {
            **_model(variant.model),
            "io": variant.io,
            "inside": asdict(variant.inside) if variant.inside else None,
            "precision": variant.precision,
            "named_right": variant.named_right,
            "against_full": {
                **asdict(found.drop),
                "agreement": found.agreement,
                "agreement_interval": asdict(found.agreement_interval),
                "largest_logit_difference": found.largest_logit_difference,
                "classes": [{**asdict(c), "change": c.change} for c in found.classes],
                "negative_flips": flips,
            },
            "speedup_over_full": asdict(variant.over_full),
            "speedup_over_float32": asdict(variant.over_float32) if variant.over_float32 else None,
        }


def _model(model: Model) -> dict[str, Any]:
    timing = model.timing
    return {
        "name": model.name,
        "file": model.file,
        "runtime": model.runtime,
        "threads": model.threads,
        "size": asdict(model.size),
        "memory": asdict(model.memory) if model.memory else None,
        "accuracy": {**model.accuracy.to_json(), "top5_interval": asdict(model.top5_interval)},
        "calibration": {"ece": model.trust.ece, "confidence": model.trust.confidence, "temperature": model.trust.temperature},
        "latency": {
            **asdict(timing.latency), "p25_ms": timing.p25_ms, "p75_ms": timing.p75_ms, "rounds_ms": list(timing.rounds_ms)
        },
    }  # fmt: skip
