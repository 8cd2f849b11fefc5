"""Data sets as people have them: folders, zips, tars and arrays, well-formed and hostile."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclf.core.catalogue import UNSPLIT, Catalogue, bytes_reader, prepared, reader, scan, split
from edgeclf.core.errors import DataError
from edgeclf.core.image import ImageSpec

PNG = bytes(cv2.imencode(".png", np.full((4, 5, 3), 90, np.uint8))[1])
USUAL = {"cat/1.png": PNG, "cat/2.png": PNG, "dog/1.png": PNG, "dog/2.png": PNG, "dog/notes.txt": b"no picture"}


def folder(top: Path, files: dict[str, bytes]) -> Path:
    """Write `files` below `top`."""
    for name, data in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return top


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shape_of(catalogue: Catalogue) -> dict[str, int]:
    """Label → number of pictures."""
    return dict(zip(catalogue.labels, np.bincount(catalogue.classes).tolist(), strict=True))


def as_kind(kind: str, tmp_path: Path, files: dict[str, bytes]) -> Path:
    """`files` as a folder, a stored or deflated zip, or a tar."""
    if kind == "folder":
        return folder(tmp_path / "data", files)
    if kind == "tar":
        return tarred(tmp_path / "data.tar", files)
    return zipped(tmp_path / "data.zip", files, zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED)


KINDS = ["folder", "stored", "deflated", "tar"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pictures_in_every_wrapping(kind: str, tmp_path: Path) -> None:
    """Equal names, classes and pixels; files that are no pictures are passed over."""
    catalogue = scan(as_kind(kind, tmp_path, USUAL))
    assert shape_of(catalogue) == {"cat": 2, "dog": 2}
    assert catalogue.names == ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    assert bytes_reader(catalogue)(3) == PNG
    assert (reader(catalogue)(0) == 90).all()
    assert prepared(catalogue, ImageSpec(8, 8))(1).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapper_folder_and_split_folders_are_seen_through(kind: str, tmp_path: Path) -> None:
    """As in archives from the web: one top folder, then train, valid and test."""
    files = {f"pets-v2/{part}/{c}/1.jpg": PNG for part in ("train", "Valid", "testing") for c in ("cat", "dog")}
    catalogue = scan(as_kind(kind, tmp_path, files))
    assert catalogue.labels == ("cat", "dog")
    assert sorted(catalogue.folders.tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_what_macos_adds_is_no_class(kind: str, tmp_path: Path) -> None:
    """Resource forks and dot files have picture names, and __MACOSX has class folders."""
    extra = {"__MACOSX/cat/._1.png": b"x", "cat/._1.png": b"x", ".cache/1.png": PNG, "__MACOSX/dog/1.png": PNG}
    assert shape_of(scan(as_kind(kind, tmp_path, USUAL | extra))) == {"cat": 2, "dog": 2}


def test_names_that_climb_out_are_passed_over(tmp_path: Path) -> None:
    """Nothing is unpacked, so they could do no harm; they are no class either."""
    hostile = {"../evil/1.png": PNG, "cat/../../etc/1.png": PNG, "/absolute/x/1.png": PNG}
    for source in (zipped(tmp_path / "a.zip", USUAL | hostile), tarred(tmp_path / "a.tar", USUAL | hostile)):
        assert not {"..", "evil", "etc"} & set(scan(source).labels)
    assert not (tmp_path.parent / "evil").exists()


def test_backslashes_in_a_zip_are_folders(tmp_path: Path) -> None:
    """As old Windows programs write them."""
    files = {name.replace("/", "\\"): data for name, data in USUAL.items()}
    assert shape_of(scan(zipped(tmp_path / "a.zip", files))) == {"cat": 2, "dog": 2}


def test_linked_class_folders_are_read_and_loops_end(tmp_path: Path) -> None:
    """Data sets are often made of links; one that leads back to its parent is entered once."""
    folder(tmp_path / "real", {"1.png": PNG, "2.png": PNG})
    data = folder(tmp_path / "data", {"cat/1.png": PNG})
    (data / "dog").symlink_to(tmp_path / "real")
    (data / "cat" / "loop").symlink_to(data)
    assert shape_of(scan(data)) == {"cat": 1, "dog": 2}
    (data / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png: is a link to nowhere"):
        scan(data)


def test_a_link_that_leads_to_itself_is_named(tmp_path: Path) -> None:
    """What the system refuses to read is bad data, not an error that nobody foresaw."""
    data = folder(tmp_path / "data", USUAL)
    (data / "cat" / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"loop\.png: cannot be read: Too many levels"):
        scan(data)


def test_a_tar_of_the_folder_itself_has_no_class_called_dot(tmp_path: Path) -> None:
    """`tar -cf data.tar -C data .` lists the folder `.` and puts `./` before every name."""
    data = folder(tmp_path / "data", USUAL)
    with tarfile.open(tmp_path / "data.tar", "w") as archive:
        archive.add(data, arcname=".")
    assert shape_of(scan(tmp_path / "data.tar")) == {"cat": 2, "dog": 2}
    assert scan(tmp_path / "data.tar").fingerprint == scan(data).fingerprint


@pytest.mark.parametrize("name", ["two\nlines", " ", "bad\udcffbyte", "bell\x07"])
def test_a_class_name_that_no_card_can_hold_is_refused_before_training(name: str, tmp_path: Path) -> None:
    """Not after hours of it, when the card is written."""
    data = folder(tmp_path / "data", USUAL | {f"{name}/1.png": PNG})
    with pytest.raises(DataError, match="is blank, or has a line break or a broken character; rename it"):
        scan(data)


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    """As arrays can have them."""
    path = save(tmp_path / "a.npz", x=np.zeros((4, 3, 3), np.uint8), y=np.array([0, 1, 0, 1]), labels=np.array(["cat", "cat"]))
    with pytest.raises(DataError, match="class 'cat' is named twice"):
        scan(path)


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_is_refused(kind: str, tmp_path: Path) -> None:
    """With the name of the class, and what is needed."""
    with pytest.raises(DataError, match="only one class, 'cat'; a classifier needs at least two"):
        scan(as_kind(kind, tmp_path, {"cat/1.png": PNG, "cat/2.png": PNG}))


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    """In a folder and in a zip, which lists folders too."""
    data = folder(tmp_path / "data", USUAL)
    (data / "bird").mkdir()
    with pytest.raises(DataError, match="class 'bird' has no pictures"):
        scan(data)
    with pytest.raises(DataError, match="class 'bird' has no pictures"):
        scan(zipped(tmp_path / "a.zip", USUAL | {"bird/": b""}))


@pytest.mark.parametrize("files", [{}, {"readme.txt": b"x"}, {"1.png": PNG, "2.png": PNG}])
def test_no_pictures_in_class_folders_is_an_error_that_shows_the_layout(files: dict[str, bytes], tmp_path: Path) -> None:
    """Pictures at the top belong to no class."""
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"no pictures found; expected CLASS/picture\.jpg"):
        scan(folder(tmp_path / "data", files))


def test_what_is_no_data_set_is_named(tmp_path: Path) -> None:
    """A missing path, and a file of another kind."""
    with pytest.raises(DataError, match="no such folder or file"):
        scan(tmp_path / "gone")
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"neither a folder nor a readable \.zip"):
        scan(tmp_path / "x.zip")


def test_an_encrypted_zip_is_refused_by_name(tmp_path: Path) -> None:
    """The flag is set by hand in both headers."""
    data = bytearray(zipped(tmp_path / "a.zip", USUAL).read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"cat/1\.png: is encrypted; unpack it first"):
        scan(tmp_path / "a.zip")


def test_a_zip_that_claims_a_huge_picture_is_refused(tmp_path: Path) -> None:
    """Before any memory is taken for it."""
    data = bytearray(zipped(tmp_path / "a.zip", USUAL).read_bytes())
    struct.pack_into("<I", data, data.find(b"PK\x01\x02") + 24, 2**31)
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(DataError, match="more than the limit"):
        scan(tmp_path / "a.zip")


@pytest.mark.parametrize("keep", [0.3, 0.6])
def test_a_zip_or_tar_cut_short_is_refused_or_its_pictures_are(keep: float, tmp_path: Path) -> None:
    """Never another exception, whatever is missing."""
    noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3), dtype=np.uint8)
    files = {name: bytes(cv2.imencode(".png", noise)[1]) for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png")}
    for path in (zipped(tmp_path / "x.zip", files), tarred(tmp_path / "x.tar", files)):
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        with pytest.raises(DataError):
            read_everything(path)


def read_everything(path: Path) -> None:
    catalogue = scan(path)
    read = reader(catalogue)
    for i in range(len(catalogue)):
        read(i)


def test_a_damaged_entry_is_one_broken_picture(tmp_path: Path) -> None:
    """Its name is in the message, and the others are read."""
    path = zipped(tmp_path / "a.zip", USUAL, zipfile.ZIP_STORED)
    data = path.read_bytes().replace(b"PK\x03\x04", b"XX\x03\x04", 1)
    path.write_bytes(data)
    catalogue = scan(path)
    with pytest.raises(DataError, match=r"cat/1\.png: the zip archive is damaged there"):
        reader(catalogue)(0)
    assert reader(catalogue)(1).shape == (4, 5, 3)


def test_a_compressed_tar_says_how_to_unpack_it(tmp_path: Path) -> None:
    """Pictures inside could only be reached by unpacking everything before them."""
    with pytest.raises(DataError, match="gunzip"):
        scan(tarred(tmp_path / "a.tar.gz", USUAL, "w:gz"))


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    """Not even one that is named like a picture."""
    path = tarred(tmp_path / "a.tar", USUAL)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("cat/3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert shape_of(scan(path)) == {"cat": 2, "dog": 2}


def test_a_fingerprint_follows_names_and_sizes(tmp_path: Path) -> None:
    """The same zip has the same; another picture, or another class, another."""
    first = scan(zipped(tmp_path / "a.zip", USUAL)).fingerprint
    assert scan(zipped(tmp_path / "b.zip", USUAL)).fingerprint == first
    assert scan(zipped(tmp_path / "c.zip", USUAL | {"cat/2.png": PNG + b"x"})).fingerprint != first
    assert scan(zipped(tmp_path / "d.zip", USUAL | {"dog/3.png": PNG})).fingerprint != first


def test_a_copy_elsewhere_is_the_same_data_and_a_touched_file_only_another_cache(tmp_path: Path) -> None:
    """A board with a copy of the folder, or a zip of it under a top folder, still knows which pictures were held out."""
    with zipfile.ZipFile(zipped(tmp_path / "a.zip", USUAL)) as archive:
        archive.extractall(tmp_path / "copy")
    first = scan(tmp_path / "copy")
    os.utime(tmp_path / "copy" / "cat" / "1.png", (1, 1))
    touched = scan(tmp_path / "copy")
    wrapped = scan(zipped(tmp_path / "b.zip", {f"photos/{name}": data for name, data in USUAL.items()}))
    assert touched.fingerprint == first.fingerprint == wrapped.fingerprint
    assert touched.cache_key != first.cache_key


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


X = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)


def test_arrays_are_rgb_with_numbers_or_names_as_classes(tmp_path: Path) -> None:
    """Pictures come out as BGR, like every other."""
    by_number = scan(save(tmp_path / "a.npz", x=X, y=np.array([0, 1, 2, 0, 1, 2])))
    assert by_number.labels == ("0", "1", "2")
    assert (reader(by_number)(2) == X[2][:, :, ::-1]).all()
    by_name = scan(save(tmp_path / "b.npz", x=X, y=np.array(["dog", "cat", "dog", "cat", "cat", "cat"])))
    assert shape_of(by_name) == {"cat": 4, "dog": 2}
    named = scan(save(tmp_path / "c.npz", x=X, y=np.array([0, 1] * 3), labels=np.array(["no", "yes"])))
    assert named.labels == ("no", "yes")


def test_arrays_with_parts_keep_them(tmp_path: Path) -> None:
    """x_train and x_test; grey pictures get three channels."""
    grey = X[..., 0]
    catalogue = scan(save(tmp_path / "a.npz", x_train=grey[:4], y_train=[0, 1, 0, 1], x_test=grey[4:], y_test=[0, 1]))
    assert catalogue.folders.tolist() == [0, 0, 0, 0, 2, 2]
    assert reader(catalogue)(5).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": X}, "expected the arrays x and y"),
        ({"x": X}, "expected the arrays x and y"),
        ({"x": X.astype(np.float32), "y": np.zeros(6, int)}, "x must be uint8"),
        ({"x": X, "y": np.zeros(5, int)}, "one whole number a picture"),
        ({"x": X, "y": np.array([0, 1, 2, 3, 4, -1])}, "y reaches from -1"),
        ({"x": X, "y": np.array([0, 1, 2, 3, 4, 10**12])}, "whole numbers from 0 to"),
        ({"x": X, "y": np.linspace(0, 1, 6)}, "y must hold class names, or whole numbers"),
        ({"x": X, "y": np.array([0, 2, 0, 2, 0, 2])}, "class '1' has no pictures"),
        ({"x_train": X, "y_train": np.zeros(6, int), "x_test": X[:, :2], "y_test": np.zeros(6, int)}, "do not fit together"),
        ({"x": np.array([{}] * 2, object), "y": np.zeros(2, int)}, "cannot be read as .npz"),
    ],
)
def test_arrays_that_do_not_fit_are_explained(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    """Pickled objects, which could run code, are refused too."""
    with pytest.raises(DataError, match=message):
        scan(save(tmp_path / "a.npz", **arrays))


def many(count: int, parts: tuple[str, ...] = ("",)) -> dict[str, bytes]:
    return {f"{part}{c}/{i:03d}.png": PNG for part in parts for c in ("cat", "dog") for i in range(count)}


def test_a_split_is_stratified_seeded_and_complete(tmp_path: Path) -> None:
    """No picture twice, none lost, the same shares of each class; another seed, another split."""
    catalogue = scan(folder(tmp_path / "data", many(40)))
    parts = split(catalogue, 7, val=0.1, val_pictures=2000, test=0.25)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(80))
    assert [np.bincount(catalogue.classes[parts[p]]).tolist() for p in ("test", "val", "train")] == [[10, 10], [3, 3], [27, 27]]
    again, other = (split(catalogue, seed, 0.1, 2000, 0.25) for seed in (7, 8))
    assert (again["test"] == parts["test"]).all()
    assert (other["test"] != parts["test"]).any()


def test_validation_takes_no_more_pictures_than_allowed(tmp_path: Path) -> None:
    """A share of a large data set would cost training pictures and tell little more."""
    catalogue = scan(folder(tmp_path / "data", many(40)))
    parts = split(catalogue, 7, val=0.4, val_pictures=6, test=0.25)
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 54, "val": 6, "test": 20}


def test_a_test_folder_is_kept_as_it_is(tmp_path: Path) -> None:
    """Only what is missing is drawn, and from train alone."""
    catalogue = scan(folder(tmp_path / "data", many(20, ("train/", "test/"))))
    parts = split(catalogue, 1, val=0.2, val_pictures=2000, test=0.9)
    assert (parts["test"] == np.flatnonzero(catalogue.folders == 2)).all()
    assert len(parts["val"]) == 8
    assert (catalogue.folders[parts["val"]] == 0).all()


def test_a_class_too_small_to_split_is_named(tmp_path: Path) -> None:
    """Rather than a part without it."""
    catalogue = scan(folder(tmp_path / "data", many(10) | {"bird/1.png": PNG}))
    with pytest.raises(
        DataError, match=r"class 'bird' has 1 picture\(s\) to train on; it needs at least 3 to hold some out for val and test"
    ):
        split(catalogue, 1, 0.1, 2000, 0.1)
    assert (catalogue.folders == UNSPLIT).all()
    with_test = scan(folder(tmp_path / "parted", many(10, ("train/", "test/")) | {"train/bird/1.png": PNG}))
    with pytest.raises(
        DataError, match=r"class 'bird' has 1 picture\(s\) to train on; it needs at least 2 to hold some out for val"
    ):
        split(with_test, 1, 0.1, 2000, 0.1)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    """One broken picture, not the end."""
    data = folder(tmp_path / "data", USUAL)
    catalogue = scan(data)
    (data / "cat" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: cannot be read: No such file"):
        reader(catalogue)(0)


def test_a_deflated_picture_is_inflated_to_the_limit_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory may lie about sizes; what an entry really holds must not fill the memory."""
    catalogue = scan(zipped(tmp_path / "a.zip", USUAL | {"cat/3.png": PNG + bytes(1_000_000)}))
    monkeypatch.setattr("edgeclf.core.archive.MAX_ENCODED_BYTES", 10_000)
    assert len(bytes_reader(catalogue)(catalogue.names.index("cat/3.png"))) == 10_000


def test_a_zip_entry_with_a_long_extra_field_is_read_whole(tmp_path: Path) -> None:
    """Some archivers put more before the picture than is read ahead for it."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, data in USUAL.items():
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HH", 0xCAFE, 1000) + bytes(1000)
            archive.writestr(info, data)
    catalogue = scan(tmp_path / "a.zip")
    assert [bytes_reader(catalogue)(i) for i in range(len(catalogue))] == [USUAL[name] for name in catalogue.names]
