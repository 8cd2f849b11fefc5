"""The verb compare: runs and files side by side on the same held-out pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclf.cli.common import console, print_json, progress, say
from edgeclf.cli.options import Json

if TYPE_CHECKING:
    from edgeclf.host.report.side_by_side import Pair, Row, SideBySide


def compare(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|FILE...", help="Runs, for their full models, and exported files.", show_default=False),
    ],
    data: Annotated[
        str | None, typer.Option(help="Pictures to compare on.", show_default="what the first was trained on")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take only so many pictures, evenly spread.", min=1)] = None,
    rounds: Annotated[
        int, typer.Option(help="Rounds of timing; fewer than 6 cannot tell who is faster, 0 times nothing.", min=0, max=1000)
    ] = 20,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each exported file.", min=1, show_default="what suits it")
    ] = None,
    as_json: Json = False,
) -> None:
    """Set models side by side on the same held-out pictures: accuracy, size, latency, and whether a difference is shown.

    The p-value is McNemar's exact test on the pictures that two models answer differently, adjusted for the number of pairs
    (Holm). Each model gets the pictures in its own size; their classes must be the same.

    Example: edgeclf compare runs/compact-photos runs/resnet8-photos
    """
    from edgeclf.host.report.side_by_side import compare_models, enter
    from edgeclf.host.understand.evaluation import pictures

    entrants = enter(models, threads)
    catalogue = pictures(data, next((entrant.run for entrant in entrants if entrant.run), None), models[0], "--data")
    found = compare_models(entrants, catalogue, limit, rounds, progress)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)


def _print(found: SideBySide) -> None:
    from rich import box
    from rich.table import Table

    print(
        f"{found.pictures:,} pictures of {found.data}: {found.which}; change, p, same answers and speed against the first model"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model", overflow="fold")
    timed = found.rows[0].timing is not None
    heads = ("top-1, % (95%)", "change, points (95%)", "p", "same, %", "input", "size")
    for head in (*heads, *(("p50, ms", "speed") if timed else ())):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.rows:
        pair = next((p for p in found.pairs if (p.first, p.second) == (found.rows[0].name, row.name)), None)
        table.add_row(*_cells(row, pair, found.pictures))
    console().print(table)
    print(found.sentence)
    if found.skipped:
        say(f"skipped: {found.skipped} unreadable pictures")
    machine = found.machine
    if timed and machine.load > machine.cores:
        say(f"warning: the machine was busy (load {machine.load:.1f} on {machine.cores} cores), so the times are less certain")


def _cells(row: Row, pair: Pair | None, pictures: int) -> list[str]:
    from edgeclf.host import wording
    from edgeclf.host.report.tables import NOTHING, speedup_cell

    image = row.image
    share, low, high = (wording.points(value, pictures) for value in _top1(row))
    cells = [row.name, f"{share} ({low} to {high})"]
    if pair:
        drop = pair.drop
        low, high = (wording.signed(-value, pictures) for value in (drop.interval.high, drop.interval.low))
        cells += [f"{wording.signed(-drop.drop, pictures)} ({low} to {high})", wording.p_value(pair.p_holm)]
        cells.append(wording.points(row.agreement, pictures))
    else:
        cells += [NOTHING] * 3
    cells += [f"{image.width}×{image.height}", wording.size(row.size.file_bytes)]
    if row.timing:
        cells += [
            wording.milliseconds(row.timing.latency.p50_ms),
            speedup_cell(row.over_first).text if row.over_first else NOTHING,
        ]
    return cells


def _top1(row: Row) -> tuple[float, float, float]:
    interval = row.accuracy.top1_interval
    return row.accuracy.top1, interval.low, interval.high
