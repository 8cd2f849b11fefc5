"""Scores to answers: smoothing, `unknown`, and one event for one real change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError
from edgeclf.core.image import ImageSpec
from edgeclf.core.live_settings import DecideSection
from edgeclf.core.unknown import UnknownRule
from edgeclf.runtime.decision import INVALID, UNKNOWN, Decision, Rules, State, asked_rules, card_rules, decide, smooth

LABELS = ("cat", "dog", "owl")


def play(rows: list[list[float]], rules: Rules, energies: list[float] | None = None) -> list[Decision]:
    """The decisions for frames with these probabilities."""
    state, decisions = State(), []
    for row, energy in zip(rows, energies or [0.0] * len(rows), strict=True):
        state, decision = decide(state, np.array(row, np.float32), LABELS, rules, energy)
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
    "wrong",
    [
        {"smooth": 1.0}, {"smooth": -0.1}, {"hysteresis": 1.0}, {"thresholds": (1.1,)}, {"thresholds": ()}, {"top": 0},
        {"votes": 3, "of": 2}, {"votes": 0}, {"least": 1.5}, {"unknown_by": "energy", "least": float("nan")},
    ],
)  # fmt: skip
def test_rules_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    """A value outside its range raises ConfigError when the rules are made."""
    with pytest.raises(ConfigError):
        Rules(**wrong)  # type: ignore[arg-type]


CAT, DOG, OWL = [0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.9]


def test_votes_let_an_answer_through_when_enough_frames_agree() -> None:
    """Three of the last five; the label of a frame stays its own, and the first answer needs its votes too."""
    seen = play([CAT, CAT, DOG, CAT, DOG, DOG, CAT, DOG, DOG], Rules(votes=3, of=5))
    assert [d.label for d in seen[:3]] == ["cat", "cat", "dog"]
    assert [(i, d.stable) for i, d in enumerate(seen) if d.changed] == [(3, "cat"), (7, "dog")]


def test_votes_from_before_a_change_do_not_undo_it() -> None:
    """With two of five, the frames of the old answer still in the window are not counted again."""
    seen = play([CAT, CAT, CAT, DOG, DOG, CAT, DOG], Rules(votes=2, of=5))
    assert [d.stable for d in seen if d.changed] == ["cat", "dog"]


@st.composite
def noisy_scenes(draw: st.DrawFn) -> tuple[int, int, list[str], list[str]]:
    """(votes, of, what was shown frame by frame, what the model said): scenes that last, odd frames too few for a change.

    In any `of` frames together at most min(votes - 1, of - votes) are odd; each scene lasts at least 2 * `of` frames.
    """
    of = draw(st.integers(1, 9))
    votes = draw(st.integers(1, of))
    names = [*LABELS, UNKNOWN]
    scenes = [draw(st.sampled_from(names))]
    for _ in range(draw(st.integers(0, 5))):
        scenes.append(draw(st.sampled_from([name for name in names if name != scenes[-1]])))
    shown = [scene for scene in scenes for _ in range(draw(st.integers(2 * of, 3 * of)))]
    said, odd = list(shown), min(votes - 1, of - votes)
    for i in draw(st.lists(st.integers(0, len(shown) - 1), max_size=len(shown))):
        near = range(max(0, i - of + 1), min(len(shown), i + of))
        before = said[i]
        said[i] = draw(st.sampled_from([name for name in names if name != shown[i]]))
        windows = (range(start, start + of) for start in range(near.start, max(near.start + 1, near.stop - of + 1)))
        if any(sum(said[j] != shown[j] for j in window if j < len(shown)) > odd for window in windows):
            said[i] = before
    return votes, of, shown, said


@pytest.mark.parametrize("by", ["probability", "margin", "energy"])
@given(noisy_scenes())
def test_each_real_change_makes_one_event_whatever_the_noise(by: str, scenes: tuple[int, int, list[str], list[str]]) -> None:
    """m changes that last make m events after the first, in their order, by every measure of what is unknown."""
    votes, of, shown, said = scenes
    rows = {"cat": CAT, "dog": DOG, "owl": OWL, UNKNOWN: [0.34, 0.33, 0.33]}
    rules = {
        "probability": Rules(thresholds=(0.5,), votes=votes, of=of),
        "margin": Rules(unknown_by="margin", least=0.4, votes=votes, of=of),
        "energy": Rules(unknown_by="energy", least=5.0, energy_scale=3.0, votes=votes, of=of),
    }[by]
    seen = play([rows[name] for name in said], rules, [2.0 if name == UNKNOWN else 8.0 for name in said])
    wanted = [name for i, name in enumerate(shown) if i == 0 or shown[i - 1] != name]
    assert [d.stable for d in seen if d.changed] == wanted


@pytest.mark.parametrize("what", ["classes", "probability", "margin", "energy"])
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=80), st.floats(0.02, 0.5), st.integers(1, 4))
def test_flicker_within_the_hysteresis_makes_no_event(what: str, swings: list[float], lead: float, votes: int) -> None:
    """Scores that swing about a limit, or two classes about each other, by less than the hysteresis: the first answer stays."""
    size = 0.98 * lead
    rules, rows, energies = {
        "classes": (Rules(), [[0.5 + s * size / 2, 0.5 - s * size / 2, 0] for s in swings], None),
        "probability": (Rules(thresholds=(0.5,)), [[0.5 + s * size * 0.49, 0.3, 0.2] for s in swings], None),
        "margin": (Rules(unknown_by="margin", least=0.5), [[0.7 + s * size * 0.49, 0.2, 0.1] for s in swings], None),
        "energy": (
            Rules(unknown_by="energy", least=-3.0, energy_scale=4.0), [CAT] * len(swings), [-3.0 + 4 * s * size for s in swings],
        ),
    }[what]  # fmt: skip
    seen = play(rows, _with(rules, hysteresis=lead, votes=votes, of=votes), energies)
    assert sum(d.changed for d in seen) <= 1


@given(
    st.lists(st.tuples(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3), st.booleans()), min_size=1, max_size=40),
    st.sampled_from([[np.nan, 0.5, 0.5], [np.inf, 0, 0], [0, 0, 0]]),
    st.floats(0, 0.9),
    st.integers(1, 5),
)
def test_frames_without_numbers_are_as_if_they_had_not_been(
    frames: list[tuple[list[float], bool]], bad: list[float], weight: float, of: int
) -> None:
    """Mixed in anywhere they are `invalid`, change nothing, and leave smoothing and votes as they were."""
    rules = Rules(smooth=weight, thresholds=(0.4,), votes=of, of=of)
    mixed = [row for good, also in frames for row in ([bad, good] if also else [good])]
    seen = play(mixed, rules)
    valid = [d for d in seen if d.label != INVALID]
    assert valid == [d for d in play([good for good, _ in frames], rules) if d.label != INVALID]
    assert not any(d.changed for d in seen if d.label == INVALID)


@pytest.mark.parametrize("energy", [np.nan, np.inf])
def test_an_energy_that_is_no_number_is_invalid(energy: float) -> None:
    """As the scores are."""
    assert play([CAT], Rules(), [energy])[0].label == INVALID


def test_the_margin_and_the_energy_can_make_an_answer_unknown() -> None:
    """Whatever the probability; both must hold where a class has a threshold besides."""
    close = [0.55, 0.45, 0.0]
    assert [d.label for d in play([CAT, close], Rules(unknown_by="margin", least=0.2))] == ["cat", UNKNOWN]
    by_energy = Rules(unknown_by="energy", least=5.0, thresholds=(0.5, 0.95, 0.5))
    assert [d.label for d in play([CAT, CAT, DOG], by_energy, [6, 4, 6])] == ["cat", UNKNOWN, UNKNOWN]


def test_a_low_threshold_can_still_be_fallen_below() -> None:
    """A hysteresis larger than the threshold does not hold the answer for ever."""
    rows = [[0.2, 0.15, 0.1], [0.02, 0.019, 0.01]]
    assert play(rows, Rules(thresholds=(0.05,), hysteresis=0.1))[1].stable == UNKNOWN


def test_a_class_that_another_has_clearly_overtaken_is_not_held() -> None:
    """Though that other stays below its own, higher threshold."""
    rows = [CAT, [0.25, 0.6, 0.15]]
    assert [d.stable for d in play(rows, Rules(thresholds=(0.2, 0.9, 0.2)))] == ["cat", UNKNOWN]


def test_an_answer_of_another_model_does_not_hold_up_the_first_one() -> None:
    """A state that was kept over a restart may name a label that this model lacks."""
    _, decision = decide(State(stable="ship"), np.array(CAT, np.float32), LABELS, Rules())
    assert (decision.stable, decision.changed) == ("cat", True)


def test_settling_counts_the_frames_that_smoothing_and_votes_need() -> None:
    """After so many frames of a new scene its answer lasts."""
    for rules in (Rules(), Rules(votes=3, of=5), Rules(smooth=0.8), Rules(smooth=0.5, votes=2, of=3)):
        seen = play([CAT] * 30 + [DOG] * rules.settling, rules)
        assert seen[-1].stable == "dog"


CARD = ModelCard(
    "pets", LABELS, ImageSpec(8, 8), thresholds=(0.2, 0.9, 0.5),
    unknown=UnknownRule("energy", {"probability": 0.4, "margin": 0.3, "energy": 6.5}, energy_scale=2.0),
)  # fmt: skip
PLAIN = ModelCard("pets", LABELS, ImageSpec(8, 8))


def test_the_rules_of_a_card_are_its_thresholds_and_its_limit() -> None:
    """By probability the higher of the two counts; a card of old gives its thresholds alone."""
    rules = card_rules(CARD)
    assert (rules.thresholds, rules.unknown_by, rules.least, rules.energy_scale) == ((0.2, 0.9, 0.5), "energy", 6.5, 2.0)
    by_probability = asked_rules(CARD, DecideSection(unknown_by="probability"))
    assert (by_probability.thresholds, by_probability.measured) == ((0.4, 0.9, 0.5), False)
    assert card_rules(PLAIN) == Rules()
    assert not card_rules(PLAIN).limited


def test_settings_count_more_than_the_card() -> None:
    """A threshold stands in place of all in the card; a measure alone takes its fitted limit."""
    assert asked_rules(CARD, DecideSection(threshold=0.7)) == Rules(thresholds=(0.7,))
    given_energy = asked_rules(CARD, DecideSection(threshold=-4.0, unknown_by="energy"))
    assert (given_energy.least, given_energy.thresholds) == (-4.0, (0.0,))
    margin = asked_rules(CARD, DecideSection(unknown_by="margin", votes=2, of=3, smooth=0.5))
    assert (margin.unknown_by, margin.least, margin.votes, margin.of, margin.smooth) == ("margin", 0.3, 2, 3, 0.5)


def test_a_measure_without_a_fitted_limit_says_how_to_fit_one() -> None:
    """One line with the command."""
    with pytest.raises(ConfigError, match="no limit for the energy; fit one with: edgeclf calibrate FILE --unknown-by energy"):
        asked_rules(PLAIN, DecideSection(unknown_by="energy"))


@pytest.mark.parametrize(
    "wrong", [{"votes": 2}, {"of": 0}, {"of": 2000}, {"threshold": 2.0}, {"threshold": -1.0, "unknown_by": "margin"}, {"top": 0}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError):
        DecideSection(**wrong)  # type: ignore[arg-type]


def _with(rules: Rules, **changes: object) -> Rules:
    return replace(rules, **changes)  # type: ignore[arg-type]
