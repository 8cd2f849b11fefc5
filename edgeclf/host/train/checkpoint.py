"""The state of a training after each epoch: validated, written whole, restored to the bit."""

from __future__ import annotations

import csv
import io
import json
import math
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgeclf.core import files
from edgeclf.core.errors import EdgeclfError, ModelError
from edgeclf.core.progress import Report
from edgeclf.core.recipe import TrainingSection
from edgeclf.host.keras import keras
from edgeclf.host.run import HISTORY
from edgeclf.host.train import dropout
from edgeclf.host.train.objective import plateau_factor

CHECKPOINT = "checkpoint.npz"

Weights: TypeAlias = list[Any]  # of arrays, in the order of `model.weights`
Row: TypeAlias = dict[str, float]
OnEpoch: TypeAlias = Callable[[Row, int], None]


@dataclass
class State:
    """What a training has reached: its history, and the best weights where early stopping asks for them."""

    history: list[Row] = field(default_factory=list)
    best: Weights = field(default_factory=list)

    def waited(self) -> int:
        """Epochs since the best validation accuracy; the first of equal ones is the best."""
        accuracies = [row["val_accuracy"] for row in self.history]
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) if accuracies else 0

    def is_over(self, section: TrainingSection) -> bool:
        """Whether no epoch is left, or early stopping ends the training here."""
        stopped = bool(section.early_stopping) and self.waited() >= section.early_stopping
        return len(self.history) >= section.epochs or stopped


def after_each_epoch(
    folder: Path, state: State, section: TrainingSection, steps: int, on_epoch: OnEpoch | None, on_step: Report | None
) -> Any:
    """A Keras callback that adds each epoch to `state` and writes it and a checkpoint to `folder`, each whole.

    Validation sees the averaged weights where there are any. It calls `on_epoch(row, epochs)` and `on_step(done, steps)`,
    and raises EdgeclfError, naming the batch, when the loss is no number.
    """

    class Callback(keras().callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch, self.began = epoch, time.monotonic()
            dropout.start_epoch(self.model, section.seed, epoch)
            if section.schedule == "plateau":
                factor = plateau_factor([row["val_loss"] for row in state.history], section)
                schedule_of(self.model).factor.assign(factor)

        def on_train_batch_end(self, batch: int, logs: Row | None = None) -> None:
            if not math.isfinite((logs or {}).get("loss", 0.0)):
                raise EdgeclfError(
                    f"{folder}: the loss stopped being a number in batch {batch + 1} of epoch {self.epoch + 1}; train again "
                    "with a lower --learning-rate or --set training.clip_norm=1 "
                    f"(the checkpoint keeps the weights of epoch {self.epoch})"
                )
            if on_step and (batch % 8 == 7 or batch + 1 == steps):
                on_step(batch + 1, steps)

        def on_test_begin(self, logs: Any = None) -> None:
            self.raw = [v.numpy() for v in self.model.weights] if section.ema else []
            use_average(self.model, section)

        def on_test_end(self, logs: Any = None) -> None:
            if section.early_stopping:
                self.validated = [v.numpy() for v in self.model.weights]
            for variable, value in zip(self.model.weights, self.raw, strict=False):
                variable.assign(value)

        def on_epoch_end(self, epoch: int, logs: Row | None = None) -> None:
            row = _row(epoch, logs or {}, self.model, time.monotonic() - self.began)
            state.history.append(row)
            if section.early_stopping and state.waited() == 0:
                state.best = self.validated
            write_history(folder, state.history)
            _save(folder, self.model, state)
            if on_epoch:
                on_epoch(row, section.epochs)
            self.model.stop_training = state.is_over(section)

    return Callback()


def schedule_of(model: Any) -> Any:
    """The schedule object of a compiled model's optimiser, which Keras shows the current value of alone."""
    return _own_optimizer(model)._learning_rate


def _own_optimizer(model: Any) -> Any:
    """The recipe's optimiser, without what Keras wraps around it to scale the loss in float16."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def use_average(model: Any, section: TrainingSection) -> None:
    """Put the averaged weights into the model where the recipe averages them."""
    if section.ema:
        _own_optimizer(model).finalize_variable_values(model.trainable_variables)


def restore(folder: Path, model: Any) -> State:
    """Load the checkpoint in `folder` into `model` and its optimiser; an empty state without a checkpoint.

    Raises ModelError for a damaged one.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return State()
    model.optimizer.build(model.trainable_variables)
    try:
        with np.load(path, allow_pickle=False) as saved:
            for prefix, variables in (("w", model.weights), ("o", model.optimizer.variables)):
                for i, variable in enumerate(variables):
                    variable.assign(saved[f"{prefix}{i}"])
            best = [saved[f"b{i}"] for i in range(len(model.weights))] if "b0" in saved else []
            return State(json.loads(saved["history"].tobytes()), best)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"{path}: the checkpoint is damaged; remove it, and --resume starts at the first epoch") from error


def _row(epoch: int, logs: dict[str, float], model: Any, seconds: float) -> Row:
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    rate = float(model.optimizer.learning_rate.numpy())  # of a replicated variable too
    return {"epoch": epoch + 1, **{n: float(logs[n]) for n in names}, "learning_rate": rate, "seconds": round(seconds, 3)}


def write_history(folder: Path, history: list[Row]) -> None:
    """Write the rows to `folder`/history.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    files.write_text(folder / HISTORY, text.getvalue())


def _save(folder: Path, model: Any, state: State) -> None:
    """Weights, optimiser state and history in one file, so that they can never disagree."""
    arrays = {f"w{i}": v.numpy() for i, v in enumerate(model.weights)}
    arrays |= {f"o{i}": v.numpy() for i, v in enumerate(model.optimizer.variables)}
    arrays |= {f"b{i}": v for i, v in enumerate(state.best)}
    with files.writing(folder / CHECKPOINT) as path, path.open("wb") as file:
        np.savez(file, history=np.frombuffer(json.dumps(state.history).encode(), np.uint8), **arrays)
