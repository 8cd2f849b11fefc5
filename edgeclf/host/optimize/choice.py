"""Which of the measured files is the best for a board: limits, the Pareto front, and the choice, with its reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.core.results import PairedDrop
from edgeclf.host.export import guard
from edgeclf.host.optimize.space import Configuration
from edgeclf.host.report.timing import SMALLEST_RATIO, Timing, speedup
from edgeclf.host.wording import milliseconds, size

AS_SMALL = 1.01  # files that differ by less than a hundredth, as cards do, count as equally small


@dataclass(frozen=True)
class Limits:
    """What the file may cost: a fraction of top-1, its 95% interval included; p50 of a picture; bytes. None is no limit."""

    drop: float | None = None
    latency_ms: float | None = None
    file_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """By name, null where there is none."""
        return asdict(self)


@dataclass(frozen=True)
class Entrant:
    """A file that was measured. `instructions` are of one inference on the emulated board, None where they were not counted."""

    number: int
    configuration: Configuration
    drop: PairedDrop
    file_bytes: int
    gzip_bytes: int
    timing: Timing
    instructions: int | None = None

    @property
    def p50_ms(self) -> float:
        """Latency of one picture on this machine."""
        return self.timing.latency.p50_ms

    @property
    def cost(self) -> float:
        """What speed is ranked by: instructions where they were counted, else milliseconds."""
        return self.p50_ms if self.instructions is None else float(self.instructions)


def limits(max_drop: float | None, max_latency_ms: float | None, max_size_kb: float | None) -> Limits:
    """From points, milliseconds and kilobytes of 1000 bytes. Raises ConfigError, naming the option."""
    for option, value in (("--max-latency-ms", max_latency_ms), ("--max-size-kb", max_size_kb)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{option} {value:g}: must be above 0")
    return Limits(
        None if max_drop is None else guard.check_budget(max_drop),
        max_latency_ms,
        None if max_size_kb is None else int(max_size_kb * 1000),
    )


def checks(entrant: Entrant, wanted: Limits) -> dict[str, bool]:
    """Whether the file holds each limit that there is, by the name of its option."""
    found = {}
    if wanted.drop is not None:
        found[f"--max-drop {wanted.drop * 100:g}"] = guard.holds(entrant.drop, wanted.drop)
    if wanted.latency_ms is not None:
        found[f"--max-latency-ms {wanted.latency_ms:g}"] = entrant.p50_ms <= wanted.latency_ms
    if wanted.file_bytes is not None:
        found[f"--max-size-kb {wanted.file_bytes / 1000:g}"] = entrant.file_bytes <= wanted.file_bytes
    return found


def holds(entrant: Entrant, wanted: Limits) -> bool:
    """Whether the file holds every limit."""
    return all(checks(entrant, wanted).values())


def pareto(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Indices of the points that no other is at least as good as in everything and better in something; less is better."""
    return [i for i, point in enumerate(points) if not any(_dominates(other, point) for other in points)]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def front(entrants: Sequence[Entrant]) -> set[int]:
    """Numbers of the files on the Pareto front of drop, cost and size."""
    kept = pareto([(e.drop.drop, e.cost, float(e.file_bytes)) for e in entrants])
    return {entrants[i].number for i in kept}


def is_faster(one: Entrant, other: Entrant) -> bool:
    """Whether it can be told: by 2% of the instructions, or by the interval over rounds of timing (`host.report.timing`)."""
    if one.instructions is not None and other.instructions is not None:
        return one.instructions * SMALLEST_RATIO < other.instructions
    found = speedup(other.timing, one.timing)
    return found.measurable and found.factor > 1


@dataclass(frozen=True)
class Choice:
    """The winner, and how many files were left at each step: those that hold all limits, as fast as it, as small as that."""

    winner: Entrant
    holding: int
    as_fast: int
    as_small: int


def choose(holding: Sequence[Entrant]) -> Choice | None:
    """The fastest; of those that cannot be told from it the smallest, of these the one that loses least; None of none."""
    if not holding:
        return None
    fastest = min(holding, key=lambda e: (e.cost, e.number))
    as_fast = [e for e in holding if not is_faster(fastest, e)]
    smallest = min(e.file_bytes for e in as_fast)
    as_small = [e for e in as_fast if e.file_bytes <= smallest * AS_SMALL]
    winner = min(as_small, key=lambda e: (e.drop.drop, e.drop.interval.high, e.number))
    return Choice(winner, len(holding), len(as_fast), len(as_small))


def reason(choice: Choice, considered: int, wanted: Limits, where: str) -> str:
    """Why the winner won, in a sentence; `where` says what its speed is of: `this machine`, `the emulated Raspberry Pi 5`."""
    winner, named = choice.winner, " and ".join(checks(choice.winner, wanted)) or "no limits"
    told = f"{winner.configuration.name} (trial {winner.number}): "
    held = f"{choice.holding} of {considered} files hold {named}" if named != "no limits" else f"of {considered} files"
    speed = f"{held}; this one is the fastest by {_measure(winner)} on {where}"
    if choice.as_fast == 1:
        return f"{told}{speed}"
    speed = f"{held}; {choice.as_fast} cannot be told apart as the fastest by {_measure(winner)} on {where}"
    if choice.as_small == 1:
        return f"{told}{speed}, and this one is the smallest of them"
    if choice.as_small == choice.as_fast:
        return f"{told}{speed}, nor by size, and this one loses least of them"
    return f"{told}{speed}, {choice.as_small} of them are equally small, and this one loses least of these"


def _measure(entrant: Entrant) -> str:
    return (
        f"p50 ({milliseconds(entrant.p50_ms)} ms)" if entrant.instructions is None else f"instructions ({entrant.instructions:,})"
    )


def refusal(entrants: Sequence[Entrant], wanted: Limits) -> str:
    """Why there is no winner, in one line: of each limit how many files hold it, and which is nearest."""
    told = []
    for name, nearest in _nearest(entrants, wanted).items():
        held = sum(checks(e, wanted)[name] for e in entrants)
        told.append(f"{name}: {held} hold{'s' * (held == 1)} it, nearest {nearest}")
    return f"none of {len(entrants)} files holds all limits; {'; '.join(told)}"


def _nearest(entrants: Sequence[Entrant], wanted: Limits) -> dict[str, str]:
    """For each limit, in the order of `checks`, the file that comes nearest to it or holds it best."""
    drop = min(entrants, key=lambda e: e.drop.interval.high)
    fast = min(entrants, key=lambda e: e.p50_ms)
    small = min(entrants, key=lambda e: e.file_bytes)
    told = {
        "--max-drop": f"{drop.configuration.name} with {points(drop.drop)} points",
        "--max-latency-ms": f"{fast.configuration.name} with {milliseconds(fast.p50_ms)} ms here",
        "--max-size-kb": f"{small.configuration.name} with {size(small.file_bytes)}",
    }
    return {name: told[name.split()[0]] for name in checks(drop, wanted)}


def points(drop: PairedDrop) -> str:
    """A drop in points of top-1, with its interval."""
    low, high = drop.interval.low * 100, drop.interval.high * 100
    return f"{drop.drop * 100:+.2f} ({low:+.2f} to {high:+.2f})"
