"""Fine-tuning inside a compression: a network, plain or wrapped, trained from its checkpoint to the last epoch of a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeclf.host.compress import distill, preserve
from edgeclf.host.compress.compression import Setting, Stage
from edgeclf.host.compress.preserve import Structure
from edgeclf.host.data.batches import steps_of
from edgeclf.host.train import dropout
from edgeclf.host.train.checkpoint import Row, State, restore
from edgeclf.host.train.fitting import run_epochs
from edgeclf.host.train.objective import compile_model


def fine_tuned(
    stage: Stage, model: Any, folder: Path, setting: Setting, structure: Structure | None = None, callbacks: Sequence[Any] = ()
) -> tuple[Any, list[Row]]:
    """(the model, trained in place or as another model of the same layers, its history); `structure` is kept throughout."""
    recipe = replace(setting.recipe, training=stage.training)
    model, state = started(stage, model, folder, setting)
    kept = [preserve.after_each_step(structure, preserve.kernels(model))] if structure else []
    if not state.is_over(stage.training):
        run_epochs(model, recipe, setting.dataset, folder, state, setting.listeners, callbacks=[*callbacks, *kept])
    return model, state.history


def started(stage: Stage, model: Any, folder: Path, setting: Setting) -> tuple[Any, State]:
    """The model compiled, taught where there is a teacher, and as its checkpoint in `folder` has it."""
    model = distill.taught(model, setting.teacher) if setting.teacher else model
    dropout.make_repeatable(model)
    compile_model(model, stage.training, steps_of(setting.dataset, stage.training))
    return model, restore(folder, model)
