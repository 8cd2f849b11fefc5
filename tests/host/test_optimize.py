"""Optimize: the points of the search, the arithmetic of the choice, and the loop around a stand-in for making files."""

import json
import types

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray_fakes import Here

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, MissingExtra, ModelError, QualityError, StorageError
from edgeclf.core.image import ImageSpec
from edgeclf.core.recipe import load_recipe
from edgeclf.core.results import Interval, Latency, paired_drop
from edgeclf.host.export.export import Exported
from edgeclf.host.optimize import choice as optimize_choice
from edgeclf.host.optimize import cost as optimize_cost
from edgeclf.host.optimize import files as optimize_files
from edgeclf.host.optimize import optimize, ray_optimize
from edgeclf.host.optimize import space as optimize_space
from edgeclf.host.optimize import trial as optimize_trial
from edgeclf.host.optimize.choice import Entrant, Limits, choose, pareto, refusal
from edgeclf.host.optimize.cost import Board, Costs
from edgeclf.host.optimize.space import Configuration, Network, configurations
from edgeclf.host.optimize.trial import Made, Measured
from edgeclf.host.ray_workers import Setting
from edgeclf.host.report.timing import Timing
from edgeclf.host.run import Run
from edgeclf.host.tune.study import DATABASE
from edgeclf.runtime.latency import this_machine

pytest.importorskip("optuna")
DRAW = optimize_files.draw
HERE = Board("", "this machine", True, False)
PI5 = Board("raspberry-pi-5", "Raspberry Pi 5", False, True)


def drop_of(lost, total=2000):
    """A paired drop: `lost` of the pictures, all right before, are wrong after."""
    rows = np.arange(total)
    return paired_drop(rows >= 0, rows >= lost)


def timing_of(p50_ms):
    """A steady timing of twenty rounds."""
    return Timing(Latency(p50_ms, p50_ms, p50_ms, 200), p50_ms, p50_ms, (p50_ms,) * 20)


def entrant(number, lost=0, p50_ms=1.0, file_bytes=1000, instructions=None):
    return Entrant(number, Configuration("int8", f"r{number}"), drop_of(lost), file_bytes, 500, timing_of(p50_ms), instructions)


points = st.lists(st.tuples(*[st.integers(0, 4).map(float)] * 3), min_size=1, max_size=12)


@given(points)
def test_the_pareto_front_is_what_nothing_dominates(values):
    """No point of the front beats another of it, and every other point is beaten by one of it."""
    front = [values[i] for i in pareto(values)]

    def beats(one, other):
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    assert front
    assert not any(beats(one, other) for one in front for other in front)
    assert all(any(beats(one, value) for one in front) for value in values if value not in front)


def test_points_are_all_different_and_trained_networks_keep_their_ranges():
    """33 files of a network; equalised layers and estimators only where no training found ranges."""
    assert len(configurations()) == 33
    assert len({c.name for c in configurations(("qat", "channels"))}) == len(configurations(("qat", "channels")))
    of_qat = [c for c in configurations(("qat",)) if c.network.qat]
    assert {c.ranges for c in of_qat if c.variant == "int8"} == {"trained"}
    assert "equalised" not in {c.treatment for c in of_qat}
    assert Network(prune_channels=0.5, qat=True).name == "channels50-qat"


def test_sparse_files_are_searched_where_weights_were_pruned_and_nowhere_else():
    """By the run itself or by a network of the search: their zeros are left out of the file."""
    assert not [c for c in configurations() if c.variant == "float16-sparse"]
    assert [c.name for c in configurations(pruned=True) if c.variant == "float16-sparse"] == ["float16-sparse"]
    assert {c.network.prune for c in configurations(("sparsity",)) if c.variant == "float16-sparse"} == {0.5, 0.8}


@pytest.mark.parametrize(
    ("entrants", "winner"),
    [
        ([entrant(1, p50_ms=2.0), entrant(2, lost=9, p50_ms=1.0)], 2),  # the fastest
        ([entrant(1, file_bytes=1000), entrant(2, lost=9, p50_ms=1.01, file_bytes=900)], 2),  # as fast and smaller
        ([entrant(1, lost=9, file_bytes=1000), entrant(2, file_bytes=1005)], 2),  # as fast, as small, loses less
        ([entrant(1), entrant(2)], 1),  # equal in everything
        ([entrant(1, p50_ms=1.0, instructions=9_000), entrant(2, p50_ms=9.0, instructions=8_000)], 2),  # a count before time
        ([entrant(1, instructions=10_000), entrant(2, file_bytes=900, instructions=10_100)], 2),  # one percent is nothing
    ],
)
def test_the_fastest_wins_and_where_that_cannot_be_told_the_smaller_then_the_better(entrants, winner):
    """By 2% of instructions, or of the interval over rounds."""
    assert choose(entrants).winner.number == winner


