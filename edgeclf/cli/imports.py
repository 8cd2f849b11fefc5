"""The verb that makes a run of a model that was made elsewhere: import."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeclf.cli.common import need_training, print_json, say
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeclf.host.imports.imports import Imported


class FitType(StrEnum):
    """The choices of --fit."""

    stretch = "stretch"
    crop = "crop"
    pad = "pad"


class ColourType(StrEnum):
    """The choices of --colour."""

    rgb = "rgb"
    bgr = "bgr"
    grey = "grey"


def import_(
    file: Annotated[
        Path, typer.Argument(help="A .keras, .h5, .tflite or .onnx file, or a SavedModel folder.", show_default=False)
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="A file with one label a line, in the order of the outputs.", show_default="the file's own"),
    ] = None,
    normalize: Annotated[
        str | None,
        typer.Option(
            metavar="MEAN,STD",
            help="It sees (pixel - MEAN) / STD, pixels 0 to 255; or one of each a channel: M,M,M,S,S,S.",
            show_default="what the model says itself",
        ),
    ] = None,
    fit: Annotated[FitType, typer.Option(help="How a picture of another shape is made to fit.")] = FitType.stretch,
    colour: Annotated[ColourType | None, typer.Option(help="Order of the channels.", show_default="rgb, grey for one")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels, for a model that leaves it open.", min=1, max=4096)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.", show_default="runs/NAME")] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Let Python code in a Keras file run: it can do anything that you can.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a run folder of a model that was made elsewhere; export, evaluate, report and run go on from it.

    The file is opened in a process of its own first, and its answers are compared with those of the run. Pickles are refused.

    Example: edgeclf import flowers.keras --labels labels.txt --normalize 127.5,127.5
    """
    need_training("import")
    from edgeclf.host.imports.imports import import_model
    from edgeclf.runtime.foreign import read_labels

    found = import_model(
        file, read_labels(labels) if labels else (), normalize=numbers(normalize) if normalize else None, fit=fit.value,
        colour=colour.value if colour else None, side=image_size, trust=trust, out=out,
    )  # fmt: skip
    if as_json:
        card = found.run.card
        print_json(
            {
                "run": str(found.run.folder), "file": found.run.model_file.name, "made_with": found.made_with,
                "labels": list(card.labels), "image_size": [card.image.width, card.image.height],
                "notes": list(found.notes), "difference": found.difference,
            }
        )  # fmt: skip
    else:
        _tell(found)


def _tell(found: Imported) -> None:
    run, image = found.run, found.run.card.image
    for note in found.notes:
        say(f"note: {note}")
    same = "" if found.difference is None else f"; answers as it did, within {found.difference:.1g}"
    classes = len(run.card.labels)
    print(f"{run.folder}: {run.name}, of {found.made_with}: {image.width}x{image.height} {image.colour}, {classes} classes{same}")
    folder = shlex.quote(str(run.folder))
    if run.model_file.suffix == ".onnx":
        print(f"next: edgeclf evaluate {shlex.quote(str(run.model_file))} DATA")
    else:
        print(f"next: edgeclf export {folder} --int8 --calibration DATA")


def numbers(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """MEAN,STD, or three of each, as (means, stds). Raises ConfigError."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--normalize {text}: expected numbers, MEAN,STD, such as 127.5,127.5") from error
    half = len(values) // 2
    if len(values) not in (2, 6):
        raise ConfigError(f"--normalize {text}: expected two numbers, MEAN,STD, or six, three means and three stds")
    mean, std = values[:half], values[half:]
    if not all(abs(m) <= 1e6 for m in mean) or not all(1e-6 <= s <= 1e6 for s in std):
        raise ConfigError(f"--normalize {text}: must be finite, and STD above 0")
    return mean, std
