"""Boards in a report: what `edgeclf bench --device-report` wrote there, beside the same files and the full model here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclf.core.errors import DataError
from edgeclf.core.files import sha256
from edgeclf.core.results import Latency
from edgeclf.host.report.cells import NOTHING, Cell, Table
from edgeclf.host.wording import decimals, milliseconds, points, size, times
from edgeclf.runtime.device.device_report import HOW, Answered, DeviceReport, FileReport, read

if TYPE_CHECKING:
    from edgeclf.host.report.comparison import Comparison, Model

HERE = "this machine"


@dataclass(frozen=True)
class Board:
    """A device report whose files are this run's: the name to show, and each file with the name of its variant."""

    name: str
    report: DeviceReport
    files: tuple[tuple[str, FileReport], ...]

    @property
    def slowed(self) -> str:
        """What makes its times no measurement of the board, in a sentence; empty when nothing does."""
        found = self.report.throttled or (("throttled",) if self.report.machine.throttled else ())
        if not found:
            return ""
        return f"{self.name} was throttled while it was measured ({', '.join(found)}): its times are longer than the board needs."


def read_boards(paths: Sequence[Path], exports: Sequence[tuple[str, Path]]) -> tuple[Board, ...]:
    """The reports in those files; `exports` are the names of this run's variants with their files.

    Raises DataError for a file that is no device report, for one that measured anything but this run's files as they are
    now, and for the same report twice.
    """
    known = {sha256(path): name for name, path in exports} if paths else {}
    boards: list[Board] = []
    for path in paths:
        report = read(path)
        strange = next((file for file in report.files if file.sha256 not in known), None)
        if strange:
            raise DataError(
                f"{path}: it measured {strange.file} with SHA-256 {strange.sha256[:12]}…, which is no file of this run as it is "
                f"now; copy the run's file to the board and measure again: {HOW}"
            )
        if report in [board.report for board in boards]:
            raise DataError(f"{path}: the same report is given twice")
        name = f"{report.board}, {report.machine.cpu}" if report.board else report.machine.cpu
        like = sum((other.report.board, other.report.machine.cpu) == (report.board, report.machine.cpu) for other in boards)
        name += f" ({like + 1})" if like else ""
        boards.append(Board(name, report, tuple((known[file.sha256], file) for file in report.files)))
    return tuple(boards)


def compared(comparison: Comparison) -> Table:
    """The full model and each measured file here, then on every board: what a picture costs, and how often it is right."""
    full = comparison.full
    wanted = dict.fromkeys(name for board in comparison.boards for name, _ in board.files)
    here = [full, *(v.model for v in comparison.variants if v.name in wanted)]
    rows = [_here(model, full) for model in here]
    for board in comparison.boards:
        rows += [_there(board, name, file, full) for name, file in board.files]
    head = (
        "where", "threads", "network, ms", "against the full model here", "frame to label, ms", "first frame, ms", "peak memory",
        "top-1, %",
    )  # fmt: skip
    return Table(head, tuple(rows))


def stages(comparison: Comparison) -> Table:
    """What each stage takes on every board: p50, under it p90 and p99."""
    names = {
        "decode": "decode JPEG", "resize": "resize", "invoke": "network", "decide": "decide", "emit": "emit", "frame": "all",
    }  # fmt: skip
    rows = [
        (Cell(board.name, name), *(_percentiles(getattr(file.stages, stage)) for stage in names))
        for board in comparison.boards
        for name, file in board.files
    ]
    return Table(("where", *(f"{title}, ms" for title in names.values())), tuple(rows))


def machines(comparison: Comparison) -> dict[str, str]:
    """Each board in a line: system, Python, runtime, cores, vector units, temperatures, when."""
    return {board.name: _machine(board) for board in comparison.boards}


def _machine(board: Board) -> str:
    report, machine = board.report, board.report.machine
    heat = [
        f"{words} {value:.0f} °C"
        for words, value in (
            ("before", report.temperature_before_c), ("after", report.temperature_after_c), ("hottest", report.hottest_c)
        )
        if value is not None
    ]  # fmt: skip
    parts = [
        f"{machine.cores} cores", ", ".join(machine.vector_units), machine.system, f"Python {machine.python}",
        "; ".join(dict.fromkeys(file.runtime for file in report.files)), ", ".join(file.file for file in report.files),
        ", ".join(heat) or "temperature unknown",
        f"load {machine.load:.1f}" if machine.load >= 0 else "", f"edgeclf {report.edgeclf}", report.created,
    ]  # fmt: skip
    return "; ".join(filter(None, parts))


def _here(model: Model, full: Model) -> tuple[Cell, ...]:
    found = model.timing.latency
    ratio = NOTHING if model is full else _ratio(full.timing.latency.p50_ms, found.p50_ms)
    memory = Cell(size(model.memory.process_bytes)) if model.memory else Cell(NOTHING)
    top1 = Cell(f"{model.accuracy.top1 * 100:.{decimals(model.accuracy.pictures)}f}", f"{model.accuracy.pictures:,} pictures")
    return (
        Cell(HERE, model.name), Cell(model.threads), _percentiles(found), Cell(ratio), Cell(NOTHING), Cell(NOTHING), memory, top1,
    )  # fmt: skip


def _there(board: Board, name: str, file: FileReport, full: Model) -> tuple[Cell, ...]:
    found = file.timing
    mark = "bad" if board.slowed else ""
    ratio = Cell(_ratio(full.timing.latency.p50_ms, found.invoke.p50_ms), "throttled" if mark else "", mark)
    return (
        Cell(board.name, name), Cell(str(file.threads)), _percentiles(found.invoke, mark), ratio, _percentiles(found.frame, mark),
        Cell(milliseconds(file.cold.first_ms)), Cell(size(file.cold.peak_bytes) if file.cold.peak_bytes else NOTHING),
        _right(file.accuracy),
    )  # fmt: skip


def _ratio(full_ms: float, ms: float) -> str:
    """How much faster or slower; of medians of different machines, so without an interval."""
    if not ms or not full_ms:
        return NOTHING
    return f"{times(full_ms / ms)} faster" if ms <= full_ms else f"{times(ms / full_ms)} slower"


def _right(found: Answered | None) -> Cell:
    if found is None:
        return Cell(NOTHING)
    interval = f"{points(found.interval.low, found.pictures)} to {points(found.interval.high, found.pictures)}"
    return Cell(points(found.top1, found.pictures), f"{interval}; {found.pictures:,} pictures of {found.data}")


def _percentiles(found: Latency, mark: str = "") -> Cell:
    return Cell(milliseconds(found.p50_ms), f"{milliseconds(found.p90_ms)}, {milliseconds(found.p99_ms)}", mark)
