"""The default engine: one process a core, each with the model opened once and one thread; parts are put together here."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from edgeclf.core.errors import EdgeclfError
from edgeclf.runtime.bulk.inputs import UNKNOWN
from edgeclf.runtime.bulk.job import Job, Request, Worker, write_part

Finished: TypeAlias = Callable[[int, int, int], None]
"""Called as `finished(part, pictures, errors)` for each part that was written."""
Answered: TypeAlias = Callable[[int], None]
"""Called with the number of pictures that were answered, whether or not their part is written yet."""

WRITERS, MOST_WAITING = 4, 32_768  # threads, and answers that wait for a disk that is slower than the network
WAITING = 3  # tasks handed out for each process, so that none waits for the next


@dataclass
class _Part:
    """A part that is being put together: its slices by their first picture."""

    tasks: int
    batches: dict[int, Any] = field(default_factory=dict)


def run(job: Job, model: bytes, todo: Iterable[int], processes: int, answered: Answered, finished: Finished) -> None:
    """Answer the parts `todo` in that many processes. Raises what a worker raised, and EdgeclfError when one was killed."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (job.request, model))
    try:
        _work(pool, job, todo, processes * WAITING, answered, finished)
    except BrokenProcessPool as error:
        raise EdgeclfError(
            f"{job.out}: a worker process was ended by the system (too little memory?); "
            "what is written is kept: give the same command again, with fewer --workers"
        ) from error
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _work(pool: ProcessPoolExecutor, job: Job, todo: Iterable[int], window: int, answered: Answered, finished: Finished) -> None:
    open_parts: dict[int, _Part] = {}
    tasks: dict[Future[Any], tuple[int, int]] = {}
    writes: dict[Future[tuple[int, int]], int] = {}
    waiting = 0
    coming = _slices(job, todo, open_parts)
    with ThreadPoolExecutor(WRITERS) as writer:  # a disk that takes its time must not keep the processes waiting
        while True:
            while len(tasks) < window and waiting < MOST_WAITING and (task := next(coming, None)):
                tasks[_submit(pool, *task)] = task[:2]
            if not tasks and not writes:
                return
            for future in wait([*tasks, *writes], return_when=FIRST_COMPLETED).done:
                if future in writes:
                    pictures, errors = future.result()
                    waiting -= pictures
                    finished(writes.pop(future), pictures, errors)
                    continue
                number, start = tasks.pop(future)
                part, batch = open_parts[number], future.result()
                part.batches[start] = batch
                answered(batch.num_rows)
                if len(part.batches) == part.tasks:
                    del open_parts[number]
                    batches = [part.batches[first] for first in sorted(part.batches)]
                    waiting += sum(one.num_rows for one in batches)
                    writes[writer.submit(write_part, job.out, number, batches)] = number


def slices(count: int, size: int) -> list[tuple[int, int | None]]:
    """(first picture, end) of each task, of `size` pictures, of a part; one of unknown size is one task."""
    return [(start, min(start + size, count)) for start in range(0, count, size)] if count != UNKNOWN else [(0, None)]


def _slices(job: Job, todo: Iterable[int], open_parts: dict[int, _Part]) -> Iterator[tuple[int, int, int | None]]:
    """(part, first picture, end) of each task, of one part after another."""
    for number in todo:
        tasks = slices(job.counts[number], job.request.task)
        open_parts[number] = _Part(len(tasks))
        yield from ((number, *task) for task in tasks)


def _submit(pool: ProcessPoolExecutor, number: int, start: int, stop: int | None) -> Future[Any]:
    """Hand out a task. Processes that are started for it leave Ctrl-C to this one, from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        return pool.submit(_answers, number, start, stop)
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return pool.submit(_answers, number, start, stop)
    finally:
        signal.signal(signal.SIGINT, usual)


_worker: Worker | None = None


def _begin(request: Request, model: bytes) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(request, model)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answers(number: int, start: int, stop: int | None) -> Any:
    assert _worker is not None
    return _worker.answers(number, start, stop)
