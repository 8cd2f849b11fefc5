"""Following a training from elsewhere: TensorBoard and MLflow, both going on in the same log when a training is resumed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from edgeclf.core import config, files
from edgeclf.core.errors import ConfigError, MissingExtra, StorageError
from edgeclf.core.recipe import Recipe
from edgeclf.core.text import redacted
from edgeclf.host.keras import tensorflow
from edgeclf.host.quiet import hushed
from edgeclf.host.run import CARD, CURVES, HISTORY, MODEL, RECIPE, Run
from edgeclf.host.train.checkpoint import OnEpoch, Row

STATE = "logs.json"  # in the run folder: where each log lies, and the last epoch in it
EXPERIMENT = "edgeclf"
LONGEST_VALUE, MOST_PARAMETERS = 500, 100  # of MLflow: characters of a parameter, parameters of a request
_TALKATIVE = "mlflow", "alembic"  # they tell of every table of a new database
ARTIFACTS = RECIPE, HISTORY, CURVES, CARD, MODEL

Warn = Callable[[str], None]


def several(*watchers: OnEpoch) -> OnEpoch:
    """One that calls each, in that order; what the first raises, the others do not see."""

    def all_of_them(row: Row, epochs: int) -> None:
        for watcher in watchers:
            watcher(row, epochs)

    return all_of_them


class Log(Protocol):
    """Called after each epoch, then told how the training ended."""

    def __call__(self, row: Row, epochs: int) -> None: ...

    def finish(self, run: Run) -> None:
        """The training is done: its measured accuracy, and its files where the log takes files."""
        ...

    def stop(self, interrupted: bool) -> None:
        """It ended early, by Ctrl-C or by an error; a resumed training goes on in the same log."""
        ...


@contextlib.contextmanager
def following(
    run_folder: Path, recipe: Recipe, tensorboard_folder: Path | None, mlflow_uri: str | None, warn: Warn
) -> Iterator[tuple[Log, ...]]:
    """The logs that are wanted, none to both; each is told when the block is left by an exception.

    Use: `with following(…) as logs: run = train(job, several(epoch_line, *logs))`, then `finish(run)` of each, inside.
    """
    logs: list[Log] = []
    if tensorboard_folder is not None:
        logs.append(tensorboard(tensorboard_folder, run_folder, recipe))
    if mlflow_uri is not None:
        logs.append(mlflow(mlflow_uri, run_folder, recipe, warn))
    try:
        yield tuple(logs)
    except BaseException as error:
        for log in logs:
            log.stop(isinstance(error, KeyboardInterrupt))
        raise


def tensorboard(folder: Path, run_folder: Path, recipe: Recipe) -> Log:
    """Scalars of every epoch, and the recipe as text, in a folder of the run's own under `folder`, for `tensorboard --logdir`.

    Written by TensorFlow alone; to look at them takes the package tensorboard.
    """
    folder = folder.resolve()
    state = _load(run_folder, "tensorboard", {"folder": str(folder)})
    if not state.entry.get("name"):
        state.entry["name"] = _free_name(folder, run_folder.resolve().name)
        state.keep(0)
    return TensorBoardLog(state, recipe)


def mlflow(uri: str, run_folder: Path, recipe: Recipe, warn: Warn = lambda message: None) -> Log:
    """Metrics of every epoch, the recipe as parameters, and at the end the run's files, in the experiment "edgeclf".

    `uri` is a tracking server or, as `sqlite:///FILE`, a database; a user and password in it are used and never shown or
    stored. A server that fails later costs a warning and not the training: what it missed is sent with the next epoch.
    Raises MissingExtra, and ConfigError when the server refuses at the start.
    """
    state = _load(run_folder, "mlflow", {"server": redacted(uri)})
    try:
        client = _client(uri)
        with hushed(*_TALKATIVE):
            run_id = _run_of(client, state.entry.get("run_id"), run_folder.resolve().name, recipe)
    except MissingExtra:
        raise
    except Exception as error:  # of MLflow, or of whatever store the address names
        raise ConfigError(f"--mlflow {redacted(uri)}: {_one_line(error)}") from error
    if run_id != state.entry.get("run_id"):
        state.entry["run_id"] = run_id
        state.keep(0)
    return MlflowLog(state, client, warn)


@dataclass
class _State:
    """One log of a run: where it lies, and the last epoch in it; kept in the run folder."""

    run_folder: Path
    kind: str
    entry: dict[str, Any]

    def missing(self, row: Row) -> list[Row]:
        """What has to be logged once `row` is there: every epoch of the history that the log lacks."""
        rows = {int(r["epoch"]): r for r in [*_history(self.run_folder), row]}
        return [rows[epoch] for epoch in sorted(rows) if epoch > self.entry.get("logged", 0)]

    def keep(self, logged: int) -> None:
        self.entry["logged"] = logged
        files.write_json(self.run_folder / STATE, _entries(self.run_folder) | {self.kind: self.entry})


@dataclass
class TensorBoardLog:
    """See `tensorboard`."""

    state: _State
    recipe: Recipe
    writer: Any = field(init=False)

    def __post_init__(self) -> None:
        entry = self.state.entry
        folder = Path(entry["folder"]) / entry["name"]
        with _storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = tensorflow().summary.create_file_writer(str(folder))
        if not entry.get("logged"):
            self._write("recipe", ["```toml\n" + config.to_toml(self.recipe) + "```"], 0, "text", 2)

    def __call__(self, row: Row, epochs: int) -> None:
        for missing in self.state.missing(row):
            epoch = int(missing["epoch"])
            for name, value in _metrics(missing).items():
                self._write(name, value, epoch, "scalars", 1)
        with _storing(self.state.entry["folder"]):
            self.writer.flush()
        self.state.keep(int(row["epoch"]))

    def finish(self, run: Run) -> None:
        for row in _history(run.folder)[-1:]:
            self(row, int(row["epoch"]))
        for name, value in _final(run).items():
            self._write(name, value, self.state.entry.get("logged", 0), "scalars", 1)
        with _storing(self.state.entry["folder"]):
            self.writer.close()

    def stop(self, interrupted: bool) -> None:
        with contextlib.suppress(tensorflow().errors.OpError):  # what ended the training is told already
            self.writer.close()

    def _write(self, name: str, value: Any, step: int, plugin: str, data_class: int) -> None:
        """As `tf.summary.scalar` and `.text` write, which need the package tensorboard; 1 is a scalar, 2 a tensor."""
        tf = tensorflow()
        kind = tf.compat.v1.SummaryMetadata
        metadata = kind(plugin_data=kind.PluginData(plugin_name=plugin), data_class=data_class)
        with _storing(self.state.entry["folder"]), self.writer.as_default():
            tf.summary.write(name, tf.constant(value), step=step, metadata=metadata)


@contextlib.contextmanager
def _storing(folder: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, tensorflow().errors.OpError) as error:
        raise StorageError(f"{folder}: cannot write: {_one_line(error)}") from error


@dataclass
class MlflowLog:
    """See `mlflow`."""

    state: _State
    client: Any
    warn: Warn

    @property
    def run_id(self) -> str:
        return str(self.state.entry["run_id"])

    def __call__(self, row: Row, epochs: int) -> None:
        with self._forgiving("this epoch is sent with the next"):
            for missing in self.state.missing(row):
                self._send(_metrics(missing), int(missing["epoch"]))
            self.state.keep(int(row["epoch"]))

    def finish(self, run: Run) -> None:
        for row in _history(run.folder)[-1:]:
            self(row, int(row["epoch"]))
        with self._forgiving("the log stays incomplete"):
            self._send(_final(run), self.state.entry.get("logged", 0))
            self.client.set_tag(self.run_id, "fingerprint", str(run.card.provenance.get("fingerprint", "")))
        with self._forgiving("the run's files were not sent"):
            for name in ARTIFACTS:
                if (run.folder / name).is_file():
                    self.client.log_artifact(self.run_id, str(run.folder / name))
        self._end("FINISHED")

    def stop(self, interrupted: bool) -> None:
        self._end("KILLED" if interrupted else "FAILED")

    def _send(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now_ms, step) for name, value in metrics.items()])

    def _end(self, status: str) -> None:
        with self._forgiving(f"its run was not marked as {status.lower()}"):
            self.client.set_terminated(self.run_id, status)

    @contextlib.contextmanager
    def _forgiving(self, consequence: str) -> Iterator[None]:
        """Hours of training are worth more than their log, whatever its store may raise."""
        try:
            yield
        except Exception as error:
            self.warn(f"warning: MLflow: {_one_line(error)}; {consequence}")


def _client(uri: str) -> Any:
    """A client of that server, which neither phones home nor tries for minutes. Raises MissingExtra."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "GIT_PYTHON_REFRESH": "quiet",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtra.for_extra("mlflow", "--mlflow needs MLflow, which is not installed") from error
    with hushed(*_TALKATIVE):
        return MlflowClient(tracking_uri=_without_credentials(uri))


