"""Tune, crossval and optimize on Ray: one cluster of two CPUs, tiny networks, workers and drivers killed on the way."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from ray_fakes import Here

from edgeclf.core import config
from edgeclf.core.errors import ClusterError, ConfigError, EdgeclfError, StorageError
from edgeclf.core.recipe import load_recipe, override
from edgeclf.host.optimize import optimize, ray_optimize
from edgeclf.host.ray_workers import Setting, Workers, slots, workers
from edgeclf.host.tune import crossval, ray_folds, ray_tune, tune
from edgeclf.host.tune import files as tune_files
from edgeclf.host.tune.study import DATABASE, Trial, free_number, open_study
from edgeclf.runtime.cluster import connect
from edgeclf.runtime.engine import cores

pytest.importorskip("optuna")
ray = pytest.importorskip("ray")
PATIENCE_S = 600
KEPT = {"tune.json", "best.toml", "trials.csv", "settings.json", "history.png", "slices.png", DATABASE}


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A folder with pictures that a tiny network learns, red against blue noise, and its recipe; three epochs."""
    top, random, y = tmp_path_factory.mktemp("ray"), np.random.RandomState(0), np.arange(120) % 2
    x = random.randint(0, 120, (120, 8, 8, 3)).astype(np.uint8)
    x[np.arange(120), :, :, 2 * y] += 100
    np.savez(top / "colours.npz", x=x, y=y, labels=np.array(["red", "blue"]))
    recipe = override(load_recipe("compact-digits"), image__size=8, training__epochs=3, training__batch_size=16)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [4, 8]}))
    (top / "tiny.toml").write_text(config.to_toml(dataclasses.replace(recipe, name="tiny")))
    return top


@pytest.fixture(scope="module")
def recipe(top):
    return load_recipe(str(top / "tiny.toml"))


@pytest.fixture(scope="module")
def lost():
    """What was said of lost workers."""
    return []


@pytest.fixture(scope="module")
def cluster(lost):
    """Two workers, as eager as this process: Ray would let them wait for every other program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        with connect(None, cpus=2), workers(None, 1, say=lost.append) as found:
            yield found


def _kill_a_worker(doing):
    """End one of this session's workers that is at work on what its title says; whether there was one."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command, around = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
            if command.startswith(b"ray::" + doing) and os.environ["EDGECLF_CACHE"].encode() in around:
                os.kill(int(place.name), signal.SIGKILL)
                return True
    return False


