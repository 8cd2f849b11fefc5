"""Curves of an evaluation: ROC and precision-recall of each class against the rest, reliability, confusion; drawn and as numbers.

`curves.json` is one object, fractions throughout, nothing in it is NaN:

    edgeclf_curves   1, the version of this layout
    classes          list of {label, pictures, auc, average_precision, roc: {false_positive_rate, true_positive_rate},
                     precision_recall: {recall, precision}}; all null but the
                     label where a class has no pictures, or has all of them
    macro            {auc, average_precision}: the means over the classes that have them, or null
    calibration      core.calibrate.Calibration
    confusion        pictures of class i that were called j
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeclf.core import files
from edgeclf.core.calibrate import Calibration, softmax
from edgeclf.core.errors import MissingExtra
from edgeclf.host import plots
from edgeclf.host.plots import COLOURS, FAINT, INK, MATRIX_CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from edgeclf.runtime.accuracy import Evaluation

SCHEMA = 1
MOST_POINTS = 200  # of one curve
PANELS = 20  # classes that are drawn; of more, those with the lowest area
PANELS_ACROSS, PANEL_IN = 5, 1.6
ROC, PRECISION_RECALL, RELIABILITY, CONFUSION, NUMBERS = (
    "roc.png",
    "precision-recall.png",
    "reliability.png",
    "confusion.png",
    "curves.json",
)

Line = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class ClassCurves:
    """One class against the rest: `roc` is (false positive rate, true positive rate), `precision_recall` (recall, precision).

    Areas are over all thresholds; the lines are thinned to MOST_POINTS. `average_precision` is the sum over the thresholds of
    precision times the step in recall, without interpolation. `share` of all pictures show the class: the precision of guesses.
    """

    label: str
    pictures: int
    share: float
    auc: float
    average_precision: float
    roc: Line
    precision_recall: Line


@dataclass(frozen=True)
class Curves:
    """All classes in label order; None for a class without pictures, or without pictures of others."""

    labels: tuple[str, ...]
    classes: tuple[ClassCurves | None, ...]

    @property
    def drawn(self) -> list[ClassCurves]:
        return [found for found in self.classes if found]

    @property
    def macro(self) -> dict[str, float] | None:
        """Means over the classes that have curves."""
        if not self.drawn:
            return None
        return {name: float(np.mean([getattr(c, name) for c in self.drawn])) for name in ("auc", "average_precision")}

    def areas(self) -> dict[str, Any]:
        """The areas without the lines."""
        rows = [{"label": c.label, "auc": c.auc, "average_precision": c.average_precision} for c in self.drawn]
        return {"macro": self.macro, "per_class": rows}


def need_packages() -> None:
    """Raise MissingExtra when scikit-learn or matplotlib is not installed; imports neither."""
    for package, name in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(package) is None:
            raise MissingExtra.for_extra("train", f"{name}, which draws the curves, is not installed")


def curves(probabilities: npt.NDArray[np.float32], truth: npt.NDArray[np.integer[Any]], labels: tuple[str, ...]) -> Curves:
    """Curves of `probabilities` (pictures, classes), all finite, against `truth` (pictures,)."""
    return Curves(labels, tuple(_curves(label, probabilities[:, i], truth == i) for i, label in enumerate(labels)))


def write(found: Evaluation, folder: Path) -> Curves:
    """Draw four PNG files and write `curves.json` into `folder`, each whole. Raises MissingExtra or StorageError.

    Pictures whose scores are no numbers are left out of the curves.
    """
    need_packages()
    labels, accuracy = found.card.labels, found.accuracy
    probabilities = softmax(found.scores, found.card.temperature)
    finite = np.isfinite(probabilities).all(axis=1)
    made = curves(probabilities[finite], found.truth[finite], labels)
    _panels(folder / ROC, made, "roc")
    _panels(folder / PRECISION_RECALL, made, "precision_recall")
    with plots.drawing(folder / RELIABILITY, height_in=4.4) as figure:
        _draw_reliability(figure, found.calibration)
    side = plots.matrix_side_in(min(len(labels), MATRIX_CLASSES))
    with plots.drawing(folder / CONFUSION, side, side) as figure:
        if len(labels) <= MATRIX_CLASSES:
            plots.draw_confusion(figure.subplots(), accuracy.confusion, labels)
        else:
            _draw_many(figure.subplots(), accuracy.confusion)
    files.write_json(folder / NUMBERS, _document(made, found))
    return made


def _document(made: Curves, found: Evaluation) -> dict[str, Any]:
    return {
        "edgeclf_curves": SCHEMA,
        "classes": [_class_json(label, c) for label, c in zip(made.labels, made.classes, strict=True)],
        "macro": made.macro,
        "calibration": asdict(found.calibration),
        "confusion": found.accuracy.confusion,
    }


def _class_json(label: str, c: ClassCurves | None) -> dict[str, Any]:
    if c is None:
        return {"label": label, **dict.fromkeys(("pictures", "auc", "average_precision", "roc", "precision_recall"))}
    return {
        "label": label,
        "pictures": c.pictures,
        "auc": c.auc,
        "average_precision": c.average_precision,
        "roc": dict(zip(("false_positive_rate", "true_positive_rate"), c.roc, strict=True)),
        "precision_recall": dict(zip(("recall", "precision"), c.precision_recall, strict=True)),
    }


def _curves(label: str, scores: npt.NDArray[np.float32], mine: npt.NDArray[np.bool_]) -> ClassCurves | None:
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    if not mine.any() or mine.all():
        return None
    false_rate, true_rate, _ = roc_curve(mine, scores)
    precision, recall, _ = precision_recall_curve(mine, scores)
    return ClassCurves(
        label, int(mine.sum()), float(mine.mean()),
        float(auc(false_rate, true_rate)), float(average_precision_score(mine, scores)),
        _thin(false_rate, true_rate), _thin(recall[::-1], precision[::-1]),
    )  # fmt: skip


def _thin(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> Line:
    """At most MOST_POINTS of a line, evenly along its own length, the two ends among them."""
    if len(x) > MOST_POINTS:
        length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        rows = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MOST_POINTS - 1)).clip(0, len(x) - 1))
        rows = np.union1d(rows, [0, len(x) - 1])
        x, y = x[rows], y[rows]
    return tuple(round(float(v), 6) for v in x), tuple(round(float(v), 6) for v in y)


def _panels(out_png: Path, made: Curves, kind: str) -> None:
    """One small panel a class, with its area; of many classes those that are told apart worst."""
    roc = kind == "roc"
    area = attrgetter("auc" if roc else "average_precision")
    shown = made.drawn if len(made.drawn) <= PANELS else sorted(made.drawn, key=area)[:PANELS]
    across = max(2, min(PANELS_ACROSS, len(shown)))
    down = max(1, math.ceil(len(shown) / across))
    with plots.drawing(out_png, across * PANEL_IN + 0.5, down * (PANEL_IN + 0.25) + 0.6) as figure:
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, c in zip(panels, shown, strict=False):
            _draw_panel(axes, c.roc if roc else c.precision_recall, f"{plots.short(c.label)}  {area(c):.3f}")
            axes.plot(*(((0, 1), (0, 1)) if roc else ((0, 1), (c.share, c.share))), color=INK, linestyle=":", linewidth=0.8)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        _name_axes(figure, made, shown, roc)


def _draw_panel(axes: Axes, line: Line, title: str) -> None:
    axes.plot(*line, color=COLOURS[0], linewidth=1.6, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), aspect="equal")
    axes.set_title(title)


def _name_axes(figure: Figure, made: Curves, shown: Sequence[ClassCurves], roc: bool) -> None:
    some = f", the {len(shown)} lowest of {len(made.drawn)} classes" if len(shown) < len(made.drawn) else ""
    what = "ROC, area under each curve" if roc else "precision and recall, average precision"
    mean = f"; mean {(made.macro or {}).get('auc' if roc else 'average_precision', 0.0):.3f}" if made.macro else ""
    figure.suptitle(f"{what}{some}{mean}", fontsize=9, x=0.01, ha="left", color=INK)
    figure.supxlabel("false positive rate" if roc else "recall", fontsize=9)
    figure.supylabel("true positive rate" if roc else "precision", fontsize=9)


def _draw_reliability(figure: Figure, found: Calibration) -> None:
    """Accuracy of each bin as a bar over its confidence, the diagonal where they agree, and below how many pictures it holds."""
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    left, width = [b.low for b in found.bins], [b.high - b.low for b in found.bins]
    upper.bar(
        left, [b.accuracy for b in found.bins], width, align="edge", color=COLOURS[5], edgecolor="white", label="share right"
    )
    upper.plot(
        [b.confidence for b in found.bins],
        [b.accuracy for b in found.bins],
        "o",
        color=COLOURS[0],
        ms=4,
        label="at the mean confidence",
    )
    upper.plot((0, 1), (0, 1), ":", color=INK, linewidth=1, label="as sure as right")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    upper.set_title(f"share right by confidence; ECE {found.ece:.3f}, temperature {found.temperature:.3g}")
    upper.legend(loc="upper left")
    lower.bar(left, [b.pictures for b in found.bins], width, align="edge", color=FAINT, edgecolor="white")
    lower.set_title("pictures")
    lower.set_xlabel("confidence: probability of the likeliest class")


def _draw_many(axes: Axes, confusion: Sequence[Sequence[int]]) -> None:
    """A matrix too large for names and numbers: the share of each row, darker is more."""
    counts = np.asarray(confusion, np.float64)
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.grid(False)
    axes.set_xlabel("answer, by number of the class")
    axes.set_ylabel("true class")
