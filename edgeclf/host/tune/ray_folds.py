"""Cross-validation on Ray: a task for each fold, run again where its worker is lost, from its last checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeclf.core.progress import Report
from edgeclf.host.ray_workers import Setting, Workers
from edgeclf.host.run import HISTORY
from edgeclf.host.tune import crossval as stage

POLL_S = 1.0  # between two looks at how far the folds are


def side_by_side(
    plan: stage.Plan, numbers: Sequence[int], on_done: Callable[[int], None], on_epoch: Report | None, workers: Workers
) -> None:
    """Train these folds and leave their files; `on_done(number)` is called as each is there.

    Workers need the folder of the cross-validation and its pictures under the same paths as here.
    """
    task, folder, left = workers.task(train), plan.folder.resolve(), set(numbers)
    running = {task.remote(folder, number, workers.setting()): number for number in numbers}
    with workers.cancelling(running):
        while running:
            ready, _ = workers.ray.wait(list(running), timeout=POLL_S)
            for reference in ready:
                number = running.pop(reference)
                workers.result(reference, f"fold {number}")
                left.remove(number)
                on_done(number)
            if on_epoch:
                _tell_progress(plan, left, on_epoch)


def train(folder: Path, number: int, setting: Setting) -> None:
    """One fold, in a worker."""
    setting.settle(folder)
    stage.trained(_plan(folder), number)


@functools.lru_cache(1)
def _plan(folder: Path) -> stage.Plan:
    """The same that the driver has, opened once in a worker."""
    return stage.resume(folder)


def _tell_progress(plan: stage.Plan, left: set[int], on_epoch: Report) -> None:
    """From the histories that folds under way keep beside their checkpoints."""
    epochs = plan.recipe.training.epochs
    under_way = sum(_rows(stage.scratch(plan, number) / HISTORY) for number in left)
    on_epoch((plan.folds - len(left)) * epochs + under_way, plan.folds * epochs)


def _rows(history: Path) -> int:
    try:
        return max(0, len(history.read_text(encoding="utf-8").splitlines()) - 1)
    except OSError:
        return 0
