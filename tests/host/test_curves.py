"""ROC and precision-recall curves: areas by hand, lines that end where they must, files that are whole."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import MissingExtra
from edgeclf.core.image import ImageSpec
from edgeclf.core.results import score
from edgeclf.host.understand import curves
from edgeclf.runtime.accuracy import Evaluation

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def evaluation(classes: int, pictures: int = 400) -> Evaluation:
    """Noisy answers; the last class has no pictures, and one row has no numbers."""
    random = np.random.RandomState(0)
    truth = random.randint(0, classes - 1, pictures)
    scores = (np.eye(classes)[truth] * 2 + random.normal(0, 1, (pictures, classes))).astype(np.float32)
    scores[3, 0] = np.nan
    labels = tuple(f"class <{i}> $x$" for i in range(classes))
    card = ModelCard("noisy", labels, ImageSpec(8, 8))
    return Evaluation(card, Path("data"), scores, truth, np.arange(pictures), score(scores, truth, labels), ())


def test_areas_are_those_of_counting_pairs() -> None:
    """The area under a ROC curve is the share of (mine, other) pairs in the right order."""
    p, truth = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]], np.float32), np.array([0, 0, 1, 1])
    found = curves.curves(p, truth, ("a", "b")).classes[0]
    assert found is not None
    assert found.auc == 3 / 4
    assert found.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert (found.roc[0][0], found.roc[1][0], found.roc[0][-1], found.roc[1][-1]) == (0, 0, 1, 1)
    assert found.pictures == 2


def test_a_class_without_pictures_has_no_curve() -> None:
    """And does not count in the mean."""
    found = curves.curves(np.full((4, 3), 1 / 3, np.float32), np.array([0, 0, 1, 1]), ("a", "b", "c"))
    assert found.classes[2] is None
    assert found.macro is not None
    assert found.macro["auc"] == 0.5


def test_long_lines_are_thinned_and_keep_their_ends() -> None:
    """No more than 200 points, close to the full line everywhere."""
    x = np.sort(np.random.RandomState(0).rand(5000))
    thin = np.array(curves._thin(x, x**2))
    assert thin.shape[1] <= 200
    assert (thin[:, 0].round(4).tolist(), thin[:, -1].round(4).tolist()) == ([0, 0], [1, 1]) or thin[0, -1] == round(x[-1], 6)
    assert np.abs(np.interp(x, thin[0], thin[1]) - x**2).max() < 1e-3


@pytest.mark.parametrize("classes", [3, 30])
def test_four_pictures_and_the_numbers_are_written(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for more classes than are drawn or named in a matrix; nothing is NaN, names are text and not mathematics."""
    monkeypatch.setattr(curves, "PANELS", 4)  # each takes time to draw
    made = curves.write(evaluation(classes), tmp_path)
    names = [curves.ROC, curves.PRECISION_RECALL, curves.RELIABILITY, curves.CONFUSION]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names, curves.NUMBERS])
    assert all(min(cv2.imread(str(tmp_path / name)).shape[:2]) > 300 for name in names)
    document = json.loads((tmp_path / curves.NUMBERS).read_text(), parse_constant=pytest.fail)
    assert len(document["classes"]) == classes
    assert document["classes"][-1] == {**dict.fromkeys(document["classes"][0]), "label": f"class <{classes - 1}> $x$"}
    assert document["classes"][0]["auc"] == made.areas()["per_class"][0]["auc"] > 0.8


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is computed or written."""
    monkeypatch.setattr(curves.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(MissingExtra, match=r"edgeclf\[train\]"):
        curves.write(evaluation(3), tmp_path)
    assert not list(tmp_path.iterdir())
