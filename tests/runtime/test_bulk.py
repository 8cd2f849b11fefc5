"""Bulk classification on this machine: the answers, parts that appear whole, jobs that are killed and go on."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
from pyarrow import dataset, parquet

from edgeclf.core.errors import ConfigError, DataError, EdgeclfError, ModelError, StorageError
from edgeclf.core.image import read_picture
from edgeclf.runtime.bulk import job, local
from edgeclf.runtime.bulk.answering import ANSWERS, answer
from edgeclf.runtime.bulk.run import classify
from edgeclf.runtime.classifier import Classifier

NAMES = ("red-square", "green-disc", "blue-cross", "yellow-bars")


@pytest.fixture
def model(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


@pytest.fixture
def photos(tmp_path: Path, fixtures_folder: Path) -> Path:
    """Forty pictures and a broken one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(40):
        shutil.copy(fixtures_folder / "pictures" / f"{NAMES[i % 4]}.png", folder / f"{i:02d}.png")
    (folder / "13.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four pictures, in this process, where they are cut and put together."""
    monkeypatch.setattr(job, "FEWEST", 4)
    monkeypatch.setattr(job, "MOST", 4)


def rows(out: Path) -> list[dict[str, Any]]:
    """As a reader gets them who knows nothing of edgeclf."""
    return list(dataset.dataset(out, format="parquet").to_table().sort_by("path").to_pylist())


def test_answers_are_those_of_predict(photos: Path, model: Path, tmp_path: Path) -> None:
    """Label, score and likeliest classes of every picture, and the error of the broken one."""
    done = classify(model, [str(photos)], str(tmp_path / "out"), workers=2, top=3)
    assert (done.pictures, done.errors, done.answered) == (40, 1, 40)
    found, classifier = rows(tmp_path / "out"), Classifier.load(model)
    assert [row["path"] for row in found] == [str(path) for path in sorted(photos.iterdir())]
    for row in found:
        if row["path"].endswith("13.png"):
            assert (row["label"], row["score"], row["top"]) == (None, None, None)
            assert "is not a picture" in row["error"]
            continue
        best, known = classifier.judge(read_picture(Path(row["path"])), top=3)
        assert row["label"] == (best[0].label if known else "unknown")
        assert [(one["label"], pytest.approx(one["score"])) for one in row["top"]] == [(p.label, p.score) for p in best]
        assert (row["score"], row["error"]) == (row["top"][0]["score"], None)


def test_every_kind_of_input_gives_the_same_answers(photos: Path, model: Path, tmp_path: Path) -> None:
    """A folder, a zip, a tar and a table of the same pictures, in one job."""
    files = sorted(photos.iterdir())
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive, tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in files:
            archive.write(path, path.name)
            tar.add(path, path.name)
    parquet.write_table(pa.table({"image": [path.read_bytes() for path in files]}), tmp_path / "a.parquet")
    classify(model, [str(photos), *(str(tmp_path / f"a.{kind}") for kind in ("zip", "tar", "parquet"))], str(tmp_path / "out"))
    found = dataset.dataset(tmp_path / "out", format="parquet").to_table().to_pylist()
    answers = [(row["label"], row["score"], row["top"]) for row in found]
    assert len(answers) == 160
    assert answers == answers[:40] * 4


def test_scores_that_are_no_numbers_are_an_error_of_that_row(fixtures_folder: Path) -> None:
    """The others of the batch keep their answers, in their places."""
    classifier = Classifier.load(fixtures_folder / "tiny-int8.tflite")
    picture = (fixtures_folder / "pictures" / "red-square.png").read_bytes()
    engine, calls = classifier.engine, []
    raw = engine.raw

    def sometimes(batch: Any) -> Any:
        calls.append(1)
        return np.full((1, 4), np.nan, np.float32) if len(calls) == 2 else engine.logits(raw(batch))

    engine.raw = sometimes  # type: ignore[method-assign]
    batch = answer(classifier, [("a", picture), ("b", picture), ("c", DataError("c: lost")), ("d", picture)], 2)
    assert batch.schema == ANSWERS
    found = batch.to_pylist()
    assert [row["label"] for row in found] == ["red square", None, None, "red square"]
    assert "not numbers" in found[1]["error"]
    assert found[2] == {"path": "c", "label": None, "score": None, "top": None, "error": "c: lost"}
    assert found[3]["top"][0]["label"] == "red square"


def test_a_job_goes_on_where_it_stopped(photos: Path, model: Path, tmp_path: Path, small_parts: None) -> None:
    """Whichever parts are missing, they alone are made, and the whole is as of one run; without any, nothing is done."""
    out = tmp_path / "out"
    classify(model, [str(photos)], str(out), workers=2)
    wanted, kept = rows(out), (out / "part-0000001.parquet").stat().st_mtime_ns
    assert len(list(out.glob("part-*.parquet"))) == 10
    for number in (0, 4, 9):
        (out / f"part-{number:07d}.parquet").unlink()
    (out / f".part-0000004-x{job.UNFINISHED}").write_bytes(b"PAR1")
    done = classify(model, [str(photos)], str(out), workers=1)
    assert (done.answered, done.pictures, done.errors) == (12, 40, 1)
    assert rows(out) == wanted
    assert (out / "part-0000001.parquet").stat().st_mtime_ns == kept
    assert not list(out.glob(".*"))
    assert classify(model, [str(photos)], str(out)).answered == 0


def test_an_output_of_other_work_is_refused_until_it_may_go(
    photos: Path, model: Path, tmp_path: Path, fixtures_folder: Path
) -> None:
    """Another model, other inputs, other options; refused, nothing of it is touched."""
    out, other = tmp_path / "out", fixtures_folder / "tiny-float32.tflite"
    classify(model, [str(photos)], str(out), workers=1)
    wanted = rows(out)
    with pytest.raises(
        ConfigError, match=r"answers of another model \(tiny-int8.tflite, SHA-256 [0-9a-f]{12}…\); give --overwrite"
    ):
        classify(other, [str(photos)], str(out))
    with pytest.raises(ConfigError, match="was begun with top = 5, not 2"):
        classify(model, [str(photos)], str(out), top=2)
    (photos / "99.png").write_bytes(b"new")
    with pytest.raises(ConfigError, match="other inputs: 40 pictures when it was begun, 41 pictures now"):
        classify(model, [str(photos)], str(out))
    with pytest.raises(DataError, match="no such file"):
        classify(model, [str(tmp_path / "absent")], str(out), overwrite=True)
    assert rows(out) == wanted
    classify(other, [str(photos)], str(out), workers=1, overwrite=True)
    assert len(rows(out)) == 41
    assert json.loads((out / "_manifest.json").read_text())["model"]["file"] == "tiny-float32.tflite"


def test_a_folder_with_other_files_is_never_touched(photos: Path, model: Path, tmp_path: Path) -> None:
    """Not even with `overwrite`; nor a file in the place of the folder."""
    for name, says in (("a/holiday.jpg", "holds other files, such as 'holiday.jpg'"), ("b", "is a file; results are a folder")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
        with pytest.raises(ConfigError, match=says):
            classify(model, [str(photos)], str(tmp_path / name[0]), overwrite=True)
        assert path.read_bytes() == b"mine"


def test_parts_without_a_manifest_are_taken_for_nobodys(photos: Path, model: Path, tmp_path: Path) -> None:
    """They may be of any model."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-0000000.parquet").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"holds parts without _manifest\.json"):
        classify(model, [str(photos)], str(tmp_path / "out"))


def test_two_jobs_do_not_work_in_one_folder(photos: Path, model: Path, tmp_path: Path) -> None:
    """The second is told."""
    from edgeclf.core.files import locked

    with locked(tmp_path / "out"), pytest.raises(ConfigError, match="another job is at work there"):
        classify(model, [str(photos)], str(tmp_path / "out"))


def test_a_part_that_was_damaged_is_named(photos: Path, model: Path, tmp_path: Path) -> None:
    """Rather than counted as if it held answers."""
    classify(model, [str(photos)], str(tmp_path / "out"), workers=1)
    (tmp_path / "out" / "part-0000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(StorageError, match=r"part-0000000.parquet: cannot be read back.*remove it, and it is made again"):
        classify(model, [str(photos)], str(tmp_path / "out"))


def test_a_full_disk_is_one_line_and_what_is_written_is_kept(
    photos: Path, model: Path, small_disk: Callable[..., Path], small_parts: None
) -> None:
    """With room again, the job goes on."""
    disk = small_disk("48k")
    with pytest.raises(StorageError, match="cannot write: No space left on device"):
        classify(model, [str(photos)], str(disk / "out"), workers=1)
    kept = len(list((disk / "out").glob("part-*.parquet")))
    assert 0 < kept < 10
    for path in (disk / "out").glob("part-*.parquet"):
        parquet.read_table(path)
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    done = classify(model, [str(photos)], str(disk / "out"), workers=1)
    assert (done.pictures, done.answered) == (40, 40 - 4 * kept)


def test_a_worker_that_is_killed_is_told_and_nothing_is_lost(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    """As the system does when memory runs out."""
    import multiprocessing

    def kill_one(pictures: int) -> None:
        if not killed:
            killed.append(1)
            next(iter(multiprocessing.active_children())).kill()

    killed: list[int] = []
    run = local.run
    monkeypatch.setattr(local, "run", lambda a, b, c, d, answered, finished: run(a, b, c, d, kill_one, finished))
    with pytest.raises(EdgeclfError, match="worker process was ended by the system"):
        classify(model, [str(photos)], str(tmp_path / "out"), workers=1)
    monkeypatch.undo()
    monkeypatch.setattr(job, "FEWEST", 4)
    monkeypatch.setattr(job, "MOST", 4)
    assert classify(model, [str(photos)], str(tmp_path / "out"), workers=1).pictures == 40


def test_inputs_are_answered_once_whenever_the_program_is_killed(fixtures_folder: Path, tmp_path: Path) -> None:
    """SIGKILL at several moments, the same command again each time; no process stays behind."""
    picture = (fixtures_folder / "pictures" / "red-square.png").read_bytes()
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for i in range(3000):
            archive.writestr(f"{i:04d}.png", picture)
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "edgeclf", "classify", str(fixtures_folder / "tiny-int8.tflite"), str(tmp_path / "many.zip"),
        "--out", str(out), "--workers", "2",
    ]  # fmt: skip
    for least in (0, 4):
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(out.glob("part-*"))) < least and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        workers = children_of(child.pid)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert_all_end(workers)
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["pictures"] == 3000
    assert [row["path"] for row in rows(out)] == [f"{tmp_path}/many.zip/{i:04d}.png" for i in range(3000)]


def children_of(pid: int) -> list[str]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return path.read_text().split() if path.exists() else []


def assert_all_end(pids: list[str]) -> None:
    deadline = time.monotonic() + 60
    while left := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.05)


def _runs(pid: str) -> bool:
    try:
        return "edgeclf" in Path(f"/proc/{pid}/cmdline").read_text() or "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_an_archive_of_bombs_is_rows_of_errors(fixtures_folder: Path, model: Path, tmp_path: Path) -> None:
    """Entries that claim more than the limit, or unpack to more, take neither memory nor the others with them."""
    picture = (fixtures_folder / "pictures" / "red-square.png").read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("good.png")
        member.size = len(picture)
        tar.addfile(member, io.BytesIO(picture))
        member = tarfile.TarInfo("/climbs.png")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
        member = tarfile.TarInfo("link.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(64 << 20))
        archive.writestr("good.png", picture)
    done = classify(model, [str(tmp_path / "a.tar"), str(tmp_path / "b.zip")], str(tmp_path / "out"), workers=1)
    assert (done.pictures, done.errors) == (4, 2)
    assert {Path(row["path"]).name: row["error"] is None for row in rows(tmp_path / "out")} == {
        "good.png": True, "climbs.png": False, "bomb.png": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"inputs": ["a", "a"]}, ConfigError, "a: is given twice"),
        ({"workers": 0}, ConfigError, "must be at least 1"),
        ({"address": "here:1"}, ConfigError, "choose the engine ray too"),
        ({"file": "nonesuch.tflite"}, ModelError, "nonesuch.tflite"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    more: dict[str, Any], error: type[Exception], says: str, model: Path, tmp_path: Path
) -> None:
    """Before anything is written."""
    with pytest.raises(error, match=says):
        classify(**{"file": model, "inputs": ["a"], "out": str(tmp_path / "out"), **more})
    assert not (tmp_path / "out").exists()
