"""Logs of a training: what reaches TensorBoard's files and MLflow, also after an interruption, and what never does."""

import contextlib
import csv
import json
import shutil
import sys
import types

import pytest

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, MissingExtra, StorageError
from edgeclf.core.image import ImageSpec
from edgeclf.core.recipe import load_recipe
from edgeclf.core.text import redacted
from edgeclf.host.keras import tensorflow
from edgeclf.host.run import Run
from edgeclf.host.train import logs

RECIPE = load_recipe("compact-digits")
SECRET = "geheim"  # of an address


def _row(epoch):
    return {
        "epoch": epoch, "loss": 1 / epoch, "accuracy": 0.5, "val_loss": 2 / epoch, "val_accuracy": epoch / 8,
        "learning_rate": 0.1, "seconds": 1.0,
    }  # fmt: skip


@pytest.fixture
def run_folder(tmp_path):
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    return tmp_path / "runs" / "photos"


def _epoch(folder, number, *watchers):
    """As training does it: the history is written, then the watchers are called."""
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, _row(1))
        writer.writeheader()
        writer.writerows(_row(i) for i in range(1, number + 1))
    for watcher in watchers:
        watcher(_row(number), 8)


def _finished(folder):
    accuracy = {"model": {"val": {"top1": 0.75}, "test": {"top1": 0.625}}}
    (folder / "recipe.toml").write_text("x")
    return Run(folder, RECIPE, ModelCard("photos", ("a", "b"), ImageSpec(8, 8), accuracy=accuracy))


def _scalars(folder):
    """(tag, step) → value, of all event files, each once."""
    found = {}
    for path in sorted(folder.glob("events*")):
        for event in tensorflow().compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name in ("scalars", ""):
                    assert (value.tag, event.step) not in found, "logged twice"
                    found[value.tag, event.step] = float(tensorflow().make_ndarray(value.tensor))
    return found


def test_several_watchers_are_called_in_order():
    """The first may end the training before the second hears of it."""
    heard = []
    logs.several(lambda row, epochs: heard.append((1, row)), lambda row, epochs: heard.append((2, epochs)))({"epoch": 1}, 5)
    assert heard == [(1, {"epoch": 1}), (2, 5)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"failed: https://ann:{SECRET}@host:5000/api?x=1 refused", "failed: https://host:5000/api?x=1 refused"),
        (f"mysql://ann:{SECRET}/with@slash@db/name", "mysql://db/name"),
        ("sqlite:///logs.db", "sqlite:///logs.db"),
    ],
)
def test_no_password_is_shown(text, shown):
    """Whatever stands between :// and the last @."""
    assert redacted(text) == shown


def test_tensorboard_gets_every_epoch_and_the_recipe_as_it_shows_them(run_folder, tmp_path):
    """Scalars and text in the form of its plugins, in a folder of the run's own."""
    log = logs.tensorboard(tmp_path / "tb", run_folder, RECIPE)
    for epoch in (1, 2):
        _epoch(run_folder, epoch, log)
    log.finish(_finished(run_folder))
    found = _scalars(tmp_path / "tb" / "photos")
    assert found["accuracy/val", 2] == 0.25
    assert found["loss/train", 2] == 0.5
    assert found["final/test", 2] == 0.625
    (path,) = (tmp_path / "tb" / "photos").glob("events*")
    assert b"text" in path.read_bytes()
    assert b'architecture = "compact"' in path.read_bytes()


def test_resumed_training_goes_on_in_the_same_log_without_hole_or_repetition(run_folder, tmp_path):
    """Killed after the checkpoint of epoch 2 and before its line in the log."""
    first = logs.tensorboard(tmp_path / "tb", run_folder, RECIPE)
    _epoch(run_folder, 1, first)
    first.stop(interrupted=True)
    _epoch(run_folder, 2)
    again = logs.tensorboard(tmp_path / "tb", run_folder, RECIPE)
    _epoch(run_folder, 3, again)
    again.stop(interrupted=False)
    assert [step for tag, step in _scalars(tmp_path / "tb" / "photos") if tag == "loss/val"] == [1, 2, 3]


def test_another_run_of_the_same_name_has_a_log_of_its_own(run_folder, tmp_path):
    """Else the curves of both would be drawn as one."""
    logs.tensorboard(tmp_path / "tb", run_folder, RECIPE).stop(False)
    (run_folder / logs.STATE).unlink()
    logs.tensorboard(tmp_path / "tb", run_folder, RECIPE).stop(False)
    assert {path.name for path in (tmp_path / "tb").iterdir()} == {"photos", "photos-2"}