def test_no_candidate_is_no_choice_and_the_nearest_of_each_limit_is_told():
    """One line with every limit in it."""
    assert choose([]) is None
    entrants = [entrant(1, lost=60, file_bytes=1000), entrant(2, lost=2, file_bytes=9000, p50_ms=0.5)]
    told = refusal(entrants, Limits(0.0001, 0.1, 2000))
    assert told.startswith("none of 2 files holds all limits; --max-drop 0.01: 0 hold it, nearest int8, r2 ranges with +0.10 (")
    assert "--max-latency-ms 0.1: 0 hold it, nearest int8, r2 ranges with 0.500 ms here" in told
    assert told.endswith("--max-size-kb 2: 1 holds it, nearest int8, r1 ranges with 1 kB")


def test_a_drop_holds_only_with_its_interval():
    """Twenty of 2,000 lost are one point; the interval reaches above it."""
    assert not optimize_choice.holds(entrant(1, lost=20), Limits(drop=0.01))
    assert optimize_choice.holds(entrant(1, lost=5), Limits(drop=0.01))


@pytest.mark.parametrize(
    ("values", "says"),
    [((0, None, None), "--max-drop 0"), ((None, -1, None), "--max-latency-ms -1"), ((None, None, 0), "--max-size-kb 0")],
)
def test_a_limit_that_is_none_names_its_option(values, says):
    with pytest.raises(ConfigError, match=says):
        optimize_choice.limits(*values)


def test_structure_is_that_of_kernels_and_not_of_values(fixtures_folder):
    """Other types are another structure; what stands behind the flatbuffer is no part of it."""
    int8, float32 = ((fixtures_folder / f"tiny-{name}.tflite").read_bytes() for name in ("int8", "float32"))
    assert optimize_trial.structure_of(int8) == optimize_trial.structure_of(int8 + b"")
    assert optimize_trial.structure_of(int8) != optimize_trial.structure_of(float32)


def test_a_board_that_is_not_emulated_here_says_so(monkeypatch, tmp_path):
    """Ranked by time here, with what to do; the limit is named as judged here, and by what machine."""
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path))
    board = optimize_cost.board("pi4")
    assert (board.name, board.counted, board.ranked_on) == ("raspberry-pi-4", False, "this machine")
    (note,) = board.notes(10)
    assert "latency of raspberry-pi-4 cannot be measured here, so --max-latency-ms 10 is judged on this machine's time" in note
    assert this_machine().cpu in note
    assert "tools/emulated_pi/build.py" in note
    assert "there is no emulated Raspberry Pi Zero 2 W" in optimize_cost.board("raspberry-pi-zero-2w").notes(None)[0]
    assert optimize_cost.board("host").notes(10) == ()


def test_costs_are_measured_once_and_counted_for_each_board(monkeypatch, fixtures_folder, tmp_path):
    """A file that does not run on the board has no count; another board is counted without timing again."""
    timed, counted = [], []

    def interleaved(calls, rounds, report):
        timed.append(sorted(calls))
        return {name: timing_of(1.0) for name in calls}

    def count(bundle, device, home):
        if device == "pi4":
            raise ModelError("no kernel")
        counted.append(device)
        return types.SimpleNamespace(instructions=7)

    monkeypatch.setattr(optimize_cost.timing, "interleaved", interleaved)
    monkeypatch.setattr(optimize_cost.emulate, "count", count)
    (tmp_path / "a.tflite").write_bytes((fixtures_folder / "tiny-int8.tflite").read_bytes())
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    pi4 = Board("raspberry-pi-4", "Raspberry Pi 4", False, True)
    for board, found in ((HERE, None), (PI5, 7), (PI5, 7), (pi4, None)):
        assert optimize_cost.measure(tmp_path, ["a"], board, picture).instructions("a", board) == found
    assert (timed, counted) == ([["a"]], ["pi5"])


