"""The verb that runs a classifier live: run."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

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
USUAL_WEB_ADDRESS = "127.0.0.1:8080"
WEB_ADDRESS = r"(?:[A-Za-z0-9_.-]*|\[[0-9a-fA-F:.]+\]):\d+|\d+|\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:.]+\]|localhost"
DECIDING, GATING, OUTPUT, SOURCES = "Answers", "Which frames", "Where results go", "Sources"
TELLING = "Telling other programs"


class Run(TyperCommand):
    """The verb's parser: `--web` may stand alone, which Typer's options cannot."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_web_address(args))


def with_web_address(arguments: list[str]) -> list[str]:
    """The arguments with the usual address after a `--web` that no address or port follows."""
    whole: list[str] = []
    for i, word in enumerate(arguments):
        whole.append(word)
        if word == "--web" and not re.fullmatch(WEB_ADDRESS, (arguments[i + 1 : i + 2] or ["--"])[0]):
            whole.append(USUAL_WEB_ADDRESS)
    return whole


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
            help="Camera index, /dev/video*, picamera2: or rpicam: for a CSI camera, video, folder or glob of pictures, "
            "rtsp:// or http:// address, - for JPEG frames on standard input or stdin:640x480 for BGR ones, synthetic. "
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
            help="Play a video or folder at its own rate, newest frame only, as a camera would; standard input too.",
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
    pixel_format: Annotated[
        str | None,
        typer.Option(help="Asked of a camera: four letters, as MJPG or YUYV.", show_default="MJPG", rich_help_panel=SOURCES),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="A picture whose score is below this is 'unknown'.",
            show_default="the model card's, else none",
            rich_help_panel=DECIDING,
        ),
    ] = None,
    unknown_by: Annotated[
        str | None,
        typer.Option(
            "--unknown-by",
            metavar="probability|margin|energy",
            help="What the threshold is of: the likeliest class, its lead over the second, or how well the picture fits; "
            "without --threshold by the limit that 'edgeclf calibrate' fitted.",
            show_default="the model card's, else probability",
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
    votes: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="The answer changes when K of the last N frames agree on a new one.",
            show_default="1/1",
            rich_help_panel=DECIDING,
        ),
    ] = None,
    hysteresis: Annotated[
        float | None,
        typer.Option(
            help="Lead over the old answer, or distance from the threshold, that a new answer needs, 0 to 0.99.",
            show_default="0.1",
            min=0,
            max=0.99,
            rich_help_panel=DECIDING,
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Likeliest classes in each event.", show_default="3", min=1, rich_help_panel=DECIDING)
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Classify this part of the picture: pixels, or shares such as 0.25,0,0.5,1.",
            show_default="all of it",
            rich_help_panel=GATING,
        ),
    ] = None,
    motion: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Pass over frames in which less than this share of the picture has changed since the last that was "
            "classified, as 0.01; once a minute (gate.refresh_s) they are classified all the same.",
            show_default="0",
            rich_help_panel=GATING,
        ),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(metavar="N", help="Classify each Nth frame of a source.", show_default="1", rich_help_panel=GATING),
    ] = None,
    max_fps: Annotated[
        float | None,
        typer.Option(
            "--max-fps",
            help="Classify at most so many frames a second of each source, the newest each time.",
            show_default="no limit",
            rich_help_panel=GATING,
        ),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A second model for the same frames, as the full one: agreement and latency of both.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    save_disagreements: Annotated[
        Path | None,
        typer.Option(
            "--save-disagreements",
            metavar="DIR",
            help="Keep frames on which the two disagree, as JPEG and JSON: at most 30 a minute and 500 in all "
            "(compare.per_minute, compare.most).",
            rich_help_panel=OUTPUT,
        ),
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
    csv: Annotated[
        str | None, typer.Option("--csv", metavar="PATH", help="Append one row a frame to this file.", rich_help_panel=OUTPUT)
    ] = None,
    sqlite: Annotated[
        str | None,
        typer.Option(
            "--sqlite", metavar="PATH", help="Add one row a frame to the table 'events' of this database.", rich_help_panel=OUTPUT
        ),
    ] = None,
    snapshots: Annotated[
        str | None,
        typer.Option(
            "--snapshots",
            metavar="DIR",
            help="Keep the picture of each change in this folder, the newest 1000 MB (snapshots.max_mb).",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    clips: Annotated[
        float | None,
        typer.Option(
            "--clips",
            metavar="SECONDS",
            help="Keep a video of so many seconds around each change too, beside the snapshots.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    table: Annotated[
        bool,
        typer.Option("--table", help="Show a live table of sources, costs and device on the terminal.", rich_help_panel=OUTPUT),
    ] = False,
    web: Annotated[
        str | None,
        typer.Option(
            "--web",
            metavar="[HOST:PORT]",
            help="Offer a page with the live picture, on 127.0.0.1:8080 if nothing is named; other machines need its token.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    mqtt: Annotated[
        str | None,
        typer.Option(
            "--mqtt",
            metavar="URL",
            help="Tell this broker, and Home Assistant through it, as mqtt://user@host; password in EDGECLF_MQTT_PASSWORD.",
            rich_help_panel=TELLING,
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics", metavar="[HOST:]PORT", help="Offer /metrics for Prometheus on this port.", rich_help_panel=TELLING
        ),
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", metavar="URL", help="POST each change to this address, as JSON.", rich_help_panel=TELLING),
    ] = None,
    on_change: Annotated[
        str | None,
        typer.Option(
            "--on-change",
            metavar="COMMAND",
            help="Run this at each change: EDGECLF_LABEL in its environment, the event as JSON on its standard input.",
            rich_help_panel=TELLING,
        ),
    ] = None,
    gpio: Annotated[
        str | None,
        typer.Option(
            "--gpio",
            metavar="PIN=LABEL[,LABEL]",
            help="Set this GPIO pin (BCM number) high while the answer is one of the labels.",
            rich_help_panel=TELLING,
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
    threads: Annotated[
        int | None, typer.Option(help="Threads of the interpreter.", show_default="measured once, then remembered", min=0)
    ] = None,
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
    if table and (as_json or jsonl == "-"):
        raise ConfigError(f"--table and {'--json' if as_json else '--jsonl -'} both want standard output; leave one out")
    from edgeclf.core.config import changed, changed_by_text
    from edgeclf.core.live_settings import LiveSettings, read_settings
    from edgeclf.runtime.live import Stop, stopping_on_signals
    from edgeclf.runtime.service import Asked, serve

    wanted = changed(
        changed_by_text(read_settings(config) if config else LiveSettings(), settings or ()),
        model=str(file) if file else None, sources=sources or None, threads=threads,
        realtime=realtime or None, wait_for_source=wait_for_source or None,
        camera__width=width, camera__height=height, camera__fps=fps, camera__pixel_format=pixel_format,
        decide__threshold=threshold, decide__unknown_by=unknown_by, decide__smooth=smooth, decide__hysteresis=hysteresis,
        decide__top=top, **_votes(votes),
        gate__region=_region(region), gate__motion=motion, gate__every=every, gate__max_fps=max_fps,
        compare__file=str(compare) if compare else None,
        compare__folder=str(save_disagreements) if save_disagreements else None,
        files__jsonl=jsonl, files__csv=csv, files__sqlite=sqlite, snapshots__folder=snapshots, snapshots__clip_s=clips,
        web__address=web,
        mqtt__address=mqtt, service__metrics=metrics, actions__webhook=webhook, actions__command=on_change,
        **_pin_and_labels(gpio),
    )  # fmt: skip
    if not wanted.model:
        raise ConfigError("no model: name a file, or a shipped model as in: edgeclf run compact-cifar10 --source 0")
    asked = Asked(max_frames, seconds, window, as_json, labels, pair(normalize) if normalize else None, say, table)
    stop = Stop()
    with stopping_on_signals(stop):
        served = serve(wanted, asked, stop, lambda message: say(f"warning: {message}"))
    _finish(served, as_json)


def _votes(votes: str | None) -> dict[str, int]:
    """K/N as settings. Raises ConfigError."""
    if votes is None:
        return {}
    match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", votes)
    if match is None:
        raise ConfigError(f"--votes {votes}: expected K/N, as in 3/5")
    return {"decide__votes": int(match[1]), "decide__of": int(match[2])}


def _region(region: str | None) -> list[float] | None:
    """X,Y,W,H as numbers. Raises ConfigError."""
    if region is None:
        return None
    try:
        numbers = [float(part) for part in region.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise ConfigError(f"--region {region}: expected X,Y,W,H, as in 100,0,400,400 or 0.25,0,0.5,1")
    return numbers


def _pin_and_labels(gpio: str | None) -> dict[str, Any]:
    """PIN=LABEL[,LABEL] as settings; labels with a comma can be given as actions.gpio_labels only. Raises ConfigError."""
    if gpio is None:
        return {}
    pin, _, names = gpio.partition("=")
    labels = [name.strip() for name in names.split(",")]
    if not (pin.isascii() and pin.isdecimal() and len(pin) < 5 and all(labels)):
        raise ConfigError(f"--gpio {gpio}: expected PIN=LABEL[,LABEL], as in 17=cat,dog")
    return {"actions__gpio_pin": int(pin), "actions__gpio_labels": labels}


def _finish(served: Served, as_json: bool) -> None:
    """Print the summary and exit with the code that the end of the run deserves."""
    from edgeclf.runtime.live import MEMORY_LIMIT
    from edgeclf.runtime.service import READER_GONE

    summary = served.summary
    if summary.note:
        say(f"warning: {summary.source} ended {summary.note}")
    if as_json:
        print_json({**summary.to_json(), "first_inference_ms": served.first_inference_ms, "threads": served.threads.threads})
    else:
        say(f"{in_words(summary)}\n  {served.threads}; first inference {served.first_inference_ms:.1f} ms")
    code = {"SIGINT": EXIT_INTERRUPTED, MEMORY_LIMIT: EXIT_RESTART}.get(summary.ended, 0)
    if served.blocked or summary.ended == READER_GONE:
        with contextlib.suppress(OSError, ValueError):
            if as_json:
                sys.stdout.flush()
        os._exit(code)
    raise typer.Exit(code)


def _device_in_words(summary: Summary) -> list[str]:
    """What the run asked of the device, and whether its times may be taken for it."""
    device = summary.device
    if device is None:
        return []
    known = [
        f"peak memory {device.peak_memory_bytes / 2**20:.0f} MB" if device.peak_memory_bytes else "",
        f"CPU {device.cpu_share:.0%} of one core" if device.cpu_share is not None else "",
        f"hottest {device.hottest_c:.1f} °C" if device.hottest_c is not None else "",
        f"lowest clock {device.lowest_clock_mhz:.0f} MHz" if device.lowest_clock_mhz is not None else "",
    ]
    slowed = f"  throttled ({', '.join(summary.throttled)}): these times are longer than the board needs"
    return [f"  device: {', '.join(filter(None, known)) or 'says nothing of itself'}", *([slowed] if summary.throttled else [])]


def _compared_in_words(summary: Summary) -> list[str]:
    """How the two models did on the same frames."""
    compared = summary.compared
    if compared is None:
        return []
    if not compared.frames:
        return [f"  compared with {compared.name}: no frame had an answer of both"]
    low, high = compared.interval.low, compared.interval.high
    own, other = compared.own, compared.classify
    extra = [f"{compared.not_compared} frames not compared"] * bool(compared.not_compared)
    extra += [f"{compared.saved} disagreements saved"] * bool(compared.saved)
    return [
        f"  compared with {compared.name}: the same answer to {compared.agreement:.1%} of {compared.frames} frames "
        f"(95% interval {low:.1%} to {high:.1%}){'; ' * bool(extra)}{', '.join(extra)}",
        f"  {'this model':<15} p50 {own.p50_ms:8.2f} ms   p90 {own.p90_ms:8.2f} ms   resize and invoke",
        f"  {'the other':<15} p50 {other.p50_ms:8.2f} ms   p90 {other.p90_ms:8.2f} ms   resize and invoke",
    ]


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
            *_compared_in_words(summary),
            *_device_in_words(summary),
        ]
    )
