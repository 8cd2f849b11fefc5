"""The report: what is said of each exported file, what is recommended, and the three files."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from report_fakes import HOSTILE, comparison, scores_of, timed, variant

from edgeclf.core import results
from edgeclf.host.report import html as report_html
from edgeclf.host.report import report, timing
from edgeclf.host.report import tables as report_tables
from edgeclf.host.report.comparison import Emulated, Unusable
from edgeclf.host.report.devices import Board
from edgeclf.host.report.verdict import recommend
from edgeclf.host.understand import compare
from edgeclf.host.wording import at_most, size
from edgeclf.runtime.latency import Machine

LABELS = ("cat", "dog")
RANDOM = np.random.RandomState(0)
TRUTH = RANDOM.randint(0, 2, 2000)
FULL = scores_of(np.where(RANDOM.rand(2000) < 0.1, 1 - TRUTH, TRUTH), 2)


def losing(share: float, pictures: int = 2000) -> compare.Scores:
    """The full model's answers, of which that share of the first pictures is turned round."""
    answers = FULL.argmax(axis=1)[:pictures]
    turned = np.arange(pictures) < round(share * pictures)
    return scores_of(np.where(turned, 1 - TRUTH[:pictures], answers), 2)


def made(name: str, share: float = 0.0, pictures: int = 2000, **more: object) -> compare.Any:
    return variant(name, FULL[:pictures], losing(share, pictures), TRUTH[:pictures], LABELS, **more)  # type: ignore[arg-type]


def machine_with(*units: str) -> Machine:
    return Machine("a processor", 4, "Linux", "3.11", 0.1, False, units)


def board_with(throttled: tuple[str, ...] = (), **milliseconds: float) -> compare.Any:
    """A Raspberry Pi 5 on which the network of each file takes so long."""
    files = [(name, SimpleNamespace(timing=SimpleNamespace(invoke=timed(ms).latency))) for name, ms in milliseconds.items()]
    return Board("Raspberry Pi 5", SimpleNamespace(throttled=throttled, machine=machine_with()), tuple(files))  # type: ignore[arg-type]


# --- what is said of two models -------------------------------------------------------------------------------------------


def test_flips_are_the_pictures_that_were_right_and_became_wrong() -> None:
    """Neither pictures that were wrong before nor those that stayed right; the surest one first."""
    truth = np.array([0, 0, 1, 1])
    before = np.array([[1, 0], [3, 0], [5, 0], [0, 2]], np.float32)
    after = np.array([[0, 1], [0, 1], [0, 1], [0, 2]], np.float32)
    found = compare.against(before, after, truth, LABELS)
    assert [(f.row, f.truth, f.after) for f in found.flips] == [(1, 0, 1), (0, 0, 1)]
    assert (found.drop.lost, found.drop.won) == (2, 1)


def test_agreement_counts_equal_answers_also_when_both_are_wrong() -> None:
    """Two of three answers are the same; one of those two is wrong."""
    truth = np.array([0, 0, 0])
    before, after = scores_of(np.array([0, 1, 0]), 2), scores_of(np.array([0, 1, 1]), 2)
    assert compare.against(before, after, truth, LABELS).agreement == pytest.approx(2 / 3)


def test_scores_that_are_not_finite_are_wrong_and_agree_with_nothing() -> None:
    """NaN on both sides is no agreement, and the report stays valid JSON."""
    scores = np.array([[np.nan, 1], [2, 0]], np.float32)
    found = compare.against(scores, scores, np.array([1, 0]), LABELS)
    assert found.agreement == 0.5
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_recall_changes_are_per_class_and_marked_only_when_not_chance() -> None:
    """Class 0 loses 40 of 100 pictures, class 1 a single one: only the first is marked."""
    truth = np.repeat([0, 1], 100)
    after = truth.copy()
    after[:40], after[100] = 1, 0
    found = compare.against(scores_of(truth, 2), scores_of(after, 2), truth, LABELS).classes
    assert [c.change for c in found] == pytest.approx([-0.40, -0.01])
    assert [c.significant for c in found] == [True, False]


