"""The engine for clusters: Ray Data hands out parts, its actors answer and write them; what Ray retries replaces itself."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

from edgeclf.core import errors
from edgeclf.core.errors import ClusterError, EdgeclfError, StorageError
from edgeclf.core.text import printable, refusal
from edgeclf.runtime.bulk.job import MODEL, Job, Request, Worker, write_part
from edgeclf.runtime.bulk.local import Answered, Finished, slices
from edgeclf.runtime.bulk.places import REFUSALS
from edgeclf.runtime.cluster import connect

MOST_TASKS = 10_000  # of Ray's; beyond it each takes several parts
COLUMNS = "part", "pictures", "errors", "kind", "message"


class Actor:
    """One interpreter on some machine of the cluster; rows of part and pictures in, what came of them out."""

    def __init__(self, request: Request) -> None:
        """The model is read from the output folder: as an argument it would be lost with the machine that holds it."""
        with contextlib.suppress(OSError):  # a machine without it cannot see the output either, and says so
            os.chdir(request.folder)
        self._out, self._task = request.out, request.task
        self._refused: EdgeclfError | None = None
        try:
            self._worker = Worker(request, _model(request))
        except EdgeclfError as error:
            self._refused = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Answer and write each part. An EdgeclfError comes back as a row, since Ray would wrap it in a traceback."""
        rows = [self._part(*row) for row in zip(batch["part"].tolist(), batch["pictures"].tolist(), strict=True)]
        return {name: list(column) for name, column in zip(COLUMNS, zip(*rows, strict=True), strict=True)}

    def _part(self, number: int, pictures: int) -> tuple[int, int, int, str, str]:
        try:
            if self._refused:
                raise self._refused
            batches = [self._worker.answers(number, *task) for task in slices(pictures, self._task)]
            return number, *write_part(self._out, number, batches), "", ""
        except EdgeclfError as error:
            return number, 0, 0, type(error).__name__, str(error)


def _model(request: Request) -> bytes:
    here = socket.gethostname()
    try:
        data = (request.out / MODEL).read()
    except REFUSALS as error:
        raise StorageError(
            f"{request.out / MODEL}: cannot be read on {here}: {refusal(error)}; give an --out that every machine sees"
        ) from error
    if hashlib.sha256(data).hexdigest() != request.model_sha256:
        raise StorageError(f"{request.out / MODEL}: is not the model of this job on {here}")
    return data


def run(
    job: Job,
    model: bytes,
    todo: Sequence[int],
    address: str | None,
    workers: int | None,
    answered: Answered,
    finished: Finished,
) -> None:
    """Answer the parts `todo` on a cluster: the one at `address`, or one of this machine. `workers` None: one a core.

    Raises ClusterError when no cluster can be used or it fails for good, and what a worker raised.
    """
    with connect(address, cpus=workers if address is None else None) as ray:
        data = _quiet_data()
        cores = int(ray.cluster_resources().get("CPU", 0))
        actors = min(workers or cores, cores, len(todo))
        if not actors:
            raise ClusterError(f"{address or 'Ray'}: the cluster has no CPU to work with")
        (job.out / MODEL).write(model)
        tasks = [{"part": number, "pictures": job.counts[number]} for number in todo]
        answers = data.from_items(tasks, override_num_blocks=min(len(todo), MOST_TASKS)).map_batches(
            Actor,
            batch_size=1,
            fn_constructor_kwargs={"request": job.request},
            num_cpus=1,
            compute=data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        )
        try:
            for row in answers.iter_rows():
                if row["kind"]:
                    raise getattr(errors, row["kind"], EdgeclfError)(row["message"])
                answered(row["pictures"])
                finished(row["part"], row["pictures"], row["errors"])
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise ClusterError(
                f"{address or 'Ray'}: the job failed on the cluster: {printable(lines[-1].strip()[:300])}"
            ) from error
    if missing := set(todo) - job.done():
        raise ClusterError(
            f"{job.out}: {len(missing)} parts were written where this machine cannot see them; "
            "give an --out that all machines of the cluster share"
        )


def _quiet_data() -> Any:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised, and told in one line
    return ray.data
