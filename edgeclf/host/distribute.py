"""Where a training runs: this process alone, all devices of this machine, or several machines; by `tf.distribute`."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgeclf.core.errors import ConfigError
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


def scope(strategy: Any) -> Any:
    """The context in which variables are made; nothing for a training in this process alone."""
    return strategy.scope() if strategy is not None else contextlib.nullcontext()
