"""Accuracy over a data set: the same whatever the number of workers, on the right pictures, with the right classes."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclf.core.card import ModelCard
from edgeclf.core.catalogue import Catalogue, prepared, scan, split
from edgeclf.core.errors import ConfigError, DataError, ModelError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.runtime.accuracy import evaluate, held_out, limited, matching_classes, validation
from edgeclf.runtime.classifier import Classifier, load
from edgeclf.runtime.engine import Scores

COLOURS_BGR = {
    "red square": (40, 40, 220),
    "green disc": (60, 190, 50),
    "blue cross": (220, 90, 30),
    "yellow bars": (40, 210, 230),
}
PER_CLASS = 40


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of noisy coloured pictures in the classes of the fixture models; two cannot be read."""
    random, path = np.random.RandomState(0), tmp_path_factory.mktemp("data") / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for label, colour in COLOURS_BGR.items():
            for i in range(PER_CLASS):
                picture = np.clip(np.array(colour) + random.normal(0, 60, (30, 40, 3)), 0, 255).astype(np.uint8)
                archive.writestr(f"{label}/{i:02d}.png", bytes(cv2.imencode(".png", picture)[1]))
        archive.writestr("red square/98.png", b"")
        archive.writestr("yellow bars/99.jpg", b"\xff\xd8 not a picture")
    return path


class Mean:
    """An engine that calls the colour that a picture is nearest to; three lines, and no model."""

    runtime, threads = "mean", 1

    def infer(self, batch: Pixels) -> Scores:
        wanted = np.array(list(COLOURS_BGR.values()), np.float32)
        return -np.abs(batch.mean((1, 2))[:, None, ::-1].astype(np.float32) - wanted).sum(axis=2)


CARD = ModelCard("mean", tuple(COLOURS_BGR), ImageSpec(8, 8))


def everything(catalogue: Catalogue) -> np.ndarray:
    return np.arange(len(catalogue))


def test_known_answers_are_counted(pictures: Path) -> None:
    """A classifier by mean colour is always right here; what cannot be read is listed and counts nowhere."""
    catalogue = scan(pictures)
    found = evaluate(Classifier(Mean(), CARD), catalogue, everything(catalogue))
    assert (found.accuracy.top1, found.accuracy.pictures) == (1.0, 4 * PER_CLASS)
    assert [name for name, _ in found.skipped] == ["red square/98.png", "yellow bars/99.jpg"]
    assert "is empty" in found.skipped[0][1]
    assert found.scores.shape == (160, 4)
    assert not np.isnan(found.scores).any()


def test_classes_are_matched_by_name_and_not_by_order(pictures: Path) -> None:
    """The data's folders are sorted; the model's labels need not be."""
    catalogue = scan(pictures)
    assert catalogue.labels != CARD.labels
    found = evaluate(Classifier(Mean(), CARD), catalogue, everything(catalogue))
    names = [catalogue.names[i].split("/")[0] for i in found.indices]
    assert [CARD.labels[t] for t in found.truth] == names


@pytest.mark.parametrize("variant", ["int8", "float32"])
def test_workers_change_no_bit(variant: str, pictures: Path, fixtures_folder: Path) -> None:
    """One, two and five threads give the scores of a plain loop, in the order of the indices."""
    catalogue, path = scan(pictures), fixtures_folder / f"tiny-{variant}.tflite"
    chosen = everything(catalogue)[::-1]
    classifier = load(path)
    prepare = prepared(catalogue, classifier.card.image)
    plain = [classifier.engine.infer(prepare(i)[None])[0] for i in chosen if catalogue.names[i][-6:-4] < "98"]
    for workers in (1, 2, 5):
        found = evaluate(path, catalogue, chosen, workers)
        assert (found.scores == np.array(plain)).all()
        assert found.indices.tolist() == [i for i in chosen if catalogue.names[i][-6:-4] < "98"]


