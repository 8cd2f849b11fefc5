"""Webhook: what is posted, when it is tried again, what is never shown, and servers that mean no good."""

from __future__ import annotations

import base64
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from broker import wait_for

from edgeclf.runtime.decision import Decision
from edgeclf.runtime.events import Seen, Stages
from edgeclf.runtime.sinks import webhook as module
from edgeclf.runtime.sinks.telling import Selected, changes
from edgeclf.runtime.sinks.webhook import Webhook


def seen(label: str = "cat", changed: bool = True) -> Seen:
    return Seen(0.0, "cam", 1, Decision(label, 0.9, label, changed, ((label, 0.9),)), Stages(0, 1, 2, 0, 5), 30.0)


class Server:
    """Answers with these codes, one a request, and keeps what it was sent."""

    def __init__(self, *codes: int, headers: dict[str, str] | None = None) -> None:
        self.got: list[tuple[str, dict[str, str], Any]] = []
        server, left = self, list(codes)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.got.append((self.path, dict(self.headers), json.loads(body)))
                self.send_response(left.pop(0) if left else 204)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITS_S", (0.02, 0.05))


def posted(address: str, *events: Seen, timeout_s: float = 5.0) -> tuple[Webhook, list[str]]:
    warnings: list[str] = []
    hook = Webhook(address, timeout_s, threading.Event(), warnings.append)
    hook.write(events)
    return hook, warnings


def test_a_change_is_posted_as_the_event_that_files_get_too() -> None:
    """JSON, with the user of the address as basic authentication, which stands nowhere else."""
    with Server() as server:
        hook, warnings = posted(f"http://keeper:s3cr3t@127.0.0.1:{server.port}/t0ken?x=1", seen("dog"))
    path, headers, body = server.got[0]
    assert (path, headers["Content-Type"]) == ("/t0ken?x=1", "application/json")
    assert headers["Authorization"] == f"Basic {base64.b64encode(b'keeper:s3cr3t').decode()}"
    assert headers["Host"] == f"127.0.0.1:{server.port}"
    assert (body["event"], body["label"], body["changed"]) == ("label", "dog", True)
    assert (hook.lost, warnings, len(server.got)) == (0, [], 1)


def test_a_passing_trouble_is_tried_again() -> None:
    """Twice, and nothing is said when it works out."""
    with Server(503, 500, 200) as server:
        hook, warnings = posted(f"http://127.0.0.1:{server.port}/", seen())
    assert (len(server.got), hook.lost, warnings) == (3, 0, [])


def test_a_lasting_trouble_is_said_once_and_counted() -> None:
    """Until it works again; the address is shown without its path."""
    with Server(*[503] * 6, 200, *[503] * 3) as server:
        hook, warnings = posted(f"http://127.0.0.1:{server.port}/t0ken", *[seen()] * 4)
    assert len(server.got) == 10
    assert hook.lost == 3
    assert warnings == [f"webhook: http://127.0.0.1:{server.port}: answered 503; changes are being lost"] * 2


def test_a_refusal_is_not_tried_again() -> None:
    """What is wrong with the request stays wrong."""
    with Server(403) as server:
        hook, warnings = posted(f"http://127.0.0.1:{server.port}/", seen())
    assert (len(server.got), hook.lost) == (1, 1)
    assert "answered 403, access refused" in warnings[0]


def test_a_redirect_is_not_followed() -> None:
    """Neither to another host nor to the same one; the answer says where to look."""
    with Server() as other, Server(307, headers={"Location": f"http://127.0.0.1:{other.port}/"}) as server:
        _, warnings = posted(f"http://127.0.0.1:{server.port}/", seen())
    assert other.got == []
    assert "a redirect, which is not followed" in warnings[0]


def test_nobody_there_is_one_warning() -> None:
    """Tried three times."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    hook, warnings = posted(f"http://127.0.0.1:{port}/", seen(), seen())
    assert hook.lost == 2
    assert warnings == [f"webhook: http://127.0.0.1:{port}: Connection refused; changes are being lost"]


@contextmanager
def talking(*parts: bytes, pause_s: float = 0.0) -> Iterator[int]:
    """A server that says these parts to everybody, whatever it is asked, for ever."""
    ended = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))

    def talk(client: socket.socket) -> None:
        with client:
            try:
                while not ended.wait(pause_s):
                    for part in parts:
                        client.sendall(part)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        ended.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.mark.parametrize(
    ("parts", "pause_s"),
    [
        ((), 0.05),  # silence
        ((b"H",), 0.05),  # a byte now and then
        ((b"HTTP/1.1 200 OK\r\nX: " + b"s3cr3t" * 20_000,), 0.0),  # a head without end
        ((b"220 mail.example.org s3cr3t\r\n",), 0.05),  # another protocol
    ],
)
def test_a_server_that_means_no_good_is_left_in_time(parts: tuple[bytes, ...], pause_s: float) -> None:
    """Three tries of at most the time-out; what it says is not repeated."""
    with talking(*parts, pause_s=pause_s) as port:
        began = time.monotonic()
        hook, warnings = posted(f"http://127.0.0.1:{port}/", seen(), timeout_s=0.3)
        assert time.monotonic() - began < 5
    assert hook.lost == 1
    assert len(warnings) == 1
    assert "s3cr3t" not in warnings[0]


def test_an_endless_answer_is_not_read() -> None:
    """The head says that it was taken; the body interests nobody."""
    with talking(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65536) as port:
        hook, warnings = posted(f"http://127.0.0.1:{port}/", seen(), timeout_s=3)
    assert (hook.lost, warnings) == (0, [])


def test_the_end_of_the_run_does_not_wait_for_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing takes at most its second."""
    monkeypatch.setattr(module, "WAITS_S", (30.0, 30.0))
    with Server(503, 503, 503) as server:
        ending = threading.Event()
        hook = Webhook(f"http://127.0.0.1:{server.port}/", 5, ending, lambda message: None)
        sink = Selected("webhook", hook, changes(), 8, ending)
        sink.emit(seen())
        wait_for(lambda: server.got)
        began = time.monotonic()
        assert sink.close()
        assert time.monotonic() - began < 2
        assert sink.lost == 1


def test_only_changes_are_told_and_only_to_the_labels_asked_for() -> None:
    """Steady frames cost the loop one look."""
    wanted = changes(("dog",))
    assert [wanted(seen("dog")), wanted(seen("cat")), wanted(seen("dog", changed=False))] == [True, False, False]
    assert changes()(seen("cat"))
