"""`edgeclf run --web` as a user meets it: the real program, its messages and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the web extra")
pytest.importorskip("uvicorn", reason="needs the web extra")

from edgeclf.cli.live import USUAL_WEB_ADDRESS, with_web_address

DEADLINE_S = 60
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def model(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(model: Path, address: object, *options: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The program with a page, as a child process."""
    command = [sys.executable, "-m", "edgeclf", "run", model, "-s", "synthetic", "--threads", 1, "--web", address, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen(list(map(str, command)), text=True, env={**os.environ, **environment}, **pipes)  # type: ignore[call-overload]
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.communicate(timeout=DEADLINE_S)


def get(port: int, path: str, token: str = "") -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers), timeout=10) as answer:
        return json.load(answer)


def wait_for(condition: Callable[[], Any]) -> Any:
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends:
        with contextlib.suppress(OSError):
            if found := condition():
                return found
        time.sleep(0.1)
    raise AssertionError("it never came true")


@pytest.mark.parametrize(
    ("given", "whole"),
    [
        (["m.tflite", "--web"], ["m.tflite", "--web", USUAL_WEB_ADDRESS]),
        (["--web", "m.tflite"], ["--web", USUAL_WEB_ADDRESS, "m.tflite"]),
        (["--web", "--json"], ["--web", USUAL_WEB_ADDRESS, "--json"]),
        (["--web", "compact-cifar10"], ["--web", USUAL_WEB_ADDRESS, "compact-cifar10"]),
        (["--web", "0.0.0.0:80", "m"], ["--web", "0.0.0.0:80", "m"]),
        (["--web", ":81"], ["--web", ":81"]),
        (["--web", "82"], ["--web", "82"]),
        (["--web", "[::1]:83"], ["--web", "[::1]:83"]),
        (["--web=84", "-s", "0"], ["--web=84", "-s", "0"]),
    ],
)
def test_the_address_may_be_left_out(given: list[str], whole: list[str]) -> None:
    """What follows `--web` is its address when it looks like one."""
    assert with_web_address(given) == whole


def test_the_page_runs_beside_the_loop_and_ends_with_it(model: Path, tmp_path: Path) -> None:
    """The address is told on standard error; JSON lines go on; SIGTERM ends all within two seconds while somebody watches."""
    port, out = free_port(), tmp_path / "seen.jsonl"
    with running(model, port, "--jsonl", out, "--json") as child:
        assert wait_for(lambda: get(port, "/api/status")["frames"] > 5)
        with socket.create_connection(("127.0.0.1", port), 10) as watcher:
            watcher.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert wait_for(lambda: get(port, "/api/status")["watching"] == 1)
            began = time.monotonic()
            child.send_signal(signal.SIGTERM)
            stdout, stderr = child.communicate(timeout=DEADLINE_S)
            assert time.monotonic() - began < 2
        assert child.returncode == 0
        assert json.loads(stdout)["ended"] == "SIGTERM"
        assert f"preview: http://127.0.0.1:{port}/\n" in stderr
        assert "Traceback" not in stderr
        assert out.read_text().count('"label"') > 5


def test_a_port_in_use_is_one_line_before_the_first_frame(cli: Any, model: Path) -> None:
    """Exit code 2, what was wrong and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        answer = cli("run", model, "-s", "synthetic", "--web", port, "--seconds", 5)
    assert answer.code == 2
    lines = [line for line in answer.stderr.splitlines() if "cannot listen" in line]
    assert len(lines) == 1
    assert f"--web 127.0.0.1:{port}" in lines[0]
    assert "choose another port" in lines[0]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("address", ["localhost:0", "localhost:70000", "192.0.2.1:8080"])
def test_an_address_that_cannot_be_had_is_a_line_too(cli_here: Any, model: Path, address: str) -> None:
    """Port out of range, or no address of this machine."""
    answer = cli_here("run", model, "-s", "synthetic", "--web", address, "--seconds", 1)
    assert answer.code == 2
    assert address in answer.stderr


def test_a_token_of_one_s_own_is_asked_for_and_never_shown(model: Path, tmp_path: Path) -> None:
    """From the environment or a file; the address stands without it."""
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    for options, environment in (([], {"EDGECLF_WEB_TOKEN": TOKEN}), (["--set", f"web.token_file={file}"], {})):
        port = free_port()
        with running(model, f"0.0.0.0:{port}", *options, **environment) as child:
            assert wait_for(lambda port=port: get(port, "/api/status", TOKEN)["frames"] > 1)  # type: ignore[misc]
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(port, "/api/status")
            child.send_signal(signal.SIGTERM)
            stdout, stderr = child.communicate(timeout=DEADLINE_S)
        assert TOKEN not in stdout + stderr
        assert "asks for the token" in stderr


def test_beyond_loopback_a_new_token_is_shown_once(model: Path) -> None:
    """In the address to open, and with it the page opens."""
    port = free_port()
    with running(model, f"0.0.0.0:{port}", EDGECLF_WEB_TOKEN="") as child:
        assert child.stderr is not None
        line = next(line for line in child.stderr if line.startswith("preview:"))
        token = line.strip().partition("?token=")[2]
        assert len(token) >= 32
        assert wait_for(lambda: get(port, "/api/status", token)["frames"] > 1)
        child.send_signal(signal.SIGTERM)
        stdout, stderr = child.communicate(timeout=DEADLINE_S)
    assert token not in stdout + stderr


def test_a_bad_token_is_refused_without_being_repeated(cli: Any, model: Path) -> None:
    """Exit code 2; the message says how to make one."""
    answer = cli("run", model, "-s", "synthetic", "--web", free_port(), "--seconds", 1, env={"EDGECLF_WEB_TOKEN": "2short"})
    assert (answer.code, "2short" in answer.text) == (2, False)
    assert "openssl rand" in answer.stderr


def test_the_extra_is_named_when_it_is_missing(model: Path) -> None:
    """Exit code 6 and one line, rather than an import error."""
    code = "import sys; sys.modules['uvicorn'] = None; from edgeclf.cli.main import main; main()"
    command = [sys.executable, "-c", code, "run", model, "-s", "synthetic", "--web", free_port(), "--seconds", 1]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 6, done.stderr
    assert "pip install 'edgeclf[web]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_of_the_page_is_loaded_unless_it_is_asked_for(model: Path) -> None:
    """A run without `--web` imports neither server nor page."""
    code = (
        "import sys, atexit; from edgeclf.cli.main import main\n"
        "names = 'starlette', 'uvicorn'\n"
        "atexit.register(lambda: print('LOADED', sorted(m for m in sys.modules if m.split('.')[0] in names)))\n"
        "main()"
    )
    command = [sys.executable, "-c", code, "run", model, "-s", "synthetic", "--max-frames", 2]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=DEADLINE_S)
    assert "LOADED []" in done.stdout, done.stdout + done.stderr
