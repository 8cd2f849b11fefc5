"""Which exported file to deploy, and where, with the reason; and what else the reader should not miss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeclf.core.onnx import is_onnx
from edgeclf.core.results import paired_drop
from edgeclf.host.report import choice
from edgeclf.host.report.choice import Choice
from edgeclf.host.report.comparison import Emulated, Unusable, Variant, Verdict
from edgeclf.host.report.devices import HERE, Board
from edgeclf.host.wording import at_most, points, size, times
from edgeclf.runtime.device.device_report import HOW
from edgeclf.runtime.latency import Machine

TOLERATED_DROP = 0.01
NEARLY_AS_SMALL = 1.1
DOT_PRODUCTS = ("VNNI", "AMX int8", "dot product", "i8mm")


def recommend(
    variants: Sequence[Variant],
    unusable: Sequence[Unusable] = (),
    warnings: Sequence[str] = (),
    machine: Machine | None = None,
    boards: Sequence[Board] = (),
    emulated: Sequence[Emulated] = (),
) -> Verdict:
    """Of the files that are shown to lose at most one point of top-1 against the full model, at 95% confidence, the fastest.

    Where there are too few pictures to show that of any, or none passes, of those without a measurable loss, saying what
    the pictures cannot exclude; where there is none of these either, nothing. The fastest is that on the first of `boards`
    which tells, else on this machine; of files that differ by less than a tenth or the noise, the smallest (host.choice).
    Where another board, or an `emulated` one by its instructions, would have another file, the sentence says so; where
    `machine` lacks what makes int8 fast and no board was asked, it says that too. A file whose tensors are not what its
    name says is left out; one of ONNX is taken only where there is no other, for it needs a runtime that a base install
    leaves out.
    """
    honest = [v for v in variants if v.named_right]
    shown = [v for v in honest if v.against.drop.interval.high <= TOLERATED_DROP and _could_show(v)]
    unseen = [v for v in honest if v.against.drop.drop <= TOLERATED_DROP and v.against.drop.interval.low <= 0]
    holding = shown or unseen
    if not holding:
        return Verdict(None, _none_sentence(honest), _remarks(None, honest, variants, unusable, warnings))
    candidates = [v for v in holding if not is_onnx(v.model.file)] or holding
    here, there = choice.here(candidates), [found for board in boards if (found := choice.on_board(board, candidates))]
    taken = there[0] if there else here
    others = [*(found for found in (*there, here) if found is not taken), *_counted(emulated, candidates)]
    elsewhere = [_elsewhere(found, taken) for found in others if taken.chosen not in found.level]
    elsewhere += [] if there or emulated else _only_here(here, candidates, machine)
    agreeing = [found.place for found in others if taken.chosen in found.level and found.place != HERE]
    return Verdict(
        taken.chosen.name,
        " ".join([_sentence(taken, candidates, bool(shown)), *elsewhere]),
        (
            *([f"{taken.chosen.name} is among the fastest on {' and '.join(agreeing)} too."] if agreeing else []),
            *_remarks(taken, honest, variants, unusable, warnings, candidates),
        ),
    )


def _counted(emulated: Sequence[Emulated], candidates: Sequence[Variant]) -> list[Choice]:
    return [found for board in emulated if (found := choice.emulated(board, candidates))]


def _remarks(
    taken: Choice | None,
    honest: Sequence[Variant],
    variants: Sequence[Variant],
    unusable: Sequence[Unusable],
    warnings: Sequence[str],
    candidates: Sequence[Variant] = (),
) -> tuple[str, ...]:
    chosen = taken.chosen if taken else None
    passed_over = _passed_over(taken, honest, candidates) if taken else []
    found = [*passed_over, *_speed_remarks(chosen, variants), *_precision_remarks(variants)]
    return (*found, *(f"{u.file} could not be measured: {u.reason}" for u in unusable), *warnings)


def smallest_excludable(pictures: int) -> float:
    """The loss, as a fraction, that remains possible at 95% confidence when no answer on so many pictures changed."""
    right = np.ones(pictures, bool)
    return paired_drop(right, right).interval.high


def _could_show(variant: Variant) -> bool:
    """With too few pictures only a lucky gain would pass, and a file that changed nothing would not."""
    return smallest_excludable(variant.against.drop.total) <= TOLERATED_DROP


def _sentence(taken: Choice, candidates: Sequence[Variant], shown: bool) -> str:
    chosen = taken.chosen
    drop, worst = chosen.against.drop, at_most(chosen.against.drop.interval.high, chosen.against.drop.total)
    deploy = f"Deploy {chosen.name} ({size(chosen.model.size.file_bytes)}, {_why(taken, candidates)}): "
    if shown:
        return deploy + (
            f"at 95% confidence it loses at most {worst} points of top-1 against the full model, on {drop.total:,} test pictures."
        )
    return deploy + (
        f"it loses nothing measurable against the full model, though {drop.total:,} test pictures cannot exclude "
        f"a loss of up to {worst} points of top-1."
    )


def _why(taken: Choice, candidates: Sequence[Variant]) -> str:
    """By which rule a file was taken of those that qualify."""
    if len(candidates) == 1:
        return "the only file that qualifies"
    smallest = taken.chosen is min(candidates, key=lambda v: v.model.size.file_bytes)
    if len(taken.level) == 1:
        return f"the fastest on {taken.place}{' and the smallest' if smallest else ''} of the files that qualify"
    if smallest:
        return f"the smallest file that qualifies; none is faster on {taken.place} by more than a tenth and the noise"
    names = ", ".join(v.name for v in taken.level)
    return f"the smallest of the fastest that qualify: on {taken.place} no more than a tenth or the noise separates {names}"


def _elsewhere(found: Choice, taken: Choice) -> str:
    """That another place would have another file, and by how much."""
    mine, theirs = taken.chosen, found.chosen
    against = f"against {found.costs[mine.name]}" if mine.name in found.costs else f"and {mine.name} was not measured there"
    costs = f"{found.costs[theirs.name]} {against}"
    return f"On {found.place} take {theirs.name} ({size(theirs.model.size.file_bytes)}) instead: {costs}."


def _only_here(here: Choice, candidates: Sequence[Variant], machine: Machine | None) -> list[str]:
    """That a board may choose an int8 file which this machine does not, for want of instructions or of a clear difference."""
    whole = [v for v in candidates if v.precision == "int8"]
    units = machine.vector_units if machine else ()
    lacking = bool(units) and not any(name in unit for unit in units for name in DOT_PRODUCTS)
    if not whole or here.chosen.precision == "int8" or not (lacking or whole[0] in here.level):
        return []
    why = (
        f"this processor ({', '.join(units)}) has no dot products for int8, which a Raspberry Pi 5 and newer phones have"
        if lacking
        else f"this machine's times cannot tell it from {here.chosen.name}"
    )
    return [
        f"On a board {whole[0].name} ({size(whole[0].model.size.file_bytes)}) may be the better: {why}. Ask the board: "
        f"{HOW}, then edgeclf report --add out.json; or count instructions: edgeclf report --emulate pi5."
    ]


def _none_sentence(honest: Sequence[Variant]) -> str:
    if not honest:
        return "No exported file can be recommended: none is what its name says."
    best = min(honest, key=lambda v: v.against.drop.drop)
    return (
        "No exported file can be shown to stay within 1 point of the full model; "
        f"the nearest, {best.name}, loses {_loss(best)} of top-1."
    )


def _passed_over(taken: Choice, honest: Sequence[Variant], candidates: Sequence[Variant]) -> list[str]:
    """Files that are clearly smaller than the chosen one, and what speaks against them."""
    bytes_ = taken.chosen.model.size.file_bytes
    smaller = [v for v in honest if v.model.size.file_bytes * NEARLY_AS_SMALL < bytes_]
    return [f"{v.name} is smaller ({size(v.model.size.file_bytes)}) but {_against(v, taken, candidates)}." for v in smaller]


def _against(variant: Variant, taken: Choice, candidates: Sequence[Variant]) -> str:
    if variant in candidates:
        costs = taken.costs
        if variant.name not in costs:
            return f"was not measured on {taken.place}"
        return f"takes {costs[variant.name]} on {taken.place}, not {costs[taken.chosen.name]}"
    if is_onnx(variant.model.file) and variant.against.drop.interval.high <= TOLERATED_DROP:
        return "needs ONNX Runtime, which a base install leaves out"
    return f"loses {_loss(variant)} of top-1"


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
