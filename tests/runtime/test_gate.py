"""The gate: which frames are classified and which part of them, by a monotonic clock that tests move by hand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from live_fakes import Seer

from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.image import ImageSpec, Pixels, prepare
from edgeclf.core.live_settings import GateSection
from edgeclf.runtime.decision import Rules
from edgeclf.runtime.events import Seen, Skipped
from edgeclf.runtime.gate import COMPLAIN_S, FrameGate, Motion, cells, changed_share, gate_of
from edgeclf.runtime.live import Limits, Live
from edgeclf.runtime.scoring import Scored
from edgeclf.runtime.sources.camera import Picture, Source
from edgeclf.runtime.sources.capture import Frame

LABELS = ("dark", "bright")


class Clock:
    """Seconds that only a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def frame(index: int, image: Pixels | None = None, name: str = "") -> Frame:
    return Frame(np.zeros((48, 64, 3), np.uint8) if image is None else image, index, 0.0, name)


def scene(seed: int, height: int = 480, width: int = 640) -> Pixels:
    """A smooth picture of many colours."""
    small = np.random.RandomState(seed).randint(0, 256, (9, 12, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def noisy(image: Pixels, sigma: float, seed: int, light: float = 1.0) -> Pixels:
    noise = np.random.RandomState(seed).normal(0, sigma, image.shape)
    return np.clip(image * light + noise, 0, 255).astype(np.uint8)


def brightness(view: Pixels) -> Scored:
    bright = view.mean() / 255
    return Scored(np.array([1 - bright, bright], np.float32))


class Playing:
    """A reader of these pictures, one each `pause_s`."""

    note = ""
    interval_s = 0.0

    def __init__(self, pictures: list[Pixels], pause_s: float = 0.0, name: str = "") -> None:
        self._pictures, self._pause_s, self._name = iter(pictures), pause_s, name

    def read(self) -> Picture | None:
        time.sleep(self._pause_s)
        image = next(self._pictures, None)
        return None if image is None else Picture(image, self._name)

    def close(self) -> None:
        """Nothing is held."""


def grey(value: int, height: int = 48, width: int = 64) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


# Each Nth, and so many a second


def test_each_nth_frame_is_taken() -> None:
    """The first one, then N further on; a camera that drops frames in between does not lengthen the wait."""
    gate = FrameGate(GateSection(every=3))
    assert [i for i in range(10) if gate.admits(frame(i))] == [0, 3, 6, 9]
    dropping = FrameGate(GateSection(every=3))
    assert [i for i in (0, 2, 4, 6, 7, 8) if dropping.admits(frame(i))] == [0, 4, 7]


@pytest.mark.parametrize("camera_fps", [11, 24, 30, 60, 1000])
def test_so_many_a_second_are_taken_and_no_more(camera_fps: int) -> None:
    """Of a camera of any rate, ten, whatever the two rates have in common."""
    clock = Clock()
    gate = FrameGate(GateSection(max_fps=10), clock=clock)
    taken = []
    for i in range(camera_fps * 10):
        clock.now = 100 + i / camera_fps
        if gate.admits(frame(i)):
            taken.append(clock.now)
    assert 95 <= len(taken) <= 100
    assert all(late - early > 0.05 for early, late in itertools.pairwise(taken))


def test_a_pause_is_not_made_up_for() -> None:
    """After a minute without frames the rate is as before, with no burst."""
    clock = Clock()
    gate = FrameGate(GateSection(max_fps=2), clock=clock)
    assert gate.admits(frame(0))
    clock.now += 60
    taken = 0
    for i in range(1, 101):
        clock.now += 0.01
        taken += gate.admits(frame(i))
    assert taken == 2


def test_the_rate_limit_takes_the_newest_frame_of_a_camera() -> None:
    """Its age at the label is that of a fresh frame, not of one that waited for its turn."""
    pictures = [grey(i) for i in range(200)]
    source = Source("camera", lambda: Playing(pictures, 0.01), live=True)
    gate = gate_of(GateSection(max_fps=5), [source])
    summary = Live([source], brightness, LABELS, gate=gate, limits=Limits(seconds=1.5)).run()
    assert 4 <= summary.frames <= 9
    assert summary.gated > 10
    assert summary.stages["age"].p50_ms < 50  # a frame that had waited would be up to 200 ms old


def test_each_source_has_its_own_gate() -> None:
    """A busy camera does not take another one's turn."""
    sources = [Source(name, lambda: Playing([grey(i) for i in range(40)]), live=False) for name in ("a", "b")]
    seer = Seer()
    Live(sources, brightness, LABELS, sinks=[seer], gate=gate_of(GateSection(every=10), sources)).run()
    taken = [(event.source, event.frame) for event in seer.events if isinstance(event, Seen)]
    assert sorted(taken) == [(name, index) for name in ("a", "b") for index in (0, 10, 20, 30)]


def test_no_gate_is_made_where_every_frame_is_wanted() -> None:
    """And a rate makes no sense for what is read completely, at no rate of its own."""
    stored = [Source("v", lambda: Playing([]), live=False)]
    assert gate_of(GateSection(), stored) is None
    with pytest.raises(ConfigError, match="add --realtime, or take each Nth frame: --every N"):
        gate_of(GateSection(max_fps=5), stored)


@pytest.mark.parametrize("jump_s", [-86_400.0, 31_536_000.0])
def test_a_wall_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    """A day back or a year on: no stall, no negative time, the same rate; only records carry the other date."""
    real, calls = time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + (jump_s if next(calls) % 20 >= 10 else 0.0))
    source = Source("camera", lambda: Playing([grey(i % 256) for i in range(400)], 0.01), live=True, reopen=True)
    seer = Seer()
    gate = gate_of(GateSection(max_fps=20), [source])
    live = Live([source], brightness, LABELS, Rules(smooth=0.5), [seer], Limits(seconds=1.5), gate=gate)
    summary = live.run()
    seen = [event for event in seer.events if isinstance(event, Seen)]
    assert 1.4 < summary.seconds < 10
    assert 10 <= summary.frames <= 1 + 20 * summary.seconds
    assert (summary.stalls, summary.reconnects) == (0, 0)
    assert all(min(e.stages.age_ms, e.stages.decide_ms, e.fps) >= 0 for e in seen)
    assert abs(max(e.time_s for e in seen) - min(e.time_s for e in seen)) > 80_000


# The region


def test_a_region_in_pixels_is_exactly_that_part() -> None:
    """A view of the frame, not a copy."""
    image = scene(0)
    view = FrameGate(GateSection(region=(100, 50, 200, 300))).view(image)
    assert (view == image[50:350, 100:300]).all()
    assert view.base is image


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (7, 5), (1, 1)])
def test_a_region_in_shares_fits_every_size(size: tuple[int, int]) -> None:
    """At least a pixel, never beyond the edge, and all of it where the shares are all."""
    image = np.zeros((*size, 3), np.uint8)
    view = FrameGate(GateSection(region=(0.9, 0.7, 0.1, 0.3))).view(image)
    assert 1 <= view.shape[0] <= size[0]
    assert 1 <= view.shape[1] <= size[1]
    assert FrameGate(GateSection(region=(0.0, 0.0, 1.0, 1.0))).view(image).shape == image.shape
    half = FrameGate(GateSection(region=(0.25, 0.5, 0.5, 0.5))).view(np.zeros((480, 640, 3), np.uint8))
    assert half.shape == (240, 320, 3)


