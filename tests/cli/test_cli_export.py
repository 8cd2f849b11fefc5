"""The verb export: what it prints, where, and with which exit code."""

import dataclasses
import importlib.util
import json
import re
import shutil
import types

import numpy as np
import pytest
from colours import train_colours

from edgeclf.cli import common
from edgeclf.core.bundle import read_bundle

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs the train extra")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `runs/colours`, trained in seconds."""
    return train_colours(tmp_path_factory.mktemp("cli-export"))


def test_export_alone_makes_an_int8_file_of_the_newest_run_and_says_so(trained, cli_here):
    """The table is the answer on standard output; what was assumed stands on standard error."""
    answer = cli_here("export", cwd=trained)
    assert answer.code == 0, answer.text
    assert "colours-int8.tflite" in answer.stdout
    assert "drop in points (95%)" in answer.stdout
    assert "runs/colours" in answer.stderr
    assert "--int8" in answer.stderr
    assert read_bundle(trained / "runs/colours/colours-int8.tflite").card.io == "uint8"


def test_all_with_json_gives_four_files_as_a_machine_reads_them(trained, cli_here, tmp_path):
    """Fractions, paths and intervals; the files lie in --out."""
    answer = cli_here("export", "runs/colours", "--all", "--io", "int8", "--out", tmp_path, "--json", cwd=trained)
    found = json.loads(answer.stdout)["files"]
    assert [f["variant"] for f in found] == ["float32", "float16", "dynamic-w8", "int8"]
    assert all((tmp_path / f"colours-{f['variant']}.tflite").stat().st_size == f["file_bytes"] for f in found)
    assert all(f["drop"]["interval"]["low"] <= f["drop"]["drop"] <= f["drop"]["interval"]["high"] for f in found)
    assert found[3]["io"] == "int8"


def test_nothing_but_the_answer_reaches_the_terminal(trained, cli, tmp_path):
    """As a child process: TensorFlow, the converter and the quantiser stay silent."""
    answer = cli("export", "runs/colours", "--int8", "--out", tmp_path, cwd=trained)
    assert answer.code == 0, answer.text
    assert answer.stderr == ""


def test_onnx_files_are_exported_evaluated_and_reported_by_their_card_alone(trained, cli_here, tmp_path):
    """Without a .tflite beside them; the report names them as the options do."""
    shutil.copytree(trained / "runs" / "colours", tmp_path / "colours", ignore=shutil.ignore_patterns("*.tflite"))
    answer = cli_here("export", tmp_path / "colours", "--onnx", "--onnx-int8", "--opset", "15", "--json")
    assert [f["variant"] for f in json.loads(answer.stdout)["files"]] == ["onnx-float32", "onnx-int8"], answer.stderr
    file = tmp_path / "colours" / "colours-int8.onnx"
    assert json.loads(cli_here("inspect", file, "--json").stdout)["opset"] == 15
    assert json.loads(cli_here("evaluate", file, trained / "colours.npz", "--json").stdout)["accuracy"]["top1"] > 0.5
    assert cli_here("report", tmp_path / "colours", "--json").code == 0
    report = json.loads((tmp_path / "colours" / "report.json").read_text())
    assert {v["name"]: v["precision"] for v in report["variants"]} == {"onnx-float32": "float32", "onnx-int8": "int8"}
    assert all(v["named_right"] for v in report["variants"])


