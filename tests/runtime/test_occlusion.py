"""Occlusion maps, and how they are laid over the picture that they came from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

import edgeclf
from edgeclf.core.errors import ModelError
from edgeclf.core.image import ImageSpec, Pixels, placement, prepare
from edgeclf.runtime.engine import Scores
from edgeclf.runtime.heatmap import LEAST_WIDTH, Panel, over_picture, overlay, peak, row
from edgeclf.runtime.occlusion import log_odds, occlude, spearman, spread

GREY = np.full((32, 32, 3), 128, np.uint8)
SIZES = [(90, 60), (60, 90), (64, 64), (240, 37), (20, 30), (333, 500)]


def corner_decides(batch: Pixels) -> Scores:
    """Class 1 gains with the brightness of the lower left corner, class 0 loses; class 2 is indifferent."""
    bright = batch[:, 24:, :8].astype(np.float32).mean((1, 2, 3)) / 32
    return np.stack([-bright, bright, np.zeros_like(bright)], axis=1)


def with_bright_corner() -> Pixels:
    picture = GREY.copy()
    picture[24:, :8] = 255
    return picture


def test_the_map_peaks_where_the_evidence_is() -> None:
    """Nothing but the corner counts, and it counts positively for its class."""
    found = occlude(corner_decides, with_bright_corner(), 1)
    y, x = np.unravel_index(found.heat.argmax(), found.heat.shape)
    assert y >= 24
    assert x < 8
    assert abs(float(found.heat[:16, 16:].max())) < 1e-6
    assert found.least < found.score


def test_what_speaks_against_a_class_is_negative() -> None:
    """Covering the corner helps class 0."""
    found = occlude(corner_decides, with_bright_corner(), 0)
    y, x = np.unravel_index(found.heat.argmin(), found.heat.shape)
    assert found.heat.min() < 0
    assert y >= 24
    assert x < 8
    assert found.heat.max() < 1e-6


def test_a_score_of_one_hundred_percent_still_has_a_map() -> None:
    """In probabilities the fall would be 0 everywhere; log-odds go on falling."""
    found = occlude(lambda batch: corner_decides(batch) * 100, with_bright_corner(), 1)
    assert found.score == 1.0
    assert found.heat.max() > 10


@pytest.mark.parametrize("shape", [(32, 32, 3), (224, 224, 3), (96, 160, 1), (1, 1, 3), (3, 7, 3)])
def test_every_pixel_is_covered_whatever_the_size(shape: tuple[int, int, int]) -> None:
    """And the work does not grow with the input: about as many squares at 224 as at 32."""
    seen = []

    def count(batch: Pixels) -> Scores:
        seen.append(len(batch))
        return np.zeros((len(batch), 2), np.float32)

    reports: list[tuple[int, int]] = []
    found = occlude(count, np.zeros(shape, np.uint8), 0, progress=lambda done, total: reports.append((done, total)))
    assert found.heat.shape == shape[:2]
    assert np.isfinite(found.heat).all()
    assert sum(seen) == found.squares + 1
    assert found.squares <= 400
    assert max(seen) <= 64
    assert reports[-1] == (found.squares, found.squares)


def test_the_square_is_grey_and_the_picture_stays_as_it_was() -> None:
    """128, of the wanted side; the array that was given is not painted on."""
    batches, picture = [], np.zeros((16, 16, 3), np.uint8)
    occlude(lambda batch: (batches.append(batch.copy()), np.zeros((len(batch), 2), np.float32))[1], picture, 0, patch=5)
    assert picture.max() == 0
    assert (batches[0] == 0).all()
    covered = np.concatenate(batches[1:])
    assert set(np.unique(covered)) == {0, 128}
    assert ((covered == 128).sum((1, 2, 3)) == 5 * 5 * 3).all()


def test_scores_that_are_no_numbers_are_no_map() -> None:
    """One line instead of an empty picture."""
    with pytest.raises(ModelError, match="not numbers"):
        occlude(lambda batch: np.full((len(batch), 2), np.nan, np.float32), GREY, 0)


def test_log_odds_follow_the_definition() -> None:
    """ln(p / (1 - p)) with the temperature, in float64; and no overflow where p is 1."""
    logits = np.array([[1.0, 2.0, -1.0], [900.0, 0.0, 0.0]], np.float32)
    p = np.exp(logits[0] / 2) / np.exp(logits[0] / 2).sum()
    found = log_odds(logits, 0, 2.0)
    assert abs(found[0] - np.log(p[0] / (1 - p[0]))) < 1e-6
    assert abs(found[1] - (450 - np.log(2))) < 1e-6


def test_an_int8_file_is_explained_by_several_engines_as_by_one(fixtures_folder: Path) -> None:
    """The same bits, and the red square lies where the red class finds its evidence."""
    classifier = edgeclf.load(fixtures_folder / "tiny-int8.tflite")
    frame = cv2.imread(str(fixtures_folder / "pictures" / "red-square.png"))
    pixels, target = prepare(frame, classifier.card.image), classifier.labels.index("red square")
    one, three = (occlude(spread(classifier, workers), pixels, target) for workers in (1, 3))
    assert (one.heat == three.heat).all()
    x, y = peak(one.heat, frame.shape[0], frame.shape[1], classifier.card.image)
    blue, green, red = frame[y, x].astype(int)
    assert red > 1.5 * max(blue, green)


def test_rank_correlation_knows_order_ties_and_flat_maps() -> None:
    """By hand: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4 give sqrt(0.9)."""
    rising = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert spearman(rising, np.exp(rising)) == pytest.approx(1)
    assert spearman(rising, -rising) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2.0, 2.0, 9.0]), rising.reshape(-1)) == pytest.approx(0.9**0.5)
    assert spearman(np.zeros(4), rising.reshape(-1)) is None


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
def test_a_map_lands_on_the_part_of_the_picture_that_made_it(fit: str, size: tuple[int, int], scale: float) -> None:
    """A ramp across the picture, prepared and mapped back, is the ramp again, to half a pixel of the input."""
    rows, columns = size
    spec = ImageSpec(48, 32, fit)  # type: ignore[arg-type]
    for axis in (0, 1):
        ramp = np.indices(size)[axis] * 255 / (size[axis] - 1)
        frame = np.repeat(np.rint(ramp).astype(np.uint8)[:, :, None], 3, axis=2)
        heat = prepare(frame, spec)[:, :, 0].astype(np.float32)
        back = over_picture(heat, rows, columns, spec, scale)
        assert back.shape == (round(rows * scale), round(columns * scale))
        wanted = cv2.resize(ramp.astype(np.float32), back.shape[::-1], interpolation=cv2.INTER_LINEAR)
        seen = np.isfinite(back)
        assert seen.mean() > 0.09
        inside = cv2.erode(seen.astype(np.uint8), np.ones((3, 3)), iterations=max(1, round(4 * scale))) > 0
        middle = inside & (wanted > 40) & (wanted < 215)  # at its ends a ramp is clamped
        _, filled = placement(rows, columns, spec)
        assert np.abs(back - wanted)[middle].mean() < 0.5 * 255 / (filled.height, filled.width)[axis]


def test_what_a_crop_cut_off_has_no_value_and_a_pad_shows_everything() -> None:
    """Of 20x60 a square input sees the middle third under crop, and all of it under pad and stretch."""
    heat = np.ones((16, 16), np.float32)
    cropped = over_picture(heat, 20, 60, ImageSpec(16, 16, "crop"))
    assert np.isnan(cropped[:, :20]).all()
    assert np.isfinite(cropped[:, 20:40]).all()
    assert np.isnan(cropped[:, 40:]).all()
    for fit in ("pad", "stretch"):
        assert np.isfinite(over_picture(heat, 20, 60, ImageSpec(16, 16, fit))).all()  # type: ignore[arg-type]


def test_heat_in_the_borders_of_a_pad_is_not_a_peak() -> None:
    """The picture has no pixel there."""
    heat = np.zeros((20, 20), np.float32)
    heat[0, 10], heat[9, 3] = 9, 1  # row 0 is border: the picture of 20x60 fills rows 7 to 12
    assert peak(heat, 20, 60, ImageSpec(20, 20, "pad"))[0] == 10


def test_for_is_red_against_is_blue_and_unseen_is_dark() -> None:
    """On a picture that is white throughout."""
    heat = np.zeros((10, 10), np.float32)
    heat[:, 1], heat[:, 8] = 1, -1
    drawn = overlay(np.full((320, 960, 3), 255, np.uint8), heat, ImageSpec(10, 10, "crop"))
    middle = drawn[100].astype(int)
    third = drawn.shape[1] // 3
    speaks_for, against = middle[third + third * 3 // 20], middle[third + third * 17 // 20]
    assert speaks_for[2] > speaks_for[0] + 80
    assert against[0] > against[2] + 80
    assert middle[5].tolist() == middle[-5].tolist() == [89, 89, 89]


def test_a_flat_map_leaves_the_picture_grey() -> None:
    """No colour is made of nothing."""
    frame = np.random.RandomState(0).randint(0, 256, (50, 40, 3), dtype=np.uint8)
    drawn = overlay(frame, np.zeros((8, 8), np.float32), ImageSpec(8, 8))
    assert (drawn[:, :, 0] == drawn[:, :, 2]).all()


@pytest.mark.parametrize("label", ["cat", "Übergröße 猫", "x" * 500, "a\x1b[31m\nb", ""])
def test_any_label_can_be_written_above_a_panel(label: str) -> None:
    """Long ones are cut, control characters do nothing, and a narrow picture still has room for a title."""
    sheet = row([Panel(np.zeros((320, 3, 3), np.uint8), (label, label)), Panel(np.zeros((100, 300, 3), np.uint8), (label,))])
    assert sheet.shape[1] == LEAST_WIDTH + 300 + 3 * 10
    assert (sheet[:, -9:] == 255).all()
    assert (sheet[:50].min() < 200) == bool(label)
