"""verify: bit-exact, within tolerance, wrong, or nothing to verify by; and their exit codes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclf.core.bundle import attach, attach_onnx, read_bundle
from edgeclf.core.card import ModelCard, SelfTest, golden_inputs
from edgeclf.core.image import ImageSpec

Cli = Callable[..., Any]
Remake = Callable[..., Path]


@pytest.fixture
def remade(fixtures_folder: Path, tmp_path: Path) -> Remake:
    """The int8 fixture with every golden output moved by `off` and another tolerance; `without` leaves the self-test out."""

    def make(off: float = 0.0, tolerance: float = 0.0, without: bool = False) -> Path:
        bundle = read_bundle(fixtures_folder / "tiny-int8.tflite")
        assert bundle.card is not None
        test = bundle.card.self_test
        assert test is not None
        moved = tuple(tuple(value + off for value in row) for row in test.outputs)
        card = replace(bundle.card, self_test=None if without else replace(test, outputs=moved, tolerance=tolerance))
        path = tmp_path / "remade.tflite"
        path.write_bytes(attach(bundle.model, card))
        return path

    return make


def test_a_file_that_computes_the_same_bits_is_bit_exact_in_one_line(cli_here: Cli, fixtures_folder: Path) -> None:
    """With the runtime and kernels here and those of the exporter; exit code 0."""
    path = fixtures_folder / "tiny-int8.tflite"
    answer = cli_here("verify", path)
    assert (answer.code, answer.stderr, answer.stdout.count("\n")) == (0, "", 1)
    assert answer.stdout.startswith(f"{path}: bit-exact; here ai-edge-litert ")
    assert answer.stdout.endswith("(xnnpack), exported with LiteRT, XNNPACK\n")


def test_a_small_difference_is_within_tolerance_and_told(cli_here: Cli, remade: Remake) -> None:
    """Its size and what is allowed; exit code 0."""
    answer = cli_here("verify", remade(off=1, tolerance=2))
    assert answer.code == 0
    assert "within tolerance (largest difference 1, tolerance 2); here " in answer.stdout


def test_a_difference_beyond_the_tolerance_is_wrong_and_exits_with_7(cli_here: Cli, remade: Remake) -> None:
    """The line stays the answer on standard output, and says what to do."""
    answer = cli_here("verify", remade(off=3, tolerance=2))
    assert (answer.code, answer.stderr) == (7, "")
    assert "wrong (largest difference 3, tolerance 2); do not use it here" in answer.stdout


def test_answers_of_another_shape_are_wrong_and_valid_json(cli_here: Cli, fixtures_folder: Path, tmp_path: Path) -> None:
    """A self-test of five classes for a network of four: no difference can be told."""
    bundle = read_bundle(fixtures_folder / "tiny-int8.tflite")
    assert bundle.card is not None
    (tmp_path / "x.tflite").write_bytes(
        attach(bundle.model, replace(bundle.card, self_test=SelfTest(1, ((0.0,) * 5,), 1.0, "x")))
    )
    answer = cli_here("verify", tmp_path / "x.tflite", "--json")
    (found,) = json.loads(answer.stdout)["files"]
    assert (answer.code, found["outcome"], found["difference"]) == (7, "wrong", None)


def test_a_file_without_card_and_a_card_without_self_test_exit_with_4(
    cli_here: Cli, remade: Remake, fixtures_folder: Path
) -> None:
    """One line each that says what to do; normalisation, which predict asks for, is not the point."""
    bare = cli_here("verify", fixtures_folder / "foreign-float32.tflite")
    assert (bare.code, bare.stderr.count("\n"), "carries no model card" in bare.stderr) == (4, 1, True)
    without = cli_here("verify", remade(without=True))
    assert (without.code, without.stderr.count("\n"), "holds no self-test; export it again" in without.stderr) == (4, 1, True)


def test_an_altered_weight_is_caught_by_the_checksum(cli_here: Cli, fixtures_folder: Path, tmp_path: Path) -> None:
    """Before anything is computed."""
    data = bytearray((fixtures_folder / "tiny-int8.tflite").read_bytes())
    data[len(data) // 3] ^= 4
    (tmp_path / "x.tflite").write_bytes(data)
    answer = cli_here("verify", tmp_path / "x.tflite")
    assert (answer.code, "SHA-256 differs from its card" in answer.stderr) == (4, True), answer.text


def test_an_unknown_file_is_tried_in_a_child_process_first(
    cli_here: Cli, remade: Remake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that crashes there is refused, and this process never opens it."""
    from edgeclf.core.errors import ModelError
    from edgeclf.runtime import engine, probe

    def crash(data: bytes, name: str, *rest: object) -> None:
        raise ModelError(f"{name}: refused, because in a trial in another process it crashes")

    monkeypatch.setattr(probe, "check", crash)
    monkeypatch.setattr(engine, "TfliteEngine", None)
    answer = cli_here("verify", remade())
    assert (answer.code, "in a trial" in answer.stderr) == (4, True)


def test_several_files_are_all_answered_and_the_gravest_code_wins(
    cli_here: Cli, remade: Remake, fixtures_folder: Path, tmp_path: Path
) -> None:
    """Wrong weighs more than broken, and a broken one does not stop the others."""
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    good, wrong = shutil.copy(fixtures_folder / "tiny-float32.tflite", tmp_path), remade(off=3)
    answer = cli_here("verify", tmp_path / "broken.tflite", wrong, good)
    assert answer.code == 7
    assert [line.split(": ")[1].split()[0] for line in answer.stdout.splitlines()] == ["wrong", "bit-exact;"]
    assert answer.stderr.startswith(f"edgeclf: {tmp_path / 'broken.tflite'}: not a TFLite model")
    found = json.loads(cli_here("verify", tmp_path / "broken.tflite", good, "--json").stdout)["files"]
    assert ("error" in found[0], found[1]["outcome"]) == (True, "bit-exact")


def onnx_file(path: Path, outputs: tuple[tuple[float, ...], ...] | None) -> Path:
    """The mean of each channel as an ONNX classifier, with a card whose self-test expects `outputs`; None: no card."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("ReduceMean", ["x"], ["scores"], axes=[1, 2], keepdims=0)
    ends = [[helper.make_tensor_value_info(n, kind, s)] for n, s in (("x", [1, 4, 4, 3]), ("scores", [1, 3]))]
    model = helper.make_model(helper.make_graph([node], "g", *ends), opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data = model.SerializeToString()
    if outputs is not None:
        image = ImageSpec(4, 4, mean=0.0, std=1.0)
        card = ModelCard("x", ("r", "g", "b"), image, outputs="logits", self_test=SelfTest(5, outputs, 0.5, "numpy"))
        data = attach_onnx(data, card)
    path.write_bytes(data)
    return path


def test_onnx_files_are_verified_by_the_card_in_their_metadata(cli_here: Cli, tmp_path: Path) -> None:
    """The same golden inputs; one without a card says so."""
    means = golden_inputs(5, 2, (4, 4, 3)).mean(axis=(1, 2)).astype(np.float64)
    good = onnx_file(tmp_path / "good.onnx", tuple(map(tuple, means.tolist())))
    wrong = onnx_file(tmp_path / "wrong.onnx", tuple(map(tuple, (means + 9).tolist())))
    answers = [cli_here("verify", path) for path in (good, wrong, onnx_file(tmp_path / "bare.onnx", None))]
    assert [answer.code for answer in answers] == [0, 7, 4], [answer.text for answer in answers]
    assert "here onnxruntime " in answers[0].stdout
    assert "carries no model card" in answers[2].stderr
