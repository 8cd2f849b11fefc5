"""Events as JSON lines, in a file or on a stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from edgeclf.runtime.events import Event, record
from edgeclf.runtime.sinks.appended import Appended

_ENCODE = json.JSONEncoder(allow_nan=False).encode  # `json.dumps` would make an encoder for each line


class JsonLines:
    """Writes events as JSON lines, appended to a file or to a stream; a line that a kill cut short stays alone."""

    def __init__(self, target: Path | TextIO) -> None:
        """Raises StorageError when the file cannot be opened for appending."""
        self._stream = None if isinstance(target, Path) else target
        self._file = Appended(target) if isinstance(target, Path) else None

    def write(self, events: Sequence[Event]) -> None:
        text = "".join(_ENCODE(record(event)) + "\n" for event in events)
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()
        elif self._file is not None:
            self._file.append(text.encode("ascii"))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
