"""What one picture costs on one core, stage by stage, and how many bytes it is on its way: the base of docs/scale.md.

    python tools/bench_scale.py DATA=FILE... [--enlarged WIDTHxHEIGHT] [--out tools/results/scale.json]
    python tools/bench_scale.py --parts 600 [--out tools/results/scale.json]

CPU time of this process, not wall time, so that other work on the machine disturbs it little. Rounds go through the stages
in turn over the same pictures; medians over rounds. With `--enlarged` each pair is measured once more with its pictures
enlarged to that size and compressed as JPEG of quality 90, a stand-in for camera pictures. With `--parts` so many empty
parts go through Ray Data as `classify --engine ray` sends them, and the CPU time of the driver for one is kept. What is
measured replaces what stood of it in the results file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from edgeclf.core.catalogue import bytes_reader, scan
from edgeclf.core.files import write_json
from edgeclf.core.image import decode, prepare
from edgeclf.runtime.bulk.answering import answer
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.cluster import connect
from edgeclf.runtime.latency import this_machine

PICTURES, ENLARGED, ROUNDS, TOP = 100, 8, 5, 5
QUALITY = 90
ROWS = 2000  # whose bytes in a Parquet file are counted


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("pairs", nargs="*", metavar="DATA=FILE")
    options.add_argument("--enlarged", metavar="WIDTHxHEIGHT")
    options.add_argument("--parts", type=int, default=0)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    found = []
    for pair in given.pairs:
        source, _, file = pair.partition("=")
        classifier = Classifier.load(Path(file), 1)
        pictures, read_us = drawn(Path(source))
        found.append({"data": Path(source).name, "file": Path(file).name, "read_us": read_us, **measure(classifier, pictures)})
        if given.enlarged:
            width, height = map(int, given.enlarged.split("x"))
            found.append(
                {"data": f"{Path(source).name} enlarged", "file": Path(file).name, "read_us": None,
                 **measure(classifier, [enlarged(data, width, height) for data in pictures[:ENLARGED]])}
            )  # fmt: skip
    result: dict[str, Any] = {}
    if found:
        source, _, file = given.pairs[0].partition("=")
        rows = row_bytes(Path(source), Classifier.load(Path(file), 1))
        result = {"machine": vars(this_machine()), "rounds": ROUNDS, "classify": found, "row_bytes": rows}
    if given.parts:
        result["scheduler"] = {"machine": vars(this_machine()), **scheduler(given.parts)}
    print(json.dumps(result, indent=2))
    if given.out:
        known = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        write_json(given.out, {**known, **result})


def drawn(source: Path) -> tuple[list[bytes], float]:
    """Pictures from all of the data, and the CPU time of reading one, in microseconds."""
    catalogue = scan(source)
    read = bytes_reader(catalogue)
    chosen = np.random.RandomState(0).choice(len(catalogue), PICTURES, replace=False).tolist()
    pictures = [read(i) for i in chosen]
    return pictures, median_us([lambda: dropped(read, chosen)], PICTURES)[0]


def enlarged(data: bytes, width: int, height: int) -> bytes:
    """The picture as a JPEG of that size."""
    larger = cv2.resize(decode(data), (width, height), interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(".jpg", larger, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1])


def measure(classifier: Classifier, pictures: Sequence[bytes]) -> dict[str, Any]:
    """Microseconds of CPU and bytes, each of one picture."""
    spec, engine = classifier.card.image, classifier.engine
    frames = [decode(data) for data in pictures]
    inputs = [prepare(frame, spec)[None] for frame in frames]
    named = [(f"train/class/{number:08d}.jpg", data) for number, data in enumerate(pictures)]
    stages: list[Callable[[], object]] = [
        lambda: dropped(decode, pictures),
        lambda: dropped(lambda frame: prepare(frame, spec), frames),
        lambda: dropped(engine.infer, inputs),
        lambda: answer(classifier, named, TOP),
    ]
    decode_us, resize_us, invoke_us, whole_us = median_us(stages, len(pictures))
    return {
        "pictures": len(pictures),
        "pixels": round(statistics.mean(frame.shape[0] * frame.shape[1] for frame in frames)),
        "bytes": round(statistics.mean(map(len, pictures))),
        "input_bytes": inputs[0].nbytes,
        "decode_us": decode_us,
        "resize_us": resize_us,
        "invoke_us": invoke_us,
        "whole_us": whole_us,
    }


def median_us(calls: Sequence[Callable[[], object]], count: int) -> list[float]:
    """CPU time of each call for one of its `count` pictures, in microseconds; the calls take turns."""
    for call in calls:
        call()
    rounds = []
    for _ in range(ROUNDS):
        spent = []
        for call in calls:
            start = time.process_time()
            call()
            spent.append((time.process_time() - start) / count * 1e6)
        rounds.append(spent)
    return [round(statistics.median(column), 2) for column in zip(*rounds, strict=True)]


def dropped(call: Callable[[Any], object], values: Sequence[Any]) -> None:
    """Call for each, keeping no result: memory that is kept costs time that a worker does not spend."""
    for value in values:
        call(value)


def row_bytes(source: Path, classifier: Classifier) -> float:
    """What an answer takes in a Parquet file of ROWS."""
    catalogue = scan(source)
    read = bytes_reader(catalogue)
    batch = answer(classifier, ((catalogue.names[i], read(i)) for i in range(0, len(catalogue), len(catalogue) // ROWS)), TOP)
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_batches([batch]), sink)
    return round(float(sink.getvalue().size / batch.num_rows), 1)


class Nothing:
    """An actor that answers at once."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return batch


def scheduler(parts: int) -> dict[str, Any]:
    """What handing out one part costs the driver, in milliseconds of its CPU; and parts a second with two actors here."""
    began = time.perf_counter()
    with connect(None, cpus=2):
        import ray.data

        started = time.perf_counter() - began
        ray.data.DataContext.get_current().enable_progress_bars = False

        def handed_out(count: int) -> tuple[float, float]:
            items = ray.data.from_items([{"part": i} for i in range(count)], override_num_blocks=count)
            pool = ray.data.ActorPoolStrategy(min_size=1, max_size=2, initial_size=2)
            wall, spent = time.perf_counter(), time.process_time()
            assert sum(1 for _ in items.map_batches(Nothing, batch_size=1, num_cpus=1, compute=pool).iter_rows()) == count
            return time.perf_counter() - wall, time.process_time() - spent

        few, many = handed_out(parts // 10), handed_out(parts)
    more = parts - parts // 10
    return {
        "parts": parts,
        "start_s": round(started, 1),
        "driver_cpu_ms": round((many[1] - few[1]) / more * 1e3, 3),
        "parts_a_second": round(more / (many[0] - few[0]), 1),
    }


if __name__ == "__main__":
    main()
