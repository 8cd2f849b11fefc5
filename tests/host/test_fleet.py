"""Many boards at once: bounded, apart from each other, with one file of all figures, and ended together by Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loopback import Board, board, wheels
from rich.console import Console
from rich.progress import Progress

from edgeclf.cli.deploy_fleet import Lines, Rows, again
from edgeclf.core.errors import BoardError, ConfigError, QualityError
from edgeclf.core.files import sha256
from edgeclf.core.inventory import read
from edgeclf.host.deploy import fleet
from edgeclf.host.deploy.board import Facts
from edgeclf.host.deploy.deploy import Deployed, Wanted
from edgeclf.host.deploy.fleet import Outcome, Task, deploy_all, tasks_of
from edgeclf.host.deploy.ssh import Address, Children, Stopped
from edgeclf.host.report.devices import read_boards

Cli = Callable[..., Any]
WITHIN_S = 60
FACTS = Facts("aarch64", "/home/pi", "pi", "", "", 9000, 4000, True, (), "3.11.2", 64, "2.36")
DONE = Deployed(FACTS, "", "20261126-abc", True, "bit-exact", None, (), "", ())


def tasks(*names: str) -> list[Task]:
    return [Task(name, Address(name), Wanted(Path("x.tflite"))) for name in names]


def test_so_many_boards_are_at_work_side_by_side_and_no_more() -> None:
    """Pairs of two meet, and a third never joins."""
    pair, lock, now, most = threading.Barrier(2, timeout=WITHIN_S), threading.Lock(), 0, 0

    def one(task: Task, watcher: object, children: Children) -> Deployed:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        pair.wait()
        with lock:
            now -= 1
        return DONE

    outcomes = deploy_all(tasks(*"abcdef"), Lines(), 2, one)
    assert ([o.name for o in outcomes.boards], outcomes.failed, most) == (list("abcdef"), [], 2)


def test_a_board_that_fails_leaves_the_others_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind of failure is a result of its board, in one line without its name, with the exit code that stands for it."""
    errors: dict[str, Exception] = {
        "a": BoardError("a: cannot copy x:\n it broke"),
        "b": QualityError("pi@b: verify failed there"),
        "c": OSError(28, "No space left on device", "/tmp/x"),
        "d": ValueError("odd"),
    }

    def one(task: Task, watcher: object, children: Children) -> Deployed:
        if task.name in errors:
            raise errors[task.name]
        return DONE

    outcomes = deploy_all(tasks(*"abcde"), Lines(), 2, one)
    assert [(o.name, o.error, o.exit_code) for o in outcomes.failed] == [
        ("a", "cannot copy x: it broke", 9),
        ("b", "pi@b: verify failed there", 7),
        ("c", "/tmp/x: No space left on device", 8),
        ("d", "unforeseen ValueError: odd", 70),
    ]
    assert "e: done in 0.0 s, release 20261126-abc is current" in capsys.readouterr().err
    assert not outcomes.interrupted


def test_what_an_entry_leaves_out_comes_from_the_options(tmp_path: Path, fixtures_folder: Path) -> None:
    """Paths in an inventory start at its folder; what the entry says wins."""
    (tmp_path / "devices.toml").write_text(
        "[[boards]]\nhost = 'a'\n[[boards]]\nhost = 'b'\nuser = 'pi'\nport = 22\nservice = true\nconfig = 'b.toml'\n"
        "secrets = 'b.env'\nprofile = 'pi5'\nextras = ['web']\npython = 'python3.13'\nssh_options = ['-i', 'key']\n"
    )
    (tmp_path / "b.toml").write_text("[decide]\ntop = 2\n")
    (tmp_path / "b.env").write_text("EDGECLF_WEB_TOKEN=hidden\n")
    (tmp_path / "b.env").chmod(0o600)
    base = Wanted(fixtures_folder / "tiny-int8.tflite", extras=("mqtt",))
    inventory = read(tmp_path / "devices.toml")
    first, second = tasks_of(inventory, inventory.chosen(), base, ("ssh", "-v"), 2222)
    assert (first.address, first.wanted) == (Address("a", 2222, ("ssh", "-v")), base)
    assert second.address == Address("pi@b", 22, ("ssh", "-v", "-i", "key"))
    assert second.wanted.settings.decide.top == 2
    assert second.wanted.profile is not None
    assert second.wanted.profile.name == "raspberry-pi-5"
    assert (second.wanted.extras, second.wanted.python, second.wanted.service) == (("mqtt", "web"), "python3.13", True)
    assert second.wanted.secrets == tmp_path / "b.env"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("profile = 'pi9'", "a: unknown device 'pi9'"),
        ("config = 'none.toml'", "none.toml: cannot be read"),
        ("secrets = 'x'", "a: secrets are for the service"),
        ("extras = ['wbe']", "wbe: expected some of"),
        ("python = '-c'", "a: python = -c"),
        ("user = '-o'", "expected USER@HOST"),
    ],
)
def test_a_board_that_cannot_be_deployed_to_is_told_before_any_is_asked(
    tmp_path: Path, fixtures_folder: Path, entry: str, message: str
) -> None:
    """The inventory, the board, and what is wrong."""
    (tmp_path / "devices.toml").write_text(f"[[boards]]\nhost = 'a'\n{entry}\n")
    inventory = read(tmp_path / "devices.toml")
    with pytest.raises(ConfigError, match=message) as caught:
        tasks_of(inventory, inventory.chosen(), Wanted(fixtures_folder / "tiny-int8.tflite"))
    assert str(caught.value).startswith(f"{tmp_path / 'devices.toml'}: a: ")


def test_the_wheel_is_made_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Boards with a wheel of their own keep it, and when all have one none is made."""
    made: list[Path] = []

    def own(folder: Path) -> Path:
        made.append(folder)
        return folder / "edgeclf.whl"

    monkeypatch.setattr(fleet, "own_wheel", own)
    given = Task("c", Address("c"), Wanted(Path("x"), wheel=Path("given.whl")))
    with fleet.with_one_wheel([*tasks("a", "b"), given]) as ready:
        assert [task.wanted.wheel for task in ready] == [made[0] / "edgeclf.whl"] * 2 + [Path("given.whl")]
    with fleet.with_one_wheel([given]):
        assert len(made) == 1


def test_the_command_that_tries_again_names_the_failed_boards_alone() -> None:
    """Whatever named boards before."""
    words = ["deploy", "my model.tflite", "--only", "a,b", "--inventory", "x.toml", "--only=c", "--group", "barn"]
    command = "edgeclf deploy 'my model.tflite' --inventory x.toml --group barn --only b,c"
    assert again(words, ["b", "c"]) == command


def test_children_that_were_ended_start_no_more() -> None:
    """Those that run are killed."""
    children = Children()
    with children.start(["sleep", "600"]) as child:
        children.end()
        assert child.wait(WITHIN_S) == -signal.SIGKILL
    with pytest.raises(Stopped), children.start(["true"]):
        pass


def test_a_terminal_shows_a_row_for_each_board_at_work_and_a_line_for_each_that_ended() -> None:
    """What a board says cannot be taken for colours, and rows go when their board ends."""
    out = io.StringIO()
    shown = Progress(console=Console(file=out, width=100, force_terminal=False))
    rows = Rows(shown, 2)
    for name in ("a", "b"):
        rows.at(name, "connecting")
    rows.step("a", "looked at [red]a[/red]\nmore", 1.0)
    assert [task.description for task in shown.tasks] == ["0 of 2 ended", "looked at [red]a[/red]", "connecting"]
    rows.ended(Outcome("a", 2.0, error="no [bold]answer", exit_code=9))
    assert [task.description for task in shown.tasks] == ["1 of 2 ended, 1 failed", "connecting"]
    rows.ended(Outcome("b", 2.0, DONE))
    assert "a: failed: no [bold]answer\nb: done in 2.0 s" in out.getvalue()


SSH = """#!/bin/sh
case "$*" in *ControlMaster=yes*) echo edgeclf-ready; exec cat >/dev/null ;; esac
echo $$ >>"{folder}/pids"
exec sleep 600
"""


def test_ctrl_c_ends_every_child_and_tells_what_was_not_done(tmp_path: Path, fixtures_folder: Path) -> None:
    """Exit code 130, no ssh left, and the command that goes on."""
    file = shutil.copy(fixtures_folder / "tiny-int8.tflite", tmp_path)
    (tmp_path / "devices.toml").write_text("".join(f"[[boards]]\nhost = 'b{n}'\n" for n in range(5)))
    ssh, pids = tmp_path / "ssh", tmp_path / "pids"
    ssh.write_text(SSH.format(folder=tmp_path))
    ssh.chmod(0o755)
    wheel = tmp_path / "edgeclf-0.0-py3-none-any.whl"
    wheel.touch()
    command = ["deploy", file, "--inventory", "devices.toml", "--ssh", str(ssh), "--at-once", "3", "--wheel", str(wheel)]
    child = subprocess.Popen(
        [sys.executable, "-m", "edgeclf", *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: pids.is_file() and pids.read_text().count("\n") == 3)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=WITHIN_S)
    assert child.returncode == 130, err
    assert err.splitlines()[-2:] == [
        f"only those again: {shlex.join(['edgeclf', *command])} --only b0,b1,b2,b3,b4",
        "edgeclf: interrupted",
    ]
    assert out.count("not done: interrupted before it was done") == 5
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.read_text().split()))
    assert not json.loads((tmp_path / "tiny-int8.devices.json").read_text())["boards"]["b4"]["deployed"]


def wait_until(condition: Callable[[], bool]) -> None:
    """Within a generous time."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("x.tflite",), "expected USER@HOST FILE, or FILE --inventory devices.toml"),
        (("pi@a", "x.tflite", "--inventory", "i.toml"), "expected USER@HOST FILE, or FILE --inventory"),
        (("pi@a", "x.tflite", "--group", "barn"), "are for many boards; add --inventory"),
        (("pi@a", "x.tflite", "--at-once", "2"), "are for many boards; add --inventory"),
    ],
)
def test_options_that_do_not_fit_together_are_told(cli_here: Cli, options: tuple[str, ...], message: str) -> None:
    """Exit code 2 and one line."""
    answer = cli_here("deploy", *options)
    assert (answer.code, answer.stderr.count("\n"), message in answer.stderr) == (2, 1, True), answer.text


