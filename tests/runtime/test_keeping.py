"""Snapshots and the folder that they are kept in: whole files, limits, and disks that go away and come back."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclf.core.errors import ConfigError, StorageError
from edgeclf.core.image import Pixels
from edgeclf.core.live_settings import SnapshotsSection
from edgeclf.runtime.decision import Decision
from edgeclf.runtime.events import Seen, SourceChanged, Stages
from edgeclf.runtime.sinks.files import check_labels
from edgeclf.runtime.sinks.keeping import MB, Folder, plain_name, stem
from edgeclf.runtime.sinks.sink import Background
from edgeclf.runtime.sinks.snapshots import Snapshots

PICTURE: Pixels = np.random.RandomState(0).randint(0, 256, (120, 160, 3)).astype(np.uint8)


def seen(label: str = "cat", changed: bool = True, time_s: float = 1_700_000_000.25, source: str = "cam") -> Seen:
    decision = Decision(label, 0.98, label, changed, ((label, 0.98),))
    return Seen(time_s, source, 0, decision, Stages(1.5, 0.25, 4.5, 0.01, 12.3456), 29.97)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_snapshot_is_a_picture_and_its_record_under_one_name(tmp_path: Path) -> None:
    """Named by time in UTC, source and label; nothing else is left in the folder."""
    Snapshots(Folder(tmp_path / "a" / "b")).write_picture(seen("red square"), PICTURE)
    name = "20231114T221320.250000Z_cam_red-square"
    assert names(tmp_path / "a" / "b") == [f"{name}.jpg", f"{name}.json"]
    picture = cv2.imread(str(tmp_path / "a" / "b" / f"{name}.jpg"))
    assert picture.shape == PICTURE.shape
    assert json.loads((tmp_path / "a" / "b" / f"{name}.json").read_text())["label"] == "red square"


def test_only_changes_and_only_the_labels_asked_for_are_wanted(tmp_path: Path) -> None:
    """No frame that changes nothing is even queued."""
    each, chosen = Snapshots(Folder(tmp_path)), Snapshots(Folder(tmp_path), ["dog", "unknown"])
    events = [seen("cat"), seen("dog"), seen("dog", changed=False), SourceChanged(0, "cam", "live", "")]
    assert [each.wants(event) for event in events] == [True, True, False, False]
    assert [chosen.wants(event) for event in events] == [False, True, False, False]


def test_a_label_that_the_model_never_gives_is_an_error_at_the_start() -> None:
    """With the nearest one that it knows."""
    check_labels(SnapshotsSection("x", ("cat", "unknown")), ["cat", "dog"])
    with pytest.raises(ConfigError, match=r"no class 'cot'; did you mean 'cat'"):
        check_labels(SnapshotsSection("x", ("cot",)), ["cat", "dog"])


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("rtsp://***@10.0.0.5:554/live?a=b", "rtsp-10-0-0-5-554-live-a-b"),
        ("Käfer 猫", "Käfer-猫"),
        (".hidden", "hidden"),
        ("\x00\n\x1b[2J", "2J"),
        ("...", "x"),
        ("猫" * 100, "猫" * 20),
    ],
)
def test_names_are_fit_for_any_file_system(text: str, plain: str) -> None:
    """No path, no control character, no more bytes than a name may have."""
    assert plain_name(text) == plain
    assert len(stem(0, text, text).encode()) < 200


def test_the_oldest_go_when_all_take_more_than_the_limit(tmp_path: Path) -> None:
    """Picture and record together, those of earlier runs too; files of other names are not counted and never touched."""
    for name in ("notes.txt", "holiday.jpg", "20231114T221320.250Z.jpg"):
        (tmp_path / name).write_bytes(bytes(3 * MB))
    for _ in range(2):  # two runs
        folder = Folder(tmp_path, max_mb=1)
        for i in range(8):
            folder.keep({f"{stem(1e9 + i, 'cam', 'cat')}{suffix}": bytes(MB // 10) for suffix in (".json", ".jpg")})
            kept = [name for name in names(tmp_path) if "_cam_" in name]
            assert sum((tmp_path / name).stat().st_size for name in kept) <= MB
    assert len(kept) == 10
    assert kept[0].startswith("20010909T014643")
    assert len(names(tmp_path)) == 13


def test_what_a_kill_left_half_written_is_swept_at_the_next_start(tmp_path: Path) -> None:
    """Unless another live process may be writing it; a very old one goes all the same."""
    gone = int(subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout)
    left, ours, others = (tmp_path / f".edgeclf-{pid}-0.part.avi" for pid in (gone, os.getpid(), os.getppid()))
    old = tmp_path / f".edgeclf-{os.getppid()}-1.part.jpg"
    for path in (left, ours, others, old):
        path.touch()
    os.utime(old, (0, 0))
    Folder(tmp_path)
    assert names(tmp_path) == [others.name]


def test_a_folder_that_cannot_be_used_is_an_error_before_the_run(tmp_path: Path) -> None:
    """A file in its place, and a disk that cannot be written."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", Path("/proc/edgeclf")):
        with pytest.raises(StorageError, match=f"{path}: cannot write"):
            Folder(path)


