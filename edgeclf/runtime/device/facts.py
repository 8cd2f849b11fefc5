"""Facts: what `doctor` looks at on this machine, each found without importing what may be broken.

Standard library only, and nothing newer than Python 3.8, so that it runs where edgeclf itself cannot. What may crash is
imported in a child process.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path

from edgeclf.runtime.device import vitals

CHILD_SECONDS = 90.0  # a Raspberry Pi Zero 2 W imports OpenCV in ten
SELF_TEST_MODEL = "compact-digits"
OPENCV_WHEELS = "opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"
RUNTIMES = {"ai-edge-litert": "ai_edge_litert.interpreter", "tflite-runtime": "tflite_runtime.interpreter"}
# A package of each extra, as pyproject.toml has them.
EXTRAS = {
    "web": "starlette", "mqtt": "paho-mqtt", "metrics": "prometheus-client", "gpio": "gpiozero", "onnx": "onnxruntime",
    "train": "tensorflow", "tune": "optuna",
}  # fmt: skip
PACKAGES = ("edgeclf", "numpy", "opencv", *OPENCV_WHEELS, *RUNTIMES, "picamera2", *EXTRAS.values())
APT_PACKAGES = "usr/lib/python3/dist-packages"
WEB_PORT, MQTT_PORT = 8080, 1883
IMPORT = (
    "import importlib, json, sys\n"
    "sys.path[:] = json.loads(sys.argv[2])\n"
    "print(getattr(importlib.import_module(sys.argv[1]), '__file__', ''))"
)


@dataclass(frozen=True)
class Trial:
    """What a child process came to: its exit code, negative for the signal that ended it, and what it wrote."""

    code: int
    out: str = ""
    err: str = ""

    @property
    def reason(self) -> str:
        """Why it failed, in one line."""
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"the process ended by {signal.Signals(-self.code).name}"
        lines = [line for line in self.err.strip().splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else f"the process ended with code {self.code}"


@dataclass(frozen=True)
class Facts:
    """What was found. `packages` are installed distributions with their versions, `imports` trials by module.

    `cameras` are device files with their names; `closed` those that this user may not open. `apt` names what Debian's
    packages have beside a virtual environment that cannot see them. Sizes in bytes, None where the system does not say.
    """

    python: tuple[int, int, int] = (3, 11, 2)
    bits: int = 64
    machine: str = "aarch64"
    executable: str = "/home/pi/edgeclf/bin/python"
    prefix: str = "/home/pi/edgeclf"
    virtual: bool = True
    sees_system: bool = False
    managed: bool = False
    system: str = "Debian GNU/Linux 12 (bookworm)"
    board: str = ""
    vector_units: tuple[str, ...] = ()
    cores: int = 4
    load: float = 0.0
    user: str = "pi"
    packages: dict[str, str] = field(default_factory=dict)
    imports: dict[str, Trial] = field(default_factory=dict)
    self_test: Trial | None = None
    apt: tuple[str, ...] = ()
    cameras: dict[str, str] = field(default_factory=dict)
    closed: tuple[str, ...] = ()
    vitals: vitals.Vitals = field(default_factory=vitals.Vitals)
    home: str = "/home/pi"
    free_bytes: int | None = None
    memory_bytes: int | None = None
    cache: str = ""
    cache_refuses: str = ""
    web_port_taken: bool = False
    broker_answers: bool = False
    display: str = ""


def gather(root: Path = vitals.ROOT) -> Facts:
    """Look at this machine; takes a few seconds, for what is imported in child processes."""
    packages = {name: version for name in PACKAGES for version in [_version(name)] if version}
    modules = ["numpy", "cv2", *(module for package, module in RUNTIMES.items() if package in packages)]
    board = vitals.board(root)
    if board.startswith("Raspberry Pi") or "picamera2" in packages or util.find_spec("picamera2"):
        modules.append("picamera2")
    with ThreadPoolExecutor(max_workers=2) as pool:
        tasks = {module: pool.submit(try_import, module) for module in modules}
    trials = {module: task.result() for module, task in tasks.items()}
    sound = all(not trials[name].code for name in ("numpy", "cv2")) and any(
        module in trials and not trials[module].code for module in RUNTIMES.values()
    )
    cameras = _cameras(root)
    cache, refuses = _cache()
    return Facts(
        python=sys.version_info[:3], bits=struct.calcsize("P") * 8, machine=platform.machine(), executable=sys.executable,
        prefix=sys.prefix, virtual=sys.prefix != sys.base_prefix, sees_system=_sees_system(),
        managed=(Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED").exists(), system=_system(root), board=board,
        vector_units=vitals.vector_units(root), cores=_cores(), load=_load(), user=_user(), packages=packages, imports=trials,
        self_test=_self_test() if sound else None, apt=_apt(root), cameras=cameras,
        closed=tuple(path for path in cameras if not os.access(path, os.R_OK | os.W_OK)), vitals=vitals.read_vitals(root),
        home=str(Path.home()), free_bytes=_free(), memory_bytes=_memory(root), cache=cache, cache_refuses=refuses,
        web_port_taken=_answers(WEB_PORT), broker_answers=_answers(MQTT_PORT),
        display=os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY") or "",
    )  # fmt: skip


def try_import(module: str) -> Trial:
    """Import it in a child process that has this one's search path."""
    return _child(["-c", IMPORT, module, json.dumps([place for place in sys.path if place])])


