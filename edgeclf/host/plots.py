"""Figures: training curves, accuracy against cost, confusion matrices; as a PNG file, or as SVG text to stand in a page.

Colours are Okabe and Ito's (2008), told apart by colour-blind readers, and every series also has its own marker or dash.
In SVG they become CSS variables with the same colour as a fallback, so that a page can follow a dark or light theme.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgeclf.core import files
from edgeclf.core.errors import DataError, MissingExtra
from edgeclf.core.results import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#1f2933", "#c9ced6"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
MATRIX_CLASSES = 20
_VARIABLES = {INK: "--ink", FAINT: "--grid", **{colour: f"--series-{i}" for i, colour in enumerate(COLOURS)}}
_PLACES = (
    (9, 0, "left"),
    (-9, 0, "right"),
    (6, 11, "left"),
    (6, -11, "left"),
    (-6, 11, "right"),
    (-6, -11, "right"),
    (6, 22, "left"),
    (6, -22, "left"),
)
CURVES_HEIGHT_IN = 4.4
WIDTH_IN, HEIGHT_IN = 4.6, 3.3  # small, so that 9-point text is still readable when the figure is 340 pixels wide
_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.5, "axes.axisbelow": True,
    "legend.frameon": False, "svg.fonttype": "none", "text.parse_math": False, "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"], "axes.unicode_minus": True,
}  # fmt: skip


@dataclass(frozen=True)
class History:
    """Training history by column name: float64 arrays of one length, NaN where a field is empty or not a number."""

    columns: dict[str, npt.NDArray[np.float64]]

    def __getitem__(self, name: str) -> npt.NDArray[np.float64]:
        return self.columns[name]

    def has(self, name: str) -> bool:
        return name in self.columns and bool(np.isfinite(self.columns[name]).any())


@dataclass(frozen=True)
class Point:
    """One model in a picture of accuracy against cost: `cost` (above 0) with its spread, `top1` with an interval (fractions)."""

    name: str
    cost: float
    top1: float
    interval: Interval
    cost_low: float | None = None
    cost_high: float | None = None


def read_history(history_csv: Path) -> History:
    """The columns of `history.csv`. Raises DataError when it cannot be read, has no rows, or has no column `epoch`."""
    try:
        with history_csv.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{history_csv}: cannot be read: {error}") from error
    if not rows or "epoch" not in rows[0]:
        raise DataError(f"{history_csv}: no training history in it; expected the columns epoch, loss, accuracy, …")
    names = [name for name in rows[0] if name]
    return History({name: np.array([_number(row[name]) for row in rows]) for name in names})


def training_curves(history_csv: Path, out_png: Path) -> None:
    """Draw accuracy and loss over the epochs into `out_png`, written whole.

    `history_csv` has the columns epoch, loss, accuracy, val_loss, val_accuracy and others; of the four drawn, those
    that are missing or empty are left out. Raises DataError for a file without history.
    """
    history = read_history(history_csv)
    with drawing(out_png, height_in=CURVES_HEIGHT_IN) as figure:
        _draw_curves(figure, history)


def curves_svg(history: History) -> str:
    """The training curves as SVG text."""
    with _styled():
        figure = _figure(height_in=CURVES_HEIGHT_IN)
        _draw_curves(figure, history)
        return _svg(figure, "curves")


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


@contextlib.contextmanager
def _styled() -> Iterator[None]:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtra.for_extra("train", "matplotlib is not installed") from error
    with matplotlib.rc_context(_STYLE):
        yield


def _figure(width_in: float = WIDTH_IN, height_in: float = HEIGHT_IN) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def _draw_curves(figure: Figure, history: History) -> None:
    """Accuracy above loss, sharing the epochs."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, name, title, factor in ((upper, "accuracy", "accuracy, %", 100), (lower, "loss", "loss", 1)):
        for column, label, colour, dash in ((name, "training", COLOURS[0], "-"), (f"val_{name}", "validation", COLOURS[1], "--")):
            if history.has(column):
                marker = "o" if len(history["epoch"]) < 3 else ""
                axes.plot(history["epoch"], history[column] * factor, dash, color=colour, label=label, marker=marker, lw=1.6)
        axes.set_title(title)
    if upper.get_legend_handles_labels()[0]:
        upper.legend(loc="lower right")
    lower.set_xlabel("epoch")
    lower.xaxis.get_major_locator().set_params(integer=True)


@contextlib.contextmanager
def drawing(out_png: Path, width_in: float = WIDTH_IN, height_in: float = HEIGHT_IN) -> Iterator[Figure]:
    """An empty figure in the house style; when the block ends it is in `out_png`, whole. Raises MissingExtra."""
    with _styled():
        figure = _figure(width_in, height_in)
        yield figure
        with files.writing(out_png) as temporary:
            figure.savefig(temporary, format="png", dpi=150, facecolor="white")


