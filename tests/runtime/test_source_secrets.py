"""User and password in an address are in no output, whatever goes wrong."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeclf.core.errors import SourceError
from edgeclf.runtime.sources.camera import find_source

UNESCAPED = "keeper:p@ss/word#"
ESCAPED = "keeper:p%40ss%2Fword%23"
SECRETS = ("keeper", "p@ss", "p%40ss", "/word", "2Fword", "word#", "t0ken")


class _Refusing(http.server.BaseHTTPRequestHandler):
    """A web server whose answer is in the path: a status, a page, or a redirection that repeats the address."""

    def do_GET(self) -> None:
        kind = self.path.strip("/").partition("?")[0]
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", f"http://{ESCAPED}@127.0.0.1:1/gone?pwd=t0ken")
        elif kind == "page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
        else:
            self.send_response(int(kind))
        self.end_headers()
        if kind == "page":
            self.wfile.write(b"<html>no camera</html>" * 100)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def closed() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check(text: str) -> None:
    for secret in SECRETS:
        assert secret not in text, f"{secret!r} is in {text[:2000]!r}"


@pytest.mark.parametrize("user", [UNESCAPED, ESCAPED])
@pytest.mark.parametrize(
    "address",
    [
        "rtsp://{}@127.0.0.1:{closed}/live", "rtsps://{}@127.0.0.1:{closed}/live", "https://{}@127.0.0.1:{closed}/x",
        "http://{}@127.0.0.1:{web}/401", "http://{}@127.0.0.1:{web}/404", "http://{}@127.0.0.1:{web}/500?pwd=t0ken",
        "http://{}@127.0.0.1:{web}/page", "http://{}@127.0.0.1:{web}/redirect", "rtsp://{}@127.0.0.1:{web}/200",
        "rtsp://{}@no-such-host.invalid/live", "rtsp://{}@[::1]:{closed}/live", "rtsp://{}@127.0.0.1:99999/live",
        "gopher://{}@127.0.0.1/x", "RTSP://{}@127.0.0.1:{closed}/user=keeper&password=t0ken&channel=1.sdp", "rtsp://{}@",
    ],
)  # fmt: skip
def test_no_error_of_an_address_shows_its_credentials(
    address: str, user: str, web: int, closed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Refused, missing, no camera, sent elsewhere, no such host, no such port: neither in the message nor on the terminal."""

    def fail() -> None:
        source = find_source(address.format(user, web=web, closed=closed))
        check(source.name)
        source.open()

    with pytest.raises(SourceError) as failure:
        fail()
    shown = capfd.readouterr()
    check(str(failure.value) + shown.out + shown.err)


@pytest.mark.parametrize("text", ["rtsp:/{}@h/live", "rtsp:{}@h/live", "{}@host/live", "stdin:{}@x"])
def test_a_misspelt_address_shows_no_credentials(text: str) -> None:
    """It is taken for a file; what stands before the @ is hidden all the same."""
    with pytest.raises(SourceError) as failure:
        find_source(text.format(UNESCAPED))
    check(str(failure.value))


@pytest.mark.parametrize(
    ("user", "more"),
    [
        (ESCAPED, []), (UNESCAPED, []), (UNESCAPED, ["--debug"]), (UNESCAPED, ["--json"]), (UNESCAPED, ["--jsonl", "-"]),
        (UNESCAPED, ["-s", "{address}"]), (UNESCAPED, ["-s", "missing.mp4"]),
    ],
)  # fmt: skip
def test_the_program_shows_no_credentials_when_it_fails(
    cli: Any, fixtures_folder: Path, closed: int, user: str, more: list[str]
) -> None:
    """With a traceback too, and when the same address is given twice."""
    address = f"rtsp://{user}@127.0.0.1:{closed}/live?token=t0ken"
    program = ["--debug"] if more == ["--debug"] else []
    rest = [] if program else [part.format(address=address) for part in more]
    answer = cli(*program, "run", fixtures_folder / "tiny-int8.tflite", "-s", address, *rest)
    assert answer.code == (2 if more == ["-s", "{address}"] else 3)
    check(answer.text)


def test_settings_in_a_file_show_no_credentials(
    cli_here: Any, fixtures_folder: Path, closed: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither with the address in it nor with a fault beside it."""
    address = f"rtsp://{UNESCAPED}@127.0.0.1:{closed}/live"
    file = tmp_path / "lab.toml"
    for fault in ("", "colour = 3\n", "threads = 'many'\n"):
        file.write_text(f"model = {str(fixtures_folder / 'tiny-int8.tflite')!r}\nsources = ['{address}']\n{fault}")
        answer = cli_here("run", "--config", file)
        assert answer.code == (2 if fault else 3)
        check(answer.text + "".join(capfd.readouterr()))


def test_a_run_that_waits_shows_no_credentials(fixtures_folder: Path, closed: int, tmp_path: Path) -> None:
    """In its events, its lines, its summary; SIGTERM ends it with 0."""
    out = tmp_path / "seen.jsonl"
    command = [
        sys.executable, "-m", "edgeclf", "run", str(fixtures_folder / "tiny-int8.tflite"), "--wait-for-source",
        "-s", f"rtsp://{UNESCAPED}@127.0.0.1:{closed}/live", "-s", f"rtsp://{ESCAPED}@127.0.0.1:{closed}/other",
        "--jsonl", str(out),
    ]  # fmt: skip
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    limit = time.monotonic() + 60
    while not (out.exists() and out.read_text().count('"reconnecting"') >= 2):
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    stdout, stderr = child.communicate(timeout=30)
    assert child.returncode == 0
    assert {json.loads(line)["source"] for line in out.read_text().splitlines() if '"source"' in line} >= {"rtsp://***"}
    check(stdout + stderr + out.read_text())
