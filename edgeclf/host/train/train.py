"""Training: a recipe and a data set in, a run folder out."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeclf.core import config, files
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, StorageError
from edgeclf.core.progress import Bar, Report, no_bar
from edgeclf.core.recipe import Recipe, override, read_recipe
from edgeclf.core.text import redacted
from edgeclf.host.data.batches import check_shares
from edgeclf.host.data.dataset import Dataset, make_dataset, open_catalogue, place_of, reopen, split_of
from edgeclf.host.data.shards.records import records_of
from edgeclf.host.full_model import measure
from edgeclf.host.run import CARD, CURVES, HISTORY, MODEL, RECIPE, RUNS, SPLIT, STARTED, Run, open_run, sha256_of
from edgeclf.host.train import adversarial, batch_search, custom, distribute, precision
from edgeclf.host.train.checkpoint import CHECKPOINT, OnEpoch, State
from edgeclf.host.train.fitting import Listeners, Options, fit, startable

_PACKAGES = ("edgeclf", "tensorflow", "tf-keras", "numpy", "opencv-python")


@dataclass(frozen=True)
class Job:
    """One training: where it writes, what it trains, on what. `provenance` goes into the model card."""

    folder: Path
    recipe: Recipe
    dataset: Dataset
    provenance: dict[str, Any]
    options: Options = field(default_factory=Options)


def start(
    recipe: Recipe,
    data: str,
    folder: Path | None = None,
    progress: Report | None = None,
    options: Options | None = None,
    say: Callable[[str], None] = lambda message: None,
    bar: Bar = no_bar,
) -> Job:
    """Ingest `data` and lay out a new run folder (default `runs/RECIPE-DATA`, numbered when taken).

    A batch size of 0 becomes the one that trains fastest here, precision "auto" what this machine computes fastest in.
    Trained weights that the recipe wants are looked up, and downloaded where Keras' cache lacks them: `say` announces that,
    `bar` shows it. Raises ConfigError when `folder` already holds a run, DataError for unusable pictures, ModelError for
    unusable weights.
    """
    options = options or Options()
    folder = _worker_folder(folder, options, recipe)
    if folder:
        check_free(folder)
    distribute.strategy_of(options.strategy)
    catalogue = open_catalogue(data)
    options, started_from = startable(recipe, len(catalogue.labels), options, say, bar)
    split = split_of(catalogue, recipe)
    dataset = make_dataset(catalogue, recipe, split, progress)
    provenance = {
        "data": place_of(data),
        "fingerprint": dataset.catalogue.fingerprint,
        "split": split,
        "recipe": recipe.name,
        "seed": recipe.training.seed,
        "options": asdict(options),
        "weights": started_from,
        **new_provenance(),
    }
    recipe = _settled(recipe, dataset)
    folder = folder or new_folder(f"{recipe.name}-{data_name(data)}")
    with files.locked(folder):
        check_free(folder)  # another may have started there while this one read pictures
        recipe = custom.keep(recipe, folder)
        files.write_text(folder / RECIPE, config.to_toml(recipe))
        files.write_json(folder / SPLIT, named_split(dataset))
        files.write_json(folder / STARTED, provenance)
    return Job(folder, recipe, dataset, provenance, options)


def new_provenance() -> dict[str, Any]:
    """What the card says of every run that is made now: versions, command line, time."""
    return {
        "versions": _versions(),
        "command": redacted(shlex.join(["edgeclf", *sys.argv[1:]])),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _worker_folder(folder: Path | None, options: Options, recipe: Recipe) -> Path | None:
    """Where this process writes: the run folder, or beside it for every worker but the chief."""
    worker = distribute.worker(options.strategy)
    if folder is None and worker.count > 1:
        raise ConfigError("several workers need --out, so that all know the run folder")
    if worker.count > 1:
        check_shares(recipe.training.batch_size, worker.count)
    return folder if folder is None else of_worker(folder, worker)


def of_worker(folder: Path, worker: distribute.Worker) -> Path:
    """Where a worker of the run in `folder` keeps its own: there, or beside it for every worker but the chief."""
    return folder if worker.is_chief else folder.with_name(f"{folder.name}.worker-{worker.index}")


def own_folder(run: Path) -> Path:
    """Where this process goes on: of several workers each but the chief has a folder beside that of the run.

    Such a worker may have finished there when the chief was lost, and then finishes once more.
    """
    own = of_worker(run, distribute.worker("multi-worker")) if os.environ.get("TF_CONFIG") else run
    if own == run or not (own / STARTED).exists():
        return run
    (own / CARD).unlink(missing_ok=True)
    return own


def _settled(recipe: Recipe, dataset: Dataset) -> Recipe:
    """The recipe with what it leaves to this machine filled in."""
    if recipe.training.precision == "auto":
        recipe = override(recipe, training__precision=precision.fastest())
    if recipe.training.batch_size == 0:
        recipe = override(recipe, training__batch_size=batch_search.fastest(recipe, dataset))
    return recipe


def check_free(folder: Path) -> None:
    """Raise ConfigError when the folder holds a run, finished or not."""
    if (folder / STARTED).exists():
        state = "a finished" if (folder / CARD).exists() else "an interrupted"
        raise ConfigError(f"{folder}: already holds {state} run; choose another --out, or --resume an interrupted one")


def resume(folder: Path | None = None, progress: Report | None = None) -> Job:
    """The interrupted training in `folder`, or the newest one under `runs/`.

    Raises ConfigError when there is none or it is finished, DataError when its pictures have changed since.
    """
    folder = own_folder(interrupted(folder))
    provenance, recipe, options = read_provenance(folder / STARTED), read_recipe(folder / RECIPE), read_options(folder)
    distribute.strategy_of(options.strategy)
    dataset = reopen(provenance, recipe, "this training started; restore it, or start a new run", progress)
    return Job(folder, recipe, dataset, provenance, options)


def interrupted(folder: Path | None) -> Path:
    """The folder of an interrupted training: that one, or the newest one under `runs/`. Raises ConfigError when it is none."""
    if folder is None:
        candidates = [p.parent for p in RUNS.glob(f"*/{STARTED}") if not (p.parent / CARD).exists()]
        if not candidates:
            raise ConfigError(f"no interrupted run under {RUNS}/; give its folder with --out")
        folder = max(candidates, key=lambda p: (p / STARTED).stat().st_mtime)
    if (folder / CARD).exists():
        raise ConfigError(f"{folder}: is finished; nothing to resume")
    if not (own_folder(folder) / STARTED).exists():
        raise ConfigError(f"{folder}: holds no interrupted run")
    if "compressed_from" in read_provenance(own_folder(folder) / STARTED):
        raise ConfigError(f"{folder}: holds an interrupted compression; go on with it: edgeclf compress --resume --out {folder}")
    return folder


def read_options(folder: Path) -> Options:
    """How the interrupted training in `folder` runs. Raises ConfigError."""
    return config.build(Options, read_provenance(folder / STARTED).get("options", {}), str(folder / STARTED))


def read_provenance(path: Path) -> dict[str, Any]:
    """What a run was started from. Raises ConfigError when the file does not say it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and {"data", "fingerprint", "split"} <= found.keys():
            return found
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); start a new run") from error
    raise ConfigError(f"{path}: does not say what was trained on; start a new run")


