"""What `--source` names, how it is opened, and that credentials are never shown."""

from __future__ import annotations

import http.server
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeclf.core.devices import CameraSection
from edgeclf.core.errors import DataError, SourceError
from edgeclf.core.image import Pixels
from edgeclf.runtime.sources.camera import Reader, find_source, redact


def write_video(path: Path, frames: int, fps: int = 20) -> Path:
    """A Motion-JPEG video whose frame i is grey of value 8 * i, modulo 256."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (160, 120))
    for i in range(frames):
        writer.write(np.full((120, 160, 3), 8 * i % 256, np.uint8))
    writer.release()
    return path


def jpeg(value: int, size: tuple[int, int] = (120, 160)) -> bytes:
    return cv2.imencode(".jpg", np.full((*size, 3), value, np.uint8))[1].tobytes()


def pictures(reader: Reader) -> list[Pixels]:
    """Everything that the reader gives until its end; broken pictures are left out."""
    found = []
    while True:
        try:
            picture = reader.read()
        except DataError:
            continue
        if picture is None:
            reader.close()
            return found
        found.append(picture.image)


@given(st.sampled_from(["rtsp", "http", "HTTPS"]), st.text(min_size=1), st.text(min_size=3))
@example("rtsp", "user", "p@ss/word#")
@example("rtsp", "user", "a?b@c&d=e")
@example("rtsp", "user", "://secret@")
def test_no_user_or_password_survives_redaction(scheme: str, user: str, password: str) -> None:
    """Whatever characters it has, unescaped too, a password in an address is not shown."""
    shown = redact(f"{scheme}://{user}:{password}@camera.lan:554/stream")
    assert shown in (f"{scheme}://***@camera.lan:554/stream", f"{scheme}://***")


@given(st.text(min_size=3))
@example("x@y&pwd=secret")
def test_no_query_survives_redaction(secret: str) -> None:
    """Cameras take user and password as query parameters too."""
    shown = redact(f"http://camera.lan/video.cgi?user=admin&pwd={secret}")
    assert shown in ("http://camera.lan/video.cgi?***", "http://***")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://10.0.0.7/live", "rtsp://10.0.0.7/live"),
        ("rtsp://10.0.0.7/user=admin&password=x&channel=1.sdp", "rtsp://10.0.0.7/***"),
        ("user:word@host/stream", "***@host/stream"),
        ("http://host/a#key=secret", "http://host/a?***"),
        ("videos/me@home.mp4", "videos/me@home.mp4"),
        ("0", "0"),
    ],
)
def test_what_is_no_secret_stays_readable(text: str, shown: str) -> None:
    """Host and path stay, path parts with `=` go, and a file name is left alone."""
    assert redact(text) == shown


def test_an_address_that_does_not_answer_is_an_error_without_its_password() -> None:
    """The message names the host and what to check, not the credentials."""
    source = find_source("http://user:p%40ss@127.0.0.1:1/x?token=t0ps3cret")
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1") as failure:
        source.open()
    assert "p%40ss" not in str(failure.value)
    assert "t0ps3cret" not in str(failure.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missing.mp4", "no such file"),
        ("missing/*.jpg", "no picture matches"),
        ("gopher://x/y", "rtsp, rtsps, http, https"),
        ("/dev/video987", "no such camera; found: "),
        ("987", "/dev/video987: no such camera"),
        ("x" * 5000, "cannot be read"),
    ],
)
def test_a_source_that_is_not_there_is_an_error_at_once(text: str, message: str) -> None:
    """Before anything is opened: one line that says what was wrong."""
    with pytest.raises(SourceError, match=message):
        find_source(text)


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    """An empty folder says what was expected in it."""
    with pytest.raises(SourceError, match="no pictures in this folder"):
        find_source(str(tmp_path))


def test_a_device_file_that_is_no_camera_is_an_error() -> None:
    """OpenCV refuses it, and the message says so."""
    with pytest.raises(SourceError, match="gives no picture"):
        find_source("/dev/null").open()


def test_a_video_is_read_completely_and_in_order(tmp_path: Path) -> None:
    """Every frame comes once, the first one included."""
    source = find_source(str(write_video(tmp_path / "v.avi", 12)))
    values = [round(float(image.mean()) / 8) for image in pictures(source.open())]
    assert not source.live
    assert values == list(range(12))


def test_a_video_that_was_cut_short_says_so(tmp_path: Path) -> None:
    """What can be read is given; the note tells how much is missing."""
    whole = write_video(tmp_path / "v.avi", 60).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    reader = find_source(str(tmp_path / "cut.avi")).open()
    assert 10 < len(pictures(reader)) < 50
    assert "of 60 frames; the file seems to be cut short" in reader.note


@pytest.mark.parametrize("content", [b"", b"no video at all" * 500, b"RIFF\xff\xff\xff\xffAVI LIST\0\0"])
def test_a_file_that_is_no_video_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Empty, text or a bare header: refused when it is opened."""
    (tmp_path / "v.avi").write_bytes(content)
    with pytest.raises(SourceError, match="cannot read this as a video"):
        find_source(str(tmp_path / "v.avi")).open()


