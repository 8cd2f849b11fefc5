"""The number of threads: measured once, remembered for this model on this machine, fewer unless more are clearly faster."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError
from edgeclf.core.files import cache_folder
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.device import threads
from edgeclf.runtime.engine import Scores


class Timed:
    """An engine that sleeps for the milliseconds of its number of threads."""

    runtime = "sleep 1.0"

    def __init__(self, threads: int, ms: dict[int, float]) -> None:
        self.threads, self.ms = threads, ms

    def infer(self, batch: Pixels) -> Scores:
        time.sleep(self.ms[self.threads] / 1000)
        return np.zeros((len(batch), 2), np.float32)


CARD = ModelCard("timed", ("a", "b"), ImageSpec(8, 6))


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgeclf.runtime.latency.cores", lambda: 4)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(threads, "SECONDS", 0.1)
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.1, 0.1))


def timed(ms: dict[int, float]) -> Classifier:
    return Classifier(Timed(1, ms), CARD, reopen=lambda wanted: Timed(wanted or 1, ms))


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ({1: 10.0}, 1), ({1: 10.0, 2: 9.1}, 1), ({1: 10.0, 2: 9.0}, 2), ({1: 10.0, 2: 6.0, 4: 5.5}, 2),
        ({1: 10.0, 2: 6.0, 4: 3.0}, 4), ({1: 10.0, 2: 12.0, 4: 8.0}, 4), ({1: 1.0, 2: 1.5, 4: 3.0}, 1),
    ],
)  # fmt: skip
def test_fewer_threads_unless_more_are_clearly_faster(times: dict[int, float], best: int) -> None:
    """A tenth of the time is clear."""
    assert threads.fewest_nearly_fastest(times) == best


@pytest.mark.parametrize(("most", "numbers"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (4, [1, 2, 4]), (64, [1, 2, 4, 8])])
def test_powers_of_two_are_tried(most: int, numbers: list[int]) -> None:
    """Up to the cores, and to eight."""
    assert threads.candidates(most) == numbers


def test_the_fastest_is_found_and_remembered() -> None:
    """Measured once; the second time nothing runs, as an engine that would fail shows."""
    first = threads.choose(timed({1: 8.0, 2: 2.0, 4: 8.0}), "ab" * 32)
    assert (first.threads, first.why) == (2, "measured now")
    assert [n for n, _ in first.times_ms] == [1, 2, 4]
    again = threads.choose(timed({}), "ab" * 32)
    assert (again.threads, again.why) == (2, "measured before")
    assert "2 (measured before:" in str(again)
    assert threads.choose(timed({1: 1.0, 2: 1.0, 4: 1.0}), "cd" * 32).threads == 1


@pytest.mark.parametrize("change", ["not json", '{"schema": 1}', "[" * 100_000, '{"times_ms": [["x", 1]]}'])
def test_what_is_remembered_elsewhere_or_damaged_is_measured_again(change: str) -> None:
    """The file may have come with a card from another board."""
    threads.choose(timed({1: 4.0, 2: 1.0, 4: 4.0}), "ab" * 32)
    path = cache_folder() / "threads" / f"{'ab' * 32}.json"
    found = json.loads(path.read_text())
    path.write_text(change)
    assert threads.choose(timed({1: 1.0, 2: 4.0, 4: 4.0}), "ab" * 32).threads == 1
    path.write_text(json.dumps({**found, "cores": 2}))
    assert threads.choose(timed({1: 1.0, 2: 4.0, 4: 4.0}), "ab" * 32).threads == 1


def test_a_throttled_measurement_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts for this run only."""
    monkeypatch.setattr("edgeclf.runtime.latency.throttled", lambda root: True)
    assert threads.choose(timed({1: 4.0, 2: 1.0, 4: 4.0}), "ab" * 32).threads == 2
    assert not (cache_folder() / "threads").exists()


def test_a_measurement_on_a_busy_machine_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a board that was busy once would run at half its speed for ever."""
    monkeypatch.setattr("os.getloadavg", lambda: (2.5, 2.0, 2.0))
    assert threads.choose(timed({1: 4.0, 2: 8.0, 4: 8.0}), "ab" * 32).threads == 1
    monkeypatch.setattr("os.getloadavg", lambda: (1.5, 2.0, 2.0))
    assert threads.choose(timed({1: 4.0, 2: 1.0, 4: 4.0}), "ab" * 32).threads == 2
    assert threads.choose(timed({}), "ab" * 32).threads == 2


def test_a_read_only_cache_is_no_hindrance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measured each time then."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGECLF_CACHE", str(tmp_path / "file"))
    assert threads.choose(timed({1: 4.0, 2: 1.0, 4: 4.0}), "ab" * 32).threads == 2


def test_an_engine_that_cannot_be_opened_twice_is_taken_as_it_is() -> None:
    """And so is a single core."""
    assert threads.choose(Classifier(Timed(1, {1: 0.0}), CARD), "ab" * 32).threads == 1


def test_a_real_file_is_loaded_with_its_number(fixtures_folder: Path) -> None:
    """Measured when nothing is said, as given otherwise; below nought is an error."""
    path = fixtures_folder / "tiny-int8.tflite"
    classifier, choice = threads.load_measured(path)
    assert classifier.engine.threads == choice.threads
    assert choice.why == "measured now"
    assert threads.load_measured(path, 0)[1].why == "measured before"
    asked, choice = threads.load_measured(path, 3)
    assert (asked.engine.threads, str(choice)) == (3, "threads: 3 (as asked for)")
    with pytest.raises(ConfigError, match="at least 1"):
        threads.load_measured(path, -1)
