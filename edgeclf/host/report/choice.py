"""Which of several files to take at a place: this machine, a board that was measured, a board that was emulated.

The smallest of those that are the fastest there: a file counts as slower only where it takes over a tenth longer than the
fastest and, on this machine, where every round was timed, more than noise explains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgeclf.host.report.comparison import Emulated, Variant
from edgeclf.host.report.devices import HERE, Board
from edgeclf.host.report.timing import speedup
from edgeclf.host.wording import milliseconds

NEARLY_AS_FAST = 1.1


@dataclass(frozen=True)
class Choice:
    """What to take at `place`. `level` are the fastest there, `chosen` among them; `costs` in words by name."""

    place: str
    chosen: Variant
    level: tuple[Variant, ...]
    costs: Mapping[str, str]


def here(candidates: Sequence[Variant]) -> Choice:
    """By the interleaved times of this machine; of at least one candidate."""

    def slower(fastest: Variant, other: Variant) -> bool:
        found = speedup(other.model.timing, fastest.model.timing)
        return found.measurable and found.factor > NEARLY_AS_FAST

    times = {v.name: v.model.timing.latency.p50_ms for v in candidates}
    return _choose(HERE, candidates, times, slower, _in_ms)


def on_board(board: Board, candidates: Sequence[Variant]) -> Choice | None:
    """By the times of a device report; None where it was throttled, or holds fewer than two of the candidates."""
    if board.slowed:
        return None
    return _by_figure(board.name, candidates, {n: f.timing.invoke.p50_ms for n, f in board.files}, _in_ms)


def emulated(board: Emulated, candidates: Sequence[Variant]) -> Choice | None:
    """By instructions; None where fewer than two of the candidates were counted."""
    return _by_figure(f"the emulated {board.name}", candidates, board.instructions, lambda count: f"{count:,.0f} instructions")


def _in_ms(ms: float) -> str:
    return f"{milliseconds(ms)} ms"


def _by_figure(
    place: str, candidates: Sequence[Variant], figures: Mapping[str, float], in_words: Callable[[float], str]
) -> Choice | None:
    known = [v for v in candidates if v.name in figures]
    if len(known) < 2:
        return None
    return _choose(place, known, figures, lambda a, b: figures[b.name] > figures[a.name] * NEARLY_AS_FAST, in_words)


def _choose(
    place: str,
    candidates: Sequence[Variant],
    figures: Mapping[str, float],
    slower: Callable[[Variant, Variant], bool],
    in_words: Callable[[float], str],
) -> Choice:
    fastest = min(candidates, key=lambda v: figures[v.name])
    level = tuple(v for v in candidates if v is fastest or not slower(fastest, v))
    costs = {v.name: in_words(figures[v.name]) for v in candidates}
    return Choice(place, min(level, key=lambda v: v.model.size.file_bytes), level, costs)
