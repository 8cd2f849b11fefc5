"""What a model does not know: measures, fitted limits and AUROC, against brute force, simulation and scikit-learn."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeclf.core.calibrate import softmax
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import ImageSpec
from edgeclf.core.unknown import (
    MEASURES,
    UnknownBy,
    UnknownRule,
    auroc,
    energies,
    energy,
    fit_limit,
    fit_rule,
    gives_energy,
    known,
    margin,
    measures,
)


def answers(pictures: int, sure: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of four classes in which the true one stands out by `sure`, and the true classes."""
    random = np.random.RandomState(seed)
    truth = random.randint(0, 4, pictures)
    logits = random.normal(0, 1, (pictures, 4))
    logits[np.arange(pictures), truth] += sure
    return logits.astype(np.float32), truth


def test_the_energy_is_the_tempered_log_of_summed_exponentials() -> None:
    """By hand; for one row as for many; huge logits do not overflow, and what is no number has none."""
    logits = np.array([[1.0, 3.0], [900.0, -900.0]], np.float32)
    assert energy(logits[0], 2.0) == pytest.approx(2 * np.log(np.exp(0.5) + np.exp(1.5)))
    assert energies(logits, 2.0) == pytest.approx([energy(row, 2.0) for row in logits])
    assert energy(logits[1]) == pytest.approx(900)
    bad = np.array([[np.nan, 1], [np.inf, 1]], np.float32)
    assert np.isnan(energies(bad)).all()
    assert np.isnan([energy(row) for row in bad]).all()


def test_the_margin_is_the_lead_over_the_second() -> None:
    """Wherever the two stand."""
    assert margin(np.array([0.1, 0.6, 0.3], np.float32)) == pytest.approx(0.3)
    assert margin(np.array([0.5, 0.5], np.float32)) == 0


def test_measures_of_many_rows_are_those_of_each() -> None:
    """As the live loop measures one picture; rows that are no numbers lie below every limit."""
    logits, _ = answers(20, 2.0)
    logits[3] = np.nan
    found = measures(logits, 1.7)
    for i, row in enumerate(logits):
        if i == 3:
            assert all(found[by][i] == -np.inf for by in MEASURES)
            continue
        p = softmax(row, 1.7)
        assert (found["probability"][i], found["margin"][i]) == (float(p.max()), margin(p))
        assert found["energy"][i] == pytest.approx(energy(row, 1.7))


def test_probabilities_and_their_logarithms_have_no_energy() -> None:
    """Whether shares, shares in steps of 1/256 as int8 has them, or LogSoftmax; logits have one."""
    logits, _ = answers(50, 2.0)
    p = softmax(logits)
    for normalised in (p, np.round(p * 256) / 256, np.log(np.maximum(p, 1e-12)), p[:1]):
        assert not gives_energy(normalised.astype(np.float32))
    assert gives_energy(logits)
    assert gives_energy(logits[:1])
    assert not gives_energy(np.full((2, 3), np.nan, np.float32))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=60), st.floats(0.01, 1))
def test_a_limit_keeps_at_least_the_share_that_it_is_to_keep_and_is_the_highest_such(values: list[float], keep: float) -> None:
    """A limit above the lowest value that it keeps would keep too little."""
    right = np.array(values)
    kept = right[right >= fit_limit(right, keep)]
    assert len(kept) >= keep * len(right) - 1e-6
    assert (kept > kept.min()).sum() < keep * len(right) + 1e-6


@pytest.mark.parametrize("by", MEASURES)
def test_a_rule_keeps_its_share_of_the_right_and_turns_strange_pictures_away(by: UnknownBy) -> None:
    """95% of the right answers, few of pictures on which no class stands out; each measure has its limit."""
    logits, truth = answers(2000, 6.0)
    strange, _ = answers(500, 0.0, seed=1)
    turned = fit_rule(logits, truth, 1.0, by, 0.95, strange)
    assert turned.right + turned.wrong == 2000
    assert 0.95 <= turned.kept / turned.right <= 0.952
    assert turned.others == 500
    assert turned.others_turned_away > 350
    assert turned.others_interval.low < turned.others_turned_away / 500 <= turned.others_interval.high
    assert set(turned.rule.limits) == set(turned.auroc) == set(MEASURES)
    assert min(turned.auroc.values()) > 0.9
    assert (~known(strange, 1.0, turned.rule)).sum() == turned.others_turned_away


