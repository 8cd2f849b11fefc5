"""Files of rows: JSON lines, CSV and SQLite over months, kills, full disks and log rotation."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edgeclf.core.errors import ConfigError, StorageError
from edgeclf.runtime.decision import Decision
from edgeclf.runtime.events import Event, Health, Other, Seen, Skipped, SourceChanged, Stages
from edgeclf.runtime.sinks.csv_sink import CsvLines
from edgeclf.runtime.sinks.files import Changes
from edgeclf.runtime.sinks.jsonl import JsonLines
from edgeclf.runtime.sinks.rows import COLUMNS, row
from edgeclf.runtime.sinks.sqlite_sink import Database


def seen(label: str = "cat", changed: bool = False, frame: int = 0, other: Other | None = None) -> Seen:
    decision = Decision(label, 0.98, "cat", changed, (("cat", 0.98), ("dog", 0.02)))
    return Seen(1_700_000_000.25, "cam", frame, decision, Stages(1.5, 0.25, 4.5, 0.01, 12.3456), 29.97, "", other)


EVENTS: list[Event] = [
    SourceChanged(1_700_000_000, "cam", "stalled", "no new picture for 2 s"),
    seen(changed=True, frame=7, other=Other("dog", 0.5, False, 3.0)),
    Skipped(1_700_000_001, "cam", "b.jpg: is empty"),
    Health(1_700_000_002, {"cam": "live"}, 5, 80_000_000, 0.25, 61.2, 1500.0, ("under-voltage", "throttled"), "too hot"),
]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def stored(path: Path, what: str = "*") -> list[sqlite3.Row]:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(f"SELECT {what} FROM events ORDER BY id").fetchall()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses longer files, as a full disk would: short writes first, then an error."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_every_kind_of_event_is_a_row_of_the_same_columns() -> None:
    """What a kind of event does not have is left empty."""
    table = [dict(zip(COLUMNS, row(event), strict=True)) for event in EVENTS]
    assert [values["event"] for values in table] == ["source", "label", "skipped", "health"]
    assert [values["detail"] for values in table] == ["no new picture for 2 s", None, "b.jpg: is empty", "too hot"]
    assert table[1]["other_label"] == "dog"
    assert table[1]["other_agrees"] == 0
    assert table[1]["changed"] == 1
    assert json.loads(table[1]["top"]) == {"cat": 0.98, "dog": 0.02}
    assert table[3]["throttled"] == "under-voltage throttled"
    assert table[3]["temperature_c"] == 61.2


def test_a_csv_file_gets_its_header_once(tmp_path: Path) -> None:
    """Also when it is appended to by a later run; labels keep their letters."""
    path = tmp_path / "seen.csv"
    for label in ("Käfer", 'say "猫", please'):
        CsvLines(path).write([seen(label), *EVENTS])
    table = rows(path)
    assert len(table) == 10
    assert [table[0]["label"], table[5]["label"]] == ["Käfer", 'say "猫", please']
    assert table[0]["time"] == "2023-11-14T22:13:20.250Z"
    assert path.read_text().count("time,event") == 1


@pytest.mark.parametrize("text", ["a,b,c\n1,2,3\n", "time,event,source\n", "\x00\xff binary", "one line without an end"])
def test_a_csv_file_of_other_columns_is_refused_and_left_alone(tmp_path: Path, text: str) -> None:
    """It is somebody else's; the message is one line and names it."""
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.csv: is not a CSV file with edgeclf's columns") as caught:
        CsvLines(path)
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


@pytest.mark.parametrize("cut", [1, 40, 90, 10_000])
def test_what_a_kill_left_of_a_csv_row_is_removed_at_the_next_start(tmp_path: Path, cut: int) -> None:
    """Also half a header, half a letter and an open quote, which would swallow the rows that follow."""
    path = tmp_path / "seen.csv"
    CsvLines(path).write([seen(), seen('Käfer, "ä')])
    whole = path.read_bytes()
    path.write_bytes(whole[: max(3, len(whole) - cut)])
    CsvLines(path).write([seen("dog")])
    table = rows(path)
    assert table[-1]["label"] == "dog"
    assert all(values["age_ms"] == "12.346" for values in table)


def test_text_in_a_csv_file_cannot_be_a_formula_or_more_than_a_line(tmp_path: Path) -> None:
    """A label comes from a file that somebody else may have made; numbers stay numbers."""
    path = tmp_path / "seen.csv"
    CsvLines(path).write([seen("=HYPERLINK(1)"), Skipped(0, "-1", "a\nb\r\nc")])
    first, second = rows(path)
    assert (first["label"], first["score"]) == ("'=HYPERLINK(1)", "0.98")
    assert (second["source"], second["detail"]) == ("'-1", "a b c")
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("kind", [JsonLines, CsvLines])
def test_a_full_disk_leaves_whole_lines_only_and_writing_goes_on_when_there_is_room(tmp_path: Path, kind: type) -> None:
    """A real refusal by the system in the middle of a line."""
    path = tmp_path / "seen.txt"
    sink = kind(path)
    sink.write([seen()])
    size = path.stat().st_size
    with files_of_at_most(size + 50), pytest.raises(OSError, match="too large"):
        sink.write([seen("dog")])
    assert path.stat().st_size == size
    sink.write([seen("cow")])
    text = path.read_text()
    assert "cow" in text
    assert text.count("2023-11-14") == 2


