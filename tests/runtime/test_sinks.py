"""Sinks: what is written, and that a slow, broken or vanished one costs the loop nothing."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeclf.core.errors import ConfigError, StorageError
from edgeclf.runtime.decision import INVALID, Decision
from edgeclf.runtime.events import Event, Seen, Skipped, SourceChanged, Stages, record
from edgeclf.runtime.sinks.jsonl import JsonLines
from edgeclf.runtime.sinks.sink import PICTURES, Background, Paused, end_all
from edgeclf.runtime.sinks.terminal import Lines
from edgeclf.runtime.sinks.window import ESCAPE, Window, labelled, need_display


def seen(label: str = "cat", changed: bool = False, frame: int = 0, name: str = "") -> Seen:
    decision = Decision(label, 0.98, "cat", changed, (("cat", 0.98), ("dog", 0.02)))
    return Seen(1_700_000_000.25, "cam", frame, decision, Stages(1.5, 0.25, 4.5, 0.01, 12.3456), 29.97, name)


class Recorder:
    """A writer that keeps what it got, after an optional pause."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.events: list[Event] = []
        self._pause_s = pause_s

    def write(self, events: Sequence[Event]) -> None:
        time.sleep(self._pause_s)
        self.events += events


def _wait_for(there: Callable[[], bool], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.005)


class Failing:
    """A writer that raises these, one a call; None is a success."""

    def __init__(self, *errors: Exception | None) -> None:
        self._errors = iter(errors)
        self.calls = 0

    def write(self, events: Sequence[Event]) -> None:
        self.calls += 1
        error = next(self._errors, None)
        if error:
            raise error


def test_events_reach_the_writer_in_order_and_closing_waits_for_them() -> None:
    """Nothing is lost by a writer that keeps up."""
    recorder = Recorder()
    sink = Background(recorder, "fake")
    for i in range(100):
        sink.emit(seen(frame=i))
    assert sink.close()
    assert [event.frame for event in recorder.events if isinstance(event, Seen)] == list(range(100))
    assert sink.lost == 0


def test_a_slow_writer_loses_its_oldest_messages_and_costs_the_loop_nothing() -> None:
    """A thousand events go in at once; what is written and what is lost make a thousand, and the newest are kept."""
    recorder = Recorder(0.1)
    sink = Background(recorder, "fake", queue=16)
    began = time.monotonic()
    for i in range(1000):
        sink.emit(seen(frame=i))
    assert time.monotonic() - began < 1
    sink.close()
    frames = [event.frame for event in recorder.events if isinstance(event, Seen)]
    assert frames[-1] == 999
    assert len(frames) + sink.lost == 1000
    assert sink.lost > 900


def test_a_lossless_sink_waits_for_its_writer_until_the_run_is_to_end() -> None:
    """For files that are read completely; a stop lets the waiting loop go on."""
    recorder, stop = Recorder(0.02), threading.Event()
    sink = Background(recorder, "fake", lossless=True, queue=4, stop=stop)
    for i in range(40):
        sink.emit(seen(frame=i))
    sink.close()
    assert len(recorder.events) == 40
    stuck = Background(Recorder(20), "fake", lossless=True, queue=1, stop=stop)
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    for i in range(5):
        stuck.emit(seen(frame=i))
    assert time.monotonic() - began < 1


def test_a_writer_that_blocks_for_ever_does_not_hold_up_closing() -> None:
    """Closing gives up after its limit, says so, and counts what was waiting as lost."""
    release = threading.Event()

    class Blocked:
        def write(self, events: Sequence[Event]) -> None:
            release.wait(30)

    sink = Background(Blocked(), "fake")
    sink.emit(seen())
    time.sleep(0.1)
    sink.emit(seen())
    began = time.monotonic()
    assert not sink.close()
    assert time.monotonic() - began < 2
    assert sink.lost == 1
    release.set()


