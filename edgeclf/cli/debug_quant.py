"""The verb that says where an int8 file lost accuracy: debug-quant."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclf.cli.common import console, need_training, print_json, progress
from edgeclf.cli.options import Json

if TYPE_CHECKING:
    from edgeclf.host.export.debug_quant import Diagnosis
    from edgeclf.host.export.quant_errors import LayerError


def debug_quant(
    file: Annotated[Path, typer.Argument(help="An exported int8, w8a16 or mixed .tflite file.", show_default=False)],
    float32: Annotated[
        Path | None, typer.Option(help="The float32 file it was made from.", show_default="the network of its run folder")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Pictures.", show_default="training pictures of its run")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the layers too.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Say which layers of an int8 file lose what the float32 network knew, and what would help.

    Example: edgeclf debug-quant runs/photos/photos-int8.tflite --plot layers.png
    """
    need_training("debug-quant")
    from edgeclf.host.export.debug_quant import diagnose, draw

    with progress("reading pictures") as report:
        found = diagnose(file, float32, data, report)
    if plot:
        draw(found, plot)
    if as_json:
        layers = [{**asdict(layer), "remedy": layer.remedy} for layer in found.layers]
        print_json(
            {"file": str(found.file), "pictures": found.pictures, "layers": layers, "blamed": [b.tensor for b in found.blamed]}
        )
        return
    _print(found)


def _print(found: Diagnosis) -> None:
    from rich import box
    from rich.table import Table

    print(f"{found.file} against float32 on {found.pictures} pictures:")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer", overflow="fold")
    for column in ("operator", "SNR dB", "lost dB", "saturated", "range", "seen"):
        table.add_column(column, justify="right", no_wrap=True)
    for layer in found.layers:
        table.add_row(*_row(layer))
    console().print(table)
    print(
        "SNR: signal to rounding error; at 20 dB the error is a tenth of the signal. lost: against what the layer reads. "
        "range: what its steps reach; seen: what float32 gave."
    )
    if found.drop:
        drop, low, high = (f"{100 * share:+.2f}" for share in found.drop)
        print(f"all of it together cost {drop} points of top-1 (95%: {low} to {high}) on the test pictures of its export")
    if not found.blamed:
        print("no layer loses 3 dB or more against what it reads: the error is spread, and training helps best (compress --qat)")
    remedies: dict[str, list[str]] = {}
    for layer in found.blamed[:5]:
        remedies.setdefault(layer.remedy, []).append(f"{layer.layer} ({layer.added_db:.1f} dB)")
    for remedy, layers in remedies.items():
        print(f"to blame, the worst first: {', '.join(layers)}; what would help: {remedy}")


def _row(layer: LayerError) -> tuple[str, ...]:
    return (
        layer.layer,
        layer.operator,
        f"{layer.snr_db:.1f}",
        f"{layer.added_db:.1f}",
        f"{layer.saturated:.2%}",
        f"{layer.low:.3g} to {layer.high:.3g}",
        f"{layer.seen_low:.3g} to {layer.seen_high:.3g}",
    )
