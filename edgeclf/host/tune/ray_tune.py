"""Tuning on Ray: Ray Tune trains side by side what Optuna proposes, and gives hopeless trials up (ASHA, Li et al. 2020).

The study in the folder is the driver's alone, as with the local engine, so either goes on with what the other began; Ray's
own record of a sweep is thrown away. Ray's OptunaSearch is not used: it counts trials that were given up as finished, numbers
none, and pickles its database.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeclf.core.errors import ClusterError, EdgeclfError, MissingExtra
from edgeclf.core.recipe import Recipe
from edgeclf.host.quiet import hushed
from edgeclf.host.ray_workers import RETRIES, Setting, Workers, lost
from edgeclf.host.train.checkpoint import Row
from edgeclf.host.tune import tune as stage
from edgeclf.host.tune.study import PRUNED_FROM, Asked, Trial

METRIC, EPOCH, TRIAL, RAISED = "val_accuracy", "epoch", "trial", "raised"
HALVING = 3  # one trial in so many goes on at a rung
UNWIND_S = "30"  # Ray Tune waits so long for a trial that was given up, then starts another worker
# Read by Ray Tune: Ctrl-C is ours, and so is what is printed and kept.
SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0",
}  # fmt: skip


def side_by_side(search: stage.Search, workers: Workers) -> None:
    """Run the trials that are left, or until the time is over.

    Workers need the folder of the tuning and its pictures under the same paths as here. Raises what no other trial would
    mend, MissingExtra for a Ray without Tune, and ClusterError when the cluster is lost.
    """
    driver = _Driver(search, workers)
    with _set(SETTINGS), hushed("ray.tune", level=logging.CRITICAL):
        while search.left > 0 and not driver.over:
            before = search.left, driver.unstarted
            _fit(driver)
            if not driver.over and before == (search.left, driver.unstarted):
                raise ClusterError(f"Ray Tune ended with {search.left} trials to go; the same command goes on")
    if driver.error:
        raise driver.error


def _fit(driver: _Driver) -> None:
    """One go of Ray Tune; trials are left over where workers were lost before they had started, which it does not mend."""
    try:
        from ray.tune import TuneError
    except ImportError as error:
        raise MissingExtra.for_extra("cluster", "Ray is installed without what its Tune needs") from error
    with stage.scratch(driver.search.tuning.folder.resolve()) as folder:
        try:
            _tuner(driver, folder).fit()
        except (TuneError, driver.workers.ray.exceptions.RayError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ClusterError(f"Ray Tune stopped: {reason}; the same command goes on") from error
        finally:
            driver.drop_rest()


class _Driver:
    """Stands between Ray Tune, which calls it in one thread, and the study. `asked` holds what is under way, by Ray's names."""

    def __init__(self, search: stage.Search, workers: Workers) -> None:
        self.search, self.workers = search, workers
        self.asked: dict[str, Asked[Recipe]] = {}
        self.epochs: dict[str, int] = {}
        self.error: Exception | None = None
        self.unstarted = 0

    @property
    def over(self) -> bool:
        """Whether everything that is under way is to be stopped."""
        return self.error is not None or self.search.out_of_time

    def propose(self, name: str) -> dict[str, Any]:
        asked = self.search.ask([other.number for other in self.asked.values()])
        self.asked[name], self.epochs[name] = asked, 0
        folder, setting = str(self.search.tuning.folder.resolve()), self.workers.setting()
        return {"number": asked.number, "recipe": asked.proposal, "folder": folder, "setting": setting}

    def note(self, name: str, result: dict[str, Any]) -> None:
        """An epoch, or an error that no other trial would mend. After a lost worker, epochs come again."""
        if RAISED in result:
            self.error = result[RAISED]
        elif result[EPOCH] > self.epochs[name]:
            self.epochs[name] = result[EPOCH]
            self.asked[name].note(result[METRIC], result[EPOCH])
            self._tell_progress()

    def end(self, name: str, result: dict[str, Any]) -> None:
        """A trial that ended, or that the scheduler gave up. Errors are kept, for Ray Tune would swallow them."""
        try:
            self.note(name, result)
            if RAISED not in result:
                self._keep(name, result[TRIAL])
        except Exception as error:
            self.error = error

    def fail(self, name: str, error: Exception | None, failures: int) -> None:
        """A trial that failed as often as it may be run; with fewer failures, its worker was lost before it had started."""
        asked = self.asked[name]
        reason = _reason(error, self.workers.ray)
        if failures <= RETRIES:
            self.unstarted += 1
            if self.unstarted > RETRIES:
                self.error = ClusterError(f"trial {asked.number}: workers are lost before they have started; see Ray's logs")
            self.again(name)
            return
        try:
            self._keep(name, Trial(asked.number, "failed", asked.proposal, None, self.epochs[name], 0.0, 0, reason))
        except Exception as failure:
            self.error = failure

    def again(self, name: str) -> None:
        self.workers.say(f"trial {self.asked[name].number}: its worker was lost or failed; it is run again")

    def drop_rest(self) -> None:
        """What was under way when Ray Tune ended counts for nothing."""
        while self.asked:
            self.search.study.drop(self.asked.popitem()[1])
        self.epochs.clear()

    def _keep(self, name: str, trial: Trial) -> None:
        self.search.tell(self.asked[name], trial)
        del self.asked[name], self.epochs[name]
        self._tell_progress()

    def _tell_progress(self) -> None:
        """A trial that was given up counts as whole."""
        if self.search.on_epoch:
            each = self.search.tuning.recipe.training.epochs
            self.search.on_epoch(len(self.search.found) * each + sum(self.epochs.values()), self.search.trials * each)


def _reason(error: Exception | None, ray: Any) -> str:
    cause = getattr(error, "cause", None) if isinstance(error, ray.exceptions.RayTaskError) else None
    return " ".join(f"{type(cause).__name__}: {cause}".split()) if cause else lost(error or RuntimeError())


def _tuner(driver: _Driver, folder: Path) -> Any:
    from ray import tune

    workers, epochs = driver.workers, driver.search.tuning.recipe.training.epochs
    return tune.Tuner(
        tune.with_resources(train, {"cpu": workers.cpus, "gpu": workers.gpus}),
        tune_config=tune.TuneConfig(
            metric=METRIC, mode="max", search_alg=_proposals(driver), scheduler=_scheduler(epochs),
            num_samples=driver.search.left, max_concurrent_trials=workers.slots, reuse_actors=True,
            trial_name_creator=lambda trial: trial.trial_id, trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="ray", storage_path=str(folder), verbose=0, stop=_stopper(driver), callbacks=[_listener(driver)],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )  # fmt: skip


def _scheduler(epochs: int) -> Any:
    """As the local engine, it gives nothing up in the first third of the epochs, nor at the last."""
    from ray.tune.schedulers import ASHAScheduler

    first = min(epochs, 1 + math.ceil(epochs * PRUNED_FROM))
    return ASHAScheduler(time_attr=EPOCH, max_t=epochs + 1, grace_period=first, reduction_factor=HALVING)


def _proposals(driver: _Driver) -> Any:
    from ray.tune.search import Searcher

    class Proposals(Searcher):  # type: ignore[misc]
        def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
            return True

        def suggest(self, trial_id: str) -> dict[str, Any]:
            return driver.propose(trial_id)

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            driver.note(trial_id, result)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if result:  # else it failed, which the listener hears of with the reason
                driver.end(trial_id, result)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study's database holds everything."""

    return Proposals(METRIC, "max")


def _stopper(driver: _Driver) -> Any:
    from ray.tune import Stopper

    class Over(Stopper):  # type: ignore[misc]
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return driver.over

    return Over()


def _listener(driver: _Driver) -> Any:
    from ray.tune import Callback

    class Listener(Callback):  # type: ignore[misc]
        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            driver.again(trial.trial_id)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            driver.fail(trial.trial_id, trial.get_pickled_error(), trial.num_failures)

    return Listener()


def train(config: dict[str, Any]) -> None:
    """One trial, in a worker: every epoch is reported, and Ray Tune ends this thread inside `report` when it is given up."""
    from ray.tune import report

    setting: Setting = config["setting"]
    folder = Path(config["folder"])
    os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"] = UNWIND_S

    def after_epoch(so_far: Trial, rows: list[Row], epochs: int) -> None:
        if len(rows) < epochs:
            report({EPOCH: len(rows), METRIC: rows[-1]["val_accuracy"], TRIAL: so_far})

    try:
        setting.settle(folder)
        trial = stage.attempt(config["number"], config["recipe"], _tuning(folder), after_epoch)
    except EdgeclfError as error:
        report({EPOCH: 0, METRIC: 0.0, RAISED: error})
    else:
        report({EPOCH: trial.epochs, METRIC: trial.accuracy or 0.0, TRIAL: trial})


@functools.lru_cache(1)
def _tuning(folder: Path) -> stage.Tuning:
    """The same that the driver has, opened once in a worker."""
    return stage.resume(folder)


@contextmanager
def _set(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
