"""What the verbs share: progress bars, JSON answers, and the message for a missing extra."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclf.core.errors import DataError, MissingExtra
from edgeclf.core.progress import Report

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

PIPE_WIDTH = 160  # columns of a table that goes to no terminal


@contextlib.contextmanager
def progress(description: str, rate: bool = False) -> Iterator[Report]:
    """A bar on standard error, driven by the yielded `report(done, total)`; silent when that is no terminal.

    With `rate` it also says how many are done in a second.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    if rate:
        columns.insert(3, _rate())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _rate() -> ProgressColumn:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    return Rate()


def print_json(value: Any) -> None:
    """One JSON document on standard output; NaN and infinity are refused."""
    print(json.dumps(value, indent=2, allow_nan=False))


def say(message: str) -> None:
    """A line for the person, on standard error, so that standard output stays for answers; lost when that refuses."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{message}\n")  # in one piece, for others write from threads of their own


def console() -> Console:
    """A console for tables: as wide as the terminal, or wide enough for a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def need_training(verb: str) -> None:
    """Raise MissingExtra when the packages of the `train` extra are not installed; imports none of them."""
    if any(importlib.util.find_spec(package) is None for package in ("tensorflow", "tf_keras", "sklearn")):
        raise MissingExtra.for_extra("train", f"'{verb}' needs TensorFlow, which a base install leaves out")


def pictures_in(images: list[Path]) -> list[Path]:
    """The pictures that were named, and those in folders that were; hidden ones left out, as everywhere. Raises DataError."""
    found: list[Path] = []
    for image in images:
        inside = sorted(p for p in image.rglob("*") if _is_picture(p)) if image.is_dir() else [image]
        if not inside:
            raise DataError(f"{image}: no pictures in this folder")
        found += inside
    return found


def _is_picture(path: Path) -> bool:
    from edgeclf.core.image import EXTENSIONS

    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
