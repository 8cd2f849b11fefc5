"""Figures: what is drawn from a history, and SVG that may stand in a page."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import pytest

from edgeclf.core.errors import DataError
from edgeclf.core.results import Interval
from edgeclf.host import plots
from edgeclf.host.plots import Point

pytest.importorskip("matplotlib")

HISTORY = "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate,seconds\n1,1.9,0.4,1.5,0.5,0.1,3\n2,1.4,0.6,,,0.1,3\n"
POINTS = [Point(name, cost, 0.84, Interval(0.83, 0.85), cost, cost * 1.1) for name, cost in (("float32", 0.35), ("int8", 0.14))]
FULL = Point("full model", 1.2, 0.842, Interval(0.842, 0.842))


@pytest.fixture
def history(tmp_path: Path) -> Path:
    path = tmp_path / "history.csv"
    path.write_text(HISTORY)
    return path


def texts(svg: str) -> str:
    """All text in the SVG, as a reader of the page would see it."""
    return " ".join(ET.fromstring(svg).itertext())


def test_training_curves_are_a_whole_png(history: Path, tmp_path: Path) -> None:
    """The file is a picture of a readable size, and nothing is left beside it."""
    plots.training_curves(history, tmp_path / "curves.png")
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture is not None
    assert min(picture.shape[:2]) > 400
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "history.csv"]


def test_one_epoch_is_drawn_as_a_point(tmp_path: Path) -> None:
    """A line of one point would be invisible, so it has a marker: two curves in each of two panels."""
    (tmp_path / "h.csv").write_text("\n".join(HISTORY.splitlines()[:2]))
    svg = plots.curves_svg(plots.read_history(tmp_path / "h.csv"))
    markers = [
        use for use in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}use") if "var(--series-" in use.get("style", "")
    ]
    assert len(markers) >= 4


def test_a_history_without_validation_draws_training_alone(tmp_path: Path) -> None:
    """Missing columns are left out of the legend."""
    (tmp_path / "h.csv").write_text("epoch,loss,accuracy\n1,2,0.1\n2,1,0.5\n")
    svg = plots.curves_svg(plots.read_history(tmp_path / "h.csv"))
    assert "training" in texts(svg)
    assert "validation" not in texts(svg)


@pytest.mark.parametrize("text", ["", "epoch,loss\n", "a,b\n1,2\n"])
def test_a_file_without_history_is_named(tmp_path: Path, text: str) -> None:
    """An empty file, a head without rows, or other columns: DataError with the path."""
    (tmp_path / "h.csv").write_text(text)
    with pytest.raises(DataError, match=r"h\.csv"):
        plots.training_curves(tmp_path / "h.csv", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_svg_is_well_formed_and_asks_for_nothing_outside(history: Path) -> None:
    """No address is fetched, no script, no metadata; the size is left to the page."""
    svg = plots.curves_svg(plots.read_history(history))
    root = ET.fromstring(svg)
    assert "width" not in root.attrib
    assert "viewBox" in root.attrib
    assert "<metadata" not in svg
    assert all(not value.startswith("http") for element in root.iter() for name, value in element.attrib.items())


def test_colours_are_variables_of_the_page() -> None:
    """Ink and series follow the theme; no fixed black is left for a dark page to swallow."""
    svg = plots.cost_svg(FULL, POINTS, "ms", "cost")
    assert "var(--ink," in svg
    assert "var(--series-1," in svg
    assert "#000000" not in svg


def test_every_model_is_named_in_the_cost_figure() -> None:
    """Names are text beside the points, also for points on the same spot."""
    same = [Point(name, 0.35, 0.84, Interval(0.83, 0.85)) for name in ("float32", "float16", "dynamic-w8")]
    found = texts(plots.cost_svg(FULL, same, "ms", "cost"))
    assert all(name in found for name in ("full model", "float32", "float16", "dynamic-w8"))


def test_labels_are_text_and_not_markup_or_mathematics() -> None:
    """A label with < and $ reads the same in the figure."""
    svg = plots.confusion_svg([[3, 1], [0, 2]], ["<b>$x$", "a_b^c"], "matrix")
    assert "<b>" not in svg
    assert "<b>$x$" in texts(svg)
    assert "a_b^c" in texts(svg)


def test_the_confusion_matrix_shows_counts_of_pictures() -> None:
    """Every count above zero is written; empty cells stay empty."""
    found = texts(plots.confusion_svg([[31, 17], [0, 29]], ["cat", "dog"], "matrix")).split()
    assert {"31", "17", "29"} <= set(found)
    assert "0" not in found


def test_figures_of_one_page_share_no_id() -> None:
    """Two figures with the same content have different ids, or clipping would mix them up."""
    ids = [
        {
            e.get("id")
            for e in ET.fromstring(plots.cost_svg(FULL, POINTS, "ms", name)).iter("{http://www.w3.org/2000/svg}clipPath")
        }
        for name in ("one", "two")
    ]
    assert ids[0]
    assert ids[1]
    assert not ids[0] & ids[1]
