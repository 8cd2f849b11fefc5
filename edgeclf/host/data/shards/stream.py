"""Training pictures in the order of an epoch, streamed from shards: each worker reads its own, and memory stays flat.

An epoch puts the shards in an order of its own and deals the records that then stand in a row to the workers, as equal
stretches; so each reads whole shards, but for the two at its ends. A worker reads several shards side by side, a block of
each in turn and these too in an order of the epoch's, into a buffer from which batches are drawn at random. Seed, epoch and
worker decide all of it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core.image import Pixels
from edgeclf.host.data.shards.place import Data
from edgeclf.host.data.shards.records import Records

SIDE_BY_SIDE = 8  # shards that are read at once
BLOCK_BYTES = 1 << 20  # of a read
BUFFER_BYTES = 64 << 20  # of pictures that a batch is drawn from
ORDER, BLOCKS, MIX = 72, 73, 74  # streams of random numbers

Members = npt.NDArray[np.int64]
Pictures: TypeAlias = tuple[Pixels, Members]
"""Pictures, uint8 (n, height, width, channels), and which of the catalogue they are, int64 (n,)."""


@dataclass(frozen=True, eq=False)
class Draw:
    """What is drawn: the training pictures by `seed` and `epoch`, for worker `worker` of `workers`, `size` a batch.

    `times` is how often a picture comes in the epoch, integers (pictures of the catalogue,); None for once each.
    """

    seed: int
    epoch: int
    size: int
    worker: int = 0
    workers: int = 1
    times: npt.NDArray[np.integer[Any]] | None = None


@dataclass(frozen=True)
class Stretch:
    """Records `first` to `last` (excluded) of the shard `number`, counted within it."""

    number: int
    first: int
    last: int


def batches(records: Records, draw: Draw) -> Iterator[Pictures]:
    """The full batches of one worker's epoch. Raises DataError, naming the shard, when one is not what its index says."""
    random = np.random.RandomState([draw.seed, draw.epoch, MIX, draw.worker])
    capacity = max(4 * draw.size, BUFFER_BYTES // records.size)
    remote = records.index.place.filesystem is not None  # a disk reads ahead by itself
    with ThreadPoolExecutor(SIDE_BY_SIDE) if remote else contextlib.nullcontext() as pool:
        blocks = _interleaved(records, draw, pool)
        feed = _Feed(_repeated(blocks, draw.times) if draw.times is not None else blocks)
        yield from _drawn(feed, records.shape, capacity, draw.size, random)


def stretches(records: Records, draw: Draw) -> list[Stretch]:
    """What a worker reads in an epoch, in order; together the workers read every record once, equally many each."""
    index = records.index
    order = np.random.RandomState([draw.seed, draw.epoch, ORDER]).permutation(index.shards_of("train"))
    counts = np.diff(index.firsts)[order]
    begins = np.cumsum(counts) - counts
    first, last = (int(counts.sum()) * worker // draw.workers for worker in (draw.worker, draw.worker + 1))
    found = (
        Stretch(int(number), max(first - int(begin), 0), min(last - int(begin), int(count)))
        for number, begin, count in zip(order, begins, counts, strict=True)
    )
    return [stretch for stretch in found if stretch.first < stretch.last]


def _interleaved(records: Records, draw: Draw, pool: ThreadPoolExecutor | None) -> Iterator[Pictures]:
    """A block of each open stretch in turn; where one ends, the next opens."""
    waiting, reading = deque(stretches(records, draw)), deque[Iterator[Pictures]]()
    while waiting or reading:
        while waiting and len(reading) < SIDE_BY_SIDE:
            stretch = waiting.popleft()
            random = np.random.RandomState([draw.seed, draw.epoch, BLOCKS, stretch.number])
            reading.append(_blocks(records, stretch, random, pool))
        blocks = reading.popleft()
        block = next(blocks, None)
        if block is not None:
            yield block
            reading.append(blocks)


def _blocks(
    records: Records, stretch: Stretch, random: np.random.RandomState, pool: ThreadPoolExecutor | None
) -> Iterator[Pictures]:
    """The pictures of a stretch, block by block in an order of the epoch's; those of a shard are checked the first time."""
    index, number = records.index, stretch.number
    shard, base = index.header.shards[number], int(index.firsts[number])
    rows = index.records[base + stretch.first : base + stretch.last]
    step = max(1, BLOCK_BYTES * shard.pictures // shard.bytes)
    end = int(index.records["offset"][base + stretch.last]) if stretch.last < shard.pictures else shard.bytes
    borders = list(pairwise([*map(int, rows["offset"][::step]), end]))
    order = random.permutation(len(borders)).tolist()
    scratch = bytearray(max(end - begin for begin, end in borders))

    def read(k: int) -> Data:
        following = borders[order[k + 1]] if k + 1 < len(order) else None
        return records.read(number, borders[order[k]], scratch, following)

    for k, data in enumerate(_ahead(pool, read, len(order)) if pool else map(read, range(len(order)))):
        block = rows[order[k] * step : (order[k] + 1) * step]
        starts = (block["offset"] + block["pixels"]).astype(np.int64) - borders[order[k]][0]
        if starts.min() < 0 or starts.max() + records.size > len(data):
            raise index.damaged(number, "does not fit its index")
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), records.size)
        pictures, members = windows[starts].reshape(-1, *records.shape), block["picture"].astype(np.int64)
        if number not in records.checked:
            records.check(number, pictures, members)
        yield pictures, members
    if len(rows) == shard.pictures:
        records.checked.add(number)


def _ahead(pool: ThreadPoolExecutor, read: Callable[[int], Data], count: int) -> Iterator[Data]:
    """`read(0)` to `read(count - 1)` in order, each asked for before the one before it is handed out."""
    pending: Future[Data] | None = None
    for k in range(count):
        following = pool.submit(read, k)
        if pending:
            yield pending.result()
        pending = following
    if pending:
        yield pending.result()


def _repeated(blocks: Iterator[Pictures], times: npt.NDArray[np.integer[Any]]) -> Iterator[Pictures]:
    """Each picture as often as `times` says, in blocks that are no larger."""
    for pictures, members in blocks:
        rows = np.repeat(np.arange(len(members)), times[members])
        for first in range(0, len(rows), len(members)):
            chosen = rows[first : first + len(members)]
            yield pictures[chosen], members[chosen]


class _Feed:
    """Blocks of any size, handed on in the numbers that are asked for."""

    def __init__(self, blocks: Iterator[Pictures]) -> None:
        self._blocks, self._at = blocks, 0
        self._block: Pictures = np.zeros(0, np.uint8), np.zeros(0, np.int64)

    def pieces(self, count: int) -> Iterator[Pictures]:
        """`count` pictures in some pieces; fewer at the end."""
        while count:
            pictures, members = self._block
            if self._at == len(members):
                following = next(self._blocks, None)
                if following is None:
                    return
                self._block, self._at = following, 0
                continue
            end = min(self._at + count, len(members))
            yield pictures[self._at : end], members[self._at : end]
            count -= end - self._at
            self._at = end


def _drawn(
    feed: _Feed, shape: tuple[int, int, int], capacity: int, size: int, random: np.random.RandomState
) -> Iterator[Pictures]:
    """Batches of pictures drawn from a buffer of `capacity`, which what comes next refills; at the end what is left, mixed."""
    pictures, members = np.empty((capacity, *shape), np.uint8), np.empty(capacity, np.int64)

    def fill(slots: Members) -> int:
        filled = 0
        for some, which in feed.pieces(len(slots)):
            here = slots[filled : filled + len(which)]
            pictures[here], members[here] = some, which
            filled += len(which)
        return filled

    left = np.arange(fill(np.arange(capacity)))
    while len(left) == capacity:
        slots = _distinct(random, capacity, size)
        yield pictures[slots], members[slots]
        filled = fill(slots)
        if filled < size:
            left = np.setdiff1d(left, slots[filled:], assume_unique=True)
    order = random.permutation(left)
    for first in range(0, len(order) - size + 1, size):
        chosen = order[first : first + size]
        yield pictures[chosen], members[chosen]


def _distinct(random: np.random.RandomState, count: int, size: int) -> Members:
    """`size` different numbers below `count`, which is at least four times as large, in random order."""
    drawn = np.unique(random.randint(0, count, 2 * size))
    while len(drawn) < size:
        drawn = np.unique(np.append(drawn, random.randint(0, count, size)))
    return random.permutation(drawn)[:size]