def _without_credentials(uri: str) -> str:
    """For a web server, the user and password go to where MLflow looks for them, so that no message of its shows them."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username or "")
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _run_of(client: Any, known: str | None, name: str, recipe: Recipe) -> str:
    """The id of the MLflow run that is gone on with, or of a new one that holds the recipe."""
    from mlflow.entities import Param

    if known and _goes_on(client, known):
        return known
    experiment = client.get_experiment_by_name(EXPERIMENT)
    number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
    run_id = str(client.create_run(number, run_name=name).info.run_id)
    parameters = [Param(key, value) for key, value in _flat(config.to_table(recipe)).items()]
    client.log_batch(run_id, params=parameters[:MOST_PARAMETERS])
    return run_id


def _goes_on(client: Any, run_id: str) -> bool:
    """Mark a known run as running again; False where this server does not know it."""
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _flat(table: dict[str, Any], above: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in table.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: str(value)[:LONGEST_VALUE]}
    return found


def _metrics(row: Row) -> dict[str, float]:
    """`accuracy` → `accuracy/train`, `val_accuracy` → `accuracy/val`, so that both stand in one figure; the rest as it is."""
    names = {"loss": "loss/train", "accuracy": "accuracy/train", "val_loss": "loss/val", "val_accuracy": "accuracy/val"}
    return {names.get(name, name): float(value) for name, value in row.items() if name != "epoch"}


def _final(run: Run) -> dict[str, float]:
    measured = run.card.accuracy.get("model", {})
    return {f"final/{part}": float(found["top1"]) for part, found in measured.items() if "top1" in found}


def _load(run_folder: Path, kind: str, place: dict[str, str]) -> _State:
    """The state of a log of that kind at that place, empty when the run had none there."""
    entry = _entries(run_folder).get(kind)
    if isinstance(entry, dict) and all(entry.get(key) == value for key, value in place.items()):
        return _State(run_folder, kind, entry)
    return _State(run_folder, kind, dict(place))


def _entries(run_folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((run_folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _history(run_folder: Path) -> list[Row]:
    try:
        with (run_folder / HISTORY).open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError):
        return []


def _free_name(folder: Path, name: str) -> str:
    """A folder there that no other run has written into."""
    free, number = name, 2
    while (folder / free).exists():
        free, number = f"{name}-{number}", number + 1
    return free


def _one_line(error: Exception) -> str:
    return redacted(" ".join(str(error).split()))[:200] or type(error).__name__
