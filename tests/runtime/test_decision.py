"""Scores to answers: smoothing, `unknown`, and one event for one real change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeclf.core.errors import ConfigError
from edgeclf.runtime.decision import INVALID, UNKNOWN, Decision, Rules, State, decide, smooth

LABELS = ("cat", "dog", "owl")


def play(rows: list[list[float]], rules: Rules) -> list[Decision]:
    """The decisions for frames with these probabilities."""
    state, decisions = State(), []
    for row in rows:
        state, decision = decide(state, np.array(row, np.float32), LABELS, rules)
        decisions.append(decision)
    return decisions


def test_without_smoothing_each_frame_stands_for_itself() -> None:
    """The label is the likeliest class of that very frame."""
    seen = play([[0.9, 0.1, 0], [0.4, 0.6, 0], [0.1, 0.2, 0.7]], Rules())
    assert [d.label for d in seen] == ["cat", "dog", "owl"]
    assert [round(d.score, 4) for d in seen] == [0.9, 0.6, 0.7]


def test_top_lists_the_likeliest_classes_in_order() -> None:
    """`top` holds as many pairs as asked for, never more than there are classes."""
    (two,) = play([[0.2, 0.7, 0.1]], Rules(top=2))
    assert [label for label, _ in two.top] == ["dog", "cat"]
    (all_of_them,) = play([[0.2, 0.7, 0.1]], Rules(top=9))
    assert [label for label, _ in all_of_them.top] == ["dog", "cat", "owl"]


def test_smoothing_lets_one_odd_frame_pass_without_a_new_label() -> None:
    """One frame of another class between many does not flip a smoothed answer."""
    rows = [[0.9, 0.1, 0]] * 5 + [[0.1, 0.9, 0]] + [[0.9, 0.1, 0]] * 2
    assert {d.label for d in play(rows, Rules(smooth=0.7))} == {"cat"}
    assert {d.label for d in play(rows, Rules())} == {"cat", "dog"}


def test_smoothing_is_the_exponential_mean() -> None:
    """Weight of the past times the mean, plus the rest times the present."""
    mean = smooth(np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32), 0.75)
    assert mean.tolist() == [0.75, 0.25]


def test_a_score_below_the_threshold_is_unknown() -> None:
    """The likeliest class must reach the threshold, and reaching it exactly is enough."""
    seen = play([[0.6, 0.4, 0], [0.5, 0.5, 0], [0.49, 0.3, 0.21]], Rules(thresholds=(0.5,), hysteresis=0))
    assert [d.label for d in seen] == ["cat", "cat", UNKNOWN]


def test_thresholds_of_the_card_hold_for_their_own_class() -> None:
    """With one threshold a class, only the class in question is held to it."""
    rules = Rules(thresholds=(0.9, 0.2, 0.2))
    assert [d.label for d in play([[0.8, 0.2, 0], [0.2, 0.8, 0]], rules)] == [UNKNOWN, "dog"]


@pytest.mark.parametrize("row", [[np.nan, 0.5, 0.5], [np.inf, 0, 0], [0, 0, 0]])
def test_scores_that_are_no_numbers_are_invalid_and_leave_the_state_alone(row: list[float]) -> None:
    """NaN, infinity and all-zero scores never become a label, and the smoothed mean goes on as if they had not been."""
    rules = Rules(smooth=0.5)
    before, bad, after = play([[0.8, 0.2, 0], row, [0.4, 0.6, 0]], rules)
    assert bad.label == INVALID
    assert not bad.changed
    assert bad.stable == before.stable == "cat"
    assert after == play([[0.8, 0.2, 0], [0.4, 0.6, 0]], rules)[1]


def test_one_real_change_makes_one_event() -> None:
    """The first answer is an event, a change is one more, and staying is none."""
    seen = play([[0.9, 0.1, 0]] * 3 + [[0.1, 0.9, 0]] * 3, Rules())
    assert [d.changed for d in seen] == [True, False, False, True, False, False]


def test_flicker_between_two_even_classes_makes_no_events() -> None:
    """Scores that swing around 50:50 by less than the hysteresis keep the announced answer."""
    rows = [[0.9, 0.1, 0]] + [[0.48, 0.52, 0], [0.52, 0.48, 0]] * 20
    seen = play(rows, Rules(hysteresis=0.1))
    assert sum(d.changed for d in seen) == 1
    assert {d.label for d in seen} == {"cat", "dog"}


def test_flicker_at_the_threshold_makes_no_events() -> None:
    """A class whose score swings around its threshold does not come and go."""
    rows = [[0.9, 0.1, 0]] + [[0.49, 0.3, 0.21], [0.51, 0.3, 0.19]] * 20
    assert sum(d.changed for d in play(rows, Rules(thresholds=(0.5,)))) == 1


def test_unknown_is_announced_when_the_class_is_really_gone() -> None:
    """Falling well below the threshold announces `unknown`; coming back above it announces the class."""
    rows = [[0.9, 0.1, 0], [0.34, 0.33, 0.33], [0.9, 0.1, 0]]
    assert [(d.stable, d.changed) for d in play(rows, Rules(thresholds=(0.5,)))] == [
        ("cat", True),
        (UNKNOWN, True),
        ("cat", True),
    ]


def test_a_threshold_near_one_can_still_be_passed_from_unknown() -> None:
    """Threshold plus hysteresis above 1 does not lock the answer at `unknown`."""
    rows = [[0.4, 0.3, 0.3], [0.99, 0.01, 0]]
    assert play(rows, Rules(thresholds=(0.97,), hysteresis=0.1))[1].stable == "cat"


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), min_size=1, max_size=30),
    st.floats(0, 0.95),
    st.floats(0, 0.95),
    st.floats(0, 1),
)
def test_whatever_the_scores_the_announced_answer_only_moves_by_events(
    rows: list[list[float]], weight: float, hysteresis: float, threshold: float
) -> None:
    """`stable` differs from the frame before exactly when `changed` is set, and is then the frame's own label."""
    stable = ""
    for decision in play(rows, Rules(smooth=weight, hysteresis=hysteresis, thresholds=(threshold,))):
        assert decision.changed == (decision.stable != stable)
        assert not decision.changed or decision.stable == decision.label
        stable = decision.stable


@pytest.mark.parametrize(
    "wrong", [{"smooth": 1.0}, {"smooth": -0.1}, {"hysteresis": 1.0}, {"thresholds": (1.1,)}, {"thresholds": ()}, {"top": 0}]
)
def test_rules_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    """A value outside its range raises ConfigError when the rules are made."""
    with pytest.raises(ConfigError):
        Rules(**wrong)  # type: ignore[arg-type]
