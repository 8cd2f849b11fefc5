"""wheelhouse and the unit: wheels that fit the board, whole or not at all; a unit that systemd itself finds sound."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from edgeclf.core import config
from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.live_settings import LiveSettings
from edgeclf.host.deploy import unit as deploy_unit
from edgeclf.host.deploy import wheelhouse
from edgeclf.host.deploy.wheel import packed
from edgeclf.host.deploy.wheelhouse import Target

Cli = Callable[..., Any]
MOST_EXPOSED = 2.0  # as `systemd-analyze security` counts, 0 to 10; the unit had 1.8 when this was written


def wheel(
    folder: Path,
    name: str,
    tag: str = "py3-none-any",
    needs: Sequence[str] = (),
    extras: Sequence[str] = (),
    version: str = "1.0",
) -> Path:
    """A wheel with nothing in it but its metadata."""
    path = folder / f"{name}-{version}-{tag}.whl"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}", *(f"Provides-Extra: {e}" for e in extras)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"{name}-{version}.dist-info/METADATA", "\n".join([*lines, *(f"Requires-Dist: {n}" for n in needs)]) + "\n"
        )
        archive.writestr(
            f"{name}-{version}.dist-info/WHEEL", f"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: {tag}\n"
        )
        archive.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks: `numpy` needs `boardonly` on a board alone; `pip` is there, and edgeclf's extra."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    wheel(folder, "numpy", "cp313-cp313-manylinux_2_28_aarch64", ['boardonly; platform_machine == "aarch64"'])
    wheel(folder, "numpy", "cp313-cp313-manylinux_2_28_x86_64")
    for name in ("boardonly", "pip", "starlette", "rich"):
        wheel(folder, name)
    wheel(folder, "opencv_python_headless", "cp37-abi3-manylinux2014_aarch64")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A wheel that is called as edgeclf's."""
    needs = ["numpy", "rich", "opencv-python", 'ai-edge-litert; platform_machine == "sparc"']
    extras = ['starlette; extra == "web"', 'edgeclf[web]; extra == "live"']
    return wheel(tmp_path, "edgeclf", needs=[*needs, *extras], extras=["web", "live"])


def test_a_wheelhouse_holds_what_the_board_needs_though_this_machine_would_not(
    cli_here: Cli, index: Path, own: Path, tmp_path: Path
) -> None:
    """Wheels for its machine and Python, what only its markers ask for, pip, the extras; and a manifest of checksums."""
    answer = cli_here("wheelhouse", "pi4", "--out", tmp_path / "w", "--wheel", own, "--with", "live", "--json")
    assert answer.code == 0, answer.text
    names = {path.name.split("-")[0] for path in (tmp_path / "w").glob("*.whl")}
    assert names == {"edgeclf", "numpy", "opencv_python_headless", "boardonly", "pip", "starlette", "rich"}
    assert (tmp_path / "w/numpy-1.0-cp313-cp313-manylinux_2_28_aarch64.whl").is_file()
    made = wheelhouse.read(tmp_path / "w")
    assert made.target == Target("aarch64", "3.13", 41)
    assert made.wheels == json.loads(answer.stdout)["wheels"]
    assert made.first("pip").name == "pip-1.0-py3-none-any.whl"


def test_a_wheelhouse_that_is_whole_is_left_and_a_damaged_one_made_again(
    cli_here: Cli, index: Path, own: Path, tmp_path: Path
) -> None:
    """The index is not asked when nothing differs; a flipped byte is found and mended."""
    command = "wheelhouse", "pi4", "--out", tmp_path / "w", "--wheel", own
    assert cli_here(*command).code == 0
    stripped = index / "rich-1.0-py3-none-any.whl"
    stripped.rename(tmp_path / "rich")
    assert cli_here(*command).code == 0
    (tmp_path / "rich").rename(stripped)
    damaged = tmp_path / "w/boardonly-1.0-py3-none-any.whl"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="SHA-256 differs"):
        wheelhouse.read(tmp_path / "w")
    damaged.unlink()
    assert cli_here(*command).code == 0
    assert wheelhouse.read(tmp_path / "w").wheels