def cost_svg(full: Point, points: Sequence[Point], axis: str, name: str) -> str:
    """Top-1 against a cost (`axis` is its label, with the unit) as SVG text; the full model is on a dotted line.

    Vertical bars are the intervals of the points, horizontal ones the spread of the cost, where there is one. `name` is a
    word for the figure that is unique in the page.
    """
    with _styled():
        figure = _figure()
        axes = figure.subplots()
        axes.axhline(full.top1 * 100, color=INK, linewidth=1, linestyle=":")
        for i, point in enumerate([full, *points]):
            _draw_point(axes, point, i - 1)
        cost_axis(axes, [cost for p in (full, *points) for cost in (p.cost_low or p.cost, p.cost_high or p.cost)])
        axes.set_xlabel(axis)
        axes.set_title("top-1 accuracy, %")
        axes.margins(0.16, 0.12)
        place_names(figure, axes, [full, *points])
        return _svg(figure, name)


def confusion_svg(confusion: Sequence[Sequence[int]], labels: Sequence[str], name: str) -> str:
    """A confusion matrix as SVG text: rows are the true classes, columns the answers, numbers are pictures.

    Right answers are blue and mistakes orange, darker with their share of the row. Meant for at most MATRIX_CLASSES classes.
    """
    side = matrix_side_in(len(labels))
    with _styled():
        figure = _figure(side, side)
        draw_confusion(figure.subplots(), confusion, labels)
        return _svg(figure, name)


def matrix_side_in(classes: int) -> float:
    """How wide and high the figure of a confusion matrix must be."""
    return max(WIDTH_IN, 0.36 * classes + 1.2)


def draw_confusion(axes: Axes, confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> None:
    """The matrix of `confusion_svg`."""
    counts = np.asarray(confusion)
    for i, j in np.argwhere(counts > 0):
        _draw_cell(axes, int(i), int(j), int(counts[i, j]), counts[i, j] / counts[i].sum())
    _class_ticks(axes, [short(label) for label in labels])


def _draw_point(axes: Axes, point: Point, index: int) -> None:
    """The full model has index -1."""
    colour = INK if index < 0 else COLOURS[index % len(COLOURS)]
    marker = "o" if index < 0 else MARKERS[index % len(MARKERS)]
    low, high = point.interval.low, point.interval.high
    up, down = max(0.0, high - point.top1), max(0.0, point.top1 - low)
    across = None
    if point.cost_low is not None and point.cost_high is not None:
        across = [[max(0.0, point.cost - point.cost_low)], [max(0.0, point.cost_high - point.cost)]]
    # Variants are hollow, because two of them often lie on the same spot.
    axes.errorbar(
        [point.cost], [point.top1 * 100], yerr=[[down * 100], [up * 100]], xerr=across, fmt=marker, color=colour,
        markerfacecolor=colour if index < 0 else "none", markersize=5 if index < 0 else 8, markeredgewidth=1.6,
        elinewidth=1, capsize=2,
    )  # fmt: skip


def cost_axis(axes: Axes, costs: list[float]) -> None:
    """From zero, so that lengths can be compared; logarithmic when the costs differ by more than ten times."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if max(costs) > 10 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xlim(left=0, right=max(costs) * 1.2)


def place_names(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Write each name beside its point, where it covers neither a point nor another name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()
    centres = [axes.transData.transform((p.cost, p.top1 * 100)) for p in points]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in centres]
    inside = axes.get_window_extent(renderer)
    for point in points:
        boxes: list[tuple[int, int, Any, Any]] = []
        for dx, dy, across in _PLACES:
            text = axes.annotate(
                point.name, (point.cost, point.top1 * 100), (dx, dy), textcoords="offset points", ha=across, va="center"
            )
            box = text.get_window_extent(renderer)
            clashes = sum(box.overlaps(other) for other in taken) + 2 * (
                box.x0 < inside.x0 or box.x1 > inside.x1 or box.y1 > inside.y1
            )
            boxes.append((clashes, len(boxes), text, box))
        best = min(boxes, key=lambda b: b[:2])
        taken.append(best[3])
        for _, _, text, _ in boxes:
            if text is not best[2]:
                text.remove()


def _draw_cell(axes: Axes, row: int, column: int, count: int, share: float) -> None:
    from matplotlib.patches import Rectangle

    right = row == column
    axes.add_patch(
        Rectangle(
            (column - 0.5, row - 0.5), 1, 1, linewidth=0,
            facecolor=COLOURS[0] if right else COLOURS[1], alpha=0.12 + (0.4 * share if right else 0.6 * min(1.0, share * 4)),
        )
    )  # fmt: skip
    axes.text(column, row, str(count), ha="center", va="center", fontsize=7.5 if count < 1000 else 6.5)


def _class_ticks(axes: Axes, labels: list[str]) -> None:
    places = range(len(labels))
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xticks(places, labels, rotation=90 if max(map(len, labels)) > 2 else 0)
    axes.set_yticks(places, labels)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.set_aspect("equal")
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    for spine in axes.spines.values():
        spine.set_visible(False)


def short(label: str, longest: int = 14) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _svg(figure: Figure, salt: str) -> str:
    """SVG text to stand inside HTML: as wide as its box, themed colours, no prologue and no metadata.

    `salt` keeps ids apart when several figures stand in one page.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.S)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    for colour, variable in _VARIABLES.items():
        text = text.replace(f": {colour}", f": var({variable}, {colour})")
    return text.strip()
