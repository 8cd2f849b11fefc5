"""Lines for a person: what the loop sees, on a terminal or in a log."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from typing import TextIO

from edgeclf.runtime.events import Event, Health, Seen, Skipped, describe

REFRESH_S = 0.1
REPEAT_S = 1.0


class Lines:
    """Writes for a person: one line kept up to date on a terminal, else a line when an answer changes, or each second.

    With `several` sources each line names its own, and the one line of a terminal tells of all of them.
    """

    def __init__(self, stream: TextIO, terminal: bool | None = None, several: bool = False) -> None:
        self._stream, self._several = stream, several
        self._terminal = stream.isatty() if terminal is None else terminal
        self._shown_s = -REFRESH_S
        self._written_s: dict[str, float] = {}
        self._newest: dict[str, str] = {}
        self._open = False

    def write(self, events: Sequence[Event]) -> None:
        for event in events:
            if self._terminal:
                self._show(event, last=event is events[-1])
            elif self._is_due(event):
                self._stream.write(describe(event, self._several) + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the line that was kept up to date."""
        if self._open:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write("\n")
                self._stream.flush()
        self._open = False

    def _is_due(self, event: Event) -> bool:
        if isinstance(event, Health):
            return False
        now = time.monotonic()
        recent = now - self._written_s.get(event.source, -REPEAT_S) < REPEAT_S
        if isinstance(event, Seen) and not event.decision.changed and recent:
            return False
        self._written_s[event.source] = now
        return True

    def _show(self, event: Event, last: bool) -> None:
        if isinstance(event, Health):
            return
        self._newest[event.source] = text = describe(event, self._several)
        now = time.monotonic()
        # Every event would be more than an eye can read or a slow terminal can take.
        if isinstance(event, Seen) and (not last or now - self._shown_s < REFRESH_S):
            return
        self._shown_s = now
        width = shutil.get_terminal_size().columns - 1
        stays = isinstance(event, Skipped)
        if self._several and not stays:
            share = (width - 3 * (len(self._newest) - 1)) // len(self._newest)
            text = " | ".join(line.partition("  ")[2][:share].rstrip() for line in self._newest.values())
        self._stream.write(f"\r\x1b[K{text[:width]}")
        if stays:
            self._stream.write("\n")
        self._open = not stays
