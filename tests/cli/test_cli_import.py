"""The verb import, and what export and report ask of an imported run."""

import importlib.util
import json

import numpy as np
import pytest

from edgeclf.cli.imports import numbers
from edgeclf.core.errors import ConfigError

needs_training = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs the train extra")
LABELS = ["red square", "green disc", "blue cross", "yellow bars"]


@pytest.fixture
def work(tmp_path, fixtures_folder):
    """A folder with a foreign float `.tflite`, its labels, and pictures whose content does not matter."""
    (tmp_path / "foreign.tflite").write_bytes((fixtures_folder / "foreign-float32.tflite").read_bytes())
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    random = np.random.RandomState(0)
    x, y = random.randint(0, 256, (200, 16, 16, 3)).astype(np.uint8), np.arange(200) % 4
    np.savez(tmp_path / "data.npz", x=x, y=y, labels=np.array(sorted(LABELS)))
    return tmp_path


@needs_training
def test_import_export_evaluate_report_and_run_in_a_row(work, cli_here):
    """What each prints last can be typed next."""
    answer = cli_here("import", "foreign.tflite", "--labels", "labels.txt", "--normalize", "0,255", cwd=work)
    assert answer.code == 0, answer.text
    assert "next: edgeclf export runs/foreign --int8 --calibration DATA" in answer.stdout
    answer = cli_here("export", "runs/foreign", "--int8", "--calibration", "data.npz", cwd=work)
    assert answer.code == 0, answer.text
    assert "made elsewhere" in answer.stderr
    file = "runs/foreign/foreign-int8.tflite"
    assert json.loads(cli_here("evaluate", file, "data.npz", "--json").stdout)["accuracy"]["pictures"] < 200
    assert cli_here("report", "runs/foreign", "--rounds", "1").code == 0
    (work / "data.npz").rename(work / "moved.npz")
    assert cli_here("report", "runs/foreign", "--rounds", "1").code == 5
    assert cli_here("report", "runs/foreign", "--rounds", "1", "--data", "moved.npz").code == 0
    assert cli_here("run", file, "--source", "synthetic", "--max-frames", "1").code == 0


@needs_training
def test_json_says_what_was_made(work, cli_here):
    """For scripts: folder, labels, size, and how exactly it answers as before."""
    arguments = [
        "import",
        "foreign.tflite",
        "--labels",
        "labels.txt",
        "--normalize",
        "0,255",
        "--fit",
        "crop",
        "--out",
        "r",
        "--json",
    ]
    found = json.loads(cli_here(*arguments, cwd=work).stdout)
    assert (found["run"], found["labels"], found["image_size"]) == ("r", LABELS, [16, 16])
    assert found["difference"] < 1e-4
    assert json.loads((work / "r" / "card.json").read_text())["image"]["fit"] == "crop"


@needs_training
@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["foreign.tflite", "--normalize", "0,255"], 4, "--labels FILE"),
        (["foreign.tflite", "--labels", "labels.txt"], 4, "--normalize MEAN,STD"),
        (["foreign.tflite", "--labels", "absent.txt"], 4, "absent.txt"),
        (["foreign.tflite", "--labels", "labels.txt", "--normalize", "0,255", "--colour", "grey"], 2, "takes 3 channels"),
        (["absent.keras", "--labels", "labels.txt"], 4, "no such file"),
        (["labels.txt", "--labels", "labels.txt"], 4, "cannot be imported"),
        (["foreign.tflite", "--normalize", "1,2,3"], 2, "two numbers"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(work, cli_here, arguments, code, reason):
    """What, where, and what to do."""
    answer = cli_here("import", *arguments, cwd=work)
    assert (answer.code, answer.stderr.count("\n")) == (code, 1), answer.text
    assert reason in answer.stderr
    assert not (work / "runs").exists()


def test_normalize_is_means_then_stds():
    """One of each, or one of each a channel."""
    assert numbers("127.5,64") == ((127.5,), (64.0,))
    assert numbers("1,2,3,4,5,6") == ((1, 2, 3), (4, 5, 6))
    for bad in ("1", "1,0", "a,b", "nan,1", "1,inf", "1,2,3"):
        with pytest.raises(ConfigError, match="--normalize"):
            numbers(bad)
