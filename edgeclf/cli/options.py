"""Options that several verbs share, so that each is written, explained and checked once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from edgeclf.core.errors import ConfigError

File: TypeAlias = Annotated[
    Path,
    typer.Argument(
        help="An exported model, NAME-int8.tflite, or one that 'edgeclf models' calls ready to run.", show_default=False
    ),
]
Labels: TypeAlias = Annotated[Path | None, typer.Option(help="A file with one label a line, for a model that carries none.")]
Normalize: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="MEAN,STD", help="For a float model without card: it sees (pixel - MEAN) / STD."),
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def pair(text: str) -> tuple[float, float]:
    """MEAN,STD as two numbers."""
    try:
        mean, std = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--normalize {text}: expected two numbers, MEAN,STD, such as 127.5,127.5") from error
    if not std > 0:
        raise ConfigError(f"--normalize {text}: STD must be above 0")
    return mean, std