def test_folder_that_cannot_be_written_is_one_line(run_folder, tmp_path):
    """A file stands where the folder should be."""
    (tmp_path / "tb").write_text("x")
    with pytest.raises(StorageError, match="tb"):
        logs.tensorboard(tmp_path / "tb", run_folder, RECIPE)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """A database that MLflow has laid out, which takes a second."""
    pytest.importorskip("mlflow")
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    _client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def database(empty_database, tmp_path, monkeypatch):
    """The address of an empty database in a folder that is also where artefacts go."""
    monkeypatch.chdir(tmp_path)
    for name in ("mlflow.db", "other.db"):
        shutil.copy(empty_database, tmp_path / name)
    return f"sqlite:///{tmp_path}/mlflow.db"


def _client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def test_mlflow_gets_recipe_epochs_results_and_files_in_one_run_also_when_resumed(run_folder, database, capfd):
    """Interrupted after epoch 1, and epoch 2 was never sent; nothing is said on the terminal."""
    with contextlib.suppress(KeyboardInterrupt), logs.following(run_folder, RECIPE, None, database, print) as (log,):
        _epoch(run_folder, 1, log)
        raise KeyboardInterrupt
    assert _client(database).get_run(log.run_id).info.status == "KILLED"
    _epoch(run_folder, 2)
    with logs.following(run_folder, RECIPE, None, database, print) as (again,):
        assert _client(database).get_run(log.run_id).info.status == "RUNNING"
        _epoch(run_folder, 3, again)
        again.finish(_finished(run_folder))
    client, kept = _client(database), _client(database).get_run(log.run_id)
    assert again.run_id == log.run_id
    assert (kept.info.status, kept.info.run_name) == ("FINISHED", "photos")
    assert kept.data.params["training.learning_rate"] == "0.05"
    assert kept.data.metrics["final/test"] == 0.625
    history = [(m.step, m.value) for m in client.get_metric_history(log.run_id, "accuracy/val")]
    assert history == [(1, 0.125), (2, 0.25), (3, 0.375)]
    assert {f.path for f in client.list_artifacts(log.run_id)} == {"history.csv", "recipe.toml"}
    assert capfd.readouterr() == ("", "")


def test_server_without_the_run_gets_a_new_one_with_all_epochs(run_folder, database):
    """As when the database was deleted in between."""
    _epoch(run_folder, 1, logs.mlflow(database, run_folder, RECIPE))
    other = database.replace("mlflow.db", "other.db")
    state = json.loads((run_folder / logs.STATE).read_text())
    state["mlflow"]["server"] = other
    (run_folder / logs.STATE).write_text(json.dumps(state))
    log = logs.mlflow(other, run_folder, RECIPE)
    _epoch(run_folder, 2, log)
    assert [m.step for m in _client(other).get_metric_history(log.run_id, "loss/train")] == [1, 2]


def test_lost_server_costs_a_warning_and_what_it_missed_is_sent_later(run_folder, database):
    """Three epochs, of which the second cannot be sent."""
    said = []
    log = logs.mlflow(database, run_folder, RECIPE, said.append)
    _epoch(run_folder, 1, log)
    real = log.client

    def lost(*arguments, **named):
        raise ConnectionError(f"https://ann:{SECRET}@host is away")

    log.client = types.SimpleNamespace(log_batch=lost, set_terminated=lost)
    _epoch(run_folder, 2, log)
    log.client = real
    _epoch(run_folder, 3, log)
    assert [m.step for m in real.get_metric_history(log.run_id, "loss/train")] == [1, 2, 3]
    assert len(said) == 1
    assert "https://host is away" in said[0]
    assert SECRET not in said[0]


@pytest.mark.parametrize(
    "uri", [f"http://ann:{SECRET}@127.0.0.1:9", f"nonsense://ann:{SECRET}@host/x", "sqlite:////dev/null/x.db"]
)
def test_address_that_cannot_be_used_is_one_line_without_the_password(run_folder, uri, monkeypatch, capfd):
    """At the start, before hours of training; nothing of it is stored."""
    pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="--mlflow") as caught:
        logs.mlflow(uri, run_folder, RECIPE)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SECRET not in "".join(capfd.readouterr())
    assert not any(SECRET in path.read_text() for path in run_folder.iterdir())


def test_without_mlflow_the_extra_is_named(run_folder, monkeypatch):
    """Exit code 6 instead of an import error."""
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(MissingExtra, match=r"edgeclf\[mlflow\]"):
        logs.mlflow("sqlite:///x.db", run_folder, RECIPE)
