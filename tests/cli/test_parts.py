"""Small parts of the verbs that need no model to be tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeclf.cli.info import _sample
from edgeclf.cli.measure import _worst
from edgeclf.cli.options import pair
from edgeclf.core.catalogue import from_arrays
from edgeclf.core.errors import ConfigError


def test_normalize_is_mean_then_std() -> None:
    """The other way about, pictures would be off and no message would say so."""
    assert pair("127.5,64") == (127.5, 64.0)
    assert pair("0,1") == (0.0, 1.0)
    with pytest.raises(ConfigError, match="STD must be above 0"):
        pair("1,0")


def test_of_many_classes_the_pairs_mixed_up_most_come_first() -> None:
    """True class, then what it was called; right answers are no mistake, equal counts stay in the order of the classes."""
    confusion = ((9, 1, 4), (4, 9, 0), (7, 0, 9))
    assert _worst(confusion) == [(7, 2, 0), (4, 0, 2), (4, 1, 0), (1, 0, 1)]
    assert _worst(confusion, most=1) == [(7, 2, 0)]


def test_inspected_pictures_are_as_wide_and_as_high_as_they_are() -> None:
    """Arrays of 6 pixels across and 4 down."""
    catalogue = from_arrays(Path("x"), np.zeros((4, 4, 6, 3), np.uint8), np.arange(4) % 2, ("a", "b"))
    found = _sample(catalogue)
    assert (found["width"], found["height"], found["sampled"]) == ([6, 6], [4, 4], 4)
