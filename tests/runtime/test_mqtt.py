"""MQTT: what a broker is told, and that nothing about a broker can cost the loop anything; with a real mosquitto."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paho.mqtt.enums", reason="paho-mqtt 2 is not installed")

from broker import Broker, Listener, free_port, wait_for

from edgeclf.core.errors import ConfigError
from edgeclf.core.live_settings import MqttSection
from edgeclf.runtime.decision import INVALID, Decision
from edgeclf.runtime.events import Health, Seen, Skipped, SourceChanged, Stages
from edgeclf.runtime.sinks import mqtt_messages as messages
from edgeclf.runtime.sinks.mqtt import Mqtt, open_mqtt

MODEL = "cats-dogs"


def seen(label: str = "cat", changed: bool = False, source: str = "cam", time_s: float = 1_700_000_000.0) -> Seen:
    decision = Decision(label, 0.9, label, changed, ((label, 0.9), ("dog", 0.1)))
    return Seen(time_s, source, 1, decision, Stages(0, 1, 2, 0, 5), 29.97)


def health(**more: Any) -> Health:
    return Health(1_700_000_000.0, {"cam": "live"}, 7, 50 << 20, 0.5, 48.2, **more)


def section(port: int, **more: Any) -> MqttSection:
    return MqttSection(f"mqtt://127.0.0.1:{port}", name="shed", **more)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def listener(broker: Broker) -> Iterator[Listener]:
    listener = Listener(broker.port)
    yield listener
    listener.close()


@pytest.fixture
def opened() -> Iterator[Any]:
    """Sinks that are closed at the end."""
    sinks: list[Mqtt] = []

    def make(asked: MqttSection, sources: tuple[str, ...] = ("cam",)) -> tuple[Mqtt, list[str]]:
        warnings: list[str] = []
        sinks.append(open_mqtt(asked, MODEL, sources, warnings.append))
        return sinks[-1], warnings

    yield make
    for sink in sinks:
        sink.close()


def test_a_broker_is_told_of_states_changes_and_health(broker: Broker, listener: Listener, opened: Any) -> None:
    """States and health are retained, so that whoever comes later knows; changes are not."""
    sink, warnings = opened(section(broker.port))
    sink.emit(SourceChanged(0, "cam", "live", ""))
    sink.emit(seen("cat", True))
    sink.emit(health())
    state = wait_for(lambda: listener.ending("shed/state"))
    assert state == {
        "label": "cat",
        "score": 0.9,
        "since": "2023-11-14T22:13:20.000Z",
        "source": "cam",
        "time": "2023-11-14T22:13:20.000Z",
        "fps": 29.97,
    }
    assert wait_for(lambda: listener.ending("shed/health"))["temperature_c"] == 48.2
    wait_for(lambda: sum(topic == "edgeclf/shed/events" for topic, _, _ in list(listener.heard)) == 2)
    late = Listener(broker.port)
    wait_for(lambda: late.ending("shed/state") and late.ending("shed/health") and late.ending("shed/source"))
    assert late.ending("shed/availability") == "online"
    assert late.ending("shed/events") is None
    late.close()
    assert sink.close()
    wait_for(lambda: listener.ending("shed/availability") == "offline")
    assert (sink.lost, warnings) == (0, [])


def test_a_steady_answer_is_told_now_and_then_and_invalid_scores_never(opened: Any) -> None:
    """A thousand frames are one message; `since` stays that of the change."""
    sink, _ = opened(section(free_port()))
    for i in range(1000):
        sink.emit(seen(time_s=1_700_000_000.0 + i))
    for event in (seen(INVALID, True), Skipped(0, "cam", "broken")):
        sink.emit(event)
    assert len(sink._due_s) == 1
    assert sink._is_due(seen()) is False
    assert sink._is_due(seen("dog", True)) is True
    assert sink._is_due(health()) is True
    assert sink._is_due(health()) is False
    assert sink._is_due(health(throttled=("under-voltage",))) is True


def test_a_broker_that_comes_late_hears_everything_that_still_matters(tmp_path: Path, opened: Any) -> None:
    """Down at the start: one warning; then the newest state, and of the events the newest that may wait, in order."""
    broker = Broker(tmp_path)
    sink, warnings = opened(section(broker.port, queue=10))
    wait_for(lambda: warnings)
    for i in range(50):
        sink.emit(seen(f"label {i}", True))
        time.sleep(0.001)
    wait_for(lambda: not sink._coming)
    wait_for(lambda: len(sink._waiting) == 10 and "label 49" in sink._waiting[-1][1])
    assert [json.loads(text)["stable"] for _, text in sink._waiting] == [f"label {i}" for i in range(40, 50)]
    broker.start()
    listener = Listener(broker.port)
    assert wait_for(lambda: listener.ending("shed/state"))["label"] == "label 49"
    wait_for(lambda: not sink._waiting and not sink._unconfirmed)
    assert sink.lost == 40
    assert warnings == [
        f"mqtt: mqtt://127.0.0.1:{broker.port}: cannot be reached: Connection refused; trying again, results wait"
    ]
    listener.close()
    broker.stop()


def test_after_an_outage_all_that_is_retained_is_told_again(broker: Broker, opened: Any) -> None:
    """This broker forgets everything when it stops: what it knows afterwards was sent again."""
    sink, warnings = opened(section(broker.port))
    sink.emit(seen("cat", True))
    before = Listener(broker.port)
    wait_for(lambda: before.ending("shed/state"))
    before.close()
    broker.stop()
    wait_for(lambda: warnings)
    sink.emit(seen("dog", True))
    broker.start()
    after = Listener(broker.port)
    wait_for(lambda: (after.ending("shed/state") or {}).get("label") == "dog")
    wait_for(lambda: after.ending("shed/availability") == "online")
    wait_for(lambda: sum(topic.startswith("homeassistant/") for topic in list(after.latest)) == 7)
    after.close()
    assert warnings == [f"mqtt: mqtt://127.0.0.1:{broker.port}: the connection was lost; trying again, results wait"]


def test_a_refused_password_is_told_apart_from_a_broker_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said once, without the password; with the right one from its file the broker is told."""
    broker = Broker(tmp_path, {"keeper": "s3cr3t"})
    broker.start()
    address = f"mqtt://keeper@127.0.0.1:{broker.port}"
    warnings: list[str] = []
    monkeypatch.setenv("EDGECLF_MQTT_PASSWORD", "wr0ng")
    refused = open_mqtt(MqttSection(address, name="shed"), MODEL, ("cam",), warnings.append)
    wait_for(lambda: warnings)
    refused.emit(seen("cat", True))
    time.sleep(1.5)  # time for a second attempt
    refused.close()
    assert len(warnings) == 1
    assert "refused the connection: Not authorized" in warnings[0]
    assert "wr0ng" not in warnings[0]
    monkeypatch.delenv("EDGECLF_MQTT_PASSWORD")
    (tmp_path / "password").write_text("s3cr3t\n")
    asked = MqttSection(address, name="shed", password_file=str(tmp_path / "password"))
    sink = open_mqtt(asked, MODEL, ("cam",), warnings.append)
    sink.emit(seen("cat", True))
    listener = Listener(broker.port, "keeper", "s3cr3t")
    wait_for(lambda: listener.ending("shed/state"))
    assert sink.close()
    listener.close()
    broker.stop()
    assert len(warnings) == 1


