"""MQTT sink: tells a broker of states, changes and health, whatever becomes of the broker; by paho-mqtt."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeclf.core.addresses import Address, broker_address, secret
from edgeclf.core.errors import ConfigError, MissingExtra
from edgeclf.core.image import Pixels
from edgeclf.core.live_settings import MqttSection
from edgeclf.runtime.decision import INVALID
from edgeclf.runtime.events import Event, Health, Seen, Skipped, SourceChanged, record
from edgeclf.runtime.sinks import mqtt_messages as messages
from edgeclf.runtime.sinks.mqtt_messages import OFFLINE, ONLINE, Naming
from edgeclf.runtime.sinks.telling import Complaints

PASSWORD = "EDGECLF_MQTT_PASSWORD"
IN_FLIGHT = 20  # messages that the broker has not confirmed; what paho sends at once
KEEPALIVE_S = 30
LONGEST_WAIT_S = 30  # between two attempts to connect; paho doubles from one second
CONNECT_S = 5.0
FLUSH_S = 0.6
CLOSE_S = 1.0
NAP_S = 0.5
EVENTLY, RETAINED = 1, 0  # qualities of service: what is retained is sent again at the next connection anyway


class Mqtt:
    """A sink whose own thread hands messages to paho's, which does the network.

    Retained topics (availability, states, health, discovery) hold the newest only, and are told again at each connection.
    Events wait for the broker; of more than `queue` the oldest are lost and counted. The last will says `offline`.
    """

    name = "mqtt"

    def __init__(
        self, client: Any, address: Address, names: Naming, section: MqttSection, version: str, warn: Callable[[str], None]
    ):
        """`client` is a paho client that is not connected yet; see `open_mqtt`."""
        self._client, self._address, self._names, self._section = client, address, names, section
        self._complaints = Complaints(warn)
        self._coming: deque[Event] = deque()
        self._told: deque[tuple[str, Any]] = deque()  # by paho's thread: connected, lost, refused, failed, sent
        self._wake = threading.Condition()
        self._ended_s = 0.0
        self._lost_coming = self._lost_waiting = 0
        self._due_s: dict[str, float] = {}
        self._alarm: tuple[str, tuple[str, ...]] = ("", ())
        self._fps = 0.0
        # What follows is of this sink's own thread.
        self._connected = self._refused = False
        self._since_s: dict[str, float] = {}
        self._retained = {topic: messages.payload(value) for topic, value in messages.discovery(names, version).items()}
        self._fresh: dict[str, None] = {}  # retained topics that the broker has not been told of, in order
        self._waiting: deque[tuple[str, str]] = deque()
        self._unsent: set[int] = set()
        self._unconfirmed: set[int] = set()
        self._thread = threading.Thread(target=self._work, name="edgeclf-sink-mqtt", daemon=True)

    def start(self) -> None:
        """Begin to connect; returns at once, whether there is a broker or not."""
        client = self._client
        client.will_set(self._names.availability, OFFLINE, qos=EVENTLY, retain=True)
        client.on_connect = lambda _c, _u, _f, reason, _p: self._tell(
            "refused" if reason.is_failure else "connected", str(reason)
        )
        client.on_disconnect = lambda _c, _u, _f, reason, _p: self._tell("lost", str(reason))
        # paho calls this while it handles the error, and says nothing of it.
        client.on_connect_fail = lambda _c, _u: self._tell("failed", sys.exc_info()[1])
        client.on_publish = lambda _c, _u, mid, _r, _p: self._tell("sent", mid)
        client.connect_async(self._address.host, self._address.port, KEEPALIVE_S)
        client.loop_start()
        self._thread.start()

    @property
    def topic(self) -> str:
        """What everything that is told stands under."""
        return self._names.base

    @property
    def lost(self) -> int:
        return self._lost_coming + self._lost_waiting

    def emit(self, event: Event, image: Pixels | None = None) -> None:
        if not self._is_due(event):
            return
        with self._wake:
            if len(self._coming) >= self._section.queue:
                self._coming.popleft()
                self._lost_coming += 1
            self._coming.append(event)
            self._wake.notify_all()

    def end(self) -> None:
        with self._wake:
            self._ended_s = self._ended_s or time.monotonic()
            self._wake.notify_all()

    def close(self) -> bool:
        """Says `offline`, for at most CLOSE_S."""
        self.end()
        self._thread.join(max(0.0, self._ended_s + CLOSE_S - time.monotonic()))
        return not self._thread.is_alive()

    def _is_due(self, event: Event) -> bool:
        """Changes at once, anything else now and then; by the loop's thread."""
        if isinstance(event, Skipped):
            return False
        if isinstance(event, SourceChanged):
            return True
        now, changed = time.monotonic(), False
        if isinstance(event, Seen):
            self._fps = event.fps
            if event.decision.label == INVALID:
                return False
            key, changed = event.source, event.decision.changed
        else:
            key, alarm = "", (event.warning, event.throttled)
            changed, self._alarm = alarm != self._alarm, alarm
        if not changed and now < self._due_s.get(key, 0.0):
            return False
        self._due_s[key] = now + self._section.every_s
        return True

    # What follows runs in paho's thread.

    def _tell(self, what: str, detail: Any) -> None:
        with self._wake:
            self._told.append((what, detail))
            self._wake.notify_all()

    # What follows runs in the sink's own thread.

    def _work(self) -> None:
        while True:
            with self._wake:
                if not (self._coming or self._told or self._ended_s):
                    self._wake.wait(NAP_S)
                told, coming, closing = list(self._told), list(self._coming), self._ended_s > 0
                self._told.clear()
                self._coming.clear()
            self._take(told, coming)
            if closing:
                self._end()
                return

    def _take(self, told: list[tuple[str, Any]], coming: list[Event]) -> None:
        for what, detail in told:
            self._hear(what, detail)
        for event in coming:
            self._add(event)
        self._pump()

    def _hear(self, what: str, detail: Any) -> None:
        where = str(self._address)
        if what == "sent":
            self._unsent.discard(detail)
            self._unconfirmed.discard(detail)
            return
        self._unsent.clear()  # paho forgets them with the connection
        if what == "connected":
            self._connected = True
            self._complaints.well()
            self._retained[self._names.availability] = ONLINE
            self._fresh = dict.fromkeys(self._retained)
        elif what == "refused":
            self._refused = True  # and the connection will be lost next
            self._complaints.say(
                "refused", f"mqtt: {where} refused the connection: {detail}; check the user in the address and {PASSWORD}"
            )
        elif what == "lost" and self._refused:
            self._refused = False
        else:
            lost = "the connection was lost" if self._connected else "does not answer as a broker does"
            trouble = lost if what == "lost" else f"cannot be reached: {getattr(detail, 'strerror', None) or detail}"
            self._connected = False
            self._complaints.say("away", f"mqtt: {where}: {trouble}; trying again, results wait")

    def _add(self, event: Event) -> None:
        names = self._names
        if isinstance(event, Seen):
            source, decision = event.source, event.decision
            if decision.changed or source not in self._since_s:
                self._since_s[source] = event.time_s
            self._retain(names.topic(source, "state"), messages.state(event, self._since_s[source]))
            if decision.changed:
                self._queue(names.topic(source, "events"), record(event))
        elif isinstance(event, SourceChanged):
            self._retain(names.topic(event.source, "source"), messages.source(event))
            self._queue(names.topic(event.source, "events"), record(event))
        elif isinstance(event, Health):
            self._retain(names.health, messages.health(event, self._fps))

    def _retain(self, topic: str, value: Mapping[str, Any]) -> None:
        self._retained[topic] = messages.payload(value)
        self._fresh[topic] = None

    def _queue(self, topic: str, value: Mapping[str, Any]) -> None:
        if len(self._waiting) >= self._section.queue:
            self._waiting.popleft()
            self._lost_waiting += 1
        self._waiting.append((topic, messages.payload(value)))

    def _pump(self) -> None:
        """Hand to paho what it can send now; so much at most waits inside it."""
        while self._connected and len(self._unsent) + len(self._unconfirmed) < IN_FLIGHT:
            if self._fresh:
                topic = next(iter(self._fresh))
                info = self._client.publish(topic, self._retained[topic], RETAINED, retain=True)
                if info.rc:
                    return
                del self._fresh[topic]
                self._unsent.add(info.mid)
            elif self._waiting:
                self._unconfirmed.add(self._client.publish(*self._waiting.popleft(), EVENTLY).mid)
            else:
                return

    def _end(self) -> None:
        self._flush(lambda: not (self._fresh or self._waiting or self._unsent or self._unconfirmed))
        if self._connected:
            farewell = dict.fromkeys(self._retained, "") if self._section.forget else {self._names.availability: OFFLINE}
            self._unconfirmed |= {
                self._client.publish(topic, payload, EVENTLY, retain=True).mid for topic, payload in farewell.items()
            }
            self._flush(lambda: not self._unconfirmed)
        self._lost_waiting += len(self._waiting) + len(self._unconfirmed)
        self._client.disconnect()
        self._client.loop_stop()

    def _flush(self, done: Callable[[], bool]) -> None:
        limit = time.monotonic() + FLUSH_S / 2
        while self._connected and not done() and (left := limit - time.monotonic()) > 0:
            with self._wake:
                if not self._told:
                    self._wake.wait(left)
                told = list(self._told)
                self._told.clear()
            self._take(told, [])