class Shop:
    """A stand-in for making and measuring: files that lose by their treatment, of which it keeps a list."""

    def __init__(self):
        self.made, self.cut_at, self.refuses = [], None, ""
        dataset = types.SimpleNamespace(
            shards=types.SimpleNamespace(take=lambda rows: np.zeros((1, 2, 2, 3), np.uint8)), parts={"val": np.arange(9)}
        )
        self.setting = types.SimpleNamespace(dataset=dataset)

    def float32(self):
        return None

    def candidate(self, wanted, notes=None):
        self.notes = notes
        return types.SimpleNamespace(card=types.SimpleNamespace(variant=wanted.variant), wanted=wanted)

    def finish(self, candidate, path, most_bytes, bar):
        if candidate.wanted.name == self.refuses:
            raise QualityError("constant output")
        path.write_bytes(b"x" * 9)
        return Exported("int8", "uint8", path, 9, 0.9, Interval(0.8, 1.0), drop_of(1), 0.99, 0.5, "nothing")

    def measure(self, bench, wanted, float32, known, folder):
        if self.cut_at == len(self.made):
            raise KeyboardInterrupt
        self.made.append(wanted)
        if wanted.kept == 8:
            raise ModelError("only 5 layers can be kept in floats")
        known.setdefault(wanted.variant, 1.0)
        lost = {"float32": 0, "int8": 8, "mixed": 6}.get(wanted.variant, 30) - (wanted.treatment == "corrected")
        size = {"float32": 4000, "mixed": 2000}.get(wanted.variant, 1000)
        return Measured(drop_of(lost), size, size // 2, wanted.variant, 1.0)


@pytest.fixture
def shop(monkeypatch):
    """Everything but the loop, the database and the choice is a stand-in; float32 needs 4 ms, mixed 2, the rest 1.

    Ten files can be made of a network, or rather nine: a mixed one fails.
    """
    made = Shop()
    monkeypatch.setattr(optimize_space, "ESTIMATORS", ("robust",))
    monkeypatch.setattr(optimize_space, "KEPT", (1, 8))
    monkeypatch.setattr(optimize_files, "draw", lambda figure, found: None)
    monkeypatch.setattr(optimize_trial, "open_bench", lambda run, io, bar: made)
    monkeypatch.setattr(optimize_trial, "measure", made.measure)
    monkeypatch.setattr(optimize_cost, "measure", lambda folder, structures, *rest: Costs(
        this_machine(), {s: timing_of({"float32": 4.0, "mixed": 2.0}.get(s, 1.0)) for s in structures}
    ))  # fmt: skip
    return made


@pytest.fixture
def run(tmp_path):
    """A run folder that only its stand-ins read."""
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "model.keras").write_bytes(b"network")
    card = ModelCard("net", ("a", "b"), ImageSpec(8, 8), provenance={"data": "x.npz", "fingerprint": "f", "created": "now"})
    return Run(folder, load_recipe("compact"), card)


def seen(search):
    return json.loads((search.folder / "optimize.json").read_text())


def test_every_file_is_made_once_and_the_winner_lies_in_the_run_folder(shop, run, monkeypatch):
    """Table, JSON and figure are left; files that could not be made are in the table with their reason."""
    monkeypatch.setattr(optimize_files, "draw", DRAW)
    search = optimize.start(run)
    found = optimize.optimize(search, Limits(drop=0.01, file_bytes=1500))
    assert len(shop.made) == len(set(shop.made)) == 10
    assert found.choice.winner.configuration.treatment == "corrected"
    assert (run.folder / "net-optimized-int8.tflite").is_file()
    assert shop.notes["optimize"]["considered"] == len(found.entrants) == 9
    assert shop.notes["optimize"]["created"] == "now"
    assert len((search.folder / "candidates.csv").read_text().splitlines()) == 11
    failed = [c["reason"] for c in seen(search)["candidates"] if c["state"] == "failed"]
    assert failed == ["only 5 layers can be kept in floats"]
    assert cv2.imread(str(search.folder / "pareto.png")).std() > 5


def test_other_limits_measure_nothing_again(shop, run):
    """The same folder, the same files, another winner."""
    optimize.optimize(optimize.start(run), Limits(file_bytes=1500))
    before = len(shop.made)
    found = optimize.optimize(optimize.start(run), Limits(drop=0.0025))
    assert len(shop.made) == before
    assert found.choice.winner.configuration.variant == "float32"


def test_ctrl_c_loses_only_the_file_under_way(shop, run):
    """What was cut short is done again, and the rest is not."""
    shop.cut_at = 4
    with pytest.raises(KeyboardInterrupt):
        optimize.optimize(optimize.start(run), trials=7)
    shop.cut_at = None
    found = optimize.optimize(optimize.start(run), trials=7)
    assert [trial.number for trial in found.trials] == list(range(1, 8))
    assert len(shop.made) == len(set(shop.made)) == 7
    assert shop.made[0] == Configuration("int8", "robust", "plain")


