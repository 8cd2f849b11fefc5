"""What went wrong on held-out pictures: order, label suspects, doubles in training, and the page that shows it."""

import html
import json
import re
import subprocess
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeclf.core.card import ModelCard
from edgeclf.core.catalogue import scan
from edgeclf.core.image import ImageSpec
from edgeclf.host.understand import gallery
from edgeclf.host.understand.mistakes import label_suspects, study
from edgeclf.runtime.accuracy import evaluated, matching_classes

CHROMIUM = Path("/usr/bin/chromium")
LABELS = "cat", "<img src=x onerror='window.ran=true'>"
BAD_NAME = "test/cat/<script>window.ran=true<script>.png"


def photo(seed):
    random = np.random.RandomState(seed)
    coarse, fine = (cv2.resize(random.rand(n, n, 3).astype(np.float32), (48, 48), interpolation=cv2.INTER_CUBIC) for n in (3, 9))
    return np.clip(255 * (0.6 * coarse + 0.4 * fine), 0, 255).astype(np.uint8)


def file_of(picture):
    return bytes(cv2.imencode(".png", picture)[1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Eight test pictures of two classes; a darker copy of the fourth was trained on, as the other class, and the fifth."""
    path = tmp_path_factory.mktemp("data") / "x.zip"
    names = [BAD_NAME, *(f"test/cat/{i}.png" for i in range(3)), *(f"test/{LABELS[1]}/{i}.png" for i in range(4))]
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, file_of(photo(number)))
        archive.writestr(f"train/{LABELS[1]}/dark.png", file_of((photo(3) * 0.8).astype(np.uint8)))
        archive.writestr("train/cat/other.png", file_of(photo(30)))
        archive.writestr(f"train/{LABELS[1]}/same.png", file_of(photo(4)))
    catalogue = scan(path)
    indices = np.array([catalogue.names.index(name) for name in names])
    truth = [0, 0, 0, 0, 1, 1, 1, 1]
    scores = np.zeros((8, 2), np.float32)
    scores[np.arange(8), truth] = -6, 5, 4, 4, 5, 4, -0.5, np.nan  # of the right answer: two mistakes and one that is none
    card, classes = ModelCard("x", LABELS, ImageSpec(24, 24)), matching_classes(catalogue.labels, LABELS, "x")
    evaluation = evaluated(card, catalogue, indices, classes, scores, {})
    assert evaluation.truth.tolist() == truth
    return study(evaluation, catalogue, "its test folder")


def test_mistakes_come_surest_first_and_no_answer_counts_as_one(found):
    """NaN is no answer, never a number in JSON."""
    assert [round(m.sure, 3) for m in found.wrong] == [0.998, 0.622, 0.0]
    assert [found.label(m.called) for m in found.wrong] == [LABELS[1], "cat", "no answer"]
    assert found.top1 == 5 / 8
    assert json.loads(json.dumps(found.to_json(2), allow_nan=False))["misclassified"]["count"] == 3
    assert len(found.to_json(2)["misclassified"]["pictures"]) == 2


def test_only_a_mistake_as_sure_as_right_answers_are_is_a_label_suspect(found):
    """The sure one; not the doubtful one, nor the one without an answer."""
    assert [found.catalogue.names[m.index] for m in found.suspects] == [BAD_NAME]


def test_label_suspects_are_the_labels_that_were_swapped():
    """Of 400 pictures and a model that is right at 90%, six labels were changed: they are found first, and little else."""
    random = np.random.RandomState(0)
    true = random.randint(0, 4, 400)
    shares = np.full((400, 4), 0.02, np.float32)
    shares[np.arange(400), true] = random.uniform(0.85, 0.94, 400)
    doubtful = random.permutation(400)[:40]
    shares[doubtful] = 0.2
    shares[doubtful, (true[doubtful] + 1) % 4] = 0.4  # mistakes, but unsure ones
    given, swapped = true.copy(), np.setdiff1d(np.arange(400), doubtful)[:6]
    given[swapped] = (true[swapped] + 2) % 4
    assert set(label_suspects(shares / shares.sum(axis=1, keepdims=True), given)) == set(swapped.tolist())


def test_held_out_pictures_with_a_double_in_training_are_found(found):
    """The darker one first, because its label differs; what it was right about is not counted without them."""
    names = found.catalogue.names
    assert [(names[s.index], names[s.twin], s.exact, s.conflict) for s in found.seen] == [
        ("test/cat/2.png", f"train/{LABELS[1]}/dark.png", False, True),
        (f"test/{LABELS[1]}/0.png", f"train/{LABELS[1]}/same.png", True, False),
    ]
    assert found.top1_unseen == 3 / 6


def test_confused_pairs_are_counted(found):
    """Given and answer."""
    assert {(g, c): n for g, c, n in found.pairs} == {(0, 1): 1, (1, 0): 1, (1, -1): 1}


def test_the_page_is_one_file_that_holds_its_pictures(found):
    """No address but `data:`, and each mistake with its label and answer."""
    page = gallery.errors_page(found, "runs/x", limit=10)
    assert set(re.findall(r'(?:src|href)="(\w+):', page)) == {"data"}
    assert "cat → &lt;img src=x onerror=" in page
    assert "<script" not in page


HARNESS = """<!doctype html><meta charset="utf-8"><body>FRAMES<script>
const found = {};
for (const frame of document.querySelectorAll("iframe")) frame.onload = () => {
  const doc = frame.contentDocument, width = frame.clientWidth, inBox = e => e.closest(".box") && !e.classList.contains("box");
  found[frame.id] = {
    page: doc.documentElement.scrollWidth, ran: doc.defaultView.ran === true,
    wide: [...doc.body.querySelectorAll("*")].filter(e => !inBox(e) && e.getBoundingClientRect().right > width + 1).length,
    pictures: [...doc.images].filter(i => i.complete && i.naturalWidth).length,
    smallest: Math.min(...[...doc.querySelectorAll("b")].map(e => parseFloat(getComputedStyle(e).fontSize))),
  };
  document.title = JSON.stringify(found);
};
</script>"""


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium")
def test_the_page_fits_a_phone_and_runs_nothing(found, tmp_path):
    """In Chromium at 360 and 1,280 pixels: no sideways scrolling, pictures drawn, letters readable, names stay text."""
    page = html.escape(gallery.errors_page(found, "runs/x", limit=10).replace('loading="lazy"', ""))
    frames = "".join(
        f'<iframe id="w{w}" style="width:{w}px;height:800px;border:0" srcdoc="{page}"></iframe>' for w in (360, 1280)
    )
    (tmp_path / "harness.html").write_text(HARNESS.replace("FRAMES", frames))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--virtual-time-budget=4000"]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "harness.html").as_uri()],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    for name, seen in json.loads(html.unescape(title.group(1))).items():
        assert (seen["page"], seen["wide"], seen["ran"]) == (int(name[1:]), 0, False)
        assert seen["pictures"] >= 3 + 1 + 3 + 4
        assert seen["smallest"] >= 12