def test_a_password_without_a_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brokers would."""
    monkeypatch.setenv("EDGECLF_MQTT_PASSWORD", "s3cr3t")
    with pytest.raises(ConfigError, match="a password but no user") as caught:
        open_mqtt(section(1), MODEL, ("cam",), print)
    assert "s3cr3t" not in str(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    try:
        subprocess.run([*command, *names], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl cannot make a certificate here")
    return cert, key


def test_a_certificate_that_nobody_vouches_for_is_refused_and_a_given_one_is_accepted(
    tmp_path: Path, certificate: tuple[Path, Path], opened: Any
) -> None:
    """With mqtts:// the broker is checked, always."""
    broker = Broker(tmp_path, tls=certificate)
    broker.start()
    address = f"mqtts://127.0.0.1:{broker.port}"
    _, warnings = opened(MqttSection(address, name="shed"))
    wait_for(lambda: warnings)
    assert "certificate verify failed" in warnings[0]
    trusted, well = opened(MqttSection(address, name="shed", ca_file=str(certificate[0])))
    wait_for(lambda: trusted._connected)
    assert well == []
    broker.stop()
    with pytest.raises(ConfigError, match=r"ca_file: .*cannot be used"):
        open_mqtt(MqttSection(address, ca_file=str(tmp_path / "missing")), MODEL, ("cam",), print)


def test_a_server_that_accepts_and_never_answers_costs_the_loop_nothing_and_closing_a_second(opened: Any) -> None:
    """Handing over a change takes microseconds, memory is bounded, and what could not be told is counted."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sink, _ = opened(section(silent.getsockname()[1], queue=16))
        began = time.monotonic()
        for i in range(5000):
            sink.emit(seen(f"label {i}", True))
        assert time.monotonic() - began < 2
        assert len(sink._coming) + len(sink._waiting) <= 32
        began = time.monotonic()
        sink.close()
        assert time.monotonic() - began < 2
    assert sink.lost == 5000


def test_a_server_that_is_no_broker_is_told(opened: Any) -> None:
    """It takes the connection and ends it, time after time; said once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken: list[int] = []

        def turn_away() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return
                taken.append(1)

        threading.Thread(target=turn_away, daemon=True).start()
        sink, warnings = opened(section(port))
        wait_for(lambda: len(taken) > 1 and warnings)
        sink.close()
        assert warnings == [f"mqtt: mqtt://127.0.0.1:{port}: does not answer as a broker does; trying again, results wait"]
        server.shutdown(socket.SHUT_RDWR)


