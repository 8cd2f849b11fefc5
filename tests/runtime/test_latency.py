"""What a benchmark says: percentiles over the runs it made, a cold start that is cold, and where it was measured."""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from edgeclf.core import config
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.core.results import Latency
from edgeclf.runtime import latency
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.engine import Scores


class Sleepy:
    """An engine that takes its time."""

    runtime = "sleep"

    def __init__(self, seconds: float, threads: int) -> None:
        self.seconds, self.threads, self.batches = seconds, threads, []

    def infer(self, batch: Pixels) -> Scores:
        time.sleep(self.seconds)
        self.batches.append(batch.shape)
        return np.zeros((len(batch), 2), np.float32)


CARD = ModelCard("sleepy", ("a", "b"), ImageSpec(8, 6))


def timing(threads: int, frame_ms: float) -> latency.ThreadTiming:
    found = Latency(frame_ms, frame_ms, frame_ms, 9)
    return latency.ThreadTiming(threads, found, found)


def test_timings_are_of_single_prepared_pictures_and_in_milliseconds() -> None:
    """A 2 ms engine reads at least 2 ms; the frame's time includes it."""
    engines = [Sleepy(0.002, 1), Sleepy(0.004, 2)]
    found = latency.time_classifiers([Classifier(e, CARD) for e in engines], seconds=0.3)
    assert [t.threads for t in found] == [1, 2]
    assert found[0].invoke.p50_ms >= 2
    assert found[1].invoke.p50_ms >= 4
    assert found[0].frame.p50_ms >= 2
    assert found[0].invoke.p50_ms <= found[0].invoke.p90_ms <= found[0].invoke.p99_ms
    assert found[0].invoke.runs >= latency.ROUNDS * latency.LEAST_RUNS
    assert set(engines[0].batches) == {(1, 6, 8, 3)}


def test_rounds_alternate_between_settings() -> None:
    """What the machine does meanwhile falls on all of them; the progress counts rounds."""
    seen: list[tuple[int, int]] = []
    latency.time_classifiers([Classifier(Sleepy(0.0, 1), CARD)], 0.1, lambda done, total: seen.append((done, total)))
    assert seen[0] == (1, latency.ROUNDS)
    assert seen[-1] == (latency.ROUNDS, latency.ROUNDS)


def test_the_fewest_threads_that_are_nearly_fastest_are_best() -> None:
    """A third thread for 2% is a waste; one for a third is not."""
    assert latency.best_threads((timing(1, 10.0), timing(2, 6.0), timing(3, 5.9))) == 2
    assert latency.best_threads((timing(1, 1.0), timing(2, 1.3))) == 1


def test_bench_measures_a_real_file(fixtures_folder: Path) -> None:
    """Everything is positive, the sizes are the file's, and it goes to JSON."""
    path = fixtures_folder / "tiny-int8.tflite"
    found = latency.bench(path, [1, 2], seconds=0.4)
    assert [t.threads for t in found.timings] == [1, 2]
    assert found.best in (1, 2)
    assert found.size.file_bytes == path.stat().st_size
    assert found.size.gzip_bytes == len(gzip.compress(path.read_bytes(), 9, mtime=0))
    assert 0 < found.timings[0].invoke.p50_ms <= found.timings[0].frame.p50_ms
    assert json.loads(json.dumps(found.to_json()))["machine"]["cores"] >= 1


def test_a_cold_start_is_of_a_fresh_process(fixtures_folder: Path) -> None:
    """Its memory is its own: this process's arrays do not count."""
    ballast = np.ones(300 << 20, np.uint8)
    found = latency.cold_start(fixtures_folder / "tiny-int8.tflite", 1)
    assert 0 < found.imports_bytes <= found.peak_bytes < ballast.nbytes
    assert min(found.imports_ms, found.load_ms, found.first_ms) > 0
    assert set(asdict(found)) == {"imports_ms", "load_ms", "first_ms", "peak_bytes", "imports_bytes"}


def test_a_cold_start_that_fails_says_why(tmp_path: Path) -> None:
    """In the words of the process that failed."""
    with pytest.raises(ModelError, match=r"could not be measured: .*cannot be read"):
        latency.cold_start(tmp_path / "gone.tflite", 1)


def test_no_threads_are_refused(fixtures_folder: Path) -> None:
    """Zero and an empty list."""
    for threads in ([], [0]):
        with pytest.raises(ConfigError, match="threads"):
            latency.bench(fixtures_folder / "tiny-int8.tflite", threads)


@pytest.mark.parametrize(("bits", "slow"), [("0x0\n", False), ("50000", False), ("50005", True), ("2", True), ("words", False)])
def test_a_throttled_board_is_noticed(bits: str, slow: bool, tmp_path: Path) -> None:
    """Bits 0 to 3 are now, 16 to 19 once since the start; only now counts."""
    assert latency.throttled(tmp_path) is False
    place = tmp_path / "sys/devices/platform/soc/soc:firmware"
    place.mkdir(parents=True)
    (place / "get_throttled").write_text(bits)
    assert latency.throttled(tmp_path) is slow
    assert latency.this_machine(tmp_path).throttled is slow


def test_the_machine_is_named_with_its_vector_units(tmp_path: Path) -> None:
    """They decide what int8 gains; a record without them, as older files hold, is still read."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("model name\t: A PC\nflags\t\t: fpu avx2 avx512_vnni sse\n")
    found = latency.this_machine(tmp_path)
    assert (found.cpu, found.vector_units, found.cores >= 1) == ("A PC", ("AVX2", "AVX-512 VNNI"), True)
    older = {key: value for key, value in asdict(found).items() if key != "vector_units"}
    assert config.build(latency.Machine, older, "costs.json").vector_units == ()
    assert config.build(latency.Machine, json.loads(json.dumps(asdict(found))), "costs.json") == found


def test_the_frame_is_always_the_same() -> None:
    """Or two benchmarks would not compare."""
    assert latency.noise_frame().shape == (480, 640, 3)
    assert (latency.noise_frame() == latency.noise_frame()).all()
