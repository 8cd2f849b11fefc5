"""From LiveSettings to a running loop: opens the model, finds the sources, makes the sinks, and runs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from edgeclf.core.live_settings import LiveSettings
from edgeclf.runtime.camera import Source, find_source
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import Rules
from edgeclf.runtime.engine import Normalize
from edgeclf.runtime.live import Limits, Live, Stop, Summary
from edgeclf.runtime.scoring import scorer
from edgeclf.runtime.sinks import Background, JsonLines, Lines, Sink, Writer
from edgeclf.runtime.window import Window, need_display

READER_GONE = "nobody reads standard output"
TO_STDOUT = "-"


@dataclass(frozen=True)
class Asked:
    """What belongs to one call and not to the settings of a board: limits of this run, and what the terminal shows.

    `labels` and `normalize` are for a file without a model card; `quiet` leaves standard output to the caller.
    """

    max_frames: int | None = None
    seconds: float | None = None
    window: bool = False
    quiet: bool = False
    labels: Path | None = None
    normalize: Normalize | None = None


@dataclass(frozen=True)
class Served:
    """What a run did; `blocked` as in `Live`; the first inference, which is slower than the others, and the threads used."""

    summary: Summary
    blocked: bool
    first_inference_ms: float
    threads: int


def serve(settings: LiveSettings, asked: Asked, stop: Stop, warn: Callable[[str], None]) -> Served:
    """Run as the settings say until the end. `warn` is told what a person should know.

    Raises ConfigError, SourceError, ModelError, StorageError or MissingExtra before the first frame, and what `Live.run` does.
    """
    sources = find_sources(settings)
    classifier = Classifier.load(settings.model, settings.threads, asked.labels, asked.normalize)
    first_ms = warm_up(classifier, settings)
    if asked.window:
        need_display()
    window = Window(lambda: stop.because("window closed")) if asked.window else None
    with _sinks(settings, asked, sources, stop, warn) as sinks:
        live = Live(
            sources,
            scorer(classifier),
            classifier.labels,
            rules_of(settings, classifier),
            [*sinks, window] if window else sinks,
            Limits(asked.max_frames, asked.seconds, settings.service.errors_in_row, settings.service.memory_mb << 20 or None),
            stop,
            wait=settings.wait_for_source,
        )
        summary = window.host(live.run) if window else live.run()
    return Served(summary, live.blocked, first_ms, classifier.engine.threads)


def find_sources(settings: LiveSettings) -> list[Source]:
    """The sources of the settings, not opened yet, each with a name of its own. Raises SourceError."""
    found: list[Source] = []
    for text in settings.sources:
        source = find_source(text, settings.camera, settings.realtime)
        like = sum(other.name.partition(" #")[0] == source.name for other in found)
        found.append(replace(source, name=f"{source.name} #{like + 1}") if like else source)
    return found


def warm_up(classifier: Classifier, settings: LiveSettings) -> float:
    """The first answer, in milliseconds; it is slow, so it is made before a camera opens. Raises ModelError."""
    frame = np.zeros((settings.camera.height, settings.camera.width, 3), np.uint8)
    start = time.perf_counter()
    classifier.probabilities(frame)
    return (time.perf_counter() - start) * 1000


def rules_of(settings: LiveSettings, classifier: Classifier) -> Rules:
    """How the classifier's scores become answers: the settings, and the model card where they say nothing."""
    decide = settings.decide
    thresholds = (decide.threshold,) if decide.threshold is not None else classifier.card.thresholds or (0.0,)
    return Rules(smooth=decide.smooth, thresholds=thresholds, hysteresis=decide.hysteresis, top=decide.top)


@contextlib.contextmanager
def _sinks(
    settings: LiveSettings, asked: Asked, sources: list[Source], stop: Stop, warn: Callable[[str], None]
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
        if files.jsonl:
            add_writer("jsonl", JsonLines(sys.stdout if files.jsonl == TO_STDOUT else Path(files.jsonl)))
        if not asked.quiet and files.jsonl != TO_STDOUT:
            lines = Lines(sys.stdout)
            ending.callback(lines.end)
            add_writer("terminal", lines)
        yield sinks
