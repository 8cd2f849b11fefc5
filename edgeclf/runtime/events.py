"""Events: what the live loop tells its sinks, and each as JSON and as a line for a person."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeAlias

from edgeclf.core.text import printable
from edgeclf.runtime.decision import INVALID, Decision
from edgeclf.runtime.sources.capture import CaptureState


@dataclass(frozen=True)
class Stages:
    """What one frame cost, in milliseconds: `decode` from compressed bytes where the source has such, `resize` to the
    network's input, `invoke` the network, `decide` from scores to an answer, `age` from when the picture was taken from its
    source to when its label was known."""

    decode_ms: float
    resize_ms: float
    invoke_ms: float
    decide_ms: float
    age_ms: float


@dataclass(frozen=True)
class Other:
    """What the model compared with said of the same frame, and its own preprocessing and inference in milliseconds."""

    label: str
    score: float
    agrees: bool
    classify_ms: float


@dataclass(frozen=True)
class Seen:
    """One classified frame. `time_s` is wall time; `fps` the rate of classified frames of all sources together."""

    time_s: float
    source: str
    frame: int
    decision: Decision
    stages: Stages
    fps: float
    name: str = ""
    other: Other | None = None


@dataclass(frozen=True)
class SourceChanged:
    """The source went into another state; `detail` says why, or is empty."""

    time_s: float
    source: str
    state: CaptureState
    detail: str


@dataclass(frozen=True)
class Skipped:
    """A frame was passed over, because it was broken or could not be classified."""

    time_s: float
    source: str
    reason: str


@dataclass(frozen=True)
class Health:
    """How the device and the run are, every few seconds, pictures or none.

    `states` is the state of each source. `labelled` counts the frames that got a valid label since the start. What the
    system does not say is None: memory in bytes, `cpu_share` of one core, degrees Celsius, MHz. `throttled` names what the
    board's firmware reports now, such as `under-voltage`; `warning` is one line when there is something to be told.
    """

    time_s: float
    states: Mapping[str, CaptureState]
    labelled: int
    memory_bytes: int | None = None
    cpu_share: float | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttled: tuple[str, ...] = ()
    warning: str = ""
    lost_messages: Mapping[str, int] = field(default_factory=dict)


Event: TypeAlias = Seen | SourceChanged | Skipped | Health


def is_change(event: Event, labels: Collection[str] = ()) -> bool:
    """Whether the answer changed with this event, to one of `labels` or, when there are none, to any."""
    return isinstance(event, Seen) and event.decision.changed and (not labels or event.decision.stable in labels)


def record(event: Event) -> dict[str, Any]:
    """The event as one JSON object: `event` is label, invalid, skipped, source or health. Numbers are finite, times are UTC."""
    stamp = datetime.fromtimestamp(event.time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(event, SourceChanged):
        return {"time": stamp, "event": "source", "source": event.source, "state": event.state, "detail": event.detail}
    if isinstance(event, Skipped):
        return {"time": stamp, "event": "skipped", "source": event.source, "reason": event.reason}
    if isinstance(event, Health):
        return {"time": stamp, "event": "health", **{k: v for k, v in asdict(event).items() if k != "time_s"}}
    decision, stages = event.decision, event.stages
    named = {"name": event.name} if event.name else {}
    other = event.other
    compared = (
        {
            "other": {
                "label": other.label,
                "score": round(other.score, 5),
                "agrees": other.agrees,
                "classify_ms": round(other.classify_ms, 3),
            }
        }
        if other
        else {}
    )
    return {
        "time": stamp,
        "event": "invalid" if decision.label == INVALID else "label",
        "source": event.source,
        "frame": event.frame,
        **named,
        "label": decision.label,
        "score": round(decision.score, 5),
        "stable": decision.stable,
        "changed": decision.changed,
        "top": [{"label": label, "score": round(score, 5)} for label, score in decision.top],
        **{name: round(value, 3) for name, value in vars(stages).items()},
        **compared,
    }


def describe(event: Event, several: bool = False) -> str:
    """The event as one line without control characters; with `several` sources it names its own."""
    clock = datetime.fromtimestamp(event.time_s).strftime("%H:%M:%S")
    named = f"{event.source}: " if several and not isinstance(event, Health) else ""
    if isinstance(event, SourceChanged):
        text = f"{clock}  {event.source}: {event.state}{': ' * bool(event.detail)}{event.detail}"
    elif isinstance(event, Skipped):
        text = f"{clock}  {named}skipped: {event.reason}"
    elif isinstance(event, Health):
        text = f"{clock}  {event.warning or 'well'}"
    else:
        answer = event.decision
        shown = f"{answer.label:<16} {answer.score:6.1%}"
        rate = f"{event.fps:6.1f}" if event.fps else "     -"
        other = f"  {'=' if event.other.agrees else '≠'} {event.other.label} {event.other.score:.1%}" if event.other else ""
        text = f"{clock}  {named}{shown}{other}  {rate} fps  age {event.stages.age_ms:6.1f} ms  {event.name}"
    return printable(text).rstrip()
