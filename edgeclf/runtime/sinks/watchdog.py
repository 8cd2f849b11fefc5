"""systemd: tells the service manager that the run is ready, how it does and that it lives; nothing without NOTIFY_SOCKET.

The protocol is that of sd_notify(3): datagrams of KEY=VALUE lines to a Unix socket, which may be an abstract one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping

from edgeclf.core.errors import ConfigError
from edgeclf.core.image import Pixels
from edgeclf.core.live_settings import GateSection
from edgeclf.core.text import printable
from edgeclf.runtime.decision import INVALID
from edgeclf.runtime.events import Event, Health, Seen, SourceChanged

STATUS_S = 5.0
STATUS_LENGTH = 200
FEEDS = 3  # so often a while is said that the run lives, where the manager wants to hear it once; sd_notify asks for two


class Watchdog:
    """A sink that feeds systemd's watchdog from the loop's own thread: a loop that hangs cannot feed it.

    It is fed when a frame got a valid label, or when the device's health is told while every source is known to be down. So
    a run that lives but classifies nothing of what its cameras give is ended and started afresh.
    """

    name = "systemd"

    def __init__(self, address: str, period_s: float | None) -> None:
        """`address` as in NOTIFY_SOCKET; `period_s` is the time after which systemd ends the run, None is never."""
        self.lost = 0
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)
        self._every_s = None if period_s is None else period_s / FEEDS
        self._fed_s = self._status_s = -float("inf")
        self._ready = self._closed = False

    def emit(self, event: Event, image: Pixels | None = None) -> None:
        if isinstance(event, Seen):
            if event.decision.label != INVALID:
                self._live(lambda: f"{event.decision.stable} {event.decision.score:.0%} at {event.fps:.1f} fps")
        elif isinstance(event, Health):
            if event.states and all(state != "live" for state in event.states.values()):
                self._live(lambda: f"waiting for {', '.join(event.states)}")
        elif isinstance(event, SourceChanged) and event.state == "reconnecting" and not self._ready:
            self._live(lambda: f"waiting for {event.source}")

    def close(self) -> bool:
        if not self._closed:
            self._closed = True
            self._send("STOPPING=1\nSTATUS=ending")
            self._socket.close()
        return True

    def _live(self, status: Callable[[], str]) -> None:
        now = time.monotonic()
        ready = not self._ready
        feed = self._every_s is not None and now - self._fed_s >= self._every_s
        tell = now - self._status_s >= STATUS_S
        if not (ready or feed or tell):
            return
        lines = ["READY=1"] * ready + ["WATCHDOG=1"] * feed + [f"STATUS={printable(status())[:STATUS_LENGTH]}"] * tell
        if self._send("\n".join(lines)):
            self._ready = True
            self._fed_s = now if feed else self._fed_s
            self._status_s = now if tell else self._status_s

    def _send(self, text: str) -> bool:
        """False when the manager is gone or slow, which is no trouble of the run's: it is told again with the next event."""
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            return False
        return True


def period(environment: Mapping[str, str]) -> float | None:
    """Seconds after which systemd ends this process when it hears nothing; None when it does not watch it."""
    micros, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not micros.isdecimal() or int(micros) == 0 or (process and process != str(os.getpid())):
        return None
    return int(micros) / 1e6


def open_watchdog(environment: Mapping[str, str], gate: GateSection) -> Watchdog | None:
    """The sink, when this process was started by systemd as a service that notifies.

    Raises ConfigError when the gate lets pass too few frames for the watchdog to be fed in time.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not hasattr(socket, "AF_UNIX"):
        return None
    period_s = period(environment)
    apart_s = max(gate.refresh_s if gate.motion else 0.0, 1 / gate.max_fps if gate.max_fps else 0.0)
    if period_s is not None and apart_s >= period_s / 2:
        what = "refresh_s" if gate.motion and apart_s == gate.refresh_s else "max_fps"
        raise ConfigError(
            f"gate.{what}: frames would be classified {apart_s:g} s apart, but systemd ends a service that gives no label for "
            f"{period_s:g} s (WatchdogSec); let them be at most a third of that apart"
        )
    return Watchdog(address, period_s)
