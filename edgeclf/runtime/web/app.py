"""The page's addresses, and who may ask for them: static files known by name, the JSON API, the stream of pictures.

    GET  /                   the page                     GET  /api/status     everything but pictures, as JSON
    GET  /api/frame.jpg      newest frame, ?source=0      GET  /api/events     server-sent events
    POST /api/classify       a picture, ?explain=1        GET  /api/stream     status, events and pictures, for the page

An error is `{"error": "one line"}` with the status that fits it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeclf.core.errors import DataError, EdgeclfError
from edgeclf.core.text import printable
from edgeclf.runtime.web.desk import Busy, Closing, Desk
from edgeclf.runtime.web.door import Door, Refusal
from edgeclf.runtime.web.hub import Full, Hub

STATIC = Path(__file__).resolve().parent / "static"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
PAGE, LOGIN = "index.html", "login.html"
COOKIE_S = 30 * 24 * 3600
WRONG_TOKEN_S = 0.5
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """Of one request: bytes of an upload, and seconds for reading it and for its answer."""

    upload_bytes: int
    body_s: float = 60.0
    answer_s: float = 120.0


class Guard:
    """Turns away what the door refuses, swaps `?token=` for a cookie, and puts the headers of safety on every answer."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door
        self._login = (STATIC / LOGIN).read_bytes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                had = {name for name, _ in message["headers"]}
                more = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in had]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        if scope["type"] != "http":
            return
        answer = self._answer(scope)
        if answer is not None and answer.status_code == 401 and _tried(scope):
            await asyncio.sleep(WRONG_TOKEN_S)
        await (answer or self._app)(scope, receive, send_safe)

    def _answer(self, scope: Scope) -> Response | None:
        """The answer that needs no page: a refusal, or the cookie for a token."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path: str = scope["path"]
        refusal = self._door.refuses(path, headers)
        if refusal is not None and refusal.status != 401:
            return JSONResponse({"error": refusal.reason}, refusal.status)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        token = dict(query).get("token")
        if self._door.token and token is not None:
            if self._door.opens(token):
                return self._with_cookie(path, [pair for pair in query if pair[0] != "token"])
            refusal = Refusal(401, "that is not the token of this page")
        return self._refusal(path, refusal) if refusal else None

    def _with_cookie(self, path: str, query: list[tuple[str, str]]) -> Response:
        safe = "/" + path.lstrip("/\\")  # "//elsewhere" would lead to another host
        answer = RedirectResponse(safe + ("?" + urlencode(query) if query else ""), 303)
        answer.set_cookie(
            self._door.cookie_name, self._door.cookie_value, max_age=COOKIE_S, httponly=True, samesite="strict", path="/"
        )
        return answer

    def _refusal(self, path: str, refusal: Refusal) -> Response:
        if path == "/":
            return Response(self._login, refusal.status, media_type="text/html")
        return JSONResponse({"error": refusal.reason}, refusal.status)


def _tried(scope: Scope) -> bool:
    """Whether a token was given, which then was wrong: guessing is made slow."""
    return b"token=" in scope["query_string"] or any(name == b"authorization" for name, _ in scope["headers"])


def make_app(hub: Hub, desk: Desk, door: Door, limits: Limits) -> ASGIApp:
    """The whole of it as one ASGI application; `hub.run` must run beside it."""

    async def status(request: Request) -> Response:
        return JSONResponse(hub.status())

    async def frame(request: Request) -> Response:
        place = _places(request, hub)[0] if request.query_params.get("source") else 0
        found = hub.newest.picture(place)
        if found is None:
            raise HTTPException(404, "that source has given no picture yet")
        return Response(found[1], media_type="image/jpeg", headers={"x-frame": str(found[0])})

    async def stream(request: Request) -> Response:
        places = frozenset(_places(request, hub))
        return await _streamed(hub.stream(places), "application/octet-stream")

    async def events(request: Request) -> Response:
        return await _streamed(hub.events(request.headers.get("last-event-id", "")), "text/event-stream")

    async def classify(request: Request) -> Response:
        data = await _body(request, limits)
        explain = request.query_params.get("explain", "0") not in ("0", "", "false")
        async with asyncio.timeout(limits.answer_s):
            return JSONResponse(await asyncio.wrap_future(desk.ask(data, explain)))

    routes = [
        *(Route("/" if path.name == PAGE else f"/{path.name}", _static(path)) for path in _files()),
        Route("/api/status", status),
        Route("/api/frame.jpg", frame),
        Route("/api/stream", stream),
        Route("/api/events", events),
        Route("/api/classify", classify, methods=["POST"]),
    ]
    handlers = {
        HTTPException: _on_http, EdgeclfError: _on_foreseen, Full: _on_full, TimeoutError: _on_timeout,
        ClientDisconnect: _on_gone, Exception: _on_unforeseen,
    }  # fmt: skip
    return Guard(Starlette(routes=routes, exception_handlers=handlers), door)  # type: ignore[arg-type]


def _files() -> list[Path]:
    return [path for path in sorted(STATIC.iterdir()) if path.suffix in TYPES and path.name != LOGIN]


def _static(path: Path) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint for one file, read once: what is asked for is never made into a path."""
    data, kind = path.read_bytes(), TYPES[path.suffix]

    async def give(request: Request) -> Response:
        return Response(data, media_type=kind, headers={"cache-control": "no-cache"})

    return give