def test_a_reader_that_went_away_is_told_once_and_writing_ends() -> None:
    """As with `| head`: the loop learns of it, and later events are not even queued."""
    gone: list[int] = []
    writer = Failing(BrokenPipeError())
    sink = Background(writer, "fake", on_gone=lambda: gone.append(1))
    sink.emit(seen())
    sink._thread.join(2)
    sink.emit(seen())
    assert sink.close()
    assert gone == [1]
    assert writer.calls == 1


def test_a_full_disk_is_told_once_and_writing_goes_on_when_there_is_room_again() -> None:
    """Losses are counted, a second failure says nothing, a success makes the next failure worth telling."""
    troubles: list[str] = []
    full = OSError(28, "No space left on device")
    writer = Failing(full, full, None, full)
    sink = Background(writer, "jsonl", on_trouble=troubles.append)
    for calls in range(1, 5):
        sink.emit(seen())
        while writer.calls < calls:
            time.sleep(0.005)
    sink.close()
    assert sink.lost == 3
    told = "jsonl: cannot write: No space left on device; results are being lost"
    assert troubles == [told, "jsonl: writing works again; 2 results were lost", told]


def test_a_bug_in_a_writer_does_not_end_the_classifying() -> None:
    """Whatever it raises, the sink lives on."""
    troubles: list[str] = []
    writer = Failing(KeyError("oops"), None)
    sink = Background(writer, "fake", on_trouble=troubles.append)
    sink.emit(seen())
    while writer.calls < 1:
        time.sleep(0.005)
    sink.emit(seen())
    assert sink.close()
    assert writer.calls == 2
    assert ["works again" in trouble for trouble in troubles] == [False, True]


