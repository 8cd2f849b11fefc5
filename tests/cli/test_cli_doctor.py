"""`edgeclf doctor` on the machine that runs the tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgeclf.runtime.device import doctor
from edgeclf.runtime.device.facts import Facts, Trial

Cli = Callable[..., Any]
STATES = {"ok", "warning", "failing"}


def test_every_check_is_a_line(cli_here: Cli) -> None:
    """State, name and what was found; the packages that these tests run with work, and so does the self-test."""
    answer = cli_here("doctor")
    lines = {line.split()[1]: line.split()[0] for line in answer.stdout.splitlines()}
    assert list(lines) == list(doctor.CHECKS)
    assert set(lines.values()) <= STATES
    assert (lines["numpy"], lines["opencv"], lines["runtime"]) == ("ok", "ok", "ok")
    assert "compact-digits computes what was shipped" in answer.stdout
    assert answer.code == int("failing" in lines.values())


def test_the_answer_as_json_holds_the_commands(cli_here: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object, exit code 1 when a check is failing."""
    monkeypatch.setattr(doctor, "gather", lambda: Facts(imports={"numpy": Trial(0)}))
    answer = cli_here("doctor", "--json")
    found = json.loads(answer.stdout)
    assert (answer.code, found["state"]) == (1, "failing")
    assert {check["state"] for check in found["checks"]} <= STATES
    assert next(check for check in found["checks"] if check["name"] == "runtime")["mend"].endswith("install ai-edge-litert")


def test_nothing_failing_is_a_success(cli_here: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning alone does not fail a deployment."""
    monkeypatch.setattr(doctor, "examine", lambda: (doctor.Check("disk", "ok", "x"), doctor.Check("power", "warning", "y")))
    answer = cli_here("doctor")
    assert (answer.code, answer.stdout) == (0, "ok       disk      x\nwarning  power     y\n")
