"""Frames through pipes: standard input, rpicam-vid and picamera2 as child processes that hang, fail or go away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from live_fakes import drain

from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import DataError, SourceError
from edgeclf.runtime.sources import pipes
from edgeclf.runtime.sources.camera import find_source
from edgeclf.runtime.sources.capture import Capture, Change, Timing
from edgeclf.runtime.sources.picamera import open_picamera
from edgeclf.runtime.sources.pipes import ChildReader, open_rpicam
from edgeclf.runtime.sources.source import Reader, Source

SMALL = CameraSection(64, 48, 30)
QUICK = Timing(stall_s=0.3, first_wait_s=0.05, longest_wait_s=0.2)


def jpeg(value: int) -> bytes:
    return cv2.imencode(".jpg", np.full((48, 64, 3), value, np.uint8))[1].tobytes()


def read_on(reader: Reader) -> None:
    while True:
        reader.read()


def states(capture: Capture) -> list[str]:
    return [news.state for news in capture.news() if isinstance(news, Change)]


# A fake rpicam-vid: what it is told by FAKE decides; every start adds its arguments to the file LOG.
RPICAM = """
    #!{python}
    import os, sys, time
    sys.path.insert(0, "")
    log = open({log!r}, "a"); log.write(" ".join(sys.argv[1:]) + "\\n"); log.close()
    starts = len(open({log!r}).readlines())
    frames = [open(f"{folder}/{{i}}.jpg", "rb").read() for i in range(4)]
    fake = os.environ.get("FAKE", "")
    if fake == "absent":
        sys.exit("ERROR: *** no cameras available ***")
    i = 0
    while True:
        sys.stdout.buffer.write(frames[i % 4]); sys.stdout.buffer.flush()
        i += 1; time.sleep(0.01)
        if fake == "hangs" and starts == 1 and i == 5:
            time.sleep(600)
        if fake == "dies" and starts < 3 and i == 5:
            sys.exit("ERROR: Camera frontend has timed out!")
