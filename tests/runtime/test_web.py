"""The preview page's server: who gets in, what is bounded, what is answered; over real sockets where time and bytes matter."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the web extra")
pytest.importorskip("uvicorn", reason="needs the web extra")

from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.live_settings import WebSection
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import Decision, Rules
from edgeclf.runtime.events import Health, Other, Seen, Skipped, SourceChanged, Stages
from edgeclf.runtime.web import door, hub, pictures
from edgeclf.runtime.web.app import WRONG_TOKEN_S
from edgeclf.runtime.web.board import SKIP_APART_S, Board
from edgeclf.runtime.web.desk import WAITING, Busy, Closing, Desk
from edgeclf.runtime.web.door import Door, given_token, is_loopback
from edgeclf.runtime.web.protocol import Patience
from edgeclf.runtime.web.server import Web

DEADLINE_S = 30
TOKEN = "correct-horse-battery"
PNG = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


def seen(frame: int = 0, source: str = "cam", changed: bool = False, other: Other | None = None) -> Seen:
    decision = Decision("cat", 0.8, "cat", changed, (("cat", 0.8), ("dog", 0.2)))
    return Seen(1e9 + frame, source, frame, decision, Stages(1, 2, 3, 4, 11), 25.0, "", other)


def picture(level: int = 90, width: int = 64, height: int = 48) -> Any:
    return np.full((height, width, 3), level, np.uint8)


def wait_for(condition: Callable[[], Any]) -> Any:
    ends = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came true")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def classifier(fixtures_folder: Path) -> Classifier:
    return Classifier.load(fixtures_folder / "tiny-int8.tflite", 1)


@pytest.fixture
def serve(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Web]]:
    """Starts a page for the source "cam"; every one is closed afterwards."""
    monkeypatch.delenv(door.TOKEN_VARIABLE, raising=False)
    running: list[Web] = []

    def start(
        patience: Patience | None = None, names: tuple[str, ...] = ("cam",), host: str = "127.0.0.1", **options: Any
    ) -> Web:
        section = WebSection(address=f"{host}:{free_port()}", **options)
        running.append(Web(section, names, classifier, Rules(), patience=patience))
        return running[-1]

    yield start
    for web in running:
        assert web.close(), "its thread did not end in time"


def port_of(web: Web) -> int:
    return int(web.address.split(":")[2].partition("/")[0])


def ask(web: Web, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """(status, body, headers by lower-case name); underscores in names of headers stand for hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", port_of(web), timeout=DEADLINE_S)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def plain(web: Web, request: str) -> socket.socket:
    """A connection on which so much was sent."""
    connection = socket.socket()
    connection.settimeout(DEADLINE_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)  # so that one who does not read is noticed soon
    connection.connect(("127.0.0.1", port_of(web)))
    connection.sendall(request.encode())
    return connection


def is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


# --- what is shown ---------------------------------------------------------------------------------------------------


def test_the_status_says_what_the_loop_saw(serve: Callable[..., Web]) -> None:
    """Newest answer, counts, states, health and agreement, as JSON that any program reads."""
    web = serve()
    web.emit(SourceChanged(1e9, "cam", "live", ""))
    for frame in range(3):
        web.emit(seen(frame, other=Other("cat" if frame else "dog", 0.6, bool(frame), 9.0)), picture())
    web.emit(Skipped(1e9, "cam", "frame 7: is grey"))
    web.emit(Health(1e9, {"cam": "stalled"}, 3, temperature_c=81.5, throttled=("under-voltage",)))
    code, body, headers = ask(web, "/api/status")
    said = json.loads(body)
    assert (code, headers["content-type"]) == (200, "application/json")
    assert (said["model"], said["classes"], said["frames"], said["skipped"], said["fps"]) == ("tiny", 4, 3, 1, 25.0)
    assert said["compared"] == {"frames": 3, "agreed": 2}
    assert said["sources"][0]["state"] == "stalled"
    assert said["sources"][0]["seen"]["label"] == "cat"
    assert said["health"]["temperature_c"] == 81.5
    assert said["health"]["throttled"] == ["under-voltage"]


