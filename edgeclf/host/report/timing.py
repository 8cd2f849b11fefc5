"""Latency of several models in one run, interleaved, so that what the machine does meanwhile falls on all of them alike.

In each round every model answers single pictures for about the same time, in an order that rotates. Two models are then
compared round by round: the ratio of their medians in the same round cancels slow drift, and the spread of that ratio
over the rounds says whether a difference can be told from noise at all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeclf.core.progress import Report
from edgeclf.core.results import Interval, Latency

ROUNDS = 20
SLICE_SECONDS = 0.06
FEWEST, MOST = 5, 60  # timed calls in one round
SMALLEST_RATIO = 1.02  # less than this is nothing to choose by, and may be the place of the code in memory
WARM_UP = 2  # untimed calls at the start of a slice: the model before it left its own data in the caches


@dataclass(frozen=True)
class Timing:
    """Wall time of one picture on one model: percentiles over all calls, the middle half, and the median of each round."""

    latency: Latency
    p25_ms: float
    p75_ms: float
    rounds_ms: tuple[float, ...]


@dataclass(frozen=True)
class Speedup:
    """How many times faster one model is than another: the median over the rounds, and its 95% interval.

    `measurable` is False when the interval reaches to within 2% of 1, or there are too few rounds for an interval: then
    neither is called the faster.
    """

    factor: float
    interval: Interval
    measurable: bool


def interleaved(
    calls: dict[str, Callable[[], object]], rounds: int = ROUNDS, progress: Report | None = None
) -> dict[str, Timing]:
    """Time every call in every round; `calls` answer one picture each. The timings by name."""
    counts = {name: _slice_runs(call) for name, call in calls.items()}
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        turn = number % len(names) if names else 0
        for name in names[turn:] + names[:turn]:
            times[name].append(_time(calls[name], counts[name]))
        if progress:
            progress(number + 1, rounds)
    return {name: _timing(found) for name, found in times.items()}


def speedup(reference: Timing, other: Timing) -> Speedup:
    """How many times faster `other` is than `reference`; both must come from the same `interleaved` run."""
    ratios = np.array(reference.rounds_ms) / np.array(other.rounds_ms)
    low, high, enough = median_interval(ratios.tolist())
    return Speedup(float(np.median(ratios)), Interval(low, high), enough and (low > SMALLEST_RATIO or high < 1 / SMALLEST_RATIO))


def median_interval(values: list[float]) -> tuple[float, float, bool]:
    """A distribution-free interval of the median from order statistics (the sign test): low, high, and whether it is 95%.

    With fewer than six values even the whole range is less than 95%, and the third value is False.
    """
    ordered, n = sorted(values), len(values)
    tail, skip = 0.0, 0
    while skip < n // 2 and tail + math.comb(n, skip) / 2**n <= 0.025:
        tail += math.comb(n, skip) / 2**n
        skip += 1
    return ordered[max(0, skip - 1)], ordered[n - max(1, skip)], skip > 0


def _slice_runs(call: Callable[[], object]) -> int:
    """How many calls fill a slice; the first calls are not counted, they are slower."""
    for _ in range(WARM_UP):
        call()
    took = min(_time(call, 3))
    return int(min(MOST, max(FEWEST, SLICE_SECONDS / max(took, 1e-6))))


def _time(call: Callable[[], object], runs: int) -> list[float]:
    for _ in range(WARM_UP):
        call()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def _timing(rounds: list[list[float]]) -> Timing:
    seconds = np.concatenate([np.array(r) for r in rounds])
    p25, p75 = np.percentile(seconds * 1000, [25, 75])
    return Timing(Latency.of(seconds), float(p25), float(p75), tuple(float(np.median(r)) * 1000 for r in rounds))
