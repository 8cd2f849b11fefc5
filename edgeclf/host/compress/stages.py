"""The steps of a compression, each a plain float network in, a plain float network out, fine-tuned between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.host.augment.augment import normalise
from edgeclf.host.compress import cluster, int8_score, preserve, prune_channels, qat_epochs, sparsity
from edgeclf.host.compress.compression import Kind, Outcome, Setting, Stage
from edgeclf.host.compress.finetune import fine_tuned
from edgeclf.host.data.batches import steps_of
from edgeclf.host.keras import keras, tfmot
from edgeclf.host.understand.compare import batches

RANKED_PICTURES, RANKED_BATCH = 2048, 128  # training pictures that rank the channels


def perform(stage: Stage, model: Any, folder: Path, setting: Setting) -> Outcome:
    """Do one step, going on from its checkpoint in `folder` where there is one."""
    keras().utils.set_random_seed(setting.recipe.training.seed)
    return STEPS[stage.kind](stage, model, folder, setting)


def _channels(stage: Stage, model: Any, folder: Path, setting: Setting) -> Outcome:
    target, whole = setting.section.channel_target, setting.source()
    narrow, pruned = prune_channels.prune(
        model, stage.share, target, _ranking_batches(setting), lambda m: int8_score.latency_ms(m, setting), whole
    )
    facts = {"what": pruned.what, "before": pruned.before, "after": pruned.after, "channels_gone": pruned.gone}
    trained, history = fine_tuned(stage, narrow, folder, setting)
    return Outcome(_unwrapped(trained, narrow), history, facts)


def _sparsity(stage: Stage, model: Any, folder: Path, setting: Setting) -> Outcome:
    steps = stage.training.epochs * steps_of(setting.dataset, stage.training)
    wrapped = sparsity.wrap(model, stage.share, setting.section.prune_2_4, steps)
    trained, history = fine_tuned(stage, wrapped, folder, setting, preserve.kept_structure(model), sparsity.callbacks())
    plain = _unwrapped(trained, model)
    pattern = "2:4" if setting.section.prune_2_4 else "unstructured"
    return Outcome(plain, history, {"pattern": pattern, "zeros": round(sparsity.sparsity_of(plain), 4)})


def _clustering(stage: Stage, model: Any, folder: Path, setting: Setting) -> Outcome:
    wrapped = cluster.wrap(model, setting.section.cluster, bool(preserve.kept_structure(model)))
    trained, history = fine_tuned(stage, wrapped, folder, setting)
    plain = _unwrapped(tfmot().clustering.keras.strip_clustering(trained), model)
    return Outcome(plain, history, {"values": cluster.distinct_values(plain), "zeros": round(sparsity.sparsity_of(plain), 4)})


def _distillation(stage: Stage, model: Any, folder: Path, setting: Setting) -> Outcome:
    trained, history = fine_tuned(stage, sparsity.copy_of(model), folder, setting, preserve.kept_structure(model))
    return Outcome(_unwrapped(trained, model), history, {})


def _unwrapped(trained: Any, like: Any) -> Any:
    """A plain network like `like` with the weights of the layers of the same names, wrapped or not."""
    plain = sparsity.copy_of(like)
    for layer in trained.layers:
        inner = getattr(layer, "layer", layer)
        if inner.weights:
            plain.get_layer(inner.name).set_weights([w.numpy() for w in inner.weights])
    return plain


def _ranking_batches(setting: Setting) -> Iterator[tuple[Any, Any]]:
    """Training pictures, drawn by the recipe's seed, normalised, with their classes."""
    part = setting.dataset.parts["train"]
    chosen = np.random.RandomState(setting.recipe.training.seed).permutation(part)[:RANKED_PICTURES]
    for rows in batches(len(chosen), RANKED_BATCH):
        pictures = setting.dataset.shards.take(chosen[rows])
        yield normalise(pictures), setting.dataset.catalogue.classes[chosen[rows]]


STEPS: dict[Kind, Callable[[Stage, Any, Path, Setting], Outcome]] = {
    "channels": _channels,
    "sparsity": _sparsity,
    "clustering": _clustering,
    "distillation": _distillation,
    "qat": qat_epochs.perform,
}
