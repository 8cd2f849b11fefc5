"""What a board is, as it says itself, and whether edgeclf can run there."""

from __future__ import annotations

from dataclasses import dataclass

from edgeclf.core.devices import DeviceProfile, load_device
from edgeclf.core.errors import BoardError, ConfigError
from edgeclf.core.text import printable
from edgeclf.host.deploy.ssh import Remote
from edgeclf.host.deploy.wheelhouse import OLD_MACHINE, OLD_PYTHON

LEAST_PYTHON, LEAST_GLIBC = (3, 11), (2, 28)  # of this package; of the newest wheels that it needs
INSTALL_MB, COPY_MB = 600, 50  # free disk for an environment with its wheels (measured: 420 MB), and for one more release
MEMORY_SHARE = 0.8  # of a profile's memory: the firmware and the GPU take some of what is printed on the board
MODELS = {
    "Raspberry Pi 5": "raspberry-pi-5",
    "Raspberry Pi 4": "raspberry-pi-4",
    "Raspberry Pi 3": "raspberry-pi-3",
    "Raspberry Pi Zero 2": "raspberry-pi-zero-2w",
}
GROUPS = "video", "gpio", "render"

FACTS = """
say() { printf '%s=%s\\n' "$1" "$2"; }
say machine "$(uname -m)"
say home "$HOME"
say user "$(id -un 2>/dev/null || id -u)"
say model "$(tr -d '\\000' </sys/firmware/devicetree/base/model 2>/dev/null)"
say os "$(sed -n 's/^PRETTY_NAME=//p' /etc/os-release 2>/dev/null | tr -d '"')"
say free_kb "$(df -Pk "$HOME" | sed -n '2s/^.* \\([0-9][0-9]*\\)  *[0-9]*%.*$/\\1/p')"
say memory_kb "$(sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo)"
say capped "$(grep -cw memory /sys/fs/cgroup/cgroup.controllers 2>/dev/null)"
for g in video gpio render; do grep -q "^$g:" /etc/group 2>/dev/null && say group $g; done
"$1" -c 'import platform, struct, sys
print("python=%d.%d.%d" % sys.version_info[:3])
print("bits=%d" % (8 * struct.calcsize("P")))
print("glibc=" + platform.libc_ver()[1])' 2>/dev/null
exit 0
"""


@dataclass(frozen=True)
class Facts:
    """What a board said: memory and free disk in MB, `bits` of its Python, whether systemd's memory cap works there."""

    machine: str
    home: str
    user: str
    model: str
    os: str
    free_mb: int
    memory_mb: int
    capped: bool
    groups: tuple[str, ...]
    python: str
    bits: int
    glibc: str

    @property
    def old(self) -> bool:
        """Whether this is a 32-bit system, also on top of a 64-bit kernel, as Raspberry Pi OS (32-bit) is on a Pi 4."""
        return self.bits == 32

    @property
    def python_minor(self) -> str:
        """3.11 of 3.11.2."""
        return ".".join(self.python.split(".")[:2])

    def in_words(self) -> str:
        """For one line."""
        parts = self.model or self.machine, self.os, f"{self.bits} bits", f"Python {self.python}"
        return f"{', '.join(part for part in parts if part)}, {self.memory_mb} MB, {self.free_mb} MB of disk free"


def look(remote: Remote, name: str, python: str) -> Facts:
    """Ask the board at `name` what it is; `python` is the interpreter there. Raises BoardError, ConfigError without Python."""
    done = remote.run(FACTS, python)
    said: dict[str, list[str]] = {}
    for line in done.out.splitlines()[:200]:
        key, equals, value = line.partition("=")
        if equals:
            said.setdefault(key, []).append(printable(value.strip())[:300])

    def one(key: str) -> str:
        return said.get(key, [""])[-1]

    def number(key: str) -> int:
        return int(one(key)) if one(key).isascii() and one(key).isdecimal() else 0

    if not one("machine") or not one("home").startswith("/"):
        raise BoardError(f"{name}: does not answer as a Linux board: {done.last_line}")
    if not one("python"):
        raise ConfigError(
            f"{name}: no {printable(python)} there; install it on the board: sudo apt-get install python3 python3-venv"
        )
    return Facts(
        one("machine"), one("home"), one("user"), one("model"), one("os"), number("free_kb") >> 10, number("memory_kb") >> 10,
        one("capped") not in ("", "0"), tuple(g for g in said.get("group", ()) if g in GROUPS),
        one("python"), number("bits"), one("glibc"),
    )  # fmt: skip


def profile_for(facts: Facts, asked: DeviceProfile | None) -> DeviceProfile | None:
    """The profile that was asked for, else the one of the board's own name; None for a board without one."""
    if asked is not None:
        return asked
    for start, name in MODELS.items():
        if facts.model.startswith(start):
            return load_device(name)
    return load_device("host") if facts.machine == "x86_64" else None


def check(facts: Facts, name: str, profile: DeviceProfile | None, room_mb: int) -> list[str]:
    """Raise ConfigError with the first reason why edgeclf cannot run there; return what a person should know."""
    if profile is not None and not facts.old and facts.machine != profile.machine:
        raise ConfigError(
            f"{name}: is {facts.machine} ({facts.model or facts.os or 'no board that says its name'}), but {profile.name} is "
            f"{profile.machine}; is that the right host? Name its profile with --device"
        )
    version = tuple(int(part) for part in facts.python.split(".")[:2])
    if facts.old:
        _check_old(facts, name)
    elif version < LEAST_PYTHON:
        raise ConfigError(
            f"{name}: has Python {facts.python}; edgeclf needs 3.11, which Raspberry Pi OS has since bookworm: install that, "
            "or name another interpreter with --python"
        )
    if not facts.old and _version(facts.glibc) < LEAST_GLIBC:
        raise ConfigError(
            f"{name}: has glibc {facts.glibc or 'of no known version'}; the wheels need {'.'.join(map(str, LEAST_GLIBC))}: "
            "install Raspberry Pi OS bookworm or newer"
        )
    if facts.free_mb < room_mb:
        raise ConfigError(f"{name}: {facts.free_mb} MB of disk free, {room_mb} MB needed; try there: sudo apt-get clean")
    if profile is not None and facts.memory_mb < profile.memory_mb * MEMORY_SHARE:
        return [f"{name} has {facts.memory_mb} MB of memory; {profile.name} is described with {profile.memory_mb}"]
    return []


def _check_old(facts: Facts, name: str) -> None:
    """The one route of 32-bit Raspberry Pi OS."""
    if facts.machine not in (OLD_MACHINE, "aarch64", "armv8l"):
        raise ConfigError(
            f"{name}: is {facts.machine} with {facts.bits} bits; no runtime exists for it. A Pi 2 or newer is needed"
        )
    if facts.python_minor != OLD_PYTHON:
        raise ConfigError(
            f"{name}: a 32-bit system with Python {facts.python}; tflite-runtime 2.14, its only runtime, needs Python "
            f"{OLD_PYTHON}: install 64-bit Raspberry Pi OS (any Pi 3, 4, 5 or Zero 2 takes it), or 32-bit bookworm"
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
