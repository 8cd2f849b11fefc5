"""A file of `optimize`: made as export makes its own, of the run's network or of a compressed one, and measured."""

from __future__ import annotations

import gzip
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeclf.core import files
from edgeclf.core.bundle import attach, read_bundle
from edgeclf.core.card import Io
from edgeclf.core.errors import ModelError, QualityError
from edgeclf.core.progress import Bar, no_bar
from edgeclf.core.results import PairedDrop
from edgeclf.core.tflite import read_model
from edgeclf.host.compress import compress
from edgeclf.host.export import candidates, export, guarded, quantize
from edgeclf.host.export.activations import ESTIMATORS, Estimator
from edgeclf.host.export.candidates import Candidate, Setting, Source
from edgeclf.host.export.guard import Guard
from edgeclf.host.optimize.space import Configuration, Network
from edgeclf.host.report import timing
from edgeclf.host.run import Run
from edgeclf.host.train.fitting import Listeners
from edgeclf.runtime.engine import TfliteEngine, open_engine

ROUNDS = 6  # of timing a file beside float32, to steer the search; the choice is made by longer timing of all files in turns


@dataclass(frozen=True, eq=False)
class Bench:
    """A network that files are made of. `setting` holds the test pictures, which only `finish` looks at."""

    setting: Setting
    source: Source
    ways: Guard
    measures: dict[Io, Callable[[bytes, str], PairedDrop]]
    ranked: dict[Estimator, list[str]] = field(default_factory=dict)  # worst layers, once they were looked for

    def candidate(self, wanted: Configuration, notes: dict[str, Any] | None = None) -> Candidate:
        """The file of that configuration before its gates; `notes` go into its provenance. Raises ModelError, QualityError."""
        run, variant = self.setting.run, wanted.variant
        model = self._model(wanted)
        return candidates.described(
            model, run.named(variant), self._io(wanted), self.setting, variant in quantize.CALIBRATED, notes
        )

    def drop(self, candidate: Candidate) -> PairedDrop:
        """Against the full model on validation pictures."""
        return self.measures[candidate.card.io](candidate.model, candidate.card.variant)

    def float32(self) -> TfliteEngine:
        """An engine with the float32 file."""
        return candidates.open_tflite(self.source.float32, candidates.float32_card(self.setting))

    def finish(self, candidate: Candidate, path: Path, most_bytes: int | None = None, bar: Bar = no_bar) -> export.Exported:
        """Through export's gates, on test pictures, to `path`. Raises QualityError, and leaves `path` as it was."""
        with tempfile.TemporaryDirectory(prefix="edgeclf-optimize-") as folder:
            done = export.finish(candidate, self.setting, Path(folder), bar)
            if most_bytes is not None and done.file_bytes > most_bytes:
                raise QualityError(f"{done.variant}: {done.file_bytes:,} bytes with its whole card")
            files.write_bytes(path, done.path.read_bytes())
        return replace(done, path=path)

    def _io(self, wanted: Configuration) -> Io:
        return self.ways.io if wanted.variant in ("int8", quantize.MIXED) else "float32"

    def _model(self, wanted: Configuration) -> bytes:
        estimator = _estimator(wanted)
        if wanted.variant == "int8":
            make = {"plain": self.ways.int8, "corrected": self.ways.corrected, "equalised": self.ways.equalised}
            return make[wanted.treatment](estimator)
        if wanted.variant == quantize.MIXED:
            return self.ways.mixed(estimator, self._worst(estimator, wanted.kept))
        ranges = candidates.trained_ranges(self.source.float32, self.ways.recorded.ranges(estimator), self.setting)
        return quantize.quantize(self.source.float32, wanted.variant, ranges)

    def _worst(self, estimator: Estimator, count: int) -> list[str]:
        worst = self._ranked(estimator)
        if len(worst) < count:
            raise ModelError(f"only {len(worst)} layers can be kept in floats")
        return worst[:count]

    def _ranked(self, estimator: Estimator) -> list[str]:
        if estimator not in self.ranked:
            self.ranked[estimator] = self.ways.worst_layers(estimator)
        return self.ranked[estimator]


def _estimator(wanted: Configuration) -> Estimator:
    """Where training found ranges, the first fills in what it left out."""
    return next((e for e in ESTIMATORS if e == wanted.ranges), ESTIMATORS[0])


