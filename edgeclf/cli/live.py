"""The verb that runs a classifier live: run."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclf.cli.common import print_json, say
from edgeclf.cli.options import Labels, Normalize, pair
from edgeclf.core.errors import EXIT_INTERRUPTED, EXIT_RESTART, ConfigError

if TYPE_CHECKING:
    from edgeclf.runtime.live import Summary
    from edgeclf.runtime.service import Served

WORDED = {
    "wait": "wait for frame",
    "decode": "decode",
    "resize": "resize",
    "invoke": "invoke",
    "decide": "decide",
    "emit": "emit",
    "age": "age at label",
}
DECIDING, GATING, OUTPUT, SOURCES = "Answers", "Which frames", "Where results go", "Sources"


def run(
    file: Annotated[
        Path | None,
        typer.Argument(help="A .tflite or .onnx file, or a shipped model as compact-cifar10.", show_default="that of --config"),
    ] = None,
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            "-s",
            help="Camera index, /dev/video*, video, folder or glob of pictures, rtsp:// or http:// address, synthetic. "
            "May be given several times.",
            show_default="0",
            rich_help_panel=SOURCES,
        ),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings of a board, as TOML; options given here count more.", show_default=False)
    ] = None,
    wait_for_source: Annotated[
        bool, typer.Option("--wait-for-source", help="Wait for a camera that is not there yet.", rich_help_panel=SOURCES)
    ] = False,
    realtime: Annotated[
        bool,
        typer.Option(
            "--realtime",
            help="Play a video or folder at its own rate, newest frame only, as a camera would.",
            rich_help_panel=SOURCES,
        ),
    ] = False,
    width: Annotated[
        int | None,
        typer.Option(help="Asked of a camera, in pixels.", show_default="640", min=16, max=8192, rich_help_panel=SOURCES),
    ] = None,
    height: Annotated[
        int | None,
        typer.Option(help="Asked of a camera, in pixels.", show_default="480", min=16, max=8192, rich_help_panel=SOURCES),
    ] = None,
    fps: Annotated[
        int | None,
        typer.Option(
            help="Asked of a camera; the rate of synthetic and of --realtime folders.",
            show_default="30",
            min=1,
            max=1000,
            rich_help_panel=SOURCES,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="A score below this is 'unknown'.",
            show_default="the model card's, else none",
            min=0,
            max=1,
            rich_help_panel=DECIDING,
        ),
    ] = None,
    smooth: Annotated[
        float | None,
        typer.Option(
            help="Weight of the past in the mean over frames, 0 to 0.99.",
            show_default="0",
            min=0,
            max=0.99,
            rich_help_panel=DECIDING,
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Likeliest classes in each event.", show_default="3", min=1, rich_help_panel=DECIDING)
    ] = None,
    window: Annotated[
        bool, typer.Option("--window", help="Show the picture and its label; q or Esc ends.", rich_help_panel=OUTPUT)
    ] = False,
    jsonl: Annotated[
        str | None,
        typer.Option(
            "--jsonl",
            metavar="PATH",
            help="Append one JSON line a frame to this file; - is standard output.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary at the end as JSON, and nothing else.", rich_help_panel=OUTPUT)
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other setting, as gate.max_fps=5.", show_default=False),
    ] = None,
    max_frames: Annotated[int | None, typer.Option(help="End after so many classified frames.", min=1)] = None,
    seconds: Annotated[float | None, typer.Option(help="End after this time.", min=0.1)] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the interpreter.", show_default="its own choice", min=1)] = None,
    labels: Labels = None,
    normalize: Normalize = None,
) -> None:
    """Classify a camera, video, stream or folder live.

    Live sources give the newest frame only; videos and folders are classified completely. A lost camera is opened again.
    Ctrl-C ends the run with a summary and exit code 130; the end of a video, a limit or SIGTERM with 0.

    Example: edgeclf run runs/photos/photos-int8.tflite --source 0 --jsonl seen.jsonl
    """
    if as_json and jsonl == "-":
        raise ConfigError("--json and --jsonl - both want standard output; give --jsonl a file")
    from edgeclf.core.config import changed, changed_by_text
    from edgeclf.core.live_settings import LiveSettings, read_settings
    from edgeclf.runtime.live import Stop, stopping_on_signals
    from edgeclf.runtime.service import Asked, serve

    wanted = changed(
        changed_by_text(read_settings(config) if config else LiveSettings(), settings or ()),
        model=str(file) if file else None, sources=sources or None, threads=threads,
        realtime=realtime or None, wait_for_source=wait_for_source or None,
        camera__width=width, camera__height=height, camera__fps=fps,
        decide__threshold=threshold, decide__smooth=smooth, decide__top=top,
        files__jsonl=jsonl,
    )  # fmt: skip
    if not wanted.model:
        raise ConfigError("no model: name a file, or a shipped model as in: edgeclf run compact-cifar10 --source 0")
    asked = Asked(max_frames, seconds, window, as_json, labels, pair(normalize) if normalize else None)
    stop = Stop()
    with stopping_on_signals(stop):
        served = serve(wanted, asked, stop, lambda message: say(f"warning: {message}"))
    _finish(served, as_json)


def _finish(served: Served, as_json: bool) -> None:
    """Print the summary and exit with the code that the end of the run deserves."""
    from edgeclf.runtime.live import MEMORY_LIMIT
    from edgeclf.runtime.service import READER_GONE

    summary = served.summary
    if summary.note:
        say(f"warning: {summary.source} ended {summary.note}")
    if as_json:
        print_json({**summary.to_json(), "first_inference_ms": served.first_inference_ms, "threads": served.threads})
    else:
        say(in_words(summary))
    code = {"SIGINT": EXIT_INTERRUPTED, MEMORY_LIMIT: EXIT_RESTART}.get(summary.ended, 0)
    if served.blocked or summary.ended == READER_GONE:
        with contextlib.suppress(OSError, ValueError):
            if as_json:
                sys.stdout.flush()
        os._exit(code)
    raise typer.Exit(code)


def in_words(summary: Summary) -> str:
    """The summary as a few lines for a person."""
    names = ("dropped", "gated", "skipped", "invalid", "identical", "stalls", "reconnects")
    losses = {name: getattr(summary, name) for name in names}
    counted = ", ".join(f"{count} {name}" for name, count in losses.items() if count)
    lost = ", ".join(f"{name} lost {count} messages" for name, count in summary.lost_messages.items())
    likeliest = sorted(summary.labels.items(), key=lambda item: -item[1])[:10]
    return "\n".join(
        [
            f"{summary.source}: {summary.ended} after {summary.seconds:.1f} s: {summary.frames} frames, {summary.fps:.1f} fps",
            *filter(None, [counted, lost]),
            *(
                f"  {WORDED[name]:<15} p50 {times.p50_ms:8.2f} ms   p90 {times.p90_ms:8.2f} ms   p99 {times.p99_ms:8.2f} ms"
                for name, times in summary.stages.items()
                if times.runs
            ),
            f"  labels: {', '.join(f'{label} {count}' for label, count in likeliest) or 'none'}",
        ]
    )
