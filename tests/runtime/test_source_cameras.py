"""Cameras of Linux: found again under another number, never another one in its place; why one cannot be opened."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import ConfigError, DataError, SourceError
from edgeclf.runtime.sources import readers, v4l
from edgeclf.runtime.sources.camera import find_source
from edgeclf.runtime.sources.capture import Capture, Change, Timing
from edgeclf.runtime.sources.readers import VideoReader, as_bgr, given_instead
from edgeclf.runtime.sources.source import Picture, Source
from edgeclf.runtime.sources.v4l import Camera, cameras, in_use, no_permission, plugged, stable_name

NOISE = np.random.RandomState(0).randint(0, 256, (48, 64, 3), np.uint8)


class Dev:
    """A fake /dev: cameras are plugged in under a number, with the links that udev makes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "v4l" / "by-id").mkdir(parents=True)
        (root / "v4l" / "by-path").mkdir()

    def plug(self, number: int, serial: str = "", socket: str = "") -> Path:
        device = self.root / f"video{number}"
        device.write_text(serial or socket)
        for folder, name in (("by-id", serial), ("by-path", socket)):
            if name:
                (self.root / "v4l" / folder / name).symlink_to(f"../../video{number}")
        return device

    def unplug(self, number: int) -> None:
        (self.root / f"video{number}").unlink()
        for link in (self.root / "v4l").glob("*/*"):
            if not link.exists():
                link.unlink()


@pytest.fixture
def dev(tmp_path: Path) -> Dev:
    return Dev(tmp_path / "dev")


def test_a_camera_is_known_by_its_own_name_then_by_its_socket(dev: Dev) -> None:
    """By-id where there is one, else by-path, else its number; a link that the user gave stays."""
    first = dev.plug(0, "usb-ACME_1234-video-index0", "pci-0-usb-1")
    second, third = dev.plug(1, socket="pci-0-usb-2"), dev.plug(2)
    link = dev.root / "v4l" / "by-id" / "usb-ACME_1234-video-index0"
    assert stable_name(first, dev.root) == link
    assert stable_name(link, dev.root) == link
    assert stable_name(second, dev.root) == dev.root / "v4l" / "by-path" / "pci-0-usb-2"
    assert stable_name(third, dev.root) == third
    assert stable_name(dev.root / "video9", dev.root) == dev.root / "video9"


def test_a_camera_that_comes_back_under_another_number_is_found_and_no_other_takes_its_place(dev: Dev) -> None:
    """The number goes to another camera meanwhile: that one is not opened."""
    camera = Camera(dev.plug(0, "usb-mine"), dev.root, dev.root)
    assert camera.check().resolve() == dev.root / "video0"
    dev.unplug(0)
    assert camera.plugged() is None
    dev.plug(0, "usb-other")
    with pytest.raises(SourceError, match="video0: this camera is gone; found: "):
        camera.check()
    dev.plug(1, "usb-mine")
    assert camera.plugged() is not None
    assert camera.check().read_text() == "usb-mine"


def test_a_camera_that_is_waited_for_is_kept_from_when_it_is_there(dev: Dev) -> None:
    """It had no name before; from its first opening on it has."""
    camera = Camera(dev.root / "video0", dev.root, dev.root)
    with pytest.raises(SourceError, match="video0: no such camera; found: none; plug one in"):
        camera.check()
    dev.plug(0, "usb-mine")
    camera.check()
    dev.unplug(0)
    dev.plug(0, "usb-other")
    with pytest.raises(SourceError, match="this camera is gone"):
        camera.check()


def test_the_whole_capture_goes_on_with_the_camera_that_came_back(dev: Dev) -> None:
    """Pulled out, its number taken by another one, plugged in again under another number: its pictures go on."""
    camera = Camera(dev.plug(0, "usb-mine"), dev.root, dev.root)
    opened: list[str] = []

    class Reader:
        note, interval_s = "", 0.0

        def __init__(self) -> None:
            self._device = camera.check()
            opened.append(self._device.read_text())
            self._count = 0

        def read(self) -> Picture:
            time.sleep(0.01)
            if not self._device.exists():
                raise SourceError("no more pictures came")
            self._count += 1
            return Picture(np.full((8, 8, 3), self._count % 256, np.uint8))

        def close(self) -> None:
            """Nothing is held."""

    source = Source("camera", Reader, live=True, reopen=True, plugged=camera.plugged)
    capture = Capture(source, Timing(first_wait_s=30))
    capture.start()
    dev.unplug(0)
    dev.plug(0, "usb-other")
    told: list[str] = []
    limit = time.monotonic() + 20
    while "reconnecting" not in told:
        capture.next(0.05)
        told += [news.state for news in capture.news() if isinstance(news, Change)]
        assert time.monotonic() < limit
    dev.plug(3, "usb-mine")
    while told[-1] != "live":
        capture.next(0.05)
        told += [news.state for news in capture.news() if isinstance(news, Change)]
        assert time.monotonic() < limit, "it did not come back"
    assert opened == ["usb-mine", "usb-mine"]
    capture.close()


