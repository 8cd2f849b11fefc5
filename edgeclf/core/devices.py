"""DeviceProfile: what is known of a board; one TOML file in `devices/`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from edgeclf.core import config
from edgeclf.core.errors import ConfigError


@dataclass(frozen=True)
class CameraSection:
    """What to ask the board's camera for; small MJPG frames cost least to decode. `pixel_format` is four letters of V4L2."""

    width: int = 640
    height: int = 480
    fps: int = 30
    pixel_format: str = "MJPG"

    def __post_init__(self) -> None:
        for name, most in (("width", 8192), ("height", 8192), ("fps", 1000)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise ConfigError(f"{name} = {value}: must lie between 1 and {most}")
        if not re.fullmatch(r"[ -~]{4}", self.pixel_format):
            raise ConfigError(f"pixel_format = {self.pixel_format!r}: expected four letters, as MJPG or YUYV")


@dataclass(frozen=True)
class BudgetSection:
    """What a classifier may cost there to run live: per frame, and resident memory."""

    latency_ms: float
    memory_mb: int


@dataclass(frozen=True)
class Published:
    """An inference time that others measured on that board: of `model` in `precision`, with what, and where it is written."""

    model: str
    precision: str
    latency_ms: float
    conditions: str
    source: str

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise ConfigError(f"latency_ms = {self.latency_ms}: must be above 0")
        if not self.source.startswith("https://"):
            raise ConfigError(f"source = {self.source!r}: expected the https:// address where the figure is written")


@dataclass(frozen=True)
class DeviceProfile:
    """A board. `machine` is what `uname -m` says; `threads` is where a latency measurement starts.

    `system` is what edgeclf is meant to run under there, `pythons` the versions of Python that come with it.
    """

    name: str
    description: str
    machine: str
    cpu: str
    cores: int
    threads: int
    memory_mb: int
    dot_product: bool
    camera: CameraSection
    budget: BudgetSection
    notes: str = ""
    system: str = ""
    pythons: tuple[str, ...] = ()
    published: tuple[Published, ...] = ()

    def __post_init__(self) -> None:
        for python in self.pythons:
            if not re.fullmatch(r"3\.\d{1,2}", python):
                raise ConfigError(f"pythons = {list(self.pythons)}: expected versions such as 3.11")
        if not 1 <= self.threads <= self.cores:
            raise ConfigError(f"threads = {self.threads}: must lie between 1 and cores = {self.cores}")


def load_device(name: str) -> DeviceProfile:
    """The profile with a shipped name, or at the path of a `.toml` file. Raises ConfigError."""
    path = config.find("devices", name)
    return config.build(DeviceProfile, config.read(path), str(path))