class Photographer:
    """A writer that wants the pictures of changes, and takes its time."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.got: list[tuple[Event, object]] = []
        self._pause_s = pause_s

    def wants(self, event: Event) -> bool:
        return isinstance(event, Seen) and event.decision.changed

    def write_picture(self, event: Event, image: object) -> None:
        time.sleep(self._pause_s)
        self.got.append((event, image))


def test_a_writer_that_wants_pictures_gets_those_it_asked_for() -> None:
    """One by one with their events; others hold no picture at all."""
    photographer, recorder = Photographer(), Recorder()
    image = np.zeros((4, 4, 3), np.uint8)
    for writer in (photographer, recorder):
        sink = Background(writer, "fake")
        for i in range(3):
            sink.emit(seen(changed=i == 1, frame=i), image)
        assert sink.close()
    assert [(event.frame, got is image) for event, got in photographer.got if isinstance(event, Seen)] == [(1, True)]
    assert len(recorder.events) == 3


def test_few_pictures_wait_for_a_slow_writer() -> None:
    """A frame is a megabyte: the oldest that wait are lost, and the loop is not held up."""
    photographer = Photographer(0.1)
    sink = Background(photographer, "fake")
    image = np.zeros((4, 4, 3), np.uint8)
    references = sys.getrefcount(image)
    for i in range(100):
        sink.emit(seen(changed=True, frame=i), image)
    assert sys.getrefcount(image) - references <= PICTURES + 3
    sink.close()
    assert len(photographer.got) + sink.lost == 100
    assert sink.lost > 80


def test_events_can_be_collected_between_writes() -> None:
    """So that each is not a transaction of its own; closing waits for no collecting, and a filling queue neither."""

    class Calls(Recorder):
        calls = 0

        def write(self, events: Sequence[Event]) -> None:
            self.calls += 1
            super().write(events)

    recorder = Calls()
    sink = Background(recorder, "fake", queue=64, apart_s=30)
    for i in range(20):
        sink.emit(seen(frame=i))
    _wait_for(lambda: recorder.calls == 1)
    for i in range(20, 60):
        sink.emit(seen(frame=i))
    _wait_for(lambda: recorder.calls == 2)
    sink.emit(seen(frame=60))
    assert sink.close()
    assert [event.frame for event in recorder.events if isinstance(event, Seen)] == list(range(61))
    assert recorder.calls <= 4


def test_a_writer_is_closed_by_the_thread_that_wrote() -> None:
    """After the last event, and also when closing fails."""

    class Closable(Recorder):
        closed_by = ""

        def close(self) -> None:
            self.closed_by += threading.current_thread().name
            raise OSError("too late")

    writer = Closable()
    sink = Background(writer, "fake")
    sink.emit(seen())
    assert sink.close()
    assert writer.closed_by == "edgeclf-sink-fake"
    assert len(writer.events) == 1


def test_blocked_sinks_are_given_up_together() -> None:
    """Several that block cost the end of a run no more than one, and closing again costs nothing."""
    release = threading.Event()

    class Blocked:
        def write(self, events: Sequence[Event]) -> None:
            release.wait(30)

    sinks = [Background(Blocked(), "fake") for _ in range(5)]
    for sink in sinks:
        sink.emit(seen())
    began = time.monotonic()
    end_all(sinks)
    assert not any([sink.close() for sink in sinks] + [sink.close() for sink in sinks])
    assert time.monotonic() - began < 2
    release.set()


def test_a_broken_pipe_that_is_not_standard_output_is_a_trouble_like_others() -> None:
    """The reader of a named pipe, or the other end of a socket, may come back."""
    troubles: list[str] = []
    writer = Failing(BrokenPipeError(32, "Broken pipe"), None)
    sink = Background(writer, "fake", on_trouble=troubles.append)
    for calls in (1, 2):
        sink.emit(seen())
        _wait_for(lambda calls=calls: writer.calls == calls)
    assert sink.close()
    assert troubles == [
        "fake: cannot write: Broken pipe; results are being lost",
        "fake: writing works again; 1 results were lost",
    ]


def test_a_writer_that_pauses_is_told_of_once_and_counts_only_what_it_loses() -> None:
    """Frames that it would not have written anyway are no loss."""
    troubles: list[str] = []
    writer = Failing(OSError(28, "full"), Paused("full"), Paused("full"), None)
    sink = Background(writer, "clips", on_trouble=troubles.append)
    for calls in range(1, 5):
        sink.emit(seen())
        _wait_for(lambda calls=calls: writer.calls == calls)
    assert sink.close()
    assert sink.lost == 1
    assert [trouble.split(": ")[-1] for trouble in troubles] == [
        "full; results are being lost",
        "writing works again; 1 results were lost",
    ]


def test_a_label_record_has_all_that_a_program_needs() -> None:
    """Time in UTC, finite rounded numbers, the name only where there is one."""
    assert record(seen(frame=7, changed=True, name="a.jpg")) == {
        "time": "2023-11-14T22:13:20.250Z",
        "event": "label",
        "source": "cam",
        "frame": 7,
        "name": "a.jpg",
        "label": "cat",
        "score": 0.98,
        "stable": "cat",
        "changed": True,
        "top": [{"label": "cat", "score": 0.98}, {"label": "dog", "score": 0.02}],
        "decode_ms": 1.5,
        "resize_ms": 0.25,
        "invoke_ms": 4.5,
        "decide_ms": 0.01,
        "age_ms": 12.346,
    }
    assert "name" not in record(seen())


def test_other_events_have_records_of_their_own() -> None:
    """States of the source, skipped frames and invalid scores can be told apart by `event`."""
    changed = record(SourceChanged(0, "cam", "stalled", "why"))
    assert (changed["event"], changed["source"], changed["state"], changed["detail"]) == ("source", "cam", "stalled", "why")
    assert record(Skipped(0, "cam", "b.jpg: is empty"))["reason"] == "b.jpg: is empty"
    assert record(seen(INVALID))["event"] == "invalid"


def test_json_lines_are_appended_to_what_the_file_holds(tmp_path: Path) -> None:
    """Each line parses by itself; labels keep their letters."""
    path = tmp_path / "seen.jsonl"
    for label in ("Käfer", "猫"):
        JsonLines(path).write([seen(label), seen(label)])
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [line["label"] for line in lines] == ["Käfer", "Käfer", "猫", "猫"]


def test_a_line_cut_short_by_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What of it was written is removed again, so that every line can be read."""
    sink = JsonLines(tmp_path / "seen.jsonl")
    write, full = os.write, [False]

    def scarce(file: int, data: bytes) -> int:
        if full[0]:
            raise OSError(28, "No space left on device")
        full[0] = True
        return write(file, data[:10])

    monkeypatch.setattr(os, "write", scarce)
    with pytest.raises(OSError, match="No space"):
        sink.write([seen()])
    monkeypatch.undo()
    sink.write([seen("dog")])
    assert [json.loads(line)["label"] for line in (tmp_path / "seen.jsonl").read_text().splitlines()] == ["dog"]