def open_mqtt(section: MqttSection, model: str, sources: Sequence[str], warn: Callable[[str], None]) -> Mqtt:
    """The sink that the settings ask for, connecting. Raises ConfigError and MissingExtra, but not for want of a broker."""
    try:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError as error:
        raise MissingExtra.for_extra("mqtt", "--mqtt needs paho-mqtt 2") from error
    from edgeclf import __version__

    address = broker_address(section.address)
    client = Client(CallbackAPIVersion.VERSION2)
    client.reconnect_delay_set(1, LONGEST_WAIT_S)
    client.connect_timeout = CONNECT_S
    password = secret(PASSWORD, section.password_file) or address.password
    if address.user:
        client.username_pw_set(address.user, password or None)
    elif password:
        raise ConfigError(f"mqtt: there is a password but no user; name one in the address, as mqtt://USER@{address.netloc}")
    if address.scheme == "mqtts":
        _use_tls(client, section.ca_file)
    names = messages.naming(section, model, sources, messages.machine_id())
    mqtt = Mqtt(client, address, names, section, __version__, warn)
    mqtt.start()
    return mqtt


def _use_tls(client: Any, ca_file: str) -> None:
    """TLS with the broker's name and certificate checked, by the system's authorities or the given one."""
    try:
        client.tls_set(ca_certs=ca_file or None)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"mqtt: ca_file: {ca_file}: cannot be used as a certificate: {error}") from error
