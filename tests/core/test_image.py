"""Preprocessing: decoding whatever people have, and a resize that neither aliases nor differs between machines."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.image import MAX_ENCODED_BYTES, ImageSpec, decode, picture_bytes, prepare, read_picture, resize

# CRC-32 of a resize, as made on x86-64
RESIZED_CRC = 3755136999


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A random uint8 picture."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(picture: np.ndarray, extension: str = ".png") -> bytes:
    return bytes(cv2.imencode(extension, picture)[1])


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an EXIF segment that holds nothing but that orientation."""
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def gradient(height: int, width: int) -> np.ndarray:
    """A smooth picture, so that JPEG changes it little."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 127 // (width + height)], axis=2).astype(np.uint8)


def test_halving_is_the_rounded_mean_of_two_by_two() -> None:
    """Against an independent sum in NumPy, for every pixel."""
    picture = noise(64, 96).astype(np.uint16)
    mean = (picture[0::2, 0::2] + picture[1::2, 0::2] + picture[0::2, 1::2] + picture[1::2, 1::2] + 2) // 4
    assert (resize(picture.astype(np.uint8), 48, 32) == mean).all()


@pytest.mark.parametrize(("width", "height"), [(32, 64), (64, 32)])
def test_halving_one_side_is_the_mean_of_two(width: int, height: int) -> None:
    """The picture stays whole along the other side."""
    picture = noise(64, 64).astype(np.uint16)
    pairs = (picture[:, 0::2], picture[:, 1::2]) if width == 32 else (picture[0::2], picture[1::2])
    mean = (pairs[0] + pairs[1] + 1) // 2
    assert np.abs(resize(picture.astype(np.uint8), width, height).astype(int) - mean).max() <= 0


def test_resize_keeps_what_fits_already() -> None:
    """No interpolation where none is needed."""
    picture = noise(32, 32)
    assert (resize(picture, 32, 32) == picture).all()


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (97, 131)])
def test_fine_stripes_do_not_alias(size: tuple[int, int]) -> None:
    """Stripes of one pixel average to grey; plain bilinear would give black, white or a false pattern."""
    stripes = np.zeros((*size, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize(stripes, 24, 24)
    assert np.abs(small.astype(int) - 127).max() <= 40
    assert abs(float(small.mean()) - 127.5) < 4


def test_resize_keeps_the_mean_brightness() -> None:
    """Within one grey level, from a camera frame to a small input."""
    picture = gradient(480, 640)
    assert np.abs(resize(picture, 96, 96).mean((0, 1)) - picture.mean((0, 1))).max() < 1


def test_resize_gives_the_bytes_that_were_recorded() -> None:
    """The same on every machine."""
    assert zlib.crc32(resize(noise(480, 640), 224, 224).tobytes()) == RESIZED_CRC


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3)])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_odd_sizes_are_prepared(size: tuple[int, int], fit: str) -> None:
    """Down to a single pixel, in every fit."""
    prepared = prepare(noise(*size), ImageSpec(20, 30, fit))  # type: ignore[arg-type]
    assert prepared.shape == (30, 20, 3)
    assert prepared.dtype == np.uint8


def test_prepare_gives_the_channel_order_that_the_card_says() -> None:
    """BGR in; RGB, BGR or grey out, contiguous."""
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[:, :, 0] = 255
    assert prepare(blue, ImageSpec(4, 4))[0, 0].tolist() == [0, 0, 255]
    assert prepare(blue, ImageSpec(4, 4, colour="bgr"))[0, 0].tolist() == [255, 0, 0]
    grey = prepare(blue, ImageSpec(4, 4, colour="grey"))
    assert grey.shape == (4, 4, 1)
    assert grey.flags["C_CONTIGUOUS"]


def test_crop_takes_the_middle_and_pad_shows_everything() -> None:
    """A white stripe at the far left is cut off by crop and shown by pad, between grey borders."""
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :6] = 255
    assert prepare(wide, ImageSpec(20, 20, "crop")).max() == 0
    padded = prepare(wide, ImageSpec(20, 20, "pad"))
    assert padded[0, 0].tolist() == [128, 128, 128]
    assert padded[10, 0].max() > 200


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_applied(orientation: int) -> None:
    """A picture taken sideways is turned upright, as people see it."""
    upright = gradient(40, 60)
    turns = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]
    jpeg = bytes(cv2.imencode(".jpg", np.rot90(upright, turns), [cv2.IMWRITE_JPEG_QUALITY, 100])[1])
    found = decode(with_orientation(jpeg, orientation))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 4


def test_the_fixture_with_exif_equals_the_upright_one(fixtures_folder: Path) -> None:
    """Two files of one scene, one of them stored sideways."""
    pictures = [read_picture(fixtures_folder / "pictures" / name) for name in ("exif-rotated.jpg", "upright.jpg")]
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 6


def test_transparency_is_laid_over_white() -> None:
    """Not over the colour that happens to be stored where nothing shows."""
    picture = noise(6, 6, 4)
    picture[..., 3] = 0
    picture[0, 0] = (10, 20, 30, 255)
    found = decode(encoded(picture))
    assert found[0, 0].tolist() == [10, 20, 30]
    assert (found[1:] == 255).all()


def test_half_transparency_is_the_rounded_mean_with_white() -> None:
    """Rounded to the nearest, as every viewer does; 100 under an alpha of 127 is 177.8."""
    picture = np.full((1, 256, 4), 100, np.uint8)
    picture[0, :, 3] = np.arange(256)
    found, alpha = decode(encoded(picture))[0, :, 0], np.arange(256) / 255
    assert found.tolist() == np.floor(100 * alpha + 255 * (1 - alpha) + 0.5).astype(int).tolist()
    assert found[127] == 178


def test_grey_and_sixteen_bits_become_three_channels_of_eight() -> None:
    """A scanner's 16-bit grey keeps its upper byte."""
    grey = noise(5, 7, 1)
    assert (decode(encoded(grey)) == grey).all()
    deep = (noise(5, 7, 1).astype(np.uint16) << 8) | 0x7F
    assert (decode(encoded(deep))[..., 0] == (deep >> 8)[..., 0]).all()


