"""The verb that says whether this machine computes what was shipped: verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import print_json, say
from edgeclf.cli.options import Json
from edgeclf.core.errors import EdgeclfError, QualityError

if TYPE_CHECKING:
    from edgeclf.runtime.verify import Verdict


def verify(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Exported .tflite or .onnx files, or ready-to-run models.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Say whether this machine computes what was shipped: bit-exact, within tolerance, or wrong.

    Compares the SHA-256 with the model card, and runs the card's self-test: inputs made from a seed, with the outputs that
    the exporter saw. Exit code 7 when a file computes something else, 4 when it is broken or carries no self-test; the
    other files are verified all the same.

    Example: edgeclf verify runs/photos/photos-int8.tflite
    """
    answers, codes = [], []
    for file in files:
        answer, code = _verify(file, quiet=as_json)
        answers.append(answer)
        codes.append(code)
    if as_json:
        print_json({"files": answers})
    if any(codes):
        raise typer.Exit(max(codes))  # a wrong answer weighs more than a file that gives none


def _verify(file: Path, quiet: bool) -> tuple[dict[str, Any], int]:
    """(what JSON says of the file, its exit code); unless `quiet` its line is printed."""
    from edgeclf.core.text import printable
    from edgeclf.runtime.verify import verify as stage

    try:
        verdict = stage(file)
    except EdgeclfError as error:
        if not quiet:
            say(f"edgeclf: {' '.join(str(error).split())}")
        return {"file": str(file), "error": str(error)}, error.exit_code
    if not quiet:
        print(printable(f"{verdict.file}: {_outcome(verdict)}; here {verdict.runtime}, exported with {verdict.exporter}"))
    return verdict.to_json(), QualityError.exit_code if verdict.outcome == "wrong" else 0


def _outcome(verdict: Verdict) -> str:
    if verdict.outcome == "bit-exact":
        return verdict.outcome
    if verdict.difference is None:
        return "wrong (its answers are no numbers or have another shape than the exporter's); do not use it here"
    figures = f"largest difference {verdict.difference:.3g}, tolerance {verdict.tolerance:.3g}"
    advice = "; do not use it here, take another runtime or export it for this one" if verdict.outcome == "wrong" else ""
    return f"{verdict.outcome} ({figures}){advice}"
