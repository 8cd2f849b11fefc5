"""deploy, against a real sshd on loopback: what arrives, what stays when a step fails, and what a person is told."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from loopback import Board, board, machine, wheels

from edgeclf.core.bundle import attach, read_bundle
from edgeclf.core.errors import BoardError, ConfigError, StorageError
from edgeclf.core.files import sha256
from edgeclf.core.live_settings import LiveSettings, read_settings
from edgeclf.core.progress import no_bar
from edgeclf.host.deploy import deploy
from edgeclf.host.deploy import scripts as deploy_scripts
from edgeclf.host.deploy import ssh as deploy_ssh
from edgeclf.host.deploy.board import Facts, check, look, profile_for
from edgeclf.host.deploy.ssh import Address, Done, connected, remote_line

Cli = Callable[..., Any]
WITHIN_S = 60


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse for this machine with edgeclf and pip; everything else the loopback board has from its system."""
    return wheels(tmp_path_factory.mktemp("wheelhouse"))


@dataclass(frozen=True)
class Loopback:
    """A board, and `deploy` to it."""

    board: Board
    house: Path
    cli: Cli

    def deploy(self, file: Path, *options: object, measure: str = "--no-measure") -> Any:
        return self.cli("deploy", *self.board.options(), file, "--wheelhouse", self.house, measure, *options)

    @property
    def root(self) -> Path:
        return self.board.home / "edgeclf/live"

    @property
    def current(self) -> str:
        return (self.root / "current").readlink().name

    def releases(self) -> set[str]:
        return {path.name for path in (self.root / "releases").iterdir()}


