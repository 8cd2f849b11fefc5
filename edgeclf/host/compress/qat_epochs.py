"""The step of quantisation-aware training: epoch by epoch, each scored by its converted int8 file, the best one kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core import files
from edgeclf.host.compress import int8_score, preserve, qat
from edgeclf.host.compress.compression import Outcome, Setting, Stage
from edgeclf.host.compress.finetune import started
from edgeclf.host.compress.qat import LayerRanges
from edgeclf.host.compress.sparsity import copy_of
from edgeclf.host.train.fitting import run_epochs

BEST = "best.npz"
FROZEN_FROM = 2 / 3  # share of the epochs after which normalisation is frozen


def perform(stage: Stage, model: Any, folder: Path, setting: Setting) -> Outcome:
    """Train with fake quantisation; zeros and clusters of `model` stay. `facts` tell the int8 score of every epoch."""
    recipe, structure = replace(setting.recipe, training=stage.training), preserve.kept_structure(model)
    wrapped = qat.wrap(model, int8_score.calibrated(model, setting))
    trained, state = started(stage, wrapped.model, folder, setting)
    wrapped, best, frozen = replace(wrapped, model=trained), _Best(folder / BEST, model), False
    callbacks = [preserve.after_each_step(structure, qat.kernels(wrapped))] if structure else []
    for epoch in range(len(state.history), stage.training.epochs):
        best.catch_up(epoch, wrapped, setting)  # a training that was killed before its last epoch was scored
        if epoch >= FROZEN_FROM * stage.training.epochs and not frozen:
            qat.freeze_normalisation(wrapped)
            frozen = True
        run_epochs(trained, recipe, setting.dataset, folder, state, setting.listeners, epoch + 1, callbacks)
    best.catch_up(stage.training.epochs, wrapped, setting)
    facts = {"int8_val_top1": best.scores, "kept_epoch": best.epoch + 1, "left_out": list(wrapped.left_out)}
    return Outcome(best.model(model), state.history, facts, best.ranges)


class _Best:
    """The weights and ranges of the best epoch so far, and the score of each, in one file."""

    def __init__(self, path: Path, plain: Any) -> None:
        self.path, self.scores, self.ranges = path, list[float](), LayerRanges()
        self.weights: list[Any] = [w.numpy() for w in plain.weights]
        if path.exists():
            with np.load(path, allow_pickle=False) as saved:
                self.weights = [saved[f"w{i}"] for i in range(len(self.weights))]
                kept = json.loads(saved["kept"].tobytes())
            self.scores, self.ranges = kept["scores"], {name: tuple(pair) for name, pair in kept["ranges"].items()}

    @property
    def epoch(self) -> int:
        """The first of the best epochs, from 0."""
        return int(np.argmax(self.scores))

    def catch_up(self, epochs: int, wrapped: qat.FakeQuantised, setting: Setting) -> None:
        """Score the network as it is after so many epochs, unless that was done."""
        if len(self.scores) >= epochs:
            return
        plain, ranges = qat.strip(wrapped)
        self.scores.append(round(int8_score.accuracy(plain, ranges, setting), 6))
        if self.epoch == epochs - 1:
            self.weights, self.ranges = [w.numpy() for w in plain.weights], ranges
        kept = json.dumps({"scores": self.scores, "ranges": self.ranges}).encode()
        with files.writing(self.path) as path, path.open("wb") as file:
            arrays = {f"w{i}": w for i, w in enumerate(self.weights)}
            np.savez(file, kept=np.frombuffer(kept, np.uint8), **arrays)

    def model(self, like: Any) -> Any:
        """A plain network with the best weights."""
        plain = copy_of(like)
        plain.set_weights(self.weights)
        return plain
