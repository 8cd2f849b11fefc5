"""The tables of a report, as text in cells: what the HTML page and the Markdown file both show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclf.core.results import Interval
from edgeclf.host.report.cells import NOTHING as NOTHING
from edgeclf.host.report.cells import Cell as Cell
from edgeclf.host.report.cells import Table as Table
from edgeclf.host.report.comparison import FULL, Comparison, Model, Variant
from edgeclf.host.report.timing import Speedup
from edgeclf.host.understand.compare import ClassChange
from edgeclf.host.wording import decimals, milliseconds, p_value, points, signed, size, times

MOST_CLASSES = 20
MOST_PAIRS = 15
NOT_MEASURABLE = "no measurable difference"


def glance(comparison: Comparison) -> Table:
    """One line a model: accuracy, what it lost, time and size."""
    full = comparison.full
    rows = [(Cell(FULL, full.file), Cell(_percent(full.accuracy.top1, full)), Cell(NOTHING), _milliseconds(full), _bytes(full))]
    for v in comparison.variants:
        rows.append(
            (Cell(v.name), Cell(_percent(v.model.accuracy.top1, v.model)), _change(v), _milliseconds(v.model), _bytes(v.model))
        )
    return Table(("model", "top-1, %", "change, points", "p50, ms", "file"), tuple(rows), _chosen(comparison))


def accuracy(comparison: Comparison) -> Table:
    """Top-1 and top-5 with intervals, and the paired comparison with the full model."""
    rows = [(Cell(FULL), *_accuracies(comparison.full), *[Cell(NOTHING)] * 5)]
    for v in comparison.variants:
        drop, found = v.against.drop, v.against
        agreement = Cell(_percent(found.agreement, v.model), _interval(found.agreement_interval, drop.total))
        flips = Cell(f"{drop.lost:,}", mark="quiet" if not drop.lost else ""), Cell(f"{drop.won:,}")
        rows.append((Cell(v.name), *_accuracies(v.model), _change(v), Cell(p_value(drop.p_value)), agreement, *flips))
    head = (
        "model",
        "top-1, %",
        "top-5, %",
        "change of top-1, points",
        "McNemar p",
        "same answer, %",
        "right → wrong",
        "wrong → right",
    )
    return Table(head, tuple(rows), _chosen(comparison))


def speed(comparison: Comparison) -> Table:
    """Percentiles of one picture, and what can be said of who is faster."""
    rows = [
        (
            Cell(FULL, comparison.full.runtime),
            *_percentiles(comparison.full),
            Cell(NOTHING),
            Cell(NOTHING),
            Cell(comparison.full.threads),
        )
    ]
    for v in comparison.variants:
        over = speedup_cell(v.over_float32) if v.over_float32 else Cell(NOTHING)
        rows.append(
            (Cell(v.name, v.model.runtime), *_percentiles(v.model), over, speedup_cell(v.over_full), Cell(v.model.threads))
        )
    head = ("model", "p50, ms", "p90, ms", "p99, ms", "calls", "against float32", "against the full model", "threads")
    return Table(head, tuple(rows), _chosen(comparison))


def sizes(comparison: Comparison) -> Table:
    """Bytes, bytes after gzip, memory, and the precision that the tensors show."""
    reference = comparison.variant("float32")
    base = (reference.model if reference else comparison.full).size.file_bytes
    head_ratio = "of float32" if reference else "of the full model"
    rows: list[tuple[Cell, ...]] = []
    for v in comparison.variants:
        precision = Cell(v.precision, "as named" if v.named_right else f"named {v.name}", "" if v.named_right else "bad")
        ratio, zipped = Cell(f"{v.model.size.file_bytes / base:.2f}×"), Cell(size(v.model.size.gzip_bytes))
        rows.append((Cell(v.name, v.model.file), _bytes(v.model), ratio, zipped, _memory(v.model), precision, Cell(v.io)))
    full, floats = comparison.full, [Cell("float32")] * 2
    zipped = Cell(size(full.size.gzip_bytes))
    rows.insert(0, (Cell(FULL, full.file), _bytes(full), Cell(NOTHING), zipped, _memory(full), *floats))
    head = ("model", "file", head_ratio, "after gzip", "peak memory", "precision found", "input and output")
    return Table(head, tuple(rows), _chosen(comparison))


def inside(comparison: Comparison) -> Table:
    """What is computed and stored, how much of it is zero, how far probabilities are off; instructions where counted."""
    full, boards = comparison.full, comparison.emulated
    rows: list[tuple[Cell, ...]] = [
        (
            Cell(FULL), Cell(NOTHING), Cell(f"{comparison.parameters:,}", "parameters"), Cell(NOTHING), *_trust(full),
            *[Cell(NOTHING)] * len(boards),
        )
    ]  # fmt: skip
    for v in comparison.variants:
        found = v.inside
        counts = (f"{found.macs:,}", f"{found.weights:,}", f"{found.zeros:.1%}") if found else (NOTHING,) * 3
        instructions = [Cell(f"{b.instructions[v.name]:,}" if v.name in b.instructions else NOTHING) for b in boards]
        rows.append((Cell(v.name), *(Cell(count) for count in counts), *_trust(v.model), *instructions))
    head = (
        "model", "multiply-accumulates", "weights", "zeros among them", "ECE, points", "mean confidence, %",
        *(f"instructions, emulated {board.name}" for board in boards),
    )  # fmt: skip
    return Table(head, tuple(rows), _chosen(comparison))


def _trust(model: Model) -> tuple[Cell, Cell]:
    return Cell(f"{100 * model.trust.ece:.2f}"), Cell(f"{100 * model.trust.confidence:.1f}")


def classes(comparison: Comparison) -> Table:
    """Recall of each class and its change; for many classes only those that changed most in any variant."""
    found = [v.against.classes for v in comparison.variants]
    largest = [max(abs(changes[i].change) for changes in found) for i in range(len(comparison.labels))]
    shown: Sequence[int] = range(len(comparison.labels))
    if len(comparison.labels) > MOST_CLASSES:
        shown = sorted(shown, key=lambda i: -largest[i])[:MOST_CLASSES]
    rows = []
    for i in shown:
        first = found[0][i]
        recall = Cell(f"{first.before * 100:.1f}")
        rows.append((Cell(first.label), Cell(f"{first.pictures:,}"), recall, *(_class_cell(changes[i]) for changes in found)))
    return Table(("class", "pictures", "full, %", *(v.name for v in comparison.variants)), tuple(rows))


def confused_pairs(comparison: Comparison) -> Table:
    """The pairs that the full model or the variant in focus mixes up most: true class, answer, pictures."""
    focus = comparison.focus()
    full, small = (np.array(m.accuracy.confusion) for m in (comparison.full, focus.model))
    wrong = np.maximum(full, small) * ~np.eye(len(full), dtype=bool)
    order = [divmod(int(k), len(full)) for k in np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]]
    rows = [
        (Cell(f"{comparison.labels[i]} → {comparison.labels[j]}"), Cell(str(full[i, j])), Cell(str(small[i, j])))
        for i, j in order
        if wrong[i, j]
    ]
    return Table(("true class → answer", FULL, focus.name), tuple(rows))


def _chosen(comparison: Comparison) -> int | None:
    names = [v.name for v in comparison.variants]
    return names.index(comparison.verdict.variant) + 1 if comparison.verdict.variant in names else None


def _percent(share: float, model: Model) -> str:
    return f"{share * 100:.{decimals(model.accuracy.pictures)}f}"


def _interval(interval: Interval, pictures: int) -> str:
    return f"{points(interval.low, pictures)} to {points(interval.high, pictures)}"


def _accuracies(model: Model) -> tuple[Cell, Cell]:
    found, n = model.accuracy, model.accuracy.pictures
    return (
        Cell(_percent(found.top1, model), _interval(found.top1_interval, n)),
        Cell(_percent(found.top5, model), _interval(model.top5_interval, n)),
    )


def _change(variant: Variant) -> Cell:
    drop = variant.against.drop
    interval = f"{signed(-drop.interval.high, drop.total)} to {signed(-drop.interval.low, drop.total)}"
    mark = "bad" if drop.interval.low > 0 else "good" if drop.interval.high < 0 else ""
    return Cell(signed(-drop.drop, drop.total), interval, mark)


def _milliseconds(model: Model) -> Cell:
    return Cell(milliseconds(model.timing.latency.p50_ms))


def _percentiles(model: Model) -> tuple[Cell, ...]:
    found, timing = model.timing.latency, model.timing
    middle = f"{milliseconds(timing.p25_ms)} to {milliseconds(timing.p75_ms)}"
    return (
        Cell(milliseconds(found.p50_ms), middle),
        Cell(milliseconds(found.p90_ms)),
        Cell(milliseconds(found.p99_ms)),
        Cell(f"{found.runs:,}"),
    )


def speedup_cell(found: Speedup) -> Cell:
    """Says who is faster only where the rounds can tell."""
    if not found.measurable:
        return Cell(NOT_MEASURABLE, f"{found.interval.low:.2f} to {found.interval.high:.2f}×", "quiet")
    if found.factor >= 1:
        return Cell(f"{times(found.factor)} faster", f"{times(found.interval.low)} to {times(found.interval.high)}")
    return Cell(
        f"{times(1 / found.factor)} slower", f"{times(1 / found.interval.high)} to {times(1 / found.interval.low)}", "bad"
    )


def _bytes(model: Model) -> Cell:
    return Cell(size(model.size.file_bytes))


def _memory(model: Model) -> Cell:
    found = model.memory
    return Cell(size(found.process_bytes), f"{size(found.model_bytes)} after import") if found else Cell(NOTHING)


def _class_cell(change: ClassChange) -> Cell:
    if not change.lost and not change.won:
        return Cell("0", mark="quiet")
    mark = ("bad" if change.change < 0 else "good") if change.significant else ""
    counts = f"{change.lost} lost, {change.won} won"
    return Cell(signed(change.change, 0) + (" *" if change.significant else ""), counts, mark)
