"""The deployable file: what is attached comes back whole, and anything altered is refused."""

from __future__ import annotations

import dataclasses
import io
import time
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeclf.core.bundle import CARD, LABELS, MAX_TAIL_BYTES, Bundle, attach, parse_bundle, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ModelError
from edgeclf.core.image import ImageSpec
from edgeclf.core.tflite import scheme

FIXTURES = Path(__file__).parent.parent / "fixtures"
SHAPES = ("red square", "green disc", "blue cross", "yellow bars")
DATA = (FIXTURES / "tiny-int8.tflite").read_bytes()
WHOLE = parse_bundle(DATA, "x")
MODEL = WHOLE.model
FOREIGN = (FIXTURES / "foreign-float32.tflite").read_bytes()


def card_of(bundle: Bundle) -> ModelCard:
    assert bundle.card is not None
    return bundle.card


def with_tail(model: bytes, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """What another writer attaches: a zip without an edgeclf card."""
    buffer = io.BytesIO()
    buffer.write(model)
    with zipfile.ZipFile(buffer, "a", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("variant", ["float32", "float16", "dynamic-w8", "int8", "w8a16"])
def test_committed_files_read_as_documented(variant: str) -> None:
    """Golden files: name, labels, picture, scheme, input and output type of every fixture."""
    bundle = read_bundle(FIXTURES / f"tiny-{variant}.tflite")
    card = card_of(bundle)
    assert (card.name, card.labels, bundle.labels) == ("tiny", SHAPES, SHAPES)
    assert card.image == ImageSpec(16, 16, "stretch", "rgb", 128.0, 128.0)
    assert (card.variant, scheme(bundle.structure)) == (variant, variant)
    assert card.io == bundle.structure.input.type == ("uint8" if variant == "int8" else "float32")
    assert card.outputs == "probabilities"
    assert card.provenance == {"recipe": "tiny", "data": "drawn shapes", "seed": 1}
    assert card.accuracy == {"top1": 1.0, "pictures": 400}


def test_attached_card_comes_back_with_the_checksum_of_the_model() -> None:
    """Only `sha256` differs from the card that was given."""
    card = dataclasses.replace(card_of(WHOLE), temperature=1.5, thresholds=(0.5, 0.6, 0.7, 0.8), sha256="")
    bundle = parse_bundle(attach(MODEL, card), "x")
    assert bundle.model == MODEL
    assert card_of(bundle) == dataclasses.replace(card, sha256=card_of(WHOLE).sha256)


def test_same_model_and_card_give_the_same_bytes() -> None:
    """No clock and no platform in the file; attaching to a file replaces what was attached."""
    card = card_of(WHOLE)
    assert attach(MODEL, card) == attach(DATA, card) == DATA


def test_tail_is_a_stored_zip_that_any_reader_opens() -> None:
    """Phone libraries refuse deflated entries and count the lines of labels.txt."""
    with zipfile.ZipFile(io.BytesIO(DATA)) as archive:
        assert archive.namelist() == [LABELS, CARD]
        assert {i.compress_type for i in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read(LABELS).decode().split("\n") == [*SHAPES, ""]
        assert archive.testzip() is None


def test_card_without_one_output_per_label_is_not_attached() -> None:
    """Both counts are named."""
    card = dataclasses.replace(card_of(WHOLE), labels=("a", "b", "c"))
    with pytest.raises(ModelError, match="3 labels for 4 outputs"):
        attach(MODEL, card)


@given(st.integers(0, len(MODEL) - 1), st.integers(0, 7))
def test_one_flipped_bit_in_the_model_is_found_by_checksum(at: int, bit: int) -> None:
    """Runtimes load flipped weights silently; only SHA-256 tells."""
    data = bytearray(DATA)
    data[at] ^= 1 << bit
    with pytest.raises(ModelError, match="SHA-256"):
        parse_bundle(bytes(data), "x")


def test_every_length_of_truncation_is_found() -> None:
    """From the last byte to the whole tail, the last 100 bytes included."""
    for missing in range(1, len(DATA) - len(MODEL) + 1):
        with pytest.raises(ModelError, match="cut short"):
            parse_bundle(DATA[:-missing], "x")


def test_lost_end_is_found_without_metadata_too() -> None:
    """The beginning of the card is what tells, as long as any of it is left."""
    data = attach(FOREIGN, card_of(WHOLE))
    for missing in range(1, len(card_of(WHOLE).to_json())):
        with pytest.raises(ModelError, match="cut short"):
            parse_bundle(data[:-missing], "x")


def test_every_flipped_bit_in_the_tail_is_an_error_or_harmless() -> None:
    """Harmless is a bit of the zip that no reader uses, such as a date: then the card is the same."""
    refused = 0
    for bit in range(8 * len(MODEL), 8 * len(DATA)):
        data = bytearray(DATA)
        data[bit // 8] ^= 1 << (bit % 8)
        try:
            assert parse_bundle(bytes(data), "x").card == WHOLE.card
        except ModelError:
            refused += 1
    card_bytes = len(card_of(WHOLE).to_json())
    assert refused >= 8 * card_bytes


def test_card_may_not_contradict_the_labels_beside_it() -> None:
    """Phones read labels.txt, this program the card: they are one list."""
    files = {LABELS: b"a\nb\nc\nd\n", CARD: card_of(WHOLE).to_json().encode()}
    with pytest.raises(ModelError, match=r"labels\.txt and the labels in the model card differ"):
        parse_bundle(with_tail(MODEL, files), "x")


def test_foreign_file_without_metadata_has_neither_card_nor_labels() -> None:
    """Any TFLite file can be read."""
    bundle = read_bundle(FIXTURES / "foreign-float32.tflite")
    assert (bundle.model, bundle.card, bundle.labels) == (FOREIGN, None, ())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("text", ["a\nb\nc\nd", "a\nb\nc\nd\n", "\ufeffa\r\nb\r\nc\r\nd\r\n"])
def test_labels_of_foreign_metadata_are_found(text: str, method: int) -> None:
    """The file that the metadata of the output tensor names; byte order mark and line ends are no part of a label."""
    bundle = parse_bundle(with_tail(MODEL, {LABELS: text.encode(), "other.txt": b"x"}, method), "x")
    assert (bundle.model, bundle.card, bundle.labels) == (MODEL, None, ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\nc\n", "3 labels for 4 outputs"),
        (b"a\nb\nc\nd\n\n", "5 labels for 4 outputs"),
        (b"a\nb\nc\n\xff\n", "not UTF-8"),
    ],
)
def test_labels_that_do_not_fit_are_refused(content: bytes, message: str) -> None:
    """No silent offset: both counts are named, blank lines count."""
    with pytest.raises(ModelError, match=message):
        parse_bundle(with_tail(MODEL, {LABELS: content}), "x")


def test_foreign_zip_that_lacks_the_named_labels_is_cut_short() -> None:
    """Metadata names a label file that is not there."""
    with pytest.raises(ModelError, match=r"labels\.txt, which its metadata names, is missing"):
        parse_bundle(with_tail(MODEL, {"readme.txt": b"x"}), "x")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_flipped_content_of_any_zip_method_is_one_model_error(method: int) -> None:
    """Whatever a decompressor raises on damage is a ModelError for the user."""
    content = bytes(range(256)) * 8
    data = bytearray(with_tail(FOREIGN, {"x.bin": content}, method))
    for at in range(len(FOREIGN) + 35, len(FOREIGN) + 80):
        data[at] ^= 0xFF
    with pytest.raises(ModelError, match="damaged"):
        parse_bundle(bytes(data), "x")


def test_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    """A megabyte of deflated zeros must not become a gigabyte."""
    data = with_tail(FOREIGN, {"zeros": bytes(4 * MAX_TAIL_BYTES)}, zipfile.ZIP_DEFLATED)
    start = time.monotonic()
    with pytest.raises(ModelError, match="larger than 16 MB"):
        parse_bundle(data, "x")
    assert time.monotonic() - start < 0.5


def test_thousands_of_attached_files_are_refused() -> None:
    """The count is read from the end record, before the list."""
    data = with_tail(FOREIGN, {f"{i}.txt": b"" for i in range(3000)})
    with pytest.raises(ModelError, match="3000 attached files"):
        parse_bundle(data, "x")


def test_two_attached_files_of_one_name_are_refused() -> None:
    """Two readers could take different ones."""
    buffer = io.BytesIO()
    buffer.write(FOREIGN)
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(LABELS, "a")
        archive.writestr(LABELS, "b")
    with pytest.raises(ModelError, match="one name"):
        parse_bundle(buffer.getvalue(), "x")


def test_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """Missing, a folder, empty, an archive: one line that starts with the path."""
    (tmp_path / "empty.tflite").touch()
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("cat/1.jpg", "x")
    for name in ("missing.tflite", ".", "empty.tflite", "plain.zip"):
        with pytest.raises(ModelError) as caught:
            read_bundle(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)