def test_a_line_cut_short_by_a_kill_stays_alone(tmp_path: Path) -> None:
    """The next run begins on a line of its own."""
    path = tmp_path / "seen.jsonl"
    path.write_text('{"event": "lab')
    JsonLines(path).write([seen("dog")])
    torn, whole = path.read_text().splitlines()
    assert torn == '{"event": "lab'
    assert json.loads(whole)["label"] == "dog"


def test_a_json_lines_file_that_cannot_be_made_is_an_error_before_the_run(tmp_path: Path) -> None:
    """A missing folder is named."""
    with pytest.raises(StorageError, match="nowhere"):
        JsonLines(tmp_path / "nowhere" / "seen.jsonl")


def test_without_a_terminal_there_is_a_line_for_a_change_and_not_for_every_frame() -> None:
    """Frames with the same answer within a second are silent; states and skipped frames are not."""
    out = io.StringIO()
    lines = Lines(out)
    lines.write([SourceChanged(0, "cam", "live", ""), seen("cat", True), seen("cat"), seen("cat"), seen("dog", True)])
    lines.write([Skipped(0, "cam", "b.jpg: is empty"), seen("dog")])
    text = out.getvalue().splitlines()
    assert [line.split()[1] for line in text] == ["cam:", "cat", "dog", "skipped:"]
    assert "98.0%" in text[1]


def test_without_a_terminal_a_steady_answer_is_repeated_each_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a log shows that the program lives."""
    now = [100.0]
    monkeypatch.setattr("edgeclf.runtime.sinks.terminal.time.monotonic", lambda: now[0])
    out = io.StringIO()
    lines = Lines(out)
    for _ in range(35):
        lines.write([seen("cat")])
        now[0] += 0.1
    assert len(out.getvalue().splitlines()) == 4


def test_on_a_terminal_one_line_is_kept_up_to_date() -> None:
    """Written over itself, at most ten times a second, and left at the end."""
    out = io.StringIO()
    lines = Lines(out, terminal=True)
    for _ in range(50):
        lines.write([seen("cat")])
    lines.end()
    assert out.getvalue().count("\r") == 1
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().endswith("\n")


def test_labels_cannot_write_control_characters_to_a_terminal() -> None:
    """A label comes from a file that somebody else may have made."""
    out = io.StringIO()
    Lines(out).write([seen("\x1b[2Jcat\r\n", True)])
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().count("\n") == 1


def named(source: str, label: str, changed: bool = False) -> Seen:
    return replace(seen(label, changed), source=source)


def test_with_several_sources_each_line_names_its_own() -> None:
    """And each is repeated each second for itself; one source alone needs no name."""
    out = io.StringIO()
    lines = Lines(out, several=True)
    lines.write([named("door", "cat", True), named("gate", "dog", True), named("door", "cat"), named("gate", "dog")])
    lines.write([Skipped(0, "gate", "frame 3: is broken")])
    first, second, third = out.getvalue().splitlines()
    assert ("door: cat" in first, "gate: dog" in second, "gate: skipped: frame 3" in third) == (True, True, True)
    alone = io.StringIO()
    Lines(alone).write([named("door", "cat", True)])
    assert "door" not in alone.getvalue()


def test_on_a_terminal_one_line_tells_of_all_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its share of the width."""
    monkeypatch.setenv("COLUMNS", "80")
    out = io.StringIO()
    lines = Lines(out, terminal=True, several=True)
    lines.write([SourceChanged(0, "door", "live", ""), SourceChanged(0, "gate", "stalled", "no new picture for 2 s")])
    lines.end()
    last = out.getvalue().split("\x1b[K")[-1].rstrip("\n")
    assert last.startswith("door: live | gate: stalled: no new picture")
    assert len(last) < 80


