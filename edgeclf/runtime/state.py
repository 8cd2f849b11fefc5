"""The state file: the answers of each source outlive a restart of the run, so that it announces nothing anew."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.errors import StorageError
from edgeclf.core.files import write_text
from edgeclf.runtime.decision import UNKNOWN, State
from edgeclf.runtime.events import Event, Seen
from edgeclf.runtime.sinks.telling import Complaints

FORMAT = 1
OLDEST_S = 86_400.0  # an answer of yesterday says nothing of what is there now
LARGEST = 16 << 20  # bytes
EVERY_S = 5.0  # at most so often at changes
ANYWAY_S = 900.0  # and so often without


class Keeper:
    """A writer that keeps the states which `follow` names in a file: soon after a change, now and then, and at the end."""

    lost = 0

    def __init__(self, path: Path, labels: Sequence[str], warn: Callable[[str], None]) -> None:
        self._path, self._labels, self._warn = path, tuple(labels), warn
        self._states: Mapping[str, State] = {}
        self._complaints = Complaints(warn)
        self._changed = False
        self._written_s = -math.inf

    def read(self) -> dict[str, State]:
        """What an earlier run kept, as `read_states`."""
        return read_states(self._path, self._labels, self._warn)

    def follow(self, states: Mapping[str, State]) -> None:
        """What is to be kept, by source; looked at whenever it is written."""
        self._states = states

    def is_due(self, event: Event) -> bool:
        """Whether it is time to write; asked by the loop for every event."""
        if not isinstance(event, Seen):
            return False
        self._changed |= event.decision.changed
        now = time.monotonic()
        if now - self._written_s < (EVERY_S if self._changed else ANYWAY_S):
            return False
        self._changed, self._written_s = False, now
        return True

    def write(self, events: Sequence[Event]) -> None:
        try:
            write_text(self._path, dumped(dict(self._states), self._labels, time.time()))
        except StorageError as error:
            self._complaints.say("trouble", f"state: {error}; answers will not outlive a restart")
        else:
            self._complaints.well()

    def close(self) -> None:
        if any(state.stable for state in self._states.values()):
            self.write(())


def dumped(states: Mapping[str, State], labels: Sequence[str], now_s: float) -> str:
    """The states as JSON; `now_s` is wall time."""
    kept = {
        name: {"stable": state.stable, "mean": None if state.mean is None else [float(value) for value in state.mean]}
        for name, state in states.items()
    }
    value = {"format": FORMAT, "saved_s": now_s, "labels": list(labels), "sources": kept}
    return json.dumps(value, allow_nan=False) + "\n"


def read_states(path: Path, labels: Sequence[str], warn: Callable[[str], None]) -> dict[str, State]:
    """The states in that file; none when there is no file, or one of other labels or of more than a day ago.

    A file that cannot be used is told to `warn`, and costs nothing but the states.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        return loaded(data, labels, time.time())
    except FileNotFoundError:
        return {}
    except OSError as error:
        warn(f"state: {path}: cannot be read: {error.strerror}; starting afresh")
    except (ValueError, RecursionError) as error:
        warn(f"state: {path}: {_worded(error)}; starting afresh")
    return {}


def loaded(data: bytes, labels: Sequence[str], now_s: float) -> dict[str, State]:
    """The states in such JSON; none of other labels, or when it is not of the last day. Raises ValueError, RecursionError."""
    if len(data) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MB")
    value = json.loads(data.decode("utf-8"))
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"not a state file of format {FORMAT}")
    saved_s: Any = value.get("saved_s")
    sources = value.get("sources")
    if not _is_number(saved_s) or not isinstance(sources, dict) or not isinstance(value.get("labels"), list):
        raise ValueError("saved_s, labels or sources is missing or of a wrong type")
    if value["labels"] != list(labels) or abs(now_s - saved_s) > OLDEST_S:
        return {}
    return {name: _state(name, kept, labels) for name, kept in sources.items()}


def _state(name: str, kept: Any, labels: Sequence[str]) -> State:
    if not isinstance(kept, dict) or kept.get("stable") not in ("", UNKNOWN, *labels):
        raise ValueError(f"{name!r}: stable is none of the labels")
    mean = kept.get("mean")
    if mean is None:
        return State(None, kept["stable"])
    if not isinstance(mean, list) or len(mean) != len(labels) or not all(_is_number(v) and 0 <= v <= 1.001 for v in mean):
        raise ValueError(f"{name!r}: mean is not a list of {len(labels)} probabilities")
    return State(np.array(mean, np.float32), kept["stable"])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _worded(error: Exception) -> str:
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return "is not whole JSON"
    return "is nested too deeply" if isinstance(error, RecursionError) else str(error)
