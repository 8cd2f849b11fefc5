"""predict, evaluate and bench as a user meets them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeclf.runtime.device.device_report import read

Cli = Callable[..., Any]
NAMES = ("red-square", "green-disc", "blue-cross", "yellow-bars")


@pytest.fixture
def int8(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


@pytest.fixture
def pictures(fixtures_folder: Path) -> Path:
    return fixtures_folder / "pictures"


@pytest.fixture
def data(tmp_path: Path, pictures: Path) -> Path:
    """A folder data set with a test part of one picture a class, and a broken one."""
    for name in NAMES:
        for part, copies in (("train", 3), ("test", 1)):
            folder = tmp_path / "data" / part / name.replace("-", " ")
            folder.mkdir(parents=True)
            for i in range(copies):
                shutil.copy(pictures / f"{name}.png", folder / f"{i}.png")
    (tmp_path / "data" / "test" / "red square" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "data"


def test_predict_answers_each_picture_in_a_line(cli_here: Cli, int8: Path, pictures: Path) -> None:
    """The name, then labels with percentages, likeliest first."""
    answer = cli_here("predict", int8, pictures / "red-square.png", pictures / "green-disc.png", "--top", 2)
    assert answer.code == 0, answer.text
    lines = answer.stdout.splitlines()
    assert lines[0].startswith(f"{pictures / 'red-square.png'}: red square 8")
    assert "green disc" in lines[1]
    assert all(line.count("%") == 2 for line in lines)


def test_predict_goes_on_after_a_broken_picture(cli_here: Cli, int8: Path, pictures: Path) -> None:
    """One line on standard error, exit code 5, and the others are answered."""
    answer = cli_here("predict", int8, pictures / "text.png", pictures / "absent.png", pictures / "red-square.png")
    assert answer.code == 5
    assert len(answer.stdout.splitlines()) == 1
    assert [line.split(": ")[0] for line in answer.stderr.splitlines()] == ["edgeclf", "edgeclf"]


def test_predict_takes_folders(cli_here: Cli, int8: Path, data: Path) -> None:
    """All pictures in them, in the order of their names; a folder without any is an error."""
    answer = cli_here("predict", int8, data / "train")
    assert answer.code == 0, answer.text
    assert len(answer.stdout.splitlines()) == 12
    (data / "empty").mkdir()
    assert cli_here("predict", int8, data / "empty").code == 5


def test_predict_as_json_holds_answers_and_errors(cli_here: Cli, int8: Path, pictures: Path) -> None:
    """One document, so that a script sees which picture failed."""
    answer = cli_here("predict", int8, pictures / "blue-cross.png", pictures / "truncated.jpg", "--json", "--top", 1)
    found = json.loads(answer.stdout)
    assert answer.code == 5
    assert found["images"][0]["predictions"][0]["label"] == "blue cross"
    assert "cut short" in found["images"][1]["error"]


@pytest.mark.parametrize("content", [b"", b"text", b"\x1c\0\0\0TFL3" + bytes(200), b"PK\x03\x04" + bytes(50)])
def test_a_broken_model_is_one_line_and_exit_code_4(content: bytes, cli_here: Cli, tmp_path: Path, pictures: Path) -> None:
    """Whatever it is, without a traceback."""
    path = tmp_path / "broken.tflite"
    path.write_bytes(content)
    answer = cli_here("predict", path, pictures / "red-square.png")
    assert answer.code == 4
    assert answer.stderr.count("\n") == 1
    assert answer.stderr.startswith(f"edgeclf: {path}: ")


def test_an_altered_model_is_refused(cli_here: Cli, tmp_path: Path, int8: Path, pictures: Path) -> None:
    """One bit of a weight: the runtime would load it and answer."""
    data = bytearray(int8.read_bytes())
    data[len(data) // 3] ^= 4
    (tmp_path / "x.tflite").write_bytes(data)
    answer = cli_here("predict", tmp_path / "x.tflite", pictures / "red-square.png")
    assert (answer.code, "altered" in answer.stderr) == (4, True), answer.text


def test_a_foreign_model_asks_for_what_it_lacks_and_then_answers(
    cli_here: Cli, tmp_path: Path, fixtures_folder: Path, pictures: Path
) -> None:
    """Normalisation first, then labels by file."""
    model, picture, labels = fixtures_folder / "foreign-float32.tflite", pictures / "red-square.png", tmp_path / "labels.txt"
    answer = cli_here("predict", model, picture)
    assert (answer.code, "--normalize MEAN,STD" in answer.stderr) == (4, True)
    labels.write_text("red\ngreen\nblue\nyellow\n")
    answer = cli_here("predict", model, picture, "--normalize", "128,128", "--labels", labels)
    assert answer.code == 0, answer.text
    assert ": red " in answer.stdout


@pytest.mark.parametrize("value", ["128", "a,b", "1,2,3", "128,0", "0,-1"])
def test_a_bad_normalisation_is_a_usage_error(value: str, cli_here: Cli, fixtures_folder: Path, pictures: Path) -> None:
    """Exit code 2, with an example or the limit."""
    answer = cli_here("predict", fixtures_folder / "foreign-float32.tflite", pictures / "grey.png", f"--normalize={value}")
    assert answer.code == 2
    assert f"--normalize {value}" in answer.stderr


@pytest.fixture
def limited(tmp_path: Path, int8: Path) -> Path:
    """The int8 fixture with thresholds in its card that only the first two classes can reach."""
    from edgeclf.core.bundle import attach, read_bundle

    bundle = read_bundle(int8)
    assert bundle.card
    (tmp_path / "limited.tflite").write_bytes(attach(bundle.model, replace(bundle.card, thresholds=(0.1, 0.1, 1.0, 1.0))))
    return tmp_path / "limited.tflite"


def test_predict_says_unknown_below_the_threshold_in_the_card(cli_here: Cli, limited: Path, pictures: Path) -> None:
    """With what it would have been in brackets; JSON keeps the list and says whether the first is accepted."""
    red, blue = pictures / "red-square.png", pictures / "blue-cross.png"
    lines = cli_here("predict", limited, red, blue).stdout.splitlines()
    assert lines[0].startswith(f"{red}: red square ")
    assert lines[1].startswith(f"{blue}: unknown (blue cross ")
    found = json.loads(cli_here("predict", limited, red, blue, "--json").stdout)["images"]
    assert [(image["answer"], image["accepted"]) for image in found] == [("red square", True), ("unknown", False)]
    assert found[1]["predictions"][0]["label"] == "blue cross"


def test_predict_leaves_the_thresholds_out_when_told_to(cli_here: Cli, limited: Path, pictures: Path) -> None:
    """As if the card had none."""
    answer = cli_here("predict", limited, pictures / "blue-cross.png", "--no-thresholds")
    assert ": blue cross " in answer.stdout


def test_run_takes_the_thresholds_of_the_card(cli_here: Cli, limited: Path, data: Path) -> None:
    """Unless a threshold is given."""
    summary = json.loads(cli_here("run", limited, "-s", data / "train", "--json").stdout)
    assert summary["labels"] == {"unknown": 6, "green disc": 3, "red square": 3}
    summary = json.loads(cli_here("run", limited, "-s", data / "train", "--json", "--threshold", 0).stdout)
    assert "unknown" not in summary["labels"]


def test_evaluate_says_what_the_thresholds_leave(cli_here: Cli, limited: Path, data: Path) -> None:
    """Two of four classes; accuracy itself is that without thresholds."""
    found = json.loads(cli_here("evaluate", limited, data, "--json").stdout)
    assert (found["accuracy"]["top1"], found["with_thresholds"]["coverage"], found["with_thresholds"]["top1"]) == (1.0, 0.5, 1.0)
    assert found["thresholds"] == [0.1, 0.1, 1.0, 1.0]
    assert "50.00% of the pictures get an answer" in cli_here("evaluate", limited, data).stdout


def test_evaluate_as_json_holds_averages_calibration_and_top_k(cli_here: Cli, int8: Path, data: Path) -> None:
    """Everything a base install can say; no thresholds and no curves here."""
    found = json.loads(cli_here("evaluate", int8, data, "--json").stdout)
    assert set(found["accuracy"]["averages"]) == {"macro", "micro", "weighted"}
    assert found["top_k"] == {"1": 1.0, "2": 1.0, "3": 1.0, "4": 1.0}
    assert 0 < found["calibration"]["ece"] < 0.5
    assert sum(b["pictures"] for b in found["calibration"]["bins"]) == 4
    assert (found["with_thresholds"], found["mixed_up_most"], "curves" in found) == (None, [], False)


def test_evaluate_without_data_says_what_is_missing(cli_here: Cli, int8: Path) -> None:
    """A file that lies in no run's folder."""
    answer = cli_here("evaluate", int8)
    assert (answer.code, "give DATA" in answer.stderr) == (2, True)


