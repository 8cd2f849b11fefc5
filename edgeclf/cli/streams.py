"""Standard input, output and error as a caller may leave them: closed, full, or of an encoding that lacks a character."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def settle() -> None:
    """Open what is closed, and make no character an error.

    A closed stream leads to the null device: a file that is opened next would take its number and get what C libraries
    write there. File names that are not UTF-8 come out as the bytes they are, letters that the encoding lacks as `\\xe9`.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # takes the lowest free number, which is this one
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  (lives as long as we)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "backslashreplace")


def abandon_output() -> None:
    """What Python still holds back for standard output goes nowhere, so that it does not fail once more at the end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_full(error: OSError) -> bool:
    """Whether standard output refused: every other file's error names the file."""
    return error.filename is None and error.errno in FULL