def _within_patience(happened):
    """Wait for it."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class Killer:
    """Reports progress, and kills a worker the first time that there is some."""

    def __init__(self, doing):
        self.doing, self.killed, self.seen = doing, False, []

    def __call__(self, done, total):
        self.seen.append((done, total))
        self.killed = self.killed or (done > 0 and _kill_a_worker(self.doing))


@pytest.mark.parametrize(
    ("machines", "wanted", "found"),
    [
        ([{"CPU": 8.0}, {"CPU": 3.0}], (2, 0), 5),
        ([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}], (1, 0.25), 4),
        ([{"CPU": 2.0, "GPU": 4.0}], (1, 1), 2),
    ],
)
def test_slots_are_what_fits_on_each_machine(machines, wanted, found):
    """Work does not spread over machines; the scarcer of CPUs and GPUs decides."""
    assert slots(machines, *wanted) == found


@pytest.mark.parametrize(
    ("machines", "wanted", "says"),
    [
        ([{"CPU": 2.0}, {"CPU": 4.0}], (5, 0), "--cpus-per-trial 5: no machine of this cluster has more than 4 CPUs"),
        ([{"CPU": 2.0}], (1, 0.5), r"--gpus-per-trial 0\.5: no machine of this cluster has more than 0 GPUs"),
        ([{"CPU": 9.0}, {"CPU": 1.0, "GPU": 1.0}], (2, 1), "no machine of this cluster with so many GPUs has 2 CPUs"),
    ],
)
def test_what_fits_nowhere_is_refused_rather_than_waited_for(machines, wanted, says):
    """Ray itself would wait for a machine that never comes."""
    with pytest.raises(ConfigError, match=says):
        slots(machines, *wanted)


def test_a_worker_keeps_to_its_cpus_and_works_where_the_driver_does(tmp_path, monkeypatch):
    """Relative paths and the command in a card mean what the user typed."""
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "argv", ["worker"])
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "PYTHON_CPU_COUNT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "99")
    Setting(str(tmp_path), ("edgeclf", "tune"), 3).settle(tmp_path)
    assert (Path.cwd(), sys.argv, cores(), os.environ["TF_NUM_INTRAOP_THREADS"]) == (tmp_path, ["edgeclf", "tune"], 3, "3")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    with pytest.raises(StorageError, match=r"results: is not there on .*; put it on a disk that all machines see"):
        Setting(str(tmp_path), ("edgeclf",), 1).settle(tmp_path / "results")


def test_numbers_fill_the_gaps_that_trials_side_by_side_leave():
    """A killed driver may have kept trial 3 and not trial 2."""
    assert free_number([]) == 1
    assert free_number([1, 3]) == 2
    assert free_number([2, 1]) == 3


def test_an_unreachable_cluster_is_one_line_with_its_address(top, cli):
    """Before any picture is read."""
    answer = cli("tune", "tiny.toml", "nowhere/", "--engine", "ray", "--address", "127.0.0.1:1", cwd=top)
    assert answer.code == ClusterError.exit_code, answer.text
    assert answer.stderr.startswith("edgeclf: 127.0.0.1:1: no Ray cluster can be reached there")
    assert answer.stderr.count("\n") == 1


def test_folds_under_way_count_with_the_epochs_of_their_histories(tmp_path, monkeypatch):
    """Those that are there already are not given to a worker."""
    trained, heard, seen = [], [], []
    monkeypatch.setattr(ray_folds, "_plan", lambda folder: "plan")
    monkeypatch.setattr(crossval, "trained", lambda plan, number: trained.append(number))
    monkeypatch.setattr(Setting, "settle", lambda place, results: None)
    (tmp_path / ".fold-3").mkdir()
    (tmp_path / ".fold-3" / "history.csv").write_text("epoch\n1\n2\n")
    section = types.SimpleNamespace(training=types.SimpleNamespace(epochs=4))
    plan = types.SimpleNamespace(folder=tmp_path, folds=3, recipe=section)
    ray_folds.side_by_side(plan, [2, 3], heard.append, lambda done, total: seen.append((done, total)), Here())
    assert trained == heard == [2, 3]
    assert seen == [(10, 12), (12, 12)]


@pytest.fixture
def driver(top, recipe, tmp_path, monkeypatch):
    """What Ray Tune calls, without Ray: a search for three trials of three epochs."""
    monkeypatch.setattr(tune_files, "write_trials", lambda *given: None)
    tuning = tune.start(recipe, str(top / "colours.npz"), tmp_path / "t")
    tuning.folder.mkdir()
    with open_study(tuning.folder, tuning.recipe, tuning.dimensions) as study:
        search = tune.Search(study, tuning, [], 3, None, None, None)
        yield ray_tune._Driver(search, Workers(ray, 1, 0.0, 2, lambda message: None))


def _result(driver, name, epoch, state, accuracy=0.5):
    asked = driver.asked[name]
    trial = Trial(asked.number, state, asked.proposal, accuracy, epoch, 1.0, 7)
    return {"epoch": epoch, "val_accuracy": accuracy, "trial": trial}


def test_trials_side_by_side_are_told_as_they_end(driver):
    """The one that a scheduler stops is given up, what is left at the end is dropped, and its number is free again."""
    assert [driver.propose(name)["number"] for name in "ab"] == [1, 2]
    driver.note("b", _result(driver, "b", 1, "pruned"))
    driver.end("b", _result(driver, "b", 2, "pruned", 0.25))
    assert driver.propose("c")["number"] == 3
    driver.end("c", _result(driver, "c", 3, "done"))
    driver.drop_rest()
    assert [(t.number, t.state, t.accuracy) for t in driver.search.study.trials()] == [(2, "pruned", 0.25), (3, "done", 0.5)]
    assert driver.search.ask().number == 1
    assert driver.search.study.trials() == driver.search.found


def test_epochs_that_come_again_after_a_lost_worker_are_noted_once(driver):
    """Optuna keeps what it heard first, and warns about more."""
    driver.propose("a")
    for epoch in (1, 2, 1, 2, 3):
        driver.note("a", _result(driver, "a", epoch, "pruned", epoch / 10))
    assert driver.asked["a"].handle.storage.get_trial(driver.asked["a"].handle._trial_id).intermediate_values == {
        1: 0.1, 2: 0.2, 3: 0.3,
    }  # fmt: skip


def test_what_no_other_trial_would_mend_stops_all(driver, monkeypatch):
    """An error of a worker, or of the driver's own disk, which Ray Tune would swallow."""
    driver.propose("a")
    driver.end("a", {"epoch": 0, "val_accuracy": 0.0, "raised": StorageError("disk: full")})
    assert driver.over
    assert str(driver.error) == "disk: full"
    driver.error = None
    monkeypatch.setattr(driver.search.study.handle, "tell", lambda *given, **more: 1 / 0)
    driver.end("a", _result(driver, "a", 3, "done"))
    assert isinstance(driver.error, ZeroDivisionError)


