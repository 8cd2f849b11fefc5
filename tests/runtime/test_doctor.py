"""doctor on machines that are made up (row 33), each with one thing wrong: the cause by name, and the exact command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_vitals import put

from edgeclf.runtime.device import doctor, facts
from edgeclf.runtime.device.facts import Facts, Trial
from edgeclf.runtime.device.vitals import Throttle, Vitals

PIP = "/home/pi/edgeclf/bin/python -m pip"
GOOD_TEST = Trial(0, json.dumps({"files": [{"outcome": "bit-exact", "runtime": "ai-edge-litert 2.3.0"}]}))
WELL = Facts(
    board="Raspberry Pi 4 Model B Rev 1.4", vector_units=("NEON",), sees_system=True,
    packages={"edgeclf": "0.1.0", "numpy": "2.4.6", "opencv-python": "5.0.0.93", "ai-edge-litert": "2.3.0"},
    imports={name: Trial(0) for name in ("numpy", "cv2", "ai_edge_litert.interpreter", "picamera2")},
    self_test=GOOD_TEST, cameras={"/dev/video0": "HD Webcam"}, vitals=Vitals(temperature_c=48.0, throttle=Throttle()),
    free_bytes=8 << 30, memory_bytes=1 << 30, cache="/home/pi/.cache/edgeclf",
)  # fmt: skip
NUMPY_ABI = (
    "A module that was compiled using NumPy 1.x cannot be run in\nNumPy 2.4.6 as it may crash.\n"
    "ImportError: numpy.core.multiarray failed to import\n"
)


def failed(err: str, code: int = 1) -> Trial:
    return Trial(code, "", err)


def with_packages(**versions: str | None) -> dict[str, str]:
    """WELL's packages with some added, and those of None taken away; `_` stands for a hyphen."""
    wanted: dict[str, Any] = {**WELL.packages, **{name.replace("_", "-"): version for name, version in versions.items()}}
    return {name: version for name, version in wanted.items() if version}


def with_imports(module: str, trial: Trial) -> dict[str, Trial]:
    return {**WELL.imports, module: trial}


def bad(found: Facts) -> dict[str, doctor.Check]:
    """The checks that are not ok, by name."""
    return {check.name: check for check in doctor.diagnose(found) if check.state != "ok"}


def test_a_good_board_has_nothing_to_mend() -> None:
    """Every check is ok, and each is one line."""
    checks = doctor.diagnose(WELL)
    assert bad(WELL) == {}
    assert doctor.worst(checks) == "ok"
    assert [check.name for check in checks] == list(doctor.CHECKS)
    assert all("\n" not in str(check) for check in checks)