def test_evaluate_measures_the_test_folder(cli_here: Cli, int8: Path, data: Path) -> None:
    """Fractions in JSON; the broken picture is listed and counts nowhere."""
    answer = cli_here("evaluate", int8, data, "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)
    assert found["pictures"] == "its test folder"
    assert (found["accuracy"]["top1"], found["accuracy"]["top5"], found["accuracy"]["pictures"]) == (1.0, 1.0, 4)
    assert found["skipped"][0]["picture"] == "test/red square/broken.jpg"
    assert [row["label"] for row in found["accuracy"]["per_class"]] == [n.replace("-", " ") for n in NAMES]
    assert found["runtime"]


def test_evaluate_prints_tables(cli_here: Cli, int8: Path, data: Path) -> None:
    """Interval, per-class figures, confusion; the skipped picture on standard error."""
    answer = cli_here("evaluate", int8, data)
    assert "top-1 100.00% (95% interval 51.01% to 100.00%), top-2 100.00%, top-3 100.00%, top-5 100.00%" in answer.stdout
    for word in ("precision", "recall", "F1", "confusion", "yellow bars", "macro average", "ECE", "mixed up most: nothing"):
        assert word in answer.stdout
    assert "broken.jpg" in answer.stderr


def test_evaluate_takes_a_limit_and_all_pictures_of_unsplit_data(cli_here: Cli, int8: Path, data: Path, tmp_path: Path) -> None:
    """With the warning that they may have been trained on."""
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for path in sorted((data / "train").rglob("*.png")):
            archive.write(path, path.relative_to(data / "train"))
    found = json.loads(cli_here("evaluate", int8, tmp_path / "flat.zip", "--json", "--limit", 8, "--workers", 2).stdout)
    assert found["accuracy"]["pictures"] == 8
    assert "too good a figure" in found["pictures"]


def test_evaluate_names_classes_that_differ(cli_here: Cli, int8: Path, data: Path) -> None:
    """Both sides, exit code 5."""
    for part in ("train", "test"):
        (data / part / "red square").rename(data / part / "rotes Quadrat")
    answer = cli_here("evaluate", int8, data)
    assert answer.code == 5
    assert "'rotes Quadrat' unknown to the model, which knows 'red square' instead" in answer.stderr


def test_evaluate_of_missing_data_is_one_line(cli_here: Cli, int8: Path, tmp_path: Path) -> None:
    """Exit code 5, with what is accepted."""
    answer = cli_here("evaluate", int8, tmp_path / "gone")
    assert (answer.code, "no such folder or file" in answer.stderr) == (5, True)


def test_bench_says_what_it_measured_and_where(cli_here: Cli, int8: Path) -> None:
    """Percentiles for each number of threads, cold start, memory, size, machine and runtime."""
    answer = cli_here("bench", int8, "--seconds", 0.3, "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)
    assert set(found) == {"file", "runtime", "machine", "size", "cold", "timings", "best"}
    assert {"p50_ms", "p90_ms", "p99_ms", "runs"} == set(found["timings"][0]["frame"])
    assert found["cold"]["peak_bytes"] > 1 << 20


def test_bench_prints_a_table(cli_here: Cli, int8: Path) -> None:
    """For the number of threads that was asked for."""
    answer = cli_here("bench", int8, "--seconds", 0.3, "--threads", 1)
    for words in ("frame to label p50", "cold start:", "peak memory", f"{int8.stat().st_size:,} bytes"):
        assert words in answer.stdout
    assert "best:" not in answer.stdout


def test_bench_of_several_files_prints_each_and_refuses_namesakes(cli_here: Cli, int8: Path, tmp_path: Path) -> None:
    """As JSON they are a list; two files of one name could not be told apart."""
    other = Path(shutil.copy(int8, tmp_path / "other.tflite"))
    answer = cli_here("bench", int8, other, "--seconds", 0.2, "--threads", 1, "--json")
    assert [Path(entry["file"]).name for entry in json.loads(answer.stdout)["files"]] == [int8.name, "other.tflite"]
    namesake = Path(shutil.copy(int8, tmp_path))
    assert (answer.code, cli_here("bench", int8, namesake).code) == (0, 2)


def test_bench_writes_a_device_report_with_accuracy(cli_here: Cli, int8: Path, data: Path, tmp_path: Path) -> None:
    """One that is read back, with the digest of the file, every stage, and how many pictures were right."""
    out = tmp_path / "out.json"
    answer = cli_here("bench", int8, "--seconds", 0.2, "--threads", 1, "--device-report", out, "--data", data, "--json")
    assert answer.code == 0, answer.text
    assert json.loads(answer.stdout)["best"] == 1
    assert f"device report: {out}" in answer.stderr
    report = read(out)
    assert [file.file for file in report.files] == [int8.name]
    assert report.files[0].sha256 == hashlib.sha256(int8.read_bytes()).hexdigest()
    assert report.files[0].accuracy is not None
    assert (report.files[0].accuracy.pictures, report.files[0].accuracy.data) == (4, "data")
    assert "top-1" in answer.stderr


def test_bench_asks_for_a_report_when_it_gets_data(cli_here: Cli, int8: Path, data: Path) -> None:
    """Accuracy alone is another verb, which is named."""
    answer = cli_here("bench", int8, "--data", data)
    assert (answer.code, "edgeclf evaluate" in answer.stderr) == (2, True)


def test_bench_takes_the_threads_that_a_live_run_takes(cli_here: Cli, int8: Path) -> None:
    """Measured once, and it says so."""
    answer = cli_here("bench", int8, "--seconds", 0.2, "--threads", "auto", "--json")
    assert answer.code == 0, answer.text
    assert len(json.loads(answer.stdout)["timings"]) == 1
    assert "threads: " in answer.stderr


@pytest.mark.parametrize("threads", ["0", "many", "-1"])
def test_bench_refuses_bad_threads(threads: str, cli_here: Cli, int8: Path) -> None:
    """A number from 1, or sweep."""
    answer = cli_here("bench", int8, f"--threads={threads}")
    assert (answer.code, "expected a number from 1, or sweep" in answer.stderr) == (2, True)


def test_predict_as_a_program_imports_no_training_package_and_is_quiet(int8: Path, pictures: Path) -> None:
    """Standard error stays empty: no greeting of the runtime."""
    code = (
        "import sys; from edgeclf.cli.main import main\n"
        f"sys.argv = ['edgeclf', 'predict', {str(int8)!r}, {str(pictures / 'grey.png')!r}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'tensorflow', 'tf_keras', 'sklearn', 'onnxruntime', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "%" in done.stdout


def test_hidden_pictures_of_a_folder_are_left_out(cli_here: Callable[..., Any], fixtures_folder: Path, tmp_path: Path) -> None:
    """macOS writes `._picture.jpg`, which is none, beside every picture on a card."""
    (tmp_path / "a.png").write_bytes((fixtures_folder / "pictures/grey.png").read_bytes())
    (tmp_path / "._a.png").write_bytes(b"resource fork")
    answer = cli_here("predict", fixtures_folder / "tiny-int8.tflite", tmp_path)
    assert (answer.code, answer.stderr) == (0, "")
    assert answer.stdout.count("\n") == 1