@pytest.mark.skipif(importlib.util.find_spec("coremltools") is None, reason="needs the coreml extra")
def test_a_core_ml_package_comes_beside_other_files_and_is_not_called_run(trained, cli_here, tmp_path):
    """Where it lies is the answer; what was checked, and that Core ML did not run it, is a note. JSON says both."""
    answer = cli_here("export", "runs/colours", "--int8", "--coreml", "--out", tmp_path, cwd=trained)
    assert answer.code == 0, answer.text
    assert re.search(r"colours-float16.mlpackage, [\d.]+ kB", answer.stdout)
    assert "held-out pictures get the full model's answer" in answer.stderr
    assert "Core ML itself, which runs on Apple's systems alone, has not run it" in answer.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"colours-int8.tflite", "colours-float16.mlpackage"}
    document = json.loads(cli_here("export", "runs/colours", "--coreml-w8", "--out", tmp_path, "--json", cwd=trained).stdout)
    (package,) = document["packages"]
    assert (document["files"], package["variant"]) == ([], "coreml-weight-only-w8")
    assert package["path"] == str(tmp_path / "colours-weight-only-w8.mlpackage")
    assert 0 < package["pictures"] <= 32


def test_a_missing_core_ml_extra_is_named_before_anything_is_made(trained, cli_here, monkeypatch, tmp_path):
    """Exit code 6; the other file that was asked for is not begun either."""
    from edgeclf.host.export import export_coreml

    monkeypatch.setattr(
        export_coreml, "importlib", types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
    )
    answer = cli_here("export", "runs/colours", "--float32", "--coreml", "--out", tmp_path, cwd=trained)
    assert (answer.code, "pip install 'edgeclf[coreml]'" in answer.stderr) == (6, True)
    assert not list(tmp_path.iterdir())


def test_options_of_onnx_files_without_one_exit_with_2(trained, cli_here):
    """And an operator set that there is no converter for."""
    for options in (("--opset", "17"), ("--int8", "--dynamic-batch")):
        answer = cli_here("export", *options, cwd=trained)
        assert (answer.code, "add --onnx or --onnx-int8" in answer.stderr) == (2, True)
    answer = cli_here("export", "--onnx", "--opset", "99", cwd=trained)
    assert (answer.code, answer.stderr) == (2, "edgeclf: opset 99: expected one from 13 to 18\n")


def test_wrong_network_exits_with_7_in_one_line_and_leaves_no_file(trained, cli_here, tmp_path):
    """A constant network: the reason and no traceback."""
    from edgeclf.host.run import CARD, MODEL, open_run, sha256_of

    shutil.copytree(trained / "runs" / "colours", tmp_path / "colours", ignore=shutil.ignore_patterns("*.tflite"))
    run = open_run(tmp_path / "colours")
    model = run.model()
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    model.save(run.folder / MODEL, save_format="keras")
    (run.folder / CARD).write_text(dataclasses.replace(run.card, sha256=sha256_of(run.folder / MODEL)).to_json())
    answer = cli_here("export", tmp_path / "colours", "--int8")
    assert answer.code == 7
    assert answer.stderr.startswith("edgeclf: ")
    assert answer.stderr.count("\n") == 1
    assert "constant" in answer.stderr
    assert not list(tmp_path.rglob("*.tflite"))


def test_sparse_files_of_a_pruned_run_are_smaller_and_say_where_they_are_faster(trained, cli_here, tmp_path):
    """Zeros are left out of both, answers stay; float files of the same run hold them. An unpruned run exits with 7."""
    from edgeclf.host.run import CARD, MODEL, open_run, sha256_of

    shutil.copytree(trained / "runs" / "colours", tmp_path / "colours", ignore=shutil.ignore_patterns("*.tflite"))
    refused = cli_here("export", tmp_path / "colours", "--sparse")
    assert refused.code == 7
    assert "weights are zero" in refused.stderr
    run = open_run(tmp_path / "colours")
    model = run.model()
    model.set_weights(
        [np.where(np.abs(w) < np.quantile(np.abs(w), 0.6), 0, w) if w.ndim == 4 else w for w in model.get_weights()]
    )
    model.save(run.folder / MODEL, save_format="keras")
    (run.folder / CARD).write_text(dataclasses.replace(run.card, sha256=sha256_of(run.folder / MODEL)).to_json())
    answer = cli_here("export", run.folder, "--float32", "--sparse", "--json")
    files = {f["variant"]: f for f in json.loads(answer.stdout)["files"]}
    assert list(files) == ["float32", "float32-sparse", "float16-sparse"]
    assert files["float16-sparse"]["file_bytes"] < files["float32-sparse"]["file_bytes"] < files["float32"]["file_bytes"]
    assert files["float32-sparse"]["agreement"] == 1.0
    assert "ARM" in files["float32-sparse"]["notes"][0]
    assert cli_here("verify", files["float32-sparse"]["path"]).code == 0


