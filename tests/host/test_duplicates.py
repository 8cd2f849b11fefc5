"""The survey of a data set, and doubles in it: equal ones, nearly equal ones, across classes and across parts."""

import zipfile

import cv2
import numpy as np
import pytest

from edgeclf.core.catalogue import scan
from edgeclf.host.data import duplicates
from edgeclf.host.data import inspection as data_report
from edgeclf.host.data.survey import Survey, describe, survey


def photo(seed, side=64):
    """A picture with structure at several scales, as photos have and noise has not."""
    random = np.random.RandomState(seed)
    layers = [
        cv2.resize(random.rand(n, n, 3).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC) for n in (3, 6, 12)
    ]
    return np.clip(255 * (0.5 * layers[0] + 0.3 * layers[1] + 0.2 * layers[2]), 0, 255).astype(np.uint8)


def encoded(picture, suffix=".png", *options):
    return bytes(cv2.imencode(suffix, picture, list(options))[1])


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return scan(path)


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """Twelve photos: one twice in train, one in both parts as a small dark JPEG, one under both classes; one broken."""
    files = {f"train/cat/{i}.png": encoded(photo(i)) for i in range(6)} | {
        f"train/dog/{i}.png": encoded(photo(10 + i)) for i in range(3)
    }
    files |= {"train/cat/again.bmp": encoded(photo(0), ".bmp"), "test/cat/other.png": encoded(photo(20))}
    files["test/cat/small.jpg"] = encoded(
        (cv2.resize(photo(1), (40, 40)) * 0.8).astype(np.uint8), ".jpg", cv2.IMWRITE_JPEG_QUALITY, 60
    )
    files["train/dog/cat.png"] = encoded(photo(2))
    files["train/dog/broken.png"] = b"not a picture"
    return data_report.inspect(zipped(tmp_path_factory.mktemp("data") / "x.zip", files))


def named(findings, groups):
    return [{findings.member(row)[0] for row in group.rows} for group in groups]


def test_equal_pixels_are_found_whatever_the_file_format(findings):
    """A BMP and a PNG of the same pixels; and the one that stands under two classes."""
    kinds = findings.kinds()
    assert {"train/cat/0.png", "train/cat/again.bmp"} in named(findings, kinds["exact"])
    assert named(findings, kinds["across_classes"]) == [{"train/cat/2.png", "train/dog/cat.png"}]


def test_a_small_dark_copy_in_another_part_is_found(findings):
    """Another size, brightness and compression, in test."""
    kinds = findings.kinds()
    assert named(findings, kinds["near"]) == named(findings, kinds["across_parts"]) == [{"train/cat/1.png", "test/cat/small.jpg"}]


def test_broken_files_and_missing_classes_are_named(findings):
    """With the reason; and dog, which has no picture in test."""
    assert findings.survey.broken == (("train/dog/broken.png", "is not a picture that OpenCV can read"),)
    assert findings.absent == (("test", "dog"),)
    assert any("'dog' has no picture in test" in sentence for sentence in findings.advice())
    assert findings.imbalance == 1.4
    assert findings.formats["PNG, colour"] == 11


def test_pictures_that_only_look_a_little_alike_are_not_doubles(tmp_path):
    """A hundred photos of the same kind, and flat ones, which have nothing to compare."""
    files = {f"{'ab'[i % 2]}/{i}.png": encoded(photo(i)) for i in range(100)}
    files |= {f"a/flat{i}.png": encoded(np.full((20, 20, 3), i, np.uint8)) for i in range(5)}
    assert data_report.inspect(zipped(tmp_path / "x.zip", files)).doubles == ()


@pytest.mark.parametrize("different", [0, 2, 6, 8])
def test_hashes_that_differ_little_are_always_compared(different, monkeypatch):
    """Any of the bits of any picture among 500, but for two bits in each of the four bands."""
    random = np.random.RandomState(different)
    values = np.frombuffer(random.bytes(8 * 500), np.uint64).copy()
    bits = random.permutation(48)[:different] if different == 8 else random.permutation(64)[:different]  # 48: a band untouched
    values[499] = values[7] ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64), initial=np.uint64(0))
    monkeypatch.setattr(duplicates, "STEP", 100)  # in many portions
    found = {(int(a), int(b)) for first, second in duplicates._alike_hashes(values) for a, b in zip(first, second, strict=True)}
    assert found == {(7, 499)}


def test_bits_are_counted_alike_with_and_without_numpy_2(monkeypatch):
    """The table that stands in for `bitwise_count`."""
    values = np.frombuffer(np.random.RandomState(0).bytes(8 * 50), np.uint64)
    wanted = [bin(int(v)).count("1") for v in values]
    assert duplicates.popcount(values).tolist() == wanted
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert duplicates.popcount(values).tolist() == wanted


def test_an_endless_row_of_doubles_ends_the_search_and_says_so(monkeypatch):
    """As in a film cut into frames."""
    random, base = np.random.RandomState(0), cv2.resize(photo(1)[:, :, 0], (16, 16)).astype(int)
    thumbs = np.clip(base + random.randint(-1, 2, (60, 16, 16)), 0, 255).astype(np.uint8)
    rows = np.arange(60)
    film = Survey(rows, rows >= 0, np.zeros((60, 2), np.int32), ("",) * 60, rows.astype(np.uint64), thumbs, ())
    assert duplicates.near(film).complete
    assert len(duplicates.groups(film, duplicates.near(film), rows * 0, rows * 0)) == 1
    monkeypatch.setattr(duplicates, "MOST_LINKS", 100)
    assert not duplicates.near(film).complete


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (encoded(photo(1), ".jpg"), "JPEG, colour"), (encoded(photo(1)[:, :, 0], ".jpg"), "JPEG, grey"),
        (encoded(photo(1)), "PNG, colour"), (encoded(np.zeros((4, 4, 4), np.uint8)), "PNG, colour with transparency"),
        (encoded(np.zeros((4, 4), np.uint16)), "PNG, grey, 16 bits"), (encoded(photo(1), ".bmp"), "BMP"),
        (encoded(photo(1), ".webp"), "WebP, colour"), (encoded(photo(1), ".tiff"), "TIFF"), (b"RIFF1234WEBPVP8X", "WebP, colour"),
        (b"\xff\xd8\xff\xe0", "JPEG"), (b"", "other"),
    ],
)  # fmt: skip
def test_formats_are_told_by_the_first_bytes(data, wanted):
    """Cut short too."""
    assert describe(data) == wanted


def test_a_survey_of_some_pictures_has_their_rows_in_that_order(tmp_path):
    """Sizes as shown; arrays have a format of their own."""
    catalogue = zipped(tmp_path / "x.zip", {f"{c}/{i}.png": encoded(photo(i, 20 + i)) for i in range(3) for c in "ab"})
    found = survey(catalogue, np.array([4, 0]))
    assert found.sizes.tolist() == [[21, 21], [20, 20]]
    np.savez(tmp_path / "y.npz", x=np.zeros((4, 5, 6), np.uint8), y=np.array([0, 1, 0, 1]))
    grey = survey(scan(tmp_path / "y.npz"))
    assert (grey.formats[0], grey.sizes[0].tolist(), len(set(grey.digests.tolist()))) == ("array, grey", [6, 5], 1)
