"""compress, debug-quant and export --max-drop from the command line, on a network that trains in seconds."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cli):
    """A folder with a trained run, `runs/tiny`."""
    folder = tmp_path_factory.mktemp("compress")
    options = ["--epochs", 4, "--image-size", 12, "--set", "model.options.widths=[8, 16, 16]", "--set", "training.batch_size=64"]
    answer = cli("train", "compact-digits", "digits", "--out", "runs/tiny", *options, cwd=folder)
    assert answer.code == 0, answer.text
    return folder


@pytest.fixture(scope="module")
def rounded(folder, cli):
    """What compressing it by quantisation-aware training printed, as JSON."""
    answer = cli("compress", "runs/tiny", "--qat", "--epochs", 1, "--json", cwd=folder)
    assert answer.code == 0, answer.text
    return json.loads(answer.stdout)


def test_compress_names_the_run_after_what_was_done(folder, rounded):
    """The new run lies beside the old one, and JSON tells its lineage and both accuracies."""
    assert rounded["run"] == "runs/tiny-qat"
    assert [entry["step"] for entry in rounded["lineage"]] == ["trained", "qat"]
    assert 0 <= rounded["accuracy"]["test"]["top1"] <= 1
    assert rounded["before"]["pictures"] == rounded["accuracy"]["test"]["pictures"]


def test_a_compressed_run_goes_on_through_export_debug_quant_and_report(folder, rounded, cli):
    """The int8 file says that it was trained for, its layers can be looked at, and the report compares with the first network."""
    exported = cli("export", "runs/tiny-qat", "--int8", "--float32", "--json", cwd=folder)
    assert exported.code == 0, exported.text
    assert {row["variant"] for row in json.loads(exported.stdout)["files"]} == {"float32", "int8-qat"}
    looked = cli("debug-quant", "runs/tiny-qat/tiny-qat-int8-qat.tflite", "--json", "--plot", "layers.png", cwd=folder)
    assert looked.code == 0, looked.text
    assert {"snr_db", "added_db", "saturated", "remedy"} <= json.loads(looked.stdout)["layers"][0].keys()
    assert (folder / "layers.png").read_bytes().startswith(b"\x89PNG")
    report = cli("report", "runs/tiny-qat", cwd=folder)
    assert report.code == 0, report.text


def test_what_debug_quant_shows_is_explained_and_weighed(capsys):
    """The columns in words, what the whole file lost, and one line for all layers that the same would help."""
    from edgeclf.cli import debug_quant
    from edgeclf.host.export.debug_quant import Diagnosis
    from edgeclf.host.export.quant_errors import LayerError

    layers = tuple(
        LayerError(f"net/{name}/Relu6", "CONV_2D", 20.0, lost, 0.0, 0.0, 6.0, 0.0, 5.9) for name, lost in (("a", 9.7), ("b", 4.0))
    )
    debug_quant._print(Diagnosis(Path("x-int8.tflite"), 64, layers, layers, (0.001, -0.0042, 0.0062)))
    shown = capsys.readouterr().out
    assert "at 20 dB the error is a tenth of the signal" in shown
    assert "cost +0.10 points of top-1 (95%: -0.42 to +0.62)" in shown
    assert "the worst first: net/a/Relu6 (9.7 dB), net/b/Relu6 (4.0 dB); what would help: training with the rounding" in shown
    assert shown.count("edgeclf compress RUN --qat") == 1


def test_max_drop_writes_nothing_when_it_cannot_be_shown(folder, cli):
    """153 validation pictures cannot show a hundredth of a point: exit code 7, one line, no file."""
    answer = cli("export", "runs/tiny", "--int8", "--max-drop", 0.01, "--out", "guarded", cwd=folder)
    assert answer.code == 7
    assert "none of" in answer.stderr
    assert not list((folder / "guarded").glob("*")) if (folder / "guarded").exists() else True


def test_max_drop_tells_what_it_tried(folder, cli):
    """A wide budget holds at once, and the way is told."""
    answer = cli("export", "runs/tiny", "--int8", "--max-drop", 20, "--out", "wide", cwd=folder)
    assert answer.code == 0, answer.text
    assert "guard, int8, robust ranges" in answer.stderr
    assert (folder / "wide" / "tiny-int8.tflite").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/tiny"], "nothing to do"),
        (["runs/tiny", "--prune", 1.2], "--prune 1.2: must lie between 0 and 1"),
        (["runs/tiny", "--prune-channels", 0], "--prune-channels 0: must lie between 0 and 1"),
        (["runs/tiny", "--prune", 0.5, "--prune-2-4"], "prune_2_4"),
        (["runs/tiny", "--cluster", 1], "cluster"),
        (["runs/gone", "--qat"], "not a finished run"),
        (["runs/tiny", "--qat", "--out", "runs/tiny"], "already holds a finished run"),
        (["--resume"], "--resume needs --out"),
    ],
)
def test_what_cannot_be_compressed_is_one_line(folder, cli_here, arguments, said):
    """Exit code 2, and what to do; nothing is laid out."""
    before = sorted((folder / "runs").iterdir())
    answer = cli_here("compress", *arguments, cwd=folder)
    assert answer.code == 2
    assert said in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert sorted((folder / "runs").iterdir()) == before


def test_debug_quant_wants_a_quantised_file(folder, rounded, cli):
    """A float file has nothing to look at: exit code 4."""
    cli("export", "runs/tiny", "--float16", cwd=folder)
    answer = cli("debug-quant", "runs/tiny/tiny-float16.tflite", cwd=folder)
    assert answer.code == 4
    assert "is float16" in answer.stderr
