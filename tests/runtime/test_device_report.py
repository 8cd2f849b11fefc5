"""The device report: what a board was measured to do, written there, read elsewhere, never trusted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeclf.core.errors import DataError
from edgeclf.core.results import Interval, Latency, Size
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.device import device_report
from edgeclf.runtime.device.device_report import Answered, DeviceReport, FileReport, StageTimes
from edgeclf.runtime.device.vitals import Throttle, Vitals
from edgeclf.runtime.latency import Bench, ColdStart, Machine, ThreadTiming, bench

TIME = Latency(1.0, 2.0, 3.0, 100)
STAGES = StageTimes(*[TIME] * 6)
FILE = FileReport(
    "a-int8.tflite", "ab" * 32, "LiteRT 2.3.0", Size(1000, 900), 2, ColdStart(1.0, 2.0, 3.0, 60 << 20, 50 << 20),
    (ThreadTiming(1, TIME, TIME), ThreadTiming(2, TIME, TIME)), STAGES, Answered(0.9, Interval(0.8, 0.95), 50, "photos", "test"),
)  # fmt: skip
MACHINE = Machine("Raspberry Pi 4 Model B Rev 1.4", 4, "Linux 6.6 aarch64", "3.11.2", 0.1, False, ("NEON",))
REPORT = DeviceReport(1, "2026-11-26 12:00 UTC", "0.1.0", MACHINE, ("throttled",), (FILE,), 48.0, 61.5, 62.0)


def written(folder: Path, content: object) -> Path:
    path = folder / "out.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize(
    "report",
    [REPORT, replace(REPORT, temperature_before_c=None, hottest_c=None, throttled=(), files=(replace(FILE, accuracy=None),))],
)
def test_what_is_written_is_read_back_equal(report: DeviceReport, tmp_path: Path) -> None:
    """With everything known, and with what a PC does not say."""
    text = json.dumps(report.to_json(), allow_nan=False)
    assert "null" not in text
    assert device_report.read(written(tmp_path, text)) == report


def test_a_real_file_is_measured_in_every_stage(fixtures_folder: Path) -> None:
    """Stages add up to the frame, the digest is the file's, threads are the best of the benchmark."""
    path = fixtures_folder / "tiny-int8.tflite"
    asked: list[Path] = []

    def benched(path: Path) -> Bench:
        asked.append(path)
        return bench(path, [1], seconds=0.2)

    found = device_report.measure([path], benched, lambda path: FILE.accuracy)
    assert asked == [path]
    file = found.files[0]
    assert (file.file, file.sha256) == (path.name, sha256(path.read_bytes()).hexdigest())
    assert (file.threads, file.timing.threads, file.accuracy) == (1, 1, FILE.accuracy)
    parts = [getattr(file.stages, name).p50_ms for name in ("decode", "resize", "invoke", "decide", "emit")]
    assert all(part > 0 for part in parts)
    assert file.stages.frame.p50_ms >= max(parts)
    assert sum(parts) <= file.stages.frame.p99_ms * 1.5
    assert found.machine.cores >= 1


def test_a_board_that_was_throttled_meanwhile_is_marked(fixtures_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a monitor that reads while the measuring goes on."""
    weak = Vitals(temperature_c=85.0, throttle=Throttle(("under-voltage",)))
    made = device_report.DeviceMonitor
    monkeypatch.setattr(device_report, "DeviceMonitor", lambda interval_s: made(lambda: weak, interval_s=interval_s))
    found = device_report.measure([fixtures_folder / "tiny-int8.tflite"], lambda path: bench(path, [1], seconds=0.2))
    assert (found.throttled, found.hottest_c) == (("under-voltage",), 85.0)


def test_stages_are_timed_for_at_least_some_frames(fixtures_folder: Path) -> None:
    """However little time there is."""
    found = device_report.time_stages(Classifier.load(fixtures_folder / "tiny-int8.tflite", 1), seconds=0.0)
    assert found.frame.runs == device_report.LEAST_FRAMES


def changed(**path_values: Any) -> Callable[[dict[str, Any]], None]:
    """Sets `files__0__sha256=…` in the document."""

    def change(document: Any) -> None:
        for path, value in path_values.items():
            *keys, last = path.split("__")
            place = document
            for key in keys:
                place = place[int(key)] if key.isdecimal() else place[key]
            place[last] = value

    return change


HOSTILE = {
    "another layout": (changed(edgeclf_device_report=2), "version 2"),
    "no files": (changed(files=[]), "0 files"),
    "files of another kind": (changed(files="none"), "expected a list"),
    "an unknown key": (changed(extra=1), "unknown key 'extra'"),
    "no digest": (changed(files__0__sha256="../../etc"), "SHA-256"),
    "an endless name": (changed(files__0__file="x" * 10_000), "file: is no short line"),
    "control characters": (changed(machine__cpu="Pi\x1b[2J"), "cpu: is no short line"),
    "a line break": (changed(machine__system="a\nb"), "system: is no short line"),
    "text for a number": (changed(machine__cores="four"), "expected int"),
    "true for a number": (changed(files__0__threads=True), "expected int"),
    "a number beyond sense": (changed(files__0__size__file_bytes=10**30), "cannot be"),
    "a negative time": (changed(files__0__stages__invoke__p50_ms=-5.0), "not in order"),
    "percentiles out of order": (changed(files__0__stages__invoke__p90_ms=0.5), "not in order"),
    "more right than all": (changed(files__0__accuracy__top1=7.0), "no share"),
    "threads never timed": (changed(files__0__threads=9), "nothing was timed with its 9 threads"),
    "a thousand warnings": (changed(throttled=["x"] * 1000), "1000 entries"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_report_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    """Exit code 5's error, naming the file and what is wrong."""
    document = copy.deepcopy(REPORT.to_json())
    change, words = HOSTILE[fault]
    change(document)
    path = written(tmp_path, document)
    with pytest.raises(DataError) as refused:
        device_report.read(path)
    message = str(refused.value)
    assert words in message
    assert message.startswith(str(path))
    assert message.isprintable()
    assert len(message) < 600


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", "no json", '{"edgeclf_device_report": NaN}', "[" * 100_000, '{"a": 1e999}']
)
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    """With how to make one."""
    with pytest.raises(DataError, match="no device report"):
        device_report.read(written(tmp_path, text))


def test_a_huge_or_missing_file_is_refused_unread(tmp_path: Path) -> None:
    """A megabyte is more than any report needs."""
    with pytest.raises(DataError, match="larger than 1 MB"):
        device_report.read(written(tmp_path, " " * ((1 << 20) + 1)))
    with pytest.raises(DataError, match="cannot be read"):
        device_report.read(tmp_path / "absent.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(key=st.sampled_from(sorted(REPORT.to_json())), value=JSON)
def test_any_value_anywhere_is_read_or_refused(key: str, value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Never another exception."""
    path = written(tmp_path_factory.mktemp("fuzz"), json.dumps({**REPORT.to_json(), key: value}))
    refused = ""
    try:
        found: DeviceReport | None = device_report.read(path)
    except DataError as error:
        found, refused = None, str(error)
    assert isinstance(found, DeviceReport) or refused.startswith(str(path))
