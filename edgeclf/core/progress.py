"""How long work tells how far it is: a function that a progress bar, a log or nothing at all may stand behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

Report: TypeAlias = Callable[[int, int], None]
"""Called as `report(done, total)`."""

Bar: TypeAlias = Callable[[str], AbstractContextManager[Report]]
"""`with bar("reading pictures") as report:` opens one for a stage of the work."""


@contextlib.contextmanager
def no_bar(description: str) -> Iterator[Report]:
    """Progress that is not shown."""
    yield lambda done, total: None