def test_the_network_sees_the_region_alone() -> None:
    """As if the picture had been cut before."""
    image, spec = scene(1), ImageSpec(32, 32)
    view = FrameGate(GateSection(region=(64, 32, 128, 96))).view(image)
    assert (prepare(view, spec) == prepare(np.ascontiguousarray(image[32:128, 64:192]), spec)).all()


@pytest.mark.parametrize(
    "region",
    [(0, 0, 10), (0.5, 0, 0.6, 1), (-1, 0, 10, 10), (0, 0, 0, 10), (float("nan"), 0, 1, 1), (0.5, 0, 20, 20), (1.5, 0, 20, 20)],
)
def test_regions_that_cannot_be_are_refused(region: tuple[float, ...]) -> None:
    """Too few numbers, beyond the edge, empty, no number, half a pixel."""
    with pytest.raises(ConfigError, match="expected x, y, width, height"):
        GateSection(region=region)


def test_a_region_outside_the_first_picture_ends_the_run_with_one_line() -> None:
    """Before anything is classified."""
    source = Source("camera", lambda: Playing([grey(1)] * 3), live=False)
    gate = gate_of(GateSection(region=(60, 0, 20, 20)), [source])
    with pytest.raises(ConfigError, match=r"region 60,0,20,20 lies outside the picture of 64x48 pixels; give another, or shares"):
        Live([source], brightness, LABELS, gate=gate).run()