def test_the_newest_frame_is_a_jpeg_of_bounded_size(serve: Callable[..., Web]) -> None:
    """A large frame comes scaled down; a source without one, or that is not there, is 404."""
    web = serve(names=("cam", "yard"))
    assert ask(web, "/api/frame.jpg")[0] == 404
    web.emit(seen(4), picture(200, 1920, 1080))
    code, body, headers = ask(web, "/api/frame.jpg?source=0")
    image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)
    assert (code, headers["content-type"], headers["x-frame"], image.shape) == (200, "image/jpeg", "4", (360, 640, 3))
    assert abs(int(image.mean()) - 200) < 3
    for missing in ("1", "2", "-1", "9999999999999", "x", "²"):
        assert ask(web, f"/api/frame.jpg?source={missing.encode().hex() if missing == '²' else missing}")[0] == 404


def test_a_picture_is_made_once_however_many_ask() -> None:
    """And not again within a fifteenth of a second, so that asking costs next to nothing."""
    board = Board(["cam"], "m", 2)
    newest = pictures.Newest(board)
    assert newest.picture(0) is None
    board.take(seen(0), picture())
    first = newest.picture(0)
    board.take(seen(1), picture())
    assert newest.picture(0) is first or newest.picture(0) == first
    assert wait_for(lambda: (newest.picture(0) or (0,))[0] == 1)


def test_pictures_come_slower_where_they_cost_more() -> None:
    """At most fifteen a second, a small share of a core, and never slower than one a second."""
    assert hub.pause(0) == pytest.approx(1 / 15)
    assert hub.pause(0.006) == pytest.approx(0.006 / hub.SHARE)
    assert hub.pause(0.006, crowd=0.2) == hub.pause(0.006)
    assert hub.pause(0.006, crowd=3) == pytest.approx(3 * hub.pause(0.006))
    assert hub.pause(5) == hub.LONGEST_S
    assert hub.crowding() >= 0


def messages(data: bytes) -> Iterator[dict[str, Any]]:
    """What the stream holds, the part that is not whole yet left out; pictures with their `data`."""
    while b"\n" in data:
        head, _, data = data.partition(b"\n")
        message = json.loads(head)
        if message["type"] == "picture":
            if len(data) < message["bytes"]:
                return
            message["data"], data = data[: message["bytes"]], data[message["bytes"] :]
        yield message


def read_stream(web: Web, until: Callable[[list[dict[str, Any]]], bool], query: str = "") -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(web), timeout=DEADLINE_S)
    connection.request("GET", f"/api/stream{query}")
    answer, data, found = connection.getresponse(), b"", list[dict[str, Any]]()
    while not until(found):
        data += answer.read1(1 << 16)
        found = list(messages(data))
    connection.close()
    return found


def test_the_stream_brings_status_then_history_then_new_pictures(serve: Callable[..., Web]) -> None:
    """What was there before somebody came is told first; then every new frame that is chosen, whole."""
    web = serve(names=("cam", "yard"))
    web.emit(seen(0, changed=True), picture(10))
    web.emit(seen(0, "yard"), picture(20))
    more = threading.Timer(0.3, lambda: web.emit(seen(1), picture(30)))
    more.start()
    found = read_stream(web, lambda got: sum(m["type"] == "picture" for m in got) >= 2, "?source=0")
    kinds = [m["type"] for m in found]
    assert kinds[0] == "status"
    assert [m["event"] for m in found if m["type"] == "event"] == ["label"]
    shown = [m for m in found if m["type"] == "picture"]
    assert [(m["source"], m["frame"]) for m in shown] == [(0, 0), (0, 1)]
    assert all(m["data"].startswith(b"\xff\xd8") and m["data"].endswith(b"\xff\xd9") for m in shown)