@pytest.mark.parametrize("kind", [JsonLines, CsvLines, Database])
def test_a_file_that_is_moved_away_is_begun_anew(tmp_path: Path, kind: type) -> None:
    """As log rotation does; what was written before stays in the old one."""
    path, old = tmp_path / "seen", tmp_path / "seen.1"
    sink = kind(path)
    sink.write([seen("cat")])
    path.rename(old)
    sink.write([seen("dog")])
    assert path.exists()
    sink.close()
    read = {JsonLines: _labels_of_lines, CsvLines: lambda p: [r["label"] for r in rows(p)], Database: _labels_of_database}[kind]
    assert read(path)[-1] == "dog"
    assert "cat" not in read(path)


def _labels_of_lines(path: Path) -> list[str]:
    return [json.loads(line)["label"] for line in path.read_text().splitlines()]


def _labels_of_database(path: Path) -> list[str]:
    return [values["label"] for values in stored(path)]


@pytest.mark.parametrize("kind", [JsonLines, CsvLines, Database])
def test_a_file_whose_disk_is_gone_is_not_begun_on_another(tmp_path: Path, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unplugged disk leaves its mount point behind, on the system's own disk; when it comes back, writing goes on."""
    path = tmp_path / "disk" / "seen"
    path.parent.mkdir()
    sink = kind(path)
    path.unlink()
    monkeypatch.setattr(sink._file if hasattr(sink, "_file") else sink, "_disk", -1)
    with pytest.raises(OSError, match="not on the same disk"):
        sink.write([seen()])
    assert not path.exists()
    monkeypatch.undo()
    sink.write([seen()])
    assert path.exists()


def test_a_named_pipe_can_take_the_lines(tmp_path: Path) -> None:
    """Nothing is read back from it, and its reader gets every line."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    JsonLines(path).write([seen("cat"), seen("dog")])
    assert [json.loads(line)["label"] for line in os.read(reader, 1 << 16).splitlines()] == ["cat", "dog"]
    os.close(reader)


def test_a_database_has_a_row_for_each_event_and_finds_times_by_an_index(tmp_path: Path) -> None:
    """Typed columns, a write-ahead log, a version."""
    path = tmp_path / "seen.db"
    sink = Database(path)
    sink.write(EVENTS)
    assert [tuple(values)[1:] for values in stored(path)] == [row(event) for event in EVENTS]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        plan = connection.execute("EXPLAIN QUERY PLAN SELECT * FROM events WHERE time > '2023'").fetchone()[3]
        assert "events_by_time" in plan
    sink.close()
    assert not path.with_name("seen.db-wal").exists()


def test_a_database_is_opened_again_by_the_next_run(tmp_path: Path) -> None:
    """Rows are added to those that are there."""
    path = tmp_path / "seen.db"
    for _ in range(3):
        sink = Database(path)
        sink.write(EVENTS)
        sink.close()
    assert len(stored(path)) == 12


def test_readers_can_read_while_rows_are_being_added(tmp_path: Path) -> None:
    """A reader in the middle of a transaction holds nothing up, and sees what was there when it began."""
    path = tmp_path / "seen.db"
    sink = Database(path)
    sink.write([seen()])
    with closing(sqlite3.connect(path, timeout=0)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM events").fetchone() == (1,)
        sink.write([seen(), seen()])
        assert reader.execute("SELECT count(*) FROM events").fetchone() == (1,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM events").fetchone() == (3,)


def test_a_batch_that_fails_is_not_half_in_the_database(tmp_path: Path) -> None:
    """While another program holds it locked; afterwards writing goes on."""
    path = tmp_path / "seen.db"
    sink = Database(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            sink.write([seen(), seen()])
        other.rollback()
    sink.write([seen("dog")])
    assert _labels_of_database(path) == ["dog"]


def _other_table(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE things (a)")


def _newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 9")


def _fewer_columns(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, time TEXT)")
        connection.execute("PRAGMA user_version = 1")


def _text(path: Path) -> None:
    path.write_text("not a database at all, but long enough to be looked at" * 10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_other_table, "belongs to another program"),
        (_newer, "made by a newer edgeclf"),
        (_fewer_columns, "has no column 'event'"),
        (_text, "not a database"),
    ],
)
def test_a_database_that_is_not_ours_is_refused_with_one_line(tmp_path: Path, make: object, message: str) -> None:
    """And left as it is."""
    path = tmp_path / "x.db"
    make(path)  # type: ignore[operator]
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=message) as caught:
        Database(path)
    assert "\n" not in str(caught.value)
    assert "x.db" in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", [JsonLines, CsvLines, Database])
def test_a_file_that_cannot_be_made_is_an_error_before_the_run(tmp_path: Path, kind: type) -> None:
    """The missing folder is named, and a folder in its place."""
    with pytest.raises(StorageError, match="nowhere"):
        kind(tmp_path / "nowhere" / "x")
    with pytest.raises(StorageError, match="cannot write"):
        kind(tmp_path)


def test_frames_that_change_nothing_can_be_left_out() -> None:
    """Changes, states and skipped frames stay; a batch of nothing is not even written."""

    class Recorder:
        def __init__(self) -> None:
            self.calls: list[list[Event]] = []
            self.closed = False

        def write(self, events: list[Event]) -> None:
            self.calls.append(events)

        def close(self) -> None:
            self.closed = True

    recorder = Recorder()
    writer = Changes(recorder)  # type: ignore[arg-type]
    writer.write([seen(), *EVENTS, seen()])
    writer.write([seen()])
    writer.close()
    assert recorder.calls == [EVENTS]
    assert recorder.closed
