"""HTTP/1.1 as uvicorn speaks it, with what it leaves out: an end to requests that never finish and answers nobody reads."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True)
class Patience:
    """Seconds for the head of a request to be whole, for its body, and for a reader to take what is waiting for it."""

    head_s: float = 10.0
    body_s: float = 60.0
    read_s: float = 10.0


def patient(patience: Patience, most: int) -> type[asyncio.Protocol]:
    """The protocol with these limits, and at most that many connections; one more is closed at once."""

    class Patient(H11Protocol):
        _state: object = None
        _arriving: asyncio.TimerHandle | None = None
        _leaving: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.abort()
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._arriving, self._leaving):
                if timer:
                    timer.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._leaving = self.loop.call_later(patience.read_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._leaving:
                self._leaving.cancel()

        def _watch(self) -> None:
            """One timer for each part of a request; a byte now and then does not start it afresh."""
            state = self.conn.their_state
            if state is self._state:
                return
            self._state = state
            if self._arriving:
                self._arriving.cancel()
            seconds = {h11.IDLE: patience.head_s, h11.SEND_BODY: patience.body_s}.get(state)
            self._arriving = self.loop.call_later(seconds, self.transport.abort) if seconds else None

    return Patient
