"""The demo video: what a classifier sees of it is what the pictures were."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclf.core.errors import ConfigError, StorageError
from edgeclf.core.image import ImageSpec, Pixels, prepare
from edgeclf.host.data.demo import render_video
from edgeclf.runtime.sources.camera import find_source


def frames(path: Path) -> list[Pixels]:
    reader = find_source(str(path)).open()
    found = []
    while (picture := reader.read()) is not None:
        found.append(picture.image)
    reader.close()
    return found


def blobs(count: int, side: int, channels: int) -> Pixels:
    """Soft random pictures, uint8 (count, side, side, channels)."""
    coarse = np.random.RandomState(0).randint(0, 256, (count, 4, 4, channels)).astype(np.float32)
    spec = side // 4
    fine = coarse.repeat(spec, 1).repeat(spec, 2)
    return np.asarray((fine + np.roll(fine, 2, 1) + np.roll(fine, 2, 2)) / 3, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_comes_back_from_the_video_as_the_network_saw_it(tmp_path: Path, channels: int) -> None:
    """Enlarged, encoded, decoded and prepared again, a picture differs by a few grey levels; colours are in order."""
    pictures = blobs(4, 32, channels)
    shown = render_video(tmp_path / "demo.avi", list(pictures), list("abcd"), fps=10, seconds=2, picture_s=0.5)
    found = frames(tmp_path / "demo.avi")
    spec = ImageSpec(32, 32, colour="grey" if channels == 1 else "rgb")
    assert found[0].shape == (480, 640, 3)
    assert len(found) == len(shown) == 20
    for label, frame in zip(shown, found, strict=True):
        expected = pictures["abcd".index(label)].astype(int)
        assert np.abs(prepare(frame, spec) - expected).mean() < 5


def test_the_labels_follow_the_frames_and_pictures_start_over(tmp_path: Path) -> None:
    """Each picture stays for its time; the list has one label a frame."""
    pictures = [np.full((8, 8), value, np.uint8) for value in (20, 220)]
    shown = render_video(tmp_path / "demo.avi", pictures, ["dark", "bright"], fps=10, seconds=1.5, picture_s=0.5)
    assert shown == ["dark"] * 5 + ["bright"] * 5 + ["dark"] * 5
    assert ["bright" if f.mean() > 128 else "dark" for f in frames(tmp_path / "demo.avi")] == shown


def test_what_cannot_be_rendered_leaves_no_file(tmp_path: Path) -> None:
    """No pictures, too few labels, another format, a folder that is a file: an error, and nothing is written."""
    picture = np.zeros((8, 8), np.uint8)
    for path, pictures, labels in (("a.avi", [], []), ("a.avi", [picture], []), ("a.mp4", [picture], ["x"])):
        with pytest.raises(ConfigError):
            render_video(tmp_path / path, pictures, labels)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        render_video(tmp_path / "file" / "a.avi", [picture], ["x"])


def test_a_failure_half_way_leaves_no_file(tmp_path: Path) -> None:
    """A picture of the wrong type stops the rendering; neither the video nor a part of it stays."""
    with pytest.raises(cv2.error):
        render_video(tmp_path / "a.avi", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 7), np.float64)], ["x", "y"], seconds=2)  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []
