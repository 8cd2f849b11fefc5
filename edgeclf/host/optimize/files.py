"""What a search for the best file leaves in its folder: the result as JSON, a table of the files, and the Pareto figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeclf.core import files
from edgeclf.core.results import Interval
from edgeclf.host import plots, wording
from edgeclf.host.optimize.choice import Entrant, checks, holds
from edgeclf.host.plots import COLOURS, FAINT, INK, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from edgeclf.host.optimize.optimize import Optimized

RESULT, TABLE, FIGURE = "optimize.json", "candidates.csv", "pareto.png"
COLUMNS = (
    "trial", "state", "network", "variant", "ranges", "treatment", "kept", "drop", "drop_low", "drop_high", "file_bytes",
    "gzip_bytes", "p50_ms", "p90_ms", "instructions", "holds", "pareto", "winner", "reason",
)  # fmt: skip
WIDTH_IN, HEIGHT_IN = 7.0, 4.4
COLOUR_MAP = "viridis"  # read by colour-blind people too


def write(found: Optimized) -> None:
    """The three files, each whole."""
    folder = found.search.folder
    rows = candidates(found)
    files.write_json(folder / RESULT, to_json(found, rows))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(folder / TABLE, text.getvalue())
    with plots.drawing(folder / FIGURE, WIDTH_IN, HEIGHT_IN) as figure:
        draw(figure, found)


def to_json(found: Optimized, rows: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The result for machines: drops are fractions of validation pictures, times milliseconds, sizes bytes."""
    search, board, winner = found.search, found.board, found.choice.winner if found.choice else None
    return {
        "run": str(search.run.folder), "folder": str(search.folder), "train": list(search.train), "io": search.io,
        "data_fingerprint": search.settings["fingerprint"],
        "device": {"name": board.name or None, "here": board.here, "instructions_counted": board.counted},
        "ranked_by": f"{'instructions' if board.counted else 'p50'} on {board.ranked_on}",
        "machine": asdict(found.costs.machine), "limits": found.limits.to_json(),
        "validation_pictures": found.entrants[0].drop.total,
        "candidates": list(rows if rows is not None else candidates(found)),
        "pareto": sorted(found.front), "winner": winner.number if winner else None, "reason": found.reason,
        "refused": list(found.refused),
        "exported": {**asdict(found.exported), "path": str(found.exported.path)} if found.exported else None,
    }  # fmt: skip


def candidates(found: Optimized) -> list[dict[str, Any]]:
    """A row for each trial, in their order; None where nothing was measured."""
    entrants = {entrant.number: entrant for entrant in found.entrants}
    rows = []
    for trial in found.trials:
        made, entrant = trial.configuration, entrants.get(trial.number)
        measured = _measured(entrant, found) if entrant else {}
        named = {key: getattr(made, key) for key in ("variant", "ranges", "treatment", "kept")}
        row = {"trial": trial.number, "state": trial.state, "network": made.network.name, **named, "reason": trial.reason}
        rows.append({**dict.fromkeys(COLUMNS), **row, **measured})
    return rows


def _measured(entrant: Entrant, found: Optimized) -> dict[str, Any]:
    drop, latency = entrant.drop, entrant.timing.latency
    return {
        "drop": drop.drop, "drop_low": drop.interval.low, "drop_high": drop.interval.high,
        "file_bytes": entrant.file_bytes, "gzip_bytes": entrant.gzip_bytes,
        "p50_ms": latency.p50_ms, "p90_ms": latency.p90_ms, "instructions": entrant.instructions,
        "holds": holds(entrant, found.limits), "pareto": entrant.number in found.front,
        "winner": bool(found.choice and found.choice.winner is entrant),
    }  # fmt: skip


def draw(figure: Figure, found: Optimized) -> None:
    """Drop against cost; colour is the size of the file. Files on the front have an outline and a name, the winner is a star."""
    axes = figure.subplots()
    shown = [e for e in found.entrants if not found.board.counted or e.instructions is not None]
    on_front = sorted((e for e in shown if e.number in found.front), key=lambda e: (e.cost, e.drop.drop))
    _limits(axes, found)
    _stairs(axes, on_front)
    _scatter(figure, axes, found, shown)
    unit = (
        f"million instructions of one inference, emulated {found.board.title}"
        if found.board.counted
        else "p50 on this machine, ms"
    )
    axes.set_xlabel(unit)
    axes.set_title(f"drop in points of top-1, {shown[0].drop.total:,} validation pictures")
    axes.margins(0.12, 0.14)
    plots.cost_axis(axes, [_x(e) for e in shown])
    plots.place_names(figure, axes, [_point(e) for e in _named(on_front, found)])


