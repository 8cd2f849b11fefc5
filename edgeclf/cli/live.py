"""The verb that runs a classifier live: run."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclf.cli.common import print_json, say
from edgeclf.cli.options import File, Labels, Normalize, pair
from edgeclf.core.errors import EXIT_INTERRUPTED, ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgeclf.runtime.live import Stop, Summary
    from edgeclf.runtime.sinks import Sink, Writer
    from edgeclf.runtime.window import Window

READER_GONE = "nobody reads standard output"


def run(
    file: File,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            "-s",
            help="Camera index, /dev/video*, video, folder or glob of pictures, rtsp:// or http:// address, synthetic.",
        ),
    ] = "0",
    window: Annotated[bool, typer.Option("--window", help="Show the picture and its label; q or Esc ends.")] = False,
    jsonl: Annotated[
        str | None,
        typer.Option("--jsonl", metavar="PATH", help="Append one JSON line a frame to this file; - is standard output."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary at the end as JSON, and nothing else.")] = False,
    top: Annotated[int, typer.Option(help="Likeliest classes in each JSON line.", min=1)] = 3,
    threshold: Annotated[
        float | None,
        typer.Option(help="A score below this is 'unknown'.", show_default="the model card's, else none", min=0, max=1),
    ] = None,
    smooth: Annotated[
        float, typer.Option(help="Weight of the past in the mean over frames, 0 to 0.99; 0 is off.", min=0, max=0.99)
    ] = 0.0,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Play a video or folder at its own rate, newest frame only, as a camera would.")
    ] = False,
    width: Annotated[int, typer.Option(help="Asked of a camera, in pixels.", min=16, max=8192)] = 640,
    height: Annotated[int, typer.Option(help="Asked of a camera, in pixels.", min=16, max=8192)] = 480,
    fps: Annotated[
        int, typer.Option(help="Asked of a camera; the rate of synthetic and of --realtime folders.", min=1, max=1000)
    ] = 30,
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
    if jsonl == "-" and as_json:
        raise ConfigError("--json and --jsonl - both want standard output; give --jsonl a file")
    import numpy as np

    from edgeclf.core.devices import CameraSection
    from edgeclf.runtime.camera import find_source
    from edgeclf.runtime.classifier import Classifier
    from edgeclf.runtime.decision import Rules
    from edgeclf.runtime.live import Limits, Live, Stop, stopping_on_signals

    found = find_source(source, CameraSection(width, height, fps), realtime)
    classifier = Classifier.load(file, threads, labels, pair(normalize) if normalize else None)
    classifier.probabilities(np.zeros((height, width, 3), np.uint8))  # the first answer is slow: before the camera opens
    limits = (threshold,) if threshold is not None else classifier.card.thresholds or (0.0,)
    rules = Rules(smooth=smooth, thresholds=limits, top=top)
    stop = Stop()
    shown = _window(stop) if window else None
    with stopping_on_signals(stop), _sinks(jsonl, as_json, not found.live, stop) as sinks:
        everything = [*sinks, shown] if shown else sinks
        live = Live(found, classifier.probabilities, classifier.labels, rules, everything, Limits(max_frames, seconds), stop)
        summary = shown.host(live.run) if shown else live.run()
    _finish(summary, as_json, live.blocked)


def _window(stop: Stop) -> Window:
    from edgeclf.runtime.window import Window, need_display

    need_display()
    return Window(lambda: stop.because("window closed"))


@contextlib.contextmanager
def _sinks(jsonl: str | None, as_json: bool, lossless: bool, stop: Stop) -> Iterator[list[Sink]]:
    """Lines for a person unless standard output is wanted for something else, and JSON lines when asked for."""
    from edgeclf.runtime.sinks import Background, JsonLines, Lines

    def background(writer: Writer, name: str) -> Background:
        return Background(
            writer, name, lossless, stop, lambda: stop.because(READER_GONE), lambda message: say(f"warning: {message}")
        )

    sinks: list[Sink] = []
    lines = None
    if jsonl is not None:
        sinks.append(background(JsonLines(sys.stdout if jsonl == "-" else Path(jsonl)), "jsonl"))
    if not as_json and jsonl != "-":
        lines = Lines(sys.stdout)
        sinks.append(background(lines, "terminal"))
    try:
        yield sinks
    finally:
        for sink in sinks:
            sink.close()
        if lines:
            lines.end()


def _finish(summary: Summary, as_json: bool, blocked: bool) -> None:
    """Print the summary and exit with the code that the end of the run deserves."""
    if summary.note:
        say(f"warning: {summary.source} ended {summary.note}")
    if as_json:
        print_json(summary.to_json())
    else:
        say(in_words(summary))
    code = EXIT_INTERRUPTED if summary.ended == "SIGINT" else 0
    if blocked or summary.ended == READER_GONE:
        with contextlib.suppress(OSError, ValueError):
            if as_json:
                sys.stdout.flush()
        os._exit(code)
    raise typer.Exit(code)


def in_words(summary: Summary) -> str:
    """The summary as a few lines for a person."""
    losses = {name: getattr(summary, name) for name in ("dropped", "skipped", "invalid", "identical", "stalls", "reconnects")}
    counted = ", ".join(f"{count} {name}" for name, count in losses.items() if count)
    lost = ", ".join(f"{name} lost {count} messages" for name, count in summary.lost_messages.items())
    stages = {"wait for frame": summary.wait, "classify": summary.classify, "emit": summary.emit, "age at label": summary.age}
    likeliest = sorted(summary.labels.items(), key=lambda item: -item[1])[:10]
    return "\n".join(
        [
            f"{summary.source}: {summary.ended} after {summary.seconds:.1f} s: {summary.frames} frames, {summary.fps:.1f} fps",
            *filter(None, [counted, lost]),
            *(f"  {name:<15} p50 {times.p50_ms:8.2f} ms   p90 {times.p90_ms:8.2f} ms" for name, times in stages.items()),
            f"  labels: {', '.join(f'{label} {count}' for label, count in likeliest) or 'none'}",
        ]
    )
