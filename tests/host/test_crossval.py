"""Cross-validation: how folds are drawn, what is trained on what, and what is kept."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.recipe import load_recipe, override
from edgeclf.host.tune import crossval

LABELS = ("red", "blue", "green")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Red against blue noise, 12x12, with a test folder; each of the first ten training pictures is there three times."""
    random, y = np.random.RandomState(0), np.arange(100) % 2
    x = random.randint(0, 120, (100, 12, 12, 3)).astype(np.uint8)
    x[np.arange(100), :, :, 2 * y] += 120
    x[20:40] = np.concatenate([x[:10], x[:10]])
    path = tmp_path_factory.mktemp("crossval-data") / "colours.npz"
    np.savez(path, x_train=x[:80], y_train=y[:80], x_test=x[80:], y_test=y[80:], labels=np.array(["red", "blue"]))
    return path


@pytest.fixture(scope="module")
def recipe():
    recipe = override(load_recipe("compact-digits"), image__size=12, training__epochs=3, training__batch_size=16)
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, options={"widths": [4, 8]}))


@pytest.fixture(scope="module")
def done(data, recipe, tmp_path_factory):
    """Two folds, trained for three epochs each."""
    return crossval.crossvalidate(crossval.start(recipe, str(data), 2, tmp_path_factory.mktemp("runs") / "folds"))


def _no_training(*arguments):
    raise AssertionError("a finished fold is trained again")


def test_folds_are_stratified_seeded_and_hold_every_picture_once():
    """Thirty pictures of three classes in five folds: two of each class in every one."""
    classes = np.repeat([0, 1, 2], 10)
    digests = np.random.RandomState(1).permutation(30).astype(np.uint64)
    folds = crossval.drawn_folds(classes, digests, 5, 1, LABELS)
    assert all(np.bincount(classes[folds == i], minlength=3).tolist() == [2, 2, 2] for i in range(5))
    assert np.array_equal(folds, crossval.drawn_folds(classes, digests, 5, 1, LABELS))
    assert not np.array_equal(folds, crossval.drawn_folds(classes, digests, 5, 2, LABELS))


def test_equal_pictures_lie_in_the_same_fold():
    """Else one would be trained on and asked about."""
    digests = np.random.RandomState(2).randint(0, 40, 120).astype(np.uint64)
    classes = (digests % 3).astype(np.int32)
    folds = crossval.drawn_folds(classes, digests, 4, 1, LABELS)
    assert all(len(set(folds[digests == digest])) == 1 for digest in set(digests))


def test_class_with_fewer_different_pictures_than_folds_is_named():
    """Copies do not count."""
    classes, digests = np.array([0] * 6 + [1] * 6), np.array([0, 1, 2, 3, 4, 5, 7, 7, 7, 7, 8, 8], np.uint64)
    with pytest.raises(DataError, match="class 'blue' has 2 different picture"):
        crossval.drawn_folds(classes, digests, 3, 1, LABELS[:2])


def test_no_fold_trains_on_what_it_is_asked_and_the_test_folder_is_not_touched(done):
    """Not even on a copy of it."""
    plan, test = done.plan, set(range(80, 100))
    digests, asked = plan.dataset.shards.digests, []
    for number in (1, 2):
        parts = crossval.fold_dataset(plan, number).parts
        assert not set(digests[parts["train"]]) & set(digests[np.concatenate([parts["val"], parts["test"]])])
        assert not set(digests[parts["val"]]) & set(digests[parts["test"]])
        assert sum(map(len, parts.values())) == 80
        assert not test & set(np.concatenate(list(parts.values())))
        assert set(plan.dataset.catalogue.classes[parts["train"]]) == {0, 1}
        asked += parts["test"].tolist()
    assert sorted(asked) == list(range(80))


def test_mean_has_students_interval():
    """t with 2 degrees of freedom is 4.3027 at 97.5%; the interval is cut at 1."""
    found = crossval.mean_of([0.7, 0.8, 0.9])
    assert (found.top1, found.deviation) == (pytest.approx(0.8), pytest.approx(0.1))
    assert found.interval.low == pytest.approx(0.8 - 4.302653 * 0.1 / 3**0.5)
    assert found.interval.high == 1


def test_answers_of_all_folds_agree_with_the_accuracy(done):
    """Each picture once, in the data's order; probabilities add up and name the answer."""
    rows = list(csv.DictReader((done.plan.folder / "predictions.csv").open()))
    assert [row["picture"] for row in rows] == [f"{i:07d}" for i in range(80)]
    assert sum(int(row["right"]) for row in rows) == round(done.pooled.top1 * 80) == sum(f.right for f in done.folds)
    assert done.pooled.top1 > 0.8
    for row in rows:
        assert float(row["p(red)"]) + float(row["p(blue)"]) == pytest.approx(1, abs=2e-6)
        assert (row["answer"] == "red") == (float(row["p(red)"]) > 0.5)
    told = json.loads((done.plan.folder / "crossval.json").read_text())
    assert told["test_pictures_untouched"] == 20
    assert not list(done.plan.folder.glob(".*"))


def test_finished_folds_are_kept_and_a_damaged_one_is_trained_again(done, monkeypatch):
    """To the same answers: folds are seeded."""
    path = done.plan.folder / "fold-2.npz"
    path.write_bytes(path.read_bytes()[:200])
    seen = []
    again = crossval.crossvalidate(crossval.resume(done.plan.folder), on_epoch=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 6), (5, 6), (6, 6)]
    assert again.pooled == done.pooled
    monkeypatch.setattr(crossval, "fit", _no_training)
    assert crossval.crossvalidate(done.plan).mean == done.mean


def test_fold_that_was_interrupted_goes_on_from_its_checkpoint(data, recipe, tmp_path, done):
    """Ctrl-C in the second epoch of the first fold."""
    plan, seen = crossval.start(recipe, str(data), 2, tmp_path / "folds"), []

    def stop(epoch, total):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crossval.crossvalidate(plan, on_epoch=stop)
    again = crossval.crossvalidate(plan, on_epoch=lambda epoch, total: seen.append(epoch))
    assert seen == [3, 4, 5, 6]
    assert again.pooled == done.pooled


def test_other_settings_in_the_same_folder_and_odd_folds_are_refused(done, recipe, data):
    """Each by what is wrong."""
    with pytest.raises(ConfigError, match="another folds"):
        crossval.start(recipe, str(data), 3, done.plan.folder)
    with pytest.raises(ConfigError, match="--folds 1"):
        crossval.start(recipe, str(data), 1)
