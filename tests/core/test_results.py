"""Scores, intervals and tests, against other people's numbers and against counting by hand."""

from __future__ import annotations

import importlib.util
import itertools
import math

import numpy as np
import pytest

from edgeclf.core.results import Latency, holm, mcnemar_p, paired_drop, score, top_k, wilson

LABELS = ("a", "b", "c")


def scores_of(called: list[int], classes: int = 3) -> np.ndarray:
    """One row a picture with the called class highest."""
    return np.eye(classes, dtype=np.float32)[called]


def test_accuracy_counts_by_hand() -> None:
    """Six pictures, four right."""
    found = score(scores_of([0, 0, 1, 1, 2, 0]), np.array([0, 0, 1, 2, 2, 1]), LABELS)
    assert found.top1 == 4 / 6
    assert found.confusion == ((2, 0, 0), (1, 1, 0), (0, 1, 1))
    b = found.per_class[1]
    assert (b.label, b.precision, b.recall, b.pictures) == ("b", 1 / 2, 1 / 2, 2)


def test_top5_counts_a_hit_among_the_five_highest() -> None:
    """The sixth does not count; with fewer classes everything does."""
    scores = np.array([[6, 5, 4, 3, 2, 1]] * 2, np.float32)
    assert score(scores, np.array([4, 5]), tuple("abcdef")).top5 == 0.5
    assert score(scores_of([0]), np.array([2]), LABELS).top5 == 1.0


def test_a_picture_with_nan_is_wrong_and_called_nothing() -> None:
    """Not a hit of the first class, which a plain argmax of NaN would give."""
    scores = scores_of([0, 1])
    scores[0, 2] = np.nan
    found = score(scores, np.array([0, 1]), LABELS)
    assert found.top1 == found.top5 == 0.5
    assert sum(map(sum, found.confusion)) == 1


def test_ties_go_to_the_first_class_everywhere() -> None:
    """Constant scores call class 0, as the classifier does."""
    found = score(np.zeros((3, 3), np.float32), np.array([0, 1, 2]), LABELS)
    assert [row[0] for row in found.confusion] == [1, 1, 1]


def test_no_pictures_give_zeros_and_the_widest_interval() -> None:
    """No division by zero."""
    found = score(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), LABELS)
    assert (found.top1, found.pictures) == (0.0, 0)
    assert (found.top1_interval.low, found.top1_interval.high) == (0.0, 1.0)


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="compares with scikit-learn")
def test_precision_recall_and_f1_are_scikit_learns() -> None:
    """With `zero_division=0`, and with a class that is never called."""
    from sklearn.metrics import precision_recall_fscore_support

    random = np.random.RandomState(3)
    truth, called = random.randint(0, 5, 300), random.randint(0, 4, 300)
    found = score(scores_of(called.tolist(), 5), truth, tuple("abcde"))
    wanted = precision_recall_fscore_support(truth, called, labels=range(5), zero_division=0)
    mine = np.array([[c.precision, c.recall, c.f1, c.pictures] for c in found.per_class]).T
    assert np.allclose(mine, np.array(wanted))


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="compares with scikit-learn")
def test_averages_are_scikit_learns() -> None:
    """With a class that is never called, one that no picture shows, and one that is neither."""
    from sklearn.metrics import precision_recall_fscore_support

    random = np.random.RandomState(4)
    truth, called = random.choice([0, 1, 2], 200, p=[0.6, 0.3, 0.1]), random.choice([0, 1, 3], 200)
    found = score(scores_of(called.tolist(), 5), truth, tuple("abcde"))
    for name, average in found.averages.items():
        wanted = precision_recall_fscore_support(truth, called, average=name, zero_division=0)[:3]
        assert np.allclose((average.precision, average.recall, average.f1), wanted), name
    assert found.averages["micro"].f1 == pytest.approx(found.top1)


