"""Text from outside, names and labels: whether it may stand on a line, and how it may be shown."""

from __future__ import annotations

import unicodedata

_STEERING = frozenset(("Cc", "Cs", "Zl", "Zp"))  # control characters, broken encoding, line and paragraph ends


def has_control_character(text: str) -> bool:
    """Whether `text` could move a terminal's cursor, break a line, or cannot be written as UTF-8."""
    return not text.isprintable() and any(unicodedata.category(c) in _STEERING for c in text)


def printable(text: str) -> str:
    """`text` with a question mark for everything that is not printable, so that it cannot steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
