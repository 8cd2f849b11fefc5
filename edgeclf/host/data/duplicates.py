"""Doubles in a data set: equal pictures, and nearly equal ones, found by a perceptual hash and checked on small pictures."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.image import Pixels
from edgeclf.host.data.survey import THUMB, Survey

BITS, BANDS = 64, 4
BAND_BITS = BITS // BANDS
MOST_DIFFERENT = 2 * BANDS  # bits: then some band differs in one bit at most, unless each differs in exactly two
LEAST_ALIKE = 0.93  # correlation of the two small pictures; on CIFAR-10 nearly all such pairs are the same photo
FLAT = 4.0  # standard deviation of pixels, below which a picture shows nothing to compare
MOST_LINKS = 1_000_000  # as in a film cut into frames; the search ends there and says so
STEP = 1 << 20  # pairs looked at together, which bounds memory

Rows = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Links:
    """Pairs of nearly equal pictures: rows `first` < `second`, int64, and `alike`, float32, the correlation of the two.

    `complete` is False when there were so many that the search was ended.
    """

    first: Rows
    second: Rows
    alike: npt.NDArray[np.float32]
    complete: bool


@dataclass(frozen=True)
class Group:
    """Pictures that are doubles of each other, as rows in rising order. `exact`: all have the same pixels.

    `conflict`: they stand under more than one class. `leak`: they stand in more than one part.
    """

    rows: tuple[int, ...]
    exact: bool
    conflict: bool
    leak: bool


def groups(survey: Survey, links: Links, classes: npt.NDArray[Any], parts: npt.NDArray[Any]) -> list[Group]:
    """Doubles, joined by equal pixels and by `links`; `classes` and `parts` are integers (pictures,). The gravest first."""
    parent = list(range(len(survey.indices)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    def join(first: int, second: int) -> None:
        low, high = sorted((root(first), root(second)))
        parent[high] = low

    for row, leader in enumerate(leaders(survey).tolist()):
        join(row, leader)
    for first, second in zip(links.first.tolist(), links.second.tolist(), strict=True):
        join(first, second)
    members: dict[int, list[int]] = {}
    for row in range(len(parent)):
        members.setdefault(root(row), []).append(row)
    found = [_group(rows, survey, classes, parts) for rows in members.values() if len(rows) > 1]
    return sorted(found, key=lambda g: (not (g.conflict and g.leak), not g.conflict, not g.leak, not g.exact, -len(g.rows)))


def near(survey: Survey) -> Links:
    """Pairs whose hashes differ in at most MOST_DIFFERENT bits and whose small pictures correlate by LEAST_ALIKE or more.

    Of equal pictures the first alone takes part. Finds other sizes, encodings, brightness and small shifts of a picture; not
    mirrored, turned or strongly cropped ones.
    """
    first_ones = np.unique(leaders(survey)[survey.readable])
    rows = first_ones[[bool(survey.thumbs[row].std() >= FLAT) for row in first_ones]]
    thumbs = survey.thumbs[rows]
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
    total, complete = 0, True
    for first, second in _alike_hashes(hashes(thumbs)):
        alike = correlations(thumbs, first, second)
        kept = alike >= LEAST_ALIKE
        found.append((rows[first[kept]], rows[second[kept]], alike[kept]))
        total += int(kept.sum())
        if total >= MOST_LINKS:
            complete = False
            break
    return _united(found, len(survey.indices), complete)


def leaders(survey: Survey) -> Rows:
    """For each picture the first with the same pixels; an unreadable one leads itself."""
    found = np.arange(len(survey.indices))
    rows = np.flatnonzero(survey.readable)
    _, firsts, inverse = np.unique(survey.digests[rows], return_index=True, return_inverse=True)
    found[rows] = rows[firsts[inverse.reshape(-1)]]
    return found


def hashes(thumbs: Pixels) -> Hashes:
    """A perceptual hash, uint64 (pictures,): which of the 64 lowest frequencies lie above their median (Zauner 2010).

    `thumbs` is uint8 (pictures, THUMB, THUMB). The mean brightness does not take part.
    """
    transform, chosen = _cosines()
    out = np.empty(len(thumbs), np.uint64)
    for start in range(0, len(thumbs), 4096):
        part = thumbs[start : start + 4096].astype(np.float32)
        low = (transform @ part @ transform.T).reshape(len(part), -1)[:, chosen]
        bits = low > np.median(low, axis=1, keepdims=True)
        out[start : start + 4096] = np.packbits(bits.reshape(-1), bitorder="little").view(np.uint64)
    return out


def correlations(thumbs: Pixels, first: Rows, second: Rows) -> npt.NDArray[np.float32]:
    """Pearson's correlation of the pixels of pairs of small pictures, float32 (pairs,); no pictures may be one flat value."""
    found = np.empty(len(first), np.float32)
    for start in range(0, len(first), 16384):
        part = slice(start, start + 16384)
        found[part] = np.einsum("ij,ij->i", _standard(thumbs[first[part]]), _standard(thumbs[second[part]]))
    return found


