"""Clips: the seconds around a change as a video, in bounded memory, whole or not there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclf.core.image import Pixels
from edgeclf.runtime.decision import Decision
from edgeclf.runtime.events import Health, Seen, SourceChanged, Stages
from edgeclf.runtime.sinks import avi
from edgeclf.runtime.sinks.avi import Avi
from edgeclf.runtime.sinks.clips import FPS, RING_BYTES, Clips
from edgeclf.runtime.sinks.keeping import Folder
from edgeclf.runtime.sinks.sink import Paused
from edgeclf.runtime.sources.capture import CaptureState


def seen(changed: bool = False, source: str = "cam", time_s: float = 1_700_000_000.25) -> Seen:
    return Seen(time_s, source, 0, Decision("cat", 0.98, "cat", changed, ()), Stages(0, 0, 0, 0, 0), 10.0)


def picture(brightness: int, width: int = 160) -> Pixels:
    return np.full((120, width, 3), brightness, np.uint8)


class Camera:
    """Plays frames to the clips at a rate, by a clock of its own; each is brighter than the one before by `step`."""

    def __init__(self, folder: Folder, clip_s: float = 2.0, step: int = 2) -> None:
        self.now, self.brightness, self._step = 100.0, 0, step
        self.clips = Clips(folder, clip_s, clock=lambda: self.now)

    def play(self, seconds: float, change: bool = False, fps: float = FPS, width: int = 160) -> None:
        for i in range(round(seconds * fps)):
            self.brightness = min(255, self.brightness + self._step)
            event = seen(change and i == 0, time_s=self.now)
            if self.clips.wants(event):
                self.clips.write_picture(event, picture(self.brightness, width))
            self.now += 1 / fps


def clips_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*.avi"))


def brightnesses(path: Path) -> list[int]:
    video = cv2.VideoCapture(str(path))
    found = []
    while (got := video.read())[0]:
        found.append(int(got[1].mean().round()))
    return found


def test_a_clip_shows_the_time_before_and_after_the_change(tmp_path: Path) -> None:
    """Half each, at the rate of the frames, under the name that the snapshot has; nothing else is left."""
    camera = Camera(Folder(tmp_path))
    camera.play(5)
    camera.play(3, change=True)
    (path,) = tmp_path.iterdir()
    assert path.name == "19700101T000145.000000Z_cam_cat.avi"
    shown = brightnesses(path)
    changed = 2 * 51
    assert shown[0] == pytest.approx(changed - 20, abs=3)
    assert shown[-1] == pytest.approx(changed + 20, abs=3)
    assert len(shown) == pytest.approx(21, abs=1)
    assert shown == sorted(shown)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == 10


def test_a_change_during_a_clip_makes_it_longer_but_not_endless(tmp_path: Path) -> None:
    """Three times the length asked for, at most; the next change then begins another."""
    camera = Camera(Folder(tmp_path), step=0)
    camera.play(3)
    camera.play(0.5, change=True)
    camera.play(3, change=True)
    assert [len(brightnesses(path)) for path in clips_in(tmp_path)] == [pytest.approx(26, abs=1)]
    for _ in range(40):
        camera.play(0.5, change=True)
    lengths = [len(brightnesses(path)) for path in clips_in(tmp_path)]
    assert len(lengths) > 2
    assert max(lengths) <= 62


def test_frames_are_kept_ten_times_a_second_whatever_the_camera_does(tmp_path: Path) -> None:
    """Of a fast camera only so many are encoded; a change is never passed over."""
    camera = Camera(Folder(tmp_path), step=0)
    wanted = 0
    for _ in range(300):
        wanted += camera.clips.wants(seen())
        camera.now += 1 / 100
    assert wanted == pytest.approx(31, abs=3)
    assert camera.clips.wants(seen(changed=True))
    assert not camera.clips.wants(Health(0, {}, 0))


def test_the_past_is_held_in_bounded_memory(tmp_path: Path) -> None:
    """However large the pictures and however long the clips."""
    clips = Clips(Folder(tmp_path), 60)
    noise = np.random.RandomState(0).randint(0, 256, (1080, 1920, 3)).astype(np.uint8)
    for _ in range(20):
        clips.write_picture(seen(), noise)
    ring = clips._rings["cam"]
    assert 0 < sum(len(jpeg) for _, jpeg in ring) <= RING_BYTES
    assert len(ring) < 20


def test_each_source_has_its_own_clip(tmp_path: Path) -> None:
    """At the same time, of their own frames."""
    now = [100.0]
    clips = Clips(Folder(tmp_path), 1, clock=lambda: now[0])
    for i in range(40):
        for source, brightness in (("a", 50), ("b", 200)):
            clips.write_picture(seen(i == 20, source), picture(brightness))
        now[0] += 0.1
    first, second = clips_in(tmp_path)
    assert ("_a_" in first.name, "_b_" in second.name) == (True, True)
    assert set(brightnesses(first)) == {50}
    assert set(brightnesses(second)) == {200}


@pytest.mark.parametrize("state", ["stalled", "reconnecting", "ended"])
def test_a_lost_source_ends_its_clip(tmp_path: Path, state: CaptureState) -> None:
    """No further frame may ever come."""
    camera = Camera(Folder(tmp_path))
    camera.play(2)
    camera.play(0.3, change=True)
    assert clips_in(tmp_path) == []
    event = SourceChanged(0, "cam", state, "")
    assert camera.clips.wants(event)
    camera.clips.write_picture(event, None)
    assert len(brightnesses(clips_in(tmp_path)[0])) == pytest.approx(13, abs=1)


def test_the_end_of_the_run_closes_a_clip_early(tmp_path: Path) -> None:
    """With what there is by then."""
    camera = Camera(Folder(tmp_path))
    camera.play(0.2, change=True)
    camera.clips.close()
    assert len(brightnesses(clips_in(tmp_path)[0])) == 2


def test_a_picture_of_another_size_is_fitted(tmp_path: Path) -> None:
    """A camera may change its mind; the video keeps the size of its first frame."""
    camera = Camera(Folder(tmp_path), step=0)
    camera.play(0.5, change=True)
    camera.play(2, width=320)
    (path,) = clips_in(tmp_path)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_WIDTH) == 160
    assert len(brightnesses(path)) == pytest.approx(11, abs=1)


def test_a_clip_that_cannot_be_begun_is_lost_alone_and_the_next_is_written(tmp_path: Path) -> None:
    """While the folder is gone, no frame is reported as lost but the change; the past goes on being remembered."""
    place, away = tmp_path / "clips", tmp_path / "away"
    camera = Camera(Folder(place))
    camera.play(2)
    place.rename(away)
    with pytest.raises(OSError, match="is gone"):
        camera.clips.write_picture(seen(True), picture(0))
    with pytest.raises(Paused, match="is gone"):
        camera.play(1)
    away.rename(place)
    camera.now += 1
    camera.play(1)
    camera.play(2, change=True)
    assert len(brightnesses(clips_in(place)[0])) == pytest.approx(21, abs=1)


def test_a_clip_whose_folder_goes_away_meanwhile_is_given_up(tmp_path: Path) -> None:
    """An error that is counted, and a sink that lives on."""
    place, away = tmp_path / "clips", tmp_path / "away"
    camera = Camera(Folder(place))
    camera.play(0.5, change=True)
    place.rename(away)
    with pytest.raises(OSError, match="clips"):
        camera.play(3)
    away.rename(place)
    camera.play(1)
    camera.play(2, change=True)
    assert len(clips_in(place)) == 1


def test_the_pictures_are_in_the_video_as_they_were_encoded(tmp_path: Path) -> None:
    """Byte for byte, so nothing is lost by encoding them again; odd lengths are padded, and the index finds each."""
    random = np.random.RandomState(0)
    noise = [random.randint(0, 256, (120, 160, 3)).astype(np.uint8) for _ in range(8)]
    pictures = [cv2.imencode(".jpg", image)[1].tobytes() for image in noise]
    video = Avi(tmp_path / "x.avi", (160, 120), 12.5)
    for jpeg in pictures:
        video.write(jpeg)
    video.finish()
    data = (tmp_path / "x.avi").read_bytes()
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    movi, index = data.index(b"movi"), data.index(b"idx1") + 8
    for i, jpeg in enumerate(pictures):
        name, _, at, size = struct.unpack_from("<4s3I", data, index + 16 * i)
        assert (name, data[movi + at + 8 :][:size]) == (b"00dc", jpeg)
    assert {len(jpeg) % 2 for jpeg in pictures} == {0, 1}
    assert cv2.VideoCapture(str(tmp_path / "x.avi")).get(cv2.CAP_PROP_FPS) == 12.5


def test_a_video_ends_where_its_file_would_become_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there can be played."""
    monkeypatch.setattr(avi, "LARGEST", 3000)
    camera = Camera(Folder(tmp_path))
    camera.play(3, change=True)
    (path,) = clips_in(tmp_path)
    assert 0 < len(brightnesses(path)) < 11
    assert path.stat().st_size < 4000


def test_a_really_full_disk_loses_the_clip_and_leaves_nothing_torn(small_disk: Callable[..., Path]) -> None:
    """Two megabytes of room, and noise that does not fit; with room again, the next clip is written."""
    place = small_disk("2m")
    now = [100.0]
    clips = Clips(Folder(place), 2, clock=lambda: now[0])
    noise = np.random.RandomState(0).randint(0, 256, (480, 640, 3)).astype(np.uint8)

    def play(image: Pixels) -> None:
        for i in range(40):
            clips.write_picture(seen(i == 20, time_s=now[0]), image)
            now[0] += 0.1

    with pytest.raises(OSError, match="a clip cannot be written: No space left on device"):
        play(noise)
    assert list(place.iterdir()) == []
    now[0] += 5
    play(picture(50))
    assert set(brightnesses(clips_in(place)[0])) == {50}