def test_a_report_is_of_a_run_that_the_file_belongs_to(
    cli_here: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fixtures_folder: Path
) -> None:
    """Told before any board is asked; so is a report without what it is made of."""

    @dataclass(frozen=True)
    class Run:
        files: tuple[Path, ...]

        def exports(self) -> tuple[Path, ...]:
            return self.files

    (tmp_path / "devices.toml").write_text("[[boards]]\nhost = 'a'\n")
    file, other = fixtures_folder / "tiny-int8.tflite", fixtures_folder / "tiny-float32.tflite"
    command = "deploy", file, "--inventory", tmp_path / "devices.toml", "--report", "runs/x"
    for exported, options, message in (
        (other, (), "--report runs/x: tiny-int8.tflite is no file of this run"),
        (file, ("--no-measure",), "--report needs what bench measures there"),
    ):
        monkeypatch.setattr("edgeclf.host.run.open_run", lambda folder, exported=exported: Run((exported,)))
        answer = cli_here(*command, *options)
        assert (answer.code, answer.stderr.count("\n"), message in answer.stderr) == (2, 1, True), answer.text


@dataclass(frozen=True)
class Fleet:
    """Two boards on this machine, and a third that is off."""

    folder: Path
    boards: tuple[Board, ...]
    house: Path
    cli: Cli

    @property
    def names(self) -> list[str]:
        return [f"127.0.0.1:{one.port}" for one in self.boards]

    def deploy(self, file: Path, *options: object) -> Any:
        return self.cli("deploy", file, "--inventory", self.folder / "devices.toml", "--wheelhouse", self.house, *options)

    def current(self, one: Board) -> Path:
        return one.home / "edgeclf/live/current"


ENTRY = """
[[boards]]
host = "127.0.0.1"
user = "{user}"
port = {port}
profile = "host"
groups = ["barn"]
ssh_options = ["-F", "{config}"]
"""


