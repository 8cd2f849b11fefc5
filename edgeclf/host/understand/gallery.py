"""Galleries: pictures with words under them, in sections, as one self-contained HTML page; text and pixels only, no measuring."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.catalogue import Catalogue, prepared, reader
from edgeclf.core.errors import DataError, MissingExtra
from edgeclf.core.image import Colour, ImageSpec, Pixels
from edgeclf.core.text import printable
from edgeclf.host.data.duplicates import Group
from edgeclf.host.data.inspection import PARTS, Findings, Spread, count, tally
from edgeclf.host.report.html import data_uri
from edgeclf.host.understand.mistakes import Mistake, Mistakes, Seen
from edgeclf.host.wording import points

TEMPLATE = "gallery.html.j2"
MOST_SAMPLES, MOST_EACH = 160, 8  # pictures of the sample, in all and of one class
MOST_GROUPS, MOST_IN_GROUP = 40, 8
MOST_BROKEN, MOST_CLASSES = 200, 200
PAIRS, EACH_PAIR = 8, 6  # confused pairs that are shown, and pictures of each


@dataclass(frozen=True)
class Tile:
    """A picture as a `data:` address, its name, the line under it and smaller ones."""

    uri: str
    name: str
    line: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """Pictures that belong together, under a few words; without a title they follow each other in a grid."""

    title: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class Section:
    """A heading, what it means, and what there is to show: a table whose first row is the head, rows of pictures, or neither."""

    title: str
    why: str
    rows: tuple[Row, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Page:
    """One page: what made it, its title, facts in one line, findings one a line, sections."""

    made_by: str
    title: str
    meta: str
    findings: tuple[str, ...]
    sections: tuple[Section, ...]


Look = Callable[[int], str]
"""A picture by its index in the catalogue, as a `data:` address."""


def render(page: Page) -> str:
    """The page as HTML: no script, no outside file, every text escaped. Raises MissingExtra when jinja2 is not installed."""
    return str(template().render(page=page))


@functools.cache
def template() -> Any:
    """The template of a page; called before long work, it tells in time that jinja2 is missing. Raises MissingExtra."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtra.for_extra("train", "jinja2 is not installed") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8"))


def data_page(findings: Findings) -> str:
    """The gallery of `edgeclf data inspect`, HTML."""
    catalogue, kinds, look = findings.catalogue, findings.kinds(), _as_it_is(findings.catalogue)
    broken = findings.survey.broken
    sections = [
        Section("Pictures of each class", "", table=_class_table(findings)),
        Section("Sizes", "In pixels, as shown, that is after the orientation in EXIF.", table=_size_table(findings)),
        Section("Formats", "", table=(("format", "pictures"), *((name, f"{n:,}") for name, n in findings.formats.items()))),
    ]
    if broken:
        rows = (("picture", "reason"), *((printable(name), printable(reason)) for name, reason in broken[:MOST_BROKEN]))
        sections.append(Section(f"Broken files: {len(broken):,}{_of_which(len(broken), MOST_BROKEN)}", "", table=rows))
    for name, title, why in (
        ("across_classes", "Doubles under different classes", "At most one of the labels is right."),
        ("across_parts", "Doubles in different parts", "What was trained on should not be measured on."),
        ("exact", "Equal pictures", "The same pixels, whatever the files are called."),
        (
            "near",
            "Nearly equal pictures",
            "Found by a perceptual hash and compared as small grey pictures. Look before removing.",
        ),
    ):
        sections.append(_group_section(findings, kinds[name], title, why, look))
    sections.append(_sample_section(findings, look))
    meta = f"{count(len(catalogue), 'picture')} · {len(catalogue.labels)} classes · {catalogue.kind}"
    return render(Page("edgeclf data inspect", str(catalogue.source), meta, tuple(findings.advice()), tuple(sections)))


def errors_page(found: Mistakes, title: str, limit: int) -> str:
    """The gallery of `edgeclf errors`, HTML, with at most `limit` pictures in a section; `title` names the model."""
    look = _as_the_network_sees_it(found.catalogue, found.card.image)
    sections = [_wrong_section(found, limit, look), _suspect_section(found, limit, look), _pair_section(found, limit, look)]
    if found.seen is not None:
        sections.append(_seen_section(found, found.seen, limit, look))
    meta = f"{count(found.pictures, 'picture')} of {found.catalogue.source}: {found.which}"
    return render(Page("edgeclf errors", title, meta, tuple(summary(found)), tuple(sections)))


