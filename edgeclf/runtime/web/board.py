"""Board: what the page can show. The loop's thread writes it, the server's reads it; only the newest of each source is kept."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from edgeclf.core.image import Pixels
from edgeclf.runtime.events import Event, Health, Seen, Skipped, SourceChanged, record
from edgeclf.runtime.sources.capture import CaptureState

HISTORY = 200  # changes, states and skips that are remembered
SKIP_APART_S = 1.0  # a broken camera must not push everything else out of the history


@dataclass(frozen=True, eq=False)
class Shown:
    """The newest of one source: its state, and its last classified frame, BGR uint8 (height, width, 3), with the answer."""

    name: str
    state: CaptureState = "starting"
    detail: str = ""
    seen: Seen | None = None
    image: Pixels | None = None


@dataclass(frozen=True)
class Entry:
    """One line of the history; numbers count up from 1 and tell what a reader has had."""

    number: int
    event: Event

    def to_json(self) -> dict[str, Any]:
        return {"number": self.number, **record(self.event)}


class Board:
    """All methods may be called from any thread, and none takes noticeable time."""

    def __init__(self, names: Sequence[str], model: str, classes: int) -> None:
        self.model, self.classes = model, classes
        self.run = secrets.token_hex(4)  # tells a reader that another run answers now
        self.started_s = time.time()
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._shown = {name: Shown(name) for name in names}
        self._history: deque[Entry] = deque(maxlen=HISTORY)
        self._number = self._frames = self._skipped = self._compared = self._agreed = 0
        self._skip_told_s = -SKIP_APART_S
        self._health: Health | None = None

    def take(self, event: Event, image: Pixels | None) -> None:
        """Keep what `event` says; `image` is the frame of a Seen and is not copied."""
        with self._lock:
            if isinstance(event, Health):
                self._take_health(event)
            elif event.source not in self._shown:
                return
            elif isinstance(event, Seen):
                self._take_seen(event, image)
            elif isinstance(event, SourceChanged):
                self._shown[event.source] = replace(self._shown[event.source], state=event.state, detail=event.detail)
                self._remember(event)
            elif isinstance(event, Skipped):
                self._skipped += 1
                if (now := time.monotonic()) - self._skip_told_s >= SKIP_APART_S:
                    self._skip_told_s = now
                    self._remember(event)

    def _take_seen(self, event: Seen, image: Pixels | None) -> None:
        before = self._shown[event.source]
        self._shown[event.source] = Shown(before.name, before.state, before.detail, event, image)
        self._frames += 1
        if event.other:
            self._compared += 1
            self._agreed += event.other.agrees
        if event.decision.changed:
            self._remember(event)

    def _take_health(self, event: Health) -> None:
        for name, state in event.states.items():
            if name in self._shown and self._shown[name].state != state:
                self._shown[name] = replace(self._shown[name], state=state, detail="")
        self._health = event

    def _remember(self, event: Event) -> None:
        self._number += 1
        self._history.append(Entry(self._number, event))

    def shown(self) -> tuple[Shown, ...]:
        """The newest of each source, in the order of the settings."""
        with self._lock:
            return tuple(self._shown.values())

    def since(self, number: int) -> list[Entry]:
        """What of the history came after that number, oldest first; 0 gives all that is remembered."""
        with self._lock:
            return [entry for entry in self._history if entry.number > number]

    def health(self) -> Health | None:
        """What the device said last."""
        with self._lock:
            return self._health

    def status(self) -> dict[str, Any]:
        """Everything but pictures and history, as JSON."""
        with self._lock:
            shown, health = tuple(self._shown.values()), self._health
            counts = {"frames": self._frames, "skipped": self._skipped}
            compared = {"frames": self._compared, "agreed": self._agreed} if self._compared else None
        newest = max((s.seen for s in shown if s.seen), key=lambda seen: seen.time_s, default=None)
        return {
            "run": self.run,
            "model": self.model,
            "classes": self.classes,
            "started": datetime.fromtimestamp(self.started_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "running_s": round(time.monotonic() - self._began, 1),
            **counts,
            "fps": round(newest.fps, 2) if newest else 0.0,
            "compared": compared,
            "health": record(health) if health else None,
            "sources": [_source(one) for one in shown],
        }


def _source(shown: Shown) -> dict[str, Any]:
    seen = record(shown.seen) if shown.seen else {}
    return {"name": shown.name, "state": shown.state, "detail": shown.detail, "seen": seen or None}
