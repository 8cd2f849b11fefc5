"""`edgeclf run` as a user meets it: real child processes, real signals, real pipes, a real stream server."""

from __future__ import annotations

import contextlib
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

import cv2
import numpy as np
import pytest

USER, PASSWORD = "keeper", "s3cr3t%40w0rd"


@pytest.fixture(scope="module")
def model(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


@pytest.fixture(scope="module")
def folder(fixtures_folder: Path) -> Path:
    """Pictures, two of them broken."""
    return fixtures_folder / "pictures"


@pytest.fixture
def video(tmp_path: Path, folder: Path) -> Path:
    """A second of red square, then a second of blue cross, at 20 frames a second."""
    path = tmp_path / "two.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20, (320, 240))
    for name in ("red-square.png", "blue-cross.png"):
        for _ in range(20):
            writer.write(cv2.resize(cv2.imread(str(folder / name)), (320, 240), interpolation=cv2.INTER_NEAREST))
    writer.release()
    return path


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The program as a child process, not waited for."""
    command = [sys.executable, "-m", "edgeclf", "run", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, env={**os.environ, "PYTHONUNBUFFERED": ""}, **pipes)


def labels(jsonl: str) -> list[str]:
    records = [json.loads(line) for line in jsonl.splitlines()]
    return [record["label"] for record in records if record["event"] == "label"]


def test_a_video_is_classified_frame_by_frame(cli: Any, model: Path, video: Path) -> None:
    """Every frame has its JSON line, in order, with the right label; the summary goes to standard error."""
    answer = cli("run", model, "--source", video, "--jsonl", "-")
    assert answer.code == 0
    assert labels(answer.stdout) == ["red square"] * 20 + ["blue cross"] * 20
    assert "end of source" in answer.stderr
    assert "40 frames" in answer.stderr


def test_the_summary_as_json_counts_everything(cli_here: Any, model: Path, folder: Path) -> None:
    """One JSON document and nothing else; the two broken pictures are skipped, the others counted."""
    answer = cli_here("run", model, "-s", folder, "--json")
    summary = json.loads(answer.stdout)
    assert answer.code == 0
    assert (summary["frames"], summary["skipped"], summary["ended"]) == (8, 2, "end of source")
    assert sum(summary["labels"].values()) == 8
    assert summary["stages"]["invoke"]["runs"] == 8


def test_plain_lines_name_each_change_and_each_skipped_picture(cli_here: Any, model: Path, folder: Path) -> None:
    """Without a terminal: a line when the answer changes, none of it JSON."""
    answer = cli_here("run", model, "-s", folder)
    assert answer.code == 0
    assert "truncated.jpg: the JPEG is cut short" in answer.stdout
    assert "yellow bars" in answer.stdout
    assert answer.stdout.count("\n") < 14


def test_a_video_in_real_time_takes_its_own_time(cli_here: Any, model: Path, video: Path) -> None:
    """Forty frames at 20 a second take two seconds, and none is older than an interval."""
    summary = json.loads(cli_here("run", model, "-s", video, "--realtime", "--json").stdout)
    assert 1.7 < summary["seconds"] < 4
    assert summary["frames"] + summary["dropped"] == 40
    assert summary["stages"]["age"]["p50_ms"] < 50


def test_limits_end_a_live_run(cli_here: Any, model: Path) -> None:
    """`--max-frames` and `--seconds` end with code 0."""
    summary = json.loads(cli_here("run", model, "-s", "synthetic", "--fps", 200, "--max-frames", 12, "--json").stdout)
    assert (summary["frames"], summary["ended"]) == (12, "frame limit")
    answer = cli_here("run", model, "-s", "synthetic", "--seconds", 0.5, "--json")
    assert json.loads(answer.stdout)["ended"] == "time limit"
    assert answer.code == 0


def test_a_threshold_gives_unknown(cli_here: Any, model: Path, folder: Path) -> None:
    """Above every score, nothing is known."""
    summary = json.loads(cli_here("run", model, "-s", folder, "--threshold", 1, "--json").stdout)
    assert summary["labels"] == {"unknown": 8}


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 0), ("SIGHUP", 0)])
def test_a_signal_ends_the_run_cleanly_and_soon(model: Path, name: str, code: int, tmp_path: Path) -> None:
    """Within two seconds, with the summary, whole JSON lines and no traceback."""
    out = tmp_path / "seen.jsonl"
    child = start(model, "-s", "synthetic", "--json", "--jsonl", out)
    _wait_for(lambda: out.exists() and out.read_text().count("label") > 3)
    began = time.monotonic()
    child.send_signal(getattr(signal, name))
    stdout, stderr = child.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert child.returncode == code
    assert json.loads(stdout)["ended"] == name
    assert "Traceback" not in stderr
    assert json.loads(stdout)["frames"] == len(labels(out.read_text()))


@pytest.mark.parametrize("options", [[], ["--jsonl", "-"]])
def test_a_reader_that_goes_away_ends_the_run_quietly(model: Path, options: list[str]) -> None:
    """As with `| head -1`: code 0, no traceback, no complaint about standard output."""
    child = start(model, "-s", "synthetic", "--fps", 200, *options)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.wait(20) == 0
    stderr = child.stderr.read()
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr


def test_a_reader_that_stops_reading_does_not_stop_the_classifying(model: Path, tmp_path: Path) -> None:
    """The pipe fills, the lines are lost and counted, frames go on at full rate, and the end comes in time."""
    counted = tmp_path / "counted.csv"
    child = start(model, "-s", "synthetic", "--fps", 500, "--jsonl", "-", "--csv", counted)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    _wait_for(lambda: counted.exists() and counted.read_bytes().count(b"\n") > 1000, 60)  # the pipe takes under 200 lines
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 0
    assert time.monotonic() - began < 2.5
    stderr = child.stderr.read()
    assert "jsonl lost" in stderr
    assert int(stderr.split(" frames, ")[0].rsplit(" ", 1)[1]) > 500
    child.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-s", "missing.mp4"], 3, "missing.mp4: no such file or folder"),
        (["-s", "/dev/video987"], 3, "no such camera; found:"),
        (["-s", "synthetic", "--json", "--jsonl", "-"], 2, "both want standard output"),
        (["-s", "synthetic", "--jsonl", "/nowhere/x.jsonl"], 8, "/nowhere/x.jsonl: cannot write"),
        (["-s", "synthetic", "--window"], 2, "neither DISPLAY nor WAYLAND_DISPLAY"),
        (["-s", "synthetic", "--smooth", "2"], 2, "smooth"),
    ],
)
def test_what_cannot_work_is_one_line_and_a_code(
    cli_here: Any, model: Path, arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was wrong and where; no traceback."""
    for display in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(display, raising=False)
    answer = cli_here("run", model, *arguments)
    assert answer.code == code
    assert message in answer.text
    assert "Traceback" not in answer.text


def test_a_corrupt_video_is_refused(cli_here: Any, model: Path, tmp_path: Path) -> None:
    """A file that is no video ends with the code of a source."""
    (tmp_path / "v.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(2000))
    answer = cli_here("run", model, "-s", tmp_path / "v.mp4")
    assert answer.code == 3
    assert "cannot read this as a video" in answer.stderr


def test_a_video_that_was_cut_short_is_classified_as_far_as_it_goes(cli_here: Any, model: Path, video: Path) -> None:
    """With a warning that names what is missing."""
    video.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    answer = cli_here("run", model, "-s", video, "--json")
    assert answer.code == 0
    assert 10 < json.loads(answer.stdout)["frames"] < 40
    assert "of 40 frames; the file seems to be cut short" in answer.stderr


class CameraServer:
    """Motion JPEG over HTTP that can be killed and started again on the same port, or made to fall silent."""

    def __init__(self, picture: bytes) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.silent = threading.Event()
        self._picture = picture
        self.start()

    def start(self) -> None:
        camera, alive = self, threading.Event()
        alive.set()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(camera._picture)
                with contextlib.suppress(OSError):
                    while alive.is_set():
                        if not camera.silent.is_set():
                            self.wfile.write(head + camera._picture + b"\r\n")
                        time.sleep(0.04)

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self._alive = alive
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def kill(self) -> None:
        self._alive.clear()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def camera() -> Iterator[CameraServer]:
    picture = np.random.RandomState(0).randint(0, 256, (120, 160, 3), np.uint8)
    server = CameraServer(cv2.imencode(".jpg", picture)[1].tobytes())
    yield server
    server.kill()


def test_a_stream_whose_server_is_killed_and_started_again_goes_on(model: Path, camera: CameraServer, tmp_path: Path) -> None:
    """States are told, labels resume within two seconds of the return, and the credentials are nowhere in the output."""
    out = tmp_path / "seen.jsonl"
    child = start(model, "-s", f"http://{USER}:{PASSWORD}@127.0.0.1:{camera.port}/live?token={PASSWORD}", "--jsonl", out)
    _wait_for(lambda: out.exists() and '"label"' in out.read_text())
    camera.kill()
    _wait_for(lambda: '"reconnecting"' in out.read_text())
    time.sleep(0.5)
    before = len(labels(out.read_text()))
    camera.start()
    began = time.monotonic()
    _wait_for(lambda: len(labels(out.read_text())) > before)
    assert time.monotonic() - began < 2
    child.send_signal(signal.SIGTERM)
    stdout, stderr = child.communicate(timeout=20)
    assert child.returncode == 0
    assert "1 reconnects" in stderr
    assert f"http://***@127.0.0.1:{camera.port}/live" in stderr
    for secret in (USER, PASSWORD, "s3cr3t"):
        assert secret not in stdout + stderr + out.read_text()


def test_a_stream_that_falls_silent_is_seen_within_three_seconds_and_does_not_hold_up_the_end(
    model: Path, camera: CameraServer, tmp_path: Path
) -> None:
    """While the read blocks: the state says `stalled`, and SIGTERM ends the run within two seconds."""
    out = tmp_path / "seen.jsonl"
    child = start(model, "-s", f"http://127.0.0.1:{camera.port}/live", "--jsonl", out)
    _wait_for(lambda: out.exists() and '"label"' in out.read_text())
    camera.silent.set()
    began = time.monotonic()
    _wait_for(lambda: '"stalled"' in out.read_text())
    assert time.monotonic() - began < 3
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    stderr = child.communicate(timeout=20)[1]
    assert time.monotonic() - began < 2
    assert child.returncode == 0
    assert "SIGTERM" in stderr


def _wait_for(there: Any, seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.02)
