"""`edgeclf run` and what it writes: files, pictures and the live table, through signals, kills, full disks and full pipes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import pytest

USUAL_START_S = 2.0
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def model(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


@pytest.fixture(scope="module")
def folder(fixtures_folder: Path) -> Path:
    return fixtures_folder / "pictures"


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The program as a child process, not waited for."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-m", "edgeclf", "run", *map(str, arguments)], text=True, **pipes)


def everything(place: Path) -> list[object]:
    """Options that turn every sink that writes files on."""
    files = ["--jsonl", place / "seen.jsonl", "--csv", place / "seen.csv", "--sqlite", place / "seen.db"]
    return [*files, "--snapshots", place / "kept", "--clips", 4, "--set", "snapshots.min_free_mb=0"]


def wait_for(there: Callable[[], object], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))


def counts(place: Path) -> tuple[int, int, int]:
    """Label events in the JSON lines, the CSV file and the database."""
    lines = [json.loads(line) for line in (place / "seen.jsonl").read_text().splitlines()]
    with (place / "seen.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    with closing(sqlite3.connect(place / "seen.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (stored,) = connection.execute("SELECT count(*) FROM events WHERE event = 'label'").fetchone()
    return sum(line["event"] == "label" for line in lines), sum(row["event"] == "label" for row in rows), stored


def test_each_file_holds_each_frame_and_each_change_has_its_picture(
    cli_here: Any, model: Path, folder: Path, tmp_path: Path
) -> None:
    """A folder that is read completely: nothing is lost, and a second run adds to what is there."""
    for times in (1, 2):
        answer = cli_here("run", model, "-s", folder, "--json", *everything(tmp_path))
        assert answer.code == 0
        summary = json.loads(answer.stdout)
        assert summary["lost_messages"] == {}
        assert counts(tmp_path) == (times * summary["frames"],) * 3
        pictures = list((tmp_path / "kept").glob("*.jpg"))
        assert len(pictures) == times * summary["changes"] > 0
    for path in pictures:
        told = json.loads(path.with_suffix(".json").read_text())
        assert path.stem.endswith(told["stable"].replace(" ", "-"))
        assert cv2.imread(str(path)) is not None


def test_only_changes_to_the_labels_asked_for_are_kept(cli_here: Any, model: Path, folder: Path, tmp_path: Path) -> None:
    """And only changes in the files, when those are asked for."""
    answer = cli_here(
        "run", model, "-s", folder, "--json", *everything(tmp_path),
        "--set", "snapshots.labels=['red square']", "--set", "files.changes_only=true",
    )  # fmt: skip
    assert answer.code == 0
    assert counts(tmp_path) == (json.loads(answer.stdout)["changes"],) * 3
    names = [path.name for path in (tmp_path / "kept").glob("*.jpg")]
    assert names
    assert all("_red-square" in name for name in names)
    answer = cli_here("run", model, "-s", folder, "--jsonl", "-", "--set", "files.changes_only=true")
    told = [json.loads(line) for line in answer.stdout.splitlines()]
    assert all(event.get("changed", True) for event in told)
    assert {"label", "source", "skipped"} <= {event["event"] for event in told}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--csv", "{folder}/other.csv"], 2, "other.csv: is not a CSV file with edgeclf's columns"),
        (["--sqlite", "{folder}/other.csv"], 2, "other.csv: not a database that can be used"),
        (["--sqlite", "/nowhere/x.db"], 8, "/nowhere/x.db: cannot write"),
        (["--snapshots", "{folder}/other.csv"], 8, "other.csv: cannot write"),
        (["--clips", "5"], 2, "clips need a folder; name one with --snapshots DIR"),
        (["--snapshots", "{folder}/s", "--clips", "3600"], 2, "clip_s = 3600"),
        (["--snapshots", "{folder}/s", "--set", "snapshots.labels=['red sqare']"], 2, "did you mean 'red square'"),
        (["--csv", "{folder}/x", "--jsonl", "{folder}/x"], 2, "one file is given for two kinds"),
        (["--table", "--json"], 2, "--table and --json both want standard output"),
        (["--table", "--jsonl", "-"], 2, "--table and --jsonl - both want standard output"),
    ],
)
def test_what_cannot_work_is_one_line_and_a_code(
    cli_here: Any, model: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    """Before the first frame; what stood there stays as it was."""
    (tmp_path / "other.csv").write_text("a,b\n1,2\n" * 100)
    answer = cli_here("run", model, "-s", "synthetic", *(text.format(folder=tmp_path) for text in arguments))
    assert answer.code == code
    assert message in answer.text
    assert answer.stderr.count("\n") == 1
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n" * 100


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 0), ("SIGHUP", 0)])
def test_a_signal_drains_every_sink_within_two_seconds(model: Path, tmp_path: Path, name: str, code: int) -> None:
    """Row 15: final statistics, nothing lost that was classified, a clip that was being written closed early.

    On a machine so busy that starting takes long, ending may take longer by as much.
    """
    asked = time.monotonic()
    child = start(model, "-s", "synthetic", "--json", *everything(tmp_path))
    wait_for(lambda: list((tmp_path / "kept").glob(".*.part.avi")) if (tmp_path / "kept").exists() else None)
    began = time.monotonic()
    slow = max(1.0, (began - asked) / USUAL_START_S)
    child.send_signal(getattr(signal, name))
    stdout, stderr = child.communicate(timeout=30)
    assert time.monotonic() - began < 2 * slow
    assert child.returncode == code, stderr
    summary = json.loads(stdout)
    assert summary["ended"] == name
    assert "Traceback" not in stderr
    lost = summary["lost_messages"]
    assert counts(tmp_path) == tuple(summary["frames"] - lost.get(sink, 0) for sink in ("jsonl", "csv", "sqlite"))
    assert list((tmp_path / "kept").glob("*.avi"))
    assert not list((tmp_path / "kept").glob(".*"))


def test_a_second_ctrl_c_ends_at_once(model: Path, tmp_path: Path) -> None:
    """While a sink still waits for a reader that does not read: code 130, and the files are whole."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    child = start(model, "-s", "synthetic", "--fps", 500, "--json", *everything(tmp_path)[2:], "--jsonl", pipe)
    wait_for(lambda: (tmp_path / "seen.csv").exists() and (tmp_path / "seen.csv").stat().st_size > 100_000)
    child.send_signal(signal.SIGINT)
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == 130
    os.close(reader)
    with (tmp_path / "seen.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file, strict=True))) > 100


def test_a_reader_that_stops_reading_costs_the_loop_no_frames(model: Path) -> None:
    """Row 9: with standard output full, as many frames a second are classified as with a reader."""
    rates = []
    for reading in (True, False):
        stdout = subprocess.DEVNULL if reading else subprocess.PIPE
        child = start(model, "-s", "synthetic", "--fps", 60, "--seconds", 3, "--jsonl", "-", stdout=stdout, pipesize=4096)
        assert child.stderr is not None
        stderr = child.stderr.read()
        assert child.wait(30) == 0
        assert ("jsonl lost" in stderr) != reading
        rates.append(float(stderr.split(" fps")[0].rsplit(" ", 1)[1]))
        if child.stdout:
            child.stdout.close()
    assert rates[1] > 0.6 * rates[0]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs root and mount")
def test_a_full_disk_pauses_the_files_and_not_the_classifying(model: Path, tmp_path: Path) -> None:
    """Row 12: each sink warns once, frames go on, and with room again all write again; nothing is torn."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    log = tmp_path / "log"
    try:
        with log.open("w") as stderr:
            child = start(model, "-s", "synthetic", "--json", *everything(place), stderr=stderr)
            wait_for(lambda: (place / "seen.jsonl").exists() and "label" in (place / "seen.jsonl").read_text())
            filler = place / "filler"
            fill(filler)
            wait_for(lambda: all(f"warning: {name}: cannot write" in log.read_text() for name in ("jsonl", "csv", "sqlite")))
            filler.unlink()
            wait_for(lambda: all(f"{name}: writing works again" in log.read_text() for name in ("jsonl", "csv", "sqlite")))
            child.send_signal(signal.SIGTERM)
            stdout = child.communicate(timeout=30)[0]
        summary = json.loads(stdout)
        assert child.returncode == 0
        assert "Traceback" not in log.read_text()
        written = counts(place)
        assert max(written) < summary["frames"]
        assert min(written) > 0
        for path in (place / "kept").glob("[!.]*.jpg"):
            assert cv2.imread(str(path)) is not None
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_kill_at_any_moment_tears_nothing() -> None:
    """Row 14, a short round of the tool whose long one is in tools/results/kill.json."""
    command = [sys.executable, ROOT / "tools" / "bench_kill.py", "--kills", "20", "--longest", "0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["kills"] == 20
    assert set(result["torn"].values()) == {0}
    assert result["written"]["json_lines"] > 1000
    assert result["written"]["pictures_kept"] > 0


def test_without_a_terminal_the_table_is_lines(cli_here: Any, model: Path, folder: Path) -> None:
    """Nothing steers anything, and with two sources each line says which it is of."""
    answer = cli_here("run", model, "-s", folder, "-s", folder / "red-square.png", "--table")
    assert answer.code == 0
    assert "\x1b" not in answer.stdout
    assert f"{folder}: yellow bars" in answer.stdout
    assert "red-square.png: red square" in answer.stdout


def test_on_a_terminal_the_table_is_drawn_and_left_with_the_last_state(model: Path, folder: Path) -> None:
    """A real pseudo-terminal: rows for both sources, the skipped pictures below, the cursor visible at the end."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    child = start(model, "-s", folder, "-s", "synthetic", "--table", "--seconds", 1.5, stdout=theirs, env=environment)
    os.close(theirs)
    text = b""
    while child.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                text += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
    assert child.wait(30) == 0
    os.close(ours)
    assert child.stderr is not None
    assert "time limit" in child.stderr.read()
    shown = text.decode()
    for word in ("synthetic", "live", "ended", "p99", "truncated.jpg", "missing"):
        assert word in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_warnings_stand_in_the_table_and_not_across_it(model: Path, tmp_path: Path) -> None:
    """A sink that cannot write while the table is shown."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    kept = tmp_path / "kept"
    child = start(
        model, "-s", "synthetic", "--table", "--seconds", 1.5, "--snapshots", kept, "--set", f"snapshots.min_free_mb={1 << 30}",
        stdout=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:
            break
        if not piece:
            break
        text += piece
    os.close(ours)
    assert child.wait(30) == 0
    assert child.stderr is not None
    assert "min_free_mb" not in child.stderr.read()
    assert "snapshots: cannot write" in text.decode()
    assert list(kept.iterdir()) == []
