"""Compression: a trained run in, a smaller run out, with the network that it was made from beside it.

Channels leave first, then single weights, then values are shared, and last the rounding of int8 is trained in: each step
keeps what those before it made. Every step is a file when it is done, so that a killed compression goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeclf.core import config, files
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.progress import Report
from edgeclf.core.recipe import CompressionSection, Recipe, read_recipe
from edgeclf.host import plots
from edgeclf.host.compress import distill, stages
from edgeclf.host.compress.compression import Setting, Stage, plan, suffix
from edgeclf.host.compress.qat import LayerRanges
from edgeclf.host.data import calibration
from edgeclf.host.data.dataset import Dataset, open_dataset
from edgeclf.host.full_model import measure
from edgeclf.host.run import (
    CARD,
    CURVES,
    FULL,
    HISTORY,
    MODEL,
    RANGES,
    RECIPE,
    SPLIT,
    STARTED,
    Run,
    load_network,
    open_run,
    sha256_of,
)
from edgeclf.host.train import custom
from edgeclf.host.train.checkpoint import write_history
from edgeclf.host.train.fitting import Listeners
from edgeclf.host.train.train import check_free, free_folder, named_split, new_provenance, read_provenance

INHERITED = ("data", "fingerprint", "split", "recipe", "seed", "imported")  # of the source's provenance
STEPS = "steps"  # in the run folder, while it is compressed: a model for each finished step, and the one under way


@dataclass(frozen=True, eq=False)
class Job:
    """One compression: where it writes, what it compresses, on which pictures. `provenance` goes into the model card."""

    folder: Path
    source: Run
    recipe: Recipe
    dataset: Dataset
    provenance: dict[str, Any]
    teacher: Run | None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The steps, in their order."""
        return plan(self.recipe, self.teacher is not None)


def recipe_for(source: Run) -> Recipe:
    """The recipe whose `[compression]` options change: the source's, without what was already done to a compressed run."""
    done = "compressed_from" in source.card.provenance
    return replace(source.recipe, compression=CompressionSection()) if done else source.recipe


def start(
    source: Run, recipe: Recipe, folder: Path | None = None, teacher: Run | None = None, progress: Report | None = None
) -> Job:
    """Lay out a new run folder (default: the source's name with what is done to it).

    `recipe` is that of `recipe_for` with the `[compression]` that is wanted. Raises ConfigError when nothing is asked for, the
    folder is taken or the teacher does not fit, ModelError when the source's network is gone or was altered, DataError when
    its pictures are gone or have changed.
    """
    if not plan(recipe, teacher is not None):
        raise ConfigError(
            "nothing to do; give one or more of: --prune-channels, --prune, --prune-2-4, --cluster, --distill, --qat"
        )
    if folder:
        check_free(folder)
    source.model()
    if teacher:
        distill.open_teacher(teacher, source.card, recipe.compression.distill_weight, recipe.compression.distill_temperature)
    dataset = open_dataset(source, progress)
    calibration.draw(dataset, recipe.export.calibration_pictures, recipe.training.seed)
    folder = folder or free_folder(f"{source.name}-{suffix(recipe.compression, teacher is not None)}")
    provenance = {
        **new_provenance(),
        **{key: value for key, value in source.card.provenance.items() if key in INHERITED},
        "lineage": source.card.provenance.get("lineage", [_trained(source)]),
        "compressed_from": {"run": str(source.folder.resolve()), "sha256": sha256_of(source.model_file)},
        "teacher": str(teacher.folder.resolve()) if teacher else "",
    }
    with files.locked(folder):
        check_free(folder)
        files.write_text(folder / RECIPE, config.to_toml(recipe))
        files.write_json(folder / SPLIT, named_split(dataset))
        if custom.is_spec(recipe.model.architecture):
            own = custom.source(recipe.model.architecture, source.folder)
            files.write_bytes(folder / own.name, own.read_bytes())
        with files.writing(folder / FULL) as path:
            shutil.copyfile(source.full_file, path)
        files.write_json(folder / STARTED, provenance)
    return Job(folder, source, recipe, dataset, provenance, teacher)


def resume(folder: Path, progress: Report | None = None) -> Job:
    """The interrupted compression in `folder`.

    Raises ConfigError when there is none or it is finished, ModelError when what it started from is gone or has changed.
    """
    if (folder / CARD).exists():
        raise ConfigError(f"{folder}: is finished; nothing to resume")
    if not (folder / STARTED).exists():
        raise ConfigError(f"{folder}: holds no interrupted compression")
    provenance, recipe = read_provenance(folder / STARTED), read_recipe(folder / RECIPE)
    if "compressed_from" not in provenance:
        raise ConfigError(f"{folder}: holds an interrupted training; go on with it: edgeclf train --resume --out {folder}")
    source = open_run(Path(provenance["compressed_from"]["run"]))
    if sha256_of(source.model_file) != provenance["compressed_from"]["sha256"]:
        raise ModelError(f"{source.model_file}: has changed since {folder} was started; restore it, or start a new compression")
    teacher = open_run(Path(provenance["teacher"])) if provenance["teacher"] else None
    return Job(folder, source, recipe, open_dataset(source, progress), provenance, teacher)