def test_below_the_floor_of_free_space_nothing_is_written(tmp_path: Path) -> None:
    """The message says how much is free and which setting holds."""
    folder = Folder(tmp_path, min_free_mb=1 << 40)
    with pytest.raises(OSError, match=r"MB of the disk are free, and .* are to stay so \(min_free_mb\)"):
        folder.keep({"20231114T221320.250000Z_a_b.jpg": b"x"})
    assert names(tmp_path) == []


def test_a_removed_folder_is_not_made_again_and_a_new_one_is_used(tmp_path: Path) -> None:
    """What was removed may have been a mount; a folder on the same disk is the owner's doing, a link elsewhere is not."""
    place, elsewhere = tmp_path / "snaps", tmp_path / "elsewhere"
    writer = Snapshots(Folder(place))
    place.rename(elsewhere)
    with pytest.raises(OSError, match="is gone; is its disk mounted"):
        writer.write_picture(seen(), PICTURE)
    assert not place.exists()
    place.symlink_to(elsewhere)
    with pytest.raises(OSError, match="no folder any more"):
        writer.write_picture(seen(), PICTURE)
    assert names(elsewhere) == []
    place.unlink()
    place.mkdir()
    writer.write_picture(seen(), PICTURE)
    assert len(names(place)) == 2


def test_an_unmounted_disk_is_not_replaced_by_the_one_below_and_is_taken_up_again(small_disk: Callable[..., Path]) -> None:
    """Row 13: pauses, writes nothing to the parent's disk, warns once, resumes when a disk is mounted there again."""
    place = small_disk()
    troubles: list[str] = []
    for inside in (place, place / "snaps"):
        folder = Folder(inside)
        sink = Background(Snapshots(folder), "snapshots", on_trouble=troubles.append)
        subprocess.run(["umount", place], check=True)
        inside.mkdir(exist_ok=True)
        _emit(sink, 3)
        assert names(inside) == []
        assert len(troubles) == 1
        assert "on another disk than at the start" in troubles[0]
        if inside != place:
            inside.rmdir()
        small_disk()
        inside.mkdir(exist_ok=True)
        _emit(sink, 1)
        assert len(names(inside)) == 2
        assert "works again; 3 results were lost" in troubles[1]
        assert sink.close()
        troubles.clear()


def test_a_disk_mounted_over_the_folder_is_not_written_to(small_disk: Callable[..., Path], tmp_path: Path) -> None:
    """It is not where the owner saw the pictures go; when it is gone, they go there again."""
    folder = Folder(tmp_path / "disk")
    place = small_disk()
    with pytest.raises(OSError, match="on another disk"):
        folder.keep({"20231114T221320.250000Z_a_b.jpg": b"x"})
    assert names(place) == []
    subprocess.run(["umount", place], check=True)
    folder.keep({"20231114T221320.250000Z_a_b.jpg": b"x"})
    assert len(names(place)) == 1


def test_a_full_disk_pauses_the_snapshots_and_leaves_nothing_torn(small_disk: Callable[..., Path]) -> None:
    """Row 12: told once, all counted, and written again when there is room."""
    place = small_disk("1m")
    troubles: list[str] = []
    sink = Background(Snapshots(Folder(place)), "snapshots", on_trouble=troubles.append)
    filler = place / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(2 * MB))
    _emit(sink, 3)
    assert names(place) == ["filler"]
    assert sink.lost == 3
    assert len(troubles) == 1
    assert "No space left on device" in troubles[0]
    filler.unlink()
    _emit(sink, 1)
    assert len(names(place)) == 2
    assert sink.close()


def test_a_disk_that_becomes_read_only_pauses_the_snapshots(small_disk: Callable[..., Path]) -> None:
    """As a worn memory card does; writable again, they go on."""
    place = small_disk()
    folder = Folder(place)
    _remount(place, "ro")
    with pytest.raises(OSError, match="Read-only"):
        folder.keep({"20231114T221320.250000Z_a_b.jpg": b"x"})
    with pytest.raises(StorageError, match="Read-only"):
        Folder(place)
    _remount(place, "rw")
    folder.keep({"20231114T221320.250000Z_a_b.jpg": b"x"})
    assert len(names(place)) == 1


def _remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)


def _emit(sink: Background, count: int) -> None:
    """So many changes, each a millisecond later, and wait until the sink has dealt with all of them."""
    done: list[int] = []
    guard = sink._guard
    sink._guard = lambda work, number: (guard(work, number), done.append(number))[0]  # type: ignore[method-assign]
    for i in range(count):
        sink.emit(seen(time_s=1e9 + i), PICTURE)
    limit = time.monotonic() + 10
    while len(done) < count:
        assert time.monotonic() < limit
        time.sleep(0.005)
    sink._guard = guard  # type: ignore[method-assign]
