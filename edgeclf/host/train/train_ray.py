"""Training on a Ray cluster: Ray Train starts the workers of a multi-worker training, and starts them again when one is lost."""

from __future__ import annotations

import contextlib
import csv
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeclf.core import files
from edgeclf.core.errors import ClusterError, ConfigError, EdgeclfError
from edgeclf.core.recipe import Recipe, read_recipe
from edgeclf.core.text import printable, redacted
from edgeclf.host.data.batches import check_shares
from edgeclf.host.data.dataset import ingest, open_catalogue, place_of
from edgeclf.host.data.shards.records import records_of
from edgeclf.host.keras import ENVIRONMENT, tensorflow
from edgeclf.host.ray_workers import RETRIES, Setting, room
from edgeclf.host.run import CARD, HISTORY, RECIPE, STARTED, Run, open_run
from edgeclf.host.train import distribute
from edgeclf.host.train import train as stage
from edgeclf.host.train.checkpoint import OnEpoch
from edgeclf.host.train.fitting import Options
from edgeclf.runtime.cluster import TRAINING_PACKAGES, connect

SCRATCH = ".ray"  # in the run folder: what Ray Train writes for itself
LOOK_S = 0.5  # between two looks at the history


@dataclass(frozen=True)
class Scaling:
    """How many processes train together, and what each may use; `address` is the cluster's, None starts one here."""

    count: int
    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class Work:
    """What every worker is given. `folder` must lie on a disk that all machines share; `recipe` and `data` None to go on."""

    folder: Path
    setting: Setting
    options: Options
    recipe: Recipe | None = None
    data: str | None = None


def prepared(recipe: Recipe, data: str, folder: Path | None, options: Options, workers: Scaling) -> Work:
    """A new training, its run folder chosen and made; bad input is found here, before Ray starts. Raises as `train.start`."""
    catalogue = open_catalogue(data)
    if records_of(catalogue):
        ingest(catalogue, recipe.image.spec())
    check_shares(recipe.training.batch_size, workers.count)
    if folder:
        stage.check_free(folder)
    folder = folder or stage.new_folder(f"{recipe.name}-{stage.data_name(data)}")
    options = replace(options, strategy="multi-worker")
    return Work(folder.resolve(), Setting.here(workers.cpus, workers.gpus), options, recipe, place_of(data))


def interrupted(folder: Path | None, workers: Scaling) -> Work:
    """The interrupted training in `folder`, to go on with. Raises ConfigError as `train.resume` does."""
    folder = stage.interrupted(folder)
    options = stage.read_options(folder)
    if options.strategy != "multi-worker":
        raise ConfigError(f"{folder}: was started on one machine; go on without --engine ray")
    return Work(folder.resolve(), Setting.here(workers.cpus, workers.gpus), options)


def recipe_of(work: Work) -> Recipe:
    """What is trained."""
    return work.recipe or read_recipe(work.folder / RECIPE)


def train(work: Work, workers: Scaling, on_epoch: OnEpoch | None = None) -> Run:
    """Run the training on the cluster to its end; `on_epoch` as in `train.train`.

    A lost worker ends the others too, and all go on from the last checkpoint, three times at most. Raises ClusterError when
    the cluster cannot be used or loses workers too often, and what a worker raises.
    """
    tensorflow()  # sets what it reads when Ray Train imports it
    with connect(workers.address, packages=TRAINING_PACKAGES) as ray:
        most = sum(room(node["Resources"], workers.cpus, workers.gpus) for node in ray.nodes() if node["Alive"])
        if most < workers.count:
            raise ConfigError(f"--workers {workers.count}: this cluster has room for {most} of them, of {workers.cpus} CPUs each")
        from ray.train import TrainingFailedError

        with files.locked(work.folder / SCRATCH), _following(work.folder, on_epoch):
            try:
                _trainer(work, workers).fit()
            except TrainingFailedError as error:
                raise _told(error, work.folder) from error
            finally:
                shutil.rmtree(work.folder / SCRATCH, ignore_errors=True)
    if not (work.folder / CARD).is_file():
        raise ClusterError(f"{work.folder}: the workers wrote elsewhere; give an --out on a disk that all machines share")
    return open_run(work.folder)


def _trainer(work: Work, workers: Scaling) -> Any:
    import ray.train
    from ray.train.tensorflow import TensorflowTrainer

    api: Any = ray.train  # its types are still those of the version before
    resources = {"CPU": float(workers.cpus), **({"GPU": workers.gpus} if workers.gpus else {})}
    return TensorflowTrainer(
        run_worker,
        train_loop_config={"work": work},
        scaling_config=api.ScalingConfig(num_workers=workers.count, use_gpu=bool(workers.gpus), resources_per_worker=resources),
        run_config=api.RunConfig(
            name="train",
            storage_path=str(work.folder / SCRATCH),
            failure_config=api.FailureConfig(max_failures=RETRIES),
            worker_runtime_env={"env_vars": ENVIRONMENT},
        ),
    )  # fmt: skip


def run_worker(config: dict[str, Any]) -> None:
    """One worker, from the start or from the checkpoint; Ray Train has set TF_CONFIG."""
    work: Work = config["work"]
    work.setting.settle(work.folder)
    if (work.folder / CARD).exists():
        return
    if (stage.of_worker(work.folder, distribute.worker("multi-worker")) / STARTED).exists():
        job = stage.resume(work.folder)
    else:
        data = work.data or stage.read_provenance(work.folder / STARTED)["data"]
        job = stage.start(recipe_of(work), data, work.folder, options=work.options)
    stage.train(job)


@contextlib.contextmanager
def _following(folder: Path, on_epoch: OnEpoch | None) -> Iterator[None]:
    """Tell of each epoch that worker 0 adds to the history while the block runs."""
    ended, told = threading.Event(), len(_rows(folder))

    def follow() -> None:
        nonlocal told
        while True:
            last = ended.wait(LOOK_S)
            for row in _rows(folder)[told:]:
                told += 1
                if on_epoch:
                    on_epoch(row, read_recipe(folder / RECIPE).training.epochs)
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _rows(folder: Path) -> list[dict[str, float]]:
    with contextlib.suppress(FileNotFoundError), (folder / HISTORY).open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return []


def _told(error: Exception, folder: Path) -> EdgeclfError:
    """What a worker raised, and not what that did to the others; else that workers were lost."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, EdgeclfError) and not isinstance(cause, ClusterError):
                return cause
            cause = getattr(cause, "_base_exc", None) or getattr(cause, "cause", None) or cause.__cause__
    reason = printable(" ".join(redacted(str(failures[0] if failures else error)).split()))[-200:]
    return ClusterError(
        f"{folder}: workers were lost {RETRIES + 1} times ({reason}); go on from the last epoch with: "
        f"edgeclf train --resume --engine ray --out {folder}"
    )
