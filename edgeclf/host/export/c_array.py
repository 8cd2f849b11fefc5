"""A deployable int8 file as C source for TensorFlow Lite Micro: the bytes, and what a microcontroller's program must know."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeclf.core import files
from edgeclf.core.bundle import Bundle, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError
from edgeclf.core.text import printable
from edgeclf.core.tflite import Tensor, scheme
from edgeclf.host.export.micro import Arena, arena_of
from edgeclf.runtime.engine import input_table

ALIGNMENT = 16  # of the model, as flatbuffers with their weights inside want it
BYTES_A_LINE = 16
INTEGERS = ("int8", "uint8")
PLAIN = frozenset(range(32, 127)) - frozenset(b'"\\?')  # two question marks begin a trigraph


@dataclass(frozen=True)
class CArray:
    """The two files that were written, and the arena that the header names."""

    header: Path
    source: Path
    arena: Arena


def write(path: Path) -> CArray:
    """Write NAME.h and NAME.c beside the int8 file NAME.tflite; the card and what else is behind the model stay out.

    Raises ConfigError for a file that TensorFlow Lite Micro does not take, ModelError for one that is broken.
    """
    if not path.stem.isprintable() or set(path.stem) & set('"\\?'):
        raise ConfigError(f"{printable(str(path))}: C cannot include a file of this name; rename it, then export again")
    bundle = read_bundle(path)
    card = checked(bundle)
    arena = arena_of(bundle.model, str(path))
    header, source = path.with_suffix(".h"), path.with_suffix(".c")
    files.write_text(header, header_text(bundle, card, path.stem, arena))
    files.write_text(source, source_text(bundle.model, card.labels, path.stem))
    return CArray(header, source, arena)


def checked(bundle: Bundle) -> ModelCard:
    """The card of a file that fits: int8 inside, integers at both ends. Raises ConfigError."""
    if bundle.card is None:
        raise ConfigError(f"{bundle.name}: carries no model card; write C arrays of files that 'edgeclf export' wrote")
    structure = bundle.structure
    found = scheme(structure)
    if found != "int8" or structure.input.type not in INTEGERS or structure.output.type not in INTEGERS:
        ends = f"{structure.input.type} input and {structure.output.type} output"
        raise ConfigError(
            f"{bundle.name}: is {found} with {ends}, and TensorFlow Lite Micro wants int8; export with --int8, --io int8 or uint8"
        )
    return bundle.card


def identifier(stem: str) -> str:
    """A name that C allows, made of a file's: `compact_photos_int8`."""
    name = re.sub(r"[^0-9A-Za-z]+", "_", stem).strip("_")
    return name if name and not name[0].isdigit() else f"model_{name}".rstrip("_")


def header_text(bundle: Bundle, card: ModelCard, stem: str, arena: Arena) -> str:
    """Declarations, and the figures as macros, so that an array can be sized by them."""
    name, model, image = identifier(stem), bundle.structure, card.image
    big = name.upper()
    found = "measured with" if arena.measured else "an ESTIMATE, not measured, from"
    lines = [
        f"// {_comment(stem)}.tflite for TensorFlow Lite Micro, written by edgeclf. SHA-256 of the bytes:",
        f"// {card.sha256}",
        f"#ifndef EDGECLF_{big}_H",
        f"#define EDGECLF_{big}_H",
        "",
        "#include <stddef.h>",
        "",
        f"// The picture: {image.colour} pixels of 0 to 255, row by row from the top, fitted to this size by: {image.fit}.",
        f"// Each {model.input.type} of the input holds {_input_rule(model.input, card)}.",
        f"#define {big}_WIDTH {image.width}",
        f"#define {big}_HEIGHT {image.height}",
        f"#define {big}_CHANNELS {image.channels}",
        *_ends(f"{big}_INPUT", model.input),
        "",
        f"// The answer: one {model.output.type} a class, in the order of the labels;",
        f"// {'probability' if card.outputs == 'probabilities' else 'logit'} = (value - zero point) * scale.",
        f"#define {big}_CLASSES {len(card.labels)}",
        *_ends(f"{big}_OUTPUT", model.output),
        "",
        f"// Bytes of tensor arena: {found} {arena.source}.",
        "// It counts the reference kernels with pointers of 64 bits. Pointers of 32 bits need less; optimised kernels",
        "// (CMSIS-NN, ESP-NN) may need more for scratch. On the board, arena_used_bytes() says what was used.",
        f"#define {big}_ARENA_BYTES {arena.arena_bytes}",
        "",
        *_operators(op.name for op in model.operators),
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        f"extern const unsigned char {name}_data[]; // aligned to {ALIGNMENT} bytes",
        f"extern const size_t {name}_size;",
        f"extern const char *const {name}_labels[{big}_CLASSES]; // UTF-8",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        f"#endif // EDGECLF_{big}_H",
    ]
    return "\n".join(lines) + "\n"