def summary(found: Mistakes) -> list[str]:
    """The figures of an error analysis in a few sentences."""
    n = found.pictures
    said = [f"{count(len(found.wrong), 'picture')} of {n:,} misclassified: top-1 {points(found.top1, n)}%"]
    if found.suspects:
        said.append(f"{len(found.suspects):,} of them may be label mistakes: the answer is as sure as where it is right")
    if found.pairs:
        given, called, number = found.pairs[0]
        said.append(f"most often {found.label(given)!r} is called {found.label(called)!r}: {count(number, 'time')}")
    if found.seen is None:
        said.append("which pictures the model was trained on is not known here, so doubles across parts were not looked for")
    elif found.seen:
        exact = sum(s.exact for s in found.seen)
        without = f"; top-1 on the others {points(found.top1_unseen, n)}%" if found.top1_unseen is not None else ""
        said.append(f"{count(len(found.seen), 'picture')} with a double among the training pictures ({exact:,} exact){without}")
    return said


def _wrong_section(found: Mistakes, limit: int, look: Look) -> Section:
    why = f"The surest first, as the network saw them; given label → answer.{_shown(len(found.wrong), limit)}"
    return Section("Misclassified pictures", why, _grid(_mistake(m, found, look) for m in found.wrong[:limit]))


def _suspect_section(found: Mistakes, limit: int, look: Look) -> Section:
    why = (
        "Candidates, the likeliest first, by confident learning (Northcutt et al. 2021): mistakes in which the answer is at "
        f"least as sure as it is on average where it is the label. {_fairness(found)} The model may simply be wrong: look "
        f"before you relabel.{_shown(len(found.suspects), limit)}"
    )
    return Section("Likely label mistakes", why, _grid(_mistake(m, found, look) for m in found.suspects[:limit]))


def _fairness(found: Mistakes) -> str:
    """Whether the answers are out of sample, which the method needs."""
    if found.own:
        return "The model was trained on none of these pictures."
    return "That asks for a model that was not trained on these pictures, which is not known here."


def _pair_section(found: Mistakes, limit: int, look: Look) -> Section:
    rows = []
    for given, called, number in found.pairs[:PAIRS]:
        some = [m for m in found.wrong if (m.given, m.called) == (given, called)][: min(limit, EACH_PAIR)]
        title = f"{found.label(given)} → {found.label(called)}: {count(number, 'picture')}"
        rows.append(Row(title, tuple(_mistake(m, found, look) for m in some)))
    return Section("Most confused pairs", "Given label → answer; the surest pictures of each pair.", tuple(rows))


def _seen_section(found: Mistakes, seen: tuple[Seen, ...], limit: int, look: Look) -> Section:
    why = (
        "Held-out pictures (left) that equal or nearly equal a training picture (right): answering them right is memory. "
        "'edgeclf train' leaves training pictures out whose pixels equal those of a held-out one; nearly equal ones it keeps. "
        f"Those with different labels come first.{_shown(len(seen), limit)}"
    )
    return Section("Doubles across parts", why, tuple(_seen_row(s, found, look) for s in seen[:limit]))


def _seen_row(seen: Seen, found: Mistakes, look: Look) -> Row:
    catalogue = found.catalogue
    title = "equal" if seen.exact else f"alike {seen.alike:.2f}"
    tiles = [
        Tile(look(i), printable(catalogue.names[i]), catalogue.labels[catalogue.classes[i]], (part,))
        for i, part in ((seen.index, "held out"), (seen.twin, "training"))
    ]
    return Row(title + (", other label" if seen.conflict else ""), tuple(tiles))


def _mistake(mistake: Mistake, found: Mistakes, look: Look) -> Tile:
    line = f"{found.label(mistake.given)} → {found.label(mistake.called)}"
    shares = f"{mistake.sure:.0%} sure", f"label {mistake.given_share:.0%}"
    return Tile(look(mistake.index), printable(found.catalogue.names[mistake.index]), line, shares)