def test_a_size_that_changes_mid_stream_is_told_once_and_the_rest_is_classified() -> None:
    """Frames that do not hold the region are passed over; those that do again are answered again."""
    pictures = [grey(10)] * 3 + [grey(20, 8, 8)] * 5 + [grey(250)] * 3
    source, seer = Source("camera", lambda: Playing(pictures), live=False), Seer()
    summary = Live([source], brightness, LABELS, sinks=[seer], gate=gate_of(GateSection(region=(0, 0, 20, 20)), [source])).run()
    assert (summary.frames, summary.skipped, summary.gated) == (6, 1, 4)
    reasons = [event.reason for event in seer.events if isinstance(event, Skipped)]
    assert reasons == ["frame 3: region 0,0,20,20 lies outside the picture of 8x8 pixels; give another, or shares"]


def test_a_region_that_stays_outside_is_told_again_so_that_the_run_ends() -> None:
    """Every ten seconds; a run that gives no labels must not go on for ever."""
    clock, small = Clock(), grey(1, 8, 8)
    gate = FrameGate(GateSection(region=(0, 0, 20, 20)), clock=clock)
    assert gate.admits(frame(0))
    assert [gate.admits(frame(i, small)) for i in range(1, 4)] == [True, False, False]
    clock.now += COMPLAIN_S
    assert gate.admits(frame(4, small))
    with pytest.raises(DataError):
        gate.view(small)


def test_each_picture_of_a_folder_that_is_too_small_is_named() -> None:
    """It is a file of its own, so the first is no reason to end, and each is told."""
    gate = FrameGate(GateSection(region=(0, 0, 20, 20)), clock=Clock())
    small = grey(1, 8, 8)
    assert [gate.admits(frame(i, small, f"{i}.jpg")) for i in range(3)] == [True, True, True]


# Motion


def admitted(gate: FrameGate, clock: Clock, images: list[Pixels], apart_s: float = 0.1, valid: bool = True) -> list[int]:
    """Which of the frames, so far apart, are admitted, each then classified."""
    taken = []
    for i, image in enumerate(images):
        clock.now += apart_s
        if gate.admits(frame(i, image)):
            gate.answered(valid)
            taken.append(i)
    return taken


@pytest.mark.parametrize("sigma", [0, 3, 10, 20])
def test_noise_is_no_motion(sigma: float) -> None:
    """A still scene is classified once, however grainy the camera."""
    clock = Clock()
    gate = FrameGate(GateSection(motion=0.005), clock=clock)
    assert admitted(gate, clock, [noisy(scene(0), sigma, i) for i in range(12)]) == [0]


def test_slow_light_is_no_motion() -> None:
    """Dusk within a minute: a fifth darker over 50 s."""
    clock = Clock()
    gate = FrameGate(GateSection(motion=0.005), clock=clock)
    assert admitted(gate, clock, [noisy(scene(0), 4, i, 1 - i / 60) for i in range(12)], apart_s=4.5) == [0]


@pytest.mark.parametrize("sigma", [0, 10])
def test_something_that_comes_and_goes_is_motion(sigma: float) -> None:
    """A box over 3% of the picture is more than a hundredth, and less than a tenth."""
    with_box = scene(0)
    with_box[100:200, 300:392] = 255 - with_box[100:200, 300:392]
    images = [noisy(image, sigma, i) for i, image in enumerate([scene(0)] * 3 + [with_box] * 3 + [scene(0)] * 3)]
    for share, wanted in ((0.01, [0, 3, 6]), (0.1, [0])):
        clock = Clock()
        assert admitted(FrameGate(GateSection(motion=share), clock=clock), clock, images) == wanted


