"""A wheelhouse: a folder with every wheel that a board needs, so that it can be set up without a package index."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from edgeclf.core import config, files
from edgeclf.core.devices import DeviceProfile, load_device
from edgeclf.core.errors import BoardError, ConfigError, DataError, MissingExtra
from edgeclf.core.progress import Report
from edgeclf.core.text import printable
from edgeclf.host.deploy.wheel import own_wheel

MANIFEST, SCHEMA = "wheelhouse.json", 1
WINDOW = "window"  # OpenCV with windows, which needs a desktop's libraries (libGL, libxcb); a board has the one without
EXTRAS = "web", "mqtt", "metrics", "gpio", "live", "onnx", WINDOW  # that are of use on a board
SHORT = {"pi3": "raspberry-pi-3", "pi4": "raspberry-pi-4", "pi5": "raspberry-pi-5", "zero2w": "raspberry-pi-zero-2w"}
GLIBC = {"3.11": 36, "3.12": 39, "3.13": 41}  # minor version beside that Python: Debian 12, Ubuntu 24.04, Debian 13
DEFAULT_PYTHON = "3.13"  # of Raspberry Pi OS since October 2025
OLD_MACHINE, OLD_PYTHON, OLD_RUNTIME = "armv7l", "3.11", "tflite-runtime==2.14.0"
OLD_APT = (
    "numpy",
    "opencv-python",
    "opencv-python-headless",
)  # what Raspberry Pi OS has as apt packages, and no index for that machine
DOWNLOAD_SECONDS, MOST_ROUNDS = 1800, 4


@dataclass(frozen=True)
class Target:
    """What wheels must fit: `machine` as `uname -m`, `python` as 3.13, and the minor version of glibc 2."""

    machine: str
    python: str
    glibc: int

    @property
    def platforms(self) -> list[str]:
        """Every platform tag that such a board accepts, the newest first (PEP 600, and the older names that are still used)."""
        names = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
        found = []
        for minor in range(self.glibc, 16 if self.machine != "x86_64" else 4, -1):
            found.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in names:
                found.append(f"{names[minor]}_{self.machine}")
        return [*found, f"linux_{self.machine}"]

    @property
    def markers(self) -> dict[str, str]:
        """The environment of PEP 508 markers there."""
        return {
            "platform_machine": self.machine, "python_version": self.python, "python_full_version": f"{self.python}.0",
            "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
            "platform_python_implementation": "CPython", "extra": "",
        }  # fmt: skip


@dataclass(frozen=True)
class Wheelhouse:
    """A folder that was checked against its manifest: `wheels` is name → SHA-256; `own` is edgeclf's, `pip` pip's."""

    folder: Path
    target: Target
    extras: tuple[str, ...]
    wheels: dict[str, str]

    def first(self, package: str) -> Path:
        """The wheel of that package. Raises DataError when there is none."""
        for name in sorted(self.wheels):
            if name.split("-")[0].lower() == package:
                return self.folder / name
        raise DataError(f"{self.folder}: holds no wheel of {package}; make it again with: edgeclf wheelhouse")


def profile_of(name: str) -> DeviceProfile:
    """The profile of a shipped name, of a short one such as pi4, or at a path. Raises ConfigError."""
    return load_device(SHORT.get(name, name))


def target_of(profile: DeviceProfile, python: str | None, bits: int = 64) -> Target:
    """What the wheels for that board must fit; `bits` of its system, 32 for the one old route. Raises ConfigError."""
    if bits == 32:
        if python not in (None, OLD_PYTHON):
            raise ConfigError(
                f"--python {python}: a 32-bit system is served with Python {OLD_PYTHON} alone (tflite-runtime ends there); "
                "64-bit Raspberry Pi OS has newer ones"
            )
        return Target(OLD_MACHINE, OLD_PYTHON, GLIBC[OLD_PYTHON])
    wanted = python or DEFAULT_PYTHON
    if wanted not in GLIBC:
        raise ConfigError(f"--python {wanted}: expected one of: {', '.join(GLIBC)}")
    return Target(profile.machine, wanted, GLIBC[wanted])


def checked_extras(names: Iterable[str]) -> tuple[str, ...]:
    """The extras that were asked for, sorted; raises ConfigError for one that is of no use on a board."""
    wanted = sorted({name.strip() for text in names for name in text.split(",") if name.strip()})
    for name in wanted:
        if name not in EXTRAS:
            raise ConfigError(f"--with {name}: expected some of: {', '.join(EXTRAS)}")
    return tuple(wanted)


def make(
    folder: Path, target: Target, extras: tuple[str, ...], wheel: Path | None, report: Report, upgrade: bool = False
) -> Wheelhouse:
    """Fill `folder`, whole or not at all; one that is whole and for the same is left, unless `upgrade` asks for newer wheels.

    `wheel` is edgeclf's own, made from what is installed here when None. `report(done, total)` counts rounds of pip.
    Raises ConfigError, BoardError when the index cannot be reached or lacks a wheel, MissingExtra without pip.
    """
    _need_pip()
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise ConfigError(f"{folder}: holds other files; name a new folder with --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(folder.parent), tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
        new = Path(made) / "new"
        new.mkdir()
        own = _copied(wheel, new) if wheel else own_wheel(new)
        there = None if upgrade else _as_asked(folder, target, extras, own)
        if there is not None:
            return there
        _collect(own, new, folder, target, extras, report)
        wheels = {path.name: files.sha256(path) for path in sorted(new.glob("*.whl"))}
        files.write_json(
            new / MANIFEST,
            {
                "edgeclf_wheelhouse": SCHEMA, "machine": target.machine, "python": target.python, "glibc": target.glibc,
                "extras": list(extras), "wheels": wheels,
            },
        )  # fmt: skip
        if folder.exists():
            folder.rename(Path(made) / "old")
        new.rename(folder)
    return Wheelhouse(folder, target, extras, wheels)


def read(folder: Path) -> Wheelhouse:
    """The wheelhouse in `folder`, every wheel of it checked. Raises DataError."""
    try:
        table: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        target = Target(str(table["machine"]), str(table["python"]), int(table["glibc"]))
        wheels, extras = dict(table["wheels"]), tuple(map(str, table["extras"]))
    except OSError as error:
        raise DataError(f"{folder}: no wheelhouse; make one with: edgeclf wheelhouse pi4 --out {folder}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST}: not the manifest of a wheelhouse; make it again") from error
    for name, digest in wheels.items():
        path = folder / name
        if Path(name).name != name or not name.endswith(".whl") or not path.is_file():
            raise DataError(f"{path}: missing; make the wheelhouse again: edgeclf wheelhouse --out {folder}")
        if files.sha256(path) != digest:
            raise DataError(f"{path}: SHA-256 differs from the manifest; make the wheelhouse again")
    return Wheelhouse(folder, target, extras, wheels)


def _as_asked(folder: Path, target: Target, extras: tuple[str, ...], own: Path) -> Wheelhouse | None:
    try:
        there = read(folder)
    except DataError:
        return None
    same = (there.target, there.extras, there.wheels.get(own.name)) == (target, extras, files.sha256(own))
    return there if same else None


def _need_pip() -> None:
    if importlib.util.find_spec("pip") is None:
        raise MissingExtra("this environment has no pip, which knows about wheels; install it with: python -m ensurepip")


def _copied(wheel: Path, folder: Path) -> Path:
    if not re.fullmatch(r"edgeclf-[^/]+\.whl", wheel.name) or not zipfile.is_zipfile(wheel):
        raise ConfigError(f"{wheel}: not a wheel of edgeclf")
    target = folder / wheel.name
    target.write_bytes(wheel.read_bytes())
    return target


def _collect(own: Path, new: Path, old: Path, target: Target, extras: tuple[str, ...], report: Report) -> None:
    """Fetch until nothing that any wheel names is missing.

    pip judges markers by the machine it runs on, so what only the board needs shows after the first round.
    """
    done = {"edgeclf"}
    wanted = [*_first_wanted(own, target, extras), *([] if target.machine == OLD_MACHINE else ["pip"])]
    for number in range(MOST_ROUNDS):
        report(number, MOST_ROUNDS)
        _download(wanted, new, old, target)
        done |= {_canonical(path.name.split("-")[0]) for path in new.glob("*.whl")}
        if target.machine == OLD_MACHINE:
            done |= set(OLD_APT)
        wanted = [r for path in sorted(new.glob("*.whl")) if path != own for r in needs(path, target) if _name(r) not in done]
        if not wanted:
            report(MOST_ROUNDS, MOST_ROUNDS)
            return
    raise BoardError(f"the wheels name ever more packages: {', '.join(map(printable, wanted[:3]))}")


def _first_wanted(own: Path, target: Target, extras: tuple[str, ...]) -> list[str]:
    named = board_needs(own, target, extras)
    if target.machine != OLD_MACHINE:
        return named
    return [OLD_RUNTIME, "pip", *(r for r in named if _name(r) not in OLD_APT)]


def board_needs(own: Path, target: Target, extras: tuple[str, ...]) -> list[str]:
    """What edgeclf's wheel needs on a board: OpenCV without windows, unless they were asked for."""
    named = needs(own, target, extras)
    return named if WINDOW in extras else [re.sub(r"^opencv-python(?=[<>=!~]|$)", "opencv-python-headless", n) for n in named]