@pytest.fixture(scope="module")
def loopback(house: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """The board of this module."""
    with board(tmp_path_factory.mktemp("board")) as served:
        yield Loopback(served, house, cli)


@pytest.fixture(scope="module")
def model(fixtures_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file, in a folder that figures may be written to."""
    return Path(shutil.copy(fixtures_folder / "tiny-int8.tflite", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def first(loopback: Loopback, model: Path) -> Any:
    """The answer of the first deploy, which most tests stand on."""
    answer = loopback.deploy(model, measure="--measure")
    assert answer.code == 0, answer.text
    return answer


def test_a_deploy_installs_verifies_measures_and_brings_the_figures_back(first: Any, loopback: Loopback, model: Path) -> None:
    """Every step a line with its time; the file there is the file here, and runs in the environment that was made."""
    steps = [line.split(" s  ")[1] for line in first.stderr.splitlines()]
    assert [s.split()[0] for s in steps] == [
        "looked",
        "took",
        "nothing",
        "copied",
        "install",
        "copied",
        "verified",
        "measured",
        "asked",
        "switch",
        "keep",
    ]
    assert (loopback.root / "current" / model.name).read_bytes() == model.read_bytes()
    program = loopback.root / "current/env/bin/edgeclf"
    assert subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.startswith("edgeclf ")
    figures = json.loads((model.parent / f"{model.stem}.127.0.0.1.json").read_text())
    assert (figures["sha256"], figures["changed"]) == (sha256(model), True)
    assert "bit-exact; here " in figures["verified"]
    assert figures["bench"]
    assert figures["doctor"]
    assert not list(loopback.board.home.rglob(".part-*"))


def test_a_second_run_changes_only_what_differs(first: Any, loopback: Loopback, model: Path, tmp_path: Path) -> None:
    """The same: nothing. Other settings: a new release in the same environment, and the one before is kept."""
    before = loopback.current
    again = loopback.deploy(model)
    assert (again.code, loopback.current, loopback.releases()) == (0, before, {before}), again.text
    assert "was current already" in again.stdout
    assert "environment" in again.stderr
    assert "install into" not in again.stderr
    (tmp_path / "live.toml").write_text("[decide]\ntop = 1\n")
    answer = loopback.deploy(model, "--config", tmp_path / "live.toml", "--json")
    assert (answer.code, json.loads(answer.stdout)["changed"]) == (0, True), answer.text
    assert "install into" not in answer.stderr
    assert (loopback.root / "current/live.toml").read_text() == "[decide]\ntop = 1\n"
    assert loopback.releases() == {before, loopback.current}


def test_a_second_model_of_the_settings_is_carried_along(
    first: Any, loopback: Loopback, model: Path, fixtures_folder: Path, tmp_path: Path
) -> None:
    """It stands beside the settings here; on the board they name it in their release, and the rest of them is as it was."""
    second = Path(shutil.copy(fixtures_folder / "tiny-float32.tflite", tmp_path / "full model.tflite"))
    (tmp_path / "live.toml").write_text("[compare]\nfile = 'full model.tflite'\n[decide]\ntop = 2\n")
    answer = loopback.deploy(model, "--config", tmp_path / "live.toml")
    assert (answer.code, "copied full model.tflite, the model to compare with" in answer.stderr) == (0, True), answer.text
    release = loopback.root / "releases" / loopback.current
    there = read_settings(release / "live.toml")
    assert there == replace(
        LiveSettings(),
        decide=replace(LiveSettings().decide, top=2),
        compare=replace(LiveSettings().compare, file=str(release / "compare-full-model.tflite")),
    )
    assert Path(there.compare.file).read_bytes() == second.read_bytes()
    before = loopback.current
    assert "was current already" in loopback.deploy(model, "--config", tmp_path / "live.toml").stdout
    second.write_bytes((fixtures_folder / "tiny-float16.tflite").read_bytes())
    assert loopback.deploy(model, "--config", tmp_path / "live.toml").code == 0
    assert loopback.current != before


@pytest.mark.parametrize(
    ("named", "code", "message"),
    [
        ("none.tflite", 2, "compare.file = 'none.tflite': no such file here"),
        ("/nowhere/none.tflite", 2, "compare.file = '/nowhere/none.tflite': no such file, here or there"),
        ("other.tflite", 4, "its labels are others"),
    ],
)
def test_a_second_model_that_cannot_be_used_is_told_before_anything_is_changed(
    loopback: Loopback, model: Path, tmp_path: Path, named: str, code: int, message: str
) -> None:
    """A path that only the board has is looked for there."""
    bundle = read_bundle(model)
    assert bundle.card is not None
    others = tuple(f"another {label}" for label in bundle.card.labels)
    (tmp_path / "other.tflite").write_bytes(attach(bundle.model, replace(bundle.card, labels=others)))
    (tmp_path / "live.toml").write_text(f"[compare]\nfile = '{named}'\n")
    answer = loopback.deploy(model, "--config", tmp_path / "live.toml", "--name", "second")
    assert (answer.code, message in answer.stderr) == (code, True), answer.text
    assert not (loopback.board.home / "edgeclf/second").exists()


def test_all_but_the_current_release_and_the_one_before_is_removed(tmp_path: Path) -> None:
    """With the environments and wheels that only they needed; wheels stay unless others were carried."""
    for name in ("releases/1", "releases/2", "releases/3", "envs/a", "envs/b", "envs/c", "wheels/a", "wheels/b"):
        (tmp_path / name).mkdir(parents=True)
    for release, env in ("1a", "2b", "3b"):
        (tmp_path / "releases" / release / "env").symlink_to(f"../../envs/{env}")
    for name in ("old.whl", "new.whl"):
        (tmp_path / "wheels" / name).touch()
    (tmp_path / "current").symlink_to("releases/3")
    for kept, left in ((), {"b", "old.whl", "new.whl"}), (("new.whl",), {"b", "new.whl"}):
        subprocess.run(["sh", "-c", deploy_scripts.PRUNE, "sh", tmp_path, "2", *kept], check=True)
        assert {p.name for p in (tmp_path / "wheels").iterdir()} == left
    assert {p.name for p in (tmp_path / "releases").iterdir()} == {"2", "3"}
    assert {p.name for p in (tmp_path / "envs").iterdir()} == {"b"}


def test_a_file_that_computes_something_else_there_is_rolled_back(
    first: Any, loopback: Loopback, model: Path, tmp_path: Path
) -> None:
    """Exit code 7 with the board's own line; the release before is current and whole, the new one gone."""
    before, releases = loopback.current, loopback.releases()
    answer = loopback.deploy(wrong(model, tmp_path / "wrong.tflite"))
    assert answer.code == 7, answer.text
    assert answer.stderr.splitlines()[-1].startswith("edgeclf: ")
    assert "verify failed there: wrong.tflite: wrong (largest difference 3, tolerance 0)" in answer.stderr
    assert f"release {before} is still current" in answer.stderr
    assert (loopback.current, loopback.releases()) == (before, releases)
    assert not (tmp_path / "wrong.127.0.0.1.json").exists()


def wrong(model: Path, path: Path) -> Path:
    """A file whose card expects other answers than its network gives."""
    bundle = read_bundle(model)
    assert bundle.card is not None
    assert bundle.card.self_test is not None
    moved = tuple(tuple(value + 3 for value in row) for row in bundle.card.self_test.outputs)
    path.write_bytes(
        attach(bundle.model, replace(bundle.card, self_test=replace(bundle.card.self_test, outputs=moved, tolerance=0.0)))
    )
    return path


def test_a_flipped_bit_is_refused_before_anything_is_sent(cli_here: Cli, loopback: Loopback, model: Path, tmp_path: Path) -> None:
    """Exit code 4, and the board heard nothing of it."""
    data = bytearray(model.read_bytes())
    data[len(data) // 3] ^= 4
    (tmp_path / "x.tflite").write_bytes(data)
    answer = cli_here("deploy", *loopback.board.options(), tmp_path / "x.tflite", "--name", "flipped")
    assert (answer.code, answer.stderr.count("\n"), "SHA-256 differs" in answer.stderr) == (4, 1, True), answer.text
    assert not (loopback.board.home / "edgeclf/flipped").exists()


def test_a_file_that_was_altered_on_its_way_leaves_nothing(loopback: Loopback, tmp_path: Path) -> None:
    """The checksum is made there, of what arrived."""
    (tmp_path / "whole").write_bytes(b"whole" * 1000)
    target = loopback.board.home / "sent/file"
    with connected(address(loopback)) as remote:
        cut = remote.run(
            deploy_scripts.PUT, str(target), hashlib.sha256(b"another").hexdigest(), "0644", stdin=tmp_path / "whole"
        )
        assert (cut.code, cut.last_line) == (65, "it arrived cut or altered")
        assert list(target.parent.iterdir()) == []
        whole = remote.run(deploy_scripts.PUT, str(target), sha256(tmp_path / "whole"), "0600", stdin=tmp_path / "whole")
    assert (whole.code, target.read_bytes(), target.stat().st_mode & 0o777) == (0, b"whole" * 1000, 0o600)


def test_a_copy_whose_sender_is_killed_leaves_nothing(loopback: Loopback) -> None:
    """Half of a file arrived, then ssh is killed: its temporary file goes by itself."""
    target = loopback.board.home / "killed/file"
    line = remote_line(deploy_scripts.PUT, (str(target), hashlib.sha256(b"x" * 99).hexdigest(), "0644"))
    sender = subprocess.Popen([*address(loopback).command("none"), line], stdin=subprocess.PIPE)
    assert sender.stdin is not None
    sender.stdin.write(b"x" * 50)
    sender.stdin.flush()
    wait_until(lambda: any(part.stat().st_size == 50 for part in target.parent.glob(".part-*")))
    sender.kill()
    sender.wait()
    wait_until(lambda: not list(target.parent.iterdir()))


def wait_until(condition: Callable[[], bool]) -> None:
    """Within a generous time."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def address(loopback: Loopback) -> Address:
    """The loopback board's."""
    return Address(loopback.board.target, None, tuple(loopback.board.ssh.split()))


def test_an_installation_that_fails_leaves_the_old_environment_and_says_the_last_line(
    first: Any, loopback: Loopback, model: Path
) -> None:
    """Exit code 9; half an environment is not taken for one."""
    before, envs = loopback.current, set((loopback.root / "envs").iterdir())
    loopback.board.program(
        "python-broken", f'[ "$2" = venv ] && {{ echo "no ensurepip" >&2; exit 1; }}; exec {sys.executable} "$@"'
    )
    answer = loopback.deploy(model, "--python", "python-broken")
    assert answer.code == 9, answer.text
    assert answer.stderr.splitlines()[-1].endswith("no ensurepip")
    assert (loopback.current, set((loopback.root / "envs").iterdir())) == (before, envs)


def test_two_deploys_to_one_account_do_not_meet(loopback: Loopback, model: Path) -> None:
    """The second is refused, exit code 9, and the lock goes with the first one's connection."""
    if shutil.which("flock") is None:
        pytest.skip("no flock here")
    with connected(address(loopback)):
        answer = loopback.deploy(model)
        assert (answer.code, "another deploy to this account is at work" in answer.stderr) == (9, True), answer.text
    wait_until(lambda: _can_connect(loopback))


def _can_connect(loopback: Loopback) -> bool:
    try:
        with connected(address(loopback)):
            return True
    except BoardError:
        return False


def test_another_architecture_is_refused(loopback: Loopback, model: Path) -> None:
    """Exit code 2 before anything is changed there, naming both."""
    other = "host" if machine() == "aarch64" else "raspberry-pi-4"
    answer = loopback.deploy(model, "--device", other, "--name", "other")
    assert answer.code == 2, answer.text
    assert f"is {machine()}" in answer.stderr
    assert not (loopback.board.home / "edgeclf/other").exists()


def test_a_board_that_is_off_is_told_within_the_time(
    loopback: Loopback, model: Path, cli_here: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed port at once; one that takes connections and says nothing after CONTACT_SECONDS. Exit code 9."""
    assert deploy_ssh.CONTACT_SECONDS <= 10
    monkeypatch.setattr(deploy_ssh, "CONTACT_SECONDS", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        closed = cli_here("deploy", "pi@127.0.0.1", model, "--port", port)
        assert (closed.code, "Connection refused; switch ssh on" in closed.stderr) == (9, True), closed.text
        silent.listen()
        answer = cli_here("deploy", "pi@127.0.0.1", model, "--port", port)
    assert (answer.code, answer.stderr.count("\n")) == (9, 1), answer.text
    assert "on this network?" in answer.stderr


def test_a_key_that_is_not_known_there_is_told_with_what_to_do(loopback: Loopback, model: Path, tmp_path: Path) -> None:
    """No password is asked for: exit code 9."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    text = Path(loopback.board.ssh.split()[-1]).read_text()
    (tmp_path / "ssh_config").write_text(text.replace("/user\n", "/nobody\n"))
    answer = loopback.cli("deploy", loopback.board.target, model, "--ssh", f"ssh -F {tmp_path}/ssh_config")
    assert (answer.code, answer.stderr.count("\n"), "ssh-copy-id" in answer.stderr) == (9, 1, True), answer.text


@pytest.mark.parametrize("target", ["-oProxyCommand=touch x", "pi@-x", "a b", "pi@host;id", "", "pi@host\n", "$(id)"])
def test_a_host_that_ssh_or_a_shell_could_read_as_something_else_is_refused(target: str) -> None:
    """Before ssh is started."""
    with pytest.raises(ConfigError, match="expected USER@HOST"):
        Address(target)


def test_arguments_reach_a_script_whatever_they_hold() -> None:
    """Quoted for the login shell, which takes the line apart again."""
    values = ("a b", "it's", '"$HOME"', "$(id)", "`id`", ";", "ä", "")
    done = subprocess.run(["sh", "-c", remote_line('printf "%s|" "$@"', values)], capture_output=True, text=True, check=True)
    assert done.stdout == "|".join(values) + "|"


def test_a_dry_run_shows_the_commands_and_changes_nothing(loopback: Loopback, model: Path) -> None:
    """Also where a service was asked for."""
    fake_systemd(loopback)
    answer = loopback.deploy(model, "--dry-run", "--service", "--name", "dry")
    assert answer.code == 0, answer.text
    assert all(
        word in answer.stderr for word in ("would install", "would verify", "mv -T", "systemctl enable", "nothing was changed")
    )
    assert not (loopback.board.home / "edgeclf/dry").exists()
    assert not (loopback.board.home / "systemctl.log").exists()


SUDO = """
shift  # -n
[ "$1" = install ] || exec "$@"
for last; do :; done
case $* in *" -d "*) exec mkdir -p "$HOME$last" ;; esac
mkdir -p "$HOME${last%/*}"
while [ $# -gt 2 ]; do [ "$1" = -m ] && mode=$2; shift; done
cp "$1" "$HOME$2"; chmod $mode "$HOME$2"
"""


def fake_systemd(loopback: Loopback, starts: bool = True, state: str = "running") -> None:
    """The board's sudo, which keeps files below its home folder, and a systemctl that writes down what it is told."""
    home = loopback.board.home
    (home / "systemctl.log").unlink(missing_ok=True)
    loopback.board.program("sudo", SUDO)
    told = f'[ "$1" != is-system-running ] || {{ echo {state}; exit 1; }}'
    fail = "" if starts else '[ "$1" != restart ] || exit 1'
    loopback.board.program("systemctl", f'{told}\necho "$*" >>"$HOME/systemctl.log"\n{fail}')
    loopback.board.program("journalctl", "echo 'edgeclf: 0: no camera there'")


def test_a_service_is_installed_with_its_secrets_and_rolled_back_when_it_does_not_start(
    first: Any, loopback: Loopback, model: Path, tmp_path: Path
) -> None:
    """The unit runs the current release; a start that fails makes the release before current again, exit code 9."""
    fake_systemd(loopback)
    secrets = tmp_path / "secrets"
    secrets.write_text("EDGECLF_MQTT_PASSWORD=not to be seen\n")
    secrets.chmod(0o600)
    answer = loopback.deploy(model, "--service", "--secrets", secrets)
    assert answer.code == 0, answer.text
    home = loopback.board.home
    unit = (home / "etc/systemd/system/edgeclf-live.service").read_text()
    assert f"ExecStart={loopback.root}/current/env/bin/edgeclf run {loopback.root}/current/{model.name} --wait" in unit
    assert (home / "systemctl.log").read_text().split("\n")[:2] == ["daemon-reload", "enable --quiet edgeclf-live.service"]
    stored = home / "etc/edgeclf/live.env"
    assert (stored.read_text(), stored.stat().st_mode & 0o777) == (secrets.read_text(), 0o600)
    assert "not to be seen" not in answer.text
    before = loopback.current
    fake_systemd(loopback, starts=False)
    (tmp_path / "live.toml").write_text("[decide]\ntop = 3\n")
    failed = loopback.deploy(model, "--service", "--config", tmp_path / "live.toml")
    assert (failed.code, loopback.current) == (9, before), failed.text
    assert "edgeclf-live.service does not start: 0: no camera there" in failed.stderr.replace("edgeclf: 0", "0")


def test_sudo_that_asks_for_a_password_is_told_before_anything_is_changed(loopback: Loopback, model: Path) -> None:
    """Exit code 2 and what to do; so is a board whose systemd does not run."""
    fake_systemd(loopback)
    loopback.board.program("sudo", "echo 'sudo: a password is required' >&2; exit 1")
    answer = loopback.deploy(model, "--service", "--name", "sudo")
    assert (answer.code, "sudo asks for a password" in answer.stderr) == (2, True), answer.text
    fake_systemd(loopback, state="offline")
    without = loopback.deploy(model, "--service", "--name", "sudo")
    assert (without.code, "no systemd there" in without.stderr) == (2, True), without.text
    assert not (loopback.board.home / "edgeclf/sudo").exists()


def test_wheels_for_another_python_are_refused_with_the_command_that_makes_the_right_ones(
    loopback: Loopback, house: Path, model: Path, tmp_path: Path
) -> None:
    """Exit code 2; so is --offline without any."""
    shutil.copytree(house, tmp_path / "other")
    manifest = tmp_path / "other/wheelhouse.json"
    manifest.write_text(manifest.read_text().replace(f'"{sys.version_info.major}.{sys.version_info.minor}"', '"3.99"'))
    answer = loopback.cli("deploy", *loopback.board.options(), model, "--offline", "--wheelhouse", tmp_path / "other")
    assert (answer.code, "make others: edgeclf wheelhouse" in answer.stderr) == (2, True), answer.text
    without = loopback.cli("deploy", *loopback.board.options(), model, "--offline")
    assert (without.code, "--offline needs --wheelhouse" in without.stderr) == (2, True), without.text


SAID = """machine=aarch64
home=/home/pi
user=pi
model=Raspberry Pi 4 Model B Rev 1.5
os=Raspbian GNU/Linux 12 (bookworm)
free_kb=9000000
memory_kb=3900000
capped=
group=video
group=wheel
python=3.11.2
bits=32
glibc=2.36
"""


@dataclass(frozen=True)
class Saying:
    """A board that answers every script with the same text."""

    text: str

    def run(self, script: str, *arguments: str, stdin: Path | None = None, seconds: float = 60) -> Done:
        return Done(0, self.text, "")


def facts(**changes: object) -> Facts:
    """A 32-bit Raspberry Pi OS on a Pi 4 with its usual 64-bit kernel, and what is changed of it."""
    return replace(look(Saying(SAID), "pi", "python3"), **changes)  # type: ignore[arg-type]


def test_a_32_bit_system_under_a_64_bit_kernel_is_told_by_its_python() -> None:
    """`uname -m` says aarch64 there; the group that no camera needs is not kept."""
    found = facts()
    assert (found.machine, found.old, found.groups, found.memory_mb) == ("aarch64", True, ("video",), 3808)
    profile = profile_for(found, None)
    assert profile is not None
    assert profile.name == "raspberry-pi-4"
    assert check(found, "pi", profile, 100) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"python": "3.13.5"}, "tflite-runtime 2.14, its only runtime, needs Python 3.11"),
        ({"bits": 64, "python": "3.9.2"}, "edgeclf needs 3.11"),
        ({"bits": 64, "glibc": "2.24"}, "has glibc 2.24"),
        ({"bits": 64, "free_mb": 20}, "20 MB of disk free, 100 MB needed"),
        ({"bits": 64, "machine": "riscv64"}, "is riscv64"),
        ({"machine": "armv6l"}, "is armv6l with 32 bits"),
    ],
)
def test_a_board_that_cannot_run_it_is_refused_with_the_reason(changes: dict[str, object], message: str) -> None:
    """One line that says what to do."""
    found = facts(**changes)
    with pytest.raises(ConfigError, match=message):
        check(found, "pi", profile_for(found, None), 100)


def test_a_32_bit_system_without_wheels_is_told_how_to_make_them(model: Path) -> None:
    """There is no index that serves it."""
    wanted = deploy.Wanted(model)
    task = deploy.Deploy(Saying(SAID), "pi", wanted, lambda what, seconds: None, no_bar, lambda message: None)
    with pytest.raises(ConfigError, match="edgeclf wheelhouse pi4 --bits 32"):
        task.run()


def test_a_full_disk_there_is_a_storage_error() -> None:
    """Exit code 8, as here."""
    full = Done(1, "", "cat: write error: No space left on device\n")
    assert deploy._kind(full) is StorageError
    assert deploy._kind(Done(1, "", "x")) is BoardError


def test_what_a_board_says_cannot_steer_the_terminal() -> None:
    """Escape sequences of a hostile or broken board."""
    assert Done(1, "", "first\n\x1b[2Jlast\n").last_line == "?[2Jlast"
    assert facts().model
    assert "\x1b" not in look(Saying(SAID.replace("Raspberry", "\x1b[31mRaspberry")), "pi", "python3").model
