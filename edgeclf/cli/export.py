"""The verb that turns a run into deployable files: export."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import need_training, print_json, progress, say
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeclf.host.export import Exported


class IoType(StrEnum):
    """The choices of --io."""

    uint8 = "uint8"
    int8 = "int8"
    float32 = "float32"


def export(
    run: Annotated[Path | None, typer.Argument(help="Run folder.", show_default="the newest finished one under runs/")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="8-bit weights and arithmetic; the default when no variant is named.")
    ] = False,
    float16: Annotated[bool, typer.Option("--float16", help="16-bit weights, float arithmetic: half the size.")] = False,
    float32: Annotated[bool, typer.Option("--float32", help="As trained.")] = False,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="8-bit weights, float input and output: dynamic-w8.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All four.")] = False,
    io: Annotated[
        IoType, typer.Option(help="Input and output of the int8 file: uint8 (phones, cameras), int8 (microcontrollers), float32.")
    ] = IoType.uint8,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Pictures for a run without data of its own, one that was imported."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files.", show_default="the run folder")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Export a trained run to .tflite files, and measure what each lost against the full model.

    A file that is wrong (constant output, NaN, collapsed accuracy) is not written; the exit code is then 7.

    Example: edgeclf export runs/compact-photos --int8 --float16
    """
    need_training("export")
    asked = {"float32": float32, "float16": float16, "dynamic-w8": dynamic, "int8": int8}
    variants = [name for name, wanted in asked.items() if wanted or everything]
    if io is not IoType.uint8 and variants and "int8" not in variants:
        raise ConfigError(f"--io {io.value} is about the int8 file, which was not asked for; add --int8 or leave --io out")
    from edgeclf.host.export import export as stage
    from edgeclf.host.export import need_tflite
    from edgeclf.host.run import open_run

    found = open_run(run)
    if run is None:
        say(f"exporting the newest run: {found.folder}")
    if not variants:
        say("no variant named, so: --int8 (others: --float32 --float16 --dynamic, or --all)")
        variants = ["int8"]
    need_tflite(found)
    if calibration is not None:
        from edgeclf.host.imports import give_data

        with progress("reading pictures") as report:
            found = give_data(found, calibration, report)
    pictures = found.data
    done: list[Exported] = []
    try:
        stage(found, variants, io=io.value, out=out, bar=progress, on_exported=done.append)
    finally:
        _answer(done, found.folder, pictures, as_json)
    if found.imported:
        from edgeclf.host.wording import UNKNOWN_TRAINING

        say(f"note: {UNKNOWN_TRAINING}")


def _answer(done: list[Exported], folder: Path, data: str, as_json: bool) -> None:
    """Tell what was written, also when a further variant failed."""
    if as_json:
        print_json({"run": str(folder), "files": [_row(e) for e in done]})
    elif done:
        _print_table(done)
        for note in (note for e in done for note in e.notes):
            say(f"note: {note}")
        run, file, pictures = (shlex.quote(str(part)) for part in (folder, done[-1].path, data))
        report = f"edgeclf report {run}   or: " if done[-1].path.parent == folder else ""  # which looks in the run alone
        print(f"next: {report}edgeclf evaluate {file} {pictures}")


def _row(exported: Exported) -> dict[str, Any]:
    return {**asdict(exported), "path": str(exported.path)}


def _print_table(done: list[Exported]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from edgeclf.host import wording

    pictures, full = done[0].drop.total, done[0].top1 + done[0].drop.drop
    print(f"in {done[0].path.parent}, against the full model's {full:.2%} top-1 on {pictures} held-out pictures:")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("file", overflow="fold")
    for column in ("file size", "top-1", "drop in points (95%)"):
        table.add_column(column, justify="right", no_wrap=True)
    for e in done:
        drop = f"{e.drop.drop * 100:+.2f} ({e.drop.interval.low * 100:+.2f} to {e.drop.interval.high * 100:+.2f})"
        table.add_row(e.path.name, wording.size(e.file_bytes), f"{e.top1:.2%}", drop)
    Console().print(table)