def source_text(model: bytes, labels: tuple[str, ...], stem: str) -> str:
    """The definitions, as C11 and as C++11."""
    name = identifier(stem)
    rows = [",".join(map(str, model[at : at + BYTES_A_LINE])) for at in range(0, len(model), BYTES_A_LINE)]
    lines = [
        f"// {_comment(stem)}.tflite as an array, written by edgeclf; do not edit.",
        f'#include "{stem}.h"',
        "",
        "#ifdef __cplusplus",
        f"#define EDGECLF_ALIGNED alignas({ALIGNMENT})",
        "#else",
        f"#define EDGECLF_ALIGNED _Alignas({ALIGNMENT})",
        "#endif",
        "",
        f"EDGECLF_ALIGNED const unsigned char {name}_data[] = {{",
        *(f"{row}," for row in rows),
        "};",
        f"const size_t {name}_size = sizeof({name}_data);",
        "",
        f"const char *const {name}_labels[] = {{",
        *(f'    "{_string(label)}",' for label in labels),
        "};",
    ]
    return "\n".join(lines) + "\n"


def _ends(prefix: str, tensor: Tensor) -> list[str]:
    scale, zero_point = tensor.scales[0] if tensor.scales else 1.0, tensor.zero_points[0] if tensor.zero_points else 0
    return [f"#define {prefix}_SCALE {_float(scale)}", f"#define {prefix}_ZERO_POINT {zero_point}"]


def _float(value: float) -> str:
    """A float constant with the 9 digits that a float32 has."""
    text = f"{value:.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def _input_rule(tensor: Tensor, card: ModelCard) -> str:
    table = input_table(tensor, card.image).astype(np.int64)
    pixels = np.arange(256)
    if (table == pixels).all():
        return "the pixel itself"
    if (table == pixels - 128).all():
        return "pixel - 128"
    return f"(pixel - {card.image.mean:g}) / {card.image.std:g} / scale + zero point, rounded and clipped"


def _operators(names: Iterable[str]) -> list[str]:
    """Comment lines with what a MicroMutableOpResolver must be told."""
    needed = sorted({_resolver(name) for name in names})
    return [
        f"// Operators: tflite::MicroMutableOpResolver<{len(needed)}> resolver;",
        *(f"//   resolver.{name}();" for name in needed),
    ]


def _resolver(operator: str) -> str:
    """CONV_2D is added by AddConv2D, HARD_SWISH by AddHardSwish."""
    words = operator.replace("PADV2", "PAD_V2").split("_")
    return "Add" + "".join(word if word[0].isdigit() else word.capitalize() for word in words)


def _comment(text: str) -> str:
    return printable(text).replace("\\", "/")  # a backslash would draw the next line into the comment


def _string(text: str) -> str:
    """The inside of a C string: UTF-8, everything that is not plain in octal, which three digits end."""
    return "".join(chr(byte) if byte in PLAIN else f"\\{byte:03o}" for byte in text.encode())