def train(job: Job, on_epoch: OnEpoch | None = None, on_step: Report | None = None, on_frozen: OnEpoch | None = None) -> Run:
    """Train to the last epoch, from the checkpoint where there is one, and finish the run folder.

    Seeded: the same job gives the same pictures in the same order, interrupted or not. `on_epoch(row, epochs)` gets
    each row of the history, `on_step(done, total)` the steps of the epoch under way, `on_frozen` the rows of a first stage
    on a frozen network. Raises EdgeclfError when the loss stops being a number; the checkpoint then holds the last good
    weights. Raises ConfigError when another process trains in the same folder.
    """
    with files.locked(job.folder):
        listeners = Listeners(on_epoch, on_step, on_frozen)
        return _finish(job, *fit(job.recipe, job.dataset, job.folder, job.options, listeners))


def _finish(job: Job, model: Any, state: State) -> Run:
    """Write curves, model and, last, the card that makes the run a finished one."""
    from edgeclf.host import plots  # matplotlib, which nothing before this moment needs

    plots.training_curves(job.folder / HISTORY, job.folder / CURVES)
    with files.writing(job.folder / MODEL) as path:
        model.save(path, save_format="keras")
    history, attack = state.history, job.recipe.adversarial
    accuracy = {part: measure(model, job.dataset, part) for part in ("val", "test")}
    if attack.epsilon:
        accuracy["test_attacked"] = adversarial.measure_robust(model, job.dataset, "test", attack)
    card = ModelCard(
        name=job.recipe.name,
        labels=job.dataset.labels,
        image=job.recipe.image.spec(),
        outputs="logits",
        provenance={**job.provenance, "epochs": len(history), "seconds": round(sum(r["seconds"] for r in history), 1)},
        accuracy={"model": accuracy},
        sha256=sha256_of(job.folder / MODEL),
    )
    files.write_text(job.folder / CARD, card.to_json())
    for path in (job.folder / CHECKPOINT, *job.folder.glob(f".{Path(CHECKPOINT).stem}-*")):  # also of a killed training
        path.unlink(missing_ok=True)
    return open_run(job.folder)


def named_split(dataset: Dataset) -> dict[str, Any]:
    """The names of the pictures of each part, and those that were skipped with the reason.

    Shards may hold more pictures than anybody reads names of: of these the counts, and the hash of the index that has them.
    """
    if records := records_of(dataset.catalogue):
        parts: dict[str, Any] = {part: len(chosen) for part, chosen in dataset.parts.items()}
        return {"skipped": dataset.shards.skipped, "index_sha256": records.index.digest, **parts}
    names = dataset.catalogue.names
    return {"skipped": dataset.shards.skipped, **{part: [names[i] for i in chosen] for part, chosen in dataset.parts.items()}}


def free_folder(name: str) -> Path:
    """`runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3` … that is not there yet."""
    folder, number = RUNS / name, 2
    while folder.exists():
        folder, number = RUNS / f"{name}-{number}", number + 1
    return folder


def new_folder(name: str) -> Path:
    """As `free_folder`, and made, so that two trainings at once get one each. Raises StorageError."""
    while True:
        folder = free_folder(name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise StorageError(f"{folder}: cannot write: {error.strerror or error}") from error
        return folder


def data_name(data: str) -> str:
    """What a run on that data is called after it: the file's or folder's name without what a path cannot hold."""
    stem = Path(data).resolve().name if not data.isidentifier() else data
    for suffix in (".zip", ".tar", ".npz"):
        stem = stem.removesuffix(suffix)
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in stem) or "data"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
