"""Two models on the same frames: agreement, latencies, and the frames on which they disagree."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from live_fakes import Seer

from edgeclf.core.bundle import attach, read_bundle
from edgeclf.core.errors import ConfigError, ModelError, StorageError
from edgeclf.core.image import Pixels
from edgeclf.core.live_settings import CompareSection, DecideSection, GateSection, LiveSettings, SnapshotsSection
from edgeclf.core.results import wilson
from edgeclf.core.unknown import UnknownRule
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.comparing import check_labels, comparing, rules_beside
from edgeclf.runtime.decision import Decision, Rules
from edgeclf.runtime.events import Other, Seen, Stages, describe, record
from edgeclf.runtime.gate import gate_of
from edgeclf.runtime.live import Comparison, Live
from edgeclf.runtime.scoring import Scored, Scorer
from edgeclf.runtime.sinks.disagreements import Disagreements
from edgeclf.runtime.sinks.keeping import MB, Folder
from edgeclf.runtime.sinks.sink import PICTURES, Background
from edgeclf.runtime.sources.camera import Picture, Source

LABELS = ("dark", "bright")
SECTION = CompareSection(file="full.tflite", folder="kept", min_free_mb=0, per_minute=60)


class Playing:
    """A reader of grey pictures of these values."""

    note = ""
    interval_s = 0.0

    def __init__(self, values: Sequence[int]) -> None:
        self._values = iter(values)

    def read(self) -> Picture | None:
        value = next(self._values, None)
        return None if value is None else Picture(np.full((16, 16, 3), value, np.uint8))

    def close(self) -> None:
        """Nothing is held."""


def stored(values: Sequence[int], name: str = "fake") -> Source:
    return Source(name, lambda: Playing(values), live=False)


def brighter_than(limit: float, invoke_s: float = 0.001) -> Scorer:
    """A fake classifier that is 0.9 sure on either side of a brightness."""

    def scored(view: Pixels) -> Scored:
        bright = 0.9 if view.mean() > limit else 0.1
        return Scored(np.array([1 - bright, bright], np.float32), 0.0, invoke_s)

    return scored


def seen(frame: int = 7, source: str = "rtsp://***@10.0.0.9/live?a=b", time_s: float = 1_700_000_000.25) -> Seen:
    decision = Decision("dark", 0.9, "dark", False, (("dark", 0.9), ("bright", 0.1)))
    return Seen(time_s, source, frame, decision, Stages(0, 1, 2, 3, 4), 30.0, other=Other("bright", 0.8, False, 5.0))


def wait_for(there: Callable[[], object], seconds: float = 20) -> None:
    limit = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.01)


# In the loop


def test_agreement_and_both_latencies_are_in_the_summary_and_both_answers_in_the_events() -> None:
    """Labels may come in another order; frames between the two limits are answered otherwise."""
    turned: Scorer = lambda view: replace(s := brighter_than(150, 0.004)(view), probabilities=s.probabilities[::-1])  # noqa: E731
    told: list[tuple[int, float]] = []
    comparison = Comparison(turned, LABELS[::-1], Rules(), lambda event, view: told.append((event.frame, view.mean())), "full")
    seer = Seer()
    values = [10, 120, 200, 250, 130, 20]
    summary = Live([stored(values)], brighter_than(100), LABELS, sinks=[seer], comparison=comparison).run()
    compared = summary.compared
    assert compared is not None
    assert (compared.frames, compared.agreed, compared.not_compared, compared.name) == (6, 4, 0, "full")
    assert (compared.agreement, compared.interval) == (4 / 6, wilson(4, 6))
    assert (compared.own.p50_ms, compared.classify.p90_ms) == (pytest.approx(1), pytest.approx(4))
    assert told == [(1, 120), (4, 130)]
    second = seer.seen()[1]
    assert record(second)["other"] == {"label": "dark", "score": 0.9, "agrees": False, "classify_ms": 4.0}
    assert "≠ dark 90.0%" in describe(second)
    assert "= dark 90.0%" in describe(seer.seen()[0])
    assert json.loads(json.dumps(summary.to_json()))["compared"]["interval"]["low"] == wilson(4, 6).low


def test_answers_are_compared_frame_by_frame_before_smoothing() -> None:
    """The same model beside itself agrees with itself, though the smoothed label lags behind."""
    comparison = Comparison(brighter_than(100), LABELS, Rules())
    rules = Rules(smooth=0.9, votes=3, of=5)
    summary = Live([stored([10] * 5 + [200] * 5)], brighter_than(100), LABELS, rules, comparison=comparison).run()
    assert summary.compared is not None
    assert (summary.compared.frames, summary.compared.agreed) == (10, 10)
    assert summary.labels["dark"] > 5


def test_invalid_answers_and_failures_of_the_second_model_are_not_compared_nor_kept() -> None:
    """They are counted apart; the first model's labels are told as ever."""

    def shaky(view: Pixels) -> Scored:
        if view.mean() == 1:
            raise RuntimeError("tensor gone")
        if view.mean() == 2:
            return Scored(np.full(2, np.nan, np.float32))
        return brighter_than(100)(view)

    def first(view: Pixels) -> Scored:
        return Scored(np.zeros(2, np.float32)) if view.mean() == 3 else brighter_than(100)(view)

    told: list[Seen] = []
    seer, comparison = Seer(), Comparison(shaky, LABELS, Rules(), lambda event, view: told.append(event))
    summary = Live([stored([1, 2, 3, 4])], first, LABELS, sinks=[seer], comparison=comparison).run()
    assert summary.compared is not None
    assert (summary.compared.frames, summary.compared.not_compared, told) == (1, 3, [])
    assert [event.decision.label for event in seer.seen()] == ["dark", "dark", "invalid", "dark"]
    assert [event.other and event.other.label for event in seer.seen()] == [None, "invalid", "dark", "dark"]


