"""Gates: each wrong file is refused with a line that names what is wrong; a right one passes."""

import numpy as np
import pytest

from edgeclf.core.errors import QualityError
from edgeclf.core.results import paired_drop
from edgeclf.core.tflite import read_model
from edgeclf.host.export import gates

LABELS = ("cat", "dog", "owl")


@pytest.fixture
def structure(fixtures_folder):
    """What is inside one of the small files kept with the tests."""
    return lambda variant: read_model((fixtures_folder / f"tiny-{variant}.tflite").read_bytes(), variant)


def _scores(count=40):
    return np.random.RandomState(0).normal(size=(count, 3)).astype(np.float32)


def test_varied_answers_pass():
    """What a working model gives raises nothing."""
    gates.check_answers("int8", _scores(), LABELS)


def test_equal_scores_for_every_picture_are_constant_output():
    """Two pictures suffice to see it."""
    with pytest.raises(QualityError, match="int8: its output is constant: the same scores for all 2"):
        gates.check_answers("int8", np.ones((2, 3), np.float32), LABELS)


def test_one_class_for_every_picture_is_constant_output():
    """The scores move a little, the answer never does: the message names the class."""
    with pytest.raises(QualityError, match="constant: 'dog' for all 40"):
        gates.check_answers("int8", _scores() * 0.01 + np.array([0, 1, 0], np.float32), LABELS)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    """One picture with NaN or infinity is one too many."""
    scores = _scores()
    scores[7, 1] = bad
    with pytest.raises(QualityError, match="NaN or infinite scores for 1 of 40"):
        gates.check_answers("float32", scores, LABELS)


def test_float32_file_must_agree_with_keras_within_a_ten_thousandth():
    """Relative to the largest logit where that is above 1; NaN agrees with nothing."""
    keras = _scores()
    assert gates.check_agreement(keras, keras + 5e-5) == pytest.approx(5e-5, rel=0.01)
    gates.check_agreement(keras * 1000, keras * 1000 * (1 + 1e-5))
    for file in (keras + 1e-3, keras * np.nan):
        with pytest.raises(QualityError, match="differ from the Keras model's"):
            gates.check_agreement(keras, file)


def test_probabilities_that_do_not_sum_to_one_are_refused():
    """The softmax that sums to 23 of the field's bug reports; int8 may be off by its resolution."""
    even = np.full((4, 3), 1 / 3, np.float32)
    gates.check_probabilities("float32", even, 0.0)
    gates.check_probabilities("int8", np.full((4, 3), 85 / 256, np.float32), 1 / 256)
    with pytest.raises(QualityError, match=r"sum to 0\.6, not 1"):
        gates.check_probabilities("int8", np.full((4, 3), 0.2, np.float32), 1 / 256)
    with pytest.raises(QualityError, match="between 0 and 1"):
        gates.check_probabilities("float32", even * 3 * np.array([2, -1, 0], np.float32), 0.0)


def test_collapse_names_the_drop_and_chance_does_not_count():
    """30 of 100 lost is refused; 12 of 100 might be 6 and passes."""
    before = np.ones(100, bool)
    gates.check_drop("int8", paired_drop(before, np.arange(100) >= 12))
    with pytest.raises(QualityError, match=r"top-1 collapses by 30.0 points \(95% interval .* on 100"):
        gates.check_drop("int8", paired_drop(before, np.arange(100) >= 30))


@pytest.mark.parametrize("variant", ["float32", "float16", "dynamic-w8", "int8"])
def test_name_that_the_tensors_do_not_bear_out_is_refused(structure, variant):
    """A file of every scheme under every other name."""
    for claimed in {"float32", "float16", "dynamic-w8", "int8"} - {variant}:
        with pytest.raises(QualityError, match=f"{claimed}: its tensors are {variant}"):
            gates.check_structure(structure(variant), claimed, structure(variant).input.type, structure(variant).output.shape[-1])


def test_wrong_number_of_outputs_and_wrong_type_are_refused(structure):
    """Both counts are named; an input of another type than asked for too."""
    model = structure("int8")
    classes = model.output.shape[-1]
    with pytest.raises(QualityError, match=f"{classes} outputs for {classes + 1} labels"):
        gates.check_structure(model, "int8", model.input.type, classes + 1)
    other = "int8" if model.input.type == "uint8" else "uint8"
    with pytest.raises(QualityError, match=f"not {other}"):
        gates.check_structure(model, "int8", other, classes)
