"""Small parts of the verbs that need no model to be tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeclf.cli.info import _sample
from edgeclf.cli.options import pair
from edgeclf.core.catalogue import from_arrays
from edgeclf.core.errors import ConfigError


def test_normalize_is_mean_then_std() -> None:
    """The other way about, pictures would be off and no message would say so."""
    assert pair("127.5,64") == (127.5, 64.0)
    assert pair("0,1") == (0.0, 1.0)
    with pytest.raises(ConfigError, match="STD must be above 0"):
        pair("1,0")


def test_inspected_pictures_are_as_wide_and_as_high_as_they_are() -> None:
    """Arrays of 6 pixels across and 4 down."""
    catalogue = from_arrays(Path("x"), np.zeros((4, 4, 6, 3), np.uint8), np.arange(4) % 2, ("a", "b"))
    found = _sample(catalogue)
    assert (found["width"], found["height"], found["sampled"]) == ([6, 6], [4, 4], 4)
