"""JPEG frames of cameras: cut out of a stream whatever the pieces it comes in, and broken ones noticed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeclf.core.errors import DataError
from edgeclf.runtime.sources import jpegs
from edgeclf.runtime.sources.jpegs import Splitter, decode_frame, is_jpeg

NOISE = np.random.RandomState(0).randint(0, 256, (60, 80, 3), np.uint8)


def jpeg(image: np.ndarray = NOISE, quality: int = 90, progressive: bool = False) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def with_preview(data: bytes) -> bytes:
    """The JPEG with another one inside, in a segment of its own, as cameras store previews."""
    preview = b"Exif\0\0" + jpeg(NOISE[:16, :16])
    return data[:2] + b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview + data[2:]


def cut(stream: bytes, piece: int = 1 << 20) -> tuple[list[bytes], int]:
    """The frames in the stream, fed in pieces, and how many were broken."""
    splitter, frames, broken = Splitter("fake"), [], 0
    for start in range(0, len(stream), piece):
        splitter.feed(stream[start : start + piece])
        while True:
            try:
                frame = splitter.next()
            except DataError:
                broken += 1
                continue
            if frame is None:
                break
            frames.append(frame)
    return frames, broken


@given(st.integers(1, 4000))
def test_frames_are_found_in_whatever_pieces_the_stream_comes(piece: int) -> None:
    """Bare, with headers between them, progressive, with a preview inside: all of them, to the byte."""
    wanted = [jpeg(), jpeg(NOISE[::-1], progressive=True), with_preview(jpeg()), jpeg(NOISE[:, ::-1], 30)]
    stream = b"".join(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + frame + b"\r\n" for frame in wanted)
    assert cut(b"".join(wanted), piece) == (wanted, 0)
    assert cut(stream, piece) == (wanted, 0)


def test_a_frame_that_is_cut_short_costs_no_other() -> None:
    """In its data, the next one is found; in its header, at most one is lost with it."""
    whole = jpeg()
    assert cut(whole[: len(whole) // 2] + whole + whole) == ([whole, whole], 1)
    frames, broken = cut(whole[:30] + whole * 3)
    assert frames[-1] == whole
    assert broken <= 2


@given(st.binary(max_size=3000))
def test_bytes_that_mean_nothing_do_no_harm(noise: bytes) -> None:
    """Whatever comes before two frames, the last of them is found."""
    frames, _ = cut(noise + jpeg() * 30)
    assert frames[-1:] == [jpeg()]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame without an end, and a stream without a frame, are given up."""
    monkeypatch.setattr(jpegs, "MAX_FRAME_BYTES", 10_000)
    monkeypatch.setattr(jpegs, "MAX_GAP_BYTES", 10_000)
    splitter = Splitter("fake")
    splitter.feed(b"\xff\xd8" + bytes(20_000))
    with pytest.raises(DataError, match="longer than the limit"):
        splitter.next()
    splitter.feed(bytes(20_000))
    with pytest.raises(EOFError, match="without a JPEG frame"):
        splitter.next()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_frame_whose_lower_half_is_missing_is_broken_though_it_ends_properly(progressive: bool) -> None:
    """A USB camera without bandwidth ends frames so; a decoder fills them with grey and says nothing."""
    whole = jpeg(progressive=progressive)
    assert decode_frame(whole, "fake").shape == NOISE.shape
    if not progressive:
        for share in (0.2, 0.5, 0.9):
            with pytest.raises(DataError, match="the lower part of the JPEG is missing"):
                decode_frame(whole[: int(len(whole) * share)] + b"\xff\xd9", "fake")
    with pytest.raises(DataError, match="cut short"):
        decode_frame(whole[: len(whole) // 2], "fake")


def test_a_picture_that_is_truly_grey_is_a_picture() -> None:
    """All of it, or its last corner only."""
    grey, corner = np.full_like(NOISE, 128), NOISE.copy()
    corner[32:, 48:] = 128
    for image in (grey, corner):
        decoded = decode_frame(jpeg(image, 100), "fake")
        assert (decoded[-4:, -4:] == 128).all()


def test_bytes_of_a_frame_are_told_from_pixels() -> None:
    """As OpenCV hands them over: a row of bytes, or rows of pixels."""
    data = np.frombuffer(jpeg(), np.uint8)
    assert is_jpeg(data[None, :])
    assert is_jpeg(data)
    assert not is_jpeg(NOISE)
    assert not is_jpeg(np.zeros((1, 4000), np.uint8))
    assert not is_jpeg(np.full((1, 1, 3), 255, np.uint8))
