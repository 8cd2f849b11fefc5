"""Shipped models: trained int8 files that come with edgeclf and are called by their name, such as `compact-cifar10`."""

from __future__ import annotations

import difflib
from pathlib import Path

from edgeclf.core import config
from edgeclf.core.errors import ModelError

SUFFIX = ".tflite"


def names() -> list[str]:
    """Names of everything that is ready to run, sorted."""
    return sorted(path.stem for path in config.shipped("models").glob(f"*{SUFFIX}"))


def path_of(name: str) -> Path:
    """The file of a shipped model, whether it is there or not."""
    return config.shipped("models") / f"{name}{SUFFIX}"


def is_name(file: Path | str) -> bool:
    """Whether that could be the name of a shipped model: no folder, no suffix, and nothing here is called so."""
    path = Path(file)
    return str(path) == path.name and not path.suffix and bool(path.name) and not path.exists()


def resolve(file: Path | str) -> Path:
    """`file` itself, or the shipped model of that name where nothing here is called so. Raises ModelError, naming the nearest."""
    if not is_name(file):
        return Path(file)
    known = names()
    if str(file) in known:
        return path_of(str(file))
    close = difflib.get_close_matches(str(file), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ModelError(
        f"{file}: no such file, and no model of that name comes with edgeclf{hint} (ready to run: {', '.join(known)})"
    )
