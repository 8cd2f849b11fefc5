"""Optimize on Ray: networks are trained, and files made and scored, side by side; the clock is watched here, with workers idle.

Files come in batches, for Optuna learns from times too: it hears of a batch when its new structures were timed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from edgeclf.core.card import Io
from edgeclf.core.errors import EdgeclfError, MissingExtra, StorageError
from edgeclf.host.optimize import optimize as stage
from edgeclf.host.optimize import trial as optimize_trial
from edgeclf.host.optimize.space import Configuration, Network
from edgeclf.host.optimize.study import Trial
from edgeclf.host.optimize.trial import Bench, Made
from edgeclf.host.ray_workers import Setting, Workers
from edgeclf.host.run import CARD, open_run
from edgeclf.host.tune.study import Asked

EACH = 2  # files of a batch for each worker: fewer, and workers wait for the slowest; more, and Optuna proposes blindly
OPEN = 2  # networks that a worker keeps ready

Outcome: TypeAlias = tuple[Made, float] | EdgeclfError
"""A file and the seconds that it took, or why there is none."""


def side_by_side(session: stage.Session, workers: Workers) -> None:
    """Make, score and time what is left, or until the time is over.

    Workers need the folders of the run and of the search, and the pictures, under the same paths as here.
    """
    while batch := session.ask(EACH * workers.slots):
        left = list(batch)
        try:
            for asked, outcome in zip(batch, _outcomes(session, batch, workers), strict=True):
                session.tell(asked, _trial(session, asked, outcome))
                left.remove(asked)
        finally:
            for asked in left:
                session.study.drop(asked)


def _trial(session: stage.Session, asked: Asked[Configuration], outcome: Outcome) -> Trial:
    if isinstance(outcome, EdgeclfError):
        return stage.failed(asked, outcome, 0.0)
    made, seconds = outcome
    return Trial(
        asked.number, "done", asked.proposal, seconds, **vars(made), relative_time=session.known[made.structure]
    )  # fmt: skip


def _outcomes(session: stage.Session, batch: Sequence[Asked[Configuration]], workers: Workers) -> list[Outcome]:
    """What came of each, with its structure timed once all are made."""
    _train(session, batch, workers)
    task, search, failed = workers.task(make), session.search, session.benches.failed
    calls = {asked.number: (search, asked.proposal, workers.setting()) for asked in batch if asked.proposal.network not in failed}
    made = _gather(task, calls, workers, "file")
    outcomes: list[Outcome] = [made.get(asked.number) or failed[asked.proposal.network] for asked in batch]
    for outcome in outcomes:
        if isinstance(outcome, tuple) and outcome[0].structure not in session.known:
            structure, bench = outcome[0].structure, session.benches.own
            session.known[structure] = optimize_trial.relative_time(
                search.folder / stage.STRUCTURES, structure, session.benches.float32, bench.setting
            )
    return outcomes


def _train(session: stage.Session, batch: Sequence[Asked[Configuration]], workers: Workers) -> None:
    """Train the networks of a batch that are not there yet; what fails is kept in `benches.failed`."""
    search, failed = session.search, session.benches.failed
    networks = dict.fromkeys(asked.proposal.network for asked in batch)
    missing = [
        network
        for network in networks
        if network.name and network not in failed and not (search.folder_of(network) / CARD).is_file()
    ]
    for network in missing:
        session.watch.on_network(network)
    done = _gather(workers.task(train), {n: (search, n, workers.setting()) for n in missing}, workers, "network")
    failed.update({network: error for network, error in done.items() if isinstance(error, EdgeclfError)})


def _gather(task: Any, calls: dict[Any, tuple[Any, ...]], workers: Workers, what: str) -> dict[Any, Any]:
    """The results of these calls side by side, or their errors; those that no other call would mend are raised."""
    references = {task.remote(*arguments): key for key, arguments in calls.items()}
    found = {}
    with workers.cancelling(references):
        for reference in list(references):
            key = references[reference]
            try:
                found[key] = workers.result(reference, f"{what} {getattr(key, 'name', key)}")
            except (StorageError, MissingExtra):
                raise
            except EdgeclfError as error:
                found[key] = error
            del references[reference]
    return found


def train(search: stage.Search, network: Network, setting: Setting) -> None:
    """One network, in a worker; it goes on where a lost one stopped."""
    setting.settle(search.folder)
    search.network(network, stage.Watch())


def make(search: stage.Search, wanted: Configuration, setting: Setting) -> tuple[Made, float]:
    """One file, in a worker."""
    setting.settle(search.folder)
    began = time.monotonic()
    run = search.folder_of(wanted.network) if wanted.network.name else search.run.folder
    made = optimize_trial.make(_bench(run.resolve(), search.io), wanted, search.folder / stage.STRUCTURES)
    return made, round(time.monotonic() - began, 1)


@functools.lru_cache(OPEN)
def _bench(run: Path, io: Io) -> Bench:
    return optimize_trial.open_bench(open_run(run), io)
