"""Measure the live loop on this machine: what it costs beside the bare `invoke`, frame age, and memory over many frames.

    python tools/bench_live.py FILE [--frames 2000] [--soak 200000] [--out FILE.json]

`loop`: the same 640x480 frames from memory go through `Live` with JSON lines on, and through the bare interpreter on one
prepared picture; both in this run, in turns. `age`: a synthetic camera at 30 frames a second and a model made slower than
that. `soak`: frames as fast as they come to the shipped compact-digits, resident memory after a tenth of them and after all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

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

SIZE = (480, 640, 3)
DISTINCT = 16
ROUNDS = 5
SLOW_S = 0.1
SOAKED = "compact-digits"


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
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--soak", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    classifier = Classifier.load(given.file, given.threads)
    result: dict[str, Any] = {
        "file": given.file.name,
        "machine": vars(this_machine()),
        "runtime": classifier.engine.runtime,
        "threads": classifier.engine.threads,
        "loop": loop_cost(classifier, given.frames),
        "age": age_of_frames(classifier),
    }
    if given.soak:
        result["soak"] = soak(Classifier.load(SOAKED), given.soak)
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


def loop_cost(classifier: Classifier, frames: int) -> dict[str, float]:
    """Milliseconds a frame, medians over rounds: the bare invoke, the stages beside it, the whole loop with JSON lines."""
    prepared = prepare(Memory(1)._frames[0], classifier.card.image)[None]
    rounds = []
    for _ in range(ROUNDS):
        count = frames // ROUNDS
        invoke = [_timed(lambda: classifier.engine.infer(prepared)) for _ in range(count)]
        with tempfile.TemporaryDirectory() as folder:
            sink = Background(JsonLines(Path(folder) / "seen.jsonl"), "jsonl", lossless=True)
            source = Source("memory", lambda: Memory(count), live=False)  # noqa: B023
            summary = Live([source], scorer(classifier), classifier.labels, sinks=[sink]).run()
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

    camera = find_source("synthetic", CameraSection(640, 480, 30))
    summary = Live([camera], slow, classifier.labels, limits=Limits(max_frames=60)).run()
    return {
        "interval_ms": round(1000 / 30, 1),
        "invoke_p50_ms": round(summary.stages["invoke"].p50_ms, 1),
        "age_p50_ms": round(summary.stages["age"].p50_ms, 1),
        "age_p99_ms": round(summary.stages["age"].p99_ms, 1),
        "frames": summary.frames,
        "dropped": summary.dropped,
    }


def soak(classifier: Classifier, frames: int) -> dict[str, float]:
    """Resident memory after a tenth of the frames and after all of them, in one run."""
    marks: list[float] = []
    seen = [0]
    answer = scorer(classifier)

    def watched(frame: Pixels) -> Scored:
        seen[0] += 1
        if seen[0] in (frames // 10, frames):
            marks.append(resident_mb())
        return answer(frame)

    sink = Background(JsonLines(Path(os.devnull)), "jsonl")
    summary = Live([Source("memory", lambda: Memory(frames), live=False)], watched, classifier.labels, sinks=[sink]).run()
    growth = (marks[1] - marks[0]) / (0.9 * frames) * 1e6
    return {
        "frames": frames,
        "seconds": round(summary.seconds, 1),
        "resident_mb": marks[1],
        "mb_per_million_frames": round(growth, 2),
    }


def resident_mb() -> float:
    """Resident memory of this process in MB, 0 where the system does not say."""
    return round((resident_bytes() or 0) / 1e6, 1)


if __name__ == "__main__":
    main()
