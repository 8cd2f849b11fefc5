"""The folder of a long study (tune, crossval): it keeps what it was started with, so that the same command goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from edgeclf.core import files
from edgeclf.core.errors import ConfigError
from edgeclf.core.recipe import Recipe
from edgeclf.host.run import RUNS

SETTINGS = "settings.json"

Say: TypeAlias = Callable[[str], None]


def default_folder(verb: str, recipe: Recipe, data: str) -> Path:
    """`runs/RECIPE-DATA-VERB`."""
    from edgeclf.host.train.train import data_name

    return RUNS / f"{recipe.name}-{data_name(data)}-{verb}"


def comparable(recipe: Recipe) -> Recipe:
    """`recipe`, when several trainings of it can be compared. Raises ConfigError for a batch size that each would find itself."""
    if not recipe.training.batch_size:
        raise ConfigError(f"{recipe.name}: batch_size = 0 may differ between trainings; give one: --set training.batch_size=64")
    return recipe


def check(folder: Path, settings: dict[str, Any]) -> None:
    """Raises ConfigError when `folder` was started with other settings, naming those that differ, or is something else."""
    if not (folder / SETTINGS).is_file():
        if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
            raise ConfigError(f"{folder}: holds other files and no {settings['verb']}; choose another --out")
        return
    before = _read(folder)
    different = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
    if different:
        raise ConfigError(
            f"{folder}: was started with another {', '.join(different)}; choose another --out, or give what it was started with"
        )


def settle(folder: Path, settings: dict[str, Any]) -> None:
    """Keep `settings` in a new folder, or check that they are those of an old one. Call it with the folder locked."""
    check(folder, settings)
    if not (folder / SETTINGS).is_file():
        files.write_json(folder / SETTINGS, settings)


def settled(verb: str, folder: Path | None, keys: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The folder of that verb, the given one or the newest under `runs/`, and its settings of these keys. Raises ConfigError."""
    if folder is None:
        found = [p for p in RUNS.glob(f"*/{SETTINGS}") if _read(p.parent).get("verb") == verb]
        if not found:
            raise ConfigError(f"no {verb} under {RUNS}/; give its folder with --out, or MODEL and DATA to start one")
        folder = max(found, key=lambda p: p.stat().st_mtime).parent
    settings = _read(folder)
    if settings.get("verb") != verb:
        raise ConfigError(f"{folder}: holds no {verb}; give MODEL and DATA to start one")
    missing = [key for key in keys if key not in settings]
    if missing:
        raise ConfigError(f"{folder / SETTINGS}: lacks {', '.join(missing)}; remove the folder and start again")
    return folder, {key: settings[key] for key in keys}


def _read(folder: Path) -> dict[str, Any]:
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove the folder and start again") from error
    return found if isinstance(found, dict) else {}
