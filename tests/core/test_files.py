"""Files appear whole or not at all, and survive the power going out."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from edgeclf.core import files
from edgeclf.core.errors import StorageError


def test_a_failure_half_way_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """Whatever raised goes on to the caller."""
    path = tmp_path / "card.json"
    path.write_text("old")

    def half_way() -> None:
        with files.writing(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half_way()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_renamed_into_place_and_never_written_over(tmp_path: Path) -> None:
    """Who holds the old file open, or another name of it, keeps the old bytes."""
    path, other_name = tmp_path / "x.tflite", tmp_path / "kept.tflite"
    path.write_bytes(b"old")
    os.link(path, other_name)
    files.write_bytes(path, b"new")
    assert (path.read_bytes(), other_name.read_bytes()) == (b"new", b"old")


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that overtakes its data leaves an empty file when the power goes out."""
    path, synced = tmp_path / "x.bin", []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append((os.fstat(handle).st_size, path.exists(), os.fstat(handle).st_ino))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_bytes(path, b"12345")
    assert (5, False, path.stat().st_ino) in synced


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    """A temporary file is private; what it becomes is not."""
    files.write_text(tmp_path / "a.txt", "ä")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644
    assert (tmp_path / "a.txt").read_bytes() == "ä".encode()


def test_a_refusal_of_the_disk_names_the_file(tmp_path: Path) -> None:
    """A folder that cannot be made, and a folder where the file should go."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/x\.json: cannot write"):
        files.write_text(tmp_path / "file" / "x.json", "{}")
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(StorageError, match=r"taken\.json: cannot write: Is a directory"):
        files.write_text(tmp_path / "taken.json", "{}")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "taken.json"}


def test_json_is_sorted_and_has_no_nan(tmp_path: Path) -> None:
    """Other programs refuse NaN, so it must not get that far."""
    files.write_json(tmp_path / "a.json", {"b": 1, "a": 2})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 2,\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """EDGECLF_CACHE, else the XDG folder, else ~/.cache."""
    monkeypatch.setenv("EDGECLF_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert files.cache_folder() == Path("/a")
    monkeypatch.delenv("EDGECLF_CACHE")
    assert files.cache_folder() == Path("/b/edgeclf")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder() == Path.home() / ".cache" / "edgeclf"


def test_a_folder_takes_the_place_of_the_old_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lay in the old one is gone, what is new was on the disk before; nothing else is left beside it."""
    path, synced = tmp_path / "net.mlpackage", []
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "old").write_text("old")
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_size), real(handle)))
    with files.writing_folder(path) as folder:
        assert folder.name == path.name
        (folder / "deep").mkdir()
        (folder / "deep" / "new").write_text("newer")
        assert (path / "deep" / "old").read_text() == "old"
    assert [p.relative_to(path).as_posix() for p in sorted(path.rglob("*"))] == ["deep", "deep/new"]
    assert synced == [5]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_fails_half_way_leaves_the_old_one(tmp_path: Path) -> None:
    """Whatever raised goes on to the caller; a disk that refuses is named."""
    path = tmp_path / "net.mlpackage"
    path.mkdir()
    (path / "old").write_text("old")

    def failing(error: BaseException) -> None:
        with files.writing_folder(path) as folder:
            (folder / "half").write_text("ne")
            raise error

    with pytest.raises(KeyboardInterrupt):
        failing(KeyboardInterrupt())
    with pytest.raises(StorageError, match=r"net.mlpackage: cannot write: No space left on device"):
        failing(OSError(28, "No space left on device"))
    assert [p.name for p in tmp_path.rglob("*")] == ["net.mlpackage", "old"]