def test_plugging_in_again_can_be_told(dev: Dev) -> None:
    """Nothing, something, and something else."""
    device = dev.plug(0, "a")
    before = plugged(device)
    assert plugged(device) == before
    dev.unplug(0)
    assert plugged(device) is None
    (dev.root / "other").touch()  # so that the freed inode is not taken again
    dev.plug(0, "b")
    assert plugged(device) not in (None, before)


def test_the_cameras_of_the_machine_are_listed_with_their_names(tmp_path: Path) -> None:
    """In order of their number; other device files are left out, a missing name is no failure."""
    dev, names = tmp_path / "dev", tmp_path / "names"
    (names / "video2").mkdir(parents=True)
    (names / "video2" / "name").write_text("HD \x1bWebcam\n")
    dev.mkdir()
    for name in ("video10", "video2", "videoX", "null"):
        (dev / name).touch()
    assert cameras(dev, names) == [f"{dev}/video2 (HD ?Webcam)", f"{dev}/video10"]


def test_a_camera_that_is_in_use_names_its_holder(tmp_path: Path) -> None:
    """The program and its number, where /proc may be read; else how to find out."""
    device = tmp_path / "video0"
    device.touch()
    assert "sudo fuser -v" in in_use(device)
    code = f"handle = open({str(device)!r}); print(1, flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()  # type: ignore[union-attr]
    try:
        assert f"(pid {holder.pid}); end that program first" in in_use(device)
    finally:
        holder.communicate(b"\n")