class FrozenClient:
    """A paho client that is connected to a broker which confirms nothing."""

    def __init__(self) -> None:
        self.published: list[tuple[str, Any]] = []
        self.on_connect: Any = None

    def publish(self, topic: str, payload: Any, qos: int, retain: bool = False) -> Any:
        self.published.append((topic, payload))
        return type("Info", (), {"rc": 0, "mid": len(self.published)})

    def loop_start(self) -> None:
        reason = type("Reason", (), {"is_failure": False})()
        threading.Thread(target=self.on_connect, args=(self, None, None, reason, None)).start()

    def will_set(self, *_: object, **__: object) -> None: ...

    connect_async = disconnect = loop_stop = will_set


def test_a_broker_that_confirms_nothing_is_not_sent_more_than_it_can_hold() -> None:
    """What is under way is bounded, and so is what waits; the newest wait."""
    client = FrozenClient()
    asked = section(1, queue=8, discovery="")
    sink = Mqtt(client, _address(), messages.naming(asked, MODEL, ("cam",), "id"), asked, "1", print)
    sink.start()
    wait_for(lambda: client.published)
    for i in range(60):
        sink.emit(seen(f"label {i}", True))
        wait_for(lambda: not sink._coming)
    wait_for(lambda: "label 59" in sink._waiting[-1][1])
    assert len(client.published) == 20
    assert len(sink._waiting) == 8
    sink.close()
    assert sink.lost >= 40


def _address() -> Any:
    from edgeclf.core.addresses import broker_address

    return broker_address("mqtt://broker")


def test_home_assistant_finds_a_label_a_score_a_source_and_the_device() -> None:
    """One description an entity, all of one device; identities are stable, different for each machine, and hashed."""
    asked = MqttSection("mqtt://h")
    names = messages.naming(asked, MODEL, ("cam",), "0123456789abcdef")
    described = messages.discovery(names, "1.2")
    kinds = sorted(topic.split("/")[1] for topic in described)
    assert kinds == ["binary_sensor"] * 2 + ["sensor"] * 5
    assert {topic.rsplit("/", 1)[1] for topic in described} == {"config"}
    assert len({config["unique_id"] for config in described.values()}) == 7
    assert {config["device"]["identifiers"][0] for config in described.values()} == {f"edgeclf_{names.device}"}
    assert "0123456789abcdef" not in json.dumps(described)
    assert messages.naming(asked, MODEL, ("cam",), "other").device != names.device
    assert messages.naming(asked, MODEL, ("cam",), "0123456789abcdef") == names
    label = next(config for config in described.values() if config["name"] == "Label")
    assert label["state_topic"] == f"edgeclf/cats-dogs-{names.device[:6]}/state"
    assert [place["topic"] for place in label["availability"]] == [names.availability, names.topic("cam", "source")]
    assert messages.discovery(messages.naming(MqttSection("mqtt://h", discovery=""), MODEL, ("cam",), "id"), "1") == {}


def test_home_assistant_reads_what_it_is_told() -> None:
    """Each value by its template, as Home Assistant would; what the machine does not say is None, which it knows."""
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed")
    names = messages.naming(MqttSection("mqtt://h", name="shed"), MODEL, ("cam",), "id")
    told = {
        names.health: messages.health(health(), 29.97),
        names.topic("cam", "state"): messages.state(seen(), 0.0),
        names.topic("cam", "source"): messages.source(SourceChanged(0, "cam", "stalled", "why")),
    }
    read = {}
    for config in messages.discovery(names, "1").values():
        value = json.loads(messages.payload(told[config["state_topic"]]))
        read[config["name"]] = jinja2.Template(config["value_template"]).render(value_json=value)
        for place in config["availability"][1:]:
            value = json.loads(messages.payload(told[place["topic"]]))
            assert jinja2.Template(place["value_template"]).render(value_json=value) == "offline"
    assert read == {
        "Label": "cat",
        "Score": "90.0",
        "Source": "OFF",
        "Temperature": "48.2",
        "Frames per second": "29.97",
        "Memory": "50.0",
        "Throttled": "OFF",
    }


def test_several_sources_have_topics_and_entities_of_their_own() -> None:
    """Names that become the same topic get a number; addresses become plain words."""
    names = messages.naming(MqttSection("mqtt://h", name="shed"), MODEL, ("rtsp://***@gate/1", "RTSP gate 1", "+/#"), "id")
    assert [names.topic(name, "state") for name in names.paths] == [
        "edgeclf/shed/rtsp-gate-1/state",
        "edgeclf/shed/rtsp-gate-1-2/state",
        "edgeclf/shed/source/state",
    ]
    described = messages.discovery(names, "1")
    assert len(described) == 4 + 3 * 3
    assert len({config["unique_id"] for config in described.values()}) == 13


def test_everything_that_a_broker_kept_can_be_taken_back(broker: Broker, listener: Listener, opened: Any) -> None:
    """With `forget`, nothing of the run is left at its end: an empty payload removes an entity from Home Assistant."""
    sink, _ = opened(section(broker.port, forget=True))
    sink.emit(seen("cat", True))
    sink.emit(health())
    wait_for(lambda: listener.ending("shed/health"))
    assert sink.close()
    wait_for(lambda: listener.ending("shed/availability") == "")
    late = Listener(broker.port)
    time.sleep(0.3)
    assert not any(retained for _, _, retained in late.heard)
    late.close()
