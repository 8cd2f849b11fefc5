"""Models side by side: the same pictures for all, the right pictures, and a winner only where the test shows one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclf.core.card import ModelCard
from edgeclf.core.catalogue import Catalogue, scan, split
from edgeclf.core.errors import DataError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.core.results import Size
from edgeclf.host.report.side_by_side import Entrant, common_held_out, compare_models, enter, pairwise
from edgeclf.runtime.engine import Scores

LABELS = ("dark", "light")
EACH = 60


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Dark and light pictures of random sizes, and one that cannot be read."""
    top, random = tmp_path_factory.mktemp("grey"), np.random.RandomState(0)
    for label, mean in zip(LABELS, (90, 166), strict=True):
        (top / label).mkdir()
        for i in range(EACH):
            picture = random.randint(mean - 60, mean + 60, (random.randint(9, 40), 20, 3)).astype(np.uint8)
            cv2.imwrite(str(top / label / f"{i:02d}.png"), picture)
    (top / "dark" / "broken.png").write_bytes(b"no picture")
    return scan(top)


def entrant(name: str, side: int, wrong_every: int = 0, labels: tuple[str, ...] = LABELS) -> Entrant:
    """Calls a picture by its mean, in its own label order, and every so many pictures wrongly; checks the size it is given."""
    seen = [0]

    def infer(batch: Pixels) -> Scores:
        assert batch.shape[1:] == (side, side, 3)
        light = batch.mean((1, 2, 3)) > 128
        if wrong_every:
            light = light ^ ((np.arange(len(batch)) + seen[0]) % wrong_every == 0)
            seen[0] += len(batch)
        called = np.array([labels.index("dark"), labels.index("light")])[light.astype(int)]
        return np.eye(2, dtype=np.float32)[called]

    card = ModelCard(name, labels, ImageSpec(side, side))
    return Entrant(name, card, infer, "fake", "1", Size(side, side), None)


def test_models_of_other_sizes_and_label_orders_see_the_same_pictures(catalogue: Catalogue) -> None:
    """Each prepared for itself; the unreadable picture counts for none."""
    found = compare_models([entrant("a", 8), entrant("b", 16, labels=LABELS[::-1])], catalogue, rounds=2)
    assert (found.pictures, found.skipped) == (2 * EACH, 1)
    assert [row.accuracy.top1 for row in found.rows] == [1.0, 1.0]
    assert [row.agreement for row in found.rows] == [1.0, 1.0]
    assert found.rows[1].over_first is not None


def test_a_winner_is_named_where_the_test_shows_one(catalogue: Catalogue) -> None:
    """All right against every fifth wrong; the first need not be the better one."""
    found = compare_models([entrant("a", 8, wrong_every=5), entrant("b", 8)], catalogue, rounds=0)
    assert found.winner == "b"
    assert "b is more accurate than the other" in found.sentence
    assert found.pairs[0].drop.drop == pytest.approx(-0.2, abs=0.02)
    assert found.rows[0].timing is None


def test_no_winner_is_named_where_pictures_are_too_few(catalogue: Catalogue) -> None:
    """Three of about fifty wrong: p is 0.25, and the sentence says what stays possible."""
    found = compare_models([entrant("a", 8), entrant("b", 8, wrong_every=24)], catalogue, limit=50, rounds=0)
    assert (found.pairs[0].drop.lost, found.winner) == (3, None)
    assert found.pairs[0].drop.p_value == pytest.approx(0.25)
    assert found.sentence.startswith(f"No difference in accuracy shown: {found.pictures} pictures leave room for 1")


def test_the_best_of_three_must_beat_both(catalogue: Catalogue) -> None:
    """Two that are all right, and one that is not: no single winner, by name."""
    three = [entrant("a", 8, wrong_every=3), entrant("b", 8), entrant("c", 8)]
    found = compare_models(three, catalogue, rounds=0)
    assert found.winner is None
    assert "No single winner: b is highest" in found.sentence
    assert "no difference to c is shown" in found.sentence
    assert len(found.pairs) == 3


def test_p_values_of_several_pairs_are_adjusted() -> None:
    """Two models: as it is. Three: the smallest times three."""
    right = {"a": np.ones(40, bool), "b": np.arange(40) >= 8, "c": np.ones(40, bool)}
    alone = pairwise({name: right[name] for name in "ab"})[0]
    assert alone.p_holm == alone.drop.p_value == pytest.approx(2 / 2**8)
    first = pairwise(right)[0]
    assert (first.first, first.second) == ("a", "b")
    assert first.p_holm == pytest.approx(3 * 2 / 2**8)


def trained(one: Entrant, catalogue: Catalogue, seed: int) -> Entrant:
    provenance = {"fingerprint": catalogue.fingerprint, "split": {"seed": seed, "val": 0.1, "val_pictures": 9, "test": 0.4}}
    return replace(one, card=replace(one.card, provenance=provenance))


def test_only_pictures_that_all_models_held_out_count(catalogue: Catalogue) -> None:
    """Two seeds split the same data in two ways: a picture that either was trained on is unfair to the other."""
    a, b = trained(entrant("a", 8), catalogue, 1), trained(entrant("b", 8), catalogue, 2)
    indices, which = common_held_out(catalogue, [a, b])
    splits = [split(catalogue, **e.card.provenance["split"]) for e in (a, b)]
    assert set(indices) == set(splits[0]["test"]) & set(splits[1]["test"])
    assert "only those that all held out" in which
    assert "only" not in common_held_out(catalogue, [a, a])[1]


def test_a_model_of_unknown_training_is_named(catalogue: Catalogue) -> None:
    """The other's test part is fair to the other; of this one nobody knows."""
    which = common_held_out(catalogue, [trained(entrant("a", 8), catalogue, 1), entrant("stranger", 8)])[1]
    assert "not known whether stranger was trained on some of them" in which


def test_nothing_left_to_compare_on_is_an_error(catalogue: Catalogue) -> None:
    """Test parts that do not meet."""
    few = [trained(entrant("a", 8), catalogue, seed) for seed in range(40)]
    with pytest.raises(DataError, match="no picture was held out by all of them"):
        common_held_out(catalogue, few)


def test_models_of_other_classes_are_refused(fixtures_folder: Path, tmp_path: Path) -> None:
    """What one lacks and what it has besides."""
    from edgeclf.core.bundle import attach, read_bundle

    path = fixtures_folder / "tiny-float32.tflite"
    bundle = read_bundle(path)
    assert bundle.card is not None
    other = replace(bundle.card, labels=("pink disc", *bundle.card.labels[1:]))
    (tmp_path / "other.tflite").write_bytes(attach(bundle.model, other))
    with pytest.raises(DataError, match=rf"it lacks '{bundle.card.labels[0]}', and has 'pink disc' besides"):
        enter([path, tmp_path / "other.tflite"])
