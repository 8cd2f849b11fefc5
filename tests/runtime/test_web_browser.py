"""The preview page in a real browser: it shows what the loop sees, on a phone and a desk, by mouse, keys and screen reader."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the web extra")
pytest.importorskip("uvicorn", reason="needs the web extra")

from web_browser import CHROMIUM, Browser, Page

from edgeclf.core.live_settings import WebSection
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import Decision, Rules
from edgeclf.runtime.events import Health, Other, Seen, SourceChanged, Stages
from edgeclf.runtime.web import door
from edgeclf.runtime.web.server import Web

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")

LABELS = "cat", "a <b>label</b> of some length"
MOVES = "Number(document.querySelector('.view img')?.dataset.count)"
CONTRAST = """(() => {
  const parts = text => text.match(/[\\d.]+/g).map(Number);
  const light = rgb => rgb.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const back = e => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const poor = [];
  for (const e of document.body.querySelectorAll("*")) {
    const texts = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (e.closest("svg, option, noscript") || !e.checkVisibility() || !texts) continue;
    const [a, b] = [light(parts(getComputedStyle(e).color)), light(back(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.push(`${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 30)}`);
  }
  return poor;
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Loop:
    """Stands for the live loop: gives the page a new frame of each source, thirty times a second."""

    def __init__(self, web: Web, names: tuple[str, ...]) -> None:
        self.web, self._names = web, names
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        for name in self._names:
            self.web.emit(SourceChanged(time.time(), name, "live", ""))
        frame = 0
        while not self._ended.wait(1 / 30):
            label = LABELS[frame // 30 % 2]
            decision = Decision(label, 0.7, label, frame % 30 == 0, ((label, 0.7), ("dog", 0.2), ("fox", 0.1)))
            image = np.full((480, 640, 3), frame % 256, np.uint8)
            stages, other = Stages(1.0, 2.0, 3.0, 0.1, 9.0), Other("cat", 0.9, label == "cat", 20.0)
            for name in self._names:
                self.web.emit(Seen(time.time(), name, frame, decision, stages, 30.0, "", other), image)
            if frame % 30 == 5:
                states = dict.fromkeys(self._names, "live")
                self.web.emit(
                    Health(time.time(), states, frame, 90 << 20, 0.4, 81.5, 600.0, ("under-voltage",), "the power is weak")
                )  # type: ignore[arg-type]
            frame += 1

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@contextlib.contextmanager
def offered(model: Path, *names: str) -> Iterator[Loop]:
    web = Web(WebSection(address=f"127.0.0.1:{free_port()}"), names, Classifier.load(model, 1), Rules())
    loop = Loop(web, names)
    try:
        yield loop
    finally:
        loop.end()
        web.close()


@pytest.fixture(scope="module")
def model(fixtures_folder: Path) -> Path:
    return fixtures_folder / "tiny-int8.tflite"


@pytest.fixture(scope="module")
def loop(model: Path) -> Iterator[Loop]:
    """One camera."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(door.TOKEN_VARIABLE, raising=False)
        with offered(model, "cam") as found:
            yield found


@pytest.fixture
def page(browser: Browser, loop: Loop) -> Iterator[Page]:
    """A tab with the page, on a desk, the first pictures shown."""
    found = browser.page(loop.web.address)
    found.wait(f"{MOVES} > 2")
    yield found
    found.close()


def shown(page: Page) -> str:
    text: str = page.run("document.body.innerText")
    return text


def test_the_page_shows_all_that_the_loop_tells_without_a_complaint(page: Page) -> None:
    """The picture moves; answer, bars, latency, device, agreement and history are there; the console stays empty."""
    before = page.run(MOVES)
    page.wait(f"{MOVES} > {before + 5}")
    page.wait(
        "document.querySelectorAll('#history li').length > 2 && document.querySelector('#latency-rows td').textContent !== '–'"
    )
    page.wait("document.querySelector('#device').innerText.includes('81.5 °C')")
    text = shown(page)
    for expected in (
        "live",
        "dog",
        "20.0%",
        "81.5 °C",
        "under-voltage",
        "600 MHz",
        "30.0",
        "the power is weak",
        "1 of 20",
        "They agree on",
    ):
        assert expected in text, expected
    assert "a <b>label</b> of some length" in page.wait(
        "document.querySelector('#history').innerText.includes('<b>') && document.body.innerText"
    )
    assert page.run("document.querySelectorAll('#chart polygon').length") == 4
    page.wait("document.querySelectorAll('#strip span').length > 1")
    assert page.complaints() == []


def test_the_picture_is_the_camera_s(page: Page) -> None:
    """Its pixels change with those of the source."""
    grey = """(() => { const c = document.createElement("canvas"), i = document.querySelector(".view img");
      c.width = c.height = 1;
      const d = c.getContext("2d"); d.drawImage(i, 0, 0, 1, 1); return d.getImageData(0, 0, 1, 1).data[0]; })()"""
    first = page.run(grey)
    page.wait(f"Math.abs({grey} - {first}) > 20")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen_or_hard_to_read(page: Page, width: int, dark: bool, fixtures_folder: Path) -> None:
    """On a phone and on a desk, in light and dark: no sideways scrolling, contrast of at least 4.5 (WCAG 2.2, AA)."""
    page.size(width, 800, dark)
    page.choose("#file", fixtures_folder / "pictures" / "red-square.png")
    page.wait("!document.querySelector('#heat').hidden")
    assert page.run("document.documentElement.scrollWidth") == width
    assert page.run(CONTRAST) == []
    controls = "[...document.querySelectorAll('button, select, label.button')].filter(e => e.checkVisibility())"
    assert page.run(f"Math.min(...{controls}.map(e => e.offsetHeight))") >= 44


def test_two_watch_and_both_see(browser: Browser, page: Page, loop: Loop) -> None:
    """Each has its own stream; the page says how many there are."""
    second = browser.page(loop.web.address, 360, 700)
    for one in (page, second):
        before = one.run(MOVES) or 0
        one.wait(f"{MOVES} > {before + 5}")
        one.wait("document.querySelector('#device').innerText.includes('2 of 20')")
    second.close()
    page.wait("document.querySelector('#device').innerText.includes('1 of 20')")


def test_a_chosen_and_a_dropped_picture_are_classified(page: Page, fixtures_folder: Path) -> None:
    """With what counted; what is no picture gets a sentence."""
    page.choose("#file", fixtures_folder / "pictures" / "red-square.png")
    page.wait("document.querySelector('#tried-label').textContent.includes('red square')")
    assert page.wait("document.querySelector('#heat-picture').naturalWidth > 100")
    page.run("""(async () => {
      const data = new DataTransfer(), blob = await (await fetch("/api/frame.jpg")).blob();
      data.items.add(new File([blob], "frame.jpg", { type: "image/jpeg" }));
      const drop = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true });
      document.querySelector("#drop").dispatchEvent(drop);
    })()""")
    page.wait("document.querySelector('#own-caption').textContent === 'frame.jpg'")
    page.choose("#file", fixtures_folder / "pictures" / "truncated.jpg")
    page.wait("document.querySelector('#try-note').textContent.includes('That did not work: the picture: the JPEG is cut short')")


def test_everything_works_from_the_keyboard_in_reading_order(page: Page) -> None:
    """Tab goes from the skip link through the page and misses nothing; Space and Enter press; what has the focus shows it."""
    visited = []
    for _ in range(16):
        page.key("Tab", 9)
        visited.append(
            page.run("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
        )
    order = [visited.index(name) for name in ("skip", "pause", "file", "explain", "camera")]
    assert order == sorted(order)
    page.run("document.querySelector('#pause').focus()")
    page.key(" ", 32)
    page.wait("document.querySelector('#pause').getAttribute('aria-pressed') === 'true'")
    page.wait("document.querySelector('#connection').textContent.includes('Paused')")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    still = page.run(MOVES)
    page.key("Enter", 13)
    page.wait(f"{MOVES} > {still + 3}")


def test_a_screen_reader_is_told_names_and_is_not_flooded(page: Page) -> None:
    """Controls and pictures have names; headings are in order; the answer is read out when it changes, not with each frame."""
    page.wait("!document.querySelector('#compared').hidden")
    told = page.spoken()
    for role in ("button", "checkbox", "image", "region", "combobox", "link", "textbox"):
        assert all(name for said, name in told if said == role), role
    for expected in (("button", "Pause"), ("image", "Live picture of cam"), ("list", "Likeliest classes, cam")):
        assert expected in told
    headings = page.run(
        "[...document.querySelectorAll('h1, h2, h3')].filter(e => e.checkVisibility()).map(e => e.textContent.trim())"
    )
    assert headings[:5] == ["edgeclf tiny", "Live", "Latency by stage", "Answers", "Compared with the other model"]
    assert set(headings) <= {name for role, name in told if role == "heading"}
    page.run("""window.changes = 0; new MutationObserver(() => window.changes++)
      .observe(document.querySelector("#spoken"), { childList: true, characterData: true, subtree: true })""")
    before, began = page.run(MOVES), page.run("performance.now()")
    page.wait(f"{MOVES} > {before + 12}")
    assert page.run("window.changes") <= (page.run("performance.now()") - began) / 3000 + 2
    page.wait(f"{list(LABELS)}.includes(document.querySelector('#spoken').textContent)")


def test_motion_is_reduced_where_it_is_asked_for(browser: Browser, loop: Loop) -> None:
    """No animation and no transition runs."""
    page = browser.page(loop.web.address, still=True)
    page.wait(f"{MOVES} > 2")
    styles = "[...document.querySelectorAll('*')].map(e => getComputedStyle(e))"
    assert page.run(f"{styles}.filter(s => s.transitionProperty !== 'none' || s.animationName !== 'none').length") == 0
    page.close()


def test_states_of_a_source_are_shown(page: Page, loop: Loop) -> None:
    """A source that stalls is marked as old, with the reason, and the live region says it."""
    loop.web.emit(SourceChanged(time.time(), "cam", "reconnecting", "no picture for 2 s"))
    page.wait("document.querySelector('.view').classList.contains('old')")
    assert "no picture for 2 s" in shown(page)
    loop.web.emit(SourceChanged(time.time(), "cam", "live", ""))
    page.wait("!document.querySelector('.view').classList.contains('old')")


def test_several_sources_are_a_grid_from_which_one_is_picked(browser: Browser, model: Path) -> None:
    """All at first; then the chosen one alone, and only its pictures travel."""
    with offered(model, "door", "yard", "shed") as loop:
        page = browser.page(loop.web.address)
        page.wait("document.querySelectorAll('.view').length === 3")
        page.wait("[...document.querySelectorAll('.view img')].every(i => i.dataset.count > 2)")
        page.run("[...document.querySelectorAll('#picker button')].find(b => b.textContent === 'yard').click()")
        page.wait(f"document.querySelectorAll('.view').length === 1 && {MOVES} > 3")
        assert page.run("document.querySelector('.view .name').textContent") == "yard"
        assert page.run("document.querySelector('#picker [aria-pressed=true]').textContent") == "yard"
        assert page.complaints() == []
        page.close()


def test_the_browser_s_own_camera_is_classified(page: Page, browser: Browser, loop: Loop) -> None:
    """Chromium's test camera gives pictures; its answer appears and goes on until it is stopped."""
    browser.send("Browser.grantPermissions", origin=loop.web.address.rstrip("/"), permissions=["videoCapture"])
    page.run("document.querySelector('#camera').click()")
    page.wait("document.querySelector('#camera').getAttribute('aria-pressed') === 'true'")
    page.wait("document.querySelectorAll('#tried-bars li').length === 4")
    page.wait("document.querySelector('#tried-cost').textContent.includes('pixels')")
    page.run("document.querySelector('#camera').click()")
    page.wait(
        "document.querySelector('#own-camera').hidden && document.querySelector('#try-note').textContent === 'The camera is off.'"
    )


def test_a_refused_camera_says_why(page: Page, browser: Browser, loop: Loop) -> None:
    """As when the person says no, and where the page is not one of those that may ask."""
    browser.send("Browser.setPermission", permission={"name": "camera"}, setting="denied", origin=loop.web.address.rstrip("/"))
    page.run("document.querySelector('#camera').click()")
    page.wait("document.querySelector('#try-note').textContent.includes('told not to allow the camera')")
    page.run("Object.defineProperty(navigator, 'mediaDevices', { value: undefined }) && 0")
    page.run("Object.defineProperty(window, 'isSecureContext', { value: false }) && 0")
    page.run("document.querySelector('#camera').click()")
    page.wait("document.querySelector('#try-note').textContent.includes('ssh -L 8080:localhost')")
    browser.send("Browser.resetPermissions")


def test_the_token_is_asked_for_and_vanishes_from_the_address(browser: Browser, model: Path) -> None:
    """Typed once; the page works by its cookie from then on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(door.TOKEN_VARIABLE, "correct-horse-battery")
        with offered(model, "cam") as loop:
            page = browser.page(loop.web.address, 360, 700)
            page.wait("document.querySelector('#token') === document.activeElement")
            assert page.run(CONTRAST) == []
            page.run("document.querySelector('#token').value = 'correct-horse-battery'")
            page.run("document.querySelector('button').click()")
            page.wait(f"location.search === '' && {MOVES} > 2")
            assert page.run("document.cookie") == ""
            page.close()


def started(model: Path, port: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "edgeclf",
        "run",
        str(model),
        "-s",
        "synthetic",
        "--threads",
        "1",
        "--web",
        f"127.0.0.1:{port}",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})


def test_the_page_comes_back_by_itself_after_a_restart(browser: Browser, model: Path) -> None:
    """It says so meanwhile; the real program is killed and started again."""
    port = free_port()
    child = started(model, port)
    try:
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        page = browser.page(f"http://127.0.0.1:{port}/")
        page.wait(f"{MOVES} > 3")
        child.kill()
        child.wait()
        page.wait("document.querySelector('#connection').textContent.includes('Reconnecting')")
        assert "Trying again by itself" in shown(page)
        assert page.run("document.querySelector('#banner').getAttribute('role')") == "alert"
        child = started(model, port)
        page.wait("document.querySelector('#connection').textContent === 'Connected'")
        page.wait(f"{MOVES} > 3 && document.querySelector('#banner').hidden")
        page.wait("document.querySelector('#history').innerText.includes('the run was started again')")
        page.close()
    finally:
        child.kill()
        child.wait()
