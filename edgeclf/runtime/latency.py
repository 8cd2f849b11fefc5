"""Latency of a deployable file on this machine: warm, per invoke and per frame; cold, in a fresh process; memory and size."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.errors import ConfigError, EdgeclfError, ModelError
from edgeclf.core.image import Pixels, prepare
from edgeclf.core.progress import Report
from edgeclf.core.results import Latency, Size
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.device import vitals
from edgeclf.runtime.engine import Normalize, cores, tflite_runtime
from edgeclf.runtime.onnx import is_onnx, onnxruntime

FRAME_WIDTH, FRAME_HEIGHT = 640, 480
ROUNDS = 10
SECONDS = 4.0  # of timed calls, for all settings together
LEAST_RUNS, MOST_RUNS = 3, 400  # of one kind in one round
WARM_UP_RUNS = 10
NEARLY = 1.05  # a setting within 5% of the fastest counts as good as it
COLD_SECONDS = 120.0


@dataclass(frozen=True)
class Machine:
    """Where a measurement was made. `load` is the mean number of busy programs in the last minute, -1 where unknown.

    `vector_units` are those that int8 networks gain from, as `runtime.device.vitals` names them; none in older files.
    """

    cpu: str
    cores: int
    system: str
    python: str
    load: float
    throttled: bool
    vector_units: tuple[str, ...] = ()


@dataclass(frozen=True)
class ColdStart:
    """A fresh process: milliseconds for the imports, for loading the file, for the first answer; memory in bytes.

    `peak_bytes` is the largest resident size, `imports_bytes` what of it was there before the file was opened, when the
    runtime was imported.
    """

    imports_ms: float
    load_ms: float
    first_ms: float
    peak_bytes: int
    imports_bytes: int


@dataclass(frozen=True)
class ThreadTiming:
    """Warm latency with that many threads: of the network on a prepared picture, and from a 640x480 frame to a label."""

    threads: int
    invoke: Latency
    frame: Latency


@dataclass(frozen=True)
class Bench:
    """Everything that `edgeclf bench` says; `best` is the fewest threads that are within 5% of the fastest."""

    file: str
    runtime: str
    machine: Machine
    size: Size
    cold: ColdStart
    timings: tuple[ThreadTiming, ...]
    best: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    path: Path,
    threads: list[int] | None = None,
    labels: str | None = None,
    normalize: Normalize | None = None,
    seconds: float = SECONDS,
    progress: Report | None = None,
) -> Bench:
    """Measure the file at `path` for every number of `threads` (None: 1 and so on up to the cores), in interleaved rounds.

    Raises ModelError, ConfigError or MissingExtra when the file cannot run.
    """
    wanted = threads if threads is not None else list(range(1, cores() + 1))
    if not wanted or min(wanted) < 1:
        raise ConfigError(f"threads = {wanted}: each must be at least 1")
    first = Classifier.load(path, wanted[0], labels, normalize)
    cold = cold_start(path, wanted[0], labels, normalize)
    timings = time_classifiers([first, *(first.another(n) for n in wanted[1:])], seconds, progress)
    return Bench(str(path), first.engine.runtime, this_machine(), file_size(path), cold, timings, best_threads(timings))


def time_classifiers(classifiers: list[Classifier], seconds: float, progress: Report | None = None) -> tuple[ThreadTiming, ...]:
    """Warm up, then time every classifier in each of ROUNDS rounds, so that what the machine does meanwhile falls on all."""
    frame = noise_frame()
    calls = [(_inference(classifier, frame), _answer(classifier, frame)) for classifier in classifiers]
    for pair in calls:
        for call in pair:
            _times(call, WARM_UP_RUNS)
    share = seconds / ROUNDS / (2 * len(calls))
    counts = [[min(MOST_RUNS, max(LEAST_RUNS, int(share / _times(call, 3)[1]))) for call in pair] for pair in calls]
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in calls]
    for number in range(ROUNDS):
        for pair, runs, taken in zip(calls, counts, times, strict=True):
            for call, count, kind in zip(pair, runs, taken, strict=True):
                kind += _times(call, count)
        if progress:
            progress(number + 1, ROUNDS)
    return tuple(
        ThreadTiming(classifier.engine.threads, Latency.of(invoke), Latency.of(whole))
        for classifier, (invoke, whole) in zip(classifiers, times, strict=True)
    )


def best_threads(timings: tuple[ThreadTiming, ...]) -> int:
    """The fewest threads whose median frame is within 5% of the fastest."""
    fastest = min(timing.frame.p50_ms for timing in timings)
    return min(timing.threads for timing in timings if timing.frame.p50_ms <= fastest * NEARLY)


def noise_frame(width: int = FRAME_WIDTH, height: int = FRAME_HEIGHT) -> Pixels:
    """A synthetic BGR camera frame, always the same: uint8 (height, width, 3)."""
    return np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)


def cold_start(path: Path, threads: int, labels: str | None = None, normalize: Normalize | None = None) -> ColdStart:
    """Start Python, load the file and answer one frame, in a process of its own. Raises ModelError when that fails."""
    return fresh_process("edgeclf.runtime.latency", json.dumps([str(path), threads, labels, normalize]), path)


def fresh_process(module: str, request: str, path: Path) -> ColdStart:
    """What `cold_child(request)` of that module prints in a process of its own. Raises ModelError, naming `path`."""
    code = f"import sys; from {module} import cold_child; cold_child(sys.argv[1])"
    command = [sys.executable, "-c", code, request]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}
    try:
        done = subprocess.run(command, capture_output=True, timeout=COLD_SECONDS, env=environment, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise ModelError(f"{path}: its cold start could not be measured: {error}") from error
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ModelError(f"{path}: its cold start could not be measured: {reason[0]}")
    return ColdStart(**json.loads(done.stdout))


def cold_child(request: str) -> None:
    """What runs in the fresh process: prints a ColdStart as JSON."""
    path, threads, labels, normalize = json.loads(request)

    def load() -> Callable[[Pixels], object]:
        return Classifier.load(path, threads, labels, tuple(normalize) if normalize else None).probabilities

    print_cold_start(onnxruntime if is_onnx(path) else tflite_runtime, load)


def print_cold_start(import_runtime: Callable[[], object], load: Callable[[], Callable[[Pixels], object]]) -> None:
    """Print the ColdStart of this process as JSON; `load` opens the model and gives what answers a BGR frame.

    Raises SystemExit with the reason when one of them fails.
    """
    try:
        import_runtime()
        imports_bytes, start = peak_memory(), time.perf_counter()
        answer_frame = load()
        loaded = time.perf_counter()
        frame = noise_frame()
        before = time.perf_counter()
        answer_frame(frame)
    except EdgeclfError as error:
        raise SystemExit(str(error)) from error
    first_ms = (time.perf_counter() - before) * 1000
    answer = ColdStart(_age_ms(start), (loaded - start) * 1000, first_ms, peak_memory(), imports_bytes)
    print(json.dumps(asdict(answer)))


def file_size(path: Path) -> Size:
    """Bytes on disk and after gzip level 9. Raises ModelError when the file cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    return Size(len(data), len(gzip.compress(data, 9, mtime=0)))