def compress(job: Job, listeners: Listeners | None = None, on_stage: Callable[[Stage], None] = lambda stage: None) -> Run:
    """Do every step that is not done yet, and finish the run folder. `on_stage` hears of each step before it begins.

    Seeded: the same job gives the same network, interrupted or not. Raises ConfigError when another process works in the
    folder, when a layer cannot be pruned or a target cannot be met, and EdgeclfError when the loss stops being a number.
    """
    with files.locked(job.folder):
        setting = _setting(job, listeners or Listeners())
        model, history, ranges = job.source.model(), list[dict[str, float]](), LayerRanges()
        lineage = list(job.provenance["lineage"])
        for number, stage in enumerate(job.stages, start=1):
            done = _Done(job.folder / STEPS / f"{number}-{stage.name}", job)
            if not done.finished:
                on_stage(stage)
                outcome = stages.perform(stage, model, done.work, setting)
                done.finish(outcome.model, {"history": outcome.history, "facts": outcome.facts, "ranges": outcome.ranges})
            model, found = done.read()
            history += [{**row, "epoch": len(history) + i} for i, row in enumerate(found["history"], start=1)]
            ranges = {name: (low, high) for name, (low, high) in found["ranges"].items()}
            lineage.append({**stage.described(), **found["facts"]})
        return _finish(job, model, history, ranges, lineage)


def compressed(source: Run, recipe: Recipe, folder: Path, listeners: Listeners | None = None) -> Run:
    """The compression in `folder`: as it was finished there, gone on with, or started as `start` does. Raises as these do."""
    if (folder / CARD).is_file():
        return open_run(folder)
    job = resume(folder) if (folder / STARTED).is_file() else start(source, recipe, folder)
    return compress(job, listeners)


class _Done:
    """What a finished step left: the network and, beside it, its history, facts and ranges; the latter is written last."""

    def __init__(self, stem: Path, job: Job) -> None:
        self.work, self.model_file, self.notes, self.job = stem, stem.with_suffix(".keras"), stem.with_suffix(".json"), job

    @property
    def finished(self) -> bool:
        return self.notes.exists()

    def finish(self, model: Any, notes: dict[str, Any]) -> None:
        with files.writing(self.model_file) as path:
            model.save(path, save_format="keras")
        files.write_json(self.notes, notes)
        shutil.rmtree(self.work, ignore_errors=True)

    def read(self) -> tuple[Any, dict[str, Any]]:
        """Raises ModelError for a damaged one."""
        try:
            notes: dict[str, Any] = json.loads(self.notes.read_text(encoding="utf-8"))
            return load_network(self.model_file, self.job.recipe, self.job.folder), notes
        except (ModelError, OSError, ValueError) as error:
            raise ModelError(f"{self.model_file}: is damaged; remove {self.notes}, and --resume does this step again") from error


def _setting(job: Job, listeners: Listeners) -> Setting:
    section = job.recipe.compression
    teacher = None
    if job.teacher:
        teacher = distill.open_teacher(job.teacher, job.source.card, section.distill_weight, section.distill_temperature)
    chosen = calibration.draw(job.dataset, job.recipe.export.calibration_pictures, job.recipe.training.seed)
    return Setting(job.recipe, job.dataset, chosen, job.source.model, teacher, listeners)


def _finish(job: Job, model: Any, history: list[dict[str, float]], ranges: LayerRanges, lineage: list[dict[str, Any]]) -> Run:
    """Write history, curves, ranges and model and, last, the card that makes the run a finished one."""
    folder = job.folder
    write_history(folder, history)
    plots.training_curves(folder / HISTORY, folder / CURVES)
    if ranges:
        files.write_json(folder / RANGES, ranges)
    with files.writing(folder / MODEL) as path:
        model.save(path, save_format="keras")
    seconds = round(sum(row["seconds"] for row in history), 1)
    card = ModelCard(
        name=job.recipe.name,
        labels=job.dataset.labels,
        image=job.source.card.image,
        outputs="logits",
        provenance={**job.provenance, "lineage": lineage, "epochs": len(history), "seconds": seconds},
        accuracy={"model": {part: measure(model, job.dataset, part) for part in ("val", "test")}},
        sha256=sha256_of(folder / MODEL),
    )
    files.write_text(folder / CARD, card.to_json())
    shutil.rmtree(folder / STEPS, ignore_errors=True)
    return open_run(folder)


def _trained(source: Run) -> dict[str, Any]:
    """The first entry of a lineage: how the network came to be."""
    provenance = source.card.provenance
    return {"step": "imported" if source.imported else "trained", "run": source.name, "epochs": provenance.get("epochs", 0)}
