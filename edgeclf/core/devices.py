"""DeviceProfile: what is known of a board; one TOML file in `devices/`."""

from __future__ import annotations

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


@dataclass(frozen=True)
class BudgetSection:
    """What a classifier may cost there to run live: per frame, and resident memory."""

    latency_ms: float
    memory_mb: int


@dataclass(frozen=True)
class DeviceProfile:
    """A board. `machine` is what `uname -m` says; `threads` is where a latency measurement starts."""

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

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= self.cores:
            raise ConfigError(f"threads = {self.threads}: must lie between 1 and cores = {self.cores}")


def load_device(name: str) -> DeviceProfile:
    """The profile with a shipped name, or at the path of a `.toml` file. Raises ConfigError."""
    path = config.find("devices", name)
    return config.build(DeviceProfile, config.read(path), str(path))
