"""Calibration error, temperature and thresholds, against counting by hand, brute force and simulated truth."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from edgeclf.core import calibrate
from edgeclf.core.calibrate import calibration, fit_temperature, fit_thresholds, softmax, under_thresholds

LABELS = ("a", "b", "c")


def honest(pictures: int, scale: float, seed: int = 0, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true distribution of the class when divided by `scale`, and classes drawn from it."""
    random = np.random.RandomState(seed)
    logits = random.normal(0, 2, (pictures, classes))
    p = softmax(logits.astype(np.float32)).astype(np.float64)
    truth = (np.cumsum(p, axis=1) < random.rand(pictures, 1)).sum(axis=1).clip(0, classes - 1)
    return (logits * scale).astype(np.float32), truth


def two_class(confidence: list[float]) -> np.ndarray:
    """Logits that call class 0 with these probabilities."""
    p = np.array(confidence)
    return np.stack([np.log(p), np.log(1 - p)], axis=1).astype(np.float32)


def test_calibration_by_hand() -> None:
    """Two bins: 0.9 sure and half right, 0.6 sure and all right."""
    found = calibration(two_class([0.9, 0.9, 0.6, 0.6]), np.array([0, 1, 0, 0]))
    assert found.ece == pytest.approx((0.4 + 0.4) / 2, abs=1e-6)
    assert [(b.pictures, b.accuracy) for b in found.bins] == [(2, 1.0), (2, 0.5)]
    assert found.nll == pytest.approx(-np.log([0.9, 0.1, 0.6, 0.6]).mean(), abs=1e-6)
    assert found.brier == pytest.approx(np.mean([0.02, 1.62, 0.32, 0.32]), abs=1e-6)
    assert (found.confidence, found.accuracy) == (pytest.approx(0.75), 0.75)


def test_a_bin_holds_its_upper_edge() -> None:
    """(0.6, 0.667] and not the bin below, as in the paper; a certain answer lies in the last one."""
    found = calibration(np.array([[0, 0, 0], [200, 0, 0]], np.float32), np.array([0, 0]))
    assert [(round(b.low, 3), round(b.high, 3)) for b in found.bins] == [(0.267, 0.333), (0.933, 1.0)]


def test_honest_probabilities_have_little_error_and_others_much() -> None:
    """Three times too sure is seen by both kinds of bins."""
    logits, truth = honest(20_000, 1.0)
    good, bad = calibration(logits, truth), calibration(logits * 3, truth)
    assert max(good.ece, good.adaptive_ece) < 0.02
    assert min(bad.ece, bad.adaptive_ece) > 0.1
    assert calibration(logits * 3, truth, 3.0).ece == pytest.approx(good.ece, abs=1e-3)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_temperature_that_was_built_in_is_found(scale: float) -> None:
    """Within its own interval, which is narrow for so many pictures."""
    found = fit_temperature(*honest(5_000, scale))
    assert found is not None
    assert found.interval.low < scale < found.interval.high
    assert found.interval.high / found.interval.low < 1.15


def test_the_interval_of_a_temperature_holds_the_truth_about_as_often_as_it_says() -> None:
    """200 simulated fits on 200 pictures each: 95%, give or take sampling."""
    fits = [fit_temperature(*honest(200, 1.5, seed)) for seed in range(200)]
    held = sum(f is not None and f.interval.low <= 1.5 <= f.interval.high for f in fits)
    assert 0.90 < held / 200 < 0.99


def test_no_other_temperature_is_likelier() -> None:
    """Against a grid around the fitted one."""
    logits, truth = honest(500, 2.0)
    found = fit_temperature(logits, truth)
    assert found is not None
    best = calibration(logits, truth, found.value).nll
    assert all(calibration(logits, truth, found.value * f).nll >= best for f in np.geomspace(0.5, 2, 40))


def test_there_is_no_temperature_where_every_answer_is_right_or_none_is() -> None:
    """Ever surer would be ever better, or ever less sure."""
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    assert fit_temperature(logits, np.array([0, 1, 2, 0])) is None
    assert fit_temperature(logits, np.array([1, 2, 0, 1])) is None
    assert fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, np.int64)) is None


def test_scores_that_are_no_numbers_are_left_out() -> None:
    """And huge ones overflow nowhere."""
    logits, truth = honest(50, 1.0)
    broken = np.concatenate([logits, np.full((2, 5), np.nan, np.float32), [[np.inf, 0, 0, 0, 0]]]).astype(np.float32)
    found = calibration(broken, np.append(truth, [0, 1, 0]))
    assert found == calibration(logits, truth)
    assert np.isfinite(calibration(np.array([[3e38, -3e38]], np.float32), np.array([1])).nll)
    assert calibration(broken[50:], np.array([0, 1, 0])).pictures == 0


