"""Code to start from, filled in for one exported file: Android and iOS by MediaPipe Tasks, Python with and without edgeclf."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core import files
from edgeclf.core.bundle import Bundle, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, MissingExtra
from edgeclf.core.image import PAD_VALUE
from edgeclf.core.text import printable
from edgeclf.core.tflite import Tensor
from edgeclf.runtime.engine import input_table

TOP = 3  # classes that a snippet names
PYTHON = {"with_edgeclf.py": "snippet_edgeclf.py.j2", "plain_litert.py": "snippet_litert.py.j2"}
PHONES = {"PictureClassifier.kt": "snippet_android.kt.j2", "PictureClassifier.swift": "snippet_ios.swift.j2"}


@dataclass(frozen=True)
class Snippets:
    """The folder and the files in it; `note` says why there are none for phones, and is empty when there are."""

    folder: Path
    files: tuple[Path, ...]
    note: str = ""


def folder_of(path: Path) -> Path:
    """`NAME-VARIANT-snippets` beside the file."""
    return path.with_name(f"{path.stem}-snippets")


def write(path: Path) -> Snippets:
    """Write the snippets of the exported file at `path` into a folder beside it.

    Those for phones are left out when MediaPipe Tasks would refuse the file or misread it. Raises ConfigError for a file
    without card, ModelError for a broken one, MissingExtra when jinja2 is not installed.
    """
    bundle = read_bundle(path)
    if bundle.card is None:
        raise ConfigError(f"{path}: carries no model card; write snippets of files that 'edgeclf export' wrote")
    note = phones_refuse(bundle.structure.input, bundle.structure.output, bundle.card)
    wanted = PYTHON if note else {**PYTHON, **PHONES}
    folder, values = folder_of(path), _values(path, bundle, bundle.card)
    texts = {name: render(template, values) for name, template in wanted.items()}
    for name, text in texts.items():
        files.write_text(folder / name, text)
    return Snippets(folder, tuple(folder / name for name in texts), note and f"{path.name}: no snippets for phones: {note}")


def phones_refuse(given: Tensor, answer: Tensor, card: ModelCard) -> str:
    """Why MediaPipe Tasks does not run such a file as it was trained; empty when it does."""
    if not {given.type, answer.type} <= {"uint8", "float32"}:
        return f"MediaPipe Tasks refuses {given.type} input and {answer.type} output; export with --io uint8"
    if card.image.colour != "rgb":
        return f"MediaPipe Tasks hands over RGB, and the network wants {card.image.colour}; train on rgb"
    if given.type == "uint8" and not _is_pixels(given, card):
        return "MediaPipe Tasks hands over pixels as they are, and this input has another scale; export with --io float32"
    return ""


def render(template: str, values: dict[str, Any]) -> str:
    """A template of this folder, filled in. Raises MissingExtra when jinja2 is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtra.for_extra("train", "jinja2 is not installed") from error
    # No autoescape: this is no HTML, and every text from outside goes through the filter of its language.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters.update(python=_python, kotlin=_kotlin, swift=_quoted, comment=_comment)
    return environment.from_string(Path(__file__).with_name(template).read_text(encoding="utf-8")).render(values)


def _values(path: Path, bundle: Bundle, card: ModelCard) -> dict[str, Any]:
    image, given = card.image, bundle.structure.input
    what = f"{image.width}x{image.height}, {image.colour}, {given.type}"
    return {
        "file": path.name, "stem": path.stem, "image": image, "classes": len(card.labels), "pad": PAD_VALUE,
        "top": min(TOP, len(card.labels)), "output": bundle.structure.output.type, "conversion": _conversion(given, card),
        "normalised": not _is_pixels(given, card),
        "facts": f"{len(card.labels)} classes; the input is {what}; pictures are fitted by: {image.fit}.",
    }  # fmt: skip


def _is_pixels(given: Tensor, card: ModelCard) -> bool:
    """Whether the input tensor takes the pixel itself, or the pixel minus 128 where it is int8."""
    if given.type == "float32":
        return False
    shift = 128 if given.type == "int8" else 0
    return bool((input_table(given, card.image).astype(np.int64) == np.arange(256) - shift).all())


def _conversion(given: Tensor, card: ModelCard) -> str:
    """The Python expression that makes the input tensor of `pixels`, uint8."""
    normalised = "((pixels.astype(np.float32) - MEAN) / STD)"
    if given.type == "float32":
        return normalised
    if _is_pixels(given, card):
        return "pixels" if given.type == "uint8" else "(pixels ^ 128).view(np.int8)"  # minus 128, in two's complement
    limits, scale = np.iinfo(given.type), given.scales[0] if given.scales else 1.0
    stored = f"np.rint({normalised}.astype(np.float64) / {scale!r}) + {given.zero_points[0] if given.zero_points else 0}"
    return f"np.clip({stored}, {limits.min}, {limits.max}).astype(np.{given.type})"


def _comment(text: str) -> str:
    """For comments and docstrings, which a quotation mark or a backslash might end."""
    return printable(text).replace("\\", "/").replace('"', "'")


def _python(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _quoted(text: str) -> str:
    """A string literal of Swift, and of Kotlin but for its dollar."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _kotlin(text: str) -> str:
    return _quoted(text).replace("$", "\\$")