def test_events_are_numbered_and_resume_where_a_reader_was(serve: Callable[..., Web]) -> None:
    """Server-sent events: `Last-Event-ID` leaves out what the reader had."""
    web = serve()
    for frame in range(3):
        web.emit(seen(frame, changed=True), picture())

    def until(word: bytes, **headers: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", port_of(web), timeout=DEADLINE_S)
        connection.request("GET", "/api/events", headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer, text = connection.getresponse(), b""
        while word not in text:
            text += answer.read1(1 << 16)
        connection.close()
        return text

    run = json.loads(ask(web, "/api/status")[1])["run"].encode()
    assert until(b"id: %s-3\n" % run).count(b"event: label") >= 3
    late = until(b"id: %s-3\n" % run, Last_Event_ID=f"{run.decode()}-2")
    assert b"-2\n" not in late
    assert json.loads(late.partition(b"data: ")[2].partition(b"\n")[0])["number"] == 3
    for of_another_run in ("0000-2", "nonsense", f"{run.decode()}-²", "-" * 500):
        assert b"-1\n" in until(b"id: %s-3\n" % run, Last_Event_ID=of_another_run.encode("latin-1", "replace").decode("latin-1"))


def test_a_broken_camera_does_not_push_the_history_out() -> None:
    """Of skipped frames one a second is remembered; all are counted."""
    board = Board(["cam"], "m", 2)
    board.take(seen(0, changed=True), picture())
    for _ in range(1000):
        board.take(Skipped(1e9, "cam", "frame: broken"), None)
    assert board.status()["skipped"] == 1000
    assert len(board.since(0)) < 3 + 10 / SKIP_APART_S
    assert any(isinstance(entry.event, Seen) for entry in board.since(0))


def test_what_is_emitted_is_taken_in_passing(serve: Callable[..., Web]) -> None:
    """Row 9: a watcher that stops reading costs the loop nothing; emitting waits for nobody."""
    web = serve(patience=Patience(read_s=300))
    stuck = plain(web, "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    big = np.random.RandomState(0).randint(0, 256, (480, 640, 3)).astype(np.uint8)
    wait_for(lambda: json.loads(ask(web, "/api/status")[1])["watching"] == 1)
    slowest, ends = 0.0, time.monotonic() + 2
    frame = 0
    while time.monotonic() < ends:
        began = time.thread_time()
        web.emit(seen(frame), big)
        slowest = max(slowest, time.thread_time() - began)
        frame += 1
        time.sleep(0.01)
    assert slowest < 0.01
    assert ask(web, "/api/status")[0] == 200
    stuck.close()


# --- uploads ---------------------------------------------------------------------------------------------------------


def test_an_upload_is_classified_and_explained(serve: Callable[..., Web], fixtures_folder: Path) -> None:
    """As `predict` answers; with a heatmap when asked for."""
    web, data = serve(), (fixtures_folder / "pictures" / "red-square.png").read_bytes()
    said = json.loads(ask(web, "/api/classify", "POST", data)[1])
    assert said["label"] == "red square"
    assert said["top"][0]["label"] == "red square"
    assert "heatmap" not in said
    explained = json.loads(ask(web, "/api/classify?explain=1", "POST", data)[1])
    assert explained["heatmap"].startswith("data:image/jpeg;base64,/9j/")
    assert explained["explained"] == "red square"


@pytest.mark.parametrize(("body", "words"), [(b"", "whole"), (b"hello", "JPEG, PNG or WebP"), (PNG[:40], "picture")])
def test_what_is_no_picture_is_one_line(serve: Callable[..., Web], body: bytes, words: str) -> None:
    """422 and the reason as JSON."""
    code, answer, _ = ask(serve(), "/api/classify", "POST", body)
    assert code == 422
    assert words in json.loads(answer)["error"]


def test_a_picture_too_large_is_refused_before_it_is_decoded(serve: Callable[..., Web]) -> None:
    """By the pixels that its header promises, and by its bytes; those of a stream without length are counted."""
    bomb = PNG[:16] + (60_000).to_bytes(4, "big") * 2 + PNG[24:]
    web = serve(upload_mb=1)
    code, answer, _ = ask(web, "/api/classify", "POST", bomb)
    assert (code, "60000x60000" in json.loads(answer)["error"]) == (422, True)
    code, answer, _ = ask(web, "/api/classify", "POST", b"x" * ((1 << 20) + 1))
    assert (code, "1 MB" in json.loads(answer)["error"]) == (413, True)
    connection = plain(web, "POST /api/classify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(ConnectionError):
        connection.sendall((b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 1000)
    assert ask(web, "/api/status")[0] == 200


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp"])
def test_the_size_of_a_picture_is_read_from_its_header(kind: str) -> None:
    """For every kind that is taken; cut short it is refused, whatever stands in it."""
    data = cv2.imencode(kind, picture(50, 321, 123))[1].tobytes()
    assert pictures.size_of(data) == (321, 123)
    for cut in range(0, 24):
        with pytest.raises(DataError):
            pictures.size_of(data[:cut])
    if kind == ".webp":
        lossless = cv2.imencode(kind, picture(50, 321, 123), [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
        assert pictures.size_of(lossless) == (321, 123)


def test_the_desk_takes_a_few_and_turns_the_rest_away(classifier: Classifier, fixtures_folder: Path) -> None:
    """No queue grows; what was taken is answered; closing gives up an explanation that is under way."""
    desk, data = Desk(classifier, Rules()), (fixtures_folder / "pictures" / "red-square.png").read_bytes()
    held = threading.Event()
    desk._pool.submit(held.wait, DEADLINE_S)
    taken = [desk.ask(data, False) for _ in range(WAITING + 1)]
    with pytest.raises(Busy):
        desk.ask(data, False)
    held.set()
    assert {future.result(DEADLINE_S)["label"] for future in taken} == {"red square"}
    assert wait_for(lambda: desk.ask(data, False)).result(DEADLINE_S)
    desk._closing.set()
    with pytest.raises(Closing):
        desk.ask(data, True).result(DEADLINE_S)
    desk.close()


# --- who may come in -------------------------------------------------------------------------------------------------


def test_a_stranger_gets_nothing_and_the_token_once_is_enough(serve: Callable[..., Web], monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 31: 401 without it; `?token=` becomes a cookie that no script reads and no other site sends."""
    monkeypatch.setenv(door.TOKEN_VARIABLE, TOKEN)
    web = serve()
    for path in ("/api/status", "/api/frame.jpg", "/api/stream", "/api/events", "/app.js"):
        code, body, _ = ask(web, path)
        assert (code, TOKEN in body.decode()) == (401, False), path
    assert ask(web, "/api/classify", "POST", PNG)[0] == 401
    assert b"asks for a token" in ask(web, "/")[1]
    began = time.monotonic()
    assert ask(web, "/?token=wrong-horse-battery")[0] == 401
    assert ask(web, "/api/status", Authorization="Bearer wrong")[0] == 401
    assert time.monotonic() - began >= 2 * WRONG_TOKEN_S
    code, _, headers = ask(web, f"/?token={TOKEN}&x=1")
    cookie = headers["set-cookie"]
    assert (code, headers["location"]) == (303, "/?x=1")
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert TOKEN not in cookie
    assert ask(web, "/api/status", Cookie=cookie.partition(";")[0])[0] == 200
    assert ask(web, "/api/status", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(web, "/api/status", Cookie=cookie.partition(";")[0][:-1] + "é")[0] == 401
    assert ask(web, "/api/status", Cookie=f"other=1; {cookie.partition(';')[0]}; more=2")[0] == 200
    assert TOKEN not in web.address + web.note


def test_a_cookie_outlives_a_restart_but_not_another_token() -> None:
    """It is made from the token and the port, and says neither."""
    first, again, other, moved = Door(TOKEN, 1), Door(TOKEN, 1), Door(TOKEN + "x", 1), Door(TOKEN, 2)
    assert first.cookie_value == again.cookie_value
    assert len({first.cookie_value, other.cookie_value, moved.cookie_value}) == 3
    assert first.cookie_name != moved.cookie_name


def test_beyond_loopback_a_token_is_made_and_shown_once(serve: Callable[..., Web]) -> None:
    """In the address to open; each start has another."""
    one, two = serve(host="0.0.0.0"), serve(host="0.0.0.0")
    tokens = [web.address.partition("?token=")[2] for web in (one, two)]
    assert all(len(token) >= 32 for token in tokens)
    assert tokens[0] != tokens[1]
    assert ask(one, "/api/status")[0] == 401
    assert ask(one, "/api/status", Authorization=f"Bearer {tokens[0]}")[0] == 200
    assert "token" not in serve().address


def test_tokens_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """Short or unreadable ones are an error of the settings that shows none of it."""
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\nmore\n")
    assert given_token(str(file), {}) == TOKEN
    assert given_token("", {door.TOKEN_VARIABLE: TOKEN}) == TOKEN
    assert given_token("", {}) == ""
    for text in ("short", "with a space in it", "ünsichtbar-und-lang"):
        with pytest.raises(ConfigError) as error:
            given_token("", {door.TOKEN_VARIABLE: text})
        assert text not in str(error.value)
    file.write_text("\n")
    with pytest.raises(ConfigError, match="first line is empty"):
        given_token(str(file), {})
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        given_token(str(tmp_path / "none"), {})


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8080", "", "localhost@evil.example", "[::1", "192.168.0.7"]
)
def test_on_loopback_other_names_get_nothing(serve: Callable[..., Web], host: str) -> None:
    """DNS rebinding: a stranger's page whose name suddenly means this machine."""
    web = serve()
    assert ask(web, "/api/status", Host=host)[0] in (400, 421)
    assert ask(web, "/", Host=host)[0] in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:9", "LOCALHOST:1", "pi.example"])
def test_own_names_are_known(serve: Callable[..., Web], host: str) -> None:
    """Also through a tunnel with another port, and by a name that the settings give."""
    assert ask(serve(hosts=("pi.example",)), "/api/status", Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://["},
    ],
)
def test_pages_of_other_sites_may_not_ask(serve: Callable[..., Web], headers: dict[str, str]) -> None:
    """Neither read nor make work, not even where no token is asked for."""
    web = serve()
    assert ask(web, "/api/classify", "POST", PNG, **headers)[0] == 403
    assert ask(web, "/api/frame.jpg", **headers)[0] == 403
    own = f"http://127.0.0.1:{port_of(web)}"
    assert ask(web, "/api/status", Origin=own, Sec_Fetch_Site="same-origin")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/static/app.js", "/app.py",
     "/.//app.py", "/app.js/..", "/login.html", "/%00", "/..\\..\\app.py", "/?/../../x/..%00"],
)  # fmt: skip
def test_no_path_leads_out(serve: Callable[..., Web], path: str) -> None:
    """Files are known by name; no path is made from what was asked."""
    code, body, _ = ask(serve(), path)
    assert code == (200 if path.startswith("/?") else 404)
    assert b"root:" not in body
    assert b"import" not in body


def test_a_token_does_not_lead_to_another_host(serve: Callable[..., Web], monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that the cookie comes with stays on this server."""
    monkeypatch.setenv(door.TOKEN_VARIABLE, TOKEN)
    for path in ("//evil.example/", "/\\evil.example/"):
        assert ask(serve(), f"{path}?token={TOKEN}")[2]["location"] == "/evil.example/"


def test_every_answer_carries_the_headers_of_safety(serve: Callable[..., Web]) -> None:
    """The page, its parts, the API and refusals alike; nothing from outside may be loaded."""
    web = serve()
    for path in ("/", "/app.js", "/style.css", "/icon.svg", "/api/status", "/api/frame.jpg", "/nothing"):
        headers = ask(web, path)[2]
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "http" not in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
    assert ask(web, "/api/status", Host="evil.example")[2]["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("no-such-name.invalid", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, local: bool) -> None:
    """What cannot be told is not loopback."""
    assert is_loopback(host) is local


# --- what is bounded -------------------------------------------------------------------------------------------------


def test_a_hundred_clients_are_capped_and_do_no_harm(serve: Callable[..., Web]) -> None:
    """Row 31: as many watch as may, the rest are told or closed, and a place that gets free is given away."""
    web = serve(clients=5)
    web.emit(seen(), picture())
    request = "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
    open_ones = [plain(web, request) for _ in range(100)]

    def answer(connection: socket.socket) -> str:
        try:
            return connection.recv(1 << 12).partition(b"\r\n")[0].decode()
        except ConnectionError:
            return ""

    answers = [answer(connection) for connection in open_ones]
    assert answers.count("HTTP/1.1 200 OK") == 5
    assert answers.count("HTTP/1.1 503 Service Unavailable") > 5
    assert answers.count("") > 5
    for connection in open_ones:
        connection.close()
    said = wait_for(lambda: (s := json.loads(ask(web, "/api/status")[1]))["watching"] == 0 and s)
    assert said["most_watching"] == 5
    assert answer(plain(web, request)) == "HTTP/1.1 200 OK"


@pytest.mark.parametrize(
    "begun",
    ["", "GET / HTTP/1.1\r\nHost: local", "POST /api/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc"],
)
def test_a_request_that_never_ends_is_closed(serve: Callable[..., Web], begun: str) -> None:
    """Slowloris: one byte now and then keeps nothing open."""
    web = serve(patience=Patience(head_s=0.5, body_s=0.5))
    connection = plain(web, begun)
    drip = threading.Thread(target=_drip, args=(connection,), daemon=True)
    drip.start()
    assert is_closed(connection)
    drip.join(DEADLINE_S)
    assert ask(web, "/api/status")[0] == 200


def _drip(connection: socket.socket) -> None:
    try:
        for _ in range(DEADLINE_S * 10):
            connection.sendall(b"x")
            time.sleep(0.1)
    except OSError:
        pass


def test_a_watcher_that_stops_reading_is_let_go(serve: Callable[..., Web]) -> None:
    """After a time its place is free again."""
    web = serve(patience=Patience(read_s=0.5), clients=1)
    stuck = plain(web, "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    noise = np.random.RandomState(0).randint(0, 256, (480, 640, 3)).astype(np.uint8)
    frames = iter(range(1 << 30))

    def watching() -> int:
        web.emit(seen(next(frames)), noise)
        return int(json.loads(ask(web, "/api/status")[1])["watching"])

    wait_for(lambda: watching() == 1)
    wait_for(lambda: watching() == 0)
    stuck.close()


def test_heads_too_long_and_wrong_methods_are_refused(serve: Callable[..., Web]) -> None:
    """By the server, without the page's doing."""
    web = serve()
    connection = plain(web, "GET / HTTP/1.1\r\nHost: localhost\r\n")
    try:
        connection.sendall(b"X: " + b"x" * 1_000_000 + b"\r\n\r\n")
        first = connection.recv(64)
    except ConnectionError:
        first = b""
    assert first[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert ask(web, "/api/status", "POST", b"")[0] == 405
    assert ask(web, "/api/classify")[0] == 405


def test_closing_ends_streams_and_frees_the_port(serve: Callable[..., Web], classifier: Classifier) -> None:
    """Within the second that every sink has, with watchers on it; a second close is harmless."""
    web = serve()
    stream = plain(web, "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
    stream.recv(1 << 12)
    began = time.monotonic()
    assert web.close()
    assert time.monotonic() - began < 2
    assert is_closed(stream)
    again = Web(WebSection(address=f"127.0.0.1:{port_of(web)}"), ["cam"], classifier, Rules())
    assert ask(again, "/api/status")[0] == 200
    assert again.close()
    assert web.close()


def test_a_port_in_use_is_one_clear_line(serve: Callable[..., Web], classifier: Classifier) -> None:
    """It names the address and what to do."""
    port = port_of(serve())
    with pytest.raises(ConfigError, match=rf"--web 127.0.0.1:{port}: cannot listen there .*choose another port"):
        Web(WebSection(address=f"127.0.0.1:{port}"), ["cam"], classifier, Rules())


@pytest.mark.parametrize("section", [{"clients": 0}, {"clients": 5000}, {"upload_mb": 0}, {"upload_mb": 1000}])
def test_limits_have_limits(section: dict[str, int]) -> None:
    """Refused where the settings are read."""
    with pytest.raises(ConfigError, match=next(iter(section))):
        replace(WebSection(), **section)


def test_one_picture_that_cannot_be_shown_does_not_end_the_others(
    serve: Callable[..., Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told once, and what comes afterwards is shown."""
    told: list[str] = []
    monkeypatch.setattr(hub.Hub, "_hand_out", _failing_first(hub.Hub._hand_out, 3))
    web = serve()
    monkeypatch.setattr(web._hub, "_on_trouble", told.append)
    web.emit(seen(0), picture())
    threading.Timer(0.2, lambda: web.emit(seen(1), picture())).start()
    found = read_stream(web, lambda got: any(m.get("frame") == 1 for m in got))
    assert found[0]["type"] == "status"
    assert told == ["web: no picture can be shown: ValueError: no number"]


def _failing_first(work: Callable[[hub.Hub], None], times: int) -> Callable[[hub.Hub], None]:
    left = iter(range(times))

    def fail(self: hub.Hub) -> None:
        if next(left, None) is not None:
            raise ValueError("no number")
        work(self)

    return fail


def test_coming_and_going_leaves_nothing_behind(serve: Callable[..., Web]) -> None:
    """Two hundred watchers one after the other: no descriptor, no thread and no place is kept."""
    web = serve(clients=2)
    web.emit(seen(), picture())

    def come_and_go(times: int) -> tuple[int, int]:
        for _ in range(times):
            with plain(web, "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n") as connection:
                assert connection.recv(15) == b"HTTP/1.1 200 OK"
            wait_for(lambda: web._hub is not None and web._hub.watching == 0)
        wait_for(lambda: web._server is not None and not web._server.server_state.connections)
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    before = come_and_go(5)
    assert come_and_go(200) == before