def _standard(thumbs: Pixels) -> npt.NDArray[np.float32]:
    flat = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return flat


@functools.cache
def _cosines() -> tuple[npt.NDArray[np.float32], Rows]:
    """The matrix of the discrete cosine transform, and the 64 lowest frequencies without the constant one."""
    k, n = np.mgrid[:THUMB, :THUMB]
    order = sorted(((int(u + v), int(u), int(v)) for u, v in np.ndindex(THUMB, THUMB) if u + v))[:BITS]
    return np.cos(np.pi * k * (n + 0.5) / THUMB).astype(np.float32), np.array([u * THUMB + v for _, u, v in order])


def _alike_hashes(values: Hashes) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of positions whose hashes differ in at most MOST_DIFFERENT bits, some of them several times.

    Multi-index hashing (Norouzi et al. 2012): only hashes that agree in one of four bands, but for one bit, are compared.
    """
    mask = np.uint64((1 << BAND_BITS) - 1)
    for band in range(BANDS):
        keys = ((values >> np.uint64(band * BAND_BITS)) & mask).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        for flipped in (0, *(1 << bit for bit in range(BAND_BITS))):
            at = np.arange(len(ordered)) if not flipped else np.flatnonzero(ordered & flipped)
            partners = ordered[at] ^ flipped
            low = at + 1 if not flipped else np.searchsorted(ordered, partners, "left")
            high = np.searchsorted(ordered, partners, "right")
            for first, second in _pairs(at, low, high):
                left, right = order[first], order[second]
                kept = popcount(values[left] ^ values[right]) <= MOST_DIFFERENT
                yield np.minimum(left, right)[kept], np.maximum(left, right)[kept]


def _pairs(at: Rows, low: Rows, high: Rows) -> Iterator[tuple[Rows, Rows]]:
    """Every position of `at` with each from its `low` up to its `high`, about STEP pairs at a time."""
    counts = high - low
    ends = np.cumsum(counts)
    start = 0
    while start < len(at):
        before = ends[start] - counts[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + STEP, "right")))
        some = counts[start:stop]
        offsets = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
        yield np.repeat(at[start:stop], some), np.repeat(low[start:stop], some) + offsets
        start = stop


@functools.cache
def _ones() -> Pixels:
    return np.asarray(np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(axis=1), np.uint8)


def popcount(values: Hashes) -> Pixels:
    """How many bits are set, uint8."""
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(values), np.uint8)
    return np.asarray(_ones()[values.view(np.uint16).reshape(-1, 4)].sum(axis=1), np.uint8)  # numpy before 2


def _united(found: Sequence[tuple[Rows, Rows, npt.NDArray[np.float32]]], count: int, complete: bool) -> Links:
    """Each pair once, in order."""
    first, second, alike = (np.concatenate([part[i] for part in found]) for i in range(3))
    _, kept = np.unique(first * count + second, return_index=True)
    return Links(first[kept], second[kept], alike[kept], complete)


def _group(rows: list[int], survey: Survey, classes: npt.NDArray[Any], parts: npt.NDArray[Any]) -> Group:
    def differ(values: npt.NDArray[Any]) -> bool:
        return len(np.unique(values[rows])) > 1

    return Group(tuple(rows), not differ(survey.digests), differ(classes), differ(parts))
