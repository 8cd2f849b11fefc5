"""The engine: what it feeds to the interpreter, what it makes of the answer, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeclf.core.bundle import Bundle, read_bundle
from edgeclf.core.card import golden_inputs
from edgeclf.core.errors import ConfigError, MissingExtra, ModelError
from edgeclf.core.image import ImageSpec
from edgeclf.core.tflite import Tensor, TfliteModel, logits_view
from edgeclf.runtime import engine as engines
from edgeclf.runtime import foreign
from edgeclf.runtime.engine import default_threads, input_table, multiply_adds, open_engine, tflite_runtime
from edgeclf.runtime.selftest import self_test

VARIANTS = ["float32", "float16", "dynamic-w8", "int8", "w8a16"]
SHAPE = (16, 16, 3)


def bundle_of(fixtures_folder: Path, variant: str) -> Bundle:
    return read_bundle(fixtures_folder / f"tiny-{variant}.tflite")


def tensor(kind: str, shape: tuple[int, ...] = (1, 16, 16, 3), scale: float | None = None, zero_point: int = 0) -> Tensor:
    scales, zeros = ((scale,), (zero_point,)) if scale else ((), ())
    return Tensor("t", shape, kind, scales, zeros, 0, 0, 0)


def model(given: Tensor, answer: Tensor, inputs: int = 1) -> TfliteModel:
    """A graph that is nothing but its ends."""
    return TfliteModel("", (given, answer), (), (0,) * inputs, (1,), {})


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_that_the_exporter_saw(variant: str, fixtures_folder: Path) -> None:
    """The golden self-test in each file: integers bit for bit, floats within the card's tolerance."""
    bundle = bundle_of(fixtures_folder, variant)
    assert bundle.card is not None
    result = self_test(open_engine(bundle), bundle.card)
    assert result is not None
    assert result.passed, result


def test_an_altered_network_fails_its_self_test(fixtures_folder: Path) -> None:
    """Another file's outputs are not this file's."""
    int8, float32 = (bundle_of(fixtures_folder, v) for v in ("int8", "float32"))
    assert int8.card is not None
    assert float32.card is not None
    result = self_test(open_engine(int8), replace(int8.card, self_test=float32.card.self_test))
    assert result is not None
    assert not result.passed


def test_int8_logits_are_dequantised_and_not_softmaxed(fixtures_folder: Path) -> None:
    """They equal (stored - zero point) * scale of the tensor in front of SOFTMAX, and follow the float file."""
    inputs = golden_inputs(3, 8, SHAPE)
    int8, float32 = (open_engine(bundle_of(fixtures_folder, v)).infer(inputs) for v in ("int8", "float32"))
    assert int8.dtype == np.float32
    assert int8.shape == (8, 4)
    assert np.abs(int8.sum(axis=1) - 1).min() > 0.05
    assert np.abs(int8 - float32).max() < 0.2


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_gives_the_same_bits_as_one_by_one(variant: str, fixtures_folder: Path) -> None:
    """An answer does not depend on its neighbours."""
    engine = open_engine(bundle_of(fixtures_folder, variant))
    inputs = golden_inputs(5, 7, SHAPE)
    together = engine.infer(inputs)
    assert (together == np.concatenate([engine.infer(inputs[i : i + 1]) for i in range(7)])).all()
    assert (together[::-1] == engine.infer(inputs[::-1].copy())).all()


def test_threads_do_not_change_a_bit(fixtures_folder: Path) -> None:
    """One or three."""
    inputs = golden_inputs(5, 4, SHAPE)
    one, three = (open_engine(bundle_of(fixtures_folder, "int8"), threads) for threads in (1, 3))
    assert (one.threads, three.threads) == (1, 3)
    assert (one.infer(inputs) == three.infer(inputs)).all()


def test_the_runtime_is_named_with_version_and_kernels(fixtures_folder: Path) -> None:
    """A number in a report must say what computed it."""
    name = open_engine(bundle_of(fixtures_folder, "int8")).runtime
    assert name.startswith(tflite_runtime().name)
    assert name.endswith(("(xnnpack)", "(builtin)"))


def test_exact_pixels_reach_an_int8_network_unchanged() -> None:
    """uint8 at scale 1/128 and zero point 128 is the pixel; int8 at zero point 0 is the pixel - 128."""
    image = ImageSpec(16, 16)
    assert (input_table(tensor("uint8", scale=1 / 128, zero_point=128), image) == np.arange(256)).all()
    signed = input_table(tensor("int8", scale=1 / 128, zero_point=0), image)
    assert signed.dtype == np.int8
    assert (signed == np.arange(256) - 128).all()


def test_other_quantisations_and_floats_follow_the_formula() -> None:
    """round((pixel - mean) / std / scale) + zero point, clipped; floats without the rounding."""
    image = ImageSpec(16, 16, mean=100.0, std=50.0)
    table = input_table(tensor("uint8", scale=0.02, zero_point=100), image)
    assert table[[0, 100, 150, 255]].tolist() == [0, 100, 150, 255]
    assert table[[110, 255]].tolist() == [110, 255]
    floats = input_table(tensor("float32"), image)
    assert floats.dtype == np.float32
    assert floats[[0, 100, 150]].tolist() == [-2.0, 0.0, 1.0]


