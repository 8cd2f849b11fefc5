"""The live loop: newest frame → scores → decision → sinks, with every stage timed and every loss counted."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

from edgeclf.core.errors import EXIT_INTERRUPTED, EdgeclfError, ModelError, SourceError
from edgeclf.core.image import Pixels
from edgeclf.core.results import Latency
from edgeclf.runtime.camera import Source
from edgeclf.runtime.capture import Broken, Capture, Change, Frame, Timing
from edgeclf.runtime.decision import INVALID, Probabilities, Rules, State, decide
from edgeclf.runtime.sinks import Event, Seen, Sink, Skipped, SourceChanged

Scores: TypeAlias = Callable[[Pixels], Probabilities]
"""The seam to a classifier: a BGR frame in, float (classes,) probabilities in label order out."""

NAP_S = 0.2  # the longest wait before the loop looks whether it is to stop
KEPT_TIMES = 4096
RATE_MEMORY = 0.9  # weight of the past in the frame rate that is shown


class Stop(threading.Event):
    """Asks the loop to end; `reason` says why, for the summary."""

    reason = "stopped"

    def because(self, reason: str) -> None:
        """Set, unless it is set already; the first reason stays."""
        if not self.is_set():
            self.reason = reason
            self.set()


@dataclass(frozen=True)
class Limits:
    """When a run ends by itself; None is never. `errors_in_row` failures to classify in a row end it with an error."""

    max_frames: int | None = None
    seconds: float | None = None
    errors_in_row: int = 10


@dataclass(frozen=True)
class Summary:
    """What a run did.

    `frames` were classified; `dropped` overtaken by newer ones, `skipped` broken or not classified, `invalid` given scores
    that are no numbers, `identical` equal to the frame before. `wait` is the time spent waiting for a frame, `classify`
    preprocessing and inference, `emit` handing results over, `age` how old a picture was when its label was known, from
    when it was read. `labels` counts the answers of single frames, `changes` the answers that lasted. `lost_messages`
    counts what slow sinks lost, by sink.
    """

    source: str
    ended: str
    seconds: float
    frames: int
    fps: float
    dropped: int
    skipped: int
    invalid: int
    identical: int
    stalls: int
    reconnects: int
    wait: Latency
    classify: Latency
    emit: Latency
    age: Latency
    labels: dict[str, int]
    changes: int
    lost_messages: dict[str, int]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Times:
    """Durations of a run of any length in bounded memory: a uniform sample of at most KEPT_TIMES (Vitter 1985, R)."""

    def __init__(self) -> None:
        self.count = 0
        self._kept = array("d")
        self._random = random.Random(0)

    def add(self, seconds: float) -> None:
        self.count += 1
        if len(self._kept) < KEPT_TIMES:
            self._kept.append(seconds)
        elif (place := int(self._random.random() * self.count)) < KEPT_TIMES:
            self._kept[place] = seconds

    def latency(self) -> Latency:
        """Percentiles; `runs` is how many durations there were, not how many were kept."""
        return replace(Latency.of(list(self._kept)), runs=self.count)


class Live:
    """One run of the loop. `run` returns when the source ends, a limit is reached, or `stop` is set.

    `blocked` says afterwards that a thread was left behind in a read or a write that does not return, as of a dead camera
    or a full pipe; Python must then be left by `os._exit`, because such a thread can abort it while it winds down.
    """

    def __init__(
        self,
        source: Source,
        scores: Scores,
        labels: Sequence[str],
        rules: Rules | None = None,
        sinks: Sequence[Sink] = (),
        limits: Limits | None = None,
        stop: Stop | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.stop = stop or Stop()
        self.blocked = False
        self._source, self._scores, self._labels = source, scores, tuple(labels)
        self._rules, self._sinks, self._limits = rules or Rules(), sinks, limits or Limits()
        self._capture = Capture(source, timing)
        self._state = State()
        self._wait, self._classify, self._emit, self._age = Times(), Times(), Times(), Times()
        self._counts: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._errors_in_row = 0
        self._last_error: Exception | None = None
        self._apart_s = self._last_s = 0.0
        self._note = ""

    def run(self) -> Summary:
        """Classify until the end. Raises SourceError when the source cannot be opened or gave nothing that can be read,
        and ModelError when classifying fails again and again."""
        try:
            self._capture.start(self.stop)
            began = time.monotonic()
            ended = self._loop(began)
            self._tell_news()
            seconds = time.monotonic() - began
        finally:
            source_ended = self._capture.close()
            sinks_ended = [sink.close() for sink in self._sinks]
            self.blocked = not (source_ended and all(sinks_ended))
        return self._summary(ended, seconds)

    def _loop(self, began: float) -> str:
        """Returns why it ended."""
        while not self.stop.is_set():
            if self._limits.max_frames is not None and self._counts["frames"] >= self._limits.max_frames:
                return "frame limit"
            left = NAP_S if self._limits.seconds is None else min(NAP_S, began + self._limits.seconds - time.monotonic())
            if left <= 0:
                return "time limit"
            asked = time.monotonic()
            frame = self._capture.next(left)
            self._tell_news()
            if frame is not None:
                self._wait.add(time.monotonic() - asked)
                self._take(frame)
            elif self._capture.finished:
                self._refuse_nothing()
                return "end of source"
        return self.stop.reason

    def _take(self, frame: Frame) -> None:
        start = time.monotonic()
        try:
            probabilities = self._scores(frame.image)
        except Exception as error:
            self._skip(frame, error)
            return
        self._errors_in_row = 0
        classified = time.monotonic()
        self._state, decision = decide(self._state, probabilities, self._labels, self._rules)
        decided = time.monotonic()
        self._classify.add(classified - start)
        self._age.add(decided - frame.taken_s)
        self._count(decision.label, decision.changed, decided)
        age_ms, classify_ms = (decided - frame.taken_s) * 1000, (classified - start) * 1000
        seen = Seen(
            time.time(), frame.index, decision, age_ms, classify_ms, 1 / self._apart_s if self._apart_s else 0.0, frame.name
        )
        self._tell(seen, frame.image)
        self._emit.add(time.monotonic() - decided)

    def _count(self, label: str, changed: bool, now: float) -> None:
        self._counts["frames"] += 1
        self._counts["changes"] += changed
        if label == INVALID:
            self._counts["invalid"] += 1
        else:
            self._seen[label] += 1
        if self._last_s:
            apart = now - self._last_s
            self._apart_s = RATE_MEMORY * self._apart_s + (1 - RATE_MEMORY) * apart if self._apart_s else apart
        self._last_s = now

    def _skip(self, frame: Frame, error: Exception) -> None:
        self._counts["skipped"] += 1
        self._errors_in_row += 1
        where = frame.name or f"frame {frame.index}"
        self._tell(Skipped(time.time(), f"{where}: {error}"))
        if self._errors_in_row >= self._limits.errors_in_row:
            raise _fatal(error, self._errors_in_row) from error
        self._last_error = error

    def _refuse_nothing(self) -> None:
        """A source of which not one frame was classified is an error, not a short run."""
        if self._counts["frames"]:
            return
        if self._last_error:
            raise _fatal(self._last_error, self._errors_in_row) from self._last_error
        broken = self._capture.counts().broken
        raise SourceError(f"{self._source.name}: none of its pictures can be decoded ({broken} tried)")

    def _tell_news(self) -> None:
        for news in self._capture.news():
            if isinstance(news, Broken):
                self._tell(Skipped(time.time(), news.reason))
            elif isinstance(news, Change):
                self._note = news.detail if news.state == "ended" else self._note
                self._tell(SourceChanged(time.time(), self._source.name, news.state, news.detail))

    def _tell(self, event: Event, image: Pixels | None = None) -> None:
        for sink in self._sinks:
            sink.emit(event, image)

    def _summary(self, ended: str, seconds: float) -> Summary:
        counts, frames = self._capture.counts(), self._counts["frames"]
        return Summary(
            source=self._source.name,
            ended=ended,
            seconds=seconds,
            frames=frames,
            fps=frames / seconds if seconds > 0 else 0.0,
            dropped=counts.dropped,
            skipped=self._counts["skipped"] + counts.broken,
            invalid=self._counts["invalid"],
            identical=counts.identical,
            stalls=counts.stalls,
            reconnects=counts.reconnects,
            wait=self._wait.latency(),
            classify=self._classify.latency(),
            emit=self._emit.latency(),
            age=self._age.latency(),
            labels=dict(self._seen.most_common()),
            changes=self._counts["changes"],
            lost_messages={sink.name: sink.lost for sink in self._sinks if getattr(sink, "lost", 0)},  # type: ignore[attr-defined]
            note=self._note,
        )


def _fatal(error: Exception, times: int) -> EdgeclfError:
    if isinstance(error, EdgeclfError):
        return type(error)(f"{error} (and so {times} frames in a row)")
    return ModelError(f"classifying failed for {times} frames in a row: {type(error).__name__}: {error}")


@contextlib.contextmanager
def stopping_on_signals(stop: Stop) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP set `stop`, with the signal's name as the reason; a second one ends the process at once.

    Signals that are ignored, as under nohup, stay so. Does nothing outside the main thread, where Python has no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def on_signal(number: int, _: object) -> None:
        caught.append(number)
        if len(caught) > 1:
            os._exit(EXIT_INTERRUPTED)
        stop.because(signal.Signals(number).name)

    names = [n for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    numbers = [getattr(signal, name) for name in names]
    before = {number: signal.getsignal(number) for number in numbers}
    chosen = [number for number in numbers if before[number] not in (signal.SIG_IGN, None)]
    for number in chosen:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in chosen:
            signal.signal(number, before[number])