def _places(request: Request, hub: Hub) -> list[int]:
    """The sources asked for by number, in `?source=0&source=2`; all of them when none is named. Raises HTTPException."""
    count, asked = len(hub.board.shown()), request.query_params.getlist("source")
    if not all(text.isascii() and text.isdigit() and len(text) < 5 and int(text) < count for text in asked):
        raise HTTPException(404, f"there is no such source; they are numbered from 0 to {count - 1}")
    return [int(text) for text in asked] or list(range(count))


async def _streamed(parts: AsyncIterator[bytes], kind: str) -> Response:
    """The first part is made before the answer begins, so that a full house can still be told. Raises Full."""
    first = await anext(parts)

    async def all_parts() -> AsyncIterator[bytes]:
        try:
            yield first
            async for part in parts:
                yield part
        finally:
            await parts.aclose()  # type: ignore[attr-defined]

    return StreamingResponse(all_parts(), media_type=kind, headers={"x-accel-buffering": "no"})


async def _body(request: Request, limits: Limits) -> bytes:
    """The body, of a bounded size, in a bounded time. Raises HTTPException and TimeoutError."""
    too_large = HTTPException(413, f"the picture is larger than {limits.upload_bytes >> 20} MB", {"connection": "close"})
    said = request.headers.get("content-length", "0")
    if not said.isdigit() or int(said) > limits.upload_bytes:
        raise too_large
    data = bytearray()
    async with asyncio.timeout(limits.body_s):
        async for part in request.stream():
            data += part
            if len(data) > limits.upload_bytes:
                raise too_large
    return bytes(data)


def _error(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": printable(reason)}, status, headers)


async def _on_http(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail, dict(error.headers or {}))


async def _on_foreseen(request: Request, error: EdgeclfError) -> Response:
    if isinstance(error, (Busy, Closing)):
        return _error(503, str(error), {"retry-after": "1"})
    return _error(422 if isinstance(error, DataError) else 500, str(error))


async def _on_full(request: Request, error: Full) -> Response:
    return _error(503, "as many watch as are allowed; see web.clients", {"retry-after": "10"})


async def _on_timeout(request: Request, error: TimeoutError) -> Response:
    return _error(408, "that took too long", {"connection": "close"})


async def _on_gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=400)


async def _on_unforeseen(request: Request, error: Exception) -> Response:
    return _error(500, f"unforeseen: {type(error).__name__}")
