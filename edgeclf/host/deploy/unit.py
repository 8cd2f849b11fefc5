"""The systemd unit of a classifier that runs for months: hardened, watched, restarted, capped."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Template

from edgeclf.core.errors import ConfigError
from edgeclf.core.live_settings import LiveSettings
from edgeclf.core.text import has_control_character, printable

TEMPLATE = Path(__file__).with_name("edgeclf.service.in")
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
DEFAULT_NAME, DEFAULT_MEMORY_MB = "live", 400
RESTART_ROOM = 1.25  # of the size at which the program restarts by itself, so that it can before the kernel ends it
CAMERAS = "char-video4linux", "char-media"
PICAMERA = "char-dma_heap", "/dev/dri", "/dev/vcio"
GPIO = ("char-gpiochip",)
SECRETS = {"mqtt.password_file": "mqtt-password", "web.token_file": "web-token"}  # setting → name of the credential


@dataclass(frozen=True)
class Service:
    """What the unit runs: absolute paths there; `groups` are those that exist there; `visible` is all it sees of /home."""

    name: str
    program: str
    model: str
    config: str | None
    visible: tuple[str, ...]
    groups: tuple[str, ...] = ("video",)
    memory_mb: int = DEFAULT_MEMORY_MB
    verb: str = "service"

    def __post_init__(self) -> None:
        checked_name(self.name)

    @property
    def unit(self) -> str:
        """The unit's file name."""
        return f"edgeclf-{self.name}.service"


def checked_name(name: str) -> str:
    """A name that units, folders and users may have. Raises ConfigError."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {printable(name)}: expected at most 32 of a-z, 0-9 and - (not at an end)")
    return name


def memory_cap(settings: LiveSettings, budget_mb: int | None) -> int:
    """Of the whole service, in MB: the board's budget, or room above the size at which the program restarts itself."""
    return max(budget_mb or DEFAULT_MEMORY_MB, round(settings.service.memory_mb * RESTART_ROOM))


def text(service: Service, settings: LiveSettings) -> str:
    """The unit file. Raises ConfigError for a secret's path that is not absolute."""
    secrets = _secrets(settings)
    command = [
        service.program,
        "run",
        service.model,
        *(["--config", service.config] if service.config else []),
        "--wait-for-source",
    ]
    words = [word(part) for part in command]
    for key, name in secrets:
        words += ["--set", f"{key}=${{CREDENTIALS_DIRECTORY}}/{name}"]
    picamera = uses_picamera(settings)
    gpio = settings.actions.gpio_pin >= 0
    used = {"video": True, "render": picamera, "gpio": gpio}
    groups = [group for group, needed in used.items() if needed and group in service.groups]
    devices = [*CAMERAS, *(PICAMERA if picamera else ()), *(GPIO if gpio else ())]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=service.unit,
        verb=service.verb,
        name=service.name,
        start=" ".join(words),
        groups=" ".join(groups),
        credentials="".join(f"LoadCredential={name}:{_path(path, key)}\n" for (key, name), path in secrets.items()).rstrip("\n"),
        memory_mb=service.memory_mb,
        visible=" ".join(word(path) for path in service.visible),
        devices="\n".join(f"DeviceAllow={device} rw" for device in devices),
    )


def uses_picamera(settings: LiveSettings) -> bool:
    """Whether a source needs apt's picamera2, which an environment sees with --system-site-packages only."""
    return any(source.startswith(("picamera2", "picamera", "rpicam")) for source in settings.sources)


def _secrets(settings: LiveSettings) -> dict[tuple[str, str], str]:
    paths = {"mqtt.password_file": settings.mqtt.password_file, "web.token_file": settings.web.token_file}
    return {(key, SECRETS[key]): path for key, path in paths.items() if path}


def _path(path: str, key: str) -> str:
    if not PurePosixPath(path).is_absolute() or has_control_character(path) or ":" in path:
        raise ConfigError(f"{key} = {printable(path)!r}: a service needs an absolute path on the board, as /etc/edgeclf/secret")
    return path.replace("%", "%%")


def word(text: str) -> str:
    """One word of a unit file, quoted where needed (systemd.syntax(7), systemd.service(5)). Raises ConfigError."""
    if has_control_character(text):
        raise ConfigError(f"{printable(text)!r}: a control character cannot stand in a unit file")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s'\"\\;]", text) or not text else escaped


def groups_here() -> tuple[str, ...]:
    """The groups of this machine that a camera or a pin may ask for; `video` where none can be told."""
    import grp

    found = tuple(g.gr_name for g in grp.getgrall() if g.gr_name in ("video", "render", "gpio"))
    return found or ("video",)


def check_secrets(path: Path) -> None:
    """A file of NAME=VALUE lines that nobody but its owner can read. Raises ConfigError, which never shows a value."""
    try:
        mode, lines = path.stat().st_mode, path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read it; first: chmod 600 {path}")
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#") and not re.match(r"EDGECLF_[A-Z_]+=", line):
            raise ConfigError(f"{path}:{number}: expected EDGECLF_NAME=VALUE")
