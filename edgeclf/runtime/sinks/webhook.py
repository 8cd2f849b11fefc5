"""Webhook: each change as a POST of the event's JSON; a few tries, a deadline, and nothing read that is not needed."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable, Sequence

from edgeclf.core.addresses import Address, web_address
from edgeclf.runtime.events import Event, record
from edgeclf.runtime.sinks.telling import Complaints

WAITS_S = (0.5, 2.0)  # before the second and the third try
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers after which another try makes sense (RFC 9110 and 6585)


class Webhook:
    """A writer that posts one event after the other. Messages name scheme and host only: the rest may be a secret.

    Redirects are not followed, whoever they lead to; the answer's body is not read, and its head within `timeout_s`.
    """

    def __init__(self, address: str, timeout_s: float, ending: threading.Event, warn: Callable[[str], None]) -> None:
        """`ending`, once set, ends the waiting between tries."""
        self.lost = 0
        self._address = web_address(address)
        self._timeout_s, self._ending, self._complaints = timeout_s, ending, Complaints(warn)
        self._headers = {"Content-Type": "application/json", "User-Agent": "edgeclf", "Connection": "close"}
        if self._address.user:
            credentials = f"{self._address.user}:{self._address.password}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"

    def write(self, events: Sequence[Event]) -> None:
        for event in events:
            trouble = self._post(json.dumps(record(event), allow_nan=False).encode())
            if trouble:
                self.lost += 1
                self._complaints.say("trouble", f"webhook: {self._address}: {trouble}; changes are being lost")
            else:
                self._complaints.well()

    def _post(self, body: bytes) -> str:
        """Returns what went wrong, at the last try; nothing when the server took it."""
        for wait_s in (*WAITS_S, None):
            try:
                status = self._try(body)
                if 200 <= status < 300:
                    return ""
                trouble = f"answered {status}{_advice(status)}"
                if status not in PASSING:
                    return trouble
            except (OSError, http.client.HTTPException) as error:
                trouble = _worded(error)
            if wait_s is None or self._ending.wait(wait_s):
                break
        return trouble

    def _try(self, body: bytes) -> int:
        connection = _connection(self._address, self._timeout_s)
        try:
            connection.connect()
            # A server that sends a byte now and then would never meet a time-out between two bytes.
            deadline = threading.Timer(self._timeout_s, _cut, [connection.sock])
            deadline.daemon = True
            deadline.start()
            try:
                connection.request("POST", self._address.target, body, self._headers)
                return connection.getresponse().status
            finally:
                deadline.cancel()
        finally:
            connection.close()


def _connection(address: Address, timeout_s: float) -> http.client.HTTPConnection:
    if address.scheme == "https":
        return http.client.HTTPSConnection(address.host, address.port, timeout=timeout_s, context=ssl.create_default_context())
    return http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _worded(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "did not answer in time"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, http.client.HTTPException):
        return error.strerror
    return "did not give an HTTP answer in time"  # whatever it sent may hold anything


def _advice(status: int) -> str:
    if 300 <= status < 400:
        return ", a redirect, which is not followed: give the address that it leads to"
    return ", access refused" if status in (401, 403) else ""