def test_top_k_counts_how_high_the_class_stands() -> None:
    """Ties go to the first class, NaN never counts, and k ends at the number of classes."""
    scores = np.array([[3, 2, 1], [1, 2, 3], [0, 0, 0], [np.nan, 9, 9]], np.float32)
    assert top_k(scores, np.array([0, 0, 1, 1])) == (0.25, 0.5, 0.75)
    random = np.random.RandomState(0)
    many, truth = random.rand(200, 8).astype(np.float32).round(1), random.randint(0, 8, 200)
    assert top_k(many, truth, 5)[0] == score(many, truth, tuple("abcdefgh")).top1
    assert top_k(many, truth, 5)[4] == score(many, truth, tuple("abcdefgh")).top5


def test_the_pairs_mixed_up_most_come_first() -> None:
    """True class, then what it was called; right answers are no mistake, equal counts stay in the order of the classes."""
    called = [0] * 9 + [1] + [2] * 4 + [0] * 4 + [1] * 9 + [0] * 7 + [2] * 9
    found = score(scores_of(called), np.repeat([0, 1, 2], [14, 13, 16]), LABELS)
    mixups = [(m.pictures, m.truth, m.answer) for m in found.mixups()]
    assert mixups == [(7, "c", "a"), (4, "a", "c"), (4, "b", "a"), (1, "a", "b")]
    assert len(found.mixups(most=1)) == 1


def test_holm_adjusts_by_rank_and_never_turns_the_order() -> None:
    """By hand: 0.01 × 3, then the larger of that and 0.02 × 2, then 0.04 × 1; a p-value stays at most 1."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.3]) == [0.3]
    assert holm([]) == []


def test_wilson_is_the_published_interval() -> None:
    """Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20."""
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = wilson(right, total)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    """Against the sum over all outcomes of up to eight coin flips that are no more balanced."""
    for n, k in ((8, 1), (7, 3), (5, 0)):
        outcomes = [sum(flips) for flips in itertools.product((0, 1), repeat=n)]
        wanted = min(1.0, 2 * sum(heads <= min(k, n - k) for heads in outcomes) / len(outcomes))
        assert math.isclose(mcnemar_p(k, n - k), wanted, rel_tol=1e-9)
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(4000, 4100) < 1.0


def test_a_drop_counts_flips_both_ways() -> None:
    """Ten pictures, three lost, one won; the interval holds the drop."""
    before = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    after = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0], bool)
    found = paired_drop(before, after)
    assert (found.lost, found.won, found.total, found.drop) == (3, 1, 10, 0.2)
    assert found.interval.low < 0.2 < found.interval.high
    assert math.isclose(found.p_value, 0.625)


def test_the_interval_of_a_drop_is_that_of_bonett_and_price() -> None:
    """By hand for 3 lost and 1 won of 10: shares 4/12 and 2/12, so 1/6 ± 1.96 √((1/2 - 1/36) / 12)."""
    before = np.array([1] * 8 + [0] * 2, bool)
    after = np.array([0] * 3 + [1] * 6 + [0], bool)
    interval = paired_drop(before, after).interval
    assert (round(interval.low, 4), round(interval.high, 4)) == (-0.2221, 0.5555)


def test_the_interval_of_a_drop_holds_the_truth_about_as_often_as_it_says() -> None:
    """800 simulated comparisons of 400 pictures with a true drop of 2 points: 95%, give or take sampling."""
    random, held = np.random.RandomState(5), 0
    for _ in range(800):
        kind = random.choice(4, 400, p=[0.80, 0.05, 0.03, 0.12])
        found = paired_drop((kind == 0) | (kind == 1), (kind == 0) | (kind == 2))
        held += found.interval.low <= 0.02 <= found.interval.high
    assert 0.93 < held / 800 < 0.98


def test_latency_of_times_is_in_milliseconds() -> None:
    """Percentiles over all runs; no runs are zeros and not an error."""
    found = Latency.of([i / 1000 for i in range(1, 102)])
    assert (found.p50_ms, found.p90_ms, found.runs) == (51.0, 91.0, 101)
    assert Latency.of([]).runs == 0
