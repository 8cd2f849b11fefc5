"""Classify in bulk, the whole of it: list, look at what is done, answer the rest with one of the engines, sum up."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgeclf.core.bundle import model_bytes, parse_bundle
from edgeclf.core.errors import ConfigError
from edgeclf.core.progress import Bar, Report, no_bar
from edgeclf.runtime import shipped
from edgeclf.runtime.bulk import local
from edgeclf.runtime.bulk.inputs import roots_of
from edgeclf.runtime.bulk.job import Job, Request, prepared
from edgeclf.runtime.bulk.places import place, shown
from edgeclf.runtime.classifier import Classifier, from_bundle
from edgeclf.runtime.engine import Normalize, cores

EngineName = Literal["local", "ray"]
TASK_S, LEAST_TASK, MOST_TASK = 0.1, 8, 512


@dataclass(frozen=True)
class Summary:
    """What stands in the output now. `answered` of its pictures are of this run, which took `seconds` for them."""

    out: str
    pictures: int
    errors: int
    answered: int
    seconds: float


def classify(
    file: Path | str,
    inputs: Sequence[str],
    out: str,
    engine: EngineName = "local",
    address: str | None = None,
    workers: int | None = None,
    top: int = 5,
    column: str | None = None,
    labels: tuple[str, ...] = (),
    normalize: Normalize | None = None,
    overwrite: bool = False,
    bar: Bar = no_bar,
) -> Summary:
    """Answer every picture of `inputs` with the model in `file`, into the folder of Parquet parts `out`.

    `inputs` and `out` are paths or URLs such as s3://bucket/folder; see `inputs.listing`. `workers` is the number of
    processes, None for one a core. `address` is that of a Ray cluster, for its engine. What `out` already holds of the same
    job is not done again. Raises ModelError, DataError, ConfigError, StorageError, ClusterError and MissingExtra.
    """
    request, model = _request(file, inputs, out, top, column, labels, normalize)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers = {workers}: must be at least 1")
    if address is not None and engine != "ray":
        raise ConfigError("an address is that of a Ray cluster; choose the engine ray too")
    with contextlib.ExitStack() as held:
        with bar("listing the inputs"):
            job = held.enter_context(prepared(request, inputs, overwrite))
            done = job.done()
            tally = _Tally(job, done)
        todo, started = [number for number in range(len(job.counts)) if number not in done], time.monotonic()
        with bar(f"classifying with {Path(request.model).name}") as report:
            tally.report = report
            tally.tell()
            if todo and engine == "ray":
                from edgeclf.runtime.bulk import on_ray

                on_ray.run(job, model, todo, address, workers, tally.answered, tally.finished)
            elif todo:
                local.run(job, model, todo, workers or cores(), tally.answered, tally.finished)
        return Summary(str(request.out), tally.pictures, tally.errors, tally.now, round(time.monotonic() - started, 3))


def _request(
    file: Path | str,
    inputs: Sequence[str],
    out: str,
    top: int,
    column: str | None,
    labels: tuple[str, ...],
    normalize: Normalize | None,
) -> tuple[Request, bytes]:
    """The request, checked as far as that goes without a look at the inputs, and the model's file."""
    twice = next((one for one in inputs if inputs.count(one) > 1), None) if len(set(inputs)) < len(inputs) else None
    if twice is not None:
        raise ConfigError(f"{shown(twice)}: is given twice, so its pictures would be answered twice")
    path = shipped.resolve(file)
    data = model_bytes(path)
    classifier = from_bundle(parse_bundle(data, str(path)), 1, labels, normalize)  # here, where what is wrong with it is one line
    roots, sha256 = roots_of(map(place, inputs)), hashlib.sha256(data).hexdigest()
    return Request(str(path), sha256, roots, place(out), top, column, labels, normalize, task=_task(classifier)), data


def _task(classifier: Classifier) -> int:
    """Pictures that the network answers in TASK_S, within limits: enough to be worth handing out, few enough to end together."""
    blank = np.zeros((1, *classifier.card.image.shape), np.uint8)
    classifier.engine.infer(blank)
    started = time.perf_counter()
    classifier.engine.infer(blank)
    return max(LEAST_TASK, min(MOST_TASK, int(TASK_S / (time.perf_counter() - started))))


class _Tally:
    """Counts pictures, for the bar and for the summary."""

    def __init__(self, job: Job, done: set[int]) -> None:
        sizes = [job.size(number) for number in done]
        self.report: Report = lambda done, total: None
        self.pictures, self.errors = sum(pictures for pictures, _ in sizes), sum(errors for _, errors in sizes)
        self.now = 0
        self._counts = job.counts
        self._shards = [rows for number, (rows, _) in zip(done, sizes, strict=True) if not job.counts[number]]
        self._unread = sum(not count for count in job.counts)
        self._before = self.pictures

    def answered(self, pictures: int) -> None:
        self.now += pictures
        self.tell()

    def finished(self, part: int, pictures: int, errors: int) -> None:
        self.pictures += pictures
        self.errors += errors
        if not self._counts[part]:
            self._shards.append(pictures)

    def tell(self) -> None:
        """Shards that nobody has read are taken to be as large as those that were, on average."""
        unread = self._unread * sum(self._shards) // len(self._shards) if self._shards else 0
        done = self._before + self.now
        self.report(done, max(done, sum(self._counts) + unread))
