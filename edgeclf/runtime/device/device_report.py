"""DeviceReport: all that can be measured of deployable files on one device; `bench` writes it, `report --add` reads it."""

from __future__ import annotations

import datetime
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeclf.core import config
from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.files import sha256
from edgeclf.core.image import Pixels
from edgeclf.core.results import Interval, Latency, Size
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import Rules, State, decide
from edgeclf.runtime.device.monitor import DeviceMonitor
from edgeclf.runtime.device.vitals import temperature_c
from edgeclf.runtime.events import Seen, record
from edgeclf.runtime.events import Stages as SeenStages
from edgeclf.runtime.latency import FRAME_HEIGHT, FRAME_WIDTH, Bench, ColdStart, Machine, ThreadTiming
from edgeclf.runtime.scoring import scorer

SCHEMA = 1
STAGE_SECONDS = 1.0
LEAST_FRAMES, MOST_FRAMES = 20, 2000
MOST_BYTES = 1 << 20  # of a report that is read
MOST_FILES = 64
MOST_TEXT = 300
HOW = "edgeclf bench FILE --device-report out.json"


@dataclass(frozen=True)
class StageTimes:
    """What a 640x480 JPEG costs on its way: `decode` to pixels, `resize` to the network's input, `invoke` the network,
    `decide` from scores to an answer, `emit` the answer as a line of JSON; `frame` is all of it."""

    decode: Latency
    resize: Latency
    invoke: Latency
    decide: Latency
    emit: Latency
    frame: Latency


@dataclass(frozen=True)
class Answered:
    """How many of the pictures were answered right; `data` names the data set, `which` says in words what part of it."""

    top1: float
    interval: Interval
    pictures: int
    data: str
    which: str


@dataclass(frozen=True)
class FileReport:
    """One file on the device; `sha256` is of the whole file, `threads` what was best or asked for, `stages` with so many."""

    file: str
    sha256: str
    runtime: str
    size: Size
    threads: int
    cold: ColdStart
    timings: tuple[ThreadTiming, ...]
    stages: StageTimes
    accuracy: Answered | None = None

    @property
    def timing(self) -> ThreadTiming:
        """That of `threads`."""
        return next(timing for timing in self.timings if timing.threads == self.threads)


@dataclass(frozen=True)
class DeviceReport:
    """A device and what files cost there. `throttled` names what its firmware reported meanwhile; then the times are too
    long. Temperatures are in degrees Celsius, None where the device does not say. `board` is what a fleet calls it."""

    edgeclf_device_report: int
    created: str
    edgeclf: str
    machine: Machine
    throttled: tuple[str, ...]
    files: tuple[FileReport, ...]
    temperature_before_c: float | None = None
    temperature_after_c: float | None = None
    hottest_c: float | None = None
    board: str = ""

    def __post_init__(self) -> None:
        if self.edgeclf_device_report != SCHEMA:
            raise ConfigError(f"its layout is version {self.edgeclf_device_report}, this edgeclf reads {SCHEMA}")
        if not 1 <= len(self.files) <= MOST_FILES:
            raise ConfigError(f"it holds {len(self.files)} files; 1 to {MOST_FILES} are possible")
        for file in self.files:
            if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
                raise ConfigError(f"{file.file}: its SHA-256 is none")
            if file.threads not in [timing.threads for timing in file.timings]:
                raise ConfigError(f"{file.file}: nothing was timed with its {file.threads} threads")

    def to_json(self) -> dict[str, Any]:
        """As `read` reads it; what is None is left out."""
        found: dict[str, Any] = config.without_none(config.to_table(self))
        return found


def measure(
    paths: Sequence[Path],
    benched: Callable[[Path], Bench],
    answered: Callable[[Path], Answered | None] = lambda path: None,
    labels: Path | str | None = None,
    normalize: tuple[float, float] | None = None,
) -> DeviceReport:
    """Measure every file, one after the other, with the device watched meanwhile.

    `benched` measures latencies of a file, `answered` its accuracy. Raises what they raise.
    """
    before = temperature_c()
    monitor = DeviceMonitor(interval_s=1.0)
    try:
        files = tuple(_of_file(path, benched(path), answered(path), labels, normalize) for path in paths)
    finally:
        monitor.close()
    device, machine = monitor.device(), files[0][0].machine
    return DeviceReport(
        SCHEMA, datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"), _own_version(), machine,
        device.throttled, tuple(file for _, file in files), before, temperature_c(), device.hottest_c,
    )  # fmt: skip