def test_only_the_right_answers_decide_about_the_limit() -> None:
    """Wrong ones that are sure do not raise it."""
    logits, truth = answers(500, 5.0)
    right = logits.argmax(axis=1) == truth
    wrong = np.roll(truth, 1) != truth
    both = fit_rule(
        np.concatenate([logits, 3 * logits[wrong]]), np.concatenate([truth, np.roll(truth, 1)[wrong]]), 1.0, "energy", 0.9
    )
    assert both.rule.limits["energy"] == fit_limit(energies(logits[right]), 0.9)


def test_what_has_no_energy_is_told_and_not_fitted() -> None:
    """Asked for, it is an error; for another measure the energy is left out."""
    logits, truth = answers(100, 3.0)
    p = softmax(logits)
    with pytest.raises(ConfigError, match="it has no energy; use probability or margin"):
        fit_rule(p, truth, 1.0, "energy", 0.95)
    assert set(fit_rule(p, truth, 1.0, "margin", 0.95).rule.limits) == {"probability", "margin"}


def test_a_model_that_is_never_right_has_nothing_to_keep() -> None:
    """Nor one whose answers are no numbers."""
    logits, truth = answers(40, 20.0)
    for given_logits, given_truth in ((logits, (truth + 1) % 4), (np.full_like(logits, np.nan), truth * 0)):
        with pytest.raises(ConfigError):
            fit_rule(given_logits, given_truth, 1.0, "margin", 0.95)


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="compares with scikit-learn")
def test_auroc_is_scikit_learns() -> None:
    """Ties included."""
    from sklearn.metrics import roc_auc_score

    random = np.random.RandomState(0)
    mine, others = random.normal(1, 1, 300).round(1), random.normal(0, 1, 200).round(1)
    truth = np.r_[np.ones(300), np.zeros(200)]
    assert auroc(mine, others) == pytest.approx(roc_auc_score(truth, np.r_[mine, others]))


CARD = ModelCard("pets", ("cat", "dog"), ImageSpec(8, 8), unknown=UnknownRule("energy", {"energy": 7.5, "margin": 0.2}, 0.9, 3.0))


def test_the_card_keeps_the_rule_and_cards_without_one_read_and_write_as_before() -> None:
    """Not even a null is added to an older card."""
    assert ModelCard.from_json(CARD.to_json(), "x") == CARD
    assert "unknown" not in json.loads(ModelCard("pets", ("cat", "dog"), ImageSpec(8, 8)).to_json())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"by": "energy", "limits": {"margin": 0.5}}, "has none for energy"),
        ({"by": "entropy", "limits": {"entropy": 0.5}}, "is not one of"),
        ({"by": "margin", "limits": {"margin": 2.0}}, "between 0 and 1"),
        ({"by": "margin", "limits": {"margin": "0.5"}}, "expected a number"),
        ({"by": "margin", "limits": {"margin": True}}, "expected a number"),
        ({"by": "energy", "limits": {"energy": 10**400}}, "must be a number"),
        ({"by": "energy", "limits": {"energy": 1}, "energy_scale": 0}, "must be above 0"),
        ({"by": "energy", "limits": {"energy": 1}, "keep": 2}, "above 0 and up to 1"),
        ({"by": "energy", "limits": {"energy": 1, "other": 1}}, "expected a number for one of"),
        ({"by": "energy", "limits": []}, "expected a section"),
        ("energy", "expected a section"),
    ],
)
def test_a_card_with_a_rule_that_cannot_work_is_refused(rule: object, message: str) -> None:
    """A card may come from anywhere."""
    text = json.dumps({**json.loads(CARD.to_json()), "unknown": rule})
    with pytest.raises(ModelError, match=message):
        ModelCard.from_json(text, "x.tflite")
