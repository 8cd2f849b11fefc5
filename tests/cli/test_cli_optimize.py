"""The verb optimize, for real on a network that trains in seconds: what it writes, what it says, and its exit codes."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
from colours import train_colours

from edgeclf.core.bundle import read_bundle

WANTED = "tensorflow", "optuna"
pytestmark = pytest.mark.skipif(not all(map(importlib.util.find_spec, WANTED)), reason="needs the extras train and tune")
QUICK = "--trials", 3, "--rounds", 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `runs/colours`, trained in seconds."""
    return train_colours(tmp_path_factory.mktemp("cli-optimize"))


@pytest.fixture(scope="module")
def searched(trained):
    """What the module's first search left: a copy of the run, so that others start afresh."""
    shutil.copytree(trained / "runs" / "colours", trained / "runs" / "searched")
    return trained / "runs" / "searched"


def test_one_command_makes_measures_and_writes_the_winner(searched, cli_here):
    """The table and the reason on standard output; the file opens, and its card tells how it was chosen."""
    answer = cli_here("optimize", searched, "--max-drop", 30, *QUICK)
    assert answer.code == 0, answer.text
    assert "file 3/3" in answer.stderr
    assert "3 of 3 files hold --max-drop 30" in answer.stdout
    (winner,) = searched.glob("searched-optimized-*.tflite")
    record = read_bundle(winner).card.provenance["optimize"]
    assert (record["considered"], record["limits"]["drop"], record["part"]) == (3, 0.3, "val")
    assert {"optimize.json", "candidates.csv", "pareto.png"} <= {path.name for path in (searched / "optimize").iterdir()}


def test_the_same_command_goes_on_and_json_is_the_document(searched, cli_here):
    """Two more files are made, three are not made again."""
    answer = cli_here("optimize", searched, "--trials", 5, "--rounds", 6, "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)
    assert found == json.loads((searched / "optimize" / "optimize.json").read_text())
    assert [row["trial"] for row in found["candidates"]] == [1, 2, 3, 4, 5]
    assert "file 4/5" in answer.stderr
    assert "file 3/5" not in answer.stderr
    assert found["exported"]["file_bytes"] == searched.joinpath(found["exported"]["path"]).stat().st_size
    assert found["winner"] in found["pareto"]


def test_limits_that_none_holds_exit_with_7_and_leave_no_file(searched, cli_here, tmp_path):
    """One line names what is nearest; the measurements stay, and are named."""
    shutil.copytree(searched, tmp_path / "colours", ignore=shutil.ignore_patterns("*.tflite", "optimize"))
    answer = cli_here("optimize", tmp_path / "colours", "--max-drop", 0.01, "--max-size-kb", 1, *QUICK)
    assert answer.code == 7
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("edgeclf: none of 3 files holds all limits; --max-drop 0.01: 0 hold it, nearest ")
    assert str(tmp_path / "colours" / "optimize") in last
    assert not list((tmp_path / "colours").glob("*.tflite"))
    assert (tmp_path / "colours" / "optimize" / "pareto.png").is_file()


def test_a_search_looks_at_no_test_picture_before_it_has_a_winner(searched, tmp_path):
    """Only export's own gates do, at the end."""
    from edgeclf.host.data.dataset import Shards
    from edgeclf.host.optimize import optimize
    from edgeclf.host.optimize.choice import Limits
    from edgeclf.host.run import open_run

    shutil.copytree(searched, tmp_path / "colours", ignore=shutil.ignore_patterns("*.tflite", "optimize"))
    taken, real = [], Shards.take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "take", lambda self, rows: taken.extend(np.asarray(rows).tolist()) or real(self, rows))
        found = optimize.optimize(optimize.start(open_run(tmp_path / "colours")), Limits(file_bytes=1), trials=2, rounds=6)
    from edgeclf.host.data.dataset import open_dataset

    assert found.exported is None
    assert taken
    assert not set(open_dataset(found.search.run).parts["test"].tolist()) & set(taken)


def test_a_network_that_was_trained_for_int8_becomes_the_winner_of_its_run(searched, cli_here, tmp_path):
    """Its file says so, and the report of the first run takes it in."""
    from edgeclf.host.optimize import optimize
    from edgeclf.host.optimize import trial as optimize_trial
    from edgeclf.host.optimize.choice import Limits
    from edgeclf.host.optimize.space import Configuration, Network
    from edgeclf.host.run import open_run

    shutil.copytree(searched, tmp_path / "colours", ignore=shutil.ignore_patterns("*.tflite", "optimize"))
    search = optimize.start(open_run(tmp_path / "colours"), ["qat"], epochs=1)
    wanted = Configuration("int8", "trained", "plain", network=Network(qat=True))
    with pytest.MonkeyPatch.context() as patch:  # Optuna's choice is another test's business
        patch.setattr(optimize.Study, "ask", lambda self, number, known: None if known else _only(self, wanted))
        found = optimize.optimize(search, Limits(), trials=1, rounds=6)
        again = []
        patch.setattr(optimize_trial.compress, "compress", lambda *given: again.append(given))
        optimize.optimize(search, Limits(), trials=1, rounds=6)
    assert found.file.path.name == "colours-optimized-int8-qat.tflite"
    assert not again
    assert cli_here("report", tmp_path / "colours", "--rounds", 1).code == 0
    report = json.loads((tmp_path / "colours" / "report.json").read_text())
    assert [(v["name"], v["named_right"]) for v in report["variants"]] == [("optimized-int8-qat", True)]


def _only(study, wanted):
    """That file, as the study would ask for it."""
    study.handle.enqueue_trial(study.points[wanted])
    return study._asked(1)


def test_another_board_is_told_in_a_line_and_ranked_by_time_where_it_is_not_emulated(searched, cli_here, tmp_path, monkeypatch):
    """Nothing is converted from one machine's time to another's."""
    shutil.copytree(searched, tmp_path / "colours", ignore=shutil.ignore_patterns("*.tflite"))
    cached = searched / "optimize" / "structures"
    assert list(cached.glob("*.tflite"))
    monkeypatch.setattr("edgeclf.host.report.emulate.default_home", lambda: tmp_path / "nowhere")
    answer = cli_here("optimize", tmp_path / "colours", "--device", "pi4", "--max-latency-ms", 1000, *QUICK, "--json")
    assert answer.code == 0, answer.text
    assert "latency of raspberry-pi-4 cannot be measured here, so --max-latency-ms 1000 is judged on this" in answer.stderr
    assert json.loads(answer.stdout)["ranked_by"] == "p50 on this machine"
    assert "file 1/" not in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-drop", 0], "--max-drop 0"),
        (["--max-size-kb", -3], "--max-size-kb -3: must be above 0"),
        (["--max-latency-ms", 0], "--max-latency-ms 0: must be above 0"),
        (["--device", "pi6"], "pi6"),
        (["--epochs", 3], "--epochs 3: is about what --train trains"),
        (["--out", "."], "holds other files and no optimize"),
        (["--gpus-per-trial", 1], "--gpus-per-trial 1: is about Ray; give --engine ray too"),
    ],
)
def test_what_cannot_work_exits_with_2_in_one_line(trained, cli_here, arguments, says):
    """And nothing is searched."""
    answer = cli_here("optimize", "runs/colours", *arguments, cwd=trained)
    assert answer.code == 2, answer.text
    assert says in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (trained / "runs" / "colours" / "optimize").exists()
