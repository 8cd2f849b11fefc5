"""What a file costs to run: time on this machine, all files in turns; and instructions, where the board is emulated here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeclf.core import config, files
from edgeclf.core.bundle import read_bundle
from edgeclf.core.devices import DeviceProfile, load_device
from edgeclf.core.errors import EdgeclfError, MissingExtra, ModelError
from edgeclf.core.image import Pixels
from edgeclf.core.progress import Bar, no_bar
from edgeclf.host.optimize.trial import structure_file
from edgeclf.host.report import emulate, timing
from edgeclf.host.report.timing import Timing
from edgeclf.runtime.engine import open_engine
from edgeclf.runtime.latency import Machine, this_machine

COSTS = "costs.json"
EMULATED = {"raspberry-pi-4": "pi4", "raspberry-pi-5": "pi5"}  # device profile → board of host.emulate
SHORT = {board: name for name, board in EMULATED.items()}


@dataclass(frozen=True)
class Board:
    """What the file is for. `title` is for people; `here`: it is this machine; `counted`: instructions are counted on it.

    `why_not` says what is missing for counting, where the board is another.
    """

    name: str
    title: str
    here: bool
    counted: bool
    why_not: str = ""

    @property
    def emulated(self) -> str:
        """As `host.report.emulate` calls it; empty where it cannot be emulated."""
        return EMULATED.get(self.name, "")

    @property
    def ranked_on(self) -> str:
        """What the speed of candidates is of."""
        return f"the emulated {self.title}" if self.counted else "this machine"

    def notes(self, max_latency_ms: float | None) -> tuple[str, ...]:
        """What cannot be known here of another board, a line; nothing of this machine."""
        if self.here:
            return ()
        limit = (
            f", so --max-latency-ms {max_latency_ms:g} is judged on this machine's time ({this_machine().cpu})"
            if max_latency_ms is not None
            else ""
        )
        rank = "instructions on the emulated board, a count and no latency" if self.counted else f"time here: {self.why_not}"
        return (f"latency of {self.name} cannot be measured here{limit}; files are ranked by {rank}",)


def board(device: str | None) -> Board:
    """The board with that name: a device profile, `pi4`, `pi5`, or None for this machine. Raises ConfigError."""
    if device is None:
        return Board("", "this machine", True, False)
    profile = load_device(SHORT.get(device, device))
    title = profile.description.partition(":")[0]
    if _is_here(profile, title):
        return Board(profile.name, title, True, False)
    if profile.name not in EMULATED:
        return Board(profile.name, title, False, False, f"there is no emulated {title}")
    try:
        emulate.need(emulate.default_home())
    except MissingExtra as error:
        return Board(profile.name, title, False, False, str(error))
    return Board(profile.name, title, False, True)


def _is_here(profile: DeviceProfile, title: str) -> bool:
    return profile.name == "host" or this_machine().cpu.startswith(title.partition(" Model")[0])


@dataclass(frozen=True)
class Costs:
    """By structure: timings of one interleaved run on `machine`; instructions by emulated board, of what runs there."""

    machine: Machine
    timings: dict[str, Timing] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def instructions(self, structure: str, board: Board) -> int | None:
        """None where they were not counted."""
        return self.counts.get(board.emulated, {}).get(structure) if board.counted else None


def measure(
    folder: Path, structures: Sequence[str], board: Board, picture: Pixels, rounds: int = timing.ROUNDS, bar: Bar = no_bar
) -> Costs:
    """What is known in `folder` already, and what is missing. A new structure lets all be timed again, in turns.

    `folder` holds a file of each structure.
    """
    costs = _read(folder)
    if costs is None or costs.machine.cpu != this_machine().cpu or not set(structures) <= costs.timings.keys():
        counts = costs.counts if costs else {}
        machine = this_machine()  # before the work, which is load too
        costs = Costs(machine, _timed(folder, structures, picture, rounds, bar), counts)
        _write(folder, costs)
    if board.counted:
        _count(folder, structures, board, costs, bar)
    return costs


def _timed(folder: Path, structures: Sequence[str], picture: Pixels, rounds: int, bar: Bar) -> dict[str, Timing]:
    def call(structure: str) -> Callable[[], object]:
        engine = open_engine(read_bundle(structure_file(folder, structure)), probed=True)
        return lambda: engine.infer(picture)

    with bar("timing, in turns") as report:
        return timing.interleaved({structure: call(structure) for structure in structures}, rounds, report)


def _count(folder: Path, structures: Sequence[str], board: Board, costs: Costs, bar: Bar) -> None:
    known = costs.counts.setdefault(board.emulated, {})
    missing = [structure for structure in structures if structure not in known]
    with bar(f"counting instructions, {board.title}") as report:
        for number, structure in enumerate(missing):
            report(number, len(missing))
            with contextlib.suppress(ModelError):  # it does not run there; the next search tries again
                counted = emulate.count(read_bundle(structure_file(folder, structure)), board.emulated, emulate.default_home())
                known[structure] = counted.instructions
                _write(folder, costs)


def _read(folder: Path) -> Costs | None:
    """None where there is none, or it is damaged: it is measured again then."""
    path = folder / COSTS
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        timings = {name: config.build(Timing, entry, str(path)) for name, entry in found["timings"].items()}
        return Costs(config.build(Machine, found["machine"], str(path)), timings, found["counts"])
    except (OSError, ValueError, KeyError, AttributeError, EdgeclfError):
        return None


def _write(folder: Path, costs: Costs) -> None:
    files.write_json(folder / COSTS, asdict(costs))