def test_a_small_net_gets_one_thread(fixtures_folder: Path) -> None:
    """More would only wake threads; the count of multiply-adds decides."""
    structure = bundle_of(fixtures_folder, "int8").structure
    assert 10_000 < multiply_adds(structure) < engines.SMALL_NET
    assert default_threads(structure) == 1


def test_no_threads_are_refused(fixtures_folder: Path) -> None:
    """Before anything is loaded."""
    with pytest.raises(ConfigError, match="threads = 0"):
        open_engine(bundle_of(fixtures_folder, "int8"), 0)


@pytest.mark.parametrize(
    ("given", "answer", "message"),
    [
        (tensor("float32", (1, 3, 16, 16)), tensor("float32", (1, 4)), "channels first"),
        (tensor("float32", (1, 48)), tensor("float32", (1, 4)), r"has shape \(1, 48\); a picture has"),
        (tensor("float32", (8, 16, 16, 3)), tensor("float32", (1, 4)), r"expected \(1, height, width, 1 or 3\)"),
        (tensor("float32", (1, 16, 16, 4)), tensor("float32", (1, 4)), r"expected \(1, height, width, 1 or 3\)"),
        (tensor("float32", (1, -1, -1, 3)), tensor("float32", (1, 4)), r"\(1, \?, \?, 3\)"),
        (tensor("int32"), tensor("float32", (1, 4)), "its input is int32"),
        (tensor("uint8"), tensor("string", (1, 4)), "its output is string"),
        (tensor("uint8"), tensor("float32", (1, 10, 4)), "one row of scores"),
        (tensor("uint8"), tensor("float32", (1, 1)), "single output"),
    ],
)
def test_what_is_no_image_classifier_is_explained(given: Tensor, answer: Tensor, message: str) -> None:
    """By the tensor that is wrong, before a runtime is touched."""
    with pytest.raises(ModelError, match=message):
        foreign.check_ports(model(given, answer), None, "x.tflite")


def test_several_inputs_are_named() -> None:
    """As in detectors and language models."""
    with pytest.raises(ModelError, match=r"takes 2 inputs \(t, t\)"):
        foreign.check_ports(model(tensor("uint8"), tensor("uint8", (1, 4)), inputs=2), None, "x.tflite")


def test_a_picture_of_another_size_is_refused(fixtures_folder: Path) -> None:
    """By the engine itself, should a caller prepare it wrongly."""
    with pytest.raises(ModelError, match="does not take pictures of shape"):
        open_engine(bundle_of(fixtures_folder, "int8")).infer(np.zeros((1, 8, 8, 3), np.uint8))


def test_without_a_runtime_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a fresh 32-bit board."""
    monkeypatch.setattr(engines, "TFLITE_RUNTIMES", {"absent": "absent_runtime.interpreter"})
    with pytest.raises(MissingExtra, match="no TFLite runtime is installed; install one with: pip install ai-edge-litert"):
        tflite_runtime()


def test_a_runtime_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As tflite-runtime beside NumPy 2."""
    (tmp_path / "broken_runtime").mkdir()
    (tmp_path / "broken_runtime" / "__init__.py").write_text("")
    (tmp_path / "broken_runtime" / "interpreter.py").write_text("raise ImportError('numpy.core.multiarray failed to import')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(engines, "TFLITE_RUNTIMES", {"broken": "broken_runtime.interpreter"})
    with pytest.raises(MissingExtra, match=r"installed but cannot be imported \(numpy.core.multiarray"):
        tflite_runtime()


def test_the_greeting_of_litert_stays_out_of_the_terminal(fixtures_folder: Path) -> None:
    """And only that line: what others write to standard error at the same moment comes through."""
    code = (
        "import os, sys; from edgeclf.runtime import engine; real = engine._interpreter\n"
        "def noisy(*a):\n    os.write(2, b'WARNING: from native code\\n'); return real(*a)\n"
        "engine._interpreter = noisy\n"
        "import edgeclf; edgeclf.load(sys.argv[1]); print('done', file=sys.stderr)"
    )
    path = fixtures_folder / "tiny-int8.tflite"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["WARNING: from native code", "done"]
    assert done.stdout == ""


def test_the_view_of_the_logits_is_what_runs(fixtures_folder: Path) -> None:
    """The file itself ends in probabilities; the engine reads the tensor in front of them."""
    bundle = bundle_of(fixtures_folder, "float32")
    runtime = tflite_runtime()
    whole = runtime.interpreter(model_content=bundle.model)
    view = runtime.interpreter(model_content=logits_view(bundle.model))
    assert whole.get_output_details()[0]["index"] != view.get_output_details()[0]["index"]


def test_a_failure_while_computing_is_a_model_error(fixtures_folder: Path) -> None:
    """The runtime's own word for it is a RuntimeError, which would be an unforeseen one."""
    engine = open_engine(bundle_of(fixtures_folder, "int8"))

    class Failing:
        def set_tensor(self, index: int, value: object) -> None: ...

        def invoke(self) -> None:
            raise RuntimeError("Node number 3 (CONV_2D)\nfailed to invoke.")

    engine._interpreter = Failing()  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match=r"while it computes: Node number 3 \(CONV_2D\) failed"):
        engine.infer(np.zeros((1, *SHAPE), np.uint8))


def test_a_scale_that_is_no_number_is_as_none() -> None:
    """A damaged or hostile file without a card; nothing is computed with it, so NumPy has nothing to warn of."""
    broken = input_table(tensor("uint8", scale=float("nan")), ImageSpec(16, 16))
    assert (broken == np.arange(256)).all()
