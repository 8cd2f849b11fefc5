"""The live table: what it shows of each source, at any width, and that it costs the loop nothing."""

from __future__ import annotations

import io
import threading
import time

import pytest

from edgeclf.runtime.decision import Decision
from edgeclf.runtime.events import Health, Seen, Skipped, SourceChanged, Stages
from edgeclf.runtime.sinks.table import Table


def seen(source: str = "door", label: str = "cat", changed: bool = False, frame: int = 0, invoke_ms: float = 4.5) -> Seen:
    decision = Decision(label, 0.98, label, changed, ((label, 0.98),))
    return Seen(1_700_000_000.25, source, frame, decision, Stages(1.5, 0.25, invoke_ms, 0.01, 12.3456), 29.97)


def drawn(table: Table, now: float | None = None) -> list[str]:
    """The lines that the table draws at a moment."""
    with table._console.capture() as capture:
        table._console.print(table.render(time.monotonic() if now is None else now))
    return [line.strip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_each_source_has_its_row_within_the_width(width: int) -> None:
    """State, answer, score and what was not classified; the narrow table leaves the count of frames out."""
    table = Table(io.StringIO(), ["door", "rtsp://***@10.1.2.3:554/a/very/long/address/of/a/stream"], width)
    table.emit(SourceChanged(0, "door", "live", ""))
    table.emit(seen(changed=True, frame=0))
    table.emit(seen(frame=9))
    lines = drawn(table)
    assert all(len(line) <= width for line in lines)
    if width > 40:
        (row,) = [line for line in lines if line.startswith("door")]
        assert row.split()[:5] == ["door", "live", "cat", "98.0%", "0"]
        assert row.split()[-1] == "8"
        assert ("frames" in lines[1]) == (width == 120)


def test_the_answer_that_lasts_is_shown_with_its_time() -> None:
    """Since it was announced, in the largest unit."""
    table = Table(io.StringIO(), ["door"], 120)
    table.emit(seen(changed=True))
    now = time.monotonic()
    for later, shown in ((5, "5 s"), (65, "1 min"), (3 * 3600, "3 h"), (5 * 86400, "5 d")):
        assert shown in drawn(table, now + later + 0.5)[3]


def test_the_rate_is_each_sources_own_and_ends_with_its_pictures() -> None:
    """A source that gives nothing more has none."""
    table = Table(io.StringIO(), ["door"], 120)
    row = table._rows["door"]
    row.times_s.extend(100 + i / 25 for i in range(50))
    assert row.fps(102) == pytest.approx(25)
    assert row.fps(110) == 0


def test_costs_are_medians_and_tails_of_the_last_frames() -> None:
    """One column a stage."""
    table = Table(io.StringIO(), ["door"], 120)
    assert "-" in next(line for line in drawn(table) if line.startswith("p50"))
    for i in range(1, 102):
        table.emit(seen(invoke_ms=float(i)))
    lines = drawn(table)
    column = next(line for line in lines if line.startswith("ms")).split().index("invoke")
    assert next(line for line in lines if line.startswith("p50")).split()[column] == "51.00"
    assert next(line for line in lines if line.startswith("p99")).split()[column] == "100.00"


def test_the_device_and_the_latest_notes_stand_below() -> None:
    """A health warning once and not every few seconds; what the system does not say is left out."""
    table = Table(io.StringIO(), ["door"], 120)
    for _ in range(3):
        table.emit(
            Health(0, {"door": "live"}, 5, 80_000_000, 0.25, 61.2, None, ("under-voltage",), "the supply is weak", {"csv": 3})
        )
    table.emit(Skipped(0, "door", "frame 3: is broken"))
    table.note("csv: cannot write")
    text = "\n".join(drawn(table))
    assert "CPU 25% of a core   80 MB   61.2 °C   under-voltage   csv lost 3" in text
    assert text.count("the supply is weak") == 1
    assert "door: skipped: frame 3: is broken" in text
    assert "csv: cannot write" in text


def test_labels_cannot_steer_the_terminal_or_style_the_table() -> None:
    """A label comes from a file that somebody else may have made."""
    table = Table(io.StringIO(), ["[red]x"], 120)
    table.emit(seen("[red]x", "[bold]\x1b[2Jcat\n", True))
    text = "\n".join(drawn(table))
    assert "[red]x" in text
    assert "[bold]?[2Jcat?" in text


class Terminal(io.StringIO):
    """A terminal that may be stopped, as by Ctrl-S, or gone."""

    def __init__(self, stopped: bool = False, error: OSError | None = None) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self._error = error
        if not stopped:
            self.go_on.set()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.go_on.wait(30)
        if self._error:
            raise self._error
        return super().write(text)


def test_the_newest_is_on_the_screen_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor is left visible the whole time, because a second Ctrl-C ends the process at once."""
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    table = Table(terminal, ["door"], 120).start()
    table.emit(seen(label="squirrel", changed=True))
    assert table.close()
    text = terminal.getvalue()
    assert "squirrel" in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_a_terminal_that_is_stopped_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of events go in, and closing gives up in time."""
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal(stopped=True)
    table = Table(terminal, ["door"], 120).start()
    began = time.monotonic()
    for i in range(5000):
        table.emit(seen(frame=i))
    assert time.monotonic() - began < 3
    assert not table.close()
    assert time.monotonic() - began < 5
    terminal.go_on.set()


def test_a_terminal_that_is_gone_ends_the_drawing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the window is closed or the connection lost."""
    monkeypatch.setenv("TERM", "xterm-256color")
    table = Table(Terminal(error=OSError(5, "Input/output error")), ["door"], 120).start()
    table.emit(seen())
    assert table.close()
