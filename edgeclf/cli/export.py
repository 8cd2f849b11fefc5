"""The verb that turns a run into deployable files: export."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import need_training, print_json, progress, say
from edgeclf.cli.train import epoch_line
from edgeclf.core.errors import ConfigError, QualityError

if TYPE_CHECKING:
    from edgeclf.core.card import Io
    from edgeclf.host.export.companions import Companions
    from edgeclf.host.export.export import Exported
    from edgeclf.host.export.export_coreml import Package
    from edgeclf.host.export.guarded import Budget
    from edgeclf.host.export.to_onnx import OnnxRequest
    from edgeclf.host.run import Run


class IoType(StrEnum):
    """The choices of --io."""

    uint8 = "uint8"
    int8 = "int8"
    float32 = "float32"


@dataclass(frozen=True)
class Wanted:
    """What was asked for: variants of each kind, the type of the int8 file's ends, and what goes beside the files."""

    tflite: tuple[str, ...]
    onnx: tuple[str, ...]
    coreml: tuple[str, ...]
    io: Io
    c_array: bool
    snippets: bool

    @property
    def named(self) -> bool:
        """Whether any file was asked for by name."""
        return bool(self.tflite or self.onnx or self.coreml)


@dataclass(frozen=True)
class Written:
    """What there is so far; `packages` are those of Core ML."""

    files: list[Exported] = field(default_factory=list)
    beside: list[Companions] = field(default_factory=list)
    packages: list[Package] = field(default_factory=list)


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
    coreml: Annotated[
        bool,
        typer.Option("--coreml", help="A Core ML package, 16-bit, for iPhones and Macs; made and checked, but not run, here."),
    ] = False,
    coreml_w8: Annotated[bool, typer.Option("--coreml-w8", help="The same with 8-bit weights: half the size.")] = False,
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
    """Export a trained run to .tflite, .onnx and Core ML files, and measure what each lost against the full model.

    A file that is wrong (constant output, NaN, collapsed accuracy) is not written; the exit code is then 7.

    Example: edgeclf export runs/compact-photos --int8 --float16
    """
    need_training("export")
    wanted = Wanted(
        _chosen({
            "float32": float32 or everything, "float16": float16 or everything, "dynamic-w8": dynamic or everything,
            "int8": int8 or everything, "weight-only-w8": weight_only, "w8a16": w8a16,
            "float32-sparse": sparse, "float16-sparse": sparse,
        }),
        _chosen({"float32": onnx, "int8": onnx_int8}), _chosen({"float16": coreml, "weight-only-w8": coreml_w8}),
        io.value, c_array, snippets,
    )  # fmt: skip
    _check_together(wanted, opset is not None or dynamic_batch, max_drop is not None, no_qat)
    from edgeclf.host.export import companions
    from edgeclf.host.export.to_onnx import OnnxRequest

    request = OnnxRequest(wanted.onnx, opset, dynamic_batch)
    budget = None if max_drop is None else _budget(max_drop, not no_qat)
    companions.check_request(wanted.tflite or (() if wanted.named else ("int8",)), io.value, c_array, snippets)
    found, wanted = _opened(run, wanted)
    if calibration is not None:
        from edgeclf.host.imports.imports import give_data

        with progress("reading pictures") as report:
            found = give_data(found, calibration, report)
    _export(found, wanted, request, budget, out, as_json)
    if found.imported:
        from edgeclf.host.wording import UNKNOWN_TRAINING

        say(f"note: {UNKNOWN_TRAINING}")


def _chosen(options: dict[str, bool]) -> tuple[str, ...]:
    return tuple(name for name, wanted in options.items() if wanted)


