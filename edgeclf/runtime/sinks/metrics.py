"""Prometheus page: counts, times and the device's health at http://host:port/metrics; by prometheus-client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from edgeclf.core.errors import ConfigError, MissingExtra
from edgeclf.core.live_settings import METRICS_PORT, host_and_port
from edgeclf.runtime.decision import INVALID
from edgeclf.runtime.events import Event, Health, Seen, Skipped, SourceChanged

BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
MOST_SERIES = 500  # of edgeclf_labels_total; labels that come later are counted together
OTHERS = "(others)"
CLIENTS = 8
CLIENT_S = 5.0


class Metrics:
    """A writer that counts events in a registry of its own. What the machine does not say has no metric."""

    lost = 0

    def __init__(self, address: str, model: str, sources: Sequence[str], version: str) -> None:
        """Serves the page at `host:port`. Raises MissingExtra, and ConfigError when that cannot be listened on."""
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingExtra.for_extra("metrics", "--metrics needs prometheus-client") from error
        self.registry = CollectorRegistry()
        self._new_gauge = Gauge
        own, source = self.registry, ["source"]
        self._frames = Counter("edgeclf_frames", "Frames classified.", source, registry=own)
        self._labels = Counter("edgeclf_labels", "Answers of single frames.", ["source", "label"], registry=own)
        self._changes = Counter("edgeclf_changes", "Answers that lasted.", source, registry=own)
        self._invalid = Counter("edgeclf_invalid", "Frames for which the model gave no numbers.", source, registry=own)
        self._skipped = Counter("edgeclf_skipped", "Frames that were broken or could not be classified.", source, registry=own)
        self._up = Gauge("edgeclf_source_up", "Whether the source is live.", source, registry=own)
        self._stages = Histogram(
            "edgeclf_stage_seconds", "What one frame cost, by stage.", ["stage"], buckets=BUCKETS_S, registry=own
        )
        self._lost = Counter("edgeclf_lost_messages", "Messages that slow sinks lost.", ["sink"], registry=own)
        Gauge("edgeclf_info", "What runs.", ["model", "version"], registry=own).labels(model, version).set(1)
        self._gauges: dict[str, Any] = {}
        self._series: set[tuple[str, str]] = set()
        self._lost_before: dict[str, int] = {}
        self._compared = self._agreed = 0
        for name in sources:
            self._up.labels(name).set(0)
            for counter in (self._frames, self._changes, self._invalid, self._skipped):
                counter.labels(name)
        self.page = Page(self.registry, address)

    def close(self) -> None:
        self.page.end()

    def write(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Seen):
                self._count(event)
            elif isinstance(event, SourceChanged):
                self._up.labels(event.source).set(event.state == "live")
            elif isinstance(event, Skipped):
                self._skipped.labels(event.source).inc()
            else:
                self._measure(event)

    def _count(self, seen: Seen) -> None:
        source, label = seen.source, seen.decision.label
        self._frames.labels(source).inc()
        if label == INVALID:
            self._invalid.labels(source).inc()
        else:
            self._labels.labels(*self._bounded(source, label)).inc()
        if seen.decision.changed:
            self._changes.labels(source).inc()
        stages = seen.stages
        for stage in ("decode", "resize", "invoke", "decide", "age"):
            self._stages.labels(stage).observe(getattr(stages, f"{stage}_ms") / 1000)
        self._gauge("edgeclf_fps", "Frames classified a second, of all sources together.", seen.fps)
        if seen.other:
            self._compared += 1
            self._agreed += seen.other.agrees
            help_text = "Share of the frames on which the model compared with agreed, since the start."
            self._gauge("edgeclf_agreement", help_text, self._agreed / self._compared)

    def _bounded(self, source: str, label: str) -> tuple[str, str]:
        if (source, label) not in self._series:
            if len(self._series) >= MOST_SERIES:
                return source, OTHERS
            self._series.add((source, label))
        return source, label

    def _measure(self, health: Health) -> None:
        self._gauge("edgeclf_memory_bytes", "Resident memory of the process.", health.memory_bytes)
        self._gauge("edgeclf_cpu_ratio", "Share of one core that the process uses.", health.cpu_share)
        self._gauge("edgeclf_temperature_celsius", "Temperature of the processor.", health.temperature_c)
        clock = health.clock_mhz
        self._gauge("edgeclf_clock_hertz", "Clock of the processor.", None if clock is None else clock * 1e6)
        self._gauge("edgeclf_throttled", "Whether the board's firmware throttles it now.", bool(health.throttled))
        for sink, lost in health.lost_messages.items():
            self._lost.labels(sink).inc(max(0, lost - self._lost_before.get(sink, 0)))
            self._lost_before[sink] = lost
        for source, state in health.states.items():
            self._up.labels(source).set(state == "live")

    def _gauge(self, name: str, help_text: str, value: float | None) -> None:
        if value is None:
            return
        if name not in self._gauges:
            self._gauges[name] = self._new_gauge(name, help_text, registry=self.registry)
        self._gauges[name].set(value)


class Page(ThreadingMixIn, WSGIServer):
    """Serves the metrics to at most CLIENTS at once; others are turned away, silent ones after CLIENT_S."""

    daemon_threads = True
    request_queue_size = 4 * CLIENTS

    def __init__(self, registry: Any, address: str) -> None:
        """Raises ConfigError when the address cannot be listened on."""
        from prometheus_client import make_wsgi_app

        host, port = host_and_port(address, METRICS_PORT)
        try:
            family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            self.address_family = family
            super().__init__((str(where[0]), port), _Handler)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"--metrics {host}:{port}: cannot be listened on: {reason}; choose another port") from error
        self.set_app(make_wsgi_app(registry))
        self._free = threading.BoundedSemaphore(CLIENTS)
        threading.Thread(target=self.serve_forever, name="edgeclf-metrics", daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}/metrics"

    def server_bind(self) -> None:
        """Without HTTPServer's question to the name server for this host's name, which can take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away or is silent is not worth a traceback."""

    def end(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
