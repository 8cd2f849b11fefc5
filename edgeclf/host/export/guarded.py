"""The guard inside an export: its pictures, its measure, and its last way, a short training with the rounding of int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from edgeclf.core.card import Io
from edgeclf.core.errors import ConfigError
from edgeclf.core.progress import Bar, Report
from edgeclf.core.results import PairedDrop
from edgeclf.host.compress import compress, int8_score
from edgeclf.host.export import guard
from edgeclf.host.export.candidates import Candidate, Setting, Source, described, open_tflite, trained_ranges
from edgeclf.host.report.comparison import FULL
from edgeclf.host.run import CARD, Run, open_run, sha256_of
from edgeclf.host.train.checkpoint import OnEpoch
from edgeclf.host.train.fitting import Listeners
from edgeclf.host.understand import compare


@dataclass(frozen=True)
class Budget:
    """What the int8 file may lose: a fraction of top-1, its interval included.

    `train` allows the guard's last way; before it trains, `on_training` hears of the folder, and `on_epoch` of each epoch.
    """

    drop: float
    train: bool = True
    on_training: Callable[[Path], None] = lambda folder: None
    on_epoch: OnEpoch | None = None


def within(budget: Budget, io: Io, made_from: Source, setting: Setting, bar: Bar) -> Candidate:
    """The first way to int8 that holds the budget on validation pictures. Raises QualityError when none does."""
    if made_from.recorded is None:
        raise ValueError("the guard needs what calibration showed")
    with bar("searching within --max-drop") as report:
        retraining = _Retraining(setting, io, budget, report)
        found = guard.Guard(
            made_from.float32,
            made_from.recorded,
            setting.dataset.shards.take(setting.calibration.indices),
            measure(setting, io),
            budget.drop,
            io,
            partial(trained_ranges, made_from.float32, setting=setting) if setting.run.trained_for_int8 else None,
            retraining.int8 if budget.train and retraining.possible else None,
        ).search()
    notes = {"guard": {"max_drop": budget.drop, "part": "val", "attempts": [a.to_json() for a in found.attempts]}}
    made_of = setting if found.variant != guard.RETRAINED else replace(setting, run=retraining.run())
    return described(found.model, made_of.run.named(found.variant), io, made_of, True, notes)


def measure(setting: Setting, io: Io, part: str = "val") -> guard.Measure:
    """What gives the paired drop of an int8 or mixed file against the full model on a part that is not for testing."""
    indices, shards, truth = setting.dataset.parts[part], setting.dataset.shards, setting.dataset.classes_of(part)
    full = compare.answers({FULL: setting.full.infer}, shards.take, indices)[FULL]

    def measured(model: bytes, variant: str) -> PairedDrop:
        card = replace(setting.run.card, variant=variant, io=io, outputs="probabilities")
        scores = compare.answers({variant: open_tflite(model, card).infer}, shards.take, indices)[variant]
        return compare.against(full, scores, truth, setting.dataset.labels).drop

    return measured


class _Retraining:
    """Quantisation-aware training of the network that is exported, as a run of its own beside it, which stays."""

    def __init__(self, setting: Setting, io: Io, budget: Budget, on_step: Report) -> None:
        source = setting.run
        self.setting, self.io, self.budget, self.listeners = setting, io, budget, Listeners(budget.on_epoch, on_step)
        self.folder = source.folder.resolve().with_name(f"{source.name}-qat")

    @property
    def possible(self) -> bool:
        """Whether there is a Keras network that was not trained for int8 yet."""
        return self.setting.own.keras is not None and not self.setting.run.trained_for_int8

    def run(self) -> Run:
        """The finished run: trained now, or gone on with, or as an earlier export left it."""
        source = self.setting.run
        if (self.folder / CARD).is_file():
            found = open_run(self.folder)
            if found.card.provenance.get("compressed_from", {}).get("sha256") == sha256_of(source.model_file):
                return found
            raise ConfigError(f"{self.folder}: is another run, where the guard would train; move it, or give --no-qat")
        self.budget.on_training(self.folder)
        recipe = compress.recipe_for(source)
        wanted = replace(recipe, compression=replace(recipe.compression, qat=True))
        return compress.compressed(source, wanted, self.folder, self.listeners)

    def int8(self) -> bytes:
        """Its int8 file."""
        run = self.run()
        return int8_score.int8_file(run.model(), run.ranges(), self.setting.calibration, self.io)