def test_a_jpeg_cut_short_is_refused_wherever_it_is_cut() -> None:
    """OpenCV would fill the rest with grey and say nothing."""
    jpeg = encoded(noise(64, 64), ".jpg")
    for length in (len(jpeg) // 2, len(jpeg) - 200, len(jpeg) - 2):
        with pytest.raises(DataError, match=r"cut short|not a picture"):
            decode(jpeg[:length])


def test_a_preview_does_not_hide_that_a_jpeg_is_cut_short() -> None:
    """The end marker of the thumbnail in the EXIF data is not the picture's."""
    thumbnail, jpeg = encoded(noise(8, 8), ".jpg"), encoded(noise(64, 64), ".jpg")
    whole = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + jpeg[2:]
    assert decode(whole).shape == (64, 64, 3)
    with pytest.raises(DataError, match="cut short"):
        decode(whole[:-300])


def test_a_film_behind_a_jpeg_does_not_harm() -> None:
    """Phones append one to "motion" pictures; start-of-scan bytes occur in it by chance."""
    jpeg = encoded(noise(32, 32), ".jpg")
    assert (decode(jpeg + b"ftypmp42" + b"\xff\xda" * 9 + bytes(100)) == decode(jpeg)).all()


@pytest.mark.parametrize("data", [b"", b"text, not a picture", b"\xff\xd8", b"\x89PNG\r\n\x1a\n" + bytes(40), b"BM" + bytes(60)])
def test_what_is_no_picture_is_a_data_error_with_its_name(data: bytes) -> None:
    """One line that names the file, never an OpenCV error."""
    with pytest.raises(DataError, match=r"x\.png"):
        decode(data, "x.png")


def test_a_decompression_bomb_is_refused() -> None:
    """A PNG header that claims 60,000 x 60,000 pixels costs no memory."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(DataError):
        decode(b"\x89PNG\r\n\x1a\n" + chunk + bytes(12))


@pytest.mark.parametrize("frame", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_a_frame_of_another_kind_is_refused(frame: np.ndarray) -> None:
    """The message says what a frame is."""
    with pytest.raises(DataError, match="frame"):
        prepare(frame, ImageSpec(4, 4))


def test_frames_of_one_and_four_channels_are_taken() -> None:
    """Grey cameras and BGRA screenshots."""
    assert prepare(np.full((8, 8), 7, np.uint8), ImageSpec(4, 4))[0, 0].tolist() == [7, 7, 7]
    clear = np.zeros((8, 8, 4), np.uint8)
    assert prepare(clear, ImageSpec(4, 4)).min() == 255


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    """A missing file and a folder are told apart."""
    with pytest.raises(DataError, match="no such file"):
        read_picture(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="is no file"):
        read_picture(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"height": 5000},
        {"fit": "zoom"},
        {"colour": "cmyk"},
        {"std": 0.0},
        {"std": float("inf")},
        {"mean": float("nan")},
    ],
)
def test_a_spec_that_cannot_be_followed_is_refused(wrong: dict[str, object]) -> None:
    """At construction, so no card with it is ever read or written."""
    with pytest.raises(ConfigError):
        ImageSpec(**{"width": 8, "height": 8, **wrong})  # type: ignore[arg-type]


def test_the_bytes_of_a_file_whatever_it_says_of_its_size(tmp_path: Path) -> None:
    """A file, an empty one, a pipe; and one that is too large is refused before it is read."""
    (tmp_path / "a.jpg").write_bytes(b"picture" * 1000)
    (tmp_path / "empty.jpg").touch()
    assert picture_bytes(tmp_path / "a.jpg") == b"picture" * 1000
    assert picture_bytes(str(tmp_path / "empty.jpg")) == b""
    os.mkfifo(tmp_path / "pipe.jpg")
    writer = threading.Thread(target=(tmp_path / "pipe.jpg").write_bytes, args=(b"x" * 200_000,))
    writer.start()
    assert picture_bytes(tmp_path / "pipe.jpg") == b"x" * 200_000
    writer.join()
    with (tmp_path / "vast.jpg").open("wb") as file:
        file.truncate(MAX_ENCODED_BYTES + 1)  # a hole: takes no room
    with pytest.raises(DataError, match=r"vast\.jpg: larger than the limit"):
        picture_bytes(tmp_path / "vast.jpg")