def _own_version() -> str:
    try:
        return version("edgeclf")
    except PackageNotFoundError:  # run from its source, not installed
        return "of unknown version"


def _of_file(
    path: Path, found: Bench, answered: Answered | None, labels: Path | str | None, normalize: tuple[float, float] | None
) -> tuple[Bench, FileReport]:
    classifier = Classifier.load(path, found.best, labels, normalize)
    stages = time_stages(classifier)
    file = FileReport(path.name, sha256(path), found.runtime, found.size, found.best, found.cold, found.timings, stages, answered)
    return found, file


def time_stages(classifier: Classifier, seconds: float = STAGE_SECONDS) -> StageTimes:
    """Answer one and the same JPEG again and again, and time each stage."""
    jpeg: Pixels = cv2.imencode(".jpg", picture())[1]
    score, rules = scorer(classifier), Rules()
    times: dict[str, list[float]] = {field.name: [] for field in fields(StageTimes)}
    ends, frames = time.perf_counter() + seconds, 0
    while frames < LEAST_FRAMES or (time.perf_counter() < ends and frames < MOST_FRAMES):
        start = time.perf_counter()
        image: Any = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        decoded = time.perf_counter()
        scored = score(image)
        scored_at = time.perf_counter()
        _, decision = decide(State(), scored.probabilities, classifier.labels, rules, scored.energy)
        decided = time.perf_counter()
        seen = Seen(time.time(), "bench", frames, decision, SeenStages(0.0, 0.0, 0.0, 0.0, 0.0), 0.0)
        json.dumps(record(seen))
        emitted = time.perf_counter()
        spent = (decoded - start, scored.resize_s, scored.invoke_s, decided - scored_at, emitted - decided, emitted - start)
        for name, value in zip(times, spent, strict=True):
            times[name].append(value)
        frames += 1
    return StageTimes(**{name: Latency.of(taken) for name, taken in times.items()})


def picture() -> Pixels:
    """A BGR frame as a camera might see it, soft with some noise, always the same: uint8 (480, 640, 3)."""
    across, down = np.linspace(0, 200, FRAME_WIDTH), np.linspace(0, 200, FRAME_HEIGHT)[:, None]
    field = np.dstack([np.broadcast_to(across, (FRAME_HEIGHT, FRAME_WIDTH)), np.broadcast_to(down, (FRAME_HEIGHT, FRAME_WIDTH))])
    noise = np.random.RandomState(0).randint(0, 24, (FRAME_HEIGHT, FRAME_WIDTH, 3))
    found: Pixels = (np.dstack([field, 200 - field[..., :1]]) + noise).astype(np.uint8)
    return found


def read(path: Path) -> DeviceReport:
    """The report in that file, which may come from anywhere: every key and type is checked, and every number is sensible.

    Raises DataError, naming the file and the key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise DataError(f"{path}: larger than {MOST_BYTES >> 20} MB, so it is no device report")
        table = json.loads(data, parse_constant=_no_constant)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no device report: not JSON of finite numbers; make one with: {HOW}") from error
    if not isinstance(table, dict) or "edgeclf_device_report" not in table:
        raise DataError(f"{path}: is no device report; make one with: {HOW}")
    try:
        report = config.build(DeviceReport, table, str(path))
    except ConfigError as error:
        raise DataError(" ".join(str(error).split())[:400]) from error
    _check(report, str(path))
    return report


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no finite number")


def _check(value: Any, where: str) -> None:
    """Raise DataError where a text is too long or holds control characters, or a number is not finite or far below nought."""
    if is_dataclass(value):
        for field in fields(value):
            _check(getattr(value, field.name), f"{where}: {field.name}")
        if isinstance(value, Latency) and not 0 <= value.p50_ms <= value.p90_ms <= value.p99_ms:
            raise DataError(f"{where}: its percentiles are not in order")
        if isinstance(value, Answered) and not 0 <= value.interval.low <= value.top1 <= value.interval.high <= 1:
            raise DataError(f"{where}: its accuracy is no share with its interval")
    elif isinstance(value, tuple):
        if len(value) > MOST_FILES:
            raise DataError(f"{where}: {len(value)} entries; at most {MOST_FILES} are possible")
        for item in value:
            _check(item, where)
    elif isinstance(value, str):
        if len(value) > MOST_TEXT or not value.isprintable():
            raise DataError(f"{where}: is no short line of text")
    elif isinstance(value, (int, float)) and not (math.isfinite(value) and -300 <= value < 2**53):
        raise DataError(f"{where}: {value} cannot be")
