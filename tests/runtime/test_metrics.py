"""Metrics: what Prometheus reads, in bounded space, and clients that do not behave."""

from __future__ import annotations

import contextlib
import math
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="prometheus-client is not installed")

from broker import free_port, wait_for
from prometheus_client.parser import text_string_to_metric_families

from edgeclf.core.errors import ConfigError
from edgeclf.runtime.decision import INVALID, Decision
from edgeclf.runtime.events import Event, Health, Other, Seen, Skipped, SourceChanged, Stages
from edgeclf.runtime.sinks import metrics as module
from edgeclf.runtime.sinks.metrics import CLIENTS, MOST_SERIES, Metrics


def seen(label: str = "cat", changed: bool = False, source: str = "cam", other: Other | None = None) -> Seen:
    decision = Decision(label, 0.9, "cat", changed, (("cat", 0.9),))
    return Seen(0.0, source, 1, decision, Stages(0.05, 0.3, 4.0, 0.01, 40.0), 29.5, "", other)


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics(str(free_port()), "cats-dogs", ("cam", 'a "b"\n'), "1.2")
    yield metrics
    metrics.close()


def read(metrics: Metrics, *events: Event) -> dict[tuple[str, ...], float]:
    """The page after these events: name and label values → value."""
    metrics.write(events)
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics.page.server_port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, *sample.labels.values()): sample.value for sample in samples}


def test_frames_labels_and_changes_are_counted_by_source(metrics: Metrics) -> None:
    """Invalid and skipped frames apart; sources are there from the start, with 0."""
    page = read(metrics, seen(changed=True), seen("dog"), seen(), seen(INVALID), Skipped(0, "cam", "why"))
    assert page["edgeclf_frames_total", "cam"] == 4
    assert page["edgeclf_labels_total", "cat", "cam"] + page["edgeclf_labels_total", "dog", "cam"] == 3
    assert page["edgeclf_changes_total", "cam"] == 1
    assert page["edgeclf_invalid_total", "cam"] == 1
    assert page["edgeclf_skipped_total", "cam"] == 1
    assert page["edgeclf_frames_total", 'a "b"\n'] == 0
    assert ("edgeclf_labels_total", INVALID, "cam") not in page
    assert page["edgeclf_info", "cats-dogs", "1.2"] == 1


def test_stages_are_histograms_in_seconds_from_a_tenth_of_a_millisecond(metrics: Metrics) -> None:
    """Each frame counts once in each."""
    page = read(metrics, seen(), seen())
    assert page["edgeclf_stage_seconds_count", "invoke"] == 2
    assert math.isclose(page["edgeclf_stage_seconds_sum", "age"], 0.08)
    buckets = {
        labels[0]: value
        for (name, *labels), value in page.items()
        if name == "edgeclf_stage_seconds_bucket" and "invoke" in labels
    }
    assert buckets["0.0025"] == 0
    assert buckets["0.005"] == 2
    assert page["edgeclf_stage_seconds_bucket", "0.0001", "decode"] == 2


def test_sources_are_up_while_they_are_live(metrics: Metrics) -> None:
    """By their changes, and by each health message."""
    assert read(metrics)["edgeclf_source_up", "cam"] == 0
    assert read(metrics, SourceChanged(0, "cam", "live", ""))["edgeclf_source_up", "cam"] == 1
    assert read(metrics, SourceChanged(0, "cam", "stalled", ""))["edgeclf_source_up", "cam"] == 0
    assert read(metrics, Health(0, {"cam": "live"}, 1))["edgeclf_source_up", "cam"] == 1


def test_the_device_is_measured_where_it_says_something(metrics: Metrics) -> None:
    """What is not known has no sample: a zero would be a lie."""
    assert not [key for key in read(metrics, Health(0, {}, 1)) if "temperature" in key[0] or "memory" in key[0]]
    page = read(metrics, Health(0, {}, 1, 50 << 20, 0.75, 61.5, 1500.0, ("under-voltage",), "", {"jsonl": 7}))
    expected = {"memory_bytes": 50 << 20, "cpu_ratio": 0.75, "temperature_celsius": 61.5, "clock_hertz": 1.5e9, "throttled": 1}
    assert {name: page[f"edgeclf_{name}",] for name in expected} == expected
    page = read(metrics, Health(0, {}, 1, lost_messages={"jsonl": 9}))
    assert page["edgeclf_lost_messages_total", "jsonl"] == 9
    assert page["edgeclf_throttled",] == 0


def test_agreement_with_the_model_compared_with_is_a_share(metrics: Metrics) -> None:
    """There only when there is such a model."""
    assert ("edgeclf_agreement",) not in read(metrics, seen())
    page = read(metrics, *[seen(other=Other("cat", 0.9, agrees, 5.0)) for agrees in (True, True, True, False)])
    assert page["edgeclf_agreement",] == 0.75


def test_a_thousand_labels_do_not_make_a_thousand_series_a_source(metrics: Metrics) -> None:
    """The first ones have their own, later ones are counted together."""
    page = read(metrics, *[seen(f"label {i}") for i in range(MOST_SERIES + 100)] * 2)
    own = [key for key in page if key[0] == "edgeclf_labels_total"]
    assert len(own) == MOST_SERIES + 1
    assert page["edgeclf_labels_total", "(others)", "cam"] == 200


def test_two_runs_in_one_process_do_not_share_their_counts(metrics: Metrics) -> None:
    """Each has a registry of its own."""
    another = Metrics(str(free_port()), "cats-dogs", ("cam",), "1.2")
    assert read(another, seen())["edgeclf_frames_total", "cam"] == 1
    assert read(metrics)["edgeclf_frames_total", "cam"] == 0
    another.close()


def test_a_port_that_is_taken_is_one_line(metrics: Metrics) -> None:
    """Also a host that is not of this machine."""
    port = metrics.page.server_port
    with pytest.raises(ConfigError, match=f"--metrics 127.0.0.1:{port}: cannot be listened on: Address already in use"):
        Metrics(str(port), "m", ("cam",), "1")
    with pytest.raises(ConfigError, match="cannot be listened on"):
        Metrics("192.0.2.1:9464", "m", ("cam",), "1")


def test_only_this_machine_can_read_unless_told_otherwise(metrics: Metrics) -> None:
    """Loopback where no host is named."""
    assert metrics.page.server_address[0] == "127.0.0.1"


def test_one_client_too_many_is_turned_away(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are few, and free again when their clients leave."""
    monkeypatch.setattr(module._Handler, "timeout", 60)
    address = ("127.0.0.1", metrics.page.server_port)
    with contextlib.ExitStack() as silent:
        for _ in range(CLIENTS):
            silent.enter_context(socket.create_connection(address)).sendall(b"GET /metr")
        wait_for(lambda: metrics.page._free._value == 0)
        with socket.create_connection(address) as late:
            late.settimeout(30)
            assert late.recv(1) == b""
    wait_for(lambda: metrics.page._free._value == CLIENTS)
    assert read(metrics, seen())["edgeclf_frames_total", "cam"] == 1


def test_a_silent_client_is_left_after_a_while(metrics: Metrics, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """And nothing is printed about it."""
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", metrics.page.server_port)) as silent:
        silent.settimeout(30)
        silent.sendall(b"GET /metr")
        assert silent.recv(1) == b""
    wait_for(lambda: metrics.page._free._value == CLIENTS)
    assert capsys.readouterr().err == ""
