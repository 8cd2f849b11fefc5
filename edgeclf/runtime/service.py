"""From LiveSettings to a running loop: opens the model, finds the sources, makes the sinks, and runs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeclf.core.live_settings import LiveSettings
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.comparing import comparing, with_saved
from edgeclf.runtime.decision import Rules, asked_rules
from edgeclf.runtime.device import heap
from edgeclf.runtime.device.cooling import Cooling, cooled
from edgeclf.runtime.device.monitor import DeviceMonitor
from edgeclf.runtime.device.threads import Choice, load_measured
from edgeclf.runtime.device.vitals import Device
from edgeclf.runtime.engine import Normalize
from edgeclf.runtime.gate import gate_of
from edgeclf.runtime.live import Limits, Live, Stop, Summary
from edgeclf.runtime.scoring import need_energy, scorer
from edgeclf.runtime.sinks.files import TO_STDOUT, Changes, file_sinks
from edgeclf.runtime.sinks.jsonl import JsonLines
from edgeclf.runtime.sinks.outward import keeper_of, keeping, outward
from edgeclf.runtime.sinks.sink import Background, Sink, Writer
from edgeclf.runtime.sinks.table import Table
from edgeclf.runtime.sinks.terminal import Lines
from edgeclf.runtime.sources.camera import Source, find_source
from edgeclf.runtime.web import open_web

if TYPE_CHECKING:
    from edgeclf.runtime.sinks.window import Window

READER_GONE = "nobody reads standard output"


@dataclass(frozen=True)
class Asked:
    """What belongs to one call and not to the settings of a board: limits of this run, and what the terminal shows.

    `labels` and `normalize` are for a file without a model card; `quiet` leaves standard output to the caller. `tell` is
    given what is no warning, such as the address of the page. `table` shows a live table where standard output is a terminal.
    """

    max_frames: int | None = None
    seconds: float | None = None
    window: bool = False
    quiet: bool = False
    labels: Path | None = None
    normalize: Normalize | None = None
    tell: Callable[[str], None] = lambda message: None
    table: bool = False


@dataclass(frozen=True)
class Served:
    """What a run did; `blocked` as in `Live`; the first inference, which is slower than the others, and the threads used."""

    summary: Summary
    blocked: bool
    first_inference_ms: float
    threads: Choice


def serve(settings: LiveSettings, asked: Asked, stop: Stop, warn: Callable[[str], None]) -> Served:
    """Run as the settings say until the end. `warn` is told what a person should know.

    Raises ConfigError, SourceError, ModelError, StorageError or MissingExtra before the first frame, and what `Live.run` does.
    """
    heap.share()
    sources = find_sources(settings)
    classifier, threads = load_measured(settings.model, settings.threads, asked.labels, asked.normalize)
    rules = rules_of(settings, classifier)
    gate = gate_of(settings.gate, sources, rules.settling)
    first_ms = warm_up(classifier, settings)
    window = open_window(stop) if asked.window else None
    table = Table(sys.stdout, [source.name for source in sources]) if asked.table and sys.stdout.isatty() else None
    if table:
        warn, asked = table.note, replace(asked, tell=table.note)
    with (
        comparing(settings.compare, settings.decide, classifier, settings.threads or None, warn) as (comparison, disagreements),
        _sinks(settings, asked, sources, classifier, rules, stop, warn, table) as sinks,
        contextlib.closing(device_monitor(settings, sources, warn)) as monitor,
    ):
        keeper = keeper_of(settings, classifier.card, warn)
        if keeper:
            sinks.append(keeping(keeper, warn))
        live = Live(
            sources,
            scorer(classifier, rules.by_energy),
            classifier.labels,
            rules,
            [*sinks, window] if window else sinks,
            Limits(asked.max_frames, asked.seconds, settings.service.errors_in_row, settings.service.memory_mb << 20 or None),
            stop,
            wait=settings.wait_for_source,
            gate=cooled(gate, monitor.cooling),
            comparison=comparison,
            monitor=monitor,
            states=keeper.read() if keeper else None,
        )
        if keeper:
            keeper.follow(live.states)
        with heap.settled():
            summary = window.host(live.run) if window else live.run()
        summary = with_device(summary, monitor.device())
    return Served(with_saved(summary, disagreements), live.blocked, first_ms, threads)


def find_sources(settings: LiveSettings) -> list[Source]:
    """The sources of the settings, not opened yet, each with a name of its own. Raises SourceError."""
    found: list[Source] = []
    for text in settings.sources:
        source = find_source(text, settings.camera, settings.realtime, settings.wait_for_source)
        like = sum(other.name.partition(" #")[0] == source.name for other in found)
        found.append(replace(source, name=f"{source.name} #{like + 1}") if like else source)
    return found


def device_monitor(settings: LiveSettings, sources: list[Source], warn: Callable[[str], None]) -> DeviceMonitor:
    """What watches the device; it slows live sources down when the settings say so, for a file must be classified whole."""
    above_c = settings.service.cool_above_c
    cooling = Cooling(above_c) if above_c and all(source.live for source in sources) else None
    return DeviceMonitor(warn=warn, cooling=cooling)


def with_device(summary: Summary, device: Device) -> Summary:
    """The summary with what was seen of the device, also in a run shorter than a reading is apart from the next."""
    return replace(summary, device=device, throttled=tuple(sorted({*summary.throttled, *device.throttled})))


def open_window(stop: Stop) -> Window:
    """A window whose end is that of the run. Raises ConfigError where none can be opened."""
    from edgeclf.runtime.sinks.window import Window, need_display

    need_display()
    return Window(lambda: stop.because("window closed"))


def warm_up(classifier: Classifier, settings: LiveSettings) -> float:
    """The first answer, in milliseconds; it is slow, so it is made before a camera opens. Raises ModelError."""
    frame = np.zeros((settings.camera.height, settings.camera.width, 3), np.uint8)
    start = time.perf_counter()
    classifier.probabilities(frame)
    return (time.perf_counter() - start) * 1000


def rules_of(settings: LiveSettings, classifier: Classifier) -> Rules:
    """How the classifier's scores become answers: the settings, and the model card where they say nothing.

    Raises ConfigError when the card lacks the limit that is asked for, or the model the energy.
    """
    rules = asked_rules(classifier.card, settings.decide)
    if rules.by_energy:
        need_energy(classifier)
    return rules


@contextlib.contextmanager
def _sinks(
    settings: LiveSettings,
    asked: Asked,
    sources: list[Source],
    classifier: Classifier,
    rules: Rules,
    stop: Stop,
    warn: Callable[[str], None],
    table: Table | None,
) -> Iterator[list[Sink]]:
    """The sinks that the settings ask for; closed again when one of them cannot be made, and at the end."""
    lossless = not any(source.live for source in sources)
    sinks: list[Sink] = []
    with contextlib.ExitStack() as ending:

        def add(make: Callable[[], Sink]) -> None:
            sink = make()
            ending.callback(sink.close)
            sinks.append(sink)

        def add_writer(name: str, writer: Writer) -> None:
            add(partial(Background, writer, name, lossless, stop, lambda: stop.because(READER_GONE), warn))

        files = settings.files
        if files.jsonl == TO_STDOUT:
            lines_out = JsonLines(sys.stdout)
            add_writer("jsonl", Changes(lines_out) if files.changes_only else lines_out)
        for make in file_sinks(settings, classifier.labels, lossless, stop, warn):
            add(make)
        if not asked.quiet and files.jsonl != TO_STDOUT:
            if table:
                add(table.start)
            else:
                lines = Lines(sys.stdout, several=len(sources) > 1)
                ending.callback(lines.end)
                add_writer("terminal", lines)
        if settings.web.address:
            web = open_web(settings.web, [s.name for s in sources], classifier, rules, warn)
            add(lambda: web)
            asked.tell(f"preview: {web.address}{web.note and f' ({web.note})'}")
        for sink in outward(settings, classifier.card, [s.name for s in sources], warn, asked.tell):
            ending.callback(sink.close)
            sinks.append(sink)
        yield sinks
