"""Which exported file to deploy, in one sentence with its reason; and what else the reader should not miss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclf.core.onnx import is_onnx
from edgeclf.core.results import paired_drop
from edgeclf.host.comparison import Unusable, Variant, Verdict
from edgeclf.host.timing import speedup
from edgeclf.host.wording import at_most, points, size, times

TOLERATED_DROP = 0.01
NEARLY_AS_SMALL = 1.1


def recommend(variants: Sequence[Variant], unusable: Sequence[Unusable] = (), warnings: Sequence[str] = ()) -> Verdict:
    """The smallest file that is shown to lose at most one point of top-1 against the full model, at 95% confidence.

    Where there are too few pictures to show that of any, or none passes, the smallest one without a measurable loss, saying
    what the pictures cannot exclude; where there is none of these either, nothing. Of files that differ in size by less
    than a tenth the measurably fastest is taken. A file whose tensors are not what its name says is left out.
    """
    honest = [v for v in variants if v.named_right]
    shown = [v for v in honest if v.against.drop.interval.high <= TOLERATED_DROP and _could_show(v)]
    unseen = [v for v in honest if v.against.drop.drop <= TOLERATED_DROP and v.against.drop.interval.low <= 0]
    chosen = _choose(shown) or _choose(unseen)
    return Verdict(
        chosen.name if chosen else None,
        _sentence(chosen, shown or unseen, bool(shown)) if chosen else _none_sentence(honest),
        _remarks(chosen, honest, variants, unusable, warnings),
    )


def _remarks(
    chosen: Variant | None,
    honest: Sequence[Variant],
    variants: Sequence[Variant],
    unusable: Sequence[Unusable],
    warnings: Sequence[str],
) -> tuple[str, ...]:
    found = [*_passed_over(chosen, honest), *_speed_remarks(chosen, variants), *_precision_remarks(variants)]
    return (*found, *(f"{u.file} could not be measured: {u.reason}" for u in unusable), *warnings)


def smallest_excludable(pictures: int) -> float:
    """The loss, as a fraction, that remains possible at 95% confidence when no answer on so many pictures changed."""
    right = np.ones(pictures, bool)
    return paired_drop(right, right).interval.high


def _could_show(variant: Variant) -> bool:
    """With too few pictures only a lucky gain would pass, and a file that changed nothing would not."""
    return smallest_excludable(variant.against.drop.total) <= TOLERATED_DROP


def _choose(variants: Sequence[Variant]) -> Variant | None:
    """The smallest; or, of those that are nearly as small, one that is measurably faster than it.

    An ONNX file only where there is no other: it needs a runtime that a base install leaves out.
    """
    variants = [v for v in variants if not is_onnx(v.model.file)] or variants
    if not variants:
        return None
    chosen = smallest = _smallest(variants)
    for other in variants:
        near = other.model.size.file_bytes <= smallest.model.size.file_bytes * NEARLY_AS_SMALL
        over = speedup(chosen.model.timing, other.model.timing)
        if near and over.measurable and over.factor > 1:
            chosen = other
    return chosen


def _smallest(variants: Sequence[Variant]) -> Variant:
    return min(variants, key=lambda v: v.model.size.file_bytes)


def _sentence(chosen: Variant, candidates: Sequence[Variant], shown: bool) -> str:
    drop, smallest = chosen.against.drop, _smallest(candidates)
    worst = at_most(drop.interval.high, drop.total)
    why = "the smallest file that qualifies" if chosen is smallest else f"hardly larger than {smallest.name}, and faster"
    deploy = f"Deploy {chosen.name} ({size(chosen.model.size.file_bytes)}, {why}): "
    if shown:
        return deploy + (
            f"at 95% confidence it loses at most {worst} points of top-1 against the full model, on {drop.total:,} test pictures."
        )
    return deploy + (
        f"it loses nothing measurable against the full model, though {drop.total:,} test pictures cannot exclude "
        f"a loss of up to {worst} points of top-1."
    )


def _none_sentence(honest: Sequence[Variant]) -> str:
    if not honest:
        return "No exported file can be recommended: none is what its name says."
    best = min(honest, key=lambda v: v.against.drop.drop)
    return (
        "No exported file can be shown to stay within 1 point of the full model; "
        f"the nearest, {best.name}, loses {_loss(best)} of top-1."
    )


def _passed_over(chosen: Variant | None, honest: Sequence[Variant]) -> list[str]:
    """Files that are clearly smaller than the chosen one, and what they cost."""
    if chosen is None:
        return []
    bytes_ = chosen.model.size.file_bytes
    return [
        f"{v.name} is smaller ({size(v.model.size.file_bytes)}) but loses {_loss(v)} of top-1."
        for v in honest
        if v.model.size.file_bytes * NEARLY_AS_SMALL < bytes_
    ]


def _loss(variant: Variant) -> str:
    drop = variant.against.drop
    low, high = points(drop.interval.low, drop.total), points(drop.interval.high, drop.total)
    return f"{points(drop.drop, drop.total)} points (95% interval {low} to {high})"


def _speed_remarks(chosen: Variant | None, variants: Sequence[Variant]) -> list[str]:
    remarks = []
    for variant in variants:
        found = variant.over_float32
        if found is None or (variant is not chosen and not (found.measurable and found.factor < 1)):
            continue
        if not found.measurable:
            remarks.append(f"Between {variant.name} and float32 there is no measurable difference in speed on this machine.")
        elif found.factor >= 1:
            remarks.append(f"{variant.name} is {times(found.factor)} faster than float32 on this machine.")
        else:
            remarks.append(
                f"{variant.name} is {times(1 / found.factor)} slower than float32 on this machine; "
                f"other processors differ, so measure on the board: edgeclf bench {variant.model.file}"
            )
    return remarks


def _precision_remarks(variants: Sequence[Variant]) -> list[str]:
    return [
        f"{v.model.file} is named {v.name}, but its tensors are {v.precision}; it is not recommended."
        for v in variants
        if not v.named_right
    ]
