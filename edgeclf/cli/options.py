"""Options that several verbs share, so that each is written, explained and checked once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

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
Engine: TypeAlias = Annotated[
    Literal["local", "ray"],
    typer.Option(
        help="In this process, or side by side on Ray; several machines need pictures and results on a disk that all see "
        "under the same path."
    ),
]
Address: TypeAlias = Annotated[
    str | None, typer.Option(metavar="HOST:PORT|auto", help="The Ray cluster to join.", show_default="one started here")
]
CpusPerTrial: TypeAlias = Annotated[
    int | None, typer.Option(help="With --engine ray: CPUs, and so threads, of each worker.", min=1, show_default="1")
]
GpusPerTrial: TypeAlias = Annotated[
    float | None, typer.Option(help="With --engine ray: GPUs of each worker, or a share of one.", min=0, show_default="none")
]


def pair(text: str) -> tuple[float, float]:
    """MEAN,STD as two numbers."""
    try:
        mean, std = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--normalize {text}: expected two numbers, MEAN,STD, such as 127.5,127.5") from error
    if not std > 0:
        raise ConfigError(f"--normalize {text}: STD must be above 0")
    return mean, std
