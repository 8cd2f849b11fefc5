"""LiveSettings: everything that `edgeclf run` can be told; one TOML file for a board that runs for months.

Passwords and tokens do not stand here: they come from the environment or from a file of their own, because settings are
shown, copied and asked about.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeclf.core import config
from edgeclf.core.addresses import broker_address, web_address
from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import ConfigError
from edgeclf.core.unknown import UnknownBy, check_limit

MOST_VOTES = 1000
ROUNDING = 1e-9  # of shares that add up to 1
METRICS_PORT = 9464

LONGEST_CLIP_S = 60.0  # the seconds before a change are held in memory


@dataclass(frozen=True)
class DecideSection:
    """How scores become answers; the model card's own values hold where something is left out.

    `threshold` is what a picture must reach, else the answer is `unknown`; `unknown_by` says in what, the probability of the
    likeliest class where it says nothing. `smooth` is the weight of the past in an exponential mean; `votes` of the last
    `of` frames must agree before an answer changes; `hysteresis` is the lead that a new answer needs. `top` is how many
    classes an event lists.
    """

    threshold: float | None = None
    unknown_by: UnknownBy | None = None
    smooth: float = 0.0
    votes: int = 1
    of: int = 1
    hysteresis: float = 0.1
    top: int = 3

    def __post_init__(self) -> None:
        if not 1 <= self.votes <= self.of <= MOST_VOTES:
            raise ConfigError(f"votes = {self.votes}, of = {self.of}: expected 1 <= votes <= of <= {MOST_VOTES}")
        for name in ("smooth", "hysteresis"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must lie in [0, 1)")
        if self.top < 1:
            raise ConfigError(f"top = {self.top}: must be at least 1")
        if self.threshold is not None:
            check_limit(self.unknown_by or "probability", self.threshold)


@dataclass(frozen=True)
class GateSection:
    """Which frames are classified, and which part of them.

    `region` is x, y, width, height: as shares of the picture where none is above 1, else pixels. `motion` is the share of
    the picture that must have changed since the frame classified last, 0 classifies still scenes too; `refresh_s` classifies
    a still scene again after so long. `every` takes each Nth frame of a source, `max_fps` at most so many of it a second; 0
    is no limit.
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
            or (self.relative and max(self.region[0] + self.region[2], self.region[1] + self.region[3]) > 1 + ROUNDING)
            or not (self.relative or all(float(v).is_integer() for v in self.region))
        ):
            raise ConfigError(
                f"region = {list(self.region)}: expected x, y, width, height, in whole pixels or all as shares of the picture, "
                "none above 1, inside it"
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
    """A second model on the same frames: its file, and the folder where frames on which the two disagree are kept.

    At most `per_minute` are, until the folder holds `most`; none while less than `min_free_mb` of the disk is free.
    """

    file: str = ""
    folder: str = ""
    most: int = 500
    per_minute: int = 30
    min_free_mb: int = 500

    def __post_init__(self) -> None:
        if self.most < 1 or self.per_minute < 1 or self.min_free_mb < 0:
            raise ConfigError("most and per_minute must be at least 1, min_free_mb not below 0")


@dataclass(frozen=True)
class FilesSection:
    """Files that every event is appended to; `-` as `jsonl` is standard output. With `changes_only`, frames that do not change
    the answer are left out, which a run of months wants: a year of 30 lines a second fills any memory card."""

    jsonl: str = ""
    csv: str = ""
    sqlite: str = ""
    changes_only: bool = False

    def __post_init__(self) -> None:
        named = [path for path in (self.jsonl, self.csv, self.sqlite) if path]
        if len(set(named)) != len(named):
            raise ConfigError("files: one file is given for two kinds")


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

    def __post_init__(self) -> None:
        if not 0 <= self.clip_s <= LONGEST_CLIP_S:
            raise ConfigError(f"clip_s = {self.clip_s}: must lie between 0 (no clips) and {LONGEST_CLIP_S:g} seconds")
        if self.clip_s and not self.folder:
            raise ConfigError("clips need a folder; name one with --snapshots DIR")
        if self.min_free_mb < 0:
            raise ConfigError(f"min_free_mb = {self.min_free_mb}: must not be below 0; 0 is no limit")
        if self.max_mb < 1:
            raise ConfigError(f"max_mb = {self.max_mb}: must be at least 1")


@dataclass(frozen=True)
class MqttSection:
    """A broker, `mqtt://host:1883` or `mqtts://host:8883`, the topic that everything is under, and Home Assistant's prefix
    for discovery, empty for none. The user stands in the address, the password in EDGECLF_MQTT_PASSWORD or `password_file`.

    `name` is what this run is called under `topic`; without one it is made from the model and the machine. `ca_file` holds
    the certificate of the authority that signed the broker's, where the system does not know it. States are told at changes
    and every `every_s` seconds; `queue` events wait while the broker is away. With `forget`, all that the broker keeps of
    this run (states and discovery) is taken back at its end.
    """

    address: str = ""
    topic: str = "edgeclf"
    discovery: str = "homeassistant"
    name: str = ""
    password_file: str = ""
    ca_file: str = ""
    every_s: float = 30.0
    queue: int = 256
    forget: bool = False

    def __post_init__(self) -> None:
        if self.address:
            _checked("address", broker_address, self.address)
        for key in ("topic", "discovery", "name"):
            text = getattr(self, key)
            if not re.fullmatch(r"[^\x00-\x1f\x7f+#$]{0,200}", text) or text.startswith("/") or text.endswith("/"):
                raise ConfigError(f"{key}: must not hold + # $ or a control character, nor begin or end with a slash")
        if not self.topic or "/" in self.name:
            raise ConfigError("topic: must not be empty" if not self.topic else "name: must not hold a slash")
        if not (math.isfinite(self.every_s) and self.every_s >= 1):
            raise ConfigError(f"every_s = {self.every_s}: must be at least 1")
        if not 1 <= self.queue <= 100_000:
            raise ConfigError(f"queue = {self.queue}: must lie between 1 and 100000")


@dataclass(frozen=True)
class WebSection:
    """The preview page: `host:port`, empty for none; how many may watch; the token comes from EDGECLF_WEB_TOKEN or
    `token_file`, and is asked for wherever the page is offered to other machines.

    `hosts` are names beside localhost by which a page on loopback may be called, as by a proxy in front of it. `upload_mb`
    is how large a picture may be that is sent to be classified.
    """

    address: str = ""
    clients: int = 20
    token_file: str = ""
    hosts: tuple[str, ...] = ()
    upload_mb: int = 12

    def __post_init__(self) -> None:
        if not 1 <= self.clients <= 1000:
            raise ConfigError(f"clients = {self.clients}: must lie between 1 and 1000")
        if not 1 <= self.upload_mb <= 64:
            raise ConfigError(f"upload_mb = {self.upload_mb}: must lie between 1 and 64")


@dataclass(frozen=True)
class ActionsSection:
    """What a change sets off: a webhook (POST of the event as JSON), a command (the event on its standard input and in its
    environment), a GPIO pin that is high while the answer is one of `gpio_labels`; and for `labels` alone when given.

    A webhook that did not answer within `webhook_s` seconds is tried twice more; a command is ended after `command_s`.
    """

    webhook: str = ""
    command: str = ""
    gpio_pin: int = -1
    gpio_labels: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    webhook_s: float = 5.0
    command_s: float = 30.0

    def __post_init__(self) -> None:
        if self.webhook:
            _checked("webhook", web_address, self.webhook)
        _checked("command", command_words, self.command)
        for key in ("webhook_s", "command_s"):
            if not 0.1 <= getattr(self, key) <= 3600:
                raise ConfigError(f"{key} = {getattr(self, key)}: must lie between 0.1 and 3600 seconds")
        if self.gpio_pin < -1 or (self.gpio_pin >= 0) != bool(self.gpio_labels):
            raise ConfigError("gpio_pin and gpio_labels: give the pin's number and the labels for which it is high, or neither")


@dataclass(frozen=True)
class ServiceSection:
    """For a run of months: `memory_mb` ends it for a restart when it has grown so large (0: never), `state` is the file
    that answers outlive a restart in, `metrics` the `host:port` of Prometheus' page, `errors_in_row` failures end it.
    Above `cool_above_c` degrees Celsius fewer frames of live sources are classified, down to one a second (0: never)."""

    memory_mb: int = 0
    state: str = ""
    metrics: str = ""
    errors_in_row: int = 10
    cool_above_c: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cool_above_c) and self.cool_above_c >= 0):
            raise ConfigError(f"cool_above_c = {self.cool_above_c}: must not be below 0; 0 never slows the run down, 75 is usual")
        if self.metrics:
            _checked("metrics", lambda text: host_and_port(text, METRICS_PORT), self.metrics)
        if self.memory_mb < 0:
            raise ConfigError(f"memory_mb = {self.memory_mb}: must not be below 0; 0 is no limit")
        if self.errors_in_row < 1:
            raise ConfigError(f"errors_in_row = {self.errors_in_row}: must be at least 1")


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
        if self.compare.folder and self.compare.folder == self.snapshots.folder:
            raise ConfigError(f"{self.compare.folder}: given for snapshots and for disagreements; give each a folder of its own")


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


def command_words(text: str) -> list[str]:
    """A command line as its words, quoted as in a shell that does nothing else. Raises ConfigError."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"cannot be split into words: {str(error).lower()}") from None


def _checked(key: str, parse: Callable[[str], Any], text: str) -> None:
    try:
        parse(text)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
