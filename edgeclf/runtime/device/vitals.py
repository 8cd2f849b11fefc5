"""Vitals: memory, temperature, clock and throttle bits of this machine, read from /proc and /sys without being root.

Standard library only, and nothing newer than Python 3.8, as `doctor` wants it. `root` is the folder that /proc and /sys
stand in; tests give a folder of their own.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
# A Raspberry Pi 5 has another address in the names; recent kernels of it have no such file at all.
THROTTLE_FILES = "sys/devices/platform/soc*/soc*firmware/get_throttled", "sys/devices/platform/soc*firmware/get_throttled"
# Bits of the firmware's register that say what is so now; those 16 higher, what was so since the board started.
THROTTLE_NAMES = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "temperature limit"}
SINCE_START = 16
VCGENCMD_SECONDS = 1.0
HOT_C = 80.0  # where the firmware of a Raspberry Pi begins to slow it down
COMPLAINTS = {
    "under-voltage": "the supply is too weak (under-voltage), which slows the board down: use the board's own supply and cable",
    "clock capped": "the firmware holds the clock down (clock capped): latencies are longer than they need be",
    "throttled": "the board is throttled by heat or a weak supply: latencies are longer than they need be",
    "temperature limit": "the board has reached its soft temperature limit, so its clock is lower: give it air",
}
# What int8 networks gain from, by the flag in /proc/cpuinfo: x86 first, then ARM.
VECTOR_UNITS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI", "amx_int8": "AMX int8",
    "neon": "NEON", "asimd": "NEON", "asimddp": "NEON dot product", "i8mm": "NEON i8mm",
}  # fmt: skip


@dataclass(frozen=True)
class Throttle:
    """What slows a Raspberry Pi down, in the words of THROTTLE_NAMES: now, and at some time since the board started."""

    now: tuple[str, ...] = ()
    since_start: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vitals:
    """One reading; None where the system does not say. Bytes, degrees Celsius of the hottest sensor, MHz of the fastest core."""

    memory_bytes: int | None = None
    temperature_c: float | None = None
    clock_mhz: float | None = None
    throttle: Throttle | None = None


@dataclass(frozen=True)
class Device:
    """The device over a whole run; None where the system does not say. `cpu_share` is of one core, children not counted.

    `lowest_clock_mhz` is the lowest of the readings, of the fastest core. `throttled` names what the firmware reported at
    any time.
    """

    peak_memory_bytes: int | None
    cpu_share: float | None
    hottest_c: float | None
    lowest_clock_mhz: float | None
    throttled: tuple[str, ...]


def read_vitals(root: Path = ROOT) -> Vitals:
    """A reading of this process and its machine; takes well under a millisecond where /sys has the throttle bits."""
    return Vitals(resident_bytes(root), temperature_c(root), clock_mhz(root), throttle(root))


def resident_bytes(root: Path = ROOT) -> int | None:
    """Resident size of this process."""
    return _status_bytes(root, "VmRSS:")


def peak_bytes(root: Path = ROOT) -> int | None:
    """Largest resident size of this process so far.

    From /proc, because `ru_maxrss` of a child starts at what its parent had.
    """
    return _status_bytes(root, "VmHWM:")


def temperature_c(root: Path = ROOT) -> float | None:
    """Of the hottest thermal zone; a sensor that reports nonsense (below -50 or above 200 degrees) is passed over."""
    values = [_number(path) for path in root.glob("sys/class/thermal/thermal_zone*/temp")]
    found = [value / 1000 for value in values if value is not None and -50_000 < value < 200_000]
    return max(found) if found else None


def clock_mhz(root: Path = ROOT) -> float | None:
    """Of the fastest core, as the kernel believes it to be: a Raspberry Pi's firmware may run it slower when throttled."""
    values = [_number(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    found = [value / 1000 for value in values if value is not None and value > 0]
    return max(found) if found else None


def throttle(root: Path = ROOT) -> Throttle | None:
    """What the firmware of a Raspberry Pi reports: from /sys, else by `vcgencmd`; else the supply alarm alone; else None."""
    for pattern in THROTTLE_FILES:
        for path in root.glob(pattern):
            with contextlib.suppress(OSError, ValueError):
                return named(int(path.read_text().strip(), 16))
    if root == ROOT:
        bits = _vcgencmd()
        if bits is not None:
            return named(bits)
    return _supply_alarm(root)


def named(bits: int) -> Throttle:
    """The bits of the firmware's register in words."""
    now = tuple(name for bit, name in THROTTLE_NAMES.items() if bits >> bit & 1)
    return Throttle(now, tuple(name for bit, name in THROTTLE_NAMES.items() if bits >> (bit + SINCE_START) & 1))


def board(root: Path = ROOT) -> str:
    """What the device tree calls the board, as `Raspberry Pi 4 Model B Rev 1.4`; empty on a PC."""
    with contextlib.suppress(OSError):
        return (root / "proc/device-tree/model").read_text(errors="replace").strip("\0 \n")
    return ""


def vector_units(root: Path = ROOT) -> tuple[str, ...]:
    """Those of VECTOR_UNITS that the CPU has, in that order; empty where the system does not say."""
    flags: list[str] = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.partition(":")[0].strip() in ("flags", "Features"):
                flags = line.partition(":")[2].split()
                break
    return tuple(dict.fromkeys(name for flag, name in VECTOR_UNITS.items() if flag in flags))


def complaints(vitals: Vitals) -> dict[str, str]:
    """What a person should know of a reading, by its cause; each says what to do."""
    found = {what: COMPLAINTS[what] for what in (vitals.throttle.now if vitals.throttle else ()) if what in COMPLAINTS}
    if vitals.temperature_c is not None and vitals.temperature_c >= HOT_C:
        found["hot"] = (
            f"the board is at {vitals.temperature_c:.0f} °C: give it a heat sink or a fan, or ask for less: --set gate.max_fps=5"
        )
    return found


def _status_bytes(root: Path, key: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return None


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text().strip())
    return None


def _vcgencmd(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> int | None:
    """The register by the firmware's own program; None where there is none, or it may not ask the firmware."""
    if not shutil.which("vcgencmd"):
        return None
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        command = ["vcgencmd", "get_throttled"]
        done = run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=VCGENCMD_SECONDS, check=True)
        return int(done.stdout.strip().partition("=")[2], 16)
    return None


def _supply_alarm(root: Path) -> Throttle | None:
    """The kernel's own sensor of the supply of a Raspberry Pi, which knows nothing of heat."""
    for folder in root.glob("sys/class/hwmon/hwmon*"):
        with contextlib.suppress(OSError, ValueError):
            if (folder / "name").read_text().strip() == "rpi_volt":
                alarm = _number(folder / "in0_lcrit_alarm")
                return None if alarm is None else Throttle(("under-voltage",) if alarm else ())
    return None