def test_pictures_are_read_a_batch_at_a_time() -> None:
    """No more pictures are held than one batch, and the answers come back in order."""
    asked: list[int] = []

    def take(indices: np.ndarray) -> np.ndarray:
        asked.append(len(indices))
        return indices.reshape(-1, 1, 1, 1).astype(np.uint8)

    found = compare.answers({"m": lambda x: x.reshape(-1, 1).astype(np.float32)}, take, np.arange(600) % 256)
    assert max(asked) <= compare.BATCH
    assert found["m"][:, 0].tolist() == (np.arange(600) % 256).tolist()


# --- who is faster ---------------------------------------------------------------------------------------------------------


def test_models_take_turns_in_every_round() -> None:
    """After each model has been tried once, every round holds one slice of each, and starts with another model."""
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    found = timing.interleaved(calls, rounds=6)
    turns = [name for name, before in zip(order, ["", *order], strict=False) if name != before]
    assert ["".join(turns[i : i + 3]) for i in range(0, len(turns), 3)] == ["abc", *["abc", "bca", "cab"] * 2]
    assert all(len(found[name].rounds_ms) == 6 for name in "abc")


def test_a_clear_difference_is_named_with_its_interval() -> None:
    """Twice as fast with 1% of noise: measurable, the interval close about 2."""
    found = timing.speedup(timed(1.0, 1), timed(0.5, 2))
    assert found.measurable
    assert found.interval.low < 2 < found.interval.high
    assert found.interval.high - found.interval.low < 0.1


def test_noise_is_not_ranked() -> None:
    """Equal models under noise: neither is called the faster."""
    found = timing.speedup(timed(1.0, 1, noise=0.2), timed(1.0, 2, noise=0.2))
    assert not found.measurable
    cell = report_tables.speedup_cell(found)
    assert cell.text == "no measurable difference"


def test_a_difference_of_one_percent_is_nothing_to_choose_by() -> None:
    """However steady it is."""
    assert not timing.speedup(timed(1.01, 1, noise=0.0001), timed(1.0, 2, noise=0.0001)).measurable
    assert timing.speedup(timed(1.03, 1, noise=0.0001), timed(1.0, 2, noise=0.0001)).measurable


def test_drift_that_hits_both_models_does_not_hide_a_difference() -> None:
    """The machine slows threefold during the run; the ratio within each round still tells."""
    slow = np.linspace(1, 3, 20)
    reference = dataclasses.replace(timed(1.0), rounds_ms=tuple(slow * 1.1))
    other = dataclasses.replace(timed(1.0), rounds_ms=tuple(slow))
    assert timing.speedup(reference, other).measurable


def test_too_few_rounds_tell_nothing() -> None:
    """With five rounds even the whole range is no 95% interval, however large the difference."""
    assert not timing.speedup(timed(9.0, 1, rounds=5), timed(1.0, 2, rounds=5)).measurable
    assert timing.speedup(timed(9.0, 1, rounds=6), timed(1.0, 2, rounds=6)).measurable


@pytest.mark.parametrize(("rounds", "low", "high"), [(6, 0, 5), (20, 5, 14), (30, 9, 20)])
def test_the_interval_of_the_median_is_the_sign_tests(rounds: int, low: int, high: int) -> None:
    """Ranks as in published tables of the sign test (n = 6: 1 and 6; 20: 6 and 15; 30: 10 and 21)."""
    assert timing.median_interval([float(i) for i in range(rounds)]) == (low, high, True)


# --- the recommendation ----------------------------------------------------------------------------------------------------


