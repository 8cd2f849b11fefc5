"""Events as rows of a CSV file, for a spreadsheet or pandas."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.runtime.events import Event
from edgeclf.runtime.sinks.appended import Appended
from edgeclf.runtime.sinks.rows import COLUMNS, row

LONGEST_LINE = 1 << 16
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class CsvLines:
    """Writes one row an event, in UTF-8, with the columns of COLUMNS named in the first line.

    Text that a spreadsheet would take for a formula gets an apostrophe before it (OWASP, "CSV injection"), because labels
    come from files that somebody else may have made. Line ends in text become spaces: a row is a line.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file with other columns, StorageError when it cannot be opened for appending."""
        self._path = path
        self._file = Appended(path, self._prepare)

    def write(self, events: Sequence[Event]) -> None:
        self._file.append(b"".join(_line([_cell(value) for value in row(event)]) for event in events))

    def close(self) -> None:
        self._file.close()

    def _prepare(self, file: int) -> bytes:
        """The header of an empty file; of another, the header is checked and what a kill left of a row is removed."""
        size = os.fstat(file).st_size
        header = _line(list(COLUMNS))
        start = os.pread(file, LONGEST_LINE, 0)
        if header.startswith(start):  # nothing, or a header that a kill cut short
            os.ftruncate(file, 0)
            return header
        first = start.partition(b"\n")[0].rstrip(b"\r").removeprefix(b"\xef\xbb\xbf").decode(errors="replace")
        if first.encode() != header.rstrip(b"\n"):
            raise ConfigError(f"{self._path}: is not a CSV file with edgeclf's columns (it begins {first[:40]!r}); name another")
        end = os.pread(file, LONGEST_LINE, max(0, size - LONGEST_LINE))
        if not end.endswith(b"\n"):
            os.ftruncate(file, size - len(end) + end.rfind(b"\n") + 1)
        return b""


def _line(cells: Sequence[Any]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = " ".join(value.splitlines())
    return f"'{text}" if text.startswith(FORMULA) else text
