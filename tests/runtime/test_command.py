"""Commands on change: what they are given, one at a time, ended in time, and never a shell."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from broker import wait_for

from edgeclf.core.errors import ConfigError
from edgeclf.runtime.decision import Decision
from edgeclf.runtime.events import Seen, Stages
from edgeclf.runtime.sinks.command import Command
from edgeclf.runtime.sinks.telling import Selected, changes


def seen(label: str = "cat", score: float = 0.9) -> Seen:
    return Seen(0.0, "cam", 1, Decision(label, score, label, True, ((label, score),)), Stages(0, 1, 2, 0, 5), 30.0)


def script(folder: Path, text: str) -> str:
    """A command that runs this Python text; `out` is the path of a file beside it."""
    path = folder / "script.py"
    path.write_text(f"import json, os, pathlib, subprocess, sys, time\nout = pathlib.Path({str(folder / 'out')!r})\n{text}\n")
    return f"'{sys.executable}' -S '{path}'"


def ran(command: str, *events: Seen, timeout_s: float = 30.0) -> tuple[Command, list[str]]:
    warnings: list[str] = []
    writer = Command(command, timeout_s, threading.Event(), warnings.append)
    writer.write(events)
    return writer, warnings


def test_the_event_is_in_the_environment_and_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And edgeclf's own passwords and systemd's socket are not."""
    for name in ("EDGECLF_MQTT_PASSWORD", "EDGECLF_WEB_TOKEN", "NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.setenv(name, "s3cr3t")
    command = script(tmp_path, "out.write_text(json.dumps([dict(os.environ), json.load(sys.stdin)]))")
    writer, warnings = ran(command, seen('a $(touch x); "cat"', 0.25))
    environment, event = json.loads((tmp_path / "out").read_text())
    assert environment["EDGECLF_LABEL"] == event["stable"] == 'a $(touch x); "cat"'
    assert (environment["EDGECLF_SCORE"], environment["EDGECLF_SOURCE"]) == ("0.25000", "cam")
    assert "s3cr3t" not in environment.values()
    assert environment["PATH"] == os.environ["PATH"]
    assert (writer.lost, warnings) == (0, [])


def test_there_is_no_shell(tmp_path: Path) -> None:
    """What a shell would take for more commands are words."""
    command = script(tmp_path, "out.write_text(json.dumps(sys.argv[1:]))")
    ran(f"{command} $EDGECLF_LABEL '; touch x' `id` > y", seen())
    assert json.loads((tmp_path / "out").read_text()) == ["$EDGECLF_LABEL", "; touch x", "`id`", ">", "y"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", "script.py"}


def test_a_failure_is_a_warning_once(tmp_path: Path) -> None:
    """Until it succeeds; failures are counted."""
    command = script(tmp_path, "sys.exit(3 if os.environ['EDGECLF_LABEL'] == 'bad' else 0)")
    writer, warnings = ran(command, *[seen(label) for label in ("bad", "bad", "good", "bad")])
    assert warnings == [f"command: {Path(sys.executable).name} ended with code 3"] * 2
    assert writer.lost == 3


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    """The whole process group: here a child that ignores SIGTERM outlives the command itself."""
    child = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    command = script(
        tmp_path,
        f"child = subprocess.Popen([sys.executable, '-S', '-c', {child!r}], stdout=subprocess.PIPE); child.stdout.readline()\n"
        "out.write_text(str(child.pid))\ntime.sleep(60)",
    )
    began = time.monotonic()
    _, warnings = ran(command, seen(), timeout_s=3)
    assert time.monotonic() - began < 20
    assert "was ended after 3 s" in warnings[0]
    pid = int((tmp_path / "out").read_text())
    wait_for(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_command_that_does_not_read_its_input_is_no_trouble(tmp_path: Path) -> None:
    """As most will not."""
    many = Seen(
        0.0, "cam", 1, Decision("cat", 0.9, "cat", True, tuple((f"label {i}", 0.1) for i in range(5000))),
        Stages(0, 1, 2, 0, 5), 30.0,
    )  # fmt: skip
    writer, warnings = ran(script(tmp_path, "time.sleep(0.1)"), many)
    assert (writer.lost, warnings) == (0, [])


def test_one_runs_at_a_time_and_the_newest_change_waits(tmp_path: Path) -> None:
    """Changes in between are lost and counted."""
    command = script(
        tmp_path,
        "label = os.environ['EDGECLF_LABEL']\n"
        "out.open('a').write(label + '\\n')\n"
        "while label == 'first' and not out.with_name('go').exists(): time.sleep(0.02)",
    )
    ending = threading.Event()
    sink = Selected("command", Command(command, 60, ending, lambda message: None), changes(), 1, ending)
    sink.emit(seen("first"))
    wait_for((tmp_path / "out").exists)
    for i in range(10):
        sink.emit(seen(f"change {i}"))
    (tmp_path / "go").touch()
    wait_for(lambda: (tmp_path / "out").read_text() == "first\nchange 9\n")
    assert sink.close()
    assert sink.lost == 9


def test_the_end_of_the_run_ends_a_running_command(tmp_path: Path) -> None:
    """Closing does not wait for it, and it is not left behind."""
    ending = threading.Event()
    writer = Command(script(tmp_path, "out.write_text(str(os.getpid()))\ntime.sleep(60)"), 60, ending, lambda message: None)
    sink = Selected("command", writer, changes(), 1, ending)
    sink.emit(seen())
    pid = int(wait_for(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text()))
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 2
    wait_for(lambda: not _runs(pid))


def test_a_program_that_is_not_there_is_an_error_before_the_run() -> None:
    """With what to do about a script."""
    with pytest.raises(ConfigError, match=r"--on-change: no program '/no/such' that can be run"):
        Command("/no/such thing", 1, threading.Event(), print)