def test_missing_run_and_misplaced_io_exit_with_2(trained, cli_here, tmp_path):
    """One line each that says what to do."""
    assert "no finished run" in cli_here("export", cwd=tmp_path).stderr
    answer = cli_here("export", "--float16", "--io", "int8", cwd=trained)
    assert answer.code == 2
    assert "add --int8" in answer.stderr


def test_c_source_and_snippets_come_beside_the_files_that_they_are_of(trained, cli_here, tmp_path):
    """C of the int8 file alone, snippets of each; where they lie and what the arena is are told."""
    answer = cli_here("export", "runs/colours", "--float32", "--int8", "--c-array", "--snippets", "--out", tmp_path, cwd=trained)
    assert answer.code == 0, answer.text
    assert {path.name for path in tmp_path.glob("*.[ch]")} == {"colours-int8.h", "colours-int8.c"}
    for variant in ("float32", "int8"):
        assert (tmp_path / f"colours-{variant}-snippets" / "PictureClassifier.kt").is_file()
        assert f"colours-{variant}-snippets: with_edgeclf.py, plain_litert.py, PictureClassifier.kt" in answer.stdout
    assert re.search(r"note: colours-int8.h and colours-int8.c: [\d,]+ bytes of tensor arena", answer.stderr)


def test_files_beside_are_in_the_json_row_of_their_file(trained, cli_here, tmp_path):
    """With --io int8, which phones refuse: the note says so, and the snippets are those of Python."""
    asked = ("--int8", "--io", "int8", "--c-array", "--snippets", "--out", tmp_path, "--json")
    (row,) = json.loads(cli_here("export", "runs/colours", *asked, cwd=trained).stdout)["files"]
    assert row["c_array"]["arena_bytes"] > 1000
    assert row["c_array"]["header"] == str(tmp_path / "colours-int8.h")
    assert [path.rpartition("/")[2] for path in row["snippets"]] == ["with_edgeclf.py", "plain_litert.py"]


@pytest.mark.parametrize(
    ("options", "advice"), [(("--float16",), "add --int8"), (("--io", "float32"), "take --io int8 or uint8")]
)
def test_c_source_of_what_microcontrollers_do_not_take_is_refused_before_any_work(options, advice, trained, cli_here, tmp_path):
    """Exit code 2, one line, no file."""
    answer = cli_here("export", "runs/colours", "--c-array", *options, "--out", tmp_path, cwd=trained)
    assert (answer.code, advice in answer.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_snippets_of_no_tflite_file_are_refused(trained, cli_here):
    """ONNX files get none; exit code 2 and what to add."""
    answer = cli_here("export", "runs/colours", "--onnx", "--snippets", cwd=trained)
    assert (answer.code, "add --int8 or leave --snippets out" in answer.stderr) == (2, True)


def test_base_install_says_which_extra_to_install(cli_here, monkeypatch):
    """Exit code 6 and the command."""
    monkeypatch.setattr(common.importlib.util, "find_spec", lambda package: None)
    answer = cli_here("export", "--int8")
    assert answer.code == 6
    assert "pip install 'edgeclf[train]'" in answer.stderr


def test_help_shows_an_example(cli_here):
    """And what the two defaults are."""
    answer = cli_here("export", "--help")
    assert "Example: edgeclf export" in answer.stdout
    assert "newest finished" in answer.stdout
