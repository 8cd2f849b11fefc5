"""A live table on the terminal: each source's answer, what a frame costs, and how the device is."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TextIO

import numpy as np

from edgeclf.core.image import Pixels
from edgeclf.core.text import printable
from edgeclf.runtime.events import Event, Health, Seen, Skipped, SourceChanged, Stages, describe
from edgeclf.runtime.sinks.sink import CLOSE_S

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table as Grid

REFRESH_S = 0.25
KEPT_FRAMES = 500  # whose costs the table tells of
RATE_FRAMES = 40
RATE_S = 3.0
NOTES = 5
STAGES = tuple(f.name.removesuffix("_ms") for f in fields(Stages))
WIDE = 100  # columns of a terminal from which on everything is shown
STYLES = {"live": "green", "starting": "yellow", "stalled": "red", "reconnecting": "red", "ended": "dim"}


@dataclass
class _Row:
    """What is known of one source; `missing` counts frames that it gave and that were not classified."""

    state: str = "starting"
    seen: Seen | None = None
    frames: int = 0
    since_s: float = 0.0
    times_s: deque[float] = field(default_factory=lambda: deque(maxlen=RATE_FRAMES))

    @property
    def missing(self) -> int:
        return self.seen.frame + 1 - self.frames if self.seen else 0

    def fps(self, now: float) -> float:
        """Of the last frames; 0 when the newest is old."""
        times = self.times_s
        if len(times) < 2 or now - times[-1] > RATE_S:
            return 0.0
        return (len(times) - 1) / max(times[-1] - times[0], 1e-6)


class Table:
    """A sink that keeps the newest of everything and draws it four times a second, in a thread of its own."""

    name, lost = "table", 0

    def __init__(self, stream: TextIO, sources: Sequence[str], width: int | None = None) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, width=width)
        self._rows = {name: _Row() for name in sources}
        self._stages: dict[str, deque[float]] = {name: deque(maxlen=KEPT_FRAMES) for name in STAGES}
        self._notes: deque[str] = deque(maxlen=NOTES)
        self._health: Health | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ended_s = 0.0
        self._thread = threading.Thread(target=self._work, name="edgeclf-sink-table", daemon=True)

    def start(self) -> Table:
        """Begin to draw; what was noted before is shown then."""
        self._thread.start()
        return self

    def emit(self, event: Event, image: Pixels | None = None) -> None:
        with self._lock:
            if isinstance(event, Seen):
                self._see(event)
            elif isinstance(event, Health):
                self._tell_health(event)
            else:
                if isinstance(event, SourceChanged):
                    self._rows.setdefault(event.source, _Row()).state = event.state
                if isinstance(event, Skipped) or event.detail:
                    self._notes.append(describe(event, several=True))

    def note(self, message: str) -> None:
        """Show a line below the table; standard error would be written over."""
        with self._lock:
            self._notes.append(f"{time.strftime('%H:%M:%S')}  {printable(message)}")

    def end(self) -> None:
        self._ended_s = self._ended_s or time.monotonic()
        self._closed.set()

    def close(self) -> bool:
        self.end()
        self._thread.join(max(0.0, self._ended_s + CLOSE_S - time.monotonic()))
        return not self._thread.is_alive()

    def render(self, now: float) -> RenderableType:
        """The table at that moment of the monotonic clock, as wide as the terminal."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        with self._lock:
            wide = self._console.width >= WIDE
            parts: list[RenderableType] = [self._costs()]
            if self._health:
                parts.append(_device(self._health))
            parts += [Text(note, "yellow") for note in self._notes]
            return Group(self._sources(now, wide), Padding(Group(*parts), (0, 0, 0, 1)))

    def _see(self, event: Seen) -> None:
        now = time.monotonic()
        row = self._rows.setdefault(event.source, _Row())
        if event.decision.changed or row.seen is None:
            row.since_s = now
        row.seen = event
        row.frames += 1
        row.times_s.append(now)
        for name, times in self._stages.items():
            times.append(getattr(event.stages, f"{name}_ms"))

    def _tell_health(self, event: Health) -> None:
        if event.warning and event.warning != (self._health.warning if self._health else ""):
            self._notes.append(describe(event))
        self._health = event

    def _work(self) -> None:
        from rich.live import Live as Display

        # A terminal that went away ends the drawing, and nothing else.
        with contextlib.suppress(OSError, ValueError):
            display = Display(
                console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False,
                get_renderable=lambda: self.render(time.monotonic()),
            )  # fmt: skip
            with display:
                # Left visible, because a second Ctrl-C ends the process at once and would leave it hidden.
                self._console.show_cursor(True)
                while not self._closed.wait(REFRESH_S):
                    display.refresh()

    def _sources(self, now: float, wide: bool) -> Grid:
        from rich import box
        from rich.table import Table as Grid

        grid = Grid(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0), pad_edge=False)
        grid.add_column("source", ratio=3, no_wrap=True, overflow="ellipsis")
        grid.add_column("state", width=12, no_wrap=True, overflow="ellipsis")
        grid.add_column("answer", ratio=4, no_wrap=True, overflow="ellipsis")
        for title, width in (("score", 6), ("for", 6), ("fps", 5), ("age ms", 7), ("frames", 9), ("missing", 7)):
            if wide or title != "frames":
                grid.add_column(title, width=width, justify="right", no_wrap=True)
        for name, row in self._rows.items():
            grid.add_row(*_cells(name, row, now, wide))
        return grid

    def _costs(self) -> Grid:
        from rich.table import Table as Grid

        grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="none")
        grid.add_column("ms", no_wrap=True)
        for name in STAGES:
            grid.add_column(name, justify="right", no_wrap=True)
        kept = [np.fromiter(times, float) for times in self._stages.values()]
        for percent in (50, 99):
            values = [f"{np.percentile(times, percent):.2f}" if times.size else "-" for times in kept]
            grid.add_row(f"p{percent}", *values)
        return grid


def _cells(name: str, row: _Row, now: float, wide: bool) -> list[RenderableType]:
    from rich.text import Text

    state = Text(row.state, STYLES.get(row.state, "none"))
    if row.seen is None:
        return [Text(printable(name)), state, Text("-")]
    answer, lasts = row.seen.decision, row.seen.decision.stable or row.seen.decision.label
    counts = [f"{row.frames}"] * wide + [f"{row.missing}"]
    numbers = [
        f"{answer.score:.1%}",
        _lasting(now - row.since_s),
        f"{row.fps(now):.1f}",
        f"{row.seen.stages.age_ms:.1f}",
        *counts,
    ]
    return [Text(printable(name)), state, Text(printable(lasts), "bold"), *numbers]


def _lasting(seconds: float) -> str:
    """A duration in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _device(health: Health) -> RenderableType:
    from rich.text import Text

    said = [
        "" if health.cpu_share is None else f"CPU {health.cpu_share:.0%} of a core",
        "" if health.memory_bytes is None else f"{health.memory_bytes / 1e6:.0f} MB",
        "" if health.temperature_c is None else f"{health.temperature_c:.1f} °C",
        "" if health.clock_mhz is None else f"{health.clock_mhz:.0f} MHz",
        *health.throttled,
        *(f"{name} lost {count}" for name, count in health.lost_messages.items()),
    ]
    style = "red" if health.throttled else "none"
    return Text(printable("   ".join(filter(None, said))), style, no_wrap=True, overflow="ellipsis")
