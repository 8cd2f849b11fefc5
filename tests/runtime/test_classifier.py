"""From a frame to labels; and what a file without a card needs before it can answer."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import edgeclf
from edgeclf.core.bundle import read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, DataError, ModelError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.runtime.classifier import Classifier, likeliest, softmax
from edgeclf.runtime.engine import Scores, input_table
from edgeclf.runtime.foreign import card_of, read_labels

CARD = ModelCard("fake", ("a", "b", "c"), ImageSpec(4, 4))


class Fake:
    """An engine that always gives the same logits."""

    runtime, threads = "fake", 1

    def __init__(self, *logits: float) -> None:
        self.logits = np.array([logits], np.float32)

    def infer(self, batch: Pixels) -> Scores:
        return np.repeat(self.logits, len(batch), axis=0)


FRAME = np.zeros((9, 9, 3), np.uint8)


@pytest.mark.parametrize("variant", ["float32", "float16", "dynamic-w8", "int8", "w8a16"])
def test_the_five_lines_of_the_readme_work(variant: str, fixtures_folder: Path) -> None:
    """Every variant knows the four shapes."""
    classifier = edgeclf.load(fixtures_folder / f"tiny-{variant}.tflite")
    for name in ("red-square", "green-disc", "blue-cross", "yellow-bars"):
        frame = cv2.imread(str(fixtures_folder / "pictures" / f"{name}.png"))
        best = classifier.classify(frame, top=1)
        assert [p.label for p in best] == [name.replace("-", " ")]
        assert best[0].score > 0.5


def test_importing_the_package_imports_nothing_heavy() -> None:
    """Neither NumPy nor OpenCV until a name is used."""
    code = "import sys, edgeclf; assert not {'numpy', 'cv2', 'tensorflow'} & set(sys.modules); print(edgeclf.__version__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.count(".") == 2


def test_public_names_are_there_and_others_are_not() -> None:
    """As `__all__` says."""
    for name in edgeclf.__all__:
        assert getattr(edgeclf, name)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = edgeclf.nonsense


def test_predictions_are_sorted_probabilities() -> None:
    """They add up to 1, likeliest first, and `top` limits them."""
    found = Classifier(Fake(0.0, 2.0, 1.0), CARD).classify(FRAME)
    assert [p.label for p in found] == ["b", "c", "a"]
    assert abs(sum(p.score for p in found) - 1) < 1e-6
    assert len(Classifier(Fake(0.0, 2.0, 1.0), CARD).classify(FRAME, top=2)) == 2


def test_the_temperature_of_the_card_divides_the_logits() -> None:
    """Twice as hot is half as sure, and the order stays."""
    cool = softmax(np.array([1.0, 3.0], np.float32))
    warm = softmax(np.array([2.0, 6.0], np.float32), 2.0)
    assert np.allclose(cool, warm)
    assert np.allclose(cool[1], 1 / (1 + np.exp(-2.0)))


def test_an_answer_below_the_threshold_of_its_class_is_unknown() -> None:
    """0.84 for b: enough for a limit of 0.8 on b, whatever a needs, and not for 0.9; `classify` lists classes all the same."""
    for limits, label in (((), "b"), ((1.0, 0.8, 1.0), "b"), ((0.0, 0.9, 0.0), "unknown")):
        classifier = Classifier(Fake(0.0, 3.0, 1.0), replace(CARD, thresholds=limits))
        found = classifier.answer(FRAME)
        assert (found.label, round(found.score, 2)) == (label, 0.84)
        assert classifier.classify(FRAME)[0].label == "b"


def test_huge_logits_do_not_overflow() -> None:
    """float32 would, without subtracting the largest."""
    assert softmax(np.array([3e38, 0.0, -3e38], np.float32)).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_no_label(bad: float) -> None:
    """`classify` raises; `probabilities` are NaN throughout, which the live loop calls invalid."""
    classifier = Classifier(Fake(0.0, bad, 1.0), CARD)
    assert np.isnan(classifier.probabilities(FRAME)).all()
    with pytest.raises(ModelError, match="not numbers"):
        classifier.classify(FRAME)


def test_equal_scores_go_to_the_first_class() -> None:
    """As `core.results.score` counts them; among a thousand too."""
    assert likeliest(np.zeros(1000, np.float32), 3) == [0, 1, 2]
    scores = np.random.RandomState(0).rand(1000).astype(np.float32).round(2)
    assert likeliest(scores, 5) == np.argsort(-scores, kind="stable")[:5].tolist()
    assert likeliest(scores[:3], 9) == np.argsort(-scores[:3], kind="stable").tolist()


def test_a_frame_of_another_kind_is_a_data_error() -> None:
    """Floats, as of a picture that was normalised already, would give a confident wrong answer."""
    with pytest.raises(DataError, match="must be uint8"):
        Classifier(Fake(0.0, 1.0, 2.0), CARD).classify(FRAME.astype(np.float32))  # type: ignore[arg-type]


def test_a_copy_answers_the_same(fixtures_folder: Path) -> None:
    """For another thread; a classifier without a way to reopen says so."""
    classifier = edgeclf.load(fixtures_folder / "tiny-int8.tflite")
    assert (classifier.another(2).logits(FRAME) == classifier.logits(FRAME)).all()
    with pytest.raises(ModelError, match="only one engine"):
        Classifier(Fake(0.0, 1.0, 2.0), CARD).another()


def foreign(fixtures_folder: Path) -> Path:
    return fixtures_folder / "foreign-float32.tflite"


def test_a_foreign_float_file_asks_how_pixels_are_normalised(fixtures_folder: Path) -> None:
    """A guess would give wrong answers in silence."""
    with pytest.raises(ModelError, match="--normalize MEAN,STD"):
        edgeclf.load(foreign(fixtures_folder))


def test_a_foreign_file_answers_like_its_original(fixtures_folder: Path) -> None:
    """With labels as given, or class numbers; it is the float32 fixture without its card."""
    frame = cv2.imread(str(fixtures_folder / "pictures" / "green-disc.png"))
    numbered = edgeclf.load(foreign(fixtures_folder), normalize=(128, 128))
    named = edgeclf.load(foreign(fixtures_folder), labels=("r", "g", "b", "y"), normalize=(128, 128))
    own = edgeclf.load(fixtures_folder / "tiny-float32.tflite")
    assert numbered.classify(frame)[0].label == "1"
    assert named.classify(frame)[0].label == "g"
    assert (named.logits(frame) == own.logits(frame)).all()
    assert (own.own, named.own) == (True, False)


def test_a_label_count_that_differs_names_both(fixtures_folder: Path, tmp_path: Path) -> None:
    """Never an offset in silence."""
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n")
    with pytest.raises(ModelError, match="3 labels for 4 outputs"):
        edgeclf.load(foreign(fixtures_folder), labels=labels, normalize=(128, 128))


def test_labels_and_normalisation_do_not_override_a_card(fixtures_folder: Path) -> None:
    """Preprocessing comes from the card, never from a flag."""
    with pytest.raises(ConfigError, match="leave out --labels and --normalize"):
        edgeclf.load(fixtures_folder / "tiny-int8.tflite", labels=("a", "b", "c", "d"))


@pytest.mark.parametrize("text", ["a\nb\nc", "a\nb\nc\n", "\ufeffa\r\nb\r\nc\r\n"])
def test_label_files_of_every_editor_are_read(text: str, tmp_path: Path) -> None:
    """With a byte order mark, with Windows line ends, with and without a last line break."""
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode())
    assert read_labels(path) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\n\nb\n", "label 2 is blank"),
        (b"a\nb\n\n", "label 3 is blank"),
        (b"a\nb\na\n", "'a' is both label 1 and label 3"),
        (b"caf\xe9\nb\n", "not UTF-8"),
    ],
)
def test_label_files_that_would_shift_or_confuse_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    """With the line that is wrong."""
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_labels(path)


def test_a_missing_label_file_is_named(tmp_path: Path) -> None:
    """Like any file."""
    with pytest.raises(ModelError, match=r"gone\.txt: the label file cannot be read"):
        read_labels(tmp_path / "gone.txt")


def test_normalisation_comes_from_the_metadata_where_it_stands(fixtures_folder: Path) -> None:
    """A float file with standard TFLite Metadata, without our card, needs no flag."""
    bundle = read_bundle(fixtures_folder / "tiny-float32.tflite")
    assert bundle.card is not None
    found = card_of(replace(bundle, card=None))
    assert (found.image.mean, found.image.std) == (bundle.card.image.mean, bundle.card.image.std)
    assert found.labels == bundle.labels


def test_pixels_go_into_a_foreign_quantised_file_as_they_are(fixtures_folder: Path) -> None:
    """As phone libraries do: what counts is the tensor's own scale."""
    bundle = read_bundle(fixtures_folder / "tiny-int8.tflite")
    found = card_of(replace(bundle, card=None))
    assert (input_table(bundle.structure.input, found.image) == np.arange(256)).all()
