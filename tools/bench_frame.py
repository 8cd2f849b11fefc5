"""One 640x480 frame to its label, against the bare interpreter's invoke in the same run.

    python tools/bench_frame.py FILE... [--threads 1] [--rounds 60] [--out results.json]

Both use one interpreter each, opened from the same bytes, and take turns in short slices, so that what the machine does
meanwhile falls on both. Prints JSON: medians over the rounds' medians, and whether frame <= 1.10 x invoke + 0.15 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgeclf.core.files import write_json
from edgeclf.runtime.classifier import Classifier, read_file
from edgeclf.runtime.engine import tflite_runtime
from edgeclf.runtime.latency import noise_frame, this_machine

FACTOR, PLUS_MS = 1.10, 0.15
SLICE_SECONDS, LEAST_RUNS = 0.03, 3


def main() -> None:
    """Measure every file and print what was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="+", type=Path)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rounds", type=int, default=60)
    options.add_argument("--normalize", type=float, nargs=2, metavar=("MEAN", "STD"), help="for float files without a card")
    options.add_argument("--out", type=Path, help="write the JSON here too")
    given = options.parse_args()
    normalize = tuple(given.normalize) if given.normalize else None
    found = [measure(path, given.threads, given.rounds, normalize) for path in given.files]
    result = {"machine": vars(this_machine()), "bar": f"frame <= {FACTOR} x invoke + {PLUS_MS} ms", "files": found}
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


def measure(path: Path, threads: int, rounds: int, normalize: tuple[float, float] | None) -> dict[str, object]:
    """The two medians of one file."""
    classifier, frame = Classifier.load(path, threads, normalize=normalize), noise_frame()
    bare = tflite_runtime().interpreter(model_content=read_file(path).model, num_threads=threads)
    bare.allocate_tensors()
    given = bare.get_input_details()[0]
    bare.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
    calls: list[Callable[[], object]] = [bare.invoke, lambda: classifier.classify(frame)]
    for call in calls:
        slice_median_ms(call)
    pairs = [[slice_median_ms(call) for call in calls] for _ in range(rounds)]
    invoke, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    over = statistics.median(frame_ms - FACTOR * invoke_ms for invoke_ms, frame_ms in pairs)
    return {
        "file": path.name,
        "runtime": classifier.engine.runtime,
        "threads": threads,
        "invoke_ms": round(invoke, 4),
        "frame_ms": round(whole, 4),
        "ratio": round(whole / invoke, 3),
        "over_factor_ms": round(over, 4),
        "holds": over <= PLUS_MS,
    }


def slice_median_ms(call: Callable[[], object]) -> float:
    """Median time of one call in a slice of SLICE_SECONDS."""
    times, end = [], time.perf_counter() + SLICE_SECONDS
    while len(times) < LEAST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


if __name__ == "__main__":
    main()
