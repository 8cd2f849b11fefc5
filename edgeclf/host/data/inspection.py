"""What is in a data set, and what is wrong with it: counts, sizes, formats, broken files, doubles, conflicts, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.catalogue import SPLITS, UNSPLIT, Catalogue
from edgeclf.core.progress import Bar, no_bar
from edgeclf.host.data.duplicates import Group, groups, near
from edgeclf.host.data.survey import Survey, survey

PARTS = (*SPLITS, "unsplit")  # UNSPLIT, -1, is the last of them
TRAINED = SPLITS.index("train"), UNSPLIT
UNEVEN = 1.5  # largest class over smallest, from which on it is worth a word
MOST_LISTED = 200  # groups of doubles in JSON


@dataclass(frozen=True)
class Spread:
    """Least, median and greatest."""

    least: float
    median: float
    most: float


@dataclass(frozen=True, eq=False)
class Findings:
    """What a survey of a whole catalogue found.

    `counts` gives pictures by part and class label, for the parts there are. `imbalance` is the largest class over the
    smallest among the pictures to train on; None when one has none. `absent` names (part, class) where a part lacks a class.
    `doubles` are the gravest first; `complete` is False when their search was ended early.
    """

    catalogue: Catalogue
    survey: Survey
    counts: dict[str, dict[str, int]]
    imbalance: float | None
    absent: tuple[tuple[str, str], ...]
    width: Spread
    height: Spread
    aspect: Spread
    formats: dict[str, int]
    doubles: tuple[Group, ...]
    complete: bool

    def to_json(self) -> dict[str, Any]:
        """Everything, with the first MOST_LISTED groups of doubles."""
        return {
            "data": str(self.catalogue.source),
            "kind": self.catalogue.kind,
            "fingerprint": self.catalogue.fingerprint,
            "pictures": len(self.catalogue),
            "counts": self.counts,
            "imbalance": self.imbalance,
            "absent": [{"part": part, "class": label} for part, label in self.absent],
            "width": asdict(self.width),
            "height": asdict(self.height),
            "aspect": asdict(self.aspect),
            "formats": self.formats,
            "broken": [{"picture": name, "reason": reason} for name, reason in self.survey.broken],
            "duplicates": {
                **{name: tally(found) for name, found in self.kinds().items()},
                "search_complete": self.complete,
                "groups": [self._group_json(group) for group in self.doubles[:MOST_LISTED]],
            },
            "advice": self.advice(),
        }

    def kinds(self) -> dict[str, list[Group]]:
        """The groups of doubles by what is wrong with them; one may stand under several."""
        return {
            "exact": [g for g in self.doubles if g.exact],
            "near": [g for g in self.doubles if not g.exact],
            "across_classes": [g for g in self.doubles if g.conflict],
            "across_parts": [g for g in self.doubles if g.leak],
        }

    def member(self, row: int) -> tuple[str, str, str]:
        """Name, class and part of the picture in a row."""
        catalogue = self.catalogue
        return catalogue.names[row], catalogue.labels[catalogue.classes[row]], PARTS[catalogue.folders[row]]

    def advice(self) -> list[str]:
        """What to do about it, a sentence each; nothing when all is well."""
        kinds, drawn = self.kinds(), [g for g in self.doubles if not g.leak and UNSPLIT in self.catalogue.folders[list(g.rows)]]
        said = [f"class {label!r} has no picture in {part}: add some" for part, label in self.absent]
        if self.survey.broken:
            said.append(f"{count(len(self.survey.broken), 'file')} cannot be read: training skips them")
        if kinds["across_classes"]:
            said.append(f"{_pictures(kinds['across_classes'])} have doubles under another class: decide which label is right")
        if kinds["across_parts"]:
            said.append(
                f"{_pictures(kinds['across_parts'])} have doubles in another part, where accuracy then measures memory: remove "
                "them (training itself leaves out pictures equal to held-out ones, but not nearly equal ones)"
            )
        if drawn:
            said.append(
                f"{_pictures(drawn)} have doubles, of which one may be drawn for training and one for the test: remove them, or "
                "make train/ and test/ folders"
            )
        if self.imbalance is not None and self.imbalance >= UNEVEN:
            said.append(
                f"the largest class has {self.imbalance:.1f} times the pictures of the smallest: train with "
                "--set training.class_balance=weights, or =sampling"
            )
        return said

    def _group_json(self, group: Group) -> dict[str, Any]:
        members = [dict(zip(("picture", "class", "part"), self.member(row), strict=True)) for row in group.rows[:MOST_LISTED]]
        flags = {"exact": group.exact, "across_classes": group.conflict, "across_parts": group.leak}
        return {**flags, "count": len(group.rows), "pictures": members}


def inspect(catalogue: Catalogue, bar: Bar = no_bar) -> Findings:
    """Read every picture of a catalogue once and look for what is wrong. Raises nothing for broken pictures: they are listed."""
    with bar("reading pictures") as report:
        seen = survey(catalogue, progress=report)
    links = near(seen)
    sizes = seen.sizes[seen.readable].astype(np.float64)
    counts = _counts(catalogue)
    trained = np.bincount(catalogue.classes[np.isin(catalogue.folders, TRAINED)], minlength=len(catalogue.labels))
    return Findings(
        catalogue, seen, counts,
        imbalance=round(float(trained.max() / trained.min()), 3) if trained.min() else None,
        absent=_absent(catalogue, trained, counts),
        width=_spread(sizes[:, 0]), height=_spread(sizes[:, 1]), aspect=_spread(sizes[:, 0] / np.maximum(sizes[:, 1], 1)),
        formats=dict(Counter(f for f, ok in zip(seen.formats, seen.readable, strict=True) if ok).most_common()),
        doubles=tuple(groups(seen, links, catalogue.classes, catalogue.folders)), complete=links.complete,
    )  # fmt: skip


def tally(found: Iterable[Group]) -> dict[str, int]:
    """How many groups, and how many pictures in them."""
    sizes = [len(group.rows) for group in found]
    return {"groups": len(sizes), "pictures": sum(sizes)}


def count(number: int, thing: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number:,} {thing}{'s' if number != 1 else ''}"


def _pictures(found: list[Group]) -> str:
    return count(tally(found)["pictures"], "picture")


def _counts(catalogue: Catalogue) -> dict[str, dict[str, int]]:
    found = {}
    for number, part in enumerate(PARTS):
        mine = catalogue.folders == (number if number < len(SPLITS) else UNSPLIT)
        if mine.any():
            counts = np.bincount(catalogue.classes[mine], minlength=len(catalogue.labels)).tolist()
            found[part] = dict(zip(catalogue.labels, counts, strict=True))
    return found


def _absent(catalogue: Catalogue, trained: npt.NDArray[Any], counts: dict[str, dict[str, int]]) -> tuple[tuple[str, str], ...]:
    """(part, class) without a picture; what is not yet in a part counts for training."""
    untrained = [("train", label) for label, number in zip(catalogue.labels, trained, strict=True) if not number]
    held_out = [(part, label) for part in SPLITS[1:] for label, number in counts.get(part, {}).items() if not number]
    return (*untrained, *held_out)


def _spread(values: npt.NDArray[np.float64]) -> Spread:
    """Zeros when there is no value."""
    if not len(values):
        return Spread(0.0, 0.0, 0.0)
    return Spread(*(round(float(v), 3) for v in (values.min(), np.median(values), values.max())))