def test_a_busy_or_forbidden_camera_says_what_to_do(dev: Dev, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group to join, or the program to end."""
    camera = Camera(dev.plug(0), dev.root, dev.root)

    def refuse(error: OSError) -> None:
        def opened(*arguments: object) -> int:
            raise error

        monkeypatch.setattr(v4l.os, "open", opened)

    refuse(PermissionError(13, "Permission denied"))
    with pytest.raises(SourceError, match="video0: no permission"):
        camera.check()
    refuse(OSError(16, "Device or resource busy"))
    with pytest.raises(SourceError, match="video0: another program seems to use it; see which: sudo fuser -v"):
        camera.check()
    refuse(OSError(19, "No such device"))
    with pytest.raises(SourceError, match="video0: cannot be opened: No such device"):
        camera.check()


def test_the_group_to_join_is_that_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not always video; nobody is told to join root."""
    import grp

    device = tmp_path / "video0"
    device.touch()
    mine = grp.getgrgid(os.getgid()).gr_name
    assert (f"usermod -aG {mine}" in no_permission(device)) == (mine != "root")
    monkeypatch.setattr(grp, "getgrgid", lambda number: grp.struct_group(("camera", "x", 44, [])))
    assert "sudo usermod -aG camera $USER" in no_permission(device)


class Device:
    """A fake cv2.VideoCapture of a camera: gives what it was made with, converted unless told not to."""

    def __init__(self, frames: list[Any], given: dict[int, float] | None = None) -> None:
        self.asked: dict[int, float] = {}
        self.released = False
        self._frames, self._given = iter(frames), given or {}

    def isOpened(self) -> bool:
        return True

    def set(self, what: int, value: float) -> bool:
        self.asked[what] = value
        return True

    def get(self, what: int) -> float:
        return self._given.get(what, self.asked.get(what, 0.0))

    def grab(self) -> bool:
        self._next = next(self._frames, None)
        return self._next is not None

    def retrieve(self) -> tuple[bool, Any]:
        return self._next is not Device.NOTHING, None if self._next is Device.NOTHING else self._next

    def release(self) -> None:
        self.released = True

    NOTHING = object()


def raw(image: np.ndarray = NOISE, share: float = 1.0) -> np.ndarray:
    """A JPEG as V4L2 gives it; with a share below 1, the rest is missing but its end is proper."""
    data = cv2.imencode(".jpg", image)[1].tobytes()
    data = data if share == 1 else data[: int(len(data) * share)] + b"\xff\xd9"
    return np.frombuffer(data, np.uint8)[None, :]


def open_camera(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: CameraSection | None = None
) -> VideoReader:
    (tmp_path / "video0").touch()
    monkeypatch.setattr(readers.cv2, "VideoCapture", lambda *arguments: device)
    return VideoReader.of_camera(Camera(tmp_path / "video0"), "camera", wanted or CameraSection(64, 48, 30))


def test_compressed_frames_of_a_camera_are_decoded_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The format is asked for before the size, and conversion is turned off; times of taking and decoding are apart."""
    device = Device([raw(), raw()])
    reader = open_camera(device, monkeypatch, tmp_path)
    picture = reader.read()
    assert list(device.asked) == [
        cv2.CAP_PROP_FOURCC, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_CONVERT_RGB,
    ]  # fmt: skip
    assert picture is not None
    assert picture.image.shape == NOISE.shape
    assert 0 < picture.taken_s < time.monotonic()
    assert picture.decode_s > 0
    reader.close()
    assert device.released


def test_broken_frames_of_a_camera_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of it missing, nothing in it, garbage behind the start: each is a DataError, and the next one is read."""
    garbage = np.frombuffer(b"\xff\xd8" + bytes(500), np.uint8)[None, :]
    reader = open_camera(Device([raw(share=0.5), Device.NOTHING, garbage, raw()]), monkeypatch, tmp_path)
    for _ in range(3):
        with pytest.raises(DataError):
            reader.read()
    assert reader.read() is not None
    with pytest.raises(SourceError, match="no more pictures"):
        reader.read()


def test_a_camera_whose_frames_opencv_converts_all_the_same_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where turning conversion off is not obeyed, pixels come, and are taken."""
    reader = open_camera(Device([NOISE]), monkeypatch, tmp_path)
    picture = reader.read()
    assert picture is not None
    assert (picture.image == NOISE).all()


def test_other_formats_are_left_to_opencv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Raw YUYV without conversion would be two channels that nobody here can read."""
    device = Device([NOISE])
    open_camera(device, monkeypatch, tmp_path, CameraSection(64, 48, 30, "YUYV"))
    assert cv2.CAP_PROP_CONVERT_RGB not in device.asked
    assert device.asked[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"YUYV")


def test_a_camera_that_gives_nothing_is_released_and_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a guess at the cause."""
    device = Device([])
    with pytest.raises(SourceError, match="camera: gives no picture; is another program using it"):
        open_camera(device, monkeypatch, tmp_path)
    assert device.released


def test_what_the_camera_really_gives_is_told_when_it_differs() -> None:
    """Size, rate or format; nothing when all is as asked, or the driver does not say."""
    wanted = CameraSection(640, 480, 30)
    as_asked = {
        cv2.CAP_PROP_FRAME_WIDTH: 640, cv2.CAP_PROP_FRAME_HEIGHT: 480, cv2.CAP_PROP_FPS: 30,
        cv2.CAP_PROP_FOURCC: cv2.VideoWriter.fourcc(*"MJPG"),
    }  # fmt: skip
    assert given_instead(Device([], as_asked), wanted) == ""
    assert given_instead(Device([]), wanted) == ""
    other = {**as_asked, cv2.CAP_PROP_FRAME_WIDTH: 1280, cv2.CAP_PROP_FRAME_HEIGHT: 720, cv2.CAP_PROP_FPS: 10}
    assert given_instead(Device([], other), wanted) == "gives 1280x720 MJPG at 10 fps instead of 640x480 MJPG at 30 fps"


def test_the_difference_is_told_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As news of a source that is live, and not again with every picture or opening."""
    frames = [[raw(np.roll(NOISE, i, 0)) for i in range(3)] for _ in range(3)]
    (tmp_path / "video0").touch()
    given = {cv2.CAP_PROP_FPS: 5}
    monkeypatch.setattr(readers.cv2, "VideoCapture", lambda *arguments: Device(frames.pop() if frames else [], given))
    camera = Camera(tmp_path / "video0")
    opener = lambda: VideoReader.of_camera(camera, "camera", CameraSection(64, 48, 30))  # noqa: E731
    capture = Capture(Source("camera", opener, live=True, reopen=True), Timing(first_wait_s=0.01, longest_wait_s=0.02))
    capture.start()
    limit = time.monotonic() + 20
    while capture.counts().reconnects < 2 and time.monotonic() < limit:
        capture.next(0.05)
    told = [(news.state, news.detail) for news in capture.news() if isinstance(news, Change)]
    capture.close()
    assert capture.counts().reconnects == 2
    assert [detail for state, detail in told if "instead of" in detail] == [
        "gives 64x48 MJPG at 5 fps instead of 64x48 MJPG at 30 fps"
    ]


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 4)])
def test_grey_and_four_channels_become_three(shape: tuple[int, ...]) -> None:
    """Plainly pictures, so they are converted."""
    assert (as_bgr(np.full(shape, 77, np.uint8)) == np.full((6, 8, 3), 77, np.uint8)).all()


@pytest.mark.parametrize(
    "image", [np.zeros((0, 8, 3), np.uint8), np.zeros((6, 8, 2), np.uint8), np.zeros((6, 8, 3)), np.zeros((1, 900), np.uint8)]
)
def test_what_is_no_picture_is_refused(image: np.ndarray) -> None:
    """Empty, two channels, other numbers, or a row of bytes."""
    with pytest.raises(DataError, match="is no picture"):
        as_bgr(image)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [({"pixel_format": "MJPEG"}, "four letters"), ({"width": 0}, "width = 0"), ({"fps": 5000}, "fps = 5000")],
)
def test_what_no_camera_can_be_asked_for_is_an_error(values: dict[str, Any], message: str) -> None:
    """At once, with the name of the setting."""
    with pytest.raises(ConfigError, match=message):
        CameraSection(**values)


def test_a_camera_that_is_not_there_is_no_error_when_it_is_waited_for() -> None:
    """It is one without; both say which cameras there are."""
    with pytest.raises(SourceError, match="no such camera; found: "):
        find_source("/dev/video987")
    source = find_source("/dev/video987", wait=True)
    with pytest.raises(SourceError, match="no such camera; found: "):
        source.open()
