"""What a deploy measured on a board, in words, and the command that puts it into a report."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeclf.runtime.device.device_report import DeviceReport


def report_beside(figures: Path, board: str = "") -> Path:
    """Where the device report of a board goes, beside the file of all figures."""
    return figures.with_name(f"{figures.stem}{f'.{board}' if board else ''}.device-report.json")


def report_command(file: Path, reports: Sequence[Path]) -> str:
    """The command that merges device reports of `file` into the report of its run."""
    from edgeclf.host.run import CARD

    run = [str(file.parent)] if (file.parent / CARD).is_file() else []
    return shlex.join(["edgeclf", "report", *run, *(word for path in reports for word in ("--add", str(path)))])


def read_bench(report: dict[str, Any]) -> DeviceReport:
    """The device report that a board wrote, and which may hold anything. Raises ConfigError."""
    from edgeclf.core.config import build
    from edgeclf.runtime.device.device_report import DeviceReport

    return build(DeviceReport, report, "device report")


def bench_in_words(report: dict[str, Any] | None) -> list[str]:
    """A line for each number of threads that was timed."""
    from edgeclf.core.errors import EdgeclfError

    if report is None:
        return []
    try:
        read = read_bench(report)
    except EdgeclfError as error:
        return [f"the board's device report cannot be read here: {error}"]
    slow = " while throttled" if read.throttled else ""
    return [
        f"{t.threads} thread{'s' if t.threads > 1 else ''}: frame to label {t.frame.p50_ms:.2f} ms at the median, "
        f"{t.frame.p99_ms:.2f} ms at p99{slow}"
        for t in read.files[0].timings
    ]


def frame_ms(report: dict[str, Any] | None) -> tuple[str, str]:
    """Frame to label with the threads that suit the board, p50 and p99 in ms; empty where nothing readable was measured."""
    from edgeclf.core.errors import EdgeclfError

    try:
        frame = read_bench(report or {}).files[0].timing.frame
    except EdgeclfError:
        return "", ""
    return f"{frame.p50_ms:.2f}", f"{frame.p99_ms:.2f}"
