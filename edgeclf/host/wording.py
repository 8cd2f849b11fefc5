"""Numbers as text: points, sizes, times, ratios; rounded so that the text never claims more than the number."""

from __future__ import annotations

import math

UNKNOWN_TRAINING = (
    "The model was made elsewhere: if its training saw some of these pictures, accuracies are too good; differences are fair."
)


def points(share: float, pictures: int) -> str:
    """A share of pictures in percentage points, with the decimals that so many pictures can carry."""
    return f"{share * 100 + 0.0:.{decimals(pictures)}f}"


def at_most(share: float, pictures: int) -> str:
    """As `points`, rounded up: a bound must not be stated smaller than it is."""
    scale = 10 ** decimals(pictures)
    return f"{math.ceil(share * 100 * scale - 1e-9) / scale:.{decimals(pictures)}f}"


def decimals(pictures: int) -> int:
    """Decimals of a percentage over that many pictures: one picture should move the last digit, not hide behind it."""
    return 2 if pictures >= 1000 else 1


def size(count: int) -> str:
    """Bytes for people: 999 B, 34.2 kB, 1.25 MB (powers of ten)."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.3g} kB" if count < 999_500 else f"{count / 1e6:.3g} MB"


def times(factor: float) -> str:
    """A ratio with three digits: 2.64×, 18.8×."""
    return f"{factor:#.3g}×" if factor < 100 else f"{factor:.0f}×"


def p_value(p: float) -> str:
    """Two digits; `<0.001` below that."""
    return "<0.001" if p < 0.001 else f"{p:.2g}" if p < 0.0995 else f"{p:.2f}"


def milliseconds(value: float) -> str:
    """Three digits, never fewer: 0.0960, 1.25, 1250."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def signed(share: float, pictures: int) -> str:
    """Points with a sign, a true minus, and no sign on nought."""
    text = points(abs(share), pictures)
    if float(text) == 0:
        return text
    return ("−" if share < 0 else "+") + text