def this_machine(root: Path = vitals.ROOT) -> Machine:
    """What this machine is, and how busy it is just now."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Machine(
        _cpu(root), cores(), system, platform.python_version(), round(load, 2), throttled(root), vitals.vector_units(root)
    )


def throttled(root: Path = vitals.ROOT) -> bool:
    """Whether a Raspberry Pi now runs slower because of heat or a weak supply."""
    found = vitals.throttle(root)
    return bool(found and found.now)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes; 0 where the system does not say."""
    found = vitals.peak_bytes()
    if found is not None:
        return found
    with contextlib.suppress(ImportError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return 0


def _inference(classifier: Classifier, frame: Pixels) -> Callable[[], object]:
    batch = prepare(frame, classifier.card.image)[None]
    return lambda: classifier.engine.infer(batch)


def _answer(classifier: Classifier, frame: Pixels) -> Callable[[], object]:
    return lambda: classifier.classify(frame, 1)


def _times(call: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of `count` calls, sorted: the middle one is the median."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)


def _age_ms(moment: float) -> float:
    """Milliseconds from the start of this process to `moment` of perf_counter; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        started = ticks / os.sysconf("SC_CLK_TCK")
        since = time.clock_gettime(time.CLOCK_BOOTTIME) - started
        return max(0.0, (since - (time.perf_counter() - moment)) * 1000)
    return 0.0


def _cpu(root: Path) -> str:
    named = vitals.board(root)
    if named:
        return named
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
