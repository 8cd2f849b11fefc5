"""Command on change: a program of the user's is run for each change, one at a time, with the newest change waiting."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgeclf.core.errors import ConfigError
from edgeclf.core.live_settings import command_words
from edgeclf.core.text import printable
from edgeclf.runtime.events import Event, Seen, record
from edgeclf.runtime.sinks.telling import Complaints

KEPT_BACK = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "EDGECLF_MQTT_PASSWORD", "EDGECLF_WEB_TOKEN")
NAP_S = 0.1
LAST_S = 0.5  # what a command is given at the end of the run, and between SIGTERM and SIGKILL
STDERR = 2


class Command:
    """A writer that runs the command and waits for its end. No shell; the event's JSON is its standard input.

    EDGECLF_LABEL, EDGECLF_SCORE and EDGECLF_SOURCE stand in its environment, edgeclf's own secrets do not. What it prints
    goes to standard error. After `timeout_s` its process group is ended.
    """

    def __init__(self, command: str, timeout_s: float, ending: threading.Event, warn: Callable[[str], None]) -> None:
        """`ending`, once set, ends a running command soon. Raises ConfigError when there is no such program."""
        self.lost = 0
        self._words = command_words(command)
        self._timeout_s, self._ending, self._complaints = timeout_s, ending, Complaints(warn)
        if shutil.which(self._words[0]) is None:
            raise ConfigError(f"--on-change: no program {printable(self._words[0])!r} that can be run; scripts need chmod +x")
        self._shown = printable(Path(self._words[0]).name)

    def write(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Seen):
                trouble = self._run(event)
                self.lost += bool(trouble)
                if trouble:
                    self._complaints.say("trouble", f"command: {self._shown} {trouble}")
                else:
                    self._complaints.well()

    def _run(self, seen: Seen) -> str:
        """Returns what went wrong."""
        try:
            child = subprocess.Popen(
                self._words, stdin=subprocess.PIPE, stdout=STDERR, env=environment(seen, os.environ), start_new_session=True
            )
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        try:
            return self._await(child, json.dumps(record(seen), allow_nan=False).encode())
        finally:
            _end(child)

    def _await(self, child: subprocess.Popen[bytes], told: bytes | None) -> str:
        limit = time.monotonic() + self._timeout_s
        ending = False
        while (left := limit - time.monotonic()) > 0:
            if self._ending.is_set() and not ending:
                ending, limit = True, min(limit, time.monotonic() + LAST_S)
            try:
                child.communicate(told, timeout=min(NAP_S, left))
            except subprocess.TimeoutExpired:
                told = None
                continue
            code = child.returncode
            return f"ended with code {code}" if code > 0 else f"was ended by signal {-code}" if code else ""
        return "was ended, as the run ends" if ending else f"was ended after {self._timeout_s:g} s"


def environment(seen: Seen, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the command finds in its environment."""
    own = {
        "EDGECLF_LABEL": printable(seen.decision.stable),
        "EDGECLF_SCORE": f"{seen.decision.score:.5f}",
        "EDGECLF_SOURCE": printable(seen.source),
    }
    return {name: value for name, value in inherited.items() if name not in KEPT_BACK} | own


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the group of a child that runs; a child that ended by itself may leave others behind, as it wishes."""
    if child.poll() is None:
        _signal_group(child, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(LAST_S)
        _signal_group(child, signal.SIGKILL)
        child.wait()
    if child.stdin:
        with contextlib.suppress(OSError):
            child.stdin.close()


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
