"""Transfer learning: a network with trained weights in, the same adapted to the user's pictures out, in two stages.

First the head alone is trained, on features that the frozen network gives once for every picture. Then the ordinary
training fine-tunes what `[transfer] thaw` names, with batch normalisation kept as it was trained.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core import files
from edgeclf.core.errors import ConfigError, EdgeclfError, StorageError
from edgeclf.core.progress import Report
from edgeclf.core.recipe import Recipe
from edgeclf.host.architectures.backbones import CENTRE, WANTED
from edgeclf.host.data.batches import class_weights
from edgeclf.host.data.dataset import PIPELINE, Dataset
from edgeclf.host.full_model import answering
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.train import objective, weight_files
from edgeclf.host.train.checkpoint import OnEpoch, Row
from edgeclf.host.train.weights import WeightsFile

FROZEN = "frozen.csv"  # in the run folder: the epochs of the first stage, in the columns of history.csv
FEATURES, LOGITS = "features", "logits"
FORMAT = 1  # part of the cache key: raise it when the same network would give other features
PICTURES_AT_ONCE, HEAD_BATCH = 32, 128
UNUSED_DAYS = 1

Features = npt.NDArray[np.float32]


def prepare(
    model: Any,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    weights: WeightsFile,
    progress: Report | None = None,
    on_epoch: OnEpoch | None = None,
) -> list[Row]:
    """The first stage, in place, on a freshly built float32 model: load `weights`, then train the head on frozen features.

    `progress(done, total)` counts pictures while features are computed, `on_epoch(row, epochs)` hears of the head's epochs.
    Gives their rows, in the columns of the history, and writes them to `folder`/frozen.csv; the seconds of the first
    include the features. The same every time, so a training that was killed before its first checkpoint calls it again.
    Raises ConfigError for an unknown layer in `thaw`, ModelError for weights that do not fit.
    """
    load(model, recipe, weights)
    if not recipe.transfer.frozen_epochs:
        return []
    began = time.monotonic()
    features = frozen_features(model, recipe, dataset, weights.sha256, progress)
    rows = []
    for row in train_head(model, features, recipe, dataset, began):
        rows.append(row)
        if on_epoch:
            on_epoch(row, recipe.transfer.frozen_epochs)
    files.write_text(folder / FROZEN, _csv(rows))
    return rows


def load(model: Any, recipe: Recipe, weights: WeightsFile) -> None:
    """Give a freshly built model the weights, and freeze what the recipe does not thaw. Raises as `prepare` does."""
    freeze(model, recipe)
    weight_files.load(model, weights.path, WANTED.get(recipe.model.architecture))


def freeze(model: Any, recipe: Recipe) -> None:
    """Set what fine-tuning may change: all, nothing but the head, or all from the named layer on; never batch normalisation.

    To be called before `compile`. Raises ConfigError for the name of no layer, and where nothing would be trained at all.
    """
    if recipe.transfer.thaw == "none" and not recipe.transfer.frozen_epochs:
        raise ConfigError("transfer.thaw = 'none' with transfer.frozen_epochs = 0: nothing would be trained; change one")
    thaw, names = recipe.transfer.thaw, [layer.name for layer in model.layers if layer.weights]
    if thaw not in ("all", "none", *names):
        close = difflib.get_close_matches(thaw, names, n=1, cutoff=0.0)
        raise ConfigError(f"transfer.thaw = {thaw!r}: no such layer; did you mean {close[0]!r}? (or all, or none)")
    thawed = thaw == "all"
    for layer in model.layers:
        thawed = thawed or layer.name == thaw
        layer.trainable = thawed and layer.name != CENTRE and not isinstance(layer, keras().layers.BatchNormalization)
    model.get_layer(LOGITS).trainable = True


def views(recipe: Recipe) -> int:
    """Features are computed of every training picture and, where the recipe flips, of its mirror image."""
    return 2 if recipe.augmentation.flip else 1


def frozen_features(model: Any, recipe: Recipe, dataset: Dataset, sha256: str, progress: Report | None = None) -> Features:
    """What the layer `features` gives: float32 (views * train + val pictures, channels), mapped from a file of the cache.

    Rows are the training pictures in the order of their part, the same mirrored, and the validation pictures. Memory does
    not grow with the data. Raises StorageError when the cache cannot be written.
    """
    channels = int(model.get_layer(FEATURES).output.shape[-1])
    path = files.cache_folder() / "features" / f"{_key(recipe, dataset, sha256)}.npy"
    shape = views(recipe) * len(dataset.parts["train"]) + len(dataset.parts["val"]), channels
    found = _cached(path, shape)
    if found is None:
        _fill(path, shape, model, recipe, dataset, progress)
        found = _cached(path, shape)
    if found is None:
        raise StorageError(f"{path}: is damaged as soon as it is written; set EDGECLF_CACHE to another disk")
    return found


def _key(recipe: Recipe, dataset: Dataset, sha256: str) -> str:
    """Everything that the features depend on."""
    parts = [hashlib.sha256(dataset.parts[part].tobytes()).hexdigest() for part in ("train", "val")]
    network = recipe.model.architecture, recipe.model.options, sha256, views(recipe)
    decided = [FORMAT, PIPELINE, dataset.catalogue.cache_key, asdict(recipe.image.spec()), network, parts]
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:24]


def _cached(path: Path, shape: tuple[int, int]) -> Features | None:
    """The features in a file; None when it is not there, or damaged."""
    try:
        found: Features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None


def _fill(path: Path, shape: tuple[int, int], model: Any, recipe: Recipe, dataset: Dataset, progress: Report | None) -> None:
    answer = answering(keras().Model(model.input, model.get_layer(FEATURES).output))
    _sweep(path.parent)
    with files.writing(path) as temporary:
        rows = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        for first, pictures, mirrored in _pictures(dataset, views(recipe), progress):
            rows[first : first + len(pictures)] = answer(pictures[:, :, ::-1] if mirrored else pictures)
        rows.flush()
        del rows


def _pictures(dataset: Dataset, count: int, progress: Report | None) -> Iterator[tuple[int, Any, bool]]:
    """(row of the first, pictures, whether to mirror them) for every row of the features; each picture is read once."""
    train, val = dataset.parts["train"], dataset.parts["val"]
    done, total = 0, count * len(train) + len(val)
    for part, copies, base in ((train, count, 0), (val, 1, count * len(train))):
        for first in range(0, len(part), PICTURES_AT_ONCE):
            pictures = dataset.shards.take(part[first : first + PICTURES_AT_ONCE])
            for copy in range(copies):
                yield base + copy * len(part) + first, pictures, copy == 1
            done += copies * len(pictures)
            if progress:
                progress(done, total)
        dataset.shards.release()


def _sweep(folder: Path) -> None:
    """Remove what killed trainings left half written."""
    for left in folder.glob(".*.npy"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > UNUSED_DAYS * 86_400:
                left.unlink()


def train_head(model: Any, features: Features, recipe: Recipe, dataset: Dataset, began: float | None = None) -> Iterator[Row]:
    """Train what stands behind `features`, from zero, in place, with Adam and half a cosine; a row after each epoch.

    The loss, label smoothing and class weights are the recipe's; sampling by class counts as weights here. The recipe's
    seed decides all. Raises EdgeclfError when the loss is no number.
    """
    keras().utils.set_random_seed(recipe.training.seed)
    logits = model.get_layer(LOGITS)
    logits.set_weights([np.zeros_like(v) for v in logits.get_weights()])  # one layer needs no random start
    tail = keras().Model(model.get_layer(FEATURES).output, model.output)
    truth = np.concatenate([*[dataset.classes_of("train")] * views(recipe), dataset.classes_of("val")])
    balance = class_weights(dataset) if recipe.training.class_balance != "none" else np.ones(len(dataset.labels), np.float32)
    count = views(recipe) * len(dataset.parts["train"])
    size = min(recipe.training.batch_size or HEAD_BATCH, count)
    step, test, rate = _functions(tail, recipe, count // size)
    for epoch in range(recipe.transfer.frozen_epochs):
        began = began or time.monotonic()
        order = np.random.RandomState([recipe.training.seed, epoch, 1]).permutation(count)
        batches = (np.sort(order[i : i + size]) for i in range(0, count - size + 1, size))
        trained = _mean([step(features[rows], truth[rows], balance[truth[rows]]) for rows in batches])
        if not math.isfinite(trained[0]):
            raise EdgeclfError("the loss of the frozen stage stopped being a number; lower transfer.frozen_learning_rate")
        validation = [np.arange(i, min(i + 1000, len(features))) for i in range(count, len(features), 1000)]
        validated = _mean([test(features[rows], truth[rows]) for rows in validation])
        values = {"loss": trained[0], "accuracy": trained[1], "val_loss": validated[0], "val_accuracy": validated[1]}
        yield {"epoch": epoch + 1, **values, "learning_rate": rate(), "seconds": round(time.monotonic() - began, 3)}
        began = None


def _functions(tail: Any, recipe: Recipe, steps: int) -> tuple[Any, Any, Any]:
    """(train a step, test, current rate); the first two give (pictures, sum of losses, right answers) as tensors."""
    tf, optimizers = tensorflow(), keras().optimizers
    loss = objective.loss(recipe.training, tail.output_shape[-1])
    section = recipe.transfer
    schedule = optimizers.schedules.CosineDecay(section.frozen_learning_rate, max(1, steps * section.frozen_epochs))
    optimizer, variables = optimizers.Adam(schedule), tail.get_layer(LOGITS).trainable_variables
    optimizer.build(variables)

    def sums(losses: Any, logits: Any, truth: Any) -> tuple[Any, Any, Any]:
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, 1, tf.int32) == truth, tf.float32))
        return tf.cast(tf.size(truth), tf.float32), tf.reduce_sum(losses), right

    pictures = tf.TensorSpec((None, tail.input_shape[-1]), tf.float32)
    given = [pictures, tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None,), tf.float32)]

    def step(x: Any, truth: Any, balance: Any) -> tuple[Any, Any, Any]:
        with tf.GradientTape() as tape:
            logits = tail(x, training=True)
            losses = loss(truth, logits) * balance
            mean = tf.reduce_mean(losses)
        optimizer.apply_gradients(zip(tape.gradient(mean, variables), variables, strict=True))
        return sums(losses, logits, truth)

    def test(x: Any, truth: Any) -> tuple[Any, Any, Any]:
        logits = tail(x, training=False)
        return sums(loss(truth, logits), logits, truth)

    compiled = tf.function(step, input_signature=given, autograph=False)
    tested = tf.function(test, input_signature=given[:2], autograph=False)
    return compiled, tested, lambda: float(optimizer.learning_rate)


def _mean(batches: list[tuple[Any, Any, Any]]) -> tuple[float, float]:
    """Mean loss and accuracy over batches of (pictures, sum of losses, right answers)."""
    pictures, losses, right = np.sum(np.asarray(batches, np.float64), axis=0)
    return float(losses / pictures), float(right / pictures)


def _csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
