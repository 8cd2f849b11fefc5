"""`evaluate` on all cores against a plain loop with one thread of the same interpreter, on the same pictures, in one run.

    python tools/bench_evaluate.py FILE --data cifar10-jpeg.zip [--limit 10000] [--workers 2] [--rounds 5] [--out results.json]

The plain loop is what a user would write: read, decode, prepare, set_tensor, invoke, get_tensor. Both open the model anew.
The classes of the data need not be the model's; only time is measured, and that both give the same scores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeclf.core.catalogue import Catalogue, prepared, scan
from edgeclf.core.files import write_json
from edgeclf.core.tflite import logits_view
from edgeclf.runtime.accuracy import evaluate, held_out, limited
from edgeclf.runtime.classifier import Classifier, from_bundle, read_file
from edgeclf.runtime.engine import cores, tflite_runtime
from edgeclf.runtime.latency import this_machine

BAR = 1.7


def main() -> None:
    """Measure both in every round and print what was found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--limit", type=int, default=10_000)
    options.add_argument("--workers", type=int, default=cores())
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", type=Path, help="write the JSON here too")
    given = options.parse_args()
    bundle, started = read_file(given.file), time.perf_counter()
    catalogue = scan(given.data)
    scan_seconds = time.perf_counter() - started
    classifier = from_bundle(bundle, 1)
    catalogue = renamed(catalogue, classifier)
    indices = limited(held_out(catalogue, classifier.card)[0], given.limit)
    rows = []
    for _ in range(given.rounds):
        start = time.perf_counter()
        wanted = plain_loop(bundle.model, classifier, catalogue, indices)
        middle = time.perf_counter()
        found = evaluate(from_bundle(bundle, 1, probed=True), catalogue, indices, given.workers)
        rows.append((middle - start, time.perf_counter() - middle))
        if not np.array_equal(found.scores, wanted):
            raise SystemExit("the scores differ from the plain loop's")
    ratios = [plain / ours for plain, ours in rows]
    result = {
        "machine": vars(this_machine()),
        "file": given.file.name,
        "runtime": classifier.engine.runtime,
        "pictures": len(indices),
        "workers": given.workers,
        "scan_s": round(scan_seconds, 3),
        "plain_loop_s": [round(plain, 3) for plain, _ in rows],
        "evaluate_s": [round(ours, 3) for _, ours in rows],
        "ratio_median": round(statistics.median(ratios), 3),
        "bar": BAR,
        "holds": statistics.median(ratios) >= BAR,
    }
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


def renamed(catalogue: Catalogue, classifier: Classifier) -> Catalogue:
    """The data under the model's class names."""
    return replace(catalogue, labels=classifier.labels[: len(catalogue.labels)])


def plain_loop(model: bytes, classifier: Classifier, catalogue: Catalogue, indices: np.ndarray) -> np.ndarray:
    """Logits by one thread of the bare interpreter, float32 (pictures, classes)."""
    interpreter = tflite_runtime().interpreter(model_content=logits_view(model), num_threads=1)
    interpreter.allocate_tensors()
    given, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    if given["dtype"] != np.uint8:
        raise SystemExit("give a file with uint8 input, such as NAME-int8.tflite")
    picture = prepared(catalogue, classifier.card.image)
    rows = []
    for i in indices.tolist():
        interpreter.set_tensor(given["index"], picture(i)[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(answer["index"])[0])
    scale, zero_point = answer["quantization"]
    stored = np.stack(rows)
    if not scale:
        return stored
    return (stored.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


if __name__ == "__main__":
    main()