def _group_section(findings: Findings, found: list[Group], title: str, why: str, look: Look) -> Section:
    counts = tally(found)
    said = f"{why} {count(counts['groups'], 'group')} of {count(counts['pictures'], 'picture')}."
    rows = tuple(
        Row(_group_title(g), tuple(_member(findings, row, look) for row in _telling(findings, g)[:MOST_IN_GROUP]))
        for g in found[:MOST_GROUPS]
    )
    ended = "" if findings.complete else " There are too many: the search was ended early."
    return Section(title, said + _shown(len(found), MOST_GROUPS, "groups") + ended if found else "None.", rows)


def _group_title(group: Group) -> str:
    number = len(group.rows)
    some = f", {MOST_IN_GROUP} of {number:,} pictures" if number > MOST_IN_GROUP else ""
    return ("equal" if group.exact else "nearly equal") + some


def _telling(findings: Findings, group: Group) -> list[int]:
    """The rows of a group, the first of each class and part before the second of any."""
    turns: Counter[tuple[str, str]] = Counter()
    ordered = []
    for row in group.rows:
        kind = findings.member(row)[1:]
        ordered.append((turns[kind], row))
        turns[kind] += 1
    return [row for _, row in sorted(ordered)]


def _member(findings: Findings, row: int, look: Look) -> Tile:
    name, label, part = findings.member(row)
    return Tile(look(row), printable(name), label, () if part == "unsplit" else (part,))


def _sample_section(findings: Findings, look: Look) -> Section:
    """A few readable pictures of each class, evenly spread."""
    classes, labels, rows = findings.catalogue.classes, findings.catalogue.labels, []
    each = max(1, min(MOST_EACH, MOST_SAMPLES // len(labels)))
    for number, label in enumerate(labels[:MOST_SAMPLES]):
        mine = np.flatnonzero((classes == number) & findings.survey.readable)
        chosen = np.unique(mine[np.linspace(0, len(mine) - 1, each).round().astype(int)]) if len(mine) else mine
        rows.append(Row(label, tuple(_member(findings, int(row), look) for row in chosen)))
    return Section("A sample of each class", _shown(len(labels), MOST_SAMPLES, "classes").strip(), tuple(rows))


def _class_table(findings: Findings) -> tuple[tuple[str, ...], ...]:
    """Pictures by class and part, the last line in all; of very many classes the first."""
    parts = [part for part in PARTS if part in findings.counts]
    labels = findings.catalogue.labels[:MOST_CLASSES]
    rows = [(label, *(f"{findings.counts[part][label]:,}" for part in parts)) for label in labels]
    totals = ("all", *(f"{sum(findings.counts[part].values()):,}" for part in parts))
    return (("class", *parts), *rows, totals)


def _size_table(findings: Findings) -> tuple[tuple[str, ...], ...]:
    def line(name: str, spread: Spread) -> tuple[str, ...]:
        return (name, *(f"{value:,.2f}".rstrip("0").rstrip(".") for value in (spread.least, spread.median, spread.most)))

    sizes = line("width", findings.width), line("height", findings.height), line("width / height", findings.aspect)
    return (("", "least", "median", "most"), *sizes)


def _grid(tiles: Iterable[Tile]) -> tuple[Row, ...]:
    made = tuple(tiles)
    return (Row("", made),) if made else ()


def _shown(number: int, most: int, things: str = "pictures") -> str:
    return f" The first {most:,} of {number:,} {things} are shown." if number > most else ""


def _of_which(number: int, most: int) -> str:
    return f", of which {most:,} are listed" if number > most else ""


def _as_it_is(catalogue: Catalogue) -> Look:
    return _looking(reader(catalogue), "bgr")


def _as_the_network_sees_it(catalogue: Catalogue, spec: ImageSpec) -> Look:
    return _looking(prepared(catalogue, spec), spec.colour)


def _looking(read: Callable[[int], Pixels], colour: Colour) -> Look:
    """Each picture once, however often it is shown; nothing for one that cannot be read any more."""
    known: dict[int, str] = {}

    def look(index: int) -> str:
        if index not in known:
            try:
                known[index] = data_uri(read(index), colour)
            except DataError:
                known[index] = ""
        return known[index]

    return look
