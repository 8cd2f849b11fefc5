"""Measure the live loop on this machine: what it costs beside the bare `invoke`, frame age, and memory, also over many frames.

    python tools/bench_live.py FILE [--parts loop age memory soak] [--frames 2000] [--soak 2000000] [--out FILE.json]

`loop`: the same 640x480 frames from memory go through `Live` with JSON lines on, and through the bare interpreter on one
prepared picture; both in this run, in turns. `age`: a synthetic camera at 30 frames a second and a model made slower than
that. `memory`: `edgeclf run` at 640x480 of the shipped compact-cifar10 and of FILE, with nothing, with every file sink, with
the page, and on `--rtsp URL` where one is given, each in a process of its own, in turns. `soak`: frames of the synthetic
source as fast as they come to the shipped compact-digits; `--soak-log` gets a line after each fortieth of them, and
`--soak-seconds` ends it early.

Parts that were not asked for stay as they are in `--out`. On a machine with other work, start it under `chrt -f 10`: what
waits for a core is no cost of the loop.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bench_mediapipe import scheduler

from edgeclf.core.devices import CameraSection
from edgeclf.core.files import write_json
from edgeclf.core.image import Pixels, prepare
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.device.vitals import resident_bytes
from edgeclf.runtime.latency import this_machine
from edgeclf.runtime.live import Limits, Live
from edgeclf.runtime.scoring import Scored, scorer
from edgeclf.runtime.sinks.jsonl import JsonLines
from edgeclf.runtime.sinks.sink import Background
from edgeclf.runtime.sources.camera import Picture, Source, find_source
from edgeclf.runtime.sources.readers import SyntheticReader

SIZE = (480, 640, 3)
CAMERA = CameraSection(640, 480, 30)
DISTINCT = 16
ROUNDS = 5
SLOW_S = 0.1
SHIPPED, SOAKED = "compact-cifar10", "compact-digits"
MARKS, SETTLED = 40, 0.1  # of a soak: how often memory is read, and the share of frames before the slope counts
RUNS, RUN_S, LOOK_S = 3, 6, 0.1  # of each kind of process, its seconds, and between looks at it
SINKS = {
    "plain": [],
    "files": [
        "--jsonl", "a.jsonl", "--csv", "a.csv", "--sqlite", "a.db", "--snapshots", "snapshots", "--clips", "4",
    ],
    "page": ["--web", "127.0.0.1:18973"],
}  # fmt: skip


class Memory:
    """A reader of frames that are already in memory, so that no decoding is measured."""

    note, interval_s = "", 0.0

    def __init__(self, count: int) -> None:
        random = np.random.RandomState(0)
        self._frames = [random.randint(0, 256, SIZE).astype(np.uint8) for _ in range(DISTINCT)]
        self._order: Iterator[int] = iter(range(count))

    def read(self) -> Picture | None:
        i = next(self._order, None)
        return None if i is None else Picture(self._frames[i % DISTINCT])

    def close(self) -> None:
        """Nothing is held."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--parts", nargs="+", choices=("loop", "age", "memory", "soak"), default=["loop", "age", "memory"])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--soak", type=int, default=2_000_000)
    parser.add_argument("--soak-seconds", type=float)
    parser.add_argument("--soak-log", type=Path)
    parser.add_argument("--rtsp", help="a stream of 640x480, as tools/rtsp_server.py gives one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    classifier = Classifier.load(given.file, given.threads)
    result |= {
        "file": given.file.name,
        "machine": vars(this_machine()),
        "scheduler": scheduler(),
        "runtime": classifier.engine.runtime,
        "threads": classifier.engine.threads,
    }
    work = {
        "loop": lambda: loop_cost(classifier, given.frames),
        "age": lambda: age_of_frames(classifier),
        "memory": lambda: {
            SHIPPED: memory_of_runs(SHIPPED, given.rtsp),
            given.file.name: memory_of_runs(str(given.file.resolve()), given.rtsp),
        },
        "soak": lambda: soak(Classifier.load(SOAKED), given.soak, given.soak_seconds, given.soak_log),
    }
    for part in given.parts:
        result[part] = work[part]()
        print(json.dumps({part: result[part]}, indent=2), flush=True)
        if given.out:
            write_json(given.out, result)


def loop_cost(classifier: Classifier, frames: int) -> dict[str, float]:
    """Milliseconds a frame, medians over rounds: the bare invoke, the stages beside it, the whole loop with JSON lines."""
    prepared, rules = prepare(Memory(1)._frames[0], classifier.card.image)[None], classifier.rules
    rounds = []
    for _ in range(ROUNDS):
        count = frames // ROUNDS
        invoke = [_timed(lambda: classifier.engine.infer(prepared)) for _ in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            sink = Background(JsonLines(Path(folder) / "seen.jsonl"), "jsonl", lossless=True)
            source = Source("memory", lambda: Memory(count), live=False)  # noqa: B023
            summary = Live([source], scorer(classifier, rules.by_energy), classifier.labels, rules, [sink]).run()
        p50 = {name: summary.stages[name].p50_ms for name in ("resize", "decide", "emit")}
        rounds.append((statistics.median(invoke) * 1000, *p50.values(), 1000 * summary.seconds / count))
    names = ("invoke_p50_ms", "resize_p50_ms", "decide_p50_ms", "emit_p50_ms", "whole_loop_mean_ms")
    found = {name: round(statistics.median(column), 4) for name, column in zip(names, zip(*rounds, strict=True), strict=True)}
    beside = sum(found[f"{name}_p50_ms"] for name in ("resize", "decide", "emit"))
    return {**found, "besides_invoke_share": round(beside / found["invoke_p50_ms"], 4)}


def _timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def age_of_frames(classifier: Classifier) -> dict[str, float]:
    """A model slower than the camera: the age at the label must stay within one interval and the inference."""

    answer = scorer(classifier)

    def slow(frame: Pixels) -> Scored:
        time.sleep(SLOW_S)
        scored = answer(frame)
        return replace(scored, invoke_s=scored.invoke_s + SLOW_S)

    summary = Live([find_source("synthetic", CAMERA)], slow, classifier.labels, limits=Limits(max_frames=60)).run()
    return {
        "interval_ms": round(1000 / 30, 1),
        "invoke_p50_ms": round(summary.stages["invoke"].p50_ms, 1),
        "age_p50_ms": round(summary.stages["age"].p50_ms, 1),
        "age_p99_ms": round(summary.stages["age"].p99_ms, 1),
        "frames": summary.frames,
        "dropped": summary.dropped,
    }


def memory_of_runs(file: str, rtsp: str | None) -> dict[str, dict[str, float]]:
    """Of each kind of run, medians over RUNS in MB: the peak, which includes opening the model, and what it then stays at."""
    kinds = {name: ["--source", "synthetic", *options] for name, options in SINKS.items()}
    if rtsp:
        kinds["rtsp"] = ["--source", rtsp]
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(RUNS):
        for name, options in kinds.items():
            rounds[name].append(memory_of(["run", file, *options, "--seconds", str(RUN_S)]))
    return {
        name: {
            "resident_mb": round(statistics.median(resident for resident, _ in each), 1),
            "peak_mb": round(statistics.median(peak for _, peak in each), 1),
        }
        for name, each in rounds.items()
    }


def memory_of(arguments: list[str]) -> tuple[float, float]:
    """(resident memory, its peak) in MB of the program with those arguments; the former as the median of the second half of
    its time. Raises SystemExit when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgeclf", *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        peak, seen = 0.0, list[float]()
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            fields = dict(line.split(":", 1) for line in status.splitlines())
            if "VmRSS" in fields:
                resident, peak = (int(fields[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "VmHWM"))
                seen.append(resident)
            time.sleep(LOOK_S)
        if process.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {process.communicate()[1].decode().strip()}")
        return statistics.median(seen[len(seen) // 2 :]), peak


def soak(classifier: Classifier, frames: int, seconds: float | None, log: Path | None) -> dict[str, float]:
    """Growth of resident memory in MB a million frames: a line through what was read after SETTLED of the frames."""
    began, seen, marks = time.monotonic(), 0, list[tuple[int, float]]()
    answer = scorer(classifier)

    def watched(frame: Pixels) -> Scored:
        nonlocal seen
        seen += 1
        if seen % max(1, frames // MARKS) == 0:
            marks.append((seen, resident_mb()))
            if log:
                with log.open("a", encoding="utf-8") as file:
                    print(json.dumps(found()), file=file)
        return answer(frame)

    def found() -> dict[str, float]:
        late = np.array([mark for mark in marks if mark[0] > SETTLED * seen])
        slope = float(np.polyfit(late[:, 0] / 1e6, late[:, 1], 1)[0]) if len(late) > 1 else 0.0
        return {
            "frames": seen,
            "seconds": round(time.monotonic() - began, 1),
            "resident_mb": marks[-1][1] if marks else resident_mb(),
            "mb_per_million_frames": round(slope, 2),
        }

    sink = Background(JsonLines(Path(os.devnull)), "jsonl")
    source = Source("synthetic", partial(SyntheticReader, CAMERA), live=False)
    Live([source], watched, classifier.labels, sinks=[sink], limits=Limits(frames, seconds)).run()
    return found()


def resident_mb() -> float:
    """Resident memory of this process in MB, 0 where the system does not say."""
    return round((resident_bytes() or 0) / 1e6, 1)


if __name__ == "__main__":
    main()