@pytest.fixture(scope="module")
def served(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The boards of this module, with real sshds."""
    folder = tmp_path_factory.mktemp("fleet")
    with contextlib.ExitStack() as stack:
        boards = tuple(stack.enter_context(board(folder / name)) for name in ("one", "two"))
        text = "".join(
            ENTRY.format(user=one.target.partition("@")[0], port=one.port, config=shlex.split(one.ssh)[-1]) for one in boards
        )
        off = "\n[[boards]]\nhost = '127.0.0.2'\nport = 9\ngroups = ['barn', 'off']\n"
        (folder / "devices.toml").write_text(f"{text}{off}\n[[boards]]\nhost = 'attic'\n")
        yield Fleet(folder, boards, wheels(tmp_path_factory.mktemp("wheelhouse")), cli)


@pytest.fixture(scope="module")
def model(fixtures_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file, in a folder that figures may be written to."""
    return Path(shutil.copy(fixtures_folder / "tiny-int8.tflite", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def first(served: Fleet, model: Path) -> Any:
    """The answer of the first deploy to the group, one board of which is off."""
    return served.deploy(model, "--group", "barn")


def test_boards_of_a_group_get_the_file_and_one_that_is_off_leaves_them_alone(first: Any, served: Fleet, model: Path) -> None:
    """Exit code 9; every line begins with its board's name; the last ones say what failed and how to go on."""
    assert first.code == 9, first.text
    assert all((served.current(one) / model.name).read_bytes() == model.read_bytes() for one in served.boards)
    lines = first.stderr.splitlines()
    assert lines[-1] == "edgeclf: 1 of 3 boards failed: 127.0.0.2"
    assert lines[-2].endswith("--group barn --only 127.0.0.2")
    assert all(line.startswith(("127.0.0.1:", "127.0.0.2: failed: ")) for line in lines[:-3])
    assert "127.0.0.2: failed: ssh: connect to host 127.0.0.2 port 9: Connection refused" in first.stdout
    assert "attic" not in first.text.replace(str(served.folder), "")


def test_the_figures_of_all_boards_come_back_in_one_file(first: Any, served: Fleet, model: Path) -> None:
    """And the device reports that it names go into one report, each under its board's name."""
    found = json.loads((model.parent / f"{model.stem}.devices.json").read_text())
    assert found["sha256"] == sha256(model)
    assert {name: entry["deployed"] for name, entry in found["boards"].items()} == {
        **dict.fromkeys(served.names, True),
        "127.0.0.2": False,
    }
    assert found["boards"]["127.0.0.2"]["exit_code"] == 9
    reports = [Path(found["boards"][name]["device_report"]) for name in served.names]
    assert [one.report.board for one in read_boards(reports, [("int8", model)])] == served.names
    assert f"edgeclf report --add {reports[0]} --add {reports[1]}" in first.stderr


def test_those_that_failed_are_tried_alone_and_the_others_keep_their_figures(first: Any, served: Fleet, model: Path) -> None:
    """With --only; and a run whose every board works exits with 0."""
    again = served.deploy(model, "--group", "barn", "--only", "127.0.0.2", "--no-measure")
    assert (again.code, "1 of 1 boards failed" in again.stderr) == (9, True), again.text
    name = served.names[1]
    answer = served.deploy(model, "--only", name, "--no-measure", "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.stdout)["boards"]
    assert (found[name]["deployed"], found[name]["changed"], found[served.names[0]]["deployed"]) == (True, False, True)
    assert found[served.names[0]]["bench"]


def test_a_board_where_a_step_fails_keeps_what_ran_there(
    first: Any, served: Fleet, model: Path, fixtures_folder: Path, tmp_path: Path
) -> None:
    """Its own release goes on; the other board has the new one."""
    other = shutil.copy(fixtures_folder / "tiny-float32.tflite", tmp_path)
    one, two = served.boards
    two.program("python-broken", f'[ "$2" != venv ] || {{ echo "no ensurepip" >&2; exit 1; }}; exec {sys.executable} "$@"')
    text = (served.folder / "devices.toml").read_text()
    broken = text.replace(f"port = {two.port}", f"port = {two.port}\npython = 'python-broken'")
    (tmp_path / "devices.toml").write_text(broken)
    before = served.current(two).readlink()
    command = other, "--inventory", tmp_path / "devices.toml", "--wheelhouse", served.house, "--no-measure"
    answer = served.cli("deploy", *command, "--only", ",".join(served.names))
    assert answer.code == 9, answer.text
    assert f"{served.names[1]}: failed: cannot install into environment" in answer.stdout
    assert (served.current(two).readlink(), (served.current(one) / Path(other).name).is_file()) == (before, True)


def test_a_dry_run_changes_nothing_on_any_board(first: Any, served: Fleet, model: Path) -> None:
    """What would be run is shown, each line under its board's name."""
    answer = served.deploy(model, "--only", ",".join(served.names), "--dry-run", "--name", "dry")
    assert (answer.code, answer.stderr.splitlines()[-1]) == (0, "nothing was changed"), answer.text
    assert all(f"{name}:    0.0 s  would install into" in answer.stderr for name in served.names)
    assert not any((one.home / "edgeclf/dry").exists() for one in served.boards)


def test_an_altered_file_is_refused_before_any_board_is_asked(served: Fleet, model: Path, tmp_path: Path) -> None:
    """Exit code 4, one line."""
    data = bytearray(model.read_bytes())
    data[len(data) // 3] ^= 4
    (tmp_path / "x.tflite").write_bytes(data)
    answer = served.deploy(tmp_path / "x.tflite")
    assert (answer.code, answer.stderr.count("\n")) == (4, 1), answer.text
    assert [path.name for path in tmp_path.iterdir()] == ["x.tflite"]