class FakeGui:
    """OpenCV's window functions: shows, and presses a key after some pictures."""

    def __init__(self, key: int = -1, after: int = 1, visible: float = 1.0) -> None:
        self.shown: list[object] = []
        self.destroyed = 0
        self._key, self._after, self._visible = key, after, visible

    def imshow(self, title: str, image: object) -> None:
        self.shown.append(threading.current_thread())

    def waitKey(self, wait_ms: int) -> int:
        time.sleep(wait_ms / 1000)
        return self._key if len(self.shown) >= self._after else -1

    def getWindowProperty(self, title: str, prop: int) -> float:
        return self._visible

    def destroyAllWindows(self) -> None:
        self.destroyed += 1


def play_in_window(gui: FakeGui, seconds: float = 5.0) -> tuple[bool, list[int]]:
    """Run a loop that emits until the window asks it to end; whether it was asked, and how often."""
    stop, asked = threading.Event(), [0]

    def on_close() -> None:
        asked[0] += 1
        stop.set()

    window = Window(on_close, gui)

    def loop() -> bool:
        limit = time.monotonic() + seconds
        while not stop.wait(0.005) and time.monotonic() < limit:
            window.emit(seen(), np.zeros((48, 64, 3), np.uint8))
        return stop.is_set()

    return window.host(loop), asked


@pytest.mark.parametrize("gui", [FakeGui(ord("q"), 3), FakeGui(ESCAPE, 3), FakeGui(visible=0.0)])
def test_q_escape_or_closing_the_window_ends_the_run(gui: FakeGui) -> None:
    """Asked once; pictures are shown in the main thread, where OpenCV wants them, and the window goes."""
    assert play_in_window(gui) == (True, [1])
    assert set(gui.shown) == {threading.main_thread()}
    assert gui.destroyed == 1


def test_an_error_in_the_loop_closes_the_window_and_is_raised() -> None:
    """The window does not hide what went wrong."""
    gui = FakeGui()
    window = Window(lambda: None, gui)

    def fail() -> None:
        window.emit(seen(), np.zeros((48, 64, 3), np.uint8))
        time.sleep(0.2)
        raise ConfigError("wrong")

    with pytest.raises(ConfigError, match="wrong"):
        window.host(fail)
    assert gui.destroyed == 1


def test_the_label_is_drawn_on_a_copy() -> None:
    """Other sinks see the picture as it came; grey pictures and tiny ones can be drawn on too."""
    for shape in ((480, 640, 3), (48, 64), (8, 8, 3)):
        image = np.full(shape, 200, np.uint8)
        drawn = labelled(seen("ünknöwn"), image)
        assert (image == 200).all()
        assert (drawn != 200).any()


def test_a_window_without_a_display_is_refused_before_opencv_can_abort() -> None:
    """With no display named, and with one named that does not answer (tried in a child process)."""
    with pytest.raises(ConfigError, match="neither DISPLAY nor WAYLAND_DISPLAY"):
        need_display({})
    environment = {k: v for k, v in os.environ.items() if k != "WAYLAND_DISPLAY"}
    with pytest.raises(ConfigError, match=r"cannot be opened|cannot open windows"):
        need_display({**environment, "DISPLAY": ":987"})