def open_bench(run: Run, io: Io, bar: Bar = no_bar) -> Bench:
    """Convert, calibrate, and answer the validation pictures by the full model.

    Raises QualityError when the conversion went wrong, DataError when the pictures are gone or have changed.
    """
    setting = export.set_up(run, bar)
    unseen = replace(setting, held_out=setting.dataset.parts["val"])  # a search looks at no test picture
    source = candidates.source(unseen, True, bar)
    if source.recorded is None:
        raise ValueError("a search needs what calibration showed")
    ends: tuple[Io, ...] = (io, "float32")
    measures = {end: guarded.measure(setting, end) for end in ends}
    pictures = setting.dataset.shards.take(setting.calibration.indices)
    adjusted = partial(candidates.trained_ranges, source.float32, setting=setting) if run.trained_for_int8 else None
    return Bench(setting, source, Guard(source.float32, source.recorded, pictures, measures[io], 0.0, io, adjusted), measures)


@dataclass(frozen=True)
class Made:
    """A file that was made and scored: the drop, its bytes with card and self-test, and its structure."""

    drop: PairedDrop
    file_bytes: int
    gzip_bytes: int
    structure: str


@dataclass(frozen=True)
class Measured(Made):
    """What a trial keeps: its latency over that of the run's own float32 file too."""

    relative_time: float


def measure(bench: Bench, wanted: Configuration, float32: TfliteEngine, known: dict[str, float], folder: Path) -> Measured:
    """Make a file and measure it; the first of its structure stays in `folder`. `known` holds relative times by structure.

    Raises ModelError or QualityError where it cannot be made.
    """
    made = make(bench, wanted, folder)
    if made.structure not in known:
        known[made.structure] = relative_time(folder, made.structure, float32, bench.setting)
    return Measured(**vars(made), relative_time=known[made.structure])


def make(bench: Bench, wanted: Configuration, folder: Path) -> Made:
    """Make a file and score it, without looking at the clock; the first of its structure stays in `folder`.

    Raises ModelError or QualityError where it cannot be made.
    """
    candidate = bench.candidate(wanted)
    engine = candidate.engine
    if not isinstance(engine, TfliteEngine):
        raise ModelError(f"{candidate.name}: is no TFLite file")
    data = attach(candidate.model, replace(candidate.card, self_test=export.self_test(engine, candidate.card)))
    structure = structure_of(candidate.model)
    if not structure_file(folder, structure).is_file():
        files.write_bytes(structure_file(folder, structure), data)
    return Made(bench.drop(candidate), len(data), len(gzip.compress(data, 9, mtime=0)), structure)


def structure_of(model: bytes) -> str:
    """A name for what the kernels compute: operators in their order, types and shapes of what they read and write.

    Files of one structure differ in values alone, so they are timed and counted once.
    """
    found = read_model(model, "model")
    kinds = [("", -1), *((t.type, t.shape) for t in found.tensors)]  # index -1 is an input left out
    rows = [(op.name, [kinds[i + 1] for i in op.inputs], [kinds[i + 1] for i in op.outputs]) for op in found.operators]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def structure_file(folder: Path, structure: str) -> Path:
    """Where a file of that structure lies."""
    return folder / f"{structure}.tflite"


def relative_time(folder: Path, structure: str, float32: TfliteEngine, setting: Setting) -> float:
    """Latency of the file of that structure in `folder` over that of float32, in turns. Nothing else should run meanwhile."""
    engine = open_engine(read_bundle(structure_file(folder, structure)), probed=True)
    picture = setting.dataset.shards.take(setting.dataset.parts["val"][:1])
    calls: dict[str, Callable[[], object]] = {"float32": lambda: float32.infer(picture), "own": lambda: engine.infer(picture)}
    times = timing.interleaved(calls, ROUNDS)
    return 1 / timing.speedup(times["float32"], times["own"]).factor


def compressed(run: Run, network: Network, folder: Path, epochs: int | None, listeners: Listeners) -> Run:
    """`run` compressed to that network: as an earlier trial left it in `folder`, gone on with, or trained now.

    Raises ConfigError when a layer cannot be pruned or a target cannot be met, EdgeclfError when the loss is no number.
    """
    recipe = compress.recipe_for(run)
    section = replace(network.section(recipe.compression), epochs=epochs or recipe.compression.epochs, prune_2_4=False)
    return compress.compressed(run, replace(recipe, compression=section), folder / network.name, listeners)
