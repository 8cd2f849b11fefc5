"""The server's thread, as a sink of the live loop: it takes events and frames in passing and cannot slow it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence

import uvicorn

from edgeclf.core.errors import ConfigError
from edgeclf.core.image import Pixels
from edgeclf.core.live_settings import WebSection, host_and_port
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import Rules
from edgeclf.runtime.events import Event
from edgeclf.runtime.sinks.sink import CLOSE_S
from edgeclf.runtime.web.app import Limits, make_app
from edgeclf.runtime.web.board import Board
from edgeclf.runtime.web.desk import Desk
from edgeclf.runtime.web.door import LOCAL_NAMES, Door, given_token, host_name, is_loopback, new_token
from edgeclf.runtime.web.hub import Hub
from edgeclf.runtime.web.protocol import Patience, patient

DEFAULT_PORT = 8080
SEND_BUFFER = 128 << 10  # bytes, a few pictures
SPARE_CONNECTIONS = 32  # beside two for each who watches: files of the page, uploads, programs that ask for the status


class Web:
    """The sink. `address` is what to open, with the token in it when it was made here and nobody else knows it."""

    name = "web"

    def __init__(
        self,
        settings: WebSection,
        names: Sequence[str],
        classifier: Classifier,
        rules: Rules,
        warn: Callable[[str], None] = lambda message: None,
        patience: Patience | None = None,
    ) -> None:
        """Listens when this returns. Raises ConfigError for an address that cannot be had and a token that is none."""
        host, port = host_and_port(settings.address, DEFAULT_PORT)
        local, token = is_loopback(host), given_token(settings.token_file)
        shown_token = "" if token or local else new_token()
        self._board = Board(names, classifier.card.name, len(classifier.labels))
        self._desk = Desk(classifier, rules)
        self._settings, self._warn, self._patience = settings, warn, patience or Patience()
        own_names = frozenset(filter(None, map(host_name, settings.hosts)))
        self._door = Door(token or shown_token, port, LOCAL_NAMES | own_names | {host.lower()} if local else frozenset())
        self._socket = _listen(host, port)
        self.address = f"http://{_reachable(host)}:{port}/" + (f"?token={shown_token}" if shown_token else "")
        self.note = "asks for the token that you gave" if token else ""
        self._started = threading.Event()
        self._closing = False
        self._server: uvicorn.Server | None = None
        self._hub: Hub | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="edgeclf-web", daemon=True)
        self._thread.start()
        self._started.wait(CLOSE_S)

    def emit(self, event: Event, image: Pixels | None = None) -> None:
        self._board.take(event, image)

    def close(self) -> bool:
        self._closing = True
        self._desk.close()
        if self._loop and self._server and self._hub and not self._loop.is_closed():
            self._server.should_exit = True
            with contextlib.suppress(RuntimeError):  # it ended in the meantime
                self._loop.call_soon_threadsafe(self._hub.close)
        self._thread.join(CLOSE_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # the page must not end the classifying
            self._warn(f"web: the page has ended: {type(error).__name__}: {error}")
        finally:
            self._started.set()
            self._socket.close()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._hub = hub = Hub(self._board, self._settings.clients, self._warn)
        limits = Limits(self._settings.upload_mb << 20, self._patience.body_s)
        most = 2 * self._settings.clients + SPARE_CONNECTIONS
        config = uvicorn.Config(
            make_app(hub, self._desk, self._door, limits),
            http=patient(self._patience, most),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=16 << 10,
            backlog=most,
        )
        self._server = uvicorn.Server(config)
        self._server.should_exit = self._closing
        pictures = asyncio.create_task(hub.run())
        self._started.set()
        try:
            await self._server.serve([self._socket])
        finally:
            hub.close()
            await pictures


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
        # What the system holds back for a slow reader is old when it arrives; connections inherit this.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return found
    except (OSError, UnicodeError, ValueError) as error:
        number = getattr(error, "errno", None) or 0
        said = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--web {host}:{port}: cannot listen there ({said}); choose another port, as in --web {_bracketed(host)}:{port + 1}"
        ) from error


def _reachable(host: str) -> str:
    """The name to open: for "every address of this machine" the one that the network knows."""
    if host not in ("0.0.0.0", "::"):
        return _bracketed(host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # chooses a way and sends nothing (RFC 5737)
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