def _x(entrant: Entrant) -> float:
    return entrant.cost if entrant.instructions is None else entrant.cost / 1e6


def _point(entrant: Entrant) -> Point:
    return Point(entrant.configuration.label, _x(entrant), entrant.drop.drop, Interval(0.0, 0.0))


def _named(on_front: Sequence[Entrant], found: Optimized) -> list[Entrant]:
    """One name a spot: the winner, and the first of the front's files that lie at the same cost and drop."""
    winner = [found.choice.winner] if found.choice else []
    spots = {(round(e.cost, 9), e.drop.drop): e for e in [*reversed(on_front), *winner]}
    return list(spots.values())


def _limits(axes: Axes, found: Optimized) -> None:
    """The full model at 0, and lines for the limits that have a place here."""
    axes.axhline(0, color=INK, linewidth=1, linestyle=":")
    if found.limits.drop is not None:
        axes.axhline(found.limits.drop * 100, color=COLOURS[1], linewidth=1, linestyle="--", label="--max-drop, for the interval")
    if found.limits.latency_ms is not None and not found.board.counted:
        axes.axvline(found.limits.latency_ms, color=COLOURS[3], linewidth=1, linestyle="-.", label="--max-latency-ms")


def _stairs(axes: Axes, on_front: Sequence[Entrant]) -> None:
    """The front of drop and cost alone; files that are on it for their size lie above."""
    lowest, corners = float("inf"), []
    for entrant in on_front:
        if entrant.drop.drop < lowest:
            lowest = entrant.drop.drop
            corners.append(entrant)
    axes.step([_x(e) for e in corners], [e.drop.drop * 100 for e in corners], where="post", color=INK, lw=1, label="Pareto front")


def _scatter(figure: Figure, axes: Axes, found: Optimized, shown: Sequence[Entrant]) -> None:
    """Circles, outlined on the front; crosses for files that do not hold the limits; bars are 95% intervals of the front."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    sizes = [e.file_bytes for e in shown]
    scale = ScalarMappable(LogNorm(min(sizes) * 0.99, max(sizes) * 1.01), COLOUR_MAP)
    winner = found.choice.winner if found.choice else None
    limited = bool(checks(shown[0], found.limits))
    for entrant in (e for e in shown if e.number in found.front):
        low, high = entrant.drop.interval.low * 100, entrant.drop.interval.high * 100
        axes.plot([_x(entrant)] * 2, [low, high], color=FAINT, linewidth=1.2, zorder=1)
    for marker, area, label, group in (
        ("x", 22, "does not hold the limits", [e for e in shown if not holds(e, found.limits)]),
        ("o", 30, "holds the limits" if limited else "", [e for e in shown if holds(e, found.limits) and e is not winner]),
        ("*", 170, "winner", [winner] if winner else []),
    ):
        _markers(axes, group, marker, area, label, scale.to_rgba(np.array([float(e.file_bytes) for e in group])), found.front)
    ticks = sorted({min(sizes), round((min(sizes) * max(sizes)) ** 0.5), max(sizes)})
    bar = figure.colorbar(scale, ax=axes, label="size of the file")
    bar.minorticks_off()
    bar.set_ticks(ticks, labels=[wording.size(tick) for tick in ticks])
    figure.legend(loc="outside lower center", ncols=3)


def _markers(
    axes: Axes, group: Sequence[Entrant], marker: str, area: float, label: str, colours: Any, on_front: Collection[int]
) -> None:
    if not group:
        return
    outlined: dict[str, Any] = {} if marker == "x" else {"edgecolors": [INK if e.number in on_front else "none" for e in group]}
    xs, ys = [_x(e) for e in group], [e.drop.drop * 100 for e in group]
    axes.scatter(xs, ys, area, c=colours, marker=marker, label=label, zorder=3, linewidths=1.1, **outlined)
