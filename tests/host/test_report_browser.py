"""The report in a real browser: nothing is wider than the screen, on a phone and on a desk, in light and dark."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from report_fakes import HOSTILE, comparison

from edgeclf.host.plots import History
from edgeclf.host.report import html as report_html

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=4000",
]  # fmt: skip
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")

# The page stands in a frame of each width; the harness around it measures, as the page itself has no script.
HARNESS = """<!doctype html><meta charset="utf-8"><body><script>
const found = {};
for (const frame of document.querySelectorAll("iframe")) frame.onload = () => {
  const doc = frame.contentDocument, root = doc.documentElement, width = frame.clientWidth;
  const inBox = e => e.closest(".box") && !e.classList.contains("box");
  found[frame.id] = {
    page: root.scrollWidth,
    wide: [...doc.body.querySelectorAll("*")].filter(e => !inBox(e) && !e.closest("svg"))
      .filter(e => e.getBoundingClientRect().right > width + 1).map(e => e.tagName + "." + e.className),
    scrolls: [...doc.querySelectorAll(".box")].filter(e => e.scrollWidth > e.clientWidth).length,
    smallest: Math.min(...[...doc.querySelectorAll(".cost svg text")].map(e => e.getBoundingClientRect().height)),
    figures: doc.querySelectorAll("figure svg").length, h1: doc.querySelector("h1").textContent,
    ran: doc.defaultView.alerted === true,
  };
  document.title = JSON.stringify(found);
};
</script>"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What the browser makes of a report with hostile labels, by width."""
    folder = tmp_path_factory.mktemp("browser")
    history = History({name: np.array([1.0, 2.0]) for name in ("epoch", "loss", "accuracy")})
    found = comparison((*HOSTILE, "<img src=x onerror='window.alerted=true'>"), 900)
    pictures = np.zeros((24, 32, 32, 3), np.uint8)
    page = html.escape(report_html.render_html(found, report_html.thumbnails(found, pictures, "rgb"), history))
    frames = "".join(
        f'<iframe id="w{w}" style="width:{w}px;height:900px;border:0" srcdoc="{page}"></iframe>' for w in (360, 1280)
    )
    (folder / "harness.html").write_text(HARNESS.replace("<script>", f"{frames}<script>"))
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "harness.html").as_uri()],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    answer: dict[str, dict[str, object]] = json.loads(html.unescape(title.group(1)))
    return answer


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(seen: dict[str, dict[str, object]], width: int) -> None:
    """The page does not scroll sideways; only tables may, inside their boxes."""
    assert seen[f"w{width}"]["wide"] == []
    assert seen[f"w{width}"]["page"] == width


def test_wide_tables_scroll_in_their_box_on_a_phone(seen: dict[str, dict[str, object]]) -> None:
    """On a phone some do, so the check above is not passed by having no wide table."""
    assert int(str(seen["w360"]["scrolls"])) >= 2


def test_figures_are_drawn_and_readable_on_a_phone(seen: dict[str, dict[str, object]]) -> None:
    """Five figures, and their lettering is at least nine pixels tall at 360 pixels."""
    assert seen["w360"]["figures"] == 5
    assert float(str(seen["w360"]["smallest"])) >= 9


def test_a_label_cannot_run_a_script(seen: dict[str, dict[str, object]]) -> None:
    """The label with an `onerror` stayed text."""
    assert seen["w360"]["ran"] is False
    assert seen["w360"]["h1"] == "photos"