def test_the_smallest_file_within_a_point_is_recommended() -> None:
    """int8 loses too much, so float16 is taken; what int8 costs is said."""
    found = recommend([made("float32"), made("float16"), made("int8", 0.04)])
    assert found.variant == "float16"
    assert "at most" in found.sentence
    assert any(remark.startswith("int8 is smaller") for remark in found.remarks)


def test_of_nearly_equal_sizes_the_faster_one_is_recommended() -> None:
    """dynamic-w8 is 2% smaller than int8, and twice as slow."""
    found = recommend([made("float32"), made("dynamic-w8", kilobytes=190), made("int8", kilobytes=194)])
    assert found.variant == "int8"
    assert "the fastest on this machine of the files that qualify" in found.sentence
    assert any(
        remark == "dynamic-w8 is smaller (100 kB) but takes 0.310 ms on this machine, not 0.140 ms."
        for remark in (recommend([made("float32"), made("dynamic-w8", kilobytes=100), made("int8")]).remarks)
    )


def test_of_files_that_are_as_fast_the_smallest_is_recommended() -> None:
    """float32 is 3% faster than float16, which no noise hides, and which is nothing to pay twice the size for."""
    found = recommend([made("float32", ms=0.34), made("float16", ms=0.35)])
    assert found.variant == "float16"
    assert "the smallest file that qualifies; none is faster on this machine by more than a tenth" in found.sentence
    found = recommend([made("float32", ms=0.34), made("float16", ms=0.35), made("dynamic-w8", ms=0.5)])
    assert found.variant == "float16"
    assert "no more than a tenth or the noise separates float32, float16" in found.sentence


def test_an_int8_file_slower_than_float32_is_called_so() -> None:
    """It is not recommended for its size; what it takes is said."""
    found = recommend([made("float32"), made("int8", ms=0.7)])
    assert found.variant == "float32"
    assert any("2.00× slower than float32 on this machine" in remark for remark in found.remarks)
    assert "int8 is smaller (194 kB) but takes 0.700 ms on this machine, not 0.350 ms." in found.remarks


@pytest.mark.parametrize(
    ("units", "said"),
    [(("AVX2",), True), (("NEON",), True), (("AVX2", "AVX-512 VNNI"), False), (("NEON dot product",), False), ((), False)],
)
def test_where_int8_loses_for_want_of_dot_products_the_board_may_choose_otherwise(units: tuple[str, ...], said: bool) -> None:
    """Only there: a processor that has them, or does not say, has been asked already."""
    found = recommend([made("float32"), made("int8", ms=0.7)], machine=machine_with(*units))
    assert found.variant == "float32"
    assert ("On a board int8 (194 kB) may be the better: this processor" in found.sentence) is said
    assert ("report --emulate pi5" in found.sentence) is said


def test_times_that_cannot_tell_int8_from_another_leave_it_to_the_board() -> None:
    """A sparse file is smaller and as fast here; the processor has dot products."""
    variants = [made("float16", kilobytes=169, ms=0.7), made("int8", ms=0.7)]
    found = recommend(variants, machine=machine_with("AVX-512 VNNI"))
    assert found.variant == "float16"
    assert "may be the better: this machine's times cannot tell it from float16" in found.sentence


def test_a_board_that_was_measured_decides_and_this_machine_is_named() -> None:
    """int8 loses here and wins there; a throttled board and one with a single file decide nothing."""
    variants = [made("float32"), made("int8", ms=0.7)]
    found = recommend(variants, machine=machine_with("AVX2"), boards=[board_with(float32=20.0, int8=7.5)])
    assert found.variant == "int8"
    assert "Deploy int8 (194 kB, the fastest on Raspberry Pi 5 and the smallest of the files that qualify)" in found.sentence
    assert found.sentence.endswith("On this machine take float32 (706 kB) instead: 0.350 ms against 0.700 ms.")
    for board in (board_with(throttled=("throttled",), float32=20.0, int8=7.5), board_with(int8=7.5)):
        assert recommend(variants, machine=machine_with("AVX2"), boards=[board]).variant == "float32"


