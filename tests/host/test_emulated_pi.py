"""deploy to an emulated Raspberry Pi 4: real aarch64 wheels, the board's own shell and Python, a real sshd in front of it.

`make emulated-pi` builds the board and runs these; elsewhere they skip. Times under emulation say nothing about a Pi.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from loopback import Board, board

Cli = Callable[..., Any]
BOARD = Path(os.environ.get("EDGECLF_EMULATED_BOARD", Path.home() / ".cache/edgeclf/emulated-pi-board"))
REPOSITORY = Path(__file__).resolve().parent.parent.parent
NAME, DEPLOY_SECONDS = "emulated", 1500
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BOARD / "enter").is_file(), reason=f"no emulated Pi in {BOARD}; make one: make emulated-pi"),
]


@dataclass(frozen=True)
class Pi:
    """The board behind its sshd, the figures that the deploy brought back, and the seconds of each thing done there."""

    served: Board
    figures: dict[str, Any]
    times: dict[str, float]

    def run(self, what: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """edgeclf there, in the environment that the deploy made."""
        line = f"edgeclf/{NAME}/current/env/bin/edgeclf {' '.join(arguments)}"
        start = time.monotonic()
        done = subprocess.run([str(BOARD / "enter"), line], capture_output=True, text=True, timeout=300, check=False)
        self.times[what] = round(time.monotonic() - start, 1)
        return done


@pytest.fixture(scope="module")
def pi(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pi]:
    """A wheelhouse for a Pi 4 with bookworm, and a deploy of the shipped model from it, offline."""
    folder, kept = tmp_path_factory.mktemp("emulated"), BOARD / "wheelhouse"
    made = cli("wheelhouse", "pi4", "--python", "3.11", "--out", kept, "--json")
    if made.code == 9:
        pytest.skip(f"the package index cannot be reached: {made.stderr[-200:]}")
    assert made.code == 0, made.text
    home = BOARD / "pi4/home/pi"
    shutil.rmtree(home / "edgeclf" / NAME, ignore_errors=True)
    with board(folder, shell=str(BOARD / "enter")) as served:
        start = time.monotonic()
        options = "--name", NAME, "--offline", "--wheelhouse", str(kept), "--no-measure", "--out", str(folder / "figures.json")
        command = [sys.executable, "-m", "edgeclf", "deploy", *served.options(), "compact-cifar10", *options]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=DEPLOY_SECONDS, check=False)
        times = {"deploy": round(time.monotonic() - start, 1)}
        assert answer.returncode == 0, answer.stderr
        figures = json.loads((folder / "figures.json").read_text())
        yield Pi(served, figures, times)
    if target := os.environ.get("EDGECLF_EMULATED_FIGURES"):
        wheels = json.loads(made.stdout)
        sizes = {"wheels": len(wheels["wheels"]), "wheel_bytes": wheels["bytes"]}
        steps = answer.stderr.splitlines()
        Path(target).write_text(json.dumps({"seconds": times, **sizes, "steps": steps, "deploy": figures}, indent=2))
    shutil.rmtree(home / "edgeclf" / NAME, ignore_errors=True)


def test_a_deploy_to_a_pi_installs_real_wheels_and_its_int8_answers_are_bit_exact(pi: Pi) -> None:
    """The board is known by its own name, offline wheels are installed by pip there, and verify finds the same bits."""
    assert (pi.figures["profile"], pi.figures["board"]["machine"]) == ("raspberry-pi-4", "aarch64")
    assert "bit-exact; here ai-edge-litert" in pi.figures["verified"]
    assert "(xnnpack)" in pi.figures["verified"].split("exported with")[0]
    assert (BOARD / f"pi4/home/pi/edgeclf/{NAME}/current/compact-cifar10.tflite").is_file()


def test_verify_predict_and_doctor_run_there(pi: Pi, fixtures_folder: Path) -> None:
    """A picture gets the same answer as here, to the last digit that is shown."""
    picture = "home/pi/picture.png"
    shutil.copy(fixtures_folder / "pictures/red-square.png", BOARD / "pi4" / picture)
    verified = pi.run("verify", "verify", "compact-cifar10")
    assert "bit-exact" in verified.stdout, verified.stderr
    there = pi.run("predict", "predict", "compact-cifar10", f"/{picture}", "--json")
    assert there.returncode == 0, there.stderr
    from edgeclf import load

    here = load("compact-cifar10").classify(cv2.imread(str(fixtures_folder / "pictures/red-square.png")), 3)
    told = json.loads(there.stdout)["images"][0]["predictions"]
    assert [(p["label"], p["score"]) for p in told] == [(p.label, round(p.score, 6)) for p in here]
    doctor = pi.run("doctor", "doctor")
    assert "aarch64" in doctor.stdout + doctor.stderr


def test_the_loop_runs_there_on_a_video_and_on_a_synthetic_camera(pi: Pi) -> None:
    """Every frame of the video is answered, and the synthetic source gives as many as were asked for."""
    frames, video = 12, BOARD / "pi4/home/pi/video.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter.fourcc(*"MJPG"), 10, (160, 120))
    for number in range(frames):
        writer.write(np.full((120, 160, 3), 20 * number, np.uint8))
    writer.release()
    done = pi.run("run video", "run", "compact-cifar10", "--source", "video.avi", "--json")
    assert (done.returncode, json.loads(done.stdout)["frames"]) == (0, frames), done.stderr
    limited = pi.run("run synthetic", "run", "compact-cifar10", "--source", "synthetic", "--max-frames", "10", "--json")
    assert (limited.returncode, json.loads(limited.stdout)["frames"]) == (0, 10), limited.stderr


def test_a_broken_successor_leaves_the_pi_with_the_good_one(pi: Pi, cli: Cli, tmp_path: Path) -> None:
    """verify refuses it there, over the same wheels and environment."""
    from test_deploy import wrong

    current = BOARD / f"pi4/home/pi/edgeclf/{NAME}/current"
    before = current.readlink()
    file = wrong(REPOSITORY / "models/compact-cifar10.tflite", tmp_path / "wrong.tflite")
    answer = cli("deploy", *pi.served.options(), file, "--name", NAME, "--wheelhouse", BOARD / "wheelhouse", "--no-measure")
    assert (answer.code, "verify failed there" in answer.stderr) == (7, True), answer.text
    assert current.readlink() == before
