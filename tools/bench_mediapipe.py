"""The live loop against MediaPipe's ImageClassifier in live mode: same file, same frames at the same pace, in turns.

    python tools/bench_mediapipe.py FILE --mediapipe OTHER/bin/python [--frames 300] [--fps 30] [--rounds 5] [--out FILE.json]

MediaPipe is no dependency: `--mediapipe` names a Python of an environment that has it. Each round starts a fresh process for
either, which gets 640x480 BGR frames from memory, one every 1/fps seconds, and notes how long each took from there to its
label, and its peak memory. MediaPipe's has to be turned to RGB first, as every user of a camera must. Two threads for edgeclf
unless told otherwise; MediaPipe chooses its own. Medians over the rounds. On a machine with other work, start it under
`chrt -f 10`, which both then inherit: what waits for a core is no cost of either; the result says so as `scheduler`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

WARM = 20  # frames before the first that counts
NAMES = ("p50_ms", "p99_ms", "peak_mb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--mediapipe", type=Path, help="a Python that imports mediapipe")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--fps", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", choices=("edgeclf", "mediapipe"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        work = {"edgeclf": through_edgeclf, "mediapipe": through_mediapipe}[given.child]
        print(json.dumps(figures(work(given.file, given.frames + WARM, given.fps, given.threads)[WARM:])))
        return
    if given.mediapipe is None:
        parser.error("--mediapipe is needed")
    compare(given)


def compare(given: argparse.Namespace) -> None:
    """All rounds, and the ratios of their medians."""
    from edgeclf.core.files import write_json
    from edgeclf.runtime.latency import this_machine

    pythons = {"edgeclf": sys.executable, "mediapipe": str(given.mediapipe)}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    for _ in range(given.rounds):
        for name, python in pythons.items():
            command = [python, __file__, str(given.file), "--child", name]
            command += ["--frames", str(given.frames), "--fps", str(given.fps), "--threads", str(given.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
            rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
    found = {name: {key: round(statistics.median(r[key] for r in each), 3) for key in NAMES} for name, each in rounds.items()}
    result = {
        "machine": vars(this_machine()),
        "scheduler": scheduler(),
        "file": given.file.name,
        "fps": given.fps,
        "threads": given.threads,
        "rounds": given.rounds,
        **found,
        "ratio": {key: round(found["edgeclf"][key] / found["mediapipe"][key], 3) for key in NAMES},
    }
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


def scheduler() -> str:
    """What this process and its children get a core by."""
    return {os.SCHED_OTHER: "normal", os.SCHED_FIFO: "first in, first out"}.get(os.sched_getscheduler(0), "other")


def figures(seconds: list[float]) -> dict[str, float]:
    """Percentiles of the frames' times, and this process's peak of resident memory in MB."""
    status = Path("/proc/self/status").read_text()
    peak_kb = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    p50, p99 = np.percentile(np.asarray(seconds) * 1000, [50, 99])
    return {"p50_ms": float(p50), "p99_ms": float(p99), "peak_mb": peak_kb / 1024}


def frames() -> list[np.ndarray]:
    """The same 16 frames everywhere: uint8 (480, 640, 3)."""
    random = np.random.RandomState(0)
    return [random.randint(0, 256, (480, 640, 3)).astype(np.uint8) for _ in range(16)]


def through_edgeclf(file: Path, count: int, fps: float, threads: int) -> list[float]:
    """Seconds from each frame's reading to its label, through `Live` with a sink that takes the times."""
    from edgeclf.runtime.classifier import Classifier
    from edgeclf.runtime.device import heap
    from edgeclf.runtime.events import Seen
    from edgeclf.runtime.live import Limits, Live
    from edgeclf.runtime.scoring import scorer
    from edgeclf.runtime.sources.camera import Picture, Source

    class Memory:
        note, interval_s = "", 1 / fps

        def __init__(self):
            self.pictures, self.given = frames(), 0

        def read(self):
            self.given += 1
            return Picture(self.pictures[self.given % len(self.pictures)])

        def close(self):
            """Nothing is held."""

    class Times:
        def __init__(self):
            self.seconds = []

        def emit(self, event, image):
            if isinstance(event, Seen):
                self.seconds.append(event.stages.age_ms / 1000)

        def close(self):
            return True

    heap.share()  # as `run` does, and `settled` too
    classifier, times = Classifier.load(file, threads), Times()
    rules = classifier.rules
    source = Source("memory", Memory, live=True)
    with heap.settled():
        Live([source], scorer(classifier, rules.by_energy), classifier.labels, rules, [times], Limits(max_frames=count)).run()
    return times.seconds


def through_mediapipe(file: Path, count: int, fps: float, threads: int) -> list[float]:
    """Seconds from each frame's being there to MediaPipe's callback with its label."""
    import cv2
    import mediapipe as mp
    from mediapipe.tasks.python import BaseOptions, vision

    started: dict[int, float] = {}
    seconds: list[float] = []
    answered = threading.Event()

    def on_result(result, image, timestamp_ms):
        label = result.classifications[0].categories[0].category_name
        if label is not None:
            seconds.append(time.monotonic() - started[timestamp_ms])
        answered.set()

    options = vision.ImageClassifierOptions(
        base_options=BaseOptions(model_asset_path=str(file)),
        running_mode=vision.RunningMode.LIVE_STREAM,
        max_results=3,
        result_callback=on_result,
    )
    pictures = frames()
    with vision.ImageClassifier.create_from_options(options) as classifier:
        due = time.monotonic()
        for i in range(count):
            due = max(due + 1 / fps, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            answered.clear()
            started[i] = time.monotonic()
            rgb = cv2.cvtColor(pictures[i % len(pictures)], cv2.COLOR_BGR2RGB)
            classifier.classify_async(mp.Image(image_format=mp.ImageFormat.SRGB, data=rgb), i)
            answered.wait(10)
    return seconds


if __name__ == "__main__":
    main()
