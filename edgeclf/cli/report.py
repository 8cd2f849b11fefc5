"""The verb report: every exported file beside the full model, as a page, a text and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclf.cli.common import need_training, print_json, progress, say
from edgeclf.cli.measure import Board

if TYPE_CHECKING:
    from edgeclf.host.report.comparison import Comparison


def report(
    run: Annotated[Path | None, typer.Argument(help="A run folder.", show_default="the newest under runs/")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Where its data is now, or data for an imported run.", show_default="the run's own"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the three files.", show_default="the run folder")] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Threads of each exported file.", show_default="what suits it"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of timing; fewer than 6 cannot tell who is faster.")] = 20,
    add: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="OUT.json", help="What 'edgeclf bench --device-report' wrote on a board; several times for several."
        ),
    ] = None,
    emulate: Annotated[
        list[Board] | None, typer.Option(help="Also count instructions on this board, emulated; a count is no latency.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print report.json too.")] = False,
) -> None:
    """Compare every exported file of a run with the full model: report.html, report.json and report.md.

    Example: edgeclf report runs/compact-photos
    """
    need_training("report")
    from edgeclf.host.report.report import HTML, make_report
    from edgeclf.host.run import open_run

    opened = open_run(run)
    if data is not None:
        from edgeclf.host.imports.imports import give_data

        opened = give_data(opened, data)
    comparison = make_report(opened, out, threads, rounds, bar=progress, add=add or (), emulate=[b.value for b in emulate or ()])
    if as_json:
        print_json(comparison.to_json())
    else:
        _print_summary(comparison)
    page = (out or opened.folder) / HTML
    say(f"report: {page}")


def _print_summary(comparison: Comparison) -> None:
    """The first table of the report, and its verdict."""
    from edgeclf.host.report.tables import glance

    table = glance(comparison)
    lines = [table.head] + [tuple(f"{cell.text} ({cell.note})" if cell.note else cell.text for cell in row) for row in table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.head))]
    for line in lines:
        print(
            "  ".join(
                text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
        )
    print(f"\n{comparison.verdict.sentence}")
    for remark in comparison.verdict.remarks:
        print(remark)
