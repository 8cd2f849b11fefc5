"""systemd's watchdog: fed by labels, or while every source is known to be down; never by a loop that hangs."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broker import wait_for

from edgeclf.core.errors import ConfigError, SourceError
from edgeclf.core.image import Pixels
from edgeclf.core.live_settings import GateSection
from edgeclf.runtime.events import Health
from edgeclf.runtime.live import Live, Stop
from edgeclf.runtime.scoring import Scored
from edgeclf.runtime.sinks.watchdog import Watchdog, open_watchdog, period
from edgeclf.runtime.sources.camera import Picture, Source
from edgeclf.runtime.sources.capture import Timing

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")

PERIOD_S = 0.3
LABELS = ("dark", "bright")


class Manager:
    """systemd's side: keeps every line that it is sent."""

    def __init__(self, address: str) -> None:
        self.lines: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(0.1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                self.lines += self._socket.recv(4096).decode().split("\n")
            except TimeoutError:
                continue

    def fed(self) -> int:
        return self.lines.count("WATCHDOG=1")

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "path":
        return str(tmp_path / "notify")
    return f"@edgeclf-test-{os.getpid()}-{tmp_path.name}"


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    yield manager
    manager.close()


class Camera:
    """Grey pictures at 100 a second, as many as there are; then it is gone."""

    note = ""
    interval_s = 0.0

    def __init__(self, pictures: int) -> None:
        self._left = pictures

    def read(self) -> Picture | None:
        time.sleep(0.01)
        self._left -= 1
        if self._left < 0:
            raise SourceError("cam: unplugged")
        return Picture(np.full((8, 8, 3), self._left % 250, np.uint8))

    def close(self) -> None:
        """Nothing is held."""


class Pulse:
    """A monitor that has news of the device ten times a second."""

    def __init__(self) -> None:
        self._told_s = 0.0

    def is_due(self) -> bool:
        return time.monotonic() - self._told_s >= 0.1

    def news(self, states: Mapping[str, Any], labelled: int, lost: Mapping[str, int]) -> Health:
        self._told_s = time.monotonic()
        return Health(time.time(), dict(states), labelled)

    def close(self) -> None:
        """Nothing is held."""


def brightness(frame: Pixels) -> Scored:
    bright = frame.mean() / 255
    return Scored(np.array([1 - bright, bright], np.float32))


class Run:
    """A loop in a thread of its own, watched; `end` stops it."""

    def __init__(self, address: str, pictures: int, scorer: Callable[[Pixels], Scored], wait: bool = False) -> None:
        openings = iter([pictures])
        source = Source("cam", lambda: Camera(next(openings, 0)), live=True, reopen=True)
        self.stop = Stop()
        self.watchdog = Watchdog(address, PERIOD_S)
        self.live = Live(
            [source], scorer, LABELS, sinks=[self.watchdog], stop=self.stop, monitor=Pulse(), wait=wait,
            timing=Timing(first_wait_s=0.1, close_s=0.2),
        )  # fmt: skip
        self._thread = threading.Thread(target=self.live.run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.stop.set()
        self._thread.join(10)


def test_labels_feed_it_and_the_end_is_told(address: str, manager: Manager) -> None:
    """Ready with the first label, with the answer as status; fed more than twice a period, not for every frame."""
    run = Run(address, 10**6, brightness)
    wait_for(lambda: manager.fed() >= 5)
    run.end()
    wait_for(lambda: "STOPPING=1" in manager.lines)
    assert manager.lines[0] == "READY=1"
    assert manager.lines.count("READY=1") == 1
    assert any(line.startswith("STATUS=dark 100% at") or line.startswith("STATUS=") for line in manager.lines)
    assert next(line for line in manager.lines if line.startswith("STATUS=")).endswith(" fps")
    assert manager.lines[-2:] == ["STOPPING=1", "STATUS=ending"]
    labelled = run.live._tally.counts["frames"]
    assert manager.fed() < labelled / 2


def test_a_loop_that_hangs_is_not_fed(address: str, manager: Manager) -> None:
    """A scorer that does not come back: nothing more is said, though other threads live."""
    release, calls = threading.Event(), [0]

    def hangs(frame: Pixels) -> Scored:
        calls[0] += 1
        if calls[0] > 30:
            release.wait(60)
        return brightness(frame)

    run = Run(address, 10**6, hangs)
    wait_for(lambda: calls[0] == 31)
    time.sleep(0.15)  # what was sent before may still be under way
    before = manager.fed()
    assert before >= 1
    time.sleep(3 * PERIOD_S)
    assert manager.fed() == before
    release.set()
    run.end()


def test_scores_that_are_no_numbers_do_not_feed_it(address: str, manager: Manager) -> None:
    """A camera that is live and a model that says nothing: that run is to be ended."""
    run = Run(address, 10**6, lambda frame: Scored(np.full(2, np.nan, np.float32)))
    wait_for(lambda: run.live._tally.counts["invalid"] > 50)
    run.end()
    assert manager.fed() == 0
    assert "READY=1" not in manager.lines


def test_a_source_that_is_known_to_be_gone_feeds_it(address: str, manager: Manager) -> None:
    """As long as the loop turns: a restart would not plug the camera in."""
    run = Run(address, 5, brightness)
    wait_for(lambda: run.live._captures.states()["cam"] == "reconnecting")
    fed = manager.fed()
    wait_for(lambda: manager.fed() > fed + 4)
    run.end()


def test_waiting_for_a_source_at_the_start_is_ready(address: str, manager: Manager) -> None:
    """Or systemd would give the start up."""
    run = Run(address, 0, brightness, wait=True)
    wait_for(lambda: "READY=1" in manager.lines)
    wait_for(lambda: "STATUS=waiting for cam" in manager.lines)
    wait_for(lambda: manager.fed() >= 3)
    run.end()


def test_one_live_source_that_gives_no_labels_is_not_hidden_by_one_that_is_gone(address: str, manager: Manager) -> None:
    """Every source must be down for health alone to count."""
    watchdog = Watchdog(address, PERIOD_S)
    watchdog.emit(Health(0, {"a": "live", "b": "reconnecting"}, 0))
    watchdog.emit(Health(0, {}, 0))
    watchdog.close()
    wait_for(lambda: "STOPPING=1" in manager.lines)
    assert manager.fed() == 0
    another = Watchdog(address, PERIOD_S)
    another.emit(Health(0, {"a": "stalled", "b": "reconnecting"}, 0))
    another.close()
    wait_for(lambda: manager.fed() == 1)


def test_a_manager_that_is_gone_is_no_trouble(tmp_path: Path) -> None:
    """And it is told that the run is ready when it returns."""
    path = str(tmp_path / "notify")
    watchdog = Watchdog(path, None)
    down = Health(0, {"cam": "reconnecting"}, 0)
    watchdog.emit(down)
    manager = Manager(path)
    watchdog.emit(down)
    wait_for(lambda: "READY=1" in manager.lines)
    watchdog.close()
    watchdog.close()
    assert manager.fed() == 0
    manager.close()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_period_is_that_of_this_process(environment: dict[str, str], expected: float | None) -> None:
    """As sd_watchdog_enabled(3) says."""
    assert period(environment) == expected


def test_without_a_manager_there_is_nothing_to_tell() -> None:
    """No socket named, or one of a kind that is not known."""
    assert open_watchdog({}, GateSection()) is None
    assert open_watchdog({"NOTIFY_SOCKET": "vsock:2:1"}, GateSection()) is None


def test_a_gate_that_lets_too_few_frames_pass_is_refused() -> None:
    """It would have the service ended every half minute for seeing a still scene."""
    environment = {"NOTIFY_SOCKET": "@nobody", "WATCHDOG_USEC": "30000000"}
    with pytest.raises(ConfigError, match=r"gate.refresh_s: frames would be classified 60 s apart.*for 30 s \(WatchdogSec\)"):
        open_watchdog(environment, GateSection(motion=0.01))
    with pytest.raises(ConfigError, match=r"gate\.max_fps: frames would be classified 20 s apart"):
        open_watchdog(environment, GateSection(max_fps=0.05))
    for gate in (GateSection(motion=0.01, refresh_s=10), GateSection(), GateSection(max_fps=1)):
        watchdog = open_watchdog(environment, gate)
        assert watchdog is not None
        watchdog.close()
