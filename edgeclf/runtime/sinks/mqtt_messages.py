"""What is told over MQTT: topics, payloads, and the descriptions by which Home Assistant finds the run. Pure functions.

Discovery: https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery, one description an entity.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeclf.core.live_settings import MqttSection
from edgeclf.core.text import printable
from edgeclf.runtime.events import Health, Seen, SourceChanged, record

ONLINE, OFFLINE = "online", "offline"
LONGEST_STATE = 255  # characters of a state in Home Assistant


@dataclass(frozen=True)
class Naming:
    """Where things are told. `base` is the topic of the run, `device` its identity, made from model and machine.

    `paths` is what stands between `base` and a source's own topics: nothing for a single source.
    """

    base: str
    discovery: str
    device: str
    name: str
    model: str
    paths: Mapping[str, str]

    @property
    def availability(self) -> str:
        return f"{self.base}/availability"

    @property
    def health(self) -> str:
        return f"{self.base}/health"

    def topic(self, source: str, what: str) -> str:
        """The topic of a source for its `state`, `events` or `source`."""
        return "/".join(filter(None, (self.base, self.paths.get(source, slug(source)), what)))


def naming(section: MqttSection, model: str, sources: Sequence[str], machine: str) -> Naming:
    """The names of a run of `model` on that machine; `machine` is hashed, as its identity is confidential (machine-id(5))."""
    called = section.name or model
    device = hmac.new(machine.encode(), f"edgeclf {model} {section.name}".encode(), hashlib.sha256).hexdigest()[:16]
    last = section.name or f"{slug(model)}-{device[:6]}"
    return Naming(f"{section.topic}/{last}", section.discovery, device, printable(called), printable(model), _paths(sources))


def machine_id(path: Path = Path("/etc/machine-id")) -> str:
    """What tells this machine from others: systemd's machine id, else the host's name."""
    try:
        return path.read_text(encoding="ascii").strip() or socket.gethostname()
    except (OSError, UnicodeDecodeError):
        return socket.gethostname()


def slug(text: str) -> str:
    """`text` as one level of a topic: lower-case ASCII letters, digits and single hyphens, at most 48."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or "source"


def _paths(sources: Sequence[str]) -> dict[str, str]:
    if len(sources) == 1:
        return {sources[0]: ""}
    paths: dict[str, str] = {}
    for source in sources:
        path, number = slug(source), 1
        while path in paths.values():
            number += 1
            path = f"{slug(source)}-{number}"
        paths[source] = path
    return paths


def state(seen: Seen, since_s: float) -> dict[str, Any]:
    """The lasting answer of a source, its probability in this frame, and since when (wall time) it has been the answer."""
    decision = seen.decision
    score = dict(decision.top).get(decision.stable, decision.score)
    return {
        "label": decision.stable,
        "score": round(score, 5),
        "since": record(replace(seen, time_s=since_s))["time"],
        "source": seen.source,
        "time": record(seen)["time"],
        "fps": round(seen.fps, 2),
    }


def health(event: Health, fps: float) -> dict[str, Any]:
    return {**record(event), "fps": round(fps, 2)}


def source(event: SourceChanged) -> dict[str, Any]:
    told = record(event)
    return {key: told[key] for key in ("time", "source", "state", "detail")}


def payload(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def discovery(names: Naming, version: str) -> dict[str, dict[str, Any]]:
    """Topic and description of each entity; empty when the naming has no prefix for discovery."""
    if not names.discovery:
        return {}
    device = {
        "identifiers": [f"edgeclf_{names.device}"],
        "name": names.name,
        "model": names.model,
        "manufacturer": "edgeclf",
        "sw_version": version,
    }
    described = {}
    for kind, key, own in [*_of_device(names), *(entity for name in names.paths for entity in _of_source(names, name))]:
        unique = f"edgeclf_{names.device}_{key}"
        common = {"availability": [{"topic": names.availability}], "unique_id": unique, "device": device}
        origin = {"origin": {"name": "edgeclf", "sw_version": version}}
        described[f"{names.discovery}/{kind}/{unique}/config"] = {**common, **origin, **own}
    return described


def _of_source(names: Naming, name: str) -> list[tuple[str, str, dict[str, Any]]]:
    path = names.paths[name]
    key = f"{path}_" if path else ""
    seen, status = names.topic(name, "state"), names.topic(name, "source")

    def called(what: str) -> str:
        return f"{printable(name)} {what.lower()}" if path else what

    # A label of a camera that is gone is none: it is available while the source is live.
    live = "{{ 'online' if value_json.state == 'live' else 'offline' }}"
    while_live = {
        "availability": [{"topic": names.availability}, {"topic": status, "value_template": live}],
        "availability_mode": "all",
        "state_topic": seen,
    }
    label = {
        "name": called("Label"),
        "value_template": f"{{{{ value_json.label[:{LONGEST_STATE}] }}}}",
        "json_attributes_topic": seen,
        "icon": "mdi:eye",
    }
    score = {
        "name": called("Score"),
        "value_template": "{{ (value_json.score * 100) | round(1) }}",
        "unit_of_measurement": "%",
        "state_class": "measurement",
        "icon": "mdi:percent",
    }
    connected = {
        "name": called("Source"),
        "state_topic": status,
        "value_template": "{{ 'ON' if value_json.state == 'live' else 'OFF' }}",
        "json_attributes_topic": status,
        "device_class": "connectivity",
        "entity_category": "diagnostic",
    }
    return [
        ("sensor", f"{key}label", {**while_live, **label}),
        ("sensor", f"{key}score", {**while_live, **score}),
        ("binary_sensor", f"{key}source", connected),
    ]


def _of_device(names: Naming) -> list[tuple[str, str, dict[str, Any]]]:
    """Diagnostics; what the machine does not say is None in the health message, which Home Assistant shows as unknown."""
    common = {"state_topic": names.health, "entity_category": "diagnostic"}
    measured = {**common, "state_class": "measurement"}
    return [
        (
            "sensor",
            "temperature",
            {
                **measured,
                "name": "Temperature",
                "value_template": "{{ value_json.temperature_c }}",
                "device_class": "temperature",
                "unit_of_measurement": "°C",
            },
        ),
        (
            "sensor",
            "fps",
            {
                **measured,
                "name": "Frames per second",
                "value_template": "{{ value_json.fps }}",
                "unit_of_measurement": "fps",
                "icon": "mdi:speedometer",
            },
        ),
        (
            "sensor",
            "memory",
            {
                **measured,
                "name": "Memory",
                "value_template": "{{ (value_json.memory_bytes / 1048576) | round(1) if value_json.memory_bytes else None }}",
                "device_class": "data_size",
                "unit_of_measurement": "MiB",
            },
        ),
        (
            "binary_sensor",
            "throttled",
            {
                **common,
                "name": "Throttled",
                "value_template": "{{ 'ON' if value_json.throttled else 'OFF' }}",
                "json_attributes_topic": names.health,
                "device_class": "problem",
            },
        ),
    ]