def _self_test() -> Trial:
    """The golden self-test of a small model that comes along."""
    code = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from edgeclf.cli.main import main; main()"
    return _child(["-c", code, json.dumps([place for place in sys.path if place]), "verify", SELF_TEST_MODEL, "--json"])


def _child(arguments: list[str]) -> Trial:
    try:
        done = subprocess.run(
            [sys.executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=CHILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Trial(1, "", f"not done after {CHILD_SECONDS:.0f} s")
    except OSError as error:
        return Trial(1, "", f"no process can be started: {error.strerror}")
    return Trial(done.returncode, done.stdout.decode("utf-8", "replace").strip(), done.stderr.decode("utf-8", "replace"))


def _version(package: str) -> str:
    try:
        return metadata.version(package) or "of unknown version"
    except metadata.PackageNotFoundError:
        return ""
    except Exception:  # a damaged installation may raise anything, and is what is looked for
        return "of unknown version"


def _sees_system() -> bool:
    with contextlib.suppress(OSError):
        for line in (Path(sys.prefix) / "pyvenv.cfg").read_text().splitlines():
            if line.partition("=")[0].strip() == "include-system-site-packages":
                return line.partition("=")[2].strip().lower() == "true"
    return False


def _apt(root: Path) -> tuple[str, ...]:
    return tuple(name for name in ("picamera2", "libcamera", "cv2", "numpy") if any((root / APT_PACKAGES).glob(f"{name}*")))


def _system(root: Path) -> str:
    with contextlib.suppress(OSError):
        for line in (root / "etc/os-release").read_text(errors="replace").splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.partition("=")[2].strip().strip('"')
    return f"{platform.system()} {platform.release()}"


def _cameras(root: Path) -> dict[str, str]:
    """Capture devices by their file; decoders and converters, which a Raspberry Pi has many of, are left out."""
    found = {}
    for folder in sorted(root.glob("sys/class/video4linux/video*")):
        with contextlib.suppress(OSError):
            name = (folder / "name").read_text(errors="replace").strip()
            if not name.startswith(("bcm2835-codec", "bcm2835-isp", "rpivid", "rpi-hevc", "pispbe", "rp1-cfe")):
                found[f"/dev/{folder.name}"] = name
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _user() -> str:
    with contextlib.suppress(Exception):  # what getpass raises where there is no such user differs by version
        import getpass

        return getpass.getuser()
    return str(os.getuid()) if hasattr(os, "getuid") else ""


def _free() -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(str(Path.home())).free
    return None


def _memory(root: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _cache() -> tuple[str, str]:
    """The cache folder, and why it cannot be written."""
    from edgeclf.core.files import cache_folder

    folder = cache_folder()
    place = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    if not place.is_dir():
        return str(folder), f"{place} is no folder"
    return str(folder), "" if os.access(str(place), os.W_OK | os.X_OK) else f"{place} cannot be written"


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
        return True
    return False
