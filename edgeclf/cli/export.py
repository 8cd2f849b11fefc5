"""The verb that turns a run into deployable files: export."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import need_training, print_json, progress, say
from edgeclf.cli.train import epoch_line
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeclf.host.companions import Companions
    from edgeclf.host.export import Exported
    from edgeclf.host.guarded import Budget


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
    weight_only: Annotated[
        bool, typer.Option("--weight-only", help="8-bit weights that are turned to floats to compute: weight-only-w8.")
    ] = False,
    w8a16: Annotated[
        bool, typer.Option("--w8a16", help="8-bit weights, 16-bit activations: nearer to float, and slower.")
    ] = False,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="A pruned network without its zeros: float32-sparse and float16-sparse.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="float32, float16, dynamic-w8 and int8.")] = False,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", help="The int8 file may lose so many points of top-1, its 95% interval included; else none."
        ),
    ] = None,
    no_qat: Annotated[
        bool, typer.Option("--no-qat", help="With --max-drop: do not train with the rounding when nothing else holds.")
    ] = False,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also, or only, an .onnx file as trained.")] = False,
    onnx_int8: Annotated[bool, typer.Option("--onnx-int8", help="An .onnx file with 8-bit weights and arithmetic.")] = False,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set, 13 to 18.", show_default="17, or an imported file's own")
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="The .onnx files take any number of pictures at once, not one.")
    ] = False,
    io: Annotated[
        IoType, typer.Option(help="Input and output of the int8 file: uint8 (phones, cameras), int8 (microcontrollers), float32.")
    ] = IoType.uint8,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Pictures for a run without data of its own, one that was imported."),
    ] = None,
    c_array: Annotated[
        bool, typer.Option("--c-array", help="Also the int8 file as C source, for microcontrollers (TensorFlow Lite Micro).")
    ] = False,
    snippets: Annotated[
        bool, typer.Option("--snippets", help="Also code that runs each .tflite file: Android, iOS, Python.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the files.", show_default="the run folder")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Export a trained run to .tflite and .onnx files, and measure what each lost against the full model.

    A file that is wrong (constant output, NaN, collapsed accuracy) is not written; the exit code is then 7.

    Example: edgeclf export runs/compact-photos --int8 --float16
    """
    need_training("export")
    asked = {"float32": float32, "float16": float16, "dynamic-w8": dynamic, "int8": int8}
    variants = [name for name, wanted in asked.items() if wanted or everything]
    variants += [name for name, wanted in (("weight-only-w8", weight_only), ("w8a16", w8a16)) if wanted]
    variants += ["float32-sparse", "float16-sparse"] if sparse else []
    onnx_variants = tuple(name for name, wanted in (("float32", onnx), ("int8", onnx_int8)) if wanted)
    if not onnx_variants and (opset is not None or dynamic_batch):
        raise ConfigError(
            "--opset and --dynamic-batch are about .onnx files, which were not asked for; add --onnx or --onnx-int8"
        )
    if max_drop is not None and (variants or onnx_variants) and "int8" not in variants:
        raise ConfigError("--max-drop is about the int8 file, which was not asked for; add --int8 or leave --max-drop out")
    if no_qat and max_drop is None:
        raise ConfigError("--no-qat is about what --max-drop tries; give --max-drop too, or leave it out")
    if io is not IoType.uint8 and (variants or onnx_variants) and "int8" not in variants:
        raise ConfigError(f"--io {io.value} is about the int8 file, which was not asked for; add --int8 or leave --io out")
    from edgeclf.host import companions
    from edgeclf.host.export import export as stage
    from edgeclf.host.export import need_tflite
    from edgeclf.host.run import open_run
    from edgeclf.host.to_onnx import OnnxRequest

    request = OnnxRequest(onnx_variants, opset, dynamic_batch)
    budget = None if max_drop is None else _budget(max_drop, not no_qat)
    companions.check_request(variants or ([] if onnx_variants else ["int8"]), io.value, c_array, snippets)
    found = open_run(run)
    if run is None:
        say(f"exporting the newest run: {found.folder}")
    if not variants and not onnx_variants:
        say("no variant named, so: --int8 (others: --float32 --float16 --dynamic, or --all)")
        variants = ["int8"]
    if variants:
        need_tflite(found)
    if calibration is not None:
        from edgeclf.host.imports import give_data

        with progress("reading pictures") as report:
            found = give_data(found, calibration, report)
    pictures = found.data
    done: list[Exported] = []
    beside: list[Companions] = []
    with contextlib.ExitStack() as at_the_end:  # from the last to the first, also when a further variant failed
        at_the_end.callback(lambda: _answer(done, beside, found.folder, pictures, as_json))
        at_the_end.callback(
            lambda: companions.write([(e.variant, e.path) for e in done], c_array, snippets, on_written=beside.append)
        )
        stage(found, variants, io=io.value, onnx=request, budget=budget, out=out, bar=progress, on_exported=done.append)
    if found.imported:
        from edgeclf.host.wording import UNKNOWN_TRAINING

        say(f"note: {UNKNOWN_TRAINING}")


def _budget(points: float, train: bool) -> Budget:
    from edgeclf.host.guard import check_budget
    from edgeclf.host.guarded import Budget

    def announce(folder: Path) -> None:
        say(f"nothing else holds --max-drop {points:g}: training with the rounding of int8, in {folder}")

    return Budget(check_budget(points), train, announce, epoch_line)


def _answer(done: list[Exported], beside: list[Companions], folder: Path, data: str, as_json: bool) -> None:
    """Tell what was written, also when a further variant failed."""
    if as_json:
        print_json({"run": str(folder), "files": [_row(e, beside) for e in done]})
    elif done:
        _print_table(done)
        for code in (c.snippets for c in beside if c.snippets):
            print(f"in {code.folder}: {', '.join(path.name for path in code.files)}")
        for note in [*(note for e in done for note in e.notes), *(note for c in beside for note in c.notes)]:
            say(f"note: {note}")
        run, file, pictures = (shlex.quote(str(part)) for part in (folder, done[-1].path, data))
        report = f"edgeclf report {run}   or: " if done[-1].path.parent == folder else ""  # which looks in the run alone
        print(f"next: {report}edgeclf evaluate {file} {pictures}")


def _row(exported: Exported, beside: list[Companions]) -> dict[str, Any]:
    row: dict[str, Any] = {**asdict(exported), "path": str(exported.path)}
    for written in beside:
        if written.path == exported.path:
            row |= written.to_json()
    return row


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
