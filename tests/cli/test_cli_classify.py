"""classify as a user meets it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")

from pyarrow import dataset

Cli = Callable[..., Any]


@pytest.fixture
def model(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


@pytest.fixture
def photos(tmp_path: Path, fixtures_folder: Path) -> Path:
    """Four pictures and a broken one."""
    (tmp_path / "photos").mkdir()
    for name in ("red-square", "green-disc", "blue-cross", "yellow-bars"):
        shutil.copy(fixtures_folder / "pictures" / f"{name}.png", tmp_path / "photos")
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def test_a_folder_becomes_parquet_and_the_same_command_again_does_nothing(
    cli: Cli, photos: Path, model: Path, tmp_path: Path
) -> None:
    """A line about the whole, with how many have an error, and one about this run."""
    first = cli("classify", model, photos, "--out", "results.parquet", cwd=tmp_path)
    assert (first.code, first.stderr) == (0, "")
    lines = first.stdout.splitlines()
    assert lines[0] == "results.parquet: 5 pictures, 1 of them without an answer (column 'error')"
    assert lines[1].startswith("5 answered in ")
    again = cli("classify", model, photos, "--out", "results.parquet", cwd=tmp_path)
    assert again.stdout.splitlines() == [lines[0], "nothing was left to do"]
    found = dataset.dataset(tmp_path / "results.parquet", format="parquet").to_table().to_pylist()
    assert [row["label"] for row in found] == ["blue cross", None, "green disc", "red square", "yellow bars"]


def test_json_says_the_same(cli_here: Cli, photos: Path, model: Path, tmp_path: Path) -> None:
    """For scripts."""
    answer = cli_here("classify", model, photos, "--out", tmp_path / "out", "--workers", 1, "--top", 1, "--json")
    told = json.loads(answer.stdout)
    assert (answer.code, told["pictures"], told["errors"], told["answered"]) == (0, 5, 1, 5)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("absent",), 5, "absent: no such file or folder"),
        (("photos", "--address", "127.0.0.1:1"), 2, "an address is that of a Ray cluster; choose the engine ray too"),
        (("photos", "--engine", "ray", "--address", "127.0.0.1:1"), 10, "127.0.0.1:1: no Ray cluster can be reached there"),
        (("s3://me:secret@nowhere/x?scheme=http&endpoint_override=127.0.0.1:1&region=x",), 5, "s3://nowhere/x: cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line_and_its_exit_code(
    cli_here: Cli, photos: Path, model: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    """And no secret in it, and no results."""
    answer = cli_here("classify", model, *arguments, "--out", tmp_path / "out", cwd=tmp_path)
    assert answer.code == code, answer.text
    assert len(answer.stderr.strip().splitlines()) == 1
    assert says in answer.stderr
    assert "secret" not in answer.text
    assert not (tmp_path / "out").exists() or answer.code == 10


def test_without_pyarrow_the_extra_is_named(
    cli_here: Cli, photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 6; everything else works without it."""
    for name in [name for name in sys.modules if name.startswith("edgeclf.runtime.bulk")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = cli_here("classify", model, photos, "--out", tmp_path / "out")
    assert answer.code == 6
    assert "pip install 'edgeclf[bulk]'" in answer.stderr


def test_a_terminal_sees_rate_and_time_left_and_ctrl_c_is_clean(photos: Path, model: Path, tmp_path: Path) -> None:
    """Exit code 130, no traceback, no process left, and what was written is kept."""
    for i in range(4000):
        os.link(photos / "red-square.png", photos / f"{i:04d}.png")
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "edgeclf", "classify", str(model), str(photos), "--out", str(tmp_path / "out"), "--workers", "1"],
        stdout=subprocess.DEVNULL, stderr=theirs, start_new_session=True, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 120
    while b"/s" not in seen and time.monotonic() < deadline:
        seen += os.read(ours, 4096)
    while not list((tmp_path / "out").glob("part-*")) and time.monotonic() < deadline:
        os.read(ours, 4096)
    os.killpg(child.pid, signal.SIGINT)
    try:
        while data := os.read(ours, 4096):
            seen += data
    except OSError:
        pass  # the other end was closed
    assert child.wait() == 130
    assert b"classifying with tiny-int8.tflite" in seen
    assert b"Traceback" not in seen
    assert seen.rstrip().endswith(b"edgeclf: interrupted")
    while is_there(child.pid):
        assert time.monotonic() < deadline, "a process of it is still there"
        time.sleep(0.05)
    os.close(ours)


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
