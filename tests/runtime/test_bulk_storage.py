"""Inputs and results on object storage: a real S3 server of this machine, by pyarrow."""

from __future__ import annotations

import io
import logging
import shutil
import socket
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("moto")

import pyarrow as pa
from pyarrow import dataset, fs, parquet

from edgeclf.core.errors import DataError, StorageError
from edgeclf.runtime.bulk.inputs import STREAM, listing, roots_of
from edgeclf.runtime.bulk.places import place
from edgeclf.runtime.bulk.reading import Reader
from edgeclf.runtime.bulk.run import classify

SECRET = "s3cr3t-of-the-user"
PICTURES = ("red-square.png", "green-disc.png", "blue-cross.png", "yellow-bars.png")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """HOST:PORT of a server of this test's own."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=port)
    moto.start()
    yield f"127.0.0.1:{port}"
    moto.stop()


def url(server: str, path: str) -> str:
    return f"s3://someone:{SECRET}@{path}?scheme=http&endpoint_override={server}&region=us-east-1&allow_bucket_creation=true"


@pytest.fixture(scope="module")
def bucket(server: str, fixtures_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same four pictures as files, in a zip, a shard and a table."""
    system = fs.FileSystem.from_uri(url(server, "bucket"))[0]
    system.create_dir("bucket")
    work, data = tmp_path_factory.mktemp("data"), {}
    with zipfile.ZipFile(work / "a.zip", "w") as archive, tarfile.open(work / "a.tar", "w") as tar:
        for name in PICTURES:
            path = fixtures_folder / "pictures" / name
            data[name] = path.read_bytes()
            archive.write(path, name)
            tar.add(path, name)
    parquet.write_table(pa.table({"image": list(data.values())}), work / "a.parquet")
    files = {f"photos/deep/{name}": content for name, content in data.items()}
    files |= {f"photos/{name}": (work / name).read_bytes() for name in ("a.zip", "a.tar", "a.parquet")}
    for name, content in {**files, "photos/.hidden.png": b"x", "photos/notes.txt": b"x"}.items():
        with system.open_output_stream(f"bucket/{name}") as file:
            file.write(content)
    return server


def test_every_kind_of_input_is_read_from_storage(bucket: str, fixtures_folder: Path) -> None:
    """A folder, a pattern, a zip, a shard as a stream, and a table: the same bytes as on the disk."""
    wanted = [(fixtures_folder / "pictures" / name).read_bytes() for name in sorted(PICTURES)]
    for given in ("photos", "photos/**/*.png", "photos/a.zip", "photos/a.tar", "photos/a.parquet"):
        places = [place(url(bucket, f"bucket/{given}"))]
        items = list(listing(places, None))
        found = list(Reader(roots_of(places), None).pictures(items, 0, sum(item.pictures for item in items)))
        assert sorted(data for _, data in found) == sorted(wanted), given
        assert all(name.startswith("s3://bucket/photos/") for name, _ in found)
    assert items[0].kind != STREAM
    assert next(listing([place(url(bucket, "bucket/photos/a.tar"))], None)).kind == STREAM


def test_a_job_from_storage_to_storage_goes_on_where_it_stopped(bucket: str, fixtures_folder: Path) -> None:
    """Parts, listing and manifest are objects; no secret is in any of them."""
    model, out = fixtures_folder / "tiny-int8.tflite", url(bucket, "bucket/results")
    inputs = [url(bucket, "bucket/photos/*.tar"), url(bucket, "bucket/photos")]
    done = classify(model, inputs, out, workers=1)
    assert (done.pictures, done.errors, done.out) == (8, 0, "s3://bucket/results")
    system = place(out).system
    files = {info.base_name: place(out) / info.base_name for info in place(out).below()}
    assert set(files) == {"_inputs", "_manifest.json", "part-0000000.parquet", "part-0000001.parquet"}
    assert not any(SECRET.encode() in path.read() for path in files.values())
    wanted = rows(system)
    assert {row["path"] for row in wanted} >= {
        "s3://bucket/photos/a.tar/red-square.png",
        "s3://bucket/photos/deep/red-square.png",
    }
    files["part-0000000.parquet"].remove()
    assert classify(model, inputs, out, workers=1).answered == 4
    assert rows(system) == wanted


def rows(system: Any) -> list[dict[str, Any]]:
    return list(dataset.dataset("bucket/results", filesystem=system, format="parquet").to_table().sort_by("path").to_pylist())


def test_a_shard_in_the_middle_of_storage_that_is_damaged_is_a_row(bucket: str, fixtures_folder: Path) -> None:
    """Whatever it is, it is told and the job goes on."""
    broken = place(url(bucket, "bucket/broken.tar"))
    broken.write(io.BytesIO(b"no tar at all" * 100).getvalue())
    items = list(listing([broken], None))
    ((name, error),) = Reader(roots_of([broken]), None).pictures(items, 0, None)
    assert (name, isinstance(error, DataError)) == ("s3://bucket/broken.tar", True)


def test_a_bucket_without_permission_is_one_line(bucket: str, fixtures_folder: Path, tmp_path: Path) -> None:
    """For inputs and for results; it names the address and shows no secret."""
    shutil.copy(fixtures_folder / "pictures" / "red-square.png", tmp_path)
    model, closed = fixtures_folder / "tiny-int8.tflite", url(bucket, "bucket/photos")
    guard(bucket, b"0")
    try:
        with pytest.raises(DataError) as inputs:
            classify(model, [closed], str(tmp_path / "out"))
        with pytest.raises(StorageError) as results:
            classify(model, [str(tmp_path)], closed)
    finally:
        guard(bucket, b"inf")
    for raised in (inputs, results):
        assert "s3://bucket/photos: cannot be" in str(raised.value)
        assert "access is denied" in str(raised.value)
        assert SECRET not in str(raised.value)


def guard(server: str, after: bytes) -> None:
    """Let the server ask for permission after so many requests."""
    request = urllib.request.Request(
        f"http://{server}/moto-api/reset-auth", data=after, headers={"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(request, timeout=10).read()


def test_a_server_that_is_not_there_is_one_line(fixtures_folder: Path, tmp_path: Path) -> None:
    """And no secret."""
    with pytest.raises(DataError) as raised:
        classify(fixtures_folder / "tiny-int8.tflite", [url("127.0.0.1:1", "bucket/photos")], str(tmp_path / "out"))
    assert str(raised.value).startswith("s3://bucket/photos: cannot be read: ")
    assert "\n" not in str(raised.value)
    assert SECRET not in str(raised.value)


def test_paths_in_a_table_are_of_its_own_storage(bucket: str, fixtures_folder: Path) -> None:
    """Relative ones from its folder, URLs with its credentials; an address of another kind is not followed."""
    wanted = (fixtures_folder / "pictures" / "red-square.png").read_bytes()
    cells = ["deep/red-square.png", "s3://bucket/photos/deep/red-square.png", "http://127.0.0.1:1/x.png", "deep/absent.png"]
    sink = io.BytesIO()
    parquet.write_table(pa.table({"path": cells}), sink)
    table = place(url(bucket, "bucket/photos/paths.parquet"))
    table.write(sink.getvalue())
    found = list(Reader(roots_of([table]), None).pictures(list(listing([table], None)), 0, 4))
    table.remove()
    assert found[:2] == [("s3://bucket/photos/deep/red-square.png", wanted)] * 2
    assert str(found[2][1]).endswith("names http://127.0.0.1:1/x.png; expected a path, or a URL of s3, gs, abfs, abfss")
    assert str(found[3][1]).startswith("s3://bucket/photos/deep/absent.png: cannot be read: ")