def test_progress_reaches_the_end(pictures: Path) -> None:
    """Counting unreadable pictures too."""
    catalogue, seen = scan(pictures), []
    evaluate(Classifier(Mean(), CARD), catalogue, everything(catalogue), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (162, 162)
    assert seen == sorted(seen)


def test_other_classes_are_named_on_both_sides() -> None:
    """So that the user sees whether it is a spelling or another data set."""
    with pytest.raises(
        DataError, match=r"data: its classes are not the model's: 'katze' unknown to the model, which knows 'cat'"
    ):
        matching_classes(("dog", "katze"), ("cat", "dog"), "data")
    assert matching_classes(("dog",), ("cat", "dog"), "data").tolist() == [1]


def test_no_readable_picture_is_an_error(pictures: Path) -> None:
    """And not an accuracy of zero."""
    catalogue = scan(pictures)
    broken = np.array([i for i, name in enumerate(catalogue.names) if name[-6:-4] >= "98"])
    with pytest.raises(DataError, match="none of 2 pictures can be read; the first: "):
        evaluate(Classifier(Mean(), CARD), catalogue, broken)


def test_no_workers_are_refused(pictures: Path) -> None:
    """A number from 1 on."""
    with pytest.raises(ConfigError, match="workers = 0"):
        evaluate(Classifier(Mean(), CARD), scan(pictures), np.arange(4), 0)


def test_a_test_folder_is_what_is_measured(pictures: Path) -> None:
    """Whatever the card says."""
    catalogue = scan(pictures)
    folders = np.zeros(len(catalogue), np.int8)
    folders[::3] = 2
    indices, which = held_out(replace(catalogue, folders=folders), CARD)
    assert (indices == np.flatnonzero(folders == 2)).all()
    assert which == "its test folder"


def test_the_split_of_the_training_is_derived_again(pictures: Path) -> None:
    """For the very data that the file was trained on; for other data all pictures, with a warning."""
    catalogue = scan(pictures)
    keywords = {"seed": 4, "val": 0.1, "val_pictures": 100, "test": 0.25}
    own = replace(CARD, provenance={"fingerprint": catalogue.fingerprint, "split": keywords})
    indices, which = held_out(catalogue, own)
    assert (indices == split(catalogue, **keywords)["test"]).all()
    assert "its training held out" in which
    everywhere, which = held_out(catalogue, replace(own, provenance={**own.provenance, "fingerprint": "other"}))
    assert len(everywhere) == len(catalogue)
    assert "too good a figure" in which


def test_a_limit_takes_from_every_class(pictures: Path) -> None:
    """Evenly spread; a limit beyond the end changes nothing."""
    catalogue = scan(pictures)
    few = limited(everything(catalogue), 16)
    assert len(few) == 16
    assert np.bincount(catalogue.classes[few]).tolist() == [4, 4, 4, 4]
    assert len(limited(few, 99)) == 16


@pytest.mark.parametrize("settings", [{"bogus": 1}, [1], "x"])
def test_a_split_that_the_card_describes_wrongly_is_a_model_error(settings: object, pictures: Path) -> None:
    """A card may hold anything there; measured on the wrong pictures, a figure would be too good."""
    found = scan(pictures)
    card = replace(CARD, provenance={"split": settings, "fingerprint": found.fingerprint})
    with pytest.raises(ModelError, match="how its data were split"):
        held_out(found, card)


def test_what_is_fitted_on_is_never_what_is_measured_on(pictures: Path) -> None:
    """The validation part of the training, derived again; else the val folder; else data without any parts, with a warning."""
    catalogue = scan(pictures)
    keywords = {"seed": 4, "val": 0.1, "val_pictures": 100, "test": 0.25}
    own = replace(CARD, provenance={"fingerprint": catalogue.fingerprint, "split": keywords})
    found, which = validation(catalogue, own)
    assert (found == split(catalogue, **keywords)["val"]).all()
    assert not set(found) & set(held_out(catalogue, own)[0])
    assert "validation part of its training" in which
    folders = np.arange(len(catalogue), dtype=np.int8) % 3
    found, which = validation(replace(catalogue, folders=folders), CARD)
    assert ((folders[found] == 1).all(), len(found), which) == (True, (folders == 1).sum(), "its val folder")
    assert "must not have been trained on" in validation(catalogue, CARD)[1]


def test_data_with_a_test_folder_and_no_val_cannot_be_fitted_on(pictures: Path) -> None:
    """What is left may be what the model was trained on."""
    catalogue = scan(pictures)
    folders = np.where(np.arange(len(catalogue)) % 3 == 0, 2, 0).astype(np.int8)
    with pytest.raises(DataError, match="has no val folder, and is not the data that mean was trained on"):
        validation(replace(catalogue, folders=folders), CARD)


def test_an_evaluation_follows_temperature_and_thresholds_of_the_card(pictures: Path) -> None:
    """Top-1 does not; a threshold of 1 leaves no answer, and without thresholds there is nothing to say."""
    catalogue = scan(pictures)
    plain = evaluate(Classifier(Mean(), CARD), catalogue, everything(catalogue))
    carded = replace(CARD, temperature=1000.0, thresholds=(0.0, 0.0, 0.0, 1.0))
    found = evaluate(Classifier(Mean(), carded), catalogue, everything(catalogue))
    assert plain.answered is None
    assert found.accuracy == plain.accuracy
    assert found.calibration.confidence < 0.4 < plain.calibration.confidence
    assert found.answered is not None
    assert found.answered.coverage == 0.75