"""


@pytest.fixture
def rpicam_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake rpicam-vid is on the PATH; how often and with what it was started."""
    log, program = tmp_path / "log", tmp_path / "bin" / "rpicam-vid"
    program.parent.mkdir()
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(40 + 50 * i))
    program.write_text(textwrap.dedent(RPICAM).strip().format(python=f"{sys.executable} -S", log=str(log), folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return log


def children() -> list[str]:
    """The child processes of this one, zombies included."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_rpicam_gives_pictures_and_is_told_what_is_wanted(rpicam_log: Path) -> None:
    """Size, rate and which camera; the child is gone after the end."""
    capture = Capture(find_source("rpicam:1", SMALL))
    capture.start()
    frames = drain(capture, lambda frame: frame.index > 3, 20)
    assert capture.close()
    assert frames[0].image.shape == (48, 64, 3)
    assert 0 < frames[-1].decode_s < 1
    told = rpicam_log.read_text().splitlines()[0]
    assert "--camera 1" in told
    assert "--codec mjpeg" in told
    assert "--width 64 --height 48 --framerate 30" in told
    assert children() == []


@pytest.mark.usefixtures("rpicam_log")
def test_another_size_than_asked_for_is_told() -> None:
    """Once, as news of a source that is live."""
    capture = Capture(find_source("rpicam:", CameraSection(640, 480, 30)))
    capture.start()
    drain(capture, lambda frame: frame.index > 5, 20)
    told = [news.detail for news in capture.news() if isinstance(news, Change)]
    assert capture.close()
    assert told.count("gives 64x48 instead of 640x480") == 1


@pytest.mark.parametrize("text", ["rpicam:x", "picamera2:-1", "picamera2:12345"])
def test_an_index_that_cannot_be_is_an_error(text: str) -> None:
    """It says what was expected."""
    with pytest.raises(SourceError, match=r"expected (rpicam|picamera2): for the first camera, or \1:1 for the second"):
        find_source(text)


@pytest.mark.parametrize("fake", ["hangs", "dies"])
def test_a_camera_program_that_hangs_or_dies_is_started_again(
    rpicam_log: Path, monkeypatch: pytest.MonkeyPatch, fake: str
) -> None:
    """Its silence has a limit; after it the child is killed, and pictures go on."""
    monkeypatch.setenv("FAKE", fake)
    source = Source("rpicam:", partial(open_rpicam, 0, "rpicam:", SMALL, silence_s=0.6), live=True, reopen=True)
    capture = Capture(source, QUICK)
    capture.start()
    drain(capture, lambda frame: frame.index > 30, 20)
    told = states(capture)
    assert capture.close()
    assert told[-2:] == ["reconnecting", "live"]
    assert told.count("reconnecting") == {"hangs": 1, "dies": 2}[fake]
    assert len(rpicam_log.read_text().splitlines()) == {"hangs": 2, "dies": 3}[fake]
    assert children() == []


def test_the_last_words_of_a_camera_program_are_the_message(rpicam_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says on standard error, once, on one line."""
    monkeypatch.setenv("FAKE", "absent")
    with pytest.raises(SourceError, match=r"^rpicam: ended with code 1: ERROR: \*\*\* no cameras available \*\*\*$"):
        Capture(find_source("rpicam:", SMALL)).start()
    assert children() == []


def test_without_the_program_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither by its new name nor its old one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="sudo apt install rpicam-apps"):
        find_source("rpicam:").open()


def test_the_end_does_not_wait_for_a_child_that_hangs(rpicam_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that blocks comes back when the capture is closed, and nothing is left behind."""
    monkeypatch.setenv("FAKE", "hangs")
    capture = Capture(find_source("rpicam:", SMALL), QUICK)
    capture.start()
    drain(capture, lambda frame: frame.index == 4, 20)
    time.sleep(0.3)
    began = time.monotonic()
    assert capture.close()
    assert time.monotonic() - began < 4
    assert children() == []


# A fake picamera2: FAKE decides.
PICAMERA2 = """
    import os, sys, time
    import numpy as np
    fake = os.environ.get("FAKE", "")
    if fake == "broken":
        raise ImportError("No module named 'libcamera'")
    print("libraries print what they like")
    class Picamera2:
        def __init__(self, index): self.index, self.i = index, 0
        @staticmethod
        def global_camera_info(): return [{"Model": "imx708"}] * (0 if fake == "none" else 2)
        def create_video_configuration(self, main, controls, queue):
            assert main["format"] == "RGB888" and not queue
            return main["size"]
        def configure(self, size): self.size = size
        def start(self):
            if fake == "busy": raise RuntimeError("Failed to acquire camera: Device or resource busy")
        def capture_array(self, name):
            self.i += 1
            time.sleep(0.01)
            if fake == "hangs" and self.i == 5: time.sleep(600)
            width, height = self.size
            image = np.zeros((height, width, 3), np.uint8)
            image[:, :, 0] = self.i; image[:, :, 2] = 200
            return image
        def stop(self): pass
        def close(self): pass
"""


@pytest.fixture
def picamera2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picamera2.py").write_text(textwrap.dedent(PICAMERA2))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("picamera2")
def test_picamera2_gives_pictures_from_a_process_of_its_own() -> None:
    """Blue, green, red as everywhere; the time is that of the capture; nothing that libraries print comes between."""
    capture = Capture(find_source("picamera2:1", SMALL))
    capture.start()
    frames = drain(capture, lambda frame: frame.index > 3, 20)
    age_s = time.monotonic() - frames[-1].taken_s
    assert capture.close()
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[0].image[0, 0, 2] == 200
    assert 0 <= age_s < 5
    assert "picamera2" not in sys.modules
    assert children() == []


@pytest.mark.usefixtures("picamera2")
def test_a_picamera2_that_hangs_is_killed_and_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each capture has a time limit; every start gives four pictures here, so frame 9 is of the third."""
    monkeypatch.setenv("FAKE", "hangs")
    opener = partial(open_picamera, 0, "picamera2:", SMALL, silence_s=0.5)
    capture = Capture(Source("picamera2:", opener, live=True, reopen=True), QUICK)
    capture.start()
    drain(capture, lambda frame: frame.index >= 9, 20)
    assert states(capture).count("reconnecting") >= 2
    assert capture.close()
    assert children() == []


@pytest.mark.usefixtures("picamera2")
@pytest.mark.parametrize(
    ("fake", "message"),
    [
        ("broken", "No module named 'libcamera'.*sudo apt install python3-picamera2.*--system-site-packages"),
        ("none", "^picamera2:3: no camera 3; found: none$"),
        ("busy", "Device or resource busy"),
        ("", r"^picamera2:3: no camera 3; found: 0 \(imx708\), 1 \(imx708\)$"),
    ],
)
def test_what_is_wrong_with_picamera2_is_one_line(monkeypatch: pytest.MonkeyPatch, fake: str, message: str) -> None:
    """It cannot be imported, finds no camera, or the camera is in use."""
    monkeypatch.setenv("FAKE", fake)
    index = 0 if fake == "busy" else 3
    with pytest.raises(SourceError, match=message):
        Capture(find_source(f"picamera2:{index}", SMALL)).start()
    assert children() == []


@pytest.mark.usefixtures("picamera2")
def test_the_camera_process_does_not_outlive_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent that is killed takes the child with it, though that hangs in a capture."""
    monkeypatch.setenv("FAKE", "hangs")
    code = (
        "import os, time; from edgeclf.runtime.sources.camera import find_source\n"
        "reader = find_source('picamera2:0').open(); reader.read()\n"
        "print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())  # type: ignore[union-attr]
    parent.kill()
    parent.communicate()
    limit = time.monotonic() + 20
    while _alive(child):
        assert time.monotonic() < limit, "the child lives on"
        time.sleep(0.02)


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_twenty_lost_children_leave_nothing_behind(rpicam_log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process, no thread and no file descriptor more than before."""
    monkeypatch.setenv("FAKE", "")
    source = find_source("rpicam:", SMALL)

    def round_trip() -> None:
        reader = source.open()
        assert reader.read() is not None
        reader.abort()  # type: ignore[attr-defined]
        with pytest.raises(SourceError):
            read_on(reader)
        reader.close()

    round_trip()
    before = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    for _ in range(20):
        round_trip()
    assert (len(list(Path("/proc/self/fd").iterdir())), threading.active_count()) == before
    assert children() == []


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Write to what the readers take for standard input; None closes it."""
    out, into = os.pipe()
    monkeypatch.setattr(pipes, "STDIN_FD", out)
    opened = [into]

    def write(data: bytes | None) -> None:
        if data is None:
            os.close(opened.pop())
        else:
            os.write(into, data)

    yield write  # type: ignore[misc]
    os.close(out)
    for handle in opened:
        os.close(handle)


def read_all(source: Source) -> tuple[list[np.ndarray], int]:
    """Every picture until the end, and how many were broken."""
    reader, found, broken = source.open(), [], 0
    while True:
        try:
            picture = reader.read()
        except DataError:
            broken += 1
            continue
        if picture is None:
            return found, broken
        found.append(picture.image)


@pytest.mark.parametrize("text", ["-", "stdin:"])
def test_jpeg_frames_on_standard_input_are_all_read(stdin: Callable[[bytes | None], None], text: str) -> None:
    """One after the other; a broken one is passed over, and the end of input is the end."""
    stdin(jpeg(50) + jpeg(100)[:-8] + jpeg(150) + jpeg(200) + jpeg(250)[:-8])
    stdin(None)
    source = find_source(text)
    images, broken = read_all(source)
    assert (source.name, source.live) == ("stdin", False)
    assert [round(float(image.mean()), -1) for image in images] == [50, 150, 200]
    assert broken == 2


def test_raw_frames_on_standard_input_are_all_read(stdin: Callable[[bytes | None], None]) -> None:
    """BGR bytes of the given size; half a frame at the end is broken."""
    frames = [np.full((6, 8, 3), (value, 0, 255), np.uint8) for value in (10, 20)]
    stdin(b"".join(frame.tobytes() for frame in frames) + bytes(20))
    stdin(None)
    images, broken = read_all(find_source("stdin:8x6"))
    assert all((image == frame).all() for image, frame in zip(images, frames, strict=True))
    assert broken == 1


@pytest.mark.parametrize(("data", "message"), [(b"", "no frame came"), (bytes(3 << 20), "expected a stream of JPEG frames")])
def test_what_is_no_stream_of_frames_is_an_error(stdin: Callable[[bytes | None], None], data: bytes, message: str) -> None:
    """Nothing at all, or megabytes of something else."""

    def feed() -> None:
        for start in range(0, len(data), 4096):
            stdin(data[start : start + 4096])
        stdin(None)

    feeder = threading.Thread(target=feed)
    feeder.start()
    reader = find_source("-").open()
    with pytest.raises(SourceError, match=message):
        reader.read()
    if data:
        with pytest.raises(SourceError):
            read_on(reader)
        while feeder.is_alive():
            os.read(pipes.STDIN_FD, 65536)
    feeder.join()


@pytest.mark.parametrize("text", ["stdin:640", "stdin:0x480", "stdin:99999x480", "stdin:mjpeg"])
def test_a_size_that_cannot_be_is_an_error(text: str) -> None:
    """It says what was expected."""
    with pytest.raises(SourceError, match="expected stdin: for JPEG frames, or stdin:640x480"):
        find_source(text)


def test_frames_are_piped_into_the_program(fixtures_folder: Path, tmp_path: Path) -> None:
    """Every frame is classified; the end of the input ends the run with 0."""
    square = cv2.imread(str(fixtures_folder / "pictures" / "red-square.png"))
    stream = cv2.imencode(".jpg", square)[1].tobytes() * 7
    command = [sys.executable, "-m", "edgeclf", "run", str(fixtures_folder / "tiny-int8.tflite"), "-s", "-", "--json"]
    done = subprocess.run(command, input=stream, capture_output=True, timeout=100, check=False)
    summary = json.loads(done.stdout)
    assert done.returncode == 0
    assert (summary["frames"], summary["labels"], summary["source"]) == (7, {"red square": 7}, "stdin")


def test_the_program_ends_while_standard_input_is_silent(fixtures_folder: Path) -> None:
    """SIGTERM, while a read of the pipe blocks."""
    square = cv2.imread(str(fixtures_folder / "pictures" / "red-square.png"))
    command = [sys.executable, "-m", "edgeclf", "run", str(fixtures_folder / "tiny-int8.tflite"), "-s", "-", "--jsonl", "-"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdin
    assert child.stdout
    child.stdin.write(cv2.imencode(".jpg", square)[1].tobytes())
    child.stdin.flush()
    while b'"label"' not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGTERM)
    assert child.wait(15) == 0
    child.communicate()


def test_a_reader_of_a_child_keeps_to_one_limit(rpicam_log: Path) -> None:
    """The first picture may take longer than the others, since the camera has to start."""
    reader = open_rpicam(0, "rpicam:", SMALL, silence_s=0.5)
    assert isinstance(reader, ChildReader)
    assert reader.read() is not None
    reader.close()
    assert children() == []
