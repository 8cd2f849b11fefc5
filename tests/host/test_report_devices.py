"""Boards in a report: the measured files beside the host and the full model; what belongs to no file of the run is refused."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_fakes import HOSTILE, comparison

from edgeclf.core.errors import DataError
from edgeclf.core.results import Interval, Latency, Size
from edgeclf.host.report import devices as report_devices
from edgeclf.host.report import html as report_html
from edgeclf.host.report.comparison import Comparison
from edgeclf.host.report.devices import Board, read_boards
from edgeclf.runtime.device.device_report import Answered, DeviceReport, FileReport, StageTimes
from edgeclf.runtime.latency import ColdStart, Machine, ThreadTiming

FULL_MS = 1.1  # of the fake comparison


def time_of(ms: float) -> Latency:
    return Latency(ms, ms * 2, ms * 3, 100)


def device_report(
    digest: str = "ab" * 32, cpu: str = "Raspberry Pi 4", ms: float = 5.5, throttled: tuple[str, ...] = ()
) -> DeviceReport:
    """A board that takes `ms` for the network and twice that for a frame."""
    timing = ThreadTiming(4, time_of(ms), time_of(2 * ms))
    stages = StageTimes(*(time_of(n) for n in (1.0, 0.5, ms, 0.1, 0.2, ms + 2)))
    file = FileReport(
        "photos-int8.tflite", digest, "LiteRT 2.3.0", Size(194_000, 170_000), 4, ColdStart(900, 30, 21.0, 70_000_000, 60_000_000),
        (timing,), stages, Answered(0.875, Interval(0.84, 0.9), 400, "photos", "its test folder"),
    )  # fmt: skip
    machine = Machine(cpu, 4, "Linux 6.6 aarch64", "3.11.2", 0.1, False, ("NEON",))
    return DeviceReport(1, "2026-11-26 12:00 UTC", "0.1.0", machine, throttled, (file,), 48.0, 61.5, 62.25)


def with_boards(*reports: DeviceReport) -> Comparison:
    boards = tuple(Board(report.machine.cpu, report, (("int8", report.files[0]),)) for report in reports)
    return replace(comparison(), boards=boards)


def texts(found: Comparison) -> list[list[str]]:
    return [[cell.text for cell in row] for row in report_devices.compared(found).rows]


def test_one_table_holds_the_full_model_the_host_and_the_boards() -> None:
    """Only the files that were measured on a board; times, memory and accuracy of each."""
    rows = texts(with_boards(device_report(), device_report(cpu="Raspberry Pi 5", ms=0.55)))
    assert [row[0] for row in rows] == ["this machine", "this machine", "Raspberry Pi 4", "Raspberry Pi 5"]
    assert [row[3] for row in rows] == ["—", "7.86× faster", "5.00× slower", "2.00× faster"]
    assert rows[2][1:3] == ["4", "5.50"]
    assert rows[2][4:] == ["11.0", "21.0", "70 MB", "87.5"]
    head = report_devices.compared(with_boards(device_report())).head
    assert all(len(row) == len(head) for row in rows)


def test_the_stages_of_each_board_are_shown() -> None:
    """p50 large, p90 and p99 under it."""
    table = report_devices.stages(with_boards(device_report()))
    assert table.head[1:3] == ("decode JPEG, ms", "resize, ms")
    assert [(cell.text, cell.note) for cell in table.rows[0][1:3]] == [("1.00", "2.00, 3.00"), ("0.500", "1.00, 1.50")]


def test_a_throttled_board_is_marked_everywhere() -> None:
    """A sentence in the page and in the text, and marks on its times."""
    found = with_boards(device_report(throttled=("under-voltage",)))
    sentence = "Raspberry Pi 4 was throttled while it was measured (under-voltage)"
    assert sentence in report_html.render_html(found, (), None)
    assert sentence.replace("_", "\\_") in report_html.render_markdown(found)
    cells = report_devices.compared(found).rows[-1]
    assert [cells[i].mark for i in (2, 3, 4)] == ["bad"] * 3
    assert cells[3].note == "throttled"
    well = report_devices.compared(with_boards(device_report())).rows[-1]
    assert [well[i].mark for i in (2, 3, 4)] == [""] * 3
    assert well[3].note == ""
    assert "was throttled" not in report_html.render_html(with_boards(device_report()), (), None)


def test_the_three_reports_hold_the_boards() -> None:
    """The page and the text with where it was measured, the JSON with all of it."""
    found = with_boards(device_report())
    page, text = report_html.render_html(found, (), None), report_html.render_markdown(found)
    for words in ("On the boards", "Raspberry Pi 4", "5.50", "before 48 °C, after 62 °C, hottest 62 °C"):
        assert words in page, words
        assert words in text, words
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["boards"][0]["variants"] == ["int8"]
    assert document["boards"][0]["report"]["files"][0]["stages"]["decode"]["p50_ms"] == 1.0


def test_without_boards_nothing_is_said_of_them() -> None:
    """But how to get one."""
    page = report_html.render_html(comparison(), (), None)
    assert "On the boards" not in page
    assert "--device-report" in page
    assert "On the boards" not in report_html.render_markdown(comparison())
    assert comparison().to_json()["boards"] == []


@pytest.mark.parametrize("text", [*HOSTILE, "<img src=x onerror=alert(1)>"])
def test_what_a_report_names_stays_text(text: str) -> None:
    """Escaped in the page, and a table cell in Markdown."""
    found = with_boards(device_report(cpu=text))
    page = report_html.render_html(found, (), None)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    lines = report_html.render_markdown(found).partition("## On the boards")[2].splitlines()
    columns = [len(re.split(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    head = len(report_devices.compared(found).head) + 2
    assert columns.count(head) == 5  # head, rule, the full model, the file here and there
    assert set(columns) == {head, len(report_devices.stages(found).head) + 2}


# --- reading them -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def exports(tmp_path: Path) -> list[tuple[str, Path]]:
    """Two exported files of a run."""
    found = []
    for name in ("float32", "int8"):
        path = tmp_path / f"photos-{name}.tflite"
        path.write_bytes(np.random.RandomState(len(name)).bytes(100))
        found.append((name, path))
    return found


def saved(folder: Path, name: str, report: DeviceReport) -> Path:
    path = folder / name
    path.write_text(json.dumps(report.to_json()))
    return path


def test_files_are_known_by_their_digest_whatever_they_are_called(exports: list[tuple[str, Path]], tmp_path: Path) -> None:
    """The name of the variant is the run's."""
    digest = hashlib.sha256(exports[1][1].read_bytes()).hexdigest()
    first, second = device_report(digest), device_report(digest, ms=4.0)
    third = replace(first, board="shed.local")
    boards = read_boards([saved(tmp_path, f"{n}.json", report) for n, report in enumerate((first, second, third))], exports)
    assert [board.name for board in boards] == ["Raspberry Pi 4", "Raspberry Pi 4 (2)", "shed.local, Raspberry Pi 4"]
    assert [board.files[0][0] for board in boards] == ["int8", "int8", "int8"]
    assert boards[0].report == first


def test_a_report_of_another_file_is_refused(exports: list[tuple[str, Path]], tmp_path: Path) -> None:
    """With its digest and what to do."""
    path = saved(tmp_path, "a.json", device_report("cd" * 32))
    with pytest.raises(DataError, match=r"a\.json: it measured photos-int8\.tflite with SHA-256 cdcdcdcdcdcd….*measure again"):
        read_boards([path], exports)


def test_the_same_report_twice_is_refused(exports: list[tuple[str, Path]], tmp_path: Path) -> None:
    """It would look like two boards that agree."""
    path = saved(tmp_path, "a.json", device_report(hashlib.sha256(exports[0][1].read_bytes()).hexdigest()))
    with pytest.raises(DataError, match="given twice"):
        read_boards([path, path], exports)