def test_a_file_that_was_not_measured_on_the_board_is_said_not_to_be() -> None:
    """float16 is the choice here; the board ran the two others."""
    variants = [made("float32"), made("float16", ms=0.1), made("int8", ms=0.7)]
    found = recommend(variants, boards=[board_with(float32=20.0, int8=7.5)])
    assert found.variant == "int8"
    assert "On this machine take float16 (359 kB) instead: 0.100 ms against 0.700 ms." in found.sentence


def test_counted_instructions_name_the_board_that_would_choose_otherwise() -> None:
    """They do not decide, for they are no time; where they agree a remark says so."""
    variants = [made("float32"), made("int8", ms=0.7)]
    pi5 = Emulated("pi5", "Raspberry Pi 5", {"float32": 3_521_421, "int8": 2_000_097})
    found = recommend(variants, machine=machine_with("AVX2"), emulated=[pi5])
    assert found.variant == "float32"
    assert (
        "On the emulated Raspberry Pi 5 take int8 (194 kB) instead: 2,000,097 instructions against 3,521,421 instr"
        in found.sentence
    )
    assert "may be the better" not in found.sentence
    level = Emulated("pi4", "Raspberry Pi 4", {"float32": 2_000_097, "float16": 2_100_000})  # which is smaller, and no faster
    assert "Raspberry Pi 4" not in recommend([made("float32", ms=0.1), made("float16")], emulated=[level]).sentence
    agreeing = recommend([made("float32"), made("int8")], emulated=[pi5])
    assert agreeing.remarks[0] == "int8 is among the fastest on the emulated Raspberry Pi 5 too."


def test_few_pictures_are_not_taken_for_a_proof() -> None:
    """100 pictures cannot show a loss below one point, and the sentence says what they cannot exclude."""
    found = recommend([made("float32", pictures=100), made("int8", pictures=100)])
    assert found.variant == "int8"
    assert "100 test pictures cannot exclude a loss of up to" in found.sentence


def test_a_loss_that_may_exceed_a_point_is_not_taken_for_one_that_does_not() -> None:
    """int8 was seen to lose less than a point, but its interval reaches beyond; float16 lost nothing."""
    int8 = made("int8", 0.011)
    assert 0 < int8.against.drop.drop < 0.01 < int8.against.drop.interval.high
    assert recommend([made("float32"), made("float16"), int8]).variant == "float16"


def test_a_model_lies_within_the_bar_that_is_drawn_for_it() -> None:
    """The bar is the interval of its paired loss, hung from the full model's accuracy: a loss hangs below it."""
    shown = comparison(int8_wrong=0.2)
    for full, points in (report_html._latency_points(shown), report_html._size_points(shown)):
        assert full.interval.low == full.interval.high == full.top1
        for point in points:
            assert point.interval.low < point.top1 < point.interval.high
        assert next(p for p in points if p.name == "int8").interval.high < full.top1


def test_nothing_is_recommended_when_every_file_loses() -> None:
    """The nearest is named with its loss."""
    found = recommend([made("float32", 0.03), made("int8", 0.08)])
    assert found.variant is None
    assert "the nearest, float32, loses 2.65 points (95% interval 1.93 to 3.36)" in found.sentence


def test_a_file_that_is_not_what_its_name_says_is_not_recommended() -> None:
    """A "int8" of float16 tensors is named as such and passed over."""
    found = recommend([made("float32"), made("int8", precision="float16")])
    assert found.variant == "float32"
    assert any("named int8, but its tensors are float16" in remark for remark in found.remarks)


def test_a_bound_is_never_stated_smaller_than_it_is() -> None:
    """0.941 points are at most 1.0, not 0.9."""
    assert at_most(0.00941, 500) == "1.0"
    assert at_most(0.009, 500) == "0.9"