def test_several_sources_behind_a_gate_are_compared_together() -> None:
    """Both models are shown the region alone, and frames that the gate holds back are shown to neither."""
    sizes: set[tuple[int, ...]] = set()

    def other(view: Pixels) -> Scored:
        sizes.add(view.shape)
        return brighter_than(100)(view)

    sources = [stored([10, 20, 30, 200], "a"), stored([200, 200, 200, 10], "b")]
    kept: list[tuple[int, ...]] = []
    comparison = Comparison(other, LABELS, Rules(), lambda event, view: kept.append(view.shape))
    gate = gate_of(GateSection(every=2, region=(0, 0, 8, 4)), sources)
    summary = Live(sources, brighter_than(25), LABELS, gate=gate, comparison=comparison).run()
    assert summary.compared is not None
    assert (summary.compared.frames, summary.compared.agreed) == (4, 3)
    assert sizes == set(kept) == {(4, 8, 3)}


# Opening the second model


@pytest.fixture
def first(fixtures_folder: Path) -> Classifier:
    return Classifier.load(fixtures_folder / "tiny-int8.tflite", 1)


def carded(fixtures_folder: Path, path: Path, **changes: object) -> Path:
    """The float32 fixture with a changed card."""
    bundle = read_bundle(fixtures_folder / "tiny-float32.tflite")
    assert bundle.card
    path.write_bytes(attach(bundle.model, replace(bundle.card, **changes)))  # type: ignore[arg-type]
    return path


def test_the_second_model_is_opened_warm_and_its_writing_ends_with_it(
    first: Classifier, fixtures_folder: Path, tmp_path: Path
) -> None:
    """Its thread ends with the run; the folder is made."""
    section = CompareSection(str(fixtures_folder / "tiny-float32.tflite"), str(tmp_path / "a" / "kept"))
    with comparing(section, DecideSection(), first, 1, pytest.fail) as (comparison, kept):
        assert comparison is not None
        assert kept is not None
        assert (comparison.name, comparison.labels) == ("tiny-float32.tflite", first.labels)
        assert (tmp_path / "a" / "kept").is_dir()
    assert not any(thread.name == "edgeclf-sink-disagreements" for thread in threading.enumerate())


def test_labels_in_another_order_are_the_same_and_others_are_refused(
    first: Classifier, fixtures_folder: Path, tmp_path: Path
) -> None:
    """In one line that names both sides."""
    swapped = carded(fixtures_folder, tmp_path / "swapped.tflite", labels=first.labels[::-1])
    with comparing(CompareSection(str(swapped)), DecideSection(), first, 1, pytest.fail) as (comparison, _):
        assert comparison is not None
        assert comparison.labels == first.labels[::-1]
    with pytest.raises(ModelError, match=r"full: .*'tree' unknown to the first model, lacks 'blue cross'"):
        check_labels(first.labels, ("red square", "green disc", "tree", "yellow bars"), "full")
    with pytest.raises(ModelError, match=r"lacks 'yellow bars'$"):
        check_labels(first.labels, first.labels[:3], "full")


