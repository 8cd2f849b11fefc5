"""Monitor: reads the device's vitals in a thread of its own, says when it is hot or throttled, and sums them up at the end."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from edgeclf.runtime.device.cooling import Cooling
from edgeclf.runtime.device.vitals import Device, Vitals, complaints, peak_bytes, read_vitals
from edgeclf.runtime.events import Health
from edgeclf.runtime.sources.capture import CaptureState

INTERVAL_S = 2.0
CLOSE_S = 0.2  # a run must end soon, also while /sys hangs
STALE_S = 10.0  # older readings are not told any more: /sys itself may hang
AGAIN_S = 60.0  # the same complaint is not made again before it has been away so long


class DeviceMonitor:
    """Reads every `interval_s` in its own thread, so that the loop never waits; `warn` is told, from that thread, of heat
    and of what the firmware reports, once each until it has been away for AGAIN_S."""

    def __init__(
        self,
        read: Callable[[], Vitals] = read_vitals,
        warn: Callable[[str], None] = lambda message: None,
        interval_s: float = INTERVAL_S,
        cooling: Cooling | None = None,
    ) -> None:
        self._read, self._warn, self._interval_s, self.cooling = read, warn, interval_s, cooling
        self._began_s, self._began_cpu_s = time.monotonic(), time.process_time()
        self._told_s = self._began_s
        self._latest: tuple[float, Vitals, float] | None = None  # when, what, and the share of a core since the one before
        self._warnings: deque[str] = deque()
        self._last_seen: dict[str, float] = {}
        self._hottest: float | None = None
        self._lowest: float | None = None
        self._throttled: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="monitor", daemon=True)
        self._thread.start()

    def is_due(self) -> bool:
        """As `Monitor.is_due`: every `interval_s`, whether the readings come or not."""
        return time.monotonic() - self._told_s >= self._interval_s

    def news(self, states: Mapping[str, CaptureState], labelled: int, lost: Mapping[str, int]) -> Health:
        """As `Monitor.news`."""
        now = self._told_s = time.monotonic()
        latest = self._latest
        warning = "; ".join(self._warnings.popleft() for _ in range(len(self._warnings)))
        if latest is None or now - latest[0] > STALE_S:
            return Health(time.time(), dict(states), labelled, warning=warning, lost_messages=dict(lost))
        _, vitals, share = latest
        return Health(
            time.time(), dict(states), labelled, vitals.memory_bytes, share, vitals.temperature_c, vitals.clock_mhz,
            vitals.throttle.now if vitals.throttle else (), warning, dict(lost),
        )  # fmt: skip

    def close(self) -> None:
        """End the thread; one that is stuck in a read is left behind, which hinders nothing."""
        if not self._ending.is_set():
            self._ending.set()
            self._thread.join(timeout=CLOSE_S)

    def device(self) -> Device:
        """What was seen so far."""
        seconds = time.monotonic() - self._began_s
        share = (time.process_time() - self._began_cpu_s) / seconds if seconds > 0 else None
        return Device(peak_bytes(), share, self._hottest, self._lowest, tuple(sorted(self._throttled)))

    def _work(self) -> None:
        before_s, before_cpu_s = self._began_s, self._began_cpu_s
        while True:
            vitals = self._read()
            now, cpu_s = time.monotonic(), time.process_time()
            self._latest = (now, vitals, (cpu_s - before_cpu_s) / max(now - before_s, 1e-3))
            before_s, before_cpu_s = now, cpu_s
            self._keep(vitals)
            for complaint in self._new_complaints(vitals, now):
                self._warnings.append(complaint)
                self._warn(complaint)
            if self.cooling:
                self.cooling.heed(vitals.temperature_c, now)
            if self._ending.wait(self._interval_s):
                return

    def _keep(self, vitals: Vitals) -> None:
        if vitals.temperature_c is not None:
            self._hottest = max(vitals.temperature_c, self._hottest or vitals.temperature_c)
        if vitals.clock_mhz is not None:
            self._lowest = min(vitals.clock_mhz, self._lowest or vitals.clock_mhz)
        if vitals.throttle:
            self._throttled.update(vitals.throttle.now)

    def _new_complaints(self, vitals: Vitals, now: float) -> list[str]:
        found = complaints(vitals)
        new = [words for what, words in found.items() if now - self._last_seen.get(what, -AGAIN_S) >= AGAIN_S]
        self._last_seen.update(dict.fromkeys(found, now))
        return new
