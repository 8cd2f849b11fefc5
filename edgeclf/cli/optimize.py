"""The verb that finds the best file for a board: optimize."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclf.cli.cluster import working
from edgeclf.cli.common import console, need_training, print_json, progress, say
from edgeclf.cli.export import IoType
from edgeclf.cli.options import Address, CpusPerTrial, Engine, GpusPerTrial, Json
from edgeclf.cli.train import epoch_line

if TYPE_CHECKING:
    from edgeclf.host.optimize.optimize import Optimized, Search
    from edgeclf.host.optimize.space import Network
    from edgeclf.host.optimize.study import Trial


class Trained(StrEnum):
    """The choices of --train."""

    qat = "qat"
    channels = "channels"
    sparsity = "sparsity"
    clustering = "clustering"


def optimize(
    run: Annotated[Path | None, typer.Argument(help="Run folder.", show_default="the newest finished one under runs/")] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The board: pi4, pi5, or what 'edgeclf devices' lists.", show_default="this machine"),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="It may lose so many points of top-1, its 95% interval included."),
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="A picture may take so long, as measured on this machine (p50).")
    ] = None,
    max_size_kb: Annotated[float | None, typer.Option(metavar="KB", help="The file may be so large; 1 kB is 1000 bytes.")] = None,
    train: Annotated[
        list[Trained] | None,
        typer.Option(help="Also compress the network in such ways, each trained, which may take hours; may be repeated."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of every step that is trained, in place of its own.", min=1)] = None,
    trials: Annotated[
        int | None, typer.Option(help="Files to measure in all.", min=1, show_default="every one; with --train, 40")
    ] = None,
    time: Annotated[float | None, typer.Option(metavar="MINUTES", help="Start no file after so many minutes.", min=0.01)] = None,
    io: Annotated[IoType, typer.Option(help="Input and output of int8 and mixed files.")] = IoType.uint8,
    rounds: Annotated[int, typer.Option(min=6, max=1000, help="Rounds of timing, all files in turns.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the search and its winner.", show_default="RUN/optimize, and RUN")
    ] = None,
    engine: Engine = "local",
    address: Address = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    as_json: Json = False,
) -> None:
    """Find the best file for a board: make every variant, measure each, and write the fastest that holds the limits.

    Files are judged by validation pictures; only the winner meets the test pictures, as an exported file does. The same
    command goes on where it was interrupted; with other limits or another board it measures no file again. Where none holds
    the limits, none is written; the exit code is then 7. On Ray, networks are trained and files made and scored side by side;
    latency is still measured here, one file at a time, while no worker is at work.

    Example: edgeclf optimize runs/compact-photos --device pi4 --max-drop 1 --max-size-kb 300
    """
    need_training("optimize")
    from edgeclf.host.optimize import optimize as stage
    from edgeclf.host.optimize.choice import limits
    from edgeclf.host.optimize.cost import board
    from edgeclf.host.run import open_run

    wanted, chosen = limits(max_drop, max_latency_ms, max_size_kb), board(device)
    found = open_run(run)
    if run is None:
        say(f"optimizing the newest run: {found.folder}")
    search = stage.start(found, [name.value for name in train or ()], epochs, io.value, out)
    for note in chosen.notes(max_latency_ms):
        say(note)
    watch = stage.Watch(_trial_line, _network_line, epoch_line, progress)
    try:
        with working(engine, address, cpus_per_trial, gpus_per_trial) as workers:
            optimized = stage.optimize(search, wanted, chosen, trials, time, rounds, watch, workers)
    except KeyboardInterrupt:
        say(f"{search.folder}: what was measured is kept; the same command goes on")
        raise
    if as_json:
        from edgeclf.host.optimize.files import to_json

        print_json(to_json(optimized))
    else:
        _print(optimized)
    _written(optimized, search, as_json)


def _trial_line(trial: Trial, trials: int) -> None:
    from edgeclf.host.optimize.choice import points
    from edgeclf.host.wording import size

    head = f"file {trial.number}/{trials}  {trial.configuration.name}"
    if trial.drop is None:
        say(f"{head}: failed: {trial.reason}")
    else:
        say(f"{head}: drop {points(trial.drop)}, {size(trial.file_bytes)}  {trial.seconds:.1f} s")


def _network_line(network: Network) -> None:
    say(f"network {network.name}")


def _print(found: Optimized) -> None:
    """Every file, the fastest first."""
    from rich import box
    from rich.table import Table

    from edgeclf.host import wording
    from edgeclf.host.optimize.choice import holds, points

    pictures = found.entrants[0].drop.total
    print(f"{found.search.run.folder}: {len(found.entrants)} files, on {pictures:,} validation pictures against the full model")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold")
    counted = ["instructions"] if found.board.counted else []
    for column in ("trial", "drop in points (95%)", "size", "p50 here, ms", *counted, "holds", "Pareto"):
        table.add_column(column, justify="right", no_wrap=True)
    for e in sorted(found.entrants, key=lambda e: (e.cost, e.file_bytes, e.drop.drop)):
        counts = [f"{e.instructions:,}" if e.instructions is not None else "not counted"] if counted else []
        won = "winner" if found.choice and found.choice.winner is e else "yes" if e.number in found.front else ""
        cells = points(e.drop), wording.size(e.file_bytes), wording.milliseconds(e.p50_ms), *counts
        table.add_row(e.configuration.name, str(e.number), *cells, "yes" if holds(e, found.limits) else "", won)
    console().print(table)


def _written(found: Optimized, search: Search, as_json: bool) -> None:
    """Where everything lies; raises the QualityError of a search without a winner."""
    from edgeclf.host.optimize.choice import points
    from edgeclf.host.optimize.files import FIGURE, RESULT, TABLE

    say(f"in {search.folder}: {RESULT}, {TABLE}, {FIGURE}")
    for refused in found.refused:
        say(f"passed over: {refused}")
    done = found.file
    if as_json:
        return
    print(found.reason)
    size = f"{done.file_bytes:,} bytes"
    print(f"{done.path}: {size}, top-1 {done.top1:.2%}, drop {points(done.drop)} points on {done.drop.total:,} test pictures")
    for note in done.notes:
        say(f"note: {note}")
    print(f"next: edgeclf bench {shlex.quote(str(done.path))}   or: edgeclf report {shlex.quote(str(search.run.folder))}")