def test_a_folder_without_a_second_model_and_one_that_cannot_be_written_are_refused(
    first: Classifier, fixtures_folder: Path, tmp_path: Path
) -> None:
    """Before a camera opens."""
    with (
        pytest.raises(ConfigError, match="--compare FILE"),
        comparing(CompareSection(folder="kept"), DecideSection(), first, 1, pytest.fail),
    ):
        pass
    (tmp_path / "file").write_text("in the way")
    section = CompareSection(str(fixtures_folder / "tiny-float32.tflite"), str(tmp_path / "file"))
    with (
        pytest.raises(StorageError, match="file: cannot write: File exists"),
        comparing(section, DecideSection(), first, 1, pytest.fail),
    ):
        pass


def test_the_second_model_answers_by_its_own_card_or_by_the_threshold_that_was_given(
    fixtures_folder: Path, tmp_path: Path
) -> None:
    """An energy means something else to each model, so a given one is not laid on the second."""
    rule = UnknownRule("energy", {"energy": 3.0})
    other = Classifier.load(carded(fixtures_folder, tmp_path / "own.tflite", unknown=rule), 1)
    assert rules_beside(other, DecideSection()).least == 3.0
    assert rules_beside(other, DecideSection(threshold=0.7, votes=2, of=3)) == Rules(thresholds=(0.7,))
    assert rules_beside(other, DecideSection(threshold=99.0, unknown_by="energy")).least == 3.0


def test_models_of_which_only_one_can_say_unknown_are_pointed_out(
    first: Classifier, fixtures_folder: Path, tmp_path: Path
) -> None:
    """Their disagreement would be that of their cards; a threshold for both is no reason to warn."""
    limited = carded(fixtures_folder, tmp_path / "limited.tflite", thresholds=(0.5,) * 4)
    for decide, wanted in ((DecideSection(), 1), (DecideSection(threshold=0.5), 0)):
        warnings: list[str] = []
        with comparing(CompareSection(str(limited)), decide, first, 1, warnings.append):
            assert len(warnings) == wanted


# Keeping frames


VIEW = np.random.RandomState(0).randint(0, 256, (24, 32, 3), dtype=np.uint8)


class Clock:
    """Seconds that only a test moves."""

    now = 5.0

    def __call__(self) -> float:
        return self.now


def keeping(
    folder: Path, clock: Clock, warn: Callable[[str], None] = pytest.fail, **changes: int
) -> tuple[Disagreements, Background]:
    """What keeps frames in that folder, and the sink that it writes through, as `comparing` makes them."""
    section = replace(SECTION, **changes)  # type: ignore[arg-type]
    kept = Disagreements(Folder(folder, section.min_free_mb, None), section, "full.tflite", warn, clock)
    return kept, Background(kept, "disagreements", on_trouble=warn)


def test_a_kept_frame_is_a_jpeg_and_a_json_of_the_same_name(tmp_path: Path) -> None:
    """The picture as both were shown it; the record of both answers; a name that any disk takes and that says both."""
    kept, sink = keeping(tmp_path, Clock())
    sink.emit(seen(), VIEW)
    assert sink.close()
    stem = "20231114T221320.250000Z_rtsp-10-0-0-9-live-a-b_dark-or-bright"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}.jpg", f"{stem}.json"]
    assert cv2.imread(str(tmp_path / f"{stem}.jpg")).shape == VIEW.shape
    table = json.loads((tmp_path / f"{stem}.json").read_text())
    assert (table["label"], table["other"]["label"], table["compared_with"]) == ("dark", "bright", "full.tflite")
    assert kept.saved == 1


