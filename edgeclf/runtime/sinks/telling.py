"""What the sinks that tell other programs share: which events reach them, and complaints that are said once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Protocol

from edgeclf.core.image import Pixels
from edgeclf.runtime.events import Event, is_change
from edgeclf.runtime.sinks.sink import Background, Writer


class Complaints:
    """Says each kind of trouble once, until all is well again."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn, self._kind = warn, ""

    def say(self, kind: str, message: str) -> None:
        if kind != self._kind:
            self._kind = kind
            self._warn(message)

    def well(self) -> None:
        self._kind = ""


class Teller(Writer, Protocol):
    """A writer that counts itself what could not be told, in `lost`, and says why; it raises nothing that was foreseen."""

    lost: int


class Selected:
    """A sink that hands the events that are `wanted` to a slow writer in a thread of its own.

    `wanted` is asked in the loop's thread, so that what nobody wants costs next to nothing. `ending` is set when the sink is
    closed, for a writer that waits. The newest `queue` events wait for the writer; older ones are lost and counted.
    Events are collected for `apart_s` seconds between writes.
    """

    def __init__(
        self,
        name: str,
        writer: Teller,
        wanted: Callable[[Event], bool],
        queue: int,
        ending: threading.Event | None = None,
        warn: Callable[[str], None] = lambda message: None,
        apart_s: float = 0.0,
    ) -> None:
        self.name = name
        self._writer, self._wanted, self._ending = writer, wanted, ending
        self._background = Background(writer, name, on_trouble=warn, queue=queue, apart_s=apart_s)

    @property
    def lost(self) -> int:
        return self._background.lost + self._writer.lost

    def emit(self, event: Event, image: Pixels | None = None) -> None:
        if self._wanted(event):
            self._background.emit(event)

    def end(self) -> None:
        if self._ending:
            self._ending.set()
        self._background.end()

    def close(self) -> bool:
        self.end()
        return self._background.close()


def changes(labels: Collection[str] = ()) -> Callable[[Event], bool]:
    """Whether an event is a change of the answer that lasts; to one of `labels`, when there are any."""
    return lambda event: is_change(event, labels)