def test_a_trial_that_fails_as_often_as_it_is_run_has_failed_with_the_reason(driver):
    """The exception of the training, or that its worker was lost."""
    for name, error in (
        ("a", ray.exceptions.RayTaskError("train", "…", ValueError("odd\nnumber"))),
        ("b", ray.exceptions.RayActorError()),
    ):
        driver.propose(name)
        driver.fail(name, error, 4)
    reasons = [trial.reason for trial in driver.search.found]
    assert reasons[0] == "ValueError: odd number"
    assert reasons[1].startswith("its worker was lost 4 times")


def test_a_worker_that_is_lost_before_it_has_started_costs_no_trial(driver):
    """Ray Tune runs that one not again; where it happens over and over, the sweep ends."""
    for name in "abcd":
        assert driver.error is None
        driver.propose(name)
        driver.fail(name, ray.exceptions.RayActorError(), 1)
        driver.drop_rest()
        assert driver.search.left == 3
    with pytest.raises(ClusterError, match="lost before they have started"):
        raise driver.error


def test_tuning_survives_a_killed_worker_and_leaves_what_the_local_engine_leaves(
    cluster, top, recipe, tmp_path, lost, monkeypatch
):
    """Its trial is run again; the local engine then goes on in the same folder."""
    tuning, killer = tune.start(recipe, str(top / "colours.npz"), tmp_path / "t #1?"), Killer(b"ImplicitFunc")
    tuned = tune.tune(tuning, 3, on_epoch=killer, workers=cluster)
    assert killer.killed
    assert any("its worker was lost" in message for message in lost)
    assert killer.seen[-1] == (9, 9)
    assert [trial.number for trial in tuned.trials] == [1, 2, 3]
    assert tuned.given.recipe == recipe
    assert {trial.state for trial in tuned.trials} <= {"done", "pruned"}
    assert all(trial.parameters > 0 and trial.seconds > 0 for trial in tuned.trials)
    assert {path.name for path in tuning.folder.iterdir()} == KEPT
    by_ray = json.loads((tuning.folder / "tune.json").read_text())
    more = tune.tune(tune.resume(tuning.folder), 4)
    assert [trial.number for trial in more.trials] == [1, 2, 3, 4]
    local = json.loads((tuning.folder / "tune.json").read_text())
    assert local["trials"][:3] == by_ray["trials"]
    assert local.keys() == by_ray.keys()
    assert [t.keys() for t in local["trials"] if t["state"] == "done"][-1] == by_ray["given"].keys()


def test_trials_that_all_fail_and_an_end_of_time_are_the_same_line_as_here(cluster, top, recipe, tmp_path):
    """A loss that is no number is an answer, and no reason to run a trial again."""
    tuning = tune.start(override(recipe, training__learning_rate=1e30), str(top / "colours.npz"), tmp_path / "wrong")
    with pytest.raises(EdgeclfError, match="no trial came to its end; the last failed: the loss stopped being a number"):
        tune.tune(tuning, 1, workers=cluster)
    with pytest.raises(EdgeclfError, match="within 0 minutes; give more --time"):
        tune.tune(tune.start(recipe, str(top / "colours.npz"), tmp_path / "late"), 1, minutes=0, workers=cluster)


def test_folds_survive_a_killed_worker_and_answer_as_those_of_the_local_engine(cluster, top, recipe, tmp_path, monkeypatch):
    """Each picture once; what is finished is not trained again, by either engine."""
    longer, killer = override(recipe, training__epochs=12), Killer(b"train")
    monkeypatch.setattr(ray_folds, "POLL_S", 0.05)
    plan = crossval.start(longer, str(top / "colours.npz"), 2, tmp_path / "folds")
    heard = []
    done = crossval.crossvalidate(plan, heard.append, killer, cluster)
    assert killer.killed
    assert killer.seen[-1] == (24, 24)
    assert sorted(fold.number for fold in heard) == [1, 2]
    assert [(fold.pictures, fold.epochs) for fold in done.folds] == [(60, 12), (60, 12)]
    assert len(list(csv.DictReader((plan.folder / "predictions.csv").open()))) == 120
    assert {path.name for path in plan.folder.iterdir()} == {
        "crossval.json", "predictions.csv", "fold-1.npz", "fold-2.npz", "settings.json",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crossval, "fit", lambda *given: 1 / 0)
        assert crossval.crossvalidate(crossval.resume(plan.folder)).mean == done.mean