def _download(wanted: Sequence[str], new: Path, old: Path, target: Target) -> None:
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-input",
        "--only-binary=:all:", "--implementation", "cp", "--python-version", target.python, "--dest", str(new),
        *(f"--platform={name}" for name in target.platforms),
        *(["--find-links", str(old)] if old.is_dir() else []),
        *(["--no-deps"] if target.machine == OLD_MACHINE else []),
        *wanted,
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise BoardError(f"the package index did not answer within {DOWNLOAD_SECONDS} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["ERROR: pip gave no reason"]
        raise BoardError(f"pip cannot fetch the wheels for {target.machine}, Python {target.python}: {printable(lines[-1][7:])}")


def needs(wheel: Path, target: Target, extras: tuple[str, ...] = ()) -> list[str]:
    """The requirements in a wheel's metadata that hold on `target`, their markers judged; those of `extras` included."""
    _need_pip()
    from pip._vendor.packaging.requirements import InvalidRequirement, Requirement

    with zipfile.ZipFile(wheel) as archive:
        name = next((n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)), None)
        if name is None:
            raise DataError(f"{wheel}: a wheel without metadata")
        headers = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    found = []
    for line in headers.get_all("Requires-Dist") or []:
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            raise DataError(f"{wheel}: cannot understand its requirement {printable(line)}") from error
        marker = requirement.marker
        if marker is None or any(marker.evaluate({**target.markers, "extra": extra}) for extra in ("", *extras)):
            if _canonical(requirement.name) == "edgeclf":  # an extra that is made of others
                found += needs(wheel, target, tuple(sorted(requirement.extras)))
            else:
                inside = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
                found.append(f"{requirement.name}{inside}{requirement.specifier}")
    return list(dict.fromkeys(found))


def _name(requirement: str) -> str:
    return _canonical(re.split(r"[\[<>=!~ ;]", requirement, maxsplit=1)[0])


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def board_names() -> list[str]:
    """What `edgeclf wheelhouse` takes."""
    return sorted([*config.names("devices"), *SHORT])
