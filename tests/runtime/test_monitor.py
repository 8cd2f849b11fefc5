"""The device is watched beside the loop: Health every few seconds, one warning for each trouble, fewer frames when hot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_vitals import put

from edgeclf.core.live_settings import LiveSettings, ServiceSection
from edgeclf.runtime.device import monitor as monitors
from edgeclf.runtime.device.cooling import CoolGate, Cooling, cooled
from edgeclf.runtime.device.monitor import DeviceMonitor
from edgeclf.runtime.device.vitals import Throttle, Vitals, complaints, read_vitals
from edgeclf.runtime.events import Health
from edgeclf.runtime.service import device_monitor
from edgeclf.runtime.sources.camera import Source
from edgeclf.runtime.sources.capture import Frame

DEADLINE_S = 20.0
WELL = Vitals(50 << 20, 55.0, 1500.0, Throttle())
WEAK = Vitals(50 << 20, 85.0, 600.0, Throttle(("under-voltage", "throttled")))


def until(found: Callable[[], object]) -> None:
    """Wait for a condition on a machine that may be busy."""
    ends = time.monotonic() + DEADLINE_S
    while not found():
        assert time.monotonic() < ends, "did not happen in time"
        time.sleep(0.01)


def next_health(watch: DeviceMonitor, labelled: int = 7) -> Health:
    """The next Health, asked for as the loop does."""
    until(watch.is_due)
    return watch.news({"cam": "live"}, labelled, {"mqtt": 2})


@pytest.fixture
def readings() -> list[Vitals]:
    """What the device says next; the last stays."""
    return [WELL]


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
def watch(readings: list[Vitals], heard: list[str]) -> Iterator[DeviceMonitor]:
    found = DeviceMonitor(lambda: readings[-1], heard.append, interval_s=0.02)
    yield found
    found.close()


def test_health_says_what_was_read_and_what_the_loop_knows(watch: DeviceMonitor) -> None:
    """Vitals from the thread; states, labels and losses as they were handed in."""
    until(lambda: watch._latest)
    health = next_health(watch)
    assert (health.memory_bytes, health.temperature_c, health.clock_mhz, health.throttled) == (50 << 20, 55.0, 1500.0, ())
    assert (health.states, health.labelled, health.lost_messages) == ({"cam": "live"}, 7, {"mqtt": 2})
    assert health.cpu_share is not None
    assert health.cpu_share >= 0


def test_there_is_no_news_in_between() -> None:
    """The loop asks at every frame; only one answer in an interval is an event."""
    watch = DeviceMonitor(lambda: WELL, interval_s=3600.0)
    assert not any(watch.is_due() for _ in range(100))
    watch.close()


def test_each_trouble_is_told_once(watch: DeviceMonitor, readings: list[Vitals], heard: list[str]) -> None:
    """Three of them, one line each, however often they are read, and while the board goes back and forth."""
    for _ in range(5):
        for state in (WEAK, WELL):
            readings.append(state)
            before = watch._latest
            until(lambda before=before: watch._latest is not before)
    until(lambda: len(heard) == 3)
    assert [any(word in line for line in heard) for word in ("under-voltage", "throttled by heat", "85 °C")] == [True] * 3
    told = next_health(watch).warning
    assert all(line in told for line in heard)
    assert next_health(watch).warning == ""


def test_a_trouble_that_was_long_away_is_told_again(
    watch: DeviceMonitor, readings: list[Vitals], heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After AGAIN_S, here a moment."""
    monkeypatch.setattr(monitors, "AGAIN_S", 0.2)
    readings.append(WEAK)
    until(lambda: len(heard) == 3)
    readings.append(WELL)
    time.sleep(0.5)
    readings.append(WEAK)
    until(lambda: len(heard) == 6)


