"""Where a training runs: this process alone, all devices of this machine, or several machines; by `tf.distribute`."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from edgeclf.core.errors import ConfigError, EdgeclfError
from edgeclf.core.files import write_bytes
from edgeclf.host.keras import tensorflow

StrategyName = Literal["none", "mirrored", "multi-worker"]


@dataclass(frozen=True)
class Worker:
    """This process among those that train together; worker 0 is the chief, who alone writes the run."""

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        return self.index == 0


def worker(strategy: str) -> Worker:
    """Which worker this process is, by TF_CONFIG where the strategy is multi-worker. Raises ConfigError."""
    if strategy not in get_args(StrategyName):
        raise ConfigError(f"strategy {strategy!r}: expected one of: {', '.join(get_args(StrategyName))}")
    if strategy != "multi-worker":
        return Worker()
    try:
        given = json.loads(os.environ.get("TF_CONFIG", ""))
        cluster, task = given["cluster"], given["task"]
        chiefs, workers = len(cluster.get("chief", ())), len(cluster["worker"])
        index = int(task["index"]) + (chiefs if task["type"] == "worker" else 0)
        if not 0 <= index < chiefs + workers:
            raise ValueError(f"no worker {index} among {chiefs + workers}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "--strategy multi-worker needs TF_CONFIG in the environment, the same on every host but for the index: "
            '{"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", "index": 0}}'
            + (f" ({type(error).__name__}: {error})" if os.environ.get("TF_CONFIG") else "")
        ) from error
    return Worker(index, chiefs + workers)


@functools.cache
def strategy_of(name: str) -> Any:
    """The `tf.distribute.Strategy` of that name, one in a process; None for "none".

    Multi-worker must be asked for before TensorFlow has run anything.
    """
    tf = tensorflow()
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(_devices())
    if name == "multi-worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    return None


def _devices() -> list[str]:
    """Every GPU, else every logical CPU."""
    config = tensorflow().config
    found = config.list_logical_devices("GPU") or config.list_logical_devices("CPU")
    return [device.name for device in found]


def from_chief(strategy: Any, data: bytes, is_chief: bool) -> bytes:
    """What worker 0 gives as `data`, for every worker of a multi-worker `strategy`; all must ask at the same time.

    By way of variables, which take the value that worker 0 starts them with.
    """
    tf = tensorflow()
    given = np.frombuffer(data, np.uint8) if is_chief else np.zeros(0, np.uint8)
    with strategy.scope():
        length = int(tf.Variable(len(given), dtype=tf.int32, trainable=False).numpy())
        start = given if is_chief else np.zeros(length, np.uint8)
        return bytes(tf.Variable(start.astype(np.int32), trainable=False).numpy().astype(np.uint8)) if length else b""


def share(path: Path, strategy: Any, worker: Worker) -> None:
    """Give every worker the file that worker 0 has at `path`, or none where it has none."""
    if worker.count == 1:
        return
    data = from_chief(strategy, path.read_bytes() if path.exists() else b"", worker.is_chief)
    if data:
        write_bytes(path, data)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def together(folder: Path, worker: Worker) -> Iterator[None]:
    """What several workers do together: EdgeclfError, saying how to go on in `folder`, when another of them is lost."""
    tf = tensorflow()
    lost = tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError
    try:
        yield
    except lost as error:
        if worker.count == 1:
            raise
        reason = error.message.strip().splitlines()[0][:120]
        raise EdgeclfError(
            f"{folder}: another worker was lost ({reason}); start all of them again, each with: "
            "edgeclf train --resume --out FOLDER, the same everywhere"
        ) from error


def scope(strategy: Any) -> Any:
    """The context in which variables are made; nothing for a training in this process alone."""
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
