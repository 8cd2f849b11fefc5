"""Hub: one picture and one status, made once and handed to everybody who watches; a slow reader gets the newest, not all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from edgeclf.core.errors import DataError
from edgeclf.runtime.events import Seen, record
from edgeclf.runtime.web.board import Board
from edgeclf.runtime.web.pictures import APART_S, Newest

SHARE = 0.03  # of one core's time that the server's thread may take for pictures, so that they come slower where it is scarce
LONGEST_S = 1.0  # but no slower than this; it is also the longest silence
LABEL_APART_S = 0.2  # of the server-sent events; changes come at once


Pictures: TypeAlias = dict[int, tuple[int, bytes]]
"""By place of the source: the number of its newest frame, and the message that carries it."""


class Full(Exception):
    """As many watch as may."""


@dataclass(eq=False)
class Watcher:
    """One reader of the stream, and what waits for it: the newest status, and the newest picture of each source."""

    places: frozenset[int]
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    status: bytes = b""
    pictures: dict[int, bytes] = field(default_factory=dict)
    had: dict[int, int] = field(default_factory=dict)

    def offer(self, status: bytes, pictures: Pictures) -> None:
        self.status = status
        for place, (frame, picture) in pictures.items():
            if place in self.places and self.had.get(place) != frame:
                self.had[place], self.pictures[place] = frame, picture
        self.woken.set()

    def collect(self) -> bytes:
        """Everything that waits, status first; afterwards nothing waits."""
        parts = [self.status, *self.pictures.values()]
        self.pictures.clear()
        self.woken.clear()
        return b"".join(parts)


class Hub:
    """Lives in the server's event loop, and does nothing while nobody watches."""

    def __init__(self, board: Board, most: int, on_trouble: Callable[[str], None] = lambda message: None) -> None:
        """`most` is how many may watch at once; `on_trouble` is told, once, why there are no pictures."""
        self._on_trouble, self._failing = on_trouble, False
        self.board, self.newest = board, Newest(board)
        self._most = most
        self._made: Pictures = {}
        self._watchers: set[Watcher] = set()
        self._readers = 0
        self._somebody = asyncio.Event()
        self._closing = asyncio.Event()

    @property
    def watching(self) -> int:
        """How many streams are open, those of server-sent events included."""
        return self._readers

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._readers >= self._most:
            raise Full
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    def close(self) -> None:
        """End every stream."""
        self._closing.set()
        self._somebody.set()
        for watcher in self._watchers:
            watcher.woken.set()

    async def run(self) -> None:
        """Make pictures at the pace that their cost allows, until `close`."""
        while not self._closing.is_set():
            self._somebody.clear()
            if not self._watchers:
                await self._somebody.wait()
            busy_s = time.thread_time()
            while self._watchers and not self._closing.is_set():
                self._try_to_hand_out()
                now_s = time.thread_time()
                await self._rest(pause(now_s - busy_s, crowding()))
                busy_s = now_s

    async def _rest(self, seconds: float) -> None:
        """Sleep, but not beyond `close`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    def _try_to_hand_out(self) -> None:
        try:
            self._hand_out()
            self._failing = False
        except Exception as error:  # one status that cannot be told must not end all that follow
            if not self._failing:
                self._on_trouble(f"web: no picture can be shown: {type(error).__name__}: {error}")
            self._failing = True

    def _hand_out(self) -> None:
        wanted = frozenset[int]().union(*(watcher.places for watcher in self._watchers))
        status, pictures = self.status_message(), self._pictures(wanted)
        for watcher in self._watchers:
            watcher.offer(status, pictures)

    def _pictures(self, places: frozenset[int]) -> Pictures:
        for place in sorted(places):
            with contextlib.suppress(DataError):
                found = self.newest.picture(place)
                if found and self._made.get(place, (-1,))[0] != found[0]:
                    self._made[place] = found[0], picture_message(place, *found)
        return {place: self._made[place] for place in places if place in self._made}

    def status(self) -> dict[str, Any]:
        return {**self.board.status(), "watching": self.watching, "most_watching": self._most}

    def status_message(self) -> bytes:
        return message({"type": "status", **self.status()})

    async def stream(self, places: frozenset[int]) -> AsyncIterator[bytes]:
        """Status, history and pictures as messages, for the page. Raises Full."""
        with self._place():
            watcher = Watcher(places)
            self._watchers.add(watcher)
            self._somebody.set()
            number = 0
            try:
                watcher.offer(self.status_message(), self._pictures(places))
                while not self._closing.is_set():
                    entries = self.board.since(number)
                    number = entries[-1].number if entries else number
                    yield watcher.collect() + b"".join(message({"type": "event", **entry.to_json()}) for entry in entries)
                    await watcher.woken.wait()
            finally:
                self._watchers.discard(watcher)

    async def events(self, had: str = "") -> AsyncIterator[bytes]:
        """Server-sent events: history after the one that the reader says it had, then what comes. Raises Full.

        Every change is told, and of labels the newest a few times a second.
        """
        run, _, last = had.partition("-")
        number = int(last) if run == self.board.run and last.isascii() and last.isdigit() and len(last) < 18 else 0
        with self._place():
            health, frames = self.board.health(), {shown.name: -1 for shown in self.board.shown()}
            quiet_s = time.monotonic()
            yield b"retry: 2000\n\n"
            while not self._closing.is_set():
                parts = []
                for entry in self.board.since(number):
                    number = entry.number
                    if isinstance(entry.event, Seen):
                        frames[entry.event.source] = entry.event.frame
                    parts.append(sent_event(entry.to_json(), f"{self.board.run}-{number}"))
                for shown in self.board.shown():
                    if shown.seen and frames[shown.name] != shown.seen.frame:
                        frames[shown.name] = shown.seen.frame
                        parts.append(sent_event(record(shown.seen)))
                if (now := self.board.health()) is not health and now is not None:
                    health = now
                    parts.append(sent_event(record(now)))
                if parts or time.monotonic() - quiet_s > LONGEST_S:
                    quiet_s = time.monotonic()
                    yield b"".join(parts) or b": still here\n\n"
                await self._rest(LABEL_APART_S)


def pause(cost_s: float, crowd: float = 1.0) -> float:
    """Seconds until the next picture when the last one took so much of the thread's time, so that it takes SHARE of a core.

    Where `crowd` threads want each core, everybody gets less of it, and so do pictures.
    """
    return min(LONGEST_S, max(APART_S, cost_s / SHARE * max(1.0, crowd)))


def crowding() -> float:
    """How many threads wanted each core over the last minute; 0 where the system does not say."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (OSError, AttributeError):
        return 0.0


def message(value: dict[str, Any]) -> bytes:
    """One line of JSON."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def picture_message(place: int, frame: int, data: bytes) -> bytes:
    """A line that says how many bytes follow, and the JPEG."""
    return message({"type": "picture", "source": place, "frame": frame, "bytes": len(data)}) + data


def sent_event(value: dict[str, Any], identity: str = "") -> bytes:
    """As "Server-sent events" of the HTML standard has it; `identity` is what a reader says it had when it comes back."""
    head = f"id: {identity}\n" if identity else ""
    return f"{head}event: {value['event']}\ndata: {json.dumps(value, allow_nan=False)}\n\n".encode()
