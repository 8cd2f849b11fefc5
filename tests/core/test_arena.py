"""The tensor arena of TensorFlow Lite Micro: the plan on lives that can be checked by hand, and the estimate of real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeclf.core import arena
from edgeclf.core.arena import Life
from edgeclf.core.bundle import read_bundle
from edgeclf.core.errors import ModelError
from edgeclf.core.tflite import Operator, Tensor, TfliteModel

MODELS = Path(__file__).resolve().parent.parent.parent / "models"


def tensor(shape: tuple[int, ...], kind: str = "int8") -> Tensor:
    return Tensor("t", shape, kind, (), (), 0, 0, 0)


def test_tensors_that_never_meet_share_a_place() -> None:
    """A chain of three: the third takes the first one's bytes."""
    assert arena.planned([Life(64, 0, 0), Life(48, 0, 1), Life(64, 1, 2)]) == 64 + 48
    assert arena.planned([]) == 0


def test_tensors_that_meet_lie_side_by_side() -> None:
    """A residual branch: all three live during the addition."""
    assert arena.planned([Life(64, 0, 2), Life(64, 1, 2), Life(64, 2, 3)]) == 3 * 64


def test_a_small_tensor_fills_the_gap_that_a_dead_one_left() -> None:
    """Between two that live on, under a higher one that does not meet it."""
    lives = [Life(96, 0, 3), Life(64, 0, 1), Life(48, 1, 3), Life(32, 2, 3)]
    assert arena.planned(lives) == 96 + 64 + 48


def test_lives_follow_the_graph_and_leave_constants_out() -> None:
    """The input lives from the start, the output to beyond the end; sizes are rounded up to 16."""
    tensors = (tensor((-1, 5, 5, 1)), tensor((3, 3)), tensor((1, 4), "int32"), tensor((1, 10)))
    operators = (Operator("CONV_2D", (0, 1), (2,)), Operator("SOFTMAX", (2,), (3,)))
    model = TfliteModel("", tensors, operators, (0,), (3,), {})
    assert arena.lives(model, "x") == [Life(32, 0, 0), Life(16, 0, 1), Life(16, 1, 2)]


@pytest.mark.parametrize("odd", [tensor((1, -1, 5, 1)), tensor((1, 5), "string")])
def test_what_has_no_size_is_an_error_that_names_the_file(odd: Tensor) -> None:
    """An open height; text."""
    model = TfliteModel("", (odd, tensor((1, 2))), (Operator("MEAN", (0,), (1,)),), (0,), (1,), {})
    with pytest.raises(ModelError, match=r"x\.tflite: the arena cannot be planned"):
        arena.estimate(model, "x.tflite")


# (tensors, all) in bytes, as tflite-micro 0.dev20261023182759 gave them on x86-64.
MEASURED = {"compact-cifar10": (20_480, 27_472), "compact-digits": (24_576, 31_392)}


@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_enough_and_hardly_too_much(name: str) -> None:
    """Against what the interpreter itself used: the same plan, and at most a tenth more in all."""
    model = read_bundle(MODELS / f"{name}.tflite").structure
    tensors, total = MEASURED[name]
    assert arena.planned(arena.lives(model, name)) == tensors
    assert total <= arena.estimate(model, name) <= 1.1 * total