def test_the_size_of_the_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are worked on a block at a time, so that a thousand classes fit a small memory."""
    logits, truth = honest(300, 2.0)
    wanted = calibration(logits, truth), fit_temperature(logits, truth), fit_thresholds(logits, truth, tuple("abcde"))
    monkeypatch.setattr(calibrate, "ROWS", 7)
    again = calibration(logits, truth), fit_temperature(logits, truth), fit_thresholds(logits, truth, tuple("abcde"))
    assert again[0].nll == pytest.approx(wanted[0].nll)
    assert again[1] is not None
    assert wanted[1] is not None
    assert again[1].value == pytest.approx(wanted[1].value)
    assert again[2] == wanted[2]


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="compares with scikit-learn")
def test_log_loss_is_scikit_learns() -> None:
    """Natural logarithm, mean over the pictures."""
    from sklearn.metrics import log_loss

    logits, truth = honest(400, 1.3)
    assert calibration(logits, truth).nll == pytest.approx(log_loss(truth, softmax(logits), labels=range(5)), rel=1e-5)


def brute(logits: np.ndarray, truth: np.ndarray, label: int, limit: float) -> tuple[int, float, float]:
    """(answers, precision, F1) of a class under a limit, counted picture by picture."""
    p = softmax(logits)
    called = [i for i in range(len(p)) if p[i].argmax() == label and float(p[i].max()) >= limit]
    right = sum(truth[i] == label for i in called)
    return len(called), right / max(1, len(called)), 2 * right / (len(called) + int((truth == label).sum()))


def test_a_threshold_gives_the_best_f1_there_is() -> None:
    """Of every cut between two pictures; and the figures are those that the decision gives."""
    logits, truth = honest(200, 2.0, classes=3)
    p = softmax(logits).max(axis=1)
    for i, found in enumerate(fit_thresholds(logits, truth, LABELS)):
        answers, precision, f1 = brute(logits, truth, i, found.value)
        assert (found.answers, found.precision) == (answers, pytest.approx(precision))
        assert found.f1 == pytest.approx(f1)
        assert f1 == pytest.approx(max(brute(logits, truth, i, float(limit))[2] for limit in (0.0, *p)))


def test_a_precision_is_reached_by_the_smallest_threshold() -> None:
    """Every lower one has less."""
    logits, truth = honest(300, 2.0, classes=3)
    p = softmax(logits).max(axis=1)
    for i, found in enumerate(fit_thresholds(logits, truth, LABELS, precision=0.9)):
        assert found.reached
        assert brute(logits, truth, i, found.value)[1] >= 0.9
        assert 0 < found.value <= 1
        lower = [float(limit) for limit in p if limit < found.value and brute(logits, truth, i, float(limit))[0] > found.answers]
        assert lower
        assert all(brute(logits, truth, i, limit)[1] < 0.9 for limit in lower)


def test_a_precision_out_of_reach_is_said_with_the_best() -> None:
    """The surest answer is wrong: two of three is all there is."""
    found, other = fit_thresholds(two_class([0.99, 0.9, 0.8]), np.array([1, 0, 0]), ("a", "b"), precision=0.95)
    assert (found.reached, found.answers, found.value) == (False, 3, 0.0)
    assert found.precision == pytest.approx(2 / 3)
    assert (other.answers, other.value, other.reached) == (0, 0.0, False)


def test_a_threshold_is_written_with_few_decimals() -> None:
    """Between 0.62 and 0.71 lies 0.7; the picture above it is answered and the one below it is not."""
    found = fit_thresholds(two_class([0.71, 0.62]), np.array([0, 1]), ("a", "b"))[0]
    assert (found.value, found.answers) == (0.7, 1)


def test_under_thresholds_answers_are_counted_by_hand() -> None:
    """Four pictures: one right and sure, one right and unsure, one wrong and sure, one without numbers."""
    logits = np.concatenate([two_class([0.9, 0.6, 0.95]), [[np.nan, 0]]]).astype(np.float32)
    found = under_thresholds(logits, np.array([0, 0, 1, 0]), ("a", "b"), (0.7, 0.0))
    assert (found.answered, found.pictures, found.top1, found.coverage) == (2, 4, 0.5, 0.5)
    assert (found.per_class[0].precision, found.per_class[0].recall) == (0.5, 1 / 3)


def test_a_temperature_comes_before_the_thresholds() -> None:
    """0.9 becomes 0.75 at twice the heat, and then stays below 0.8."""
    logits, truth = two_class([0.9]), np.array([0])
    assert under_thresholds(logits, truth, ("a", "b"), (0.8, 0.8)).answered == 1
    assert under_thresholds(logits, truth, ("a", "b"), (0.8, 0.8), 2.0).answered == 0
