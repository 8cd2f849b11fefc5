"""What export writes beside a file for those who build it in: C source for microcontrollers, snippets for apps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.core.tflite import named_scheme
from edgeclf.host.export import c_array, snippets
from edgeclf.host.export.c_array import CArray
from edgeclf.host.export.snippets import Snippets

TFLITE = ".tflite"


@dataclass(frozen=True)
class Companions:
    """What was written beside `path`; None for what was not."""

    path: Path
    c_array: CArray | None = None
    snippets: Snippets | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a user of the files should know."""
        return tuple(note for note in (self._about_the_arena(), self.snippets.note if self.snippets else "") if note)

    def to_json(self) -> dict[str, Any]:
        """Only what was written."""
        found: dict[str, Any] = {}
        if self.c_array:
            arena = self.c_array.arena
            found["c_array"] = {
                "header": str(self.c_array.header), "source": str(self.c_array.source),
                "arena_bytes": arena.arena_bytes, "arena_measured": arena.measured,
            }  # fmt: skip
        if self.snippets:
            found["snippets"] = [str(path) for path in self.snippets.files]
        return found

    def _about_the_arena(self) -> str:
        if self.c_array is None:
            return ""
        arena, names = self.c_array.arena, f"{self.c_array.header.name} and {self.c_array.source.name}"
        found = "measured by" if arena.measured else "an estimate from"
        return f"{names}: {arena.arena_bytes:,} bytes of tensor arena, {found} {arena.source}"


def check_request(variants: Sequence[str], io: str, c_array: bool, snippets: bool) -> None:
    """Raise ConfigError for a C array of what TensorFlow Lite Micro does not take, and for snippets of no `.tflite` variant."""
    if snippets and not variants:
        raise ConfigError("--snippets are of .tflite files, of which none was asked for; add --int8 or leave --snippets out")
    if c_array and "int8" not in variants:
        raise ConfigError("--c-array is about the int8 file, which was not asked for; add --int8 or leave --c-array out")
    if c_array and io == "float32":
        raise ConfigError("--c-array with --io float32: TensorFlow Lite Micro wants integers; take --io int8 or uint8")


def write(
    exported: Sequence[tuple[str, Path]], with_c_array: bool, with_snippets: bool, on_written: Callable[[Companions], None]
) -> None:
    """Write what is wanted beside the exported files, given as (variant, path); `on_written` hears of each.

    C source is of int8 files alone, snippets of every `.tflite`. Raises QualityError for a file that TensorFlow Lite Micro
    refuses, ConfigError for a name that C cannot include.
    """
    for variant, path in exported:
        if path.suffix != TFLITE:
            continue
        code = snippets.write(path) if with_snippets else None
        if code:
            on_written(Companions(path, snippets=code))
        if with_c_array and named_scheme(variant) == "int8":
            on_written(Companions(path, c_array=c_array.write(path)))