def test_a_fault_in_sysfs_is_told_within_five_seconds(tmp_path: Path) -> None:
    """At the interval that is built in: throttle bits appear while it runs, and the warning follows (row 25)."""
    assert monitors.INTERVAL_S <= 2.5
    heard: list[str] = []
    watch = DeviceMonitor(lambda: read_vitals(tmp_path), heard.append)
    until(lambda: watch._latest)
    put(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", "50005")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "85000")
    until(lambda: len(heard) >= 3)
    watch.close()
    assert watch.device().hottest_c == 85.0


def test_a_read_that_hangs_hinders_neither_the_loop_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health still comes, without vitals, since a watchdog may live on it; close returns."""
    monkeypatch.setattr(monitors, "STALE_S", 0.05)
    let_go, calls = threading.Event(), [0]

    def read() -> Vitals:
        calls[0] += 1
        if calls[0] > 1:
            let_go.wait(DEADLINE_S)
        return WELL

    watch = DeviceMonitor(read, interval_s=0.02)
    until(lambda: calls[0] > 1)
    until(lambda: watch.is_due() and watch.news({}, 0, {}).temperature_c is None)
    start = time.monotonic()
    watch.close()
    assert time.monotonic() - start < 5
    let_go.set()


def test_the_device_is_summed_up(watch: DeviceMonitor, readings: list[Vitals]) -> None:
    """Hottest, lowest clock and everything that throttled, over the run; memory is this process's own."""
    until(lambda: watch._latest)
    for state in (WEAK, WELL):
        readings.append(state)
        until(lambda state=state: watch._latest and watch._latest[1] is state)
    found = watch.device()
    assert (found.hottest_c, found.lowest_clock_mhz, found.throttled) == (85.0, 600.0, ("throttled", "under-voltage"))
    assert found.peak_memory_bytes is not None
    assert found.peak_memory_bytes > 1 << 20


def test_warm_is_not_hot() -> None:
    """80 °C is where the firmware begins to act."""
    assert complaints(Vitals(temperature_c=79.9)) == {}
    assert list(complaints(Vitals(temperature_c=80.0))) == ["hot"]


# --- cooling --------------------------------------------------------------------------------------------------------------


def frame(taken_s: float) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), 0, taken_s)


def test_a_hot_board_is_slowed_step_by_step_and_released_again() -> None:
    """0.1 s apart, doubling to 1 s while hot; unchanged near the limit; halving when cool, down to nothing."""
    cooling, found = Cooling(75.0), []
    for number, heat in enumerate([70, 76, 76, 76, 76, 76, 76, 74, 71, 71, 71, 71, 71]):
        cooling.heed(heat, 100.0 + 10 * number)
        found.append(round(cooling.apart_s, 3))
    assert found == [0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 0.5, 0.25, 0.125, 0.062, 0]
    cooling.heed(None, 1000.0)
    assert cooling.apart_s == 0


def test_steps_are_not_faster_than_a_board_cools() -> None:
    """Readings every two seconds, steps every ten."""
    cooling = Cooling(75.0)
    for second in range(0, 20, 2):
        cooling.heed(80.0, float(second))
    assert cooling.apart_s == 0.2


class OddOnly:
    """A gate that lets every second frame pass."""

    count = 0

    def admits(self, frame: Frame) -> bool:
        self.count += 1
        return self.count % 2 == 1

    def view(self, image: np.ndarray) -> np.ndarray:
        return image[:1]


def test_the_gate_of_a_hot_board_keeps_frames_apart() -> None:
    """Cool, everything passes; hot, one frame in each interval; the gate behind it is asked only for those."""
    cooling = Cooling(75.0)
    gate = CoolGate(cooling)
    assert all(gate.admits(frame(t / 100)) for t in range(10))
    cooling.apart_s = 0.1
    assert sum(gate.admits(frame(1 + t / 100)) for t in range(100)) == pytest.approx(10, abs=1)
    behind = OddOnly()
    gate = CoolGate(cooling, behind)
    passed = sum(gate.admits(frame(t / 100)) for t in range(100))
    assert behind.count < 50
    assert passed == pytest.approx(10, abs=1)
    assert gate.view(np.zeros((2, 2, 3), np.uint8)).shape == (1, 2, 3)


def test_without_a_limit_nothing_stands_before_the_gate() -> None:
    """And none is made where there was none."""
    assert cooled(None, None) is None
    assert cooled(OddOnly, None) is OddOnly
    made = cooled(OddOnly, Cooling(70.0))
    assert isinstance(made and made(), CoolGate)


def test_files_are_never_thinned_out() -> None:
    """Cooling is for cameras; a folder of pictures is classified whole, however hot."""
    hot = LiveSettings(service=ServiceSection(cool_above_c=70.0))
    for live, wanted in ((True, True), (False, False)):
        watch = device_monitor(hot, [Source("x", lambda stop: None, live=live)], lambda message: None)  # type: ignore[arg-type,return-value]
        watch.close()
        assert (watch.cooling is not None) is wanted
