"""Threads: the number that is fastest for a model on this machine, found by a short measurement and remembered."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.errors import ConfigError, StorageError
from edgeclf.core.files import cache_folder, write_json
from edgeclf.runtime.classifier import Classifier, from_bundle, given_labels, read_file
from edgeclf.runtime.engine import Normalize, cores
from edgeclf.runtime.latency import this_machine

SECONDS = 0.5  # of timed calls, for all numbers of threads together
TURN_SECONDS = 0.02  # of one number of threads, before the next has its turn
LEAST_TURNS = 3
MOST_MEASURED = 8  # threads; more helps no network that runs live
CLEARLY = 0.9  # more threads must bring the time down to this share
BUSY = 0.5  # programs to a core; other work takes the cores that more threads would use
SCHEMA = 1
MEASURED = "measured now"


@dataclass(frozen=True)
class Choice:
    """How many threads, and why. `times_ms` is the median inference by the number of threads, empty where none was timed."""

    threads: int
    why: str
    times_ms: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        times = ", ".join(f"{ms:#.3g} ms with {n}" for n, ms in self.times_ms)
        return f"threads: {self.threads} ({self.why}{': ' if times else ''}{times})"


def load_measured(
    path: Path | str, threads: int | None = None, labels: Path | str | None = None, normalize: Normalize | None = None
) -> tuple[Classifier, Choice]:
    """As `Classifier.load`, but `threads` None or 0 measures which number is fastest, or takes what was found before.

    Raises ModelError, MissingExtra or ConfigError as `Classifier.load` does.
    """
    if threads and threads < 0:
        raise ConfigError(f"threads = {threads}: must be at least 1, or 0 to measure")
    if threads:
        return Classifier.load(path, threads, labels, normalize), Choice(threads, "as asked for")
    bundle = read_file(Path(path))
    first = from_bundle(bundle, 1, given_labels(labels), normalize)
    choice = choose(first, hashlib.sha256(bundle.model).hexdigest())
    used = choice.threads != first.engine.threads or choice.why == MEASURED
    return (first.another(choice.threads) if used else first), choice  # afresh, so that its first inference is the first


def choose(classifier: Classifier, sha256: str) -> Choice:
    """The number of threads for the model with that SHA-256, of which `classifier` is open with one.

    Remembered in the user's cache folder by model, runtime and machine, unless the machine was busy or throttled meanwhile:
    then the next run measures again.
    """
    if not classifier.copies or cores() == 1:
        return Choice(classifier.engine.threads, "there is only one core" if classifier.copies else "its only engine")
    machine = this_machine()
    where = {"schema": SCHEMA, "runtime": classifier.engine.runtime, "cpu": machine.cpu, "cores": machine.cores}
    remembered = cache_folder() / "threads" / f"{sha256}.json"
    known = _read(remembered, where)
    if known:
        return known
    times = measure(classifier, candidates(machine.cores))
    choice = Choice(fewest_nearly_fastest(times), MEASURED, tuple(times.items()))
    if machine.load <= BUSY * machine.cores and not (machine.throttled or this_machine().throttled):
        with contextlib.suppress(StorageError):  # a read-only device measures each time
            write_json(remembered, {**where, "times_ms": [list(entry) for entry in choice.times_ms]})
    return choice


def candidates(most: int) -> list[int]:
    """1, 2, 4 and so on, up to `most` and MOST_MEASURED."""
    return [n for n in (1, 2, 4, 8) if n <= min(most, MOST_MEASURED)]


def fewest_nearly_fastest(times_ms: dict[int, float]) -> int:
    """The fewest threads that no larger number beats clearly: by a tenth of the time."""
    best = min(times_ms)
    for threads in sorted(times_ms):
        if times_ms[threads] <= CLEARLY * times_ms[best]:
            best = threads
    return best


def measure(classifier: Classifier, numbers: list[int], seconds: float = SECONDS) -> dict[int, float]:
    """Median milliseconds of an inference with each of `numbers` threads, in turns, so that other work falls on all."""
    batch = np.zeros((1, *classifier.card.image.shape), np.uint8)
    engines = {n: classifier.engine if n == classifier.engine.threads else classifier.another(n).engine for n in numbers}
    times: dict[int, list[float]] = {n: [] for n in numbers}
    for engine in engines.values():
        engine.infer(batch)  # the first is slower
    began, turns = time.perf_counter(), 0
    while turns < LEAST_TURNS or time.perf_counter() - began < seconds:
        for threads, engine in engines.items():
            ends = time.perf_counter() + TURN_SECONDS
            while True:
                start = time.perf_counter()
                engine.infer(batch)
                stop = time.perf_counter()
                times[threads].append((stop - start) * 1000)
                if stop >= ends:
                    break
        turns += 1
    return {n: statistics.median(taken) for n, taken in times.items()}


def _read(path: Path, where: dict[str, Any]) -> Choice | None:
    """What was remembered; None when nothing was, or elsewhere, or it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        if {key: found[key] for key in where} != where:
            return None
        times = {int(n): float(ms) for n, ms in found["times_ms"]}
        return Choice(fewest_nearly_fastest(times), "measured before", tuple(times.items())) if times else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
