"""`edgeclf run` on a device that is hot or has a weak supply (row 25), and what its summary says of the device."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgeclf.runtime import service
from edgeclf.runtime.device.monitor import DeviceMonitor
from edgeclf.runtime.device.vitals import Throttle, Vitals

Cli = Callable[..., Any]
WEAK = Vitals(60 << 20, 85.0, 600.0, Throttle(("under-voltage",), ("under-voltage",)))


@pytest.fixture
def int8(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


def watching(monkeypatch: pytest.MonkeyPatch, vitals: Vitals) -> None:
    """The device says this, four times a second."""
    monkeypatch.setattr(service, "DeviceMonitor", partial(DeviceMonitor, lambda: vitals, interval_s=0.25))


def test_a_throttled_run_says_so(cli_here: Cli, int8: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning line for each cause, once; health events; a summary that marks its times."""
    watching(monkeypatch, WEAK)
    out = tmp_path / "seen.jsonl"
    answer = cli_here("run", int8, "-s", "synthetic", "--seconds", 1.5, "--jsonl", out)
    assert answer.code == 0, answer.text
    warnings = [line for line in answer.stderr.splitlines() if line.startswith("warning: ")]
    assert sum("under-voltage" in line for line in warnings) == 1
    assert sum("85 °C" in line for line in warnings) == 1
    assert "throttled (under-voltage): these times are longer than the board needs" in answer.stderr
    assert "hottest 85.0 °C, lowest clock 600 MHz" in answer.stderr
    health = [event for event in map(json.loads, out.read_text().splitlines()) if event["event"] == "health"]
    assert health[-1]["throttled"] == ["under-voltage"]
    assert any("under-voltage" in event["warning"] for event in health)


def test_the_summary_as_json_holds_the_device(cli_here: Cli, int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peak memory, CPU share, heat, clock, throttling; also when the run is shorter than one reading from the next."""
    watching(monkeypatch, WEAK)
    found = json.loads(cli_here("run", int8, "-s", "synthetic", "--max-frames", 2, "--json").stdout)
    assert found["throttled"] == ["under-voltage"]
    device = found["device"]
    assert (device["hottest_c"], device["lowest_clock_mhz"]) == (85.0, 600.0)
    assert device["peak_memory_bytes"] > 1 << 20
    assert 0 <= device["cpu_share"] < 64
    assert found["threads"] >= 1
    assert found["first_inference_ms"] > 0
    assert {"p50_ms", "p90_ms", "p99_ms", "runs"} == set(found["stages"]["invoke"])


def test_a_device_that_says_nothing_is_no_hindrance(cli_here: Cli, int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is warned of, and what is unknown is left out or null."""
    watching(monkeypatch, Vitals())
    answer = cli_here("run", int8, "-s", "synthetic", "--max-frames", 2)
    assert answer.code == 0, answer.text
    assert "warning" not in answer.stderr
    assert "°C" not in answer.stderr


def test_a_hot_board_classifies_fewer_frames(cli_here: Cli, int8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above `service.cool_above_c`, frames of a camera are passed over and counted; below it none is."""
    watching(monkeypatch, WEAK)
    options = ("run", int8, "-s", "synthetic", "--fps", 100, "--seconds", 2, "--json", "--set")
    hot = json.loads(cli_here(*options, "service.cool_above_c=75").stdout)
    cool = json.loads(cli_here(*options, "service.cool_above_c=90").stdout)
    assert cool["gated"] == 0
    assert hot["gated"] > 0
    assert hot["frames"] <= 25  # ten a second, and a few before the first reading


def test_a_bad_limit_is_refused(cli_here: Cli, int8: Path) -> None:
    """Below nought, by its key."""
    answer = cli_here("run", int8, "-s", "synthetic", "--set", "service.cool_above_c=-1")
    assert (answer.code, "cool_above_c = -1.0: must not be below 0" in answer.stderr) == (2, True)


def test_the_number_of_threads_is_measured_once(
    cli_here: Cli, int8: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second run remembers; --threads has the last word; the monitor's thread is gone afterwards."""
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr("edgeclf.runtime.device.threads.cores", lambda: 2)
    monkeypatch.setattr("edgeclf.runtime.latency.cores", lambda: 2)
    options = ("run", int8, "-s", "synthetic", "--max-frames", 2)
    assert "(measured now: " in cli_here(*options).stderr
    assert "(measured before: " in cli_here(*options).stderr
    assert "threads: 3 (as asked for)" in cli_here(*options, "--threads", 3).stderr
    assert not [thread for thread in threading.enumerate() if thread.name == "monitor"]