def _check_together(wanted: Wanted, about_onnx: bool, bounded: bool, no_qat: bool) -> None:
    """Raise ConfigError for an option whose file was not asked for."""
    without_int8 = wanted.named and "int8" not in wanted.tflite
    if about_onnx and not wanted.onnx:
        raise ConfigError(
            "--opset and --dynamic-batch are about .onnx files, which were not asked for; add --onnx or --onnx-int8"
        )
    if bounded and without_int8:
        raise ConfigError("--max-drop is about the int8 file, which was not asked for; add --int8 or leave --max-drop out")
    if no_qat and not bounded:
        raise ConfigError("--no-qat is about what --max-drop tries; give --max-drop too, or leave it out")
    if wanted.io != IoType.uint8 and without_int8:
        raise ConfigError(f"--io {wanted.io} is about the int8 file, which was not asked for; add --int8 or leave --io out")


def _opened(folder: Path | None, wanted: Wanted) -> tuple[Run, Wanted]:
    """The run, and what is made of it: int8 where nothing was named. Raises ConfigError where there is no way to it."""
    from edgeclf.host.export import export_coreml
    from edgeclf.host.export.export import need_tflite
    from edgeclf.host.run import open_run

    run = open_run(folder)
    if folder is None:
        say(f"exporting the newest run: {run.folder}")
    if not wanted.named:
        say("no variant named, so: --int8 (others: --float32 --float16 --dynamic, or --all)")
        wanted = replace(wanted, tflite=("int8",))
    if wanted.tflite:
        need_tflite(run)
    if wanted.coreml:
        export_coreml.check_request(run, wanted.coreml)
    return run, wanted


def _export(run: Run, wanted: Wanted, request: OnnxRequest, budget: Budget | None, out: Path | None, as_json: bool) -> None:
    """Make the files; at the end, also when one of them failed, write what goes beside them and tell what there is."""
    from edgeclf.host.export import companions, export_coreml
    from edgeclf.host.export.export import export as stage

    pictures, written = run.data, Written()
    with contextlib.ExitStack() as at_the_end:  # from the last to the first
        at_the_end.callback(lambda: _answer(written, run.folder, pictures, as_json))
        at_the_end.callback(
            lambda: companions.write(
                [(e.variant, e.path) for e in written.files], wanted.c_array, wanted.snippets, written.beside.append
            )
        )
        refused: list[QualityError] = []
        if wanted.tflite or wanted.onnx:
            with _refusals(refused):
                stage(
                    run, wanted.tflite, io=wanted.io, onnx=request, budget=budget, out=out, bar=progress,
                    on_exported=written.files.append,
                )  # fmt: skip
        if wanted.coreml:
            with _refusals(refused):
                export_coreml.export(run, wanted.coreml, out=out, bar=progress, on_exported=written.packages.append)
        if refused:
            raise QualityError("; ".join(map(str, refused))) from refused[0]


@contextlib.contextmanager
def _refusals(refused: list[QualityError]) -> Iterator[None]:
    """Files of one kind that fail do not keep those of another from being made."""
    try:
        yield
    except QualityError as error:
        refused.append(error)


def _budget(points: float, train: bool) -> Budget:
    from edgeclf.host.export.guard import check_budget
    from edgeclf.host.export.guarded import Budget

    def announce(folder: Path) -> None:
        say(f"nothing else holds --max-drop {points:g}: training with the rounding of int8, in {folder}")

    return Budget(check_budget(points), train, announce, epoch_line)


def _answer(written: Written, folder: Path, data: str, as_json: bool) -> None:
    """Tell what was written."""
    done, beside = written.files, written.beside
    if as_json:
        packages = {"packages": [asdict(p) | {"path": str(p.path)} for p in written.packages]} if written.packages else {}
        print_json({"run": str(folder), "files": [_row(e, beside) for e in done], **packages})
        return
    from edgeclf.host import wording

    if done:
        _print_table(done)
        for code in (c.snippets for c in beside if c.snippets):
            print(f"in {code.folder}: {', '.join(path.name for path in code.files)}")
    for package in written.packages:
        print(f"in {package.path.parent}: {package.path.name}, {wording.size(package.file_bytes)}")
    notes = [*(e.notes for e in done), *(c.notes for c in beside), *(p.notes for p in written.packages)]
    for note in (note for some in notes for note in some):
        say(f"note: {note}")
    if done:
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