def test_frames_are_kept_at_a_bounded_rate_by_the_monotonic_clock(tmp_path: Path) -> None:
    """Sixty a minute is one a second."""
    clock = Clock()
    kept, sink = keeping(tmp_path, clock)
    for i in range(35):
        sink.emit(seen(i, time_s=1_700_000_000 + i), VIEW)
        wait_for(lambda i=i: kept.saved == i // 8 + 1)
        clock.now += 0.125
    assert sink.close()
    assert sorted(json.loads(path.read_text())["frame"] for path in tmp_path.glob("*.json")) == [0, 8, 16, 24, 32]


def test_a_full_folder_takes_no_more_and_is_told_once(tmp_path: Path) -> None:
    """Frames of an earlier run count, and stay."""
    earlier, sink = keeping(tmp_path, Clock())
    sink.emit(seen(), VIEW)
    assert sink.close()
    clock, warnings = Clock(), list[str]()
    kept, sink = keeping(tmp_path, clock, warnings.append, most=3)
    for i in range(6):
        sink.emit(seen(i, time_s=1_800_000_000 + i), VIEW)
        clock.now += 100
        wait_for(lambda i=i: kept.saved == min(i + 1, 2))
    wait_for(lambda: warnings)
    assert sink.close()
    assert warnings == [f"disagreements: {tmp_path}: holds 3 frames or more; no more are kept"]
    assert (earlier.saved, kept.saved, len(list(tmp_path.glob("*.jpg")))) == (1, 2, 3)


def test_nothing_is_removed_to_make_room(tmp_path: Path) -> None:
    """Unlike snapshots: what is kept here was asked for until there is enough of it."""
    clock = Clock()
    kept, sink = keeping(tmp_path, clock)
    large = np.random.RandomState(0).randint(0, 256, (720, 1280, 3), dtype=np.uint8)
    for i in range(3):
        sink.emit(seen(time_s=1_700_000_000 + i), large)
        wait_for(lambda i=i: kept.saved == i + 1)
        clock.now += 1
    assert sink.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > MB
    assert len(list(tmp_path.glob("*.jpg"))) == 3


def test_a_full_disk_is_told_once_and_what_follows_is_kept_again(small_disk: Callable[..., Path]) -> None:
    """No half pair is left; it goes on when something was deleted."""
    disk, clock, warnings = small_disk("256k"), Clock(), list[str]()
    kept, sink = keeping(disk / "kept", clock, warnings.append)
    with contextlib.suppress(OSError), (disk / "junk").open("wb", buffering=0) as junk:
        while junk.write(bytes(4096)):
            pass
    for i in range(3):
        sink.emit(seen(i, time_s=1_700_000_000 + i), VIEW)
        clock.now += 1
        wait_for(lambda i=i: sink.lost == i + 1)
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]
    assert list((disk / "kept").iterdir()) == []
    (disk / "junk").unlink()
    sink.emit(seen(9), VIEW)
    wait_for(lambda: kept.saved)
    assert sink.close()
    assert [json.loads(path.read_text())["frame"] for path in (disk / "kept").glob("*.json")] == [9]
    assert warnings[1] == "disagreements: writing works again; 3 results were lost"


def test_too_little_free_space_and_a_folder_that_went_away_are_told_too(tmp_path: Path) -> None:
    """The floor is respected before anything is written, and a lost folder is not made anew elsewhere."""
    clock, warnings, place = Clock(), list[str](), tmp_path / "kept"
    _, sink = keeping(place, clock, warnings.append, min_free_mb=1 << 40)
    sink.emit(seen(), VIEW)
    wait_for(lambda: warnings)
    assert sink.close()
    assert "are to stay so (min_free_mb)" in warnings[0]
    assert list(place.iterdir()) == []
    kept, sink = keeping(place, clock, warnings.append)
    place.rmdir()
    sink.emit(seen(), VIEW)
    wait_for(lambda: len(warnings) == 2)
    assert "kept is gone" in warnings[1]
    assert not place.exists()
    place.mkdir()
    clock.now += 1
    sink.emit(seen(), VIEW)
    wait_for(lambda: kept.saved)
    assert sink.close()


def test_a_disk_that_blocks_neither_slows_the_loop_nor_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few frames wait, the others are let go; closing gives up after a second and says so."""
    release, clock = threading.Event(), Clock()
    _, sink = keeping(tmp_path, clock)
    monkeypatch.setattr(Folder, "keep", lambda self, written: release.wait(30))
    began = time.monotonic()
    for i in range(1000):
        sink.emit(seen(i), VIEW)
        clock.now += 2
    assert time.monotonic() - began < 1
    assert sink.lost >= 1000 - PICTURES - 1
    assert not sink.close()
    release.set()


def test_one_folder_for_snapshots_and_disagreements_is_refused() -> None:
    """Snapshots remove the oldest of what is there."""
    with pytest.raises(ConfigError, match="give each a folder of its own"):
        LiveSettings("x", compare=SECTION, snapshots=SnapshotsSection("kept"))


@pytest.mark.parametrize("wrong", [{"most": 0}, {"per_minute": 0}, {"min_free_mb": -1}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError):
        CompareSection(**wrong)  # type: ignore[arg-type]