def test_an_error_in_a_fold_is_the_one_line_that_it_is_here(cluster, top, recipe, tmp_path):
    """Raised where the user is, and not run again."""
    diverging = override(recipe, training__learning_rate=1e30)
    plan = crossval.start(diverging, str(top / "colours.npz"), 2, tmp_path / "folds")
    with pytest.raises(EdgeclfError, match=r"\.fold-[12]: the loss stopped being a number") as caught:
        crossval.crossvalidate(plan, workers=cluster)
    assert type(caught.value) is EdgeclfError


def test_a_worker_that_is_always_lost_is_told_in_a_line(cluster, monkeypatch):
    """With what was under way, and how often."""
    dies = cluster.ray.remote(max_retries=0)(lambda: os.kill(os.getpid(), signal.SIGKILL))
    once = types.SimpleNamespace(remote=dies.remote)
    with pytest.raises(ClusterError, match=r"fold 3: its worker was lost 4 times \(killed, or its machine lost\)"):
        cluster.result(once.remote(), "fold 3")


@pytest.fixture(scope="module")
def run(top, recipe):
    """A trained run."""
    from edgeclf.host.train import train as training

    return training.train(training.start(recipe, str(top / "colours.npz"), top / "runs" / "colours"))


def test_files_are_made_side_by_side_and_timed_here(cluster, run, tmp_path):
    """A network is trained once; the local engine goes on with what was measured."""
    search, networks = optimize.start(run, ["qat"], epochs=1, out=tmp_path / "search"), []
    watch = optimize.Watch(on_network=networks.append)
    timed, real = [], ray_optimize.optimize_trial.relative_time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ray_optimize.optimize_trial,
            "relative_time",
            lambda folder, name, *rest: timed.append(name) or real(folder, name, *rest),
        )
        found = optimize.optimize(search, trials=4, rounds=6, watch=watch, workers=cluster)
    assert [trial.number for trial in found.trials] == [1, 2, 3, 4]
    assert len({trial.configuration for trial in found.trials}) == 4
    done = [trial for trial in found.trials if trial.state == "done"]
    assert set(timed) == {trial.structure for trial in done}
    assert len(timed) == len(set(timed))
    assert all(trial.relative_time > 0 and trial.seconds > 0 for trial in done)
    assert {n.name for n in networks} == {t.configuration.network.name for t in found.trials} - {""}
    assert found.file.path.is_file()
    assert {"optimize.json", "candidates.csv", "pareto.png", DATABASE} <= {path.name for path in search.folder.iterdir()}
    more = optimize.optimize(optimize.start(run, ["qat"], epochs=1, out=tmp_path / "search"), trials=5, rounds=6)
    assert more.trials[:4] == found.trials
    assert len(more.trials) == 5


def test_a_network_that_cannot_be_trained_fails_its_files_alone(cluster, run, tmp_path, monkeypatch):
    """With the reason, once; StorageError ends the search."""
    search = optimize.start(run, ["channels"], epochs=1, out=tmp_path / "search")
    raised = ConfigError("too few channels")
    monkeypatch.setattr(ray_optimize, "_gather", lambda task, calls, *rest: dict.fromkeys(calls, raised))
    with pytest.raises(EdgeclfError, match="no file could be made; the last: too few channels"):
        optimize.optimize(search, trials=4, workers=cluster)


def _started(top, cluster, folder, *more):
    """`edgeclf tune --engine ray` in a process of its own, on the same cluster."""
    address = cluster.ray.get_runtime_context().gcs_address
    command = [
        "tune",
        "tiny.toml",
        "colours.npz",
        "--out",
        folder,
        "--trials",
        9,
        "--epochs",
        3,
        "--engine",
        "ray",
        "--address",
        address,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "edgeclf", *map(str, (*command, *more))],
        cwd=top,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _rows(folder):
    with contextlib.suppress(OSError):
        return len((folder / "trials.csv").read_text().splitlines()) - 1
    return 0


def test_an_interrupted_and_a_killed_driver_lose_only_what_was_under_way(cluster, top, tmp_path):
    """Ctrl-C is told in a line; after kill -9 the local engine goes on at once, and every number is there once."""
    folder = tmp_path / "t"
    with _started(top, cluster, folder) as child:
        _within_patience(lambda: _rows(folder) >= 1 or child.poll() is not None)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 130, err
    assert "finished trials are kept; the same command goes on" in err
    assert "Traceback" not in err
    assert out == ""
    kept = _rows(folder)
    with _started(top, cluster, folder) as child:
        _within_patience(lambda: _rows(folder) > kept or child.poll() is not None)
        child.kill()
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    found = tune.tune(tune.resume(folder), _rows(folder) + 1)
    assert [trial.number for trial in found.trials] == list(range(1, len(found.trials) + 1))
    assert found.given is not None
    assert not list(folder.glob(".trial-*"))
