"""OpenCV's own V4L2 code before a fake driver: the program reads a camera that is pulled out, comes back, and breaks frames."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

DRIVER = Path(__file__).with_name("fake_v4l2.c")
SHARED = Path("/dev/shm")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake driver, built."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not os.access(SHARED, os.W_OK) or not sys.platform.startswith("linux"):
        pytest.skip("a C compiler or a writable /dev/shm is missing")
    built = tmp_path_factory.mktemp("driver") / "fake_v4l2.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(DRIVER), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the fake driver cannot be built: {done.stderr[-200:]}")
    return built


class Camera:
    """Cameras under a folder of /dev: `plug` makes number n, with the link `mine` to it."""

    def __init__(self, folder: Path, frames: Path, driver: Path) -> None:
        self.folder, self.link = folder, folder / "mine"
        self.environment = {
            **os.environ, "LD_PRELOAD": str(driver), "FAKE_V4L2": str(folder / "video"), "FAKE_FRAMES": str(frames)
        }  # fmt: skip

    def plug(self, number: int) -> None:
        (self.folder / f"video{number}").touch()
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(f"video{number}")

    def unplug(self, number: int) -> None:
        (self.folder / f"video{number}").unlink()
        self.link.unlink()

    def run(self, model: Path, out: Path, *more: str, **settings: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edgeclf", "run", str(model), "-s", str(self.link), "--jsonl", str(out), *more]
        environment = {**self.environment, **settings}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.fixture
def camera(driver: Path, tmp_path: Path, fixtures_folder: Path) -> Iterator[Camera]:
    """Shows a red square that moves a little; every fourth frame is half missing."""
    frames = tmp_path / "frames"
    frames.mkdir()
    square = cv2.resize(cv2.imread(str(fixtures_folder / "pictures" / "red-square.png")), (64, 48))
    for i in range(4):
        data = cv2.imencode(".jpg", np.roll(square, i, 1))[1].tobytes()
        (frames / f"{i}.jpg").write_bytes(data if i != 2 else data[: len(data) * 3 // 4] + b"\xff\xd9")
    with tempfile.TemporaryDirectory(dir=SHARED) as folder:
        yield Camera(Path(folder), frames, driver)


def records(out: Path) -> list[dict[str, Any]]:
    lines = out.read_text().splitlines() if out.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for(out: Path, there: Callable[[list[dict[str, Any]]], Any], after: int = 0) -> int:
    """How many records there are once those behind the first `after` are as wanted."""
    limit = time.monotonic() + 40
    while not there((found := records(out))[after:]):
        assert time.monotonic() < limit, f"waited too long; the last records are {found[-3:]}"
        time.sleep(0.02)
    return len(found)


def labels(found: list[dict[str, Any]]) -> list[str]:
    return [record["label"] for record in found if record["event"] == "label"]


def details(found: list[dict[str, Any]], state: str) -> list[str]:
    return [record["detail"] for record in found if record["event"] == "source" and record["state"] == state]


def test_a_camera_is_read_pulled_out_and_found_again_under_another_number(
    camera: Camera, fixtures_folder: Path, tmp_path: Path
) -> None:
    """Broken frames are skipped and never labelled; what it gives instead is told once; labels go on after the return."""
    camera.plug(0)
    out = tmp_path / "seen.jsonl"
    child = camera.run(fixtures_folder / "tiny-int8.tflite", out)
    count = wait_for(out, lambda found: len(labels(found)) > 20)
    camera.unplug(0)
    count = wait_for(out, lambda found: details(found, "reconnecting"), count)
    time.sleep(1)
    assert len(details(records(out), "reconnecting")) == 1
    camera.plug(3)
    wait_for(out, lambda found: len(labels(found)) > 5, count)
    child.send_signal(signal.SIGTERM)
    _, stderr = child.communicate(timeout=20)
    found = records(out)
    assert child.returncode == 0
    assert set(labels(found)) == {"red square"}
    reasons = {record["reason"].split(": ")[-1] for record in found if record["event"] == "skipped"}
    assert reasons == {"the lower part of the JPEG is missing"}
    assert details(found, "live") == ["", "gives 64x48 MJPG at 50 fps instead of 640x480 MJPG at 30 fps", ""]
    assert "1 reconnects" in stderr
    decoded = [record["decode_ms"] for record in found if record["event"] == "label"]
    assert min(decoded) > 0


def test_a_camera_that_is_absent_can_be_waited_for(camera: Camera, fixtures_folder: Path, tmp_path: Path) -> None:
    """Without the option it is an error with code 3; with it, labels come when it is plugged in."""
    out = tmp_path / "seen.jsonl"
    child = camera.run(fixtures_folder / "tiny-int8.tflite", out)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 3
    assert "no such camera; found: " in stderr
    child = camera.run(fixtures_folder / "tiny-int8.tflite", out, "--wait-for-source", "--max-frames", "5")
    wait_for(out, lambda found: details(found, "reconnecting"))
    camera.plug(0)
    child.communicate(timeout=60)
    assert child.returncode == 0
    assert labels(records(out)) == ["red square"] * 5


def test_a_camera_in_use_is_an_error_that_names_its_holder(camera: Camera, fixtures_folder: Path, tmp_path: Path) -> None:
    """V4L2 says so only when it is to stream, and OpenCV not at all."""
    camera.plug(0)
    with (camera.folder / "video0").open("rb") as handle:
        holder = subprocess.Popen(["sleep", "60"], stdin=handle)
    child = camera.run(fixtures_folder / "tiny-int8.tflite", tmp_path / "seen.jsonl", FAKE_BUSY="1")
    _, stderr = child.communicate(timeout=60)
    holder.kill()
    holder.wait()
    assert child.returncode == 3
    assert f"is in use by sleep (pid {holder.pid}); end that program first" in stderr


def test_a_camera_that_changes_its_size_goes_on(camera: Camera, fixtures_folder: Path, tmp_path: Path) -> None:
    """One warning, and the labels stay right."""
    frames = Path(camera.environment["FAKE_FRAMES"])
    square = cv2.imread(str(fixtures_folder / "pictures" / "red-square.png"))
    for i in range(4):
        wide = cv2.resize(square, (64, 48) if i < 2 else (128, 96), interpolation=cv2.INTER_NEAREST)
        (frames / f"{i}.jpg").write_bytes(cv2.imencode(".jpg", np.roll(wide, i, 1))[1].tobytes())
    camera.plug(0)
    out = tmp_path / "seen.jsonl"
    child = camera.run(fixtures_folder / "tiny-int8.tflite", out, "--max-frames", "40", "--width", "64", "--height", "48")
    child.communicate(timeout=60)
    assert child.returncode == 0
    assert labels(records(out)) == ["red square"] * 40
    assert len([detail for detail in details(records(out), "live") if detail.startswith("pictures are now")]) == 1