def test_files_that_workers_make_are_timed_here_once_a_batch_is_there(shop, run, monkeypatch):
    """Each structure once, with no file under way; what fails keeps its reason; the winner is the one of the local engine."""
    events = []

    def make(bench, wanted, folder):
        found = shop.measure(bench, wanted, None, {}, folder)
        events.append("made")
        return Made(found.drop, found.file_bytes, found.gzip_bytes, found.structure)

    ray_optimize._bench.cache_clear()
    monkeypatch.setattr(Setting, "settle", lambda setting, results: None)
    monkeypatch.setattr(ray_optimize, "open_run", lambda folder: run)
    monkeypatch.setattr(optimize_trial, "open_bench", lambda run, io, bar=None: shop)
    monkeypatch.setattr(optimize_trial, "make", make)
    monkeypatch.setattr(optimize_trial, "relative_time", lambda folder, structure, *rest: events.append(structure) or 1.0)
    found = optimize.optimize(optimize.start(run), Limits(drop=0.01, file_bytes=1500), workers=Here())
    assert len(shop.made) == len(set(shop.made)) == 10
    assert [trial.number for trial in found.trials] == list(range(1, 11))
    assert found.choice.winner.configuration.treatment == "corrected"
    assert [trial.reason for trial in found.trials if trial.state == "failed"] == ["only 5 layers can be kept in floats"]
    timed = [event for event in events if event != "made"]
    assert sorted(timed) == sorted({trial.structure for trial in found.trials if trial.structure})
    assert events[:4].count("made") >= 3  # of the first batch of four, one of which may fail


def test_time_that_is_over_ends_the_search_with_what_there_is(shop, run, monkeypatch):
    """The clock jumps behind the second file."""
    now = [0.0]
    monkeypatch.setattr(optimize.time, "monotonic", lambda: now[0])

    def on_trial(trial, trials):
        now[0] += 1000.0 * (trial.number == 2)

    found = optimize.optimize(optimize.start(run), minutes=1, watch=optimize.Watch(on_trial))
    assert len(found.trials) == 2


def test_without_a_winner_nothing_is_written_but_what_was_measured(shop, run):
    """The file's property raises the one line; exit code 7."""
    found = optimize.optimize(optimize.start(run), Limits(file_bytes=10))
    assert (found.choice, found.exported) == (None, None)
    with pytest.raises(QualityError, match=r"none of 9 files holds all limits; --max-size-kb 0\.01: 0 hold it, nearest"):
        _ = found.file
    assert not list(run.folder.glob("*.tflite"))
    assert seen(found.search)["winner"] is None


def test_a_winner_that_the_gates_refuse_makes_way_for_the_next(shop, run):
    """What was passed over is told, and is not the reason."""
    limits = Limits(file_bytes=1500, drop=0.01)
    shop.refuses = optimize.optimize(optimize.start(run), limits).choice.winner.configuration.name
    found = optimize.optimize(optimize.start(run), limits)
    assert found.choice.winner.configuration.name != shop.refuses
    assert found.refused == (f"{shop.refuses}: constant output",)


def test_networks_are_trained_once_and_a_failing_one_fails_once(shop, run, monkeypatch):
    """Its files fail with its reason; a full disk ends the search."""
    asked = []

    def compressed(run, network, folder, epochs, listeners):
        asked.append(network)
        raise ConfigError("too few channels") if network.prune_channels else StorageError("disk full")

    monkeypatch.setattr(optimize_trial, "compressed", compressed)
    found = optimize.optimize(optimize.start(run, ["channels"]), trials=12)
    assert 1 <= len(asked) == len(set(asked)) <= 3
    assert len(found.trials) == 12
    assert {t.reason for t in found.trials if t.configuration.network.name} == {"too few channels"}
    assert (run.folder / "optimize-channels").is_dir()
    with pytest.raises(StorageError):
        optimize.optimize(optimize.start(run, ["qat"]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"train": ["pruning"]}, "--train pruning: expected one of: qat, channels, sparsity, clustering"),
        ({"epochs": 3}, "--epochs 3: is about what --train trains"),
        ({"io": "int4"}, "io 'int4'"),
    ],
)
def test_what_cannot_be_searched_is_told_before_anything_is_read(run, arguments, says):
    with pytest.raises(ConfigError, match=says):
        optimize.start(run, **arguments)


def test_a_folder_keeps_to_what_it_was_started_with(shop, run):
    """A network that was trained again is another search; a damaged database is told."""
    search = optimize.start(run)
    optimize.optimize(search, trials=1)
    (run.folder / "model.keras").write_bytes(b"another network")
    with pytest.raises(ConfigError, match="was started with another network"):
        optimize.start(run)
    (run.folder / "model.keras").write_bytes(b"network")
    (search.folder / DATABASE).write_bytes(b"no database at all, but long enough" * 100)
    with pytest.raises(StorageError, match=r"trials\.db: cannot be used"):
        optimize.optimize(search)


def test_without_optuna_the_extra_and_the_verb_are_named(run, monkeypatch):
    """As tune does."""
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"'optimize' needs Optuna.*edgeclf\[tune\]"):
        optimize.start(run)
