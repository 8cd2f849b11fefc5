"""Source, Reader and Picture: what every kind of frame source is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edgeclf.core.image import Pixels


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture from a source: BGR uint8 (height, width, 3), and its file name where it has one.

    `taken_s` is when the source gave it, by the monotonic clock, before it was decoded; 0 means when it was read.
    `decode_s` is what decoding took, where it can be told apart.
    """

    image: Pixels
    name: str = ""
    taken_s: float = 0.0
    decode_s: float = 0.0


class Reader(Protocol):
    """An open source.

    `interval_s` is the time between two pictures when they are to be played at the source's own rate, 0 when the source
    sets the pace itself. `note` says, once `read` gave None, what was wrong with the end, as `after 14 of 30 frames`.

    Two members may be left out: `remark`, what a person should know about the opened source, as that it gives another size
    than was asked for; and `abort()`, which another thread calls to make a `read` that blocks come back.
    """

    interval_s: float
    note: str

    def read(self) -> Picture | None:
        """The next picture; None at the end. Raises DataError for one that is broken, SourceError when the source is lost."""

    def close(self) -> None:
        """Release the camera, file or connection; called by the thread that reads."""


@dataclass(frozen=True)
class Source:
    """Something that pictures come from, not opened yet.

    `name` is fit to be shown: credentials are removed. `live`: only the newest picture counts, else every one does.
    `reopen`: when it is lost, it is opened again. `plugged` tells of a camera what is there now: None for nothing, and
    something else after it was plugged in again. `answers` tells of a network address whether anything listens there; it
    takes up to a second.
    """

    name: str
    open: Callable[[], Reader]
    live: bool
    reopen: bool = False
    plugged: Callable[[], object] | None = None
    answers: Callable[[], bool] | None = None
