"""Tables of a report as values: text in cells, which the HTML page and the Markdown file both show."""

from __future__ import annotations

from dataclasses import dataclass

NOTHING = "—"


@dataclass(frozen=True)
class Cell:
    """Text, and under it in small letters what belongs to it; `mark` is `good`, `bad`, `quiet` or nothing."""

    text: str
    note: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """Column heads and rows of equal length; the first cell of a row names it. `chosen` is the row to point out."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    chosen: int | None = None
