"""From a frame to scores: probabilities, the energy, and what each stage took."""

from __future__ import annotations

import numpy as np
import pytest

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.core.unknown import energy
from edgeclf.runtime.classifier import Classifier, softmax
from edgeclf.runtime.engine import Scores
from edgeclf.runtime.scoring import need_energy, scorer

CARD = ModelCard("pets", ("cat", "dog"), ImageSpec(4, 4), temperature=2.0)
FRAME = np.zeros((8, 8, 3), np.uint8)


class Fake:
    """An engine that always answers with the same row."""

    threads, runtime = 1, "fake"

    def __init__(self, *row: float) -> None:
        self._row = np.array(row, np.float32)

    def infer(self, batch: Pixels) -> Scores:
        return np.stack([self._row] * len(batch))


def test_a_frame_is_scored_with_the_temperature_of_the_card() -> None:
    """Probabilities and energy from the same logits; both stages took time."""
    scored = scorer(Classifier(Fake(1.0, 4.0), CARD))(FRAME)
    logits = np.array([1.0, 4.0], np.float32)
    assert (scored.probabilities == softmax(logits, 2.0)).all()
    assert scored.energy == energy(logits, 2.0)
    assert min(scored.resize_s, scored.invoke_s) > 0


def test_scores_that_are_no_numbers_have_no_energy_either() -> None:
    """The decision then says `invalid`."""
    scored = scorer(Classifier(Fake(np.nan, 4.0), CARD))(FRAME)
    assert np.isnan(scored.probabilities).all()
    assert np.isnan(scored.energy)


@pytest.mark.parametrize("row", [(0.3, 0.7), (float(np.log(0.3)), float(np.log(0.7)))])
def test_a_file_that_gives_probabilities_is_told_to_have_no_energy(row: tuple[float, float]) -> None:
    """Itself or their logarithms: the energy would be the same for every picture."""
    with pytest.raises(ConfigError, match="pets: gives probabilities and not what feeds its softmax, so it has no energy"):
        need_energy(Classifier(Fake(*row), CARD))
    need_energy(Classifier(Fake(1.0, 4.0), CARD))
