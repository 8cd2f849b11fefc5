"""What is to be classified, and in which order: folders, patterns, archives, shards and tables."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")

import pyarrow as pa
from pyarrow import parquet

from edgeclf.core.errors import DataError
from edgeclf.core.text import refusal
from edgeclf.runtime.bulk import inputs, job
from edgeclf.runtime.bulk.inputs import FILE, STREAM, TABLE, Item, listing
from edgeclf.runtime.bulk.places import Place, place, shown
from edgeclf.runtime.bulk.reading import Reader


@pytest.fixture
def png(fixtures_folder: Path) -> bytes:
    return (fixtures_folder / "pictures" / "red-square.png").read_bytes()


def listed(*given: object, column: str | None = None) -> list[Item]:
    return list(listing([place(str(one)) for one in given], column))


def names(items: list[Item]) -> list[str]:
    return [os.fsdecode(item.name) for item in items]


def read(items: list[Item], start: int = 0, stop: int | None = None, column: str | None = None) -> list[tuple[str, Any]]:
    """What a worker would get; `stop` None: all."""
    stop = sum(item.pictures for item in items) if stop is None else stop
    return list(Reader(("",), column).pictures(items, start, stop))


def table(path: Path, /, **columns: list[Any]) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=4)
    return path


def test_a_folder_is_listed_by_name_without_what_is_hidden(tmp_path: Path) -> None:
    """Whatever the disk's own order; other files are passed over."""
    for name in ("b/2.png", "b/10.png", "a/z.JPG", "c.png", ".hidden/x.png", "b/.y.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = names(listed(tmp_path))
    assert [Path(name).relative_to(tmp_path).as_posix() for name in found] == ["a/z.JPG", "b/10.png", "b/2.png", "c.png"]


def test_a_listing_of_many_batches_is_sorted_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names go through Arrow in batches; the order is that of all of them."""
    monkeypatch.setattr(inputs, "BATCH", 7)
    for i in range(50):
        (tmp_path / f"{i * 37 % 50:02d}.png").touch()
    assert [Path(name).name for name in names(listed(tmp_path))] == [f"{i:02d}.png" for i in range(50)]


def test_a_name_that_is_no_text_is_an_input_like_any_other(tmp_path: Path, png: bytes) -> None:
    """Results show a question mark for its odd byte."""
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(png)
    ((name, data),) = read(listed(tmp_path))
    assert (name, data) == (f"{tmp_path}/?.png", png)


def test_a_pattern_takes_pictures_archives_and_folders(tmp_path: Path, png: bytes) -> None:
    """`**` reaches below; what it matches besides is passed over."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("x.png", "y.txt", "deep/er/z.png"):
        (tmp_path / name).write_bytes(png)
    assert [Path(name).name for name in names(listed(tmp_path / "*.png"))] == ["x.png"]
    assert [Path(name).name for name in names(listed(tmp_path / "**" / "*.png"))] == ["z.png", "x.png"]
    assert [Path(name).name for name in names(listed(tmp_path / "*"))] == ["z.png", "x.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_taken_as_it_is(tmp_path: Path, png: bytes) -> None:
    """IMG[1].png is what browsers call a second download."""
    (tmp_path / "IMG[1].png").write_bytes(png)
    assert read(listed(tmp_path / "IMG[1].png")) == [(f"{tmp_path}/IMG[1].png", png)]


def test_archives_give_their_pictures_by_offset(tmp_path: Path, png: bytes) -> None:
    """A zip, stored and deflated, and a tar in WebDataset's layout, whose labels are passed over."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/one.png", png)
        archive.writestr("in/one.txt", "no picture")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name, data in (("0001.png", png), ("0001.cls", b"3"), ("0002.png", png[::-1])):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert read(listed(tmp_path / "*")) == [
        (f"{tmp_path}/a.zip/in/one.png", png),
        (f"{tmp_path}/b.tar/0001.png", png),
        (f"{tmp_path}/b.tar/0002.png", png[::-1]),
    ]


def test_a_shard_is_streamed_like_it_is_indexed(tmp_path: Path, png: bytes) -> None:
    """From object storage a shard is read once, from its beginning to its end."""
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name in ("1.png", ".hidden.png", "1.json", "2.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png)
            tar.addfile(member, io.BytesIO(png))
    streamed = [Item(0, STREAM, str(tmp_path / "b.tar"), b"", 0, 0, pictures=0)]
    assert list(Reader(("",), None).pictures(streamed, 0, None)) == read(listed(tmp_path / "b.tar"))


def test_a_shard_that_ends_early_says_so_after_what_it_holds(tmp_path: Path, png: bytes) -> None:
    """The pictures before the damage are there, and one row tells of it."""
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name in ("1.png", "2.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png)
            tar.addfile(member, io.BytesIO(png))
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: 512 + len(png) // 2])
    found = list(Reader(("",), None).pictures([Item(0, STREAM, str(tmp_path / "b.tar"), b"", 0, 0, pictures=0)], 0, None))
    assert isinstance(found[-1][1], DataError)
    assert "cannot be read to its end" in str(found[-1][1])


def test_tables_hold_pictures_structs_of_them_or_paths(tmp_path: Path, png: bytes) -> None:
    """The column is found by its name or named; a path lies where the table does, an empty cell is told."""
    (tmp_path / "one.png").write_bytes(png)
    table(tmp_path / "bytes.parquet", id=[1, 2], image=[png, None])
    table(tmp_path / "struct.parquet", image=[{"bytes": png, "path": "x"}, None])
    table(tmp_path / "paths.parquet", label=["a", "b"], path=["one.png", str(tmp_path / "one.png")])
    ((first, data), (_, missing)) = read(listed(tmp_path / "bytes.parquet"))
    assert (first, data, str(missing)) == (
        f"{tmp_path}/bytes.parquet#0", png, f"{tmp_path}/bytes.parquet#1: the cell is empty",
    )  # fmt: skip
    assert next(data for _, data in read(listed(tmp_path / "struct.parquet"))) == png
    assert read(listed(tmp_path / "paths.parquet")) == [(f"{tmp_path}/one.png", png)] * 2


def test_any_range_of_a_table_is_the_same_as_of_the_whole(tmp_path: Path) -> None:
    """Over row groups, forwards and backwards, with one reader."""
    path = table(tmp_path / "t.parquet", image=[bytes([i]) for i in range(11)])
    items, reader = listed(path), Reader(("",), None)
    whole = [(f"{path}#{i}", bytes([i])) for i in range(11)]
    for start, stop in ((0, 11), (3, 5), (5, 9), (2, 3), (10, 11)):
        assert list(reader.pictures(items, start, stop)) == whole[start:stop]


@pytest.mark.parametrize(
    ("columns", "wanted", "says"),
    [
        ({"x": [1]}, None, "which column holds the pictures or their paths? name it with --column; there are: x"),
        ({"image": [b"1"]}, "photo", "has no column 'photo'; there are: image"),
        ({"image": [1]}, None, "column 'image' is int64; expected pictures as binary, or their paths as string"),
    ],
)
def test_a_table_without_the_column_is_refused(tmp_path: Path, columns: dict[str, Any], wanted: str | None, says: str) -> None:
    """Before anything is classified, and with what there is."""
    path = table(tmp_path / "t.parquet", **columns)
    with pytest.raises(DataError) as raised:
        listed(path, column=wanted)
    assert str(raised.value) == f"{path}: {says}"


def test_an_argument_that_names_nothing_is_refused(tmp_path: Path) -> None:
    """A typing error must not pass for an empty job."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    for given, says in (
        ("absent", "no such file or folder"), ("*.png", "no pictures there"),
        ("empty", "for shards or tables in it give a pattern"),
        ("notes.txt", "neither a picture nor a folder, .zip, .tar or .parquet"), ("broken.parquet", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says.replace(".", r"\.")):
            listed(tmp_path / given)


def test_a_changed_picture_changes_the_listing(tmp_path: Path, png: bytes) -> None:
    """Size and time stand in it, so that a job is not resumed over other pictures."""
    shutil.copy(__file__, tmp_path / "a.png")
    before = listed(tmp_path)
    (tmp_path / "a.png").write_bytes(png)
    assert listed(tmp_path) != before


def test_parts_begin_small_and_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their limits follow from the number of the part alone, so they are the same at every start."""
    monkeypatch.setattr(job, "FEWEST", 2)
    monkeypatch.setattr(job, "EVERY", 3)
    items = [Item(0, FILE, "", bytes([i]), 0, 0) for i in range(25)]
    assert [len(part) for part in job.parts(iter(items))] == [2, 2, 2, 8, 8, 3]


def test_rows_of_tables_are_cut_to_fit_and_shards_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of a table is in exactly one part, under its own number."""
    monkeypatch.setattr(job, "FEWEST", 4)
    rows = Item(0, TABLE, "t", b"", 0, 0, offset=1, stored=0, method=100, pictures=10)
    shard = Item(0, STREAM, "s", b"", 0, 0, pictures=0)
    found = list(job.parts(iter([Item(0, FILE, "", b"a", 0, 0), rows, shard, Item(0, FILE, "", b"b", 0, 0)])))
    assert [[(item.kind, item.stored, item.method, item.pictures) for item in part] for part in found] == [
        [(FILE, 0, 0, 1), (TABLE, 0, 100, 3)],
        [(TABLE, 3, 103, 4)],
        [(TABLE, 7, 107, 3)],
        [(STREAM, 0, 0, 0)],
        [(FILE, 0, 0, 1)],
    ]


def test_an_address_shows_neither_secrets_nor_options() -> None:
    """In results, messages and the manifest."""
    url = "s3://key:se%2Fcret@bucket/folder?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:1"
    found = place(url)
    assert (found.path, str(found), shown(url)) == ("bucket/folder", "s3://bucket/folder", "s3://bucket/folder")
    assert "cret" not in repr(found) + str(found / "x.png")
    assert "cret" not in refusal(OSError(f"cannot open {url}"))


def test_an_address_that_no_filesystem_takes_is_refused() -> None:
    """One line, whatever the library says."""
    with pytest.raises(DataError, match="nosuch://x/y: this address cannot be used"):
        place("nosuch://x/y")
    assert Place("a") / "b" == Place("a/b")
