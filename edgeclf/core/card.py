"""ModelCard: everything a runner must know of a model, and where it came from; it travels inside the file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from edgeclf.core import config
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.core.text import has_control_character
from edgeclf.core.unknown import UnknownRule

SCHEMA = 1
MOST_GOLDEN = 64  # pictures of a self-test
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-6, 1e6  # beyond these float32 gives NaN or nothing but ties
Io = Literal["uint8", "int8", "float32"]


@dataclass(frozen=True)
class SelfTest:
    """Golden outputs: inputs are made from `seed` (see `golden_inputs`), `outputs` is what the exporter saw.

    `outputs` has one row an input, in the output tensor's own type (integers for an int8 body, floats for float files).
    `tolerance` is the largest difference that still counts as the same computation; `runtime` names the runtime and
    kernels that made the outputs.
    """

    seed: int
    outputs: tuple[tuple[float, ...], ...]
    tolerance: float
    runtime: str

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed = {self.seed}: must lie between 0 and {(1 << 32) - 1}")
        if not 1 <= len(self.outputs) <= MOST_GOLDEN or len({len(row) for row in self.outputs}) != 1:
            raise ConfigError(f"outputs: must be 1 to {MOST_GOLDEN} rows of one length")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ConfigError(f"tolerance = {self.tolerance}: must be finite and not below 0")


def golden_inputs(seed: int, count: int, shape: tuple[int, int, int]) -> Pixels:
    """The self-test's pictures: uint8 noise of (count, *shape), the same in every NumPy (RandomState's stream is frozen)."""
    return np.random.RandomState(seed).randint(0, 256, (count, *shape), dtype=np.uint8)


@dataclass(frozen=True)
class ModelCard:
    """The model card, `edgeclf.json` inside the file.

    `variant` is the scheme (`float32`, `float16`, `dynamic-w8`, `int8`), `io` the type of the input and output tensors.
    `outputs` says what the file's output tensor holds. `temperature` divides the logits before softmax; `thresholds`
    are per class, in label order, empty when there are none; `unknown` is what a picture must reach besides, whatever its
    class. `provenance`, `calibration` and `accuracy` are records for people and reports: recipe, data fingerprint, split,
    seed, versions; the pictures that calibrated; what was measured. `sha256` is of the model's bytes without the appended
    card, hexadecimal; empty until bundled.
    """

    name: str
    labels: tuple[str, ...]
    image: ImageSpec
    variant: str = "float32"
    io: Io = "float32"
    outputs: Literal["probabilities", "logits"] = "probabilities"
    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    self_test: SelfTest | None = None
    sha256: str = ""
    unknown: UnknownRule | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise ConfigError(f"labels: {len(self.labels)} given; a classifier needs at least 2")
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError("labels: some occur twice")
        if any(not label.strip() or has_control_character(label) for label in self.labels):
            raise ConfigError("labels: a label is blank or has a line break or another control character")
        if has_control_character(self.name):
            raise ConfigError("name: has a control character")
        if self.thresholds and len(self.thresholds) != len(self.labels):
            raise ConfigError(f"thresholds: {len(self.thresholds)} for {len(self.labels)} labels")
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ConfigError("thresholds: each must lie between 0 and 1")
        if not LEAST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE:
            raise ConfigError(
                f"temperature = {self.temperature}: must be above 0 (from {LEAST_TEMPERATURE:g} to {MOST_TEMPERATURE:g})"
            )

    def to_json(self) -> str:
        """Sorted JSON, the same bytes for the same card; `unknown` is left out where there is none, as in cards of old."""
        table = {key: value for key, value in asdict(self).items() if key != "unknown" or value is not None}
        return json.dumps({"edgeclf": SCHEMA, **table}, indent=1, sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> ModelCard:
        """The card in `text`; raises ModelError, naming `where`, for anything that is not a whole, known card."""
        try:
            table = json.loads(text)
            json.dumps(table, allow_nan=False)  # NaN and infinity, which Python reads, are no JSON
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{where}: the model card is not valid JSON") from error
        if not isinstance(table, dict) or table.pop("edgeclf", None) != SCHEMA:
            raise ModelError(f"{where}: the model card is of another schema than {SCHEMA}; update edgeclf")
        try:
            return config.build(cls, {k: v for k, v in table.items() if v is not None}, where)
        except ConfigError as error:
            raise ModelError(f"model card: {error}") from error