def test_a_video_whose_frames_change_size_is_read_through(tmp_path: Path) -> None:
    """OpenCV gives the later frames too; a raw MJPEG file has no frame count, and its end is a plain end."""
    (tmp_path / "v.mjpeg").write_bytes(b"".join(jpeg(9 * i, (120, 160) if i < 5 else (240, 320)) for i in range(10)))
    reader = find_source(str(tmp_path / "v.mjpeg")).open()
    assert [round(float(image.mean()) / 9) for image in pictures(reader)] == list(range(10))
    assert reader.note == ""


def test_a_folder_is_read_in_order_of_names_and_a_broken_picture_is_passed_over(tmp_path: Path) -> None:
    """Sub-folders are read too, hidden files are not, and a broken picture raises DataError and nothing more."""
    (tmp_path / "sub").mkdir()
    for name, value in (("b.jpg", 100), ("a.png", 50), ("sub/c.jpg", 150)):
        (tmp_path / name).write_bytes(jpeg(value))
    (tmp_path / "aa.jpg").write_bytes(jpeg(200)[:300])
    (tmp_path / ".hidden.jpg").write_bytes(jpeg(250))
    reader = find_source(str(tmp_path)).open()
    assert [round(float(image.mean()), -1) for image in pictures(reader)] == [50, 100, 150]


def test_a_glob_and_a_single_picture_are_sources(tmp_path: Path) -> None:
    """A glob gives the pictures that match it; the name of one picture gives that one."""
    for name in ("one.jpg", "two.jpg", "three.png"):
        (tmp_path / name).write_bytes(jpeg(80))
    assert len(pictures(find_source(f"{tmp_path}/*.jpg").open())) == 2
    assert len(pictures(find_source(f"{tmp_path}/one.jpg").open())) == 1


def test_the_synthetic_source_repeats_itself_exactly_and_never_stands_still(tmp_path: Path) -> None:
    """Frame i is the same at every run and differs from frame i - 1, in the size that was asked for."""
    readers = [find_source("synthetic", CameraSection(320, 240, 30)).open() for _ in range(2)]
    first, second = ([reader.read().image for _ in range(50)] for reader in readers)  # type: ignore[union-attr]
    assert first[0].shape == (240, 320, 3)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert all((a[::8, ::8] != b[::8, ::8]).any() for a, b in itertools.pairwise(first))


def broken_jpeg(i: int) -> bytes:
    """Noise; of every third frame the lower half is missing, with a proper end or without one."""
    data = cv2.imencode(".jpg", np.random.RandomState(i).randint(0, 256, (48, 64, 3), np.uint8))[1].tobytes()
    return data if i % 3 != 2 else data[: len(data) // 2] + (b"\xff\xd9" if i % 2 else b"")


class _Stream(http.server.BaseHTTPRequestHandler):
    """Motion JPEG over HTTP, as network cameras give it; asks for Basic credentials under /locked."""

    def do_GET(self) -> None:
        if self.path == "/locked" and self.headers.get("Authorization") != "Basic dXNlcjpwQHNzL3dvcmQj":
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic realm=camera")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for i in range(100):
            picture = broken_jpeg(i) if self.path == "/broken" else jpeg(i % 25 * 10)
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
            try:
                self.wfile.write(head + picture + b"\r\n")
            except OSError:
                return
            time.sleep(0.02)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def camera_url() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stream)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_motion_jpeg_over_http_is_a_live_source_that_is_opened_again(camera_url: str) -> None:
    """Pictures come, and when the stream ends the source is lost, not ended."""
    source = find_source(f"http://{camera_url}/open")
    reader = source.open()
    first = reader.read()
    assert source.live
    assert source.reopen
    assert first is not None
    assert first.image.shape == (120, 160, 3)
    with pytest.raises(SourceError, match="no more pictures"):
        pictures(reader)
    reader.close()


def test_broken_frames_of_a_stream_are_passed_over(camera_url: str) -> None:
    """The frames come as they were sent, and are decoded here, so that half a frame is not taken for a whole one."""
    reader = find_source(f"http://{camera_url}/broken").open()
    told: list[str] = []
    for _ in range(9):
        try:
            picture = reader.read()
            assert picture is not None
            assert picture.decode_s > 0
            told.append("")
        except DataError as error:
            told.append(str(error).rpartition(": ")[2])
    reader.close()
    short, half = "the JPEG is cut short", "the lower part of the JPEG is missing"
    assert told == ["", "", short, "", "", half, "", "", short]


def test_escaped_credentials_reach_the_camera(camera_url: str) -> None:
    """A password with @, / and # works when written with %40, %2F and %23; without it the camera refuses."""
    reader = find_source(f"http://user:p%40ss%2Fword%23@{camera_url}/locked").open()
    assert reader.read() is not None
    reader.close()
    with pytest.raises(SourceError, match="gives no video"):
        find_source(f"http://user:wrong@{camera_url}/locked").open()
