"""Instructions on an emulated board: what the counter's lines mean, and what is said where there is no board."""

import json
import shutil
from pathlib import Path

import pytest

from edgeclf.core.bundle import Bundle, read_bundle
from edgeclf.core.errors import ConfigError, MissingExtra, ModelError
from edgeclf.host.report import emulate

BUILT = Path.home() / ".cache/edgeclf/emulated-pi"  # the default of tools/emulated_pi/build.py; the tests' own cache has none


def said(*totals):
    """The counter's lines for marks 0, 1, 2 … with those totals of instructions, half of them memory's, among other lines."""
    lines = [f"counter {tag} instructions={total} memory={total // 2}" for tag, total in enumerate(totals)]
    return "\n".join(["INFO: Created TensorFlow Lite XNNPACK delegate for CPU.", *lines, "bye"])


def test_counts_are_between_marks_without_what_a_mark_costs():
    """A mark of 10 instructions, then inferences of 100, 100 and 120."""
    counts = emulate.counts_in(said(0, 10, 20, 130, 240, 370), "x")
    assert [c["instructions"] for c in counts] == [100, 100, 120]
    assert counts[0]["memory"] == 50


def test_an_emulator_that_does_not_count_is_an_error():
    """A static qemu, or one of another plugin interface."""
    with pytest.raises(ModelError, match=r"x: the counter gave 2 marks; it needs a dynamic qemu-user"):
        emulate.counts_in(said(0, 10), "x")


def test_bench_without_a_board_says_how_to_build_one_before_it_measures(cli_here, fixtures_folder, tmp_path, monkeypatch):
    """One line, exit code 6, and no table."""
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path))
    answer = cli_here("bench", fixtures_folder / "tiny-int8.tflite", "--emulate", "pi4")
    assert (answer.code, answer.stdout, answer.stderr.count("\n")) == (6, "", 1)
    assert "python tools/emulated_pi/build.py" in answer.stderr


def test_a_missing_emulator_is_named(monkeypatch, tmp_path):
    """Even where a board was unpacked."""
    (tmp_path / "suite").write_text("bookworm\n")
    monkeypatch.setattr(emulate.shutil, "which", lambda name: None)
    with pytest.raises(MissingExtra, match="qemu-aarch64 is not installed"):
        emulate.command(tmp_path, "pi4", ["-c", "pass"])


def test_onnx_files_are_not_counted(tmp_path):
    """The counter's program runs LiteRT."""
    with pytest.raises(ConfigError, match=r"of \.tflite files alone"):
        emulate.count(Bundle(b"", name="x.onnx"), "pi4", tmp_path)


def test_bench_calls_a_count_a_count(cli_here, fixtures_folder, monkeypatch):
    """Beside the latency, for each board once; in JSON under a key of its own."""
    monkeypatch.setattr(
        emulate, "count",
        lambda bundle, device, home: emulate.Count(device, 1_234_567, {}, (1_234_567,) * 3, True, True, 2, True, True, 0.0),
    )  # fmt: skip
    asked = (
        "bench",
        fixtures_folder / "tiny-int8.tflite",
        "--seconds",
        0.3,
        "--threads",
        1,
        "--emulate",
        "pi5",
        "--emulate",
        "pi5",
    )
    text = cli_here(*asked).stdout
    assert (
        text.count("emulated Raspberry Pi 5: 1,234,567 instructions for one inference, one thread (a count, not a latency)") == 1
    )
    (found,) = json.loads(cli_here(*asked, "--json").stdout)["emulated"]
    assert (found["device"], found["instructions"], "not a latency" in found["what"]) == ("pi5", 1_234_567, True)


@pytest.mark.slow
@pytest.mark.skipif(
    not (BUILT / "suite").is_file() or shutil.which("qemu-aarch64") is None, reason="needs what tools/emulated_pi/build.py builds"
)
def test_an_int8_file_gives_the_same_bits_on_an_emulated_board(fixtures_folder):
    """And three counts that are equal."""
    found = emulate.count(read_bundle(fixtures_folder / "tiny-int8.tflite"), "pi5", BUILT)
    assert found.identical
    assert found.runs_equal
    assert 1_000 < found.instructions < 1_000_000
