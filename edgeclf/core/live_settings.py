"""LiveSettings: everything that `edgeclf run` can be told; one TOML file for a board that runs for months.

Passwords and tokens do not stand here: they come from the environment or from a file of their own, because settings are
shown, copied and asked about.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeclf.core import config
from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import ConfigError

UnknownBy = Literal["probability", "margin", "energy"]


@dataclass(frozen=True)
class DecideSection:
    """How scores become answers; the model card's own values hold where something is left out.

    `threshold` is what the likeliest class must reach, else the answer is `unknown`; `unknown_by` says what is compared
    with it. `smooth` is the weight of the past in an exponential mean; `votes` of the last `of` frames must agree before an
    answer changes; `hysteresis` is the lead that a new answer needs. `top` is how many classes an event lists.
    """

    threshold: float | None = None
    unknown_by: UnknownBy | None = None
    smooth: float = 0.0
    votes: int = 1
    of: int = 1
    hysteresis: float = 0.1
    top: int = 3


@dataclass(frozen=True)
class GateSection:
    """Which frames are classified, and which part of them.

    `region` is x, y, width, height: as shares of the picture where none is above 1, else pixels. `motion` is the share of
    the picture that must have changed since the frame classified last, 0 classifies still scenes too; `refresh_s` classifies
    a still scene again after so long. `every` takes each Nth frame, `max_fps` at most so many a second; 0 is no limit.
    """

    region: tuple[float, ...] = ()
    motion: float = 0.0
    refresh_s: float = 60.0
    every: int = 1
    max_fps: float = 0.0

    def __post_init__(self) -> None:
        if self.region and (
            len(self.region) != 4
            or not all(math.isfinite(v) and v >= 0 for v in self.region)
            or min(self.region[2:]) <= 0
            or (self.relative and (self.region[0] + self.region[2] > 1 or self.region[1] + self.region[3] > 1))
        ):
            raise ConfigError(
                f"region = {list(self.region)}: expected x, y, width, height, in pixels or all as shares of the picture inside it"
            )
        if not 0 <= self.motion < 1:
            raise ConfigError(f"motion = {self.motion}: must lie in [0, 1); 0.01 is a hundredth of the picture")
        if self.every < 1:
            raise ConfigError(f"every = {self.every}: must be at least 1")
        if not (math.isfinite(self.max_fps) and self.max_fps >= 0):
            raise ConfigError(f"max_fps = {self.max_fps}: must not be below 0; 0 is no limit")
        if not (math.isfinite(self.refresh_s) and self.refresh_s > 0):
            raise ConfigError(f"refresh_s = {self.refresh_s}: must be above 0")

    @property
    def relative(self) -> bool:
        """Whether the region is given as shares of the picture."""
        return max(self.region, default=0.0) <= 1


@dataclass(frozen=True)
class CompareSection:
    """A second model on the same frames: its file, and the folder where frames on which the two disagree are kept."""

    file: str = ""
    folder: str = ""


@dataclass(frozen=True)
class FilesSection:
    """Files that every event is appended to; `-` as `jsonl` is standard output."""

    jsonl: str = ""
    csv: str = ""
    sqlite: str = ""


@dataclass(frozen=True)
class SnapshotsSection:
    """Pictures of changes: the folder, of which labels (all when empty), and clips of `clip_s` seconds around them.

    Nothing is written while less than `min_free_mb` of the disk is free; the oldest go when all take more than `max_mb`.
    """

    folder: str = ""
    labels: tuple[str, ...] = ()
    clip_s: float = 0.0
    min_free_mb: int = 500
    max_mb: int = 1000


@dataclass(frozen=True)
class MqttSection:
    """A broker, `mqtt://host:1883` or `mqtts://host:8883`, the topic that everything is under, and Home Assistant's prefix
    for discovery, empty for none. The user stands in the address, the password in EDGECLF_MQTT_PASSWORD or `password_file`.
    """

    address: str = ""
    topic: str = "edgeclf"
    discovery: str = "homeassistant"
    name: str = ""
    password_file: str = ""


@dataclass(frozen=True)
class WebSection:
    """The preview page: `host:port`, empty for none; how many may watch; the token comes from EDGECLF_WEB_TOKEN or
    `token_file`, and is asked for wherever the page is offered to other machines."""

    address: str = ""
    clients: int = 20
    token_file: str = ""


@dataclass(frozen=True)
class ActionsSection:
    """What a change sets off: a webhook (POST of the event as JSON), a command (the event on its standard input and in its
    environment), a GPIO pin that is high while the answer is one of `gpio_labels`; and for `labels` alone when given."""

    webhook: str = ""
    command: str = ""
    gpio_pin: int = -1
    gpio_labels: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServiceSection:
    """For a run of months: `memory_mb` ends it for a restart when it has grown so large (0: never), `state` is the file
    that answers outlive a restart in, `metrics` the `host:port` of Prometheus' page, `errors_in_row` failures end it."""

    memory_mb: int = 0
    state: str = ""
    metrics: str = ""
    errors_in_row: int = 10


@dataclass(frozen=True)
class LiveSettings:
    """All of it. `model` and `sources` as on the command line; `threads` 0 measures which number is fastest."""

    model: str = ""
    sources: tuple[str, ...] = ("0",)
    threads: int | None = None
    realtime: bool = False
    wait_for_source: bool = False
    camera: CameraSection = field(default_factory=CameraSection)
    decide: DecideSection = field(default_factory=DecideSection)
    gate: GateSection = field(default_factory=GateSection)
    compare: CompareSection = field(default_factory=CompareSection)
    files: FilesSection = field(default_factory=FilesSection)
    snapshots: SnapshotsSection = field(default_factory=SnapshotsSection)
    mqtt: MqttSection = field(default_factory=MqttSection)
    web: WebSection = field(default_factory=WebSection)
    actions: ActionsSection = field(default_factory=ActionsSection)
    service: ServiceSection = field(default_factory=ServiceSection)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources: none given")
        if len(set(self.sources)) != len(self.sources):
            raise ConfigError("sources: one is given twice")


def read_settings(path: Path) -> LiveSettings:
    """The settings in that TOML file. Raises ConfigError."""
    return config.build(LiveSettings, config.read(path), str(path))


def host_and_port(text: str, default_port: int) -> tuple[str, int]:
    """`host:port`, `:port`, `port` or `host`; loopback where no host is named. Raises ConfigError."""
    match = re.fullmatch(r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]*):)?(?P<port>\d{1,5})", text)
    if match is None:
        if re.fullmatch(r"\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+", text):
            return text.strip("[]"), default_port
        raise ConfigError(f"{text}: expected HOST:PORT, as 127.0.0.1:{default_port}")
    port = int(match["port"])
    if not 1 <= port <= 65535:
        raise ConfigError(f"{text}: a port lies between 1 and 65535")
    return (match["host"] or "127.0.0.1").strip("[]"), port
