"""The live loop: newest frame → gate → scores → decision → sinks, with every stage timed and every loss counted."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

from edgeclf.core.errors import EXIT_INTERRUPTED, EdgeclfError, ModelError, SourceError
from edgeclf.core.image import Pixels
from edgeclf.core.results import Interval, Latency, wilson
from edgeclf.runtime.decision import INVALID, Decision, Rules, State, decide
from edgeclf.runtime.device.vitals import Device
from edgeclf.runtime.events import Event, Health, Other, Seen, Skipped, SourceChanged, Stages
from edgeclf.runtime.scoring import Scored, Scorer
from edgeclf.runtime.sinks.sink import Sink, end_all
from edgeclf.runtime.sources.camera import Source
from edgeclf.runtime.sources.capture import Broken, CaptureState, Frame, Timing
from edgeclf.runtime.sources.captures import Captures

NAP_S = 0.2  # the longest wait before the loop looks whether it is to stop
KEPT_TIMES = 4096
RATE_MEMORY = 0.9  # weight of the past in the frame rate that is shown
MEMORY_LIMIT = "memory limit"
TIMED = {f.name.removesuffix("_ms"): f.name for f in fields(Stages)}
STAGES = ("wait", *TIMED, "emit")


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
    """When a run ends by itself; None is never. `errors_in_row` failures to classify in a row end it with an error; more
    resident memory than `memory_bytes` ends it for a restart, with MEMORY_LIMIT as the reason."""

    max_frames: int | None = None
    seconds: float | None = None
    errors_in_row: int = 10
    memory_bytes: int | None = None


class Gate(Protocol):
    """Decides for one source which frames are classified, and which part of them."""

    def admits(self, frame: Frame) -> bool:
        """False for a frame that is to be passed over; it is counted as `gated`."""

    def view(self, image: Pixels) -> Pixels:
        """The part of a BGR frame that is classified; a view, not a copy. Raises DataError when there is none."""

    def answered(self, valid: bool) -> None:
        """The frame admitted last was classified; `valid` says whether that gave a label. Not told of one that failed."""


class Monitor(Protocol):
    """Watches the device; asked by the loop all the time, so it must answer at once."""

    def is_due(self) -> bool:
        """Whether there are news, as every few seconds."""

    def news(self, states: Mapping[str, CaptureState], labelled: int, lost: Mapping[str, int]) -> Health:
        """What the device says; the next is due a few seconds later."""

    def close(self) -> None:
        """Nothing more will be asked."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Another model on the same frames, with its labels and rules, and where frames on which the two disagree go, cut to
    what both were shown; `name` says which it is."""

    scorer: Scorer
    labels: tuple[str, ...]
    rules: Rules
    disagreed: Callable[[Seen, Pixels], None] = lambda seen, image: None
    name: str = ""


@dataclass(frozen=True)
class Compared:
    """How two models did on the same frames: how many both answered, on how many alike, and what each cost.

    Answers are those to single frames, before smoothing and votes. `interval` is the 95% interval of the share agreed on
    (Wilson 1927), as if frames were independent of each other, which those of a video are not. `classify` is preprocessing
    and inference of the other, `own` of the first model. `not_compared` counts frames to which one of the two gave no valid
    answer; `saved` those kept of the frames on which they disagree.
    """

    frames: int
    agreed: int
    classify: Latency
    own: Latency
    agreement: float
    interval: Interval
    not_compared: int = 0
    saved: int = 0
    name: str = ""


@dataclass(frozen=True)
class Summary:
    """What a run did, all sources together.

    `frames` were classified; `dropped` overtaken by newer ones, `gated` passed over as asked, `skipped` broken or not
    classified, `invalid` given scores that are no numbers, `identical` equal to the frame before. `stages` holds `wait`, the
    time spent waiting for a frame, `emit`, handing results over, and those of `Stages`. `labels` counts the answers of
    single frames, `changes` the answers that lasted. `lost_messages` counts what slow sinks lost, by sink. `throttled` names
    what the board's firmware reported at any time; such times are no measurement of the board. `device` is the memory, CPU
    share, heat and clock of the run, None where nobody watched.
    """

    source: str
    ended: str
    seconds: float
    frames: int
    fps: float
    dropped: int
    gated: int
    skipped: int
    invalid: int
    identical: int
    stalls: int
    reconnects: int
    stages: dict[str, Latency]
    labels: dict[str, int]
    changes: int
    lost_messages: dict[str, int]
    note: str = ""
    compared: Compared | None = None
    throttled: tuple[str, ...] = ()
    device: Device | None = None

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


@dataclass
class _Tally:
    """What is counted and timed while the loop runs."""

    counts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    times: dict[str, Times] = field(default_factory=lambda: {name: Times() for name in STAGES})
    other: Times = field(default_factory=Times)
    own: Times = field(default_factory=Times)
    throttled: set[str] = field(default_factory=set)
    note: str = ""


class Live:
    """One run of the loop. `run` returns when every source has ended, a limit is reached, or `stop` is set.

    `blocked` says afterwards that a thread was left behind in a read or a write that does not return, as of a dead camera
    or a full pipe; Python must then be left by `os._exit`, because such a thread can abort it while it winds down.
    `states` is what each source's answers have come to, by the source's name; given to the next run, it goes on from there.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        scorer: Scorer,
        labels: Sequence[str],
        rules: Rules | None = None,
        sinks: Sequence[Sink] = (),
        limits: Limits | None = None,
        stop: Stop | None = None,
        timing: Timing | None = None,
        wait: bool = False,
        gate: Callable[[], Gate] | None = None,
        comparison: Comparison | None = None,
        monitor: Monitor | None = None,
        states: Mapping[str, State] | None = None,
    ) -> None:
        """`wait`: sources that are not there yet are waited for. `gate` makes one for each source."""
        self.stop = stop or Stop()
        self.blocked = False
        self.states = {source.name: (states or {}).get(source.name, State()) for source in sources}
        self._names = [source.name for source in sources]
        self._scorer, self._labels = scorer, tuple(labels)
        self._rules, self._sinks, self._limits = rules or Rules(), sinks, limits or Limits()
        self._captures = Captures(sources, timing, wait)
        self._gates = [gate() for _ in sources] if gate else None
        self._comparison, self._monitor = comparison, monitor
        self._tally = _Tally()
        self._errors_in_row = 0
        self._last_error: Exception | None = None
        self._apart_s = self._last_s = 0.0

    def run(self) -> Summary:
        """Classify until the end. Raises SourceError when a source cannot be opened or gave nothing that can be read,
        and ModelError when classifying fails again and again."""
        try:
            self._captures.start(self.stop)
            began = time.monotonic()
            ended = self._loop(began)
            self._tell_news()
            seconds = time.monotonic() - began
        finally:
            end_all(self._sinks)
            source_ended = self._captures.close()
            sinks_ended = [sink.close() for sink in self._sinks]
            self.blocked = not (source_ended and all(sinks_ended))
            if self._monitor:
                self._monitor.close()
        return self._summary(ended, seconds)

    def _loop(self, began: float) -> str:
        """Returns why it ended."""
        while not self.stop.is_set():
            if self._limits.max_frames is not None and self._tally.counts["frames"] >= self._limits.max_frames:
                return "frame limit"
            left = NAP_S if self._limits.seconds is None else min(NAP_S, began + self._limits.seconds - time.monotonic())
            if left <= 0:
                return "time limit"
            asked = time.monotonic()
            taken = self._captures.next(left)
            self._tell_news()
            if taken is not None:
                self._tally.times["wait"].add(time.monotonic() - asked)
                self._take(*taken)
            elif self._captures.finished:
                self._refuse_nothing()
                return "end of source"
        return self.stop.reason

    def _take(self, place: int, frame: Frame) -> None:
        gate = self._gates[place] if self._gates else None
        if gate and not gate.admits(frame):
            self._tally.counts["gated"] += 1
            return
        try:
            view = gate.view(frame.image) if gate else frame.image
            scored = self._scorer(view)
        except Exception as error:
            self._skip(place, frame, error)
            return
        self._errors_in_row = 0
        classified = time.monotonic()
        name = self._names[place]
        self.states[name], decision = decide(self.states[name], scored.probabilities, self._labels, self._rules, scored.energy)
        decided = time.monotonic()
        if gate:
            gate.answered(decision.label != INVALID)
        stages = Stages(
            frame.decode_s * 1000,
            scored.resize_s * 1000,
            scored.invoke_s * 1000,
            (decided - classified) * 1000,
            (decided - frame.taken_s) * 1000,
        )
        self._count(decision, stages, decided)
        seen = Seen(
            time.time(), name, frame.index, decision, stages, 1 / self._apart_s if self._apart_s else 0.0, frame.name,
            self._compare(view, scored, decision),
        )  # fmt: skip
        compared = time.monotonic()
        self._tell(seen, frame.image)
        self._tally.times["emit"].add(time.monotonic() - compared)
        if seen.other and not seen.other.agrees and self._comparison and INVALID not in (decision.label, seen.other.label):
            self._comparison.disagreed(seen, view)

    def _compare(self, view: Pixels, scored: Scored, decision: Decision) -> Other | None:
        """The other model's answer to a frame that the first one answered, each by this frame alone."""
        if self._comparison is None:
            return None
        comparison, tally = self._comparison, self._tally
        try:
            others = comparison.scorer(view)
        except Exception:  # the first model's answer counts, whatever becomes of the second
            tally.counts["not_compared"] += 1
            return None
        seconds = others.resize_s + others.invoke_s
        answer = _single(others, comparison.labels, comparison.rules)
        own = _single(scored, self._labels, self._rules) if self._rules.smooth else decision
        if INVALID in (answer.label, own.label):
            tally.counts["not_compared"] += 1
            return Other(answer.label, answer.score, False, seconds * 1000)
        tally.other.add(seconds)
        tally.own.add(scored.resize_s + scored.invoke_s)
        tally.counts["agreed"] += answer.label == own.label
        return Other(answer.label, answer.score, answer.label == own.label, seconds * 1000)

    def _count(self, decision: Decision, stages: Stages, now: float) -> None:
        counts, times = self._tally.counts, self._tally.times
        counts["frames"] += 1
        counts["changes"] += decision.changed
        if decision.label == INVALID:
            counts["invalid"] += 1
        else:
            self._tally.labels[decision.label] += 1
        for name, key in TIMED.items():
            times[name].add(getattr(stages, key) / 1000)
        if self._last_s:
            apart = now - self._last_s
            self._apart_s = RATE_MEMORY * self._apart_s + (1 - RATE_MEMORY) * apart if self._apart_s else apart
        self._last_s = now

    def _skip(self, place: int, frame: Frame, error: Exception) -> None:
        self._tally.counts["skipped"] += 1
        self._errors_in_row += 1
        where = frame.name or f"frame {frame.index}"
        self._tell(Skipped(time.time(), self._names[place], f"{where}: {error}"))
        if self._errors_in_row >= self._limits.errors_in_row:
            raise _fatal(error, self._errors_in_row) from error
        self._last_error = error

    def _refuse_nothing(self) -> None:
        """Sources of which not one frame was classified are an error, not a short run."""
        if self._tally.counts["frames"]:
            return
        if self._last_error:
            raise _fatal(self._last_error, self._errors_in_row) from self._last_error
        counts, names = self._captures.counts(), ", ".join(self._names)
        if not counts.captured:
            raise SourceError(f"{names}: none of its pictures can be decoded ({counts.broken} tried)")

    def _tell_news(self) -> None:
        for capture, news in self._captures.news():
            name = capture.source.name
            if isinstance(news, Broken):
                self._tell(Skipped(time.time(), name, news.reason))
            else:
                self._tally.note = news.detail if news.state == "ended" and news.detail else self._tally.note
                self._tell(SourceChanged(time.time(), name, news.state, news.detail))
        if self._monitor and self._monitor.is_due():
            valid = self._tally.counts["frames"] - self._tally.counts["invalid"]
            self._heed(self._monitor.news(self._captures.states(), valid, self._lost()))

    def _heed(self, health: Health) -> None:
        self._tally.throttled.update(health.throttled)
        self._tell(health)
        limit = self._limits.memory_bytes
        if limit and health.memory_bytes and health.memory_bytes > limit:
            self.stop.because(MEMORY_LIMIT)

    def _tell(self, event: Event, image: Pixels | None = None) -> None:
        for sink in self._sinks:
            sink.emit(event, image)

    def _lost(self) -> dict[str, int]:
        return {sink.name: sink.lost for sink in self._sinks if getattr(sink, "lost", 0)}  # type: ignore[attr-defined]

    def _compared(self) -> Compared | None:
        if self._comparison is None:
            return None
        tally, counts = self._tally, self._tally.counts
        frames, agreed = tally.other.count, counts["agreed"]
        return Compared(
            frames, agreed, tally.other.latency(), tally.own.latency(), agreed / frames if frames else 0.0,
            wilson(agreed, frames), counts["not_compared"], name=self._comparison.name,
        )  # fmt: skip

    def _summary(self, ended: str, seconds: float) -> Summary:
        captured, tally = self._captures.counts(), self._tally
        frames = tally.counts["frames"]
        return Summary(
            source=", ".join(self._names),
            ended=ended,
            seconds=seconds,
            frames=frames,
            fps=frames / seconds if seconds > 0 else 0.0,
            dropped=captured.dropped,
            gated=tally.counts["gated"],
            skipped=tally.counts["skipped"] + captured.broken,
            invalid=tally.counts["invalid"],
            identical=captured.identical,
            stalls=captured.stalls,
            reconnects=captured.reconnects,
            stages={name: times.latency() for name, times in tally.times.items()},
            labels=dict(tally.labels.most_common()),
            changes=tally.counts["changes"],
            lost_messages=self._lost(),
            note=tally.note,
            compared=self._compared(),
            throttled=tuple(sorted(tally.throttled)),
        )


def _single(scored: Scored, labels: tuple[str, ...], rules: Rules) -> Decision:
    """What one frame says by itself."""
    return decide(State(), scored.probabilities, labels, replace(rules, smooth=0.0), scored.energy)[1]


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