FAULTS: dict[str, tuple[dict[str, Any], str, str, str, str]] = {
    "Python 3.9": (
        {"python": (3, 9, 2)}, "python", "failing", "needs 3.11 or newer",
        "python3 -m pip install --user uv && python3 -m uv venv --seed --python 3.11 ~/edgeclf "
        "&& ~/edgeclf/bin/pip install edgeclf",
    ),
    "system Python": (
        {"virtual": False, "managed": True, "executable": "/usr/bin/python3"}, "python", "warning", "the system's own",
        "python3 -m venv --system-site-packages ~/edgeclf && ~/edgeclf/bin/pip install edgeclf",
    ),
    "32-bit": (
        {"bits": 32, "machine": "armv7l", "packages": with_packages(ai_edge_litert=None, tflite_runtime="2.14.0", numpy="1.24.2"),
         "python": (3, 13, 1)},
        "system", "failing", "the one route is Python 3.11, tflite-runtime 2.14, and numpy and OpenCV of apt", doctor.ROUTE_32,
    ),
    "two wheels": (
        {"packages": with_packages(opencv_python_headless="4.10.0.84")}, "opencv", "failing",
        "opencv-python and opencv-python-headless are both installed",
        f"{PIP} uninstall -y opencv-python opencv-python-headless && {PIP} install --no-cache-dir opencv-python",
    ),
    "no libGL": (
        {"imports": with_imports("cv2", failed("ImportError: libGL.so.1: cannot open shared object file: No such file\n"))},
        "opencv", "failing", "libGL.so.1", "sudo apt install -y libgl1 libglib2.0-0",
    ),
    "no OpenCV": (
        {"packages": with_packages(opencv_python=None), "imports": with_imports("cv2", failed("No module named 'cv2'"))},
        "opencv", "failing", "not installed", f"{PIP} install opencv-python",
    ),
    "OpenCV of numpy 1": (
        {"imports": with_imports("cv2", failed(NUMPY_ABI))}, "opencv", "failing", "built for numpy 1",
        f"{PIP} install --upgrade opencv-python",
    ),
    "numpy mismatch": (
        {"packages": with_packages(ai_edge_litert=None, tflite_runtime="2.14.0"),
         "imports": with_imports("tflite_runtime.interpreter", failed(NUMPY_ABI))},
        "numpy", "failing", "numpy 2.4.6 beside tflite-runtime 2.14.0, which needs numpy below 2",
        f"{PIP} uninstall -y tflite-runtime && {PIP} install ai-edge-litert",
    ),
    "numpy mismatch on 32 bits": (
        {"packages": {"edgeclf": "0.1.0", "numpy": "2.4.6", "opencv": "4.6.0", "tflite-runtime": "2.14.0"}, "bits": 32},
        "numpy", "failing", "needs numpy below 2", f"{PIP} install 'numpy<2'",
    ),
    "no runtime": (
        {"packages": with_packages(ai_edge_litert=None)}, "runtime", "failing", "no TFLite runtime",
        f"{PIP} install ai-edge-litert",
    ),
    "illegal instruction": (
        {"imports": with_imports("ai_edge_litert.interpreter", failed("", -4))}, "runtime", "failing", "SIGILL",
        f"{PIP} uninstall -y ai-edge-litert && {PIP} install tflite-runtime==2.14.0 'numpy<2' 'opencv-python<4.12'",
    ),
    "no libcamera": (
        {"imports": with_imports("picamera2", failed("ModuleNotFoundError: No module named 'libcamera'")),
         "packages": with_packages(picamera2="0.3.27")},
        "picamera2", "failing", "no libcamera", "sudo apt install -y python3-picamera2",
    ),
    "picamera2 out of sight": (
        {"imports": with_imports("picamera2", failed("ModuleNotFoundError: No module named 'picamera2'")),
         "apt": ("picamera2", "libcamera"), "sees_system": False},
        "picamera2", "failing", "does not see the system's packages",
        "/usr/bin/python3 -m venv --system-site-packages /home/pi/edgeclf",
    ),
    "not in video": (
        {"closed": ("/dev/video0",)}, "camera", "failing", "join the group video", "sudo usermod -aG video pi",
    ),
    "disk full": (
        {"free_bytes": 50 << 20}, "disk", "failing", "0.1 GB free", "sudo apt-get clean && sudo journalctl --vacuum-size=50M",
    ),
    "read-only cache": (
        {"cache_refuses": "/home/pi cannot be written"}, "disk", "warning", "not remembered",
        "sudo install -d -o pi /home/pi/.cache/edgeclf",
    ),
    "port taken": ({"web_port_taken": True}, "ports", "warning", "8080 (web) is taken", "ss -ltnp 'sport = :8080'"),
    "busy": ({"load": 9.0}, "cpu", "warning", "load 9.0", "top"),
    "little memory": ({"memory_bytes": 90 << 20}, "memory", "warning", "90 MB", "sudo systemctl isolate multi-user"),
    "wrong numbers": (
        {"self_test": Trial(7, json.dumps({"files": [{"outcome": "wrong", "runtime": "ai-edge-litert 2.3.0"}]}))},
        "self-test", "failing", "something else than was shipped", f"{PIP} install --force-reinstall ai-edge-litert",
    ),
    "broken edgeclf": (
        {"self_test": failed("ImportError: no card")}, "self-test", "failing", "does not run (ImportError: no card)",
        f"{PIP} install --force-reinstall --no-deps edgeclf",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_the_command_that_mends_it(fault: str) -> None:
    """The line says the cause and ends with the command, and the command is one that a shell can parse."""
    changes, name, state, cause, command = FAULTS[fault]
    check = bad(replace(WELL, **changes))[name]
    assert (check.state, check.mend) == (state, command)
    assert cause in str(check)
    assert str(check).endswith(f": {command}")
    assert shlex.split(command)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_failing_line_ends_with_a_command(fault: str) -> None:
    """Also the lines that fail besides the one that is meant."""
    for check in bad(replace(WELL, **FAULTS[fault][0])).values():
        assert check.state != "failing" or check.mend, str(check)


def test_the_one_route_of_a_32_bit_system_is_known_when_it_was_taken() -> None:
    """Python 3.11, tflite-runtime 2.14, numpy and OpenCV of apt: nothing fails, though another kernel rounds otherwise."""
    found = replace(
        WELL, bits=32, machine="armv7l", python=(3, 11, 2),
        packages={"edgeclf": "0.1.0", "numpy": "1.24.2", "opencv": "4.6.0", "tflite-runtime": "2.14.0"},
        imports={name: Trial(0) for name in ("numpy", "cv2", "tflite_runtime.interpreter", "picamera2")},
        self_test=Trial(7, json.dumps({"files": [{"outcome": "wrong", "runtime": "tflite-runtime 2.14.0"}]})),
    )  # fmt: skip
    assert {name: check.state for name, check in bad(found).items()} == {"self-test": "warning"}
    assert bad(replace(found, machine="armv6l"))["system"].state == "failing"


def test_the_power_is_told_by_what_the_firmware_says() -> None:
    """Now, and once since the start; a command cannot mend a supply, so it is a warning."""
    weak = replace(WELL, vitals=Vitals(temperature_c=84.0, throttle=Throttle(("under-voltage",), ("under-voltage",))))
    check = bad(weak)["power"]
    assert check.state == "warning"
    assert "under-voltage" in check.found
    assert "84 °C" in check.found
    once = bad(replace(WELL, vitals=Vitals(throttle=Throttle((), ("throttled",)))))["power"]
    assert "since the board started: throttled" in once.found


def test_a_check_that_fails_itself_hinders_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """It becomes a warning that says so."""

    def broken(found: Facts) -> doctor.Check:
        raise OSError("sysfs is gone")

    monkeypatch.setitem(doctor.CHECKS, "disk", broken)
    assert len(doctor.diagnose(WELL)) == len(doctor.CHECKS)
    assert bad(WELL)["disk"].found == "could not be checked: OSError: sysfs is gone"


def test_facts_are_read_from_the_machine(tmp_path: Path) -> None:
    """Cameras without the codecs of a Raspberry Pi, system, board, memory, and what apt has."""
    put(tmp_path, "etc/os-release", 'ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    put(tmp_path, "proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    put(tmp_path, "proc/meminfo", "MemTotal: 2048 kB\nMemAvailable: 1024 kB\n")
    put(tmp_path, "sys/class/video4linux/video0/name", "HD Webcam\n")
    put(tmp_path, "sys/class/video4linux/video10/name", "bcm2835-codec-decode\n")
    put(tmp_path, "usr/lib/python3/dist-packages/picamera2/__init__.py", "")
    assert facts._system(tmp_path) == "Debian GNU/Linux 12 (bookworm)"
    assert facts._cameras(tmp_path) == {"/dev/video0": "HD Webcam"}
    assert (facts._memory(tmp_path), facts._apt(tmp_path)) == (1 << 20, ("picamera2",))


def test_an_import_that_kills_its_process_is_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried in a child; what happened is in the trial."""
    (tmp_path / "deadly.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    (tmp_path / "broken.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    assert facts.try_import("deadly").reason == "the process ended by SIGILL"
    assert facts.try_import("broken").reason == "ImportError: libGL.so.1: cannot open shared object file"
    assert facts.try_import("json").code == 0


def test_an_import_that_never_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time limit, here a short one."""
    (tmp_path / "endless.py").write_text("while True: pass")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(facts, "CHILD_SECONDS", 1.0)
    assert "not done after 1 s" in facts.try_import("endless").reason


@pytest.mark.parametrize("module", ["cv2", "numpy"])
def test_the_program_answers_where_a_package_is_broken(module: str, tmp_path: Path) -> None:
    """`edgeclf doctor` in a process whose cv2 or numpy ends it: the line, the command, exit code 1, no traceback."""
    (tmp_path / f"{module}.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from edgeclf.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "doctor", "--json"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    name = {"cv2": "opencv", "numpy": "numpy"}[module]
    assert found[name]["state"] == "failing"
    assert "SIGILL" in found[name]["found"]
    assert "pip install" in found[name]["mend"]
    assert found["self-test"]["found"].endswith("failing above")


def test_it_runs_from_the_source_alone_and_imports_nothing_else() -> None:
    """As on a Python that is too old to install edgeclf: no third-party package, and the grammar of Python 3.9."""
    code = (
        "import sys, edgeclf.runtime.device.doctor\n"
        "print({'numpy', 'cv2', 'typer', 'rich', 'tomllib'} & set(sys.modules))"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    import ast

    for name in ("doctor", "facts", "vitals"):
        text = (Path(doctor.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        ast.parse(text, feature_version=(3, 9))
    assert doctor.main.__doc__