def test_a_change_of_light_does_not_hide_what_moves() -> None:
    """A faint box in a picture that has become darker meanwhile is seen as in one that has not."""
    calm = (scene(0) // 2 + 60).astype(np.uint8)
    with_box = calm.copy()
    with_box[100:200, 300:392] += 35
    for light in (0.85, 1.0, 1.15):
        assert changed_share(cells(noisy(calm, 2, 0)), cells(noisy(calm, 2, 1, light))) == 0
        assert changed_share(cells(noisy(calm, 2, 0)), cells(noisy(with_box, 2, 1, light))) > 0.02


def test_another_scene_another_size_and_another_colour_are_motion() -> None:
    """A cut changes everything, so noise must not be taken from it; colours of the same grey differ."""
    assert changed_share(cells(scene(0)), cells(scene(1))) > 0.5
    red, blue = grey(0), grey(0)
    red[..., 2], blue[..., 0] = 76, 200
    assert changed_share(cells(red), cells(blue)) == 1
    motion = Motion(0.01, 60)
    assert motion.is_due(scene(0), 0)
    motion.classified(0)
    assert motion.is_due(scene(0, 240, 320), 0)


def test_black_and_tiny_pictures_are_compared_too() -> None:
    """A lens cap, and fewer pixels than cells."""
    assert changed_share(cells(grey(0)), cells(grey(0))) == 0
    assert changed_share(cells(grey(0)), cells(grey(200))) == 1
    assert cells(grey(1, 2, 3)).shape == (2, 3, 3)


def test_a_still_scene_is_classified_again_after_its_time() -> None:
    """By the monotonic clock, as often as `refresh_s` says."""
    clock = Clock()
    gate = FrameGate(GateSection(motion=0.01, refresh_s=5), clock=clock)
    assert admitted(gate, clock, [scene(0)] * 50, apart_s=0.25) == [0, 20, 40]


def test_a_slow_drift_adds_up_to_motion() -> None:
    """Compared with the frame classified last, not with the one before."""
    clock = Clock()
    gate = FrameGate(GateSection(motion=0.02, refresh_s=1e6), clock=clock)
    images = [np.roll(scene(0), 2 * i, axis=1) for i in range(40)]
    taken = admitted(gate, clock, images)
    assert 3 <= len(taken) < 40


def test_a_frame_without_a_valid_answer_does_not_count_as_classified() -> None:
    """`invalid` is no answer to a still scene, so the next frame is tried."""
    clock = Clock()
    gate = FrameGate(GateSection(motion=0.01), clock=clock)
    assert admitted(gate, clock, [scene(0)] * 3, valid=False) == [0, 1, 2]
    assert admitted(gate, clock, [scene(0)] * 3) == []  # indices start again, so nothing is new
    fresh = FrameGate(GateSection(motion=0.01), clock=clock)
    assert fresh.admits(frame(0, scene(0)))
    assert fresh.admits(frame(1, scene(0)))  # the first one was never answered: it failed


@pytest.mark.parametrize("rules", [Rules(votes=3, of=5), Rules(smooth=0.8), Rules(smooth=0.6, votes=2, of=2)])
def test_smoothing_and_votes_come_to_an_answer_behind_a_motion_gate(rules: Rules) -> None:
    """After a change enough frames of the scene that is still again are let through, and then no more."""
    pictures = [grey(20)] * 60 + [grey(240)] * 60
    source, seer = Source("camera", lambda: Playing(pictures), live=False), Seer()
    gate = gate_of(GateSection(motion=0.01), [source], rules.settling)
    summary = Live([source], brightness, LABELS, rules, [seer], gate=gate).run()
    changes = [e.decision.stable for e in seer.events if isinstance(e, Seen) and e.decision.changed]
    assert changes == ["dark", "bright"]
    assert summary.frames == 2 * rules.settling
    assert summary.gated == 120 - summary.frames


def test_motion_is_looked_for_in_the_region_alone() -> None:
    """A road beside the garden gate does not matter."""
    clock, moved = Clock(), scene(0)
    moved[:, 320:] = 255 - moved[:, 320:]
    for region, wanted in (((0.0, 0.0, 0.5, 1.0), [0]), ((0.5, 0.0, 0.5, 1.0), [0, 1])):
        gate = FrameGate(GateSection(motion=0.01, region=region), clock=clock)
        assert admitted(gate, clock, [scene(0), moved, moved]) == wanted


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920)])
def test_looking_for_motion_costs_little(size: tuple[int, int]) -> None:
    """Below 0.1 ms on a free core; the bound here leaves room for a busy one."""
    before, now = scene(0, *size), noisy(scene(0, *size), 5, 0)
    gate = FrameGate(GateSection(motion=0.01))
    gate.admits(frame(0, before))
    gate.answered(True)
    indices = itertools.count(1)
    assert min(_timed(lambda: gate.admits(frame(next(indices), now))) for _ in range(200)) < 0.0005


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize("wrong", [{"motion": 1.0}, {"motion": -0.1}, {"every": 0}, {"max_fps": -1.0}, {"refresh_s": 0.0}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError):
        GateSection(**wrong)  # type: ignore[arg-type]
