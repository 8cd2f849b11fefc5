"""RTSP from a real server that is killed, stopped and started again; an address that takes connections and never answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeclf.core.errors import SourceError
from edgeclf.runtime.sources.camera import find_source
from edgeclf.runtime.sources.capture import Capture, Change

SERVER = Path(__file__).parents[2] / "tools" / "rtsp_server.py"
SYSTEM_PYTHON = "/usr/bin/python3"
USER, PASSWORD = "keeper", "p@ss/word#"
ESCAPED = "p%40ss%2Fword%23"


class Server:
    """The RTSP server as a process; `kill` and `start` again keep its port."""

    def __init__(self, *arguments: str) -> None:
        self._arguments, self.port = arguments, 0
        self.start()

    def start(self) -> None:
        command = [SYSTEM_PYTHON, str(SERVER), "--port", str(self.port), *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        ready = self._process.stdout.readline()  # type: ignore[union-attr]
        assert ready.startswith("ready rtsp://"), "the server did not start"
        self.port = int(ready.split(":")[2].split("/")[0])

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    found = Path(SYSTEM_PYTHON).exists() and subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True).returncode == 0
    if not found:
        pytest.skip("GStreamer's RTSP server (gi, GstRtspServer) is not installed")
    servers: list[Server] = []

    def start(*arguments: str) -> Server:
        servers.append(Server(*arguments))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def black_hole() -> Iterator[int]:
    """The port of a socket that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


def run(model: Path, source: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "edgeclf", "run", str(model), "-s", source, "--jsonl", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


def records(out: Path) -> list[dict[str, Any]]:
    found = []
    for line in out.read_text().splitlines() if out.exists() else []:
        with contextlib.suppress(ValueError):  # the last line may be half-written
            found.append(json.loads(line))
    return found


def wait_for(out: Path, wanted: Callable[[dict[str, Any]], bool], after: int = 0, seconds: float = 40) -> int:
    """How many records there are once one behind the first `after` is as wanted."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        found = records(out)
        if any(wanted(record) for record in found[after:]):
            return len(found)
        time.sleep(0.02)
    raise AssertionError(f"waited too long; the last records are {records(out)[-3:]}")


def is_state(state: str) -> Callable[[dict[str, Any]], bool]:
    return lambda record: record["event"] == "source" and record["state"] == state


def is_label(record: dict[str, Any]) -> bool:
    return bool(record["event"] == "label")


def test_a_server_that_is_killed_and_started_again_is_read_on(
    serve: Callable[..., Server], fixtures_folder: Path, tmp_path: Path
) -> None:
    """The loss is told once, labels go on after the return, SIGTERM ends it, and the credentials are nowhere."""
    server, out = serve("--user", USER, "--password", PASSWORD), tmp_path / "seen.jsonl"
    child = run(fixtures_folder / "tiny-int8.tflite", f"rtsp://{USER}:{ESCAPED}@127.0.0.1:{server.port}/live", out)
    count = wait_for(out, is_label)
    server.kill()
    count = wait_for(out, is_state("reconnecting"), count)
    time.sleep(1.5)
    assert sum(map(is_state("reconnecting"), records(out))) == 1
    server.start()
    wait_for(out, is_label, count)
    child.send_signal(signal.SIGTERM)
    stdout, stderr = child.communicate(timeout=20)
    assert child.returncode == 0
    assert "1 reconnects" in stderr
    for secret in (USER, PASSWORD, ESCAPED):
        assert secret not in stdout + stderr + out.read_text()


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_a_server_that_falls_silent_is_a_stall_then_given_up_and_does_not_hold_up_the_end(
    serve: Callable[..., Server], fixtures_folder: Path, tmp_path: Path, codec: str
) -> None:
    """The connection stays open and nothing comes: the limit on a read holds, and the end does not wait for the opening."""
    server, out = serve("--codec", codec), tmp_path / "seen.jsonl"
    child = run(fixtures_folder / "tiny-int8.tflite", f"rtsp://127.0.0.1:{server.port}/live", out)
    count = wait_for(out, is_label)
    server.freeze()
    count = wait_for(out, is_state("stalled"), count)
    began = time.monotonic()
    count = wait_for(out, is_state("reconnecting"), count)
    assert time.monotonic() - began < 10
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0
    child.communicate()


def test_motion_jpeg_over_rtsp_is_decoded_here(serve: Callable[..., Server]) -> None:
    """The frames come as they were sent, so that what decoding takes is known and a broken one is noticed."""
    reader = find_source(f"rtsp://127.0.0.1:{serve('--codec', 'mjpeg', '--pattern', 'red').port}/live").open()
    picture = reader.read()
    reader.close()
    assert picture is not None
    assert picture.image.shape == (480, 640, 3)
    assert picture.image.mean((0, 1))[2] > 200 > 50 > picture.image.mean((0, 1))[0]
    assert picture.decode_s > 0


def test_wrong_credentials_are_refused_without_showing_any(serve: Callable[..., Server]) -> None:
    """The server says no; the message says what to check."""
    port = serve("--user", USER, "--password", PASSWORD).port
    with pytest.raises(SourceError, match=r"rtsp://\*\*\*@127\.0\.0\.1:\d+/live: .*check address, network, user and password"):
        find_source(f"rtsp://{USER}:wrong@127.0.0.1:{port}/live").open()


def test_an_address_that_takes_connections_and_never_answers_is_given_up(black_hole: int) -> None:
    """After the limit on opening, not after FFmpeg's or the system's own."""
    began = time.monotonic()
    with pytest.raises(SourceError, match="no video came within 5 s"):
        find_source(f"rtsp://user:secret@127.0.0.1:{black_hole}/live").open()
    assert 4 < time.monotonic() - began < 15


def test_a_black_hole_does_not_hold_up_the_end(black_hole: int) -> None:
    """Closing takes its second, though the opening still blocks."""
    capture = Capture(find_source(f"rtsp://127.0.0.1:{black_hole}/live"), wait=True)
    capture.begin()
    time.sleep(0.2)
    began = time.monotonic()
    capture.close()
    assert time.monotonic() - began < 4
    assert [news.state for news in capture.news() if isinstance(news, Change)] == ["ended"]
