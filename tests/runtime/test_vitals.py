"""What a board says of itself, from folders made up as /proc and /sys are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from edgeclf.runtime.device import vitals


def put(root: Path, name: str, text: str) -> None:
    """A file under `root`, with its folders."""
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_a_board_that_says_nothing_has_no_vitals(tmp_path: Path) -> None:
    """None for each, and no exception."""
    assert vitals.read_vitals(tmp_path) == vitals.Vitals()
    assert (vitals.board(tmp_path), vitals.vector_units(tmp_path)) == ("", ())


def test_vitals_are_in_their_units(tmp_path: Path) -> None:
    """Bytes, degrees of the hottest sensible sensor, MHz of the fastest core."""
    put(tmp_path, "proc/self/status", "Name:\tx\nVmHWM:\t 2048 kB\nVmRSS:\t 1024 kB\n")
    for number, value in enumerate(("45200", "61900", "-274000", "garbage", "9999999")):
        put(tmp_path, f"sys/class/thermal/thermal_zone{number}/temp", f"{value}\n")
    for core, value in enumerate(("600000", "1500000")):
        put(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", value)
    assert vitals.read_vitals(tmp_path) == vitals.Vitals(1 << 20, 61.9, 1500.0, None)
    assert vitals.peak_bytes(tmp_path) == 2 << 20


@pytest.mark.parametrize(
    "place",
    ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware", "soc@107c000000:firmware"],
    ids=["pi4", "pi5", "pi5-flat"],
)
def test_throttle_bits_are_found_under_the_names_of_each_board(place: str, tmp_path: Path) -> None:
    """Hexadecimal; the low half is now, the high half since the start."""
    put(tmp_path, f"sys/devices/platform/{place}/get_throttled", "50005\n")
    assert vitals.throttle(tmp_path) == vitals.Throttle(("under-voltage", "throttled"), ("under-voltage", "throttled"))


@pytest.mark.parametrize(
    ("bits", "now", "before"),
    [
        (0, (), ()), (0x50000, (), ("under-voltage", "throttled")), (0x80008, ("temperature limit",), ("temperature limit",)),
        (0x2, ("clock capped",), ()), (0xFFF0FFF0, (), ()),
    ],
)  # fmt: skip
def test_bits_are_named(bits: int, now: tuple[str, ...], before: tuple[str, ...]) -> None:
    """Only those that have a meaning."""
    assert vitals.named(bits) == vitals.Throttle(now, before)


def test_the_supply_alarm_stands_in_where_the_firmware_has_no_file(tmp_path: Path) -> None:
    """As on a Raspberry Pi 5 without `vcgencmd`; another chip's alarm is not taken for it."""
    put(tmp_path, "sys/class/hwmon/hwmon0/name", "cpu_thermal\n")
    put(tmp_path, "sys/class/hwmon/hwmon0/in0_lcrit_alarm", "1\n")
    assert vitals.throttle(tmp_path) is None
    put(tmp_path, "sys/class/hwmon/hwmon1/name", "rpi_volt\n")
    put(tmp_path, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0\n")
    assert vitals.throttle(tmp_path) == vitals.Throttle()
    put(tmp_path, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n")
    assert vitals.throttle(tmp_path) == vitals.Throttle(("under-voltage",))


def test_the_firmwares_program_is_asked_with_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is read; a program that hangs, fails or talks nonsense is as good as none."""
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\necho throttled=0x50005\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert vitals._vcgencmd() == 0x50005
    monkeypatch.setattr(vitals, "VCGENCMD_SECONDS", 0.2)
    for body in ("exec sleep 30", "exit 255", "echo error=1 error_msg=no"):
        program.write_text(f"#!/bin/sh\n{body}\n")
        assert vitals._vcgencmd() is None, body
    monkeypatch.setenv("PATH", "")
    assert vitals._vcgencmd() is None


def test_arm_boards_name_their_vector_units(tmp_path: Path) -> None:
    """`Features` there; those of the first core."""
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd aes asimddp i8mm\n")
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    assert vitals.vector_units(tmp_path) == ("NEON", "NEON dot product", "NEON i8mm")
    assert vitals.board(tmp_path) == "Raspberry Pi 5 Model B Rev 1.0"


def test_it_needs_the_standard_library_alone() -> None:
    """`doctor` reads vitals where numpy and OpenCV are broken."""
    import sys

    code = "import sys, edgeclf.runtime.device.vitals as v; v.read_vitals(); print({'numpy', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
