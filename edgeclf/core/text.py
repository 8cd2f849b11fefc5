"""Text from outside, names and labels: whether it may stand on a line, and how it may be shown."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence

_USER = re.compile(r"://(?:[^\s/?#@:]*:(?=\S)(?:(?!://)[^\n])*@|\S*@)")
_DENIED = re.compile(  # as Arrow, botocore and fsspec say it
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_SIGNATURE|SIGNATURE_DOES_NOT_MATCH|HTTP response code 403|Forbidden"
)
_STEERING = frozenset(("Cc", "Cs", "Zl", "Zp"))  # control characters, broken encoding, line and paragraph ends


def has_control_character(text: str) -> bool:
    """Whether `text` could move a terminal's cursor, break a line, or cannot be written as UTF-8."""
    return not text.isprintable() and any(unicodedata.category(c) in _STEERING for c in text)


def printable(text: str) -> str:
    """`text` with a question mark for everything that is not printable, so that it cannot steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def nearest(word: str, known: Sequence[str], most: int = 12) -> str:
    """The end of a message about an unknown `word`: the known one that is nearest to it, and what else is known."""
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {printable(close[0])!r}?" if close else ""
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return f"{hint} (known: {', '.join(printable(name) for name in known[:most])}{more})"


def redacted(text: str) -> str:
    """`text` without the user and password of any address in it; for messages and for what is stored.

    A password may hold any character but a line end or `://`, so what follows `://NAME:` is taken for one up to the last `@`
    of the line or of what stands before the next address: rather too much is left out than too little.
    """
    return _USER.sub("://", text)


def one_line(text: str, most: int = 300) -> str:
    """`text` of another program for a message: the first `most` characters, in one line, without secrets."""
    return printable(" ".join(redacted(text).split()))[:most]


def refusal(error: Exception) -> str:
    """Why a disk, or object storage here or far, refused: in one line, without secrets."""
    text = str(getattr(error, "strerror", None) or error)
    if _DENIED.search(text):
        return "access is denied; check the credentials and the bucket's rules"
    return one_line(text) or type(error).__name__