@pytest.mark.parametrize(("count", "text"), [(999, "999 B"), (34_210, "34.2 kB"), (999_499, "999 kB"), (1_250_000, "1.25 MB")])
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    """Three digits and the unit that fits."""
    assert size(count) == text


# --- the three files -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags, attributes and text, and complains of tags that close nothing."""

    VOID = ("meta", "img", "br", "hr", "input", "link", "use", "path", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open[-1:]:
            self.text += data


@pytest.fixture(scope="module")
def hostile() -> str:
    """The page of a comparison whose labels, names and reasons try to be markup."""
    found = comparison(HOSTILE, 900, unusable=(Unusable("photos-<i>.tflite", "cut <b>short</b>"),))
    pictures = np.zeros((24, 8, 8, 3), np.uint8)
    return report_html.render_html(found, report_html.thumbnails(found, pictures, "rgb"), None)


def test_the_page_is_one_file_without_script(hostile: str) -> None:
    """Every address in it is a data URI or a place in the page; nothing runs."""
    page = Page(hostile)
    addresses = [v or "" for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href", "xlink:href", "srcset")]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"@import|url\((?!#)", hostile)
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]


def test_labels_and_reasons_stay_text(hostile: str) -> None:
    """What looks like markup is shown as it was given, and closes no tag of the page."""
    page = Page(hostile)
    assert not page.open
    assert "<script>alert(1)</script>" in page.text
    assert "cut <b>short</b>" in page.text
    assert "x$y$\\frac" in page.text


def test_the_page_is_made_for_phones_too(hostile: str) -> None:
    """It has a viewport, and every table scrolls inside a box of its own."""
    tags = Page(hostile).tags
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in tags
    boxes = [attrs for tag, attrs in tags if tag == "div" and "box" in (attrs.get("class") or "").split()]
    assert len(boxes) == sum(tag == "table" for tag, _ in tags) >= 5


def test_flips_are_shown_as_pictures_up_to_a_limit() -> None:
    """At most MOST_FLIPS thumbnails, all of int8's mistakes, the count of all of them beside."""
    found = comparison(pictures=3000, int8_wrong=0.1)
    pictures = np.zeros((report_html.MOST_FLIPS, 8, 8, 3), np.uint8)
    page = Page(report_html.render_html(found, report_html.thumbnails(found, pictures, "rgb"), None))
    shown = [attrs["alt"] for tag, attrs in page.tags if tag == "img"]
    assert len(shown) == report_html.MOST_FLIPS
    assert set(shown) <= {found.names[f.row] for f in found.focus().against.flips}
    assert f"{found.focus().against.drop.lost:,} of 3,000" in page.text


@pytest.mark.parametrize(
    ("shape", "colour", "kind"), [((8, 8, 3), "rgb", "png"), ((8, 8, 1), "grey", "png"), ((224, 160, 3), "rgb", "jpeg")]
)
def test_thumbnails_keep_colour_and_are_small(shape: tuple[int, int, int], colour: str, kind: str) -> None:
    """Small pictures are exact, large ones become at most THUMBNAIL pixels."""
    import base64

    import cv2

    picture = np.full(shape, 40, np.uint8)
    picture[..., 0] = 200
    uri = report_html.data_uri(picture, colour)  # type: ignore[arg-type]
    assert uri.startswith(f"data:image/{kind};base64,")
    back = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert back is not None
    assert max(back.shape[:2]) == min(max(shape[:2]), report_html.THUMBNAIL)
    assert abs(int(back[0, 0, 2]) - 200) < 8  # red, last in OpenCV's order


def test_many_classes_give_pairs_instead_of_a_matrix() -> None:
    """A hundred classes: no matrix, twenty rows of classes, the most confused pairs."""
    found = comparison(tuple(f"class {i:03d}" for i in range(100)), 3000)
    text = report_html.render_html(found, (), None)
    assert "Most confused pairs" in text
    assert "Confusion matrix of" not in text
    assert len(report_tables.classes(found).rows) == report_tables.MOST_CLASSES


def test_markdown_tables_survive_labels_with_bars() -> None:
    """Every row of a table has as many unescaped bars as its head."""
    text = report_html.render_markdown(comparison(HOSTILE, 900))
    rows = [re.sub(r"\\.", "", line).count("|") for line in text.splitlines() if line.startswith("| ")]
    section = text.split("## Recall by class")[1]
    counts = {re.sub(r"\\.", "", line).count("|") for line in section.splitlines() if line.startswith("|")}
    assert rows
    assert len(counts) == 1
    assert "<script>" not in text


def test_json_is_valid_and_counts_add_up() -> None:
    """Fractions and counts of the document belong to each other, and all classes are there."""
    found = comparison(("a", "b", "c"), 1500)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    int8 = next(v for v in document["variants"] if v["name"] == "int8")
    against = int8["against_full"]
    assert against["lost"] == len(against["negative_flips"])
    assert document["full"]["accuracy"]["top1"] - int8["accuracy"]["top1"] == pytest.approx(against["drop"])
    assert sum(c["pictures"] for c in against["classes"]) == document["pictures"] == 1500
    assert int8["size"]["file_bytes"] == 194_000


def test_changes_are_signed_with_a_loss_negative() -> None:
    """The table shows the change, so a loss carries a minus and its interval is turned round."""
    drop = results.PairedDrop(0.012, results.Interval(0.004, 0.02), 30, 6, 2000, 0.001)
    v = made("int8")
    cell = report_tables._change(dataclasses.replace(v, against=dataclasses.replace(v.against, drop=drop)))
    assert (cell.text, cell.note, cell.mark) == ("−1.20", "−2.00 to −0.40", "bad")


def test_the_template_travels_in_the_package() -> None:
    """It lies beside the module, where the wheel picks it up."""
    assert Path(report_html.__file__).with_name(report_html.TEMPLATE).is_file()


def test_no_mark_of_the_template_is_left_in_the_page() -> None:
    """Every value stands in its place, in captions too."""
    page = report_html.render_html(comparison(), [], None)
    assert "{{" not in page
    assert "The full model is its photos-full model.tflite." in page


def test_the_page_tells_what_is_inside_the_files() -> None:
    """Multiply-accumulates, weights, zeros and calibration, in the page and in JSON."""
    found = comparison()
    table = report_tables.inside(found)
    assert table.head[1:4] == ("multiply-accumulates", "weights", "zeros among them")
    assert [cell.text for cell in table.rows[1][1:4]] == ["12,500,000", "77,360", "2.0%"]
    document = found.to_json()
    assert document["variants"][0]["inside"]["zeros"] == 0.02
    assert 0 <= document["full"]["calibration"]["ece"] <= 1


def test_peak_memory_stands_beside_the_sizes() -> None:
    """Of the process and of the model in it, in table and JSON; a dash where it could not be measured."""
    found = comparison()
    unknown = dataclasses.replace(found, full=dataclasses.replace(found.full, memory=None))
    for table, full in ((report_tables.sizes(found), "60.8 MB"), (report_tables.sizes(unknown), report_tables.NOTHING)):
        column = table.head.index("peak memory")
        assert [table.rows[0][column].text, table.rows[1][column].text] == [full, "60.7 MB"]
        assert table.rows[1][column].note == "2.12 MB after import"
    assert found.to_json()["variants"][0]["memory"] == {"process_bytes": 60_706_000, "model_bytes": 2_118_000}
    assert unknown.to_json()["full"]["memory"] is None


def test_a_dense_file_is_not_taken_for_a_sparse_one_nor_the_other_way_about() -> None:
    """Both names begin alike."""
    assert report._claims("pruned80-float32-sparse", "float32-sparse")
    assert report._claims("float32", "float32")
    assert not report._claims("float32-sparse", "float32")
    assert not report._claims("float32", "float32-sparse")
