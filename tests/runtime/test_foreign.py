"""Quantised files without a card: their input tensor is given the pixel, whatever scale and zero point it names."""

from __future__ import annotations

import numpy as np
import pytest

from edgeclf.core.bundle import Bundle
from edgeclf.core.tflite import Tensor, TfliteModel
from edgeclf.runtime.engine import input_table
from edgeclf.runtime.foreign import card_of


@pytest.mark.parametrize(("scale", "zero_point"), [(1 / 128, 0), (1 / 255, -128), (0.0078, -1), (0.5, 3)])
@pytest.mark.parametrize(("kind", "first"), [("uint8", 0), ("int8", -128)])
def test_a_quantised_input_takes_the_pixel_itself(
    kind: str, first: int, scale: float, zero_point: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uint8 is the pixel, int8 the pixel less 128: all 256 values arrive, none is clipped away."""
    given = Tensor("picture", (1, 8, 8, 3), kind, (scale,), (zero_point,), 0, 0, 0)
    scores = Tensor("scores", (1, 2), "float32", (), (), 0, 0, 0)
    model = TfliteModel("", (given, scores), (), (0,), (1,), {})
    monkeypatch.setattr(Bundle, "structure", model)
    card = card_of(Bundle(b"", name="foreign.tflite"), ("a", "b"))
    assert (input_table(given, card.image) == np.arange(256) + first).all()
