"""The state file: answers that outlive a restart, and files that cannot be used."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broker import wait_for
from hypothesis import given
from hypothesis import strategies as st

from edgeclf.runtime import state as module
from edgeclf.runtime.decision import Decision, State
from edgeclf.runtime.events import Seen, Stages
from edgeclf.runtime.sinks.telling import Selected
from edgeclf.runtime.state import OLDEST_S, Keeper, dumped, loaded, read_states

LABELS = ("cat", "dog")
NOW_S = 1_700_000_000.0
KEPT = {"cam": State(np.array([0.25, 0.75], np.float32), "dog"), "gate #2": State(None, "unknown"), "new": State()}


def seen(changed: bool = True) -> Seen:
    return Seen(0.0, "cam", 1, Decision("dog", 0.9, "dog", changed, ()), Stages(0, 1, 2, 0, 5), 30.0)


def test_what_is_kept_is_read_back_exactly() -> None:
    """Smoothed probabilities and lasting answers, by source."""
    back = loaded(dumped(KEPT, LABELS, NOW_S).encode(), LABELS, NOW_S + 60)
    assert {name: state.stable for name, state in back.items()} == {"cam": "dog", "gate #2": "unknown", "new": ""}
    assert back["cam"].mean is not None
    assert back["cam"].mean.dtype == np.float32
    assert back["cam"].mean.tolist() == [0.25, 0.75]
    assert back["new"].mean is None


@pytest.mark.parametrize(
    ("labels", "later_s"), [(("cat", "bird"), 0.0), (("dog", "cat"), 0.0), (LABELS, OLDEST_S + 1), (LABELS, -OLDEST_S - 1)]
)
def test_answers_of_other_labels_or_of_yesterday_are_ignored(labels: tuple[str, ...], later_s: float) -> None:
    """Also when the clock went back by more than a day."""
    assert loaded(dumped(KEPT, LABELS, NOW_S).encode(), labels, NOW_S + later_s) == {}


BROKEN = [
    b"",
    b"{",
    b"\xff",
    b"[]",
    b"[" * 100_000,
    b'{"format": 2}',
    b'{"format": 1, "saved_s": NaN, "labels": [], "sources": {}}',
    b'{"format": 1, "saved_s": true, "labels": [], "sources": {}}',
    b'{"format": 1, "saved_s": 1, "labels": {}, "sources": {}}',
    b'{"format": 1, "saved_s": 1, "labels": [], "sources": []}',
]


@pytest.mark.parametrize("data", BROKEN)
def test_a_broken_file_is_a_warning_and_a_fresh_start(data: bytes, tmp_path: Path) -> None:
    """It names the file; the run goes on without."""
    path, warnings = tmp_path / "state.json", list[str]()
    path.write_bytes(data)
    assert read_states(path, LABELS, warnings.append) == {}
    assert len(warnings) == 1
    assert warnings[0].startswith(f"state: {path}: ")
    assert warnings[0].endswith("; starting afresh")


@pytest.mark.parametrize(
    "source",
    [
        None,
        {},
        {"stable": "bird", "mean": None},
        {"stable": ["cat"], "mean": None},
        {"stable": "cat", "mean": [0.5]},
        {"stable": "cat", "mean": [0.5, "0.5"]},
        {"stable": "cat", "mean": [0.5, 1e300]},
        {"stable": "cat", "mean": [0.5, -0.1]},
        {"stable": "cat", "mean": "ab"},
    ],
)
def test_a_state_that_cannot_be_is_a_warning_and_a_fresh_start(source: Any, tmp_path: Path) -> None:
    """Strictly: what was altered is not used in part."""
    value = json.loads(dumped(KEPT, LABELS, time.time()))
    value["sources"]["cam"] = source
    (tmp_path / "state.json").write_text(json.dumps(value))
    warnings: list[str] = []
    assert read_states(tmp_path / "state.json", LABELS, warnings.append) == {}
    assert "'cam': " in warnings[0]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_json_is_either_refused_or_read(value: Any) -> None:
    """No other error comes out, whatever stands where."""
    document = {"format": 1, "saved_s": NOW_S, "labels": list(LABELS), "sources": value}
    for data in (json.dumps(value), json.dumps(document), json.dumps({**document, "sources": {"cam": value}})):
        with contextlib.suppress(ValueError):
            assert isinstance(loaded(data.encode(), LABELS, NOW_S), dict)


def test_no_file_is_no_trouble(tmp_path: Path) -> None:
    """The first start has none; a folder in its place is told."""
    warnings: list[str] = []
    assert read_states(tmp_path / "none.json", LABELS, warnings.append) == {}
    assert warnings == []
    assert read_states(tmp_path, LABELS, warnings.append) == {}
    assert "cannot be read" in warnings[0]


def keep(path: Path, warnings: list[str]) -> tuple[Selected, Keeper, dict[str, State]]:
    keeper = Keeper(path, LABELS, warnings.append)
    states = dict(KEPT)
    keeper.follow(states)
    return Selected("state", keeper, keeper.is_due, 1), keeper, states


def test_changes_are_written_soon_but_not_each_and_the_last_at_the_end(tmp_path: Path) -> None:
    """The first at once, more within seconds wait for the end."""
    path, warnings = tmp_path / "state.json", list[str]()
    sink, keeper, states = keep(path, warnings)
    sink.emit(seen())
    wait_for(path.exists)
    states["cam"] = State(None, "cat")
    for _ in range(100):
        sink.emit(seen())
    assert keeper.is_due(seen()) is False
    assert read_states(path, LABELS, warnings.append)["cam"].stable == "dog"
    assert sink.close()
    assert read_states(path, LABELS, warnings.append)["cam"].stable == "cat"
    assert warnings == []
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_steady_answer_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it does not become an answer of yesterday."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    keeper = Keeper(tmp_path / "state.json", LABELS, print)
    due = []
    for _ in range(4 * 900):
        due.append(keeper.is_due(seen(changed=False)))
        now[0] += 1
    assert sum(due) == 4
    assert keeper.is_due(seen(changed=True)) is True
    assert keeper.is_due(seen(changed=True)) is False
    now[0] += 5
    assert keeper.is_due(seen(changed=False)) is True


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    """The run goes on."""
    (tmp_path / "file").touch()
    warnings: list[str] = []
    sink, keeper, _ = keep(tmp_path / "file" / "state.json", warnings)
    keeper.write(())
    assert sink.close()
    assert len(warnings) == 1
    assert "answers will not outlive a restart" in warnings[0]