def test_a_wheel_that_is_missing_leaves_nothing_and_names_it(cli_here: Cli, index: Path, own: Path, tmp_path: Path) -> None:
    """Exit code 9 and one line after the one that says what is done; an old wheelhouse stays as it was."""
    (index / "boardonly-1.0-py3-none-any.whl").unlink()
    answer = cli_here("wheelhouse", "pi4", "--out", tmp_path / "w", "--wheel", own)
    assert (answer.code, answer.stderr.count("\n"), "boardonly" in answer.stderr) == (9, 2, True), answer.text
    assert not (tmp_path / "w").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".w")]


def test_a_32_bit_system_gets_its_one_runtime_and_nothing_that_apt_has(
    cli_here: Cli, index: Path, own: Path, tmp_path: Path
) -> None:
    """tflite-runtime 2.14 for Python 3.11; another Python is refused with the reason."""
    wheel(index, "tflite_runtime", "cp311-cp311-manylinux_2_34_armv7l", ["numpy>=1.21"], version="2.14.0")
    answer = cli_here("wheelhouse", "pi4", "--out", tmp_path / "w", "--wheel", own, "--bits", "32")
    assert answer.code == 0, answer.text
    assert {p.name.split("-")[0] for p in (tmp_path / "w").glob("*.whl")} == {"edgeclf", "pip", "rich", "tflite_runtime"}
    refused = cli_here("wheelhouse", "pi4", "--out", tmp_path / "w", "--bits", "32", "--python", "3.13")
    assert (refused.code, "64-bit Raspberry Pi OS" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("pi9",), "unknown device 'pi9'"),
        (("pi4", "--python", "2.7"), "expected one of: 3.11, 3.12, 3.13"),
        (("pi4", "--with", "train"), "--with train: expected some of"),
        (("pi4", "--bits", "16"), "expected 64 or 32"),
        (("pi4", "--out", "{full}"), "holds other files"),
        (("pi4", "--wheel", "x.txt"), "x.txt: not a wheel of edgeclf"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(
    cli_here: Cli, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """Exit code 2, before anything is fetched."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full/photo.jpg").touch()
    answer = cli_here("wheelhouse", *(o.format(full=tmp_path / "full") for o in options), cwd=tmp_path)
    assert (answer.code, message in answer.stderr) == (2, True), answer.text


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    """Names with folders in them, and a file that is no manifest."""
    table = {"edgeclf_wheelhouse": 1, "machine": "x", "python": "3.11", "glibc": 36, "extras": [], "wheels": {"../x.whl": ""}}
    (tmp_path / "wheelhouse.json").write_text(json.dumps(table))
    (tmp_path.parent / "x.whl").touch()
    with pytest.raises(DataError, match="missing"):
        wheelhouse.read(tmp_path)
    (tmp_path / "wheelhouse.json").write_text("[]")
    with pytest.raises(DataError, match="not the manifest"):
        wheelhouse.read(tmp_path)


def test_an_installed_package_is_packed_to_the_same_wheel_each_time(tmp_path: Path) -> None:
    """So a board sees that nothing changed; pip reads it, and scripts of this environment stay out."""
    made = [packed(distribution("typer"), tmp_path / name) for name in "ab"]
    assert made[0].read_bytes() == made[1].read_bytes()
    names = zipfile.ZipFile(made[0]).namelist()
    assert "typer/__init__.py" in names
    assert not [name for name in names if name.startswith("..") or name.endswith((".pyc", "INSTALLER"))]
    assert wheelhouse.needs(made[0], Target("aarch64", "3.13", 41))


def test_platform_tags_are_those_that_the_board_accepts() -> None:
    """From its glibc down to the oldest for aarch64, with the older name of 2.17."""
    tags = Target("aarch64", "3.11", 19).platforms
    assert tags == [
        "manylinux_2_19_aarch64",
        "manylinux_2_18_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
        "linux_aarch64",
    ]


ALWAYS = """Type=notify
Restart=always
RestartForceExitStatus=75
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
MemoryMax=300M
DynamicUser=yes
SupplementaryGroups=video
StateDirectory=edgeclf-shed""".splitlines()
PIN = "actions.gpio_pin=4", 'actions.gpio_labels=["cat"]'


def settings(*changes: str) -> LiveSettings:
    """Those of a board, with `section.key=value` changed."""
    return config.changed_by_text(LiveSettings(), changes)


def unit(wanted: LiveSettings, **changes: Any) -> str:
    """The text of a unit."""
    parts: dict[str, Any] = {"groups": ("video", "gpio", "render"), "memory_mb": 300, **changes}
    service = deploy_unit.Service("shed", "/home/pi/my env/bin/edgeclf", "/home/pi/100%.tflite", None, ("/home/pi/x y",), **parts)
    return deploy_unit.text(service, wanted)


def test_the_unit_is_sound_and_hardened_by_systemds_own_measure(tmp_path: Path) -> None:
    """`systemd-analyze verify` says nothing of it, `security` finds little."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    path = tmp_path / "edgeclf-shed.service"
    path.write_text(unit(settings("web.token_file=/etc/edgeclf/t", *PIN)).replace("/home/pi/my env/bin/edgeclf", "/bin/sh"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60, check=False)
    assert "edgeclf-shed" not in done.stdout + done.stderr
    security = ["systemd-analyze", "security", "--offline=yes", "--json=short", f"--threshold={MOST_EXPOSED * 10:.0f}", str(path)]
    done = subprocess.run(security, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot look at a file offline")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_asks_for_what_the_settings_use_and_no_more() -> None:
    """A watchdog and restarts always; a pin and its group, CSI devices and secrets only where they are used."""
    plain = unit(settings())
    assert set(ALWAYS) <= set(plain.splitlines())
    assert "WatchdogSec=" in plain
    assert 'ExecStart="/home/pi/my env/bin/edgeclf" run /home/pi/100%%.tflite --wait-for-source' in plain
    assert "gpiochip" not in plain
    assert "LoadCredential" not in plain
    rich = unit(settings("mqtt.password_file=/etc/edgeclf/mqtt", *PIN))
    assert "DeviceAllow=char-gpiochip rw" in rich
    assert "SupplementaryGroups=video gpio" in rich
    assert "LoadCredential=mqtt-password:/etc/edgeclf/mqtt" in rich
    assert "--set mqtt.password_file=${CREDENTIALS_DIRECTORY}/mqtt-password" in rich
    assert "gpio" not in unit(settings(*PIN), groups=("video",)).split("SupplementaryGroups=")[1].splitlines()[0]


def test_the_memory_cap_leaves_the_program_room_to_restart_by_itself() -> None:
    """Never below the size at which it does; the board's budget otherwise."""
    assert deploy_unit.memory_cap(settings(), 150) == 150
    assert deploy_unit.memory_cap(settings("service.memory_mb=400"), 150) == 500


@pytest.mark.parametrize("name", ["", "-x", "a b", "../x", "x\n", "X", "a" * 33, "x-"])
def test_a_name_that_a_unit_cannot_have_is_refused(name: str) -> None:
    """One line."""
    with pytest.raises(ConfigError, match="--name"):
        deploy_unit.checked_name(name)


def test_words_of_a_unit_keep_what_they_hold() -> None:
    """Percent, dollar, quotes and blanks mean something to systemd; a line break is refused."""
    assert deploy_unit.word('a b"%$\\') == '"a b\\"%%$$\\\\"'
    assert deploy_unit.word("/plain-1.tflite") == "/plain-1.tflite"
    with pytest.raises(ConfigError, match="control character"):
        deploy_unit.word("a\nExecStartPost=/bin/x")


def test_a_secret_needs_a_path_on_the_board_and_a_file_that_others_cannot_read(tmp_path: Path) -> None:
    """Neither message shows a value."""
    with pytest.raises(ConfigError, match="absolute path"):
        unit(settings("mqtt.password_file=secret"))
    path = tmp_path / "s.env"
    path.write_text("EDGECLF_WEB_TOKEN=abc\nPATH=/hostile\n")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read it"):
        deploy_unit.check_secrets(path)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r":2: expected EDGECLF_NAME=VALUE$"):
        deploy_unit.check_secrets(path)


def test_service_prints_the_unit_of_this_environment(cli_here: Cli, fixtures_folder: Path, tmp_path: Path) -> None:
    """Or writes it, and says what to type; nothing is installed."""
    file = fixtures_folder / "tiny-int8.tflite"
    printed = cli_here("service", file, "--print")
    assert (printed.code, f"run {file}" in printed.stdout) == (0, True), printed.text
    written = cli_here("service", file, "--out", tmp_path / "u.service")
    assert (written.stdout, "sudo systemctl enable --now edgeclf-live.service" in written.stderr) == ("", True)
    assert (tmp_path / "u.service").read_text() == printed.stdout
    shipped = cli_here("service", "compact-digits", "--print")
    assert re.search(r"run /\S+/compact-digits\.tflite ", shipped.stdout)
    assert cli_here("service", "compact-digit", "--print").code == 4
