"""The state of a training after each epoch: written whole, restored to the bit."""

from __future__ import annotations

import csv
import io
import json
import math
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgeclf.core import files
from edgeclf.core.errors import EdgeclfError, ModelError
from edgeclf.core.progress import Report
from edgeclf.host.keras import keras
from edgeclf.host.run import HISTORY

CHECKPOINT = "checkpoint.npz"

Row: TypeAlias = dict[str, float]
OnEpoch: TypeAlias = Callable[[Row, int], None]


def after_each_epoch(
    folder: Path, history: list[Row], epochs: int, steps: int, on_epoch: OnEpoch | None, on_step: Report | None
) -> Any:
    """A Keras callback that appends to `history` and writes it and a checkpoint to `folder`, each whole.

    It calls `on_epoch(row, epochs)` and `on_step(done, steps)`, and raises EdgeclfError when the loss is no number.
    """

    class Callback(keras().callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.began = time.monotonic()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if on_step and (batch % 8 == 7 or batch + 1 == steps):
                on_step(batch + 1, steps)

        def on_epoch_end(self, epoch: int, logs: Row | None = None) -> None:
            row = _row(epoch, logs or {}, self.model, time.monotonic() - self.began)
            if not math.isfinite(row["loss"]):
                raise EdgeclfError(
                    f"{folder}: the loss stopped being a number in epoch {epoch + 1}; lower --learning-rate "
                    f"(the checkpoint keeps the weights of epoch {epoch})"
                )
            history.append(row)
            _write_history(folder, history)
            _save(folder, self.model, history)
            if on_epoch:
                on_epoch(row, epochs)

    return Callback()


def restore(folder: Path, model: Any) -> list[Row]:
    """Load the checkpoint in `folder` into `model` and its optimiser; the history so far, empty without a checkpoint.

    Raises ModelError for a damaged one.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return []
    model.optimizer.build(model.trainable_variables)
    try:
        with np.load(path, allow_pickle=False) as saved:
            for prefix, variables in (("w", model.weights), ("o", model.optimizer.variables)):
                for i, variable in enumerate(variables):
                    variable.assign(saved[f"{prefix}{i}"])
            history: list[Row] = json.loads(saved["history"].tobytes())
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"{path}: the checkpoint is damaged; remove it, and --resume starts at the first epoch") from error
    return history


def _row(epoch: int, logs: dict[str, float], model: Any, seconds: float) -> Row:
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    rate = float(model.optimizer.learning_rate)
    return {"epoch": epoch + 1, **{n: float(logs[n]) for n in names}, "learning_rate": rate, "seconds": round(seconds, 3)}


def _write_history(folder: Path, history: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    files.write_text(folder / HISTORY, text.getvalue())


def _save(folder: Path, model: Any, history: list[Row]) -> None:
    """Weights, optimiser state and history in one file, so that they can never disagree."""
    weights = {f"w{i}": v.numpy() for i, v in enumerate(model.weights)}
    state = {f"o{i}": v.numpy() for i, v in enumerate(model.optimizer.variables)}
    with files.writing(folder / CHECKPOINT) as path, path.open("wb") as file:
        np.savez(file, history=np.frombuffer(json.dumps(history).encode(), np.uint8), **weights, **state)
