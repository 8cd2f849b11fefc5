"""Run: a folder that training filled; every later stage starts from one."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.recipe import Recipe, read_recipe

RUNS = Path("runs")
RECIPE, CARD, MODEL, HISTORY, CURVES, SPLIT = "recipe.toml", "card.json", "model.keras", "history.csv", "curves.png", "split.json"
STARTED = "started.json"  # the last file of a start: what has it can be resumed


@dataclass(frozen=True)
class Run:
    """A finished training. `card.provenance` holds `data`, `seed`, `split`, `fingerprint`, `versions`, `command`."""

    folder: Path
    recipe: Recipe
    card: ModelCard

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def data(self) -> str:
        """What the user gave as DATA: a path, or a built-in name such as `digits`."""
        return str(self.card.provenance["data"])

    def exported(self, variant: str) -> Path:
        """Where the file of that variant lies or would lie."""
        return self.folder / f"{self.name}-{variant}.tflite"

    def exports(self) -> list[Path]:
        """Every deployable file in the folder, by name."""
        return sorted(self.folder.glob(f"{self.name}-*.tflite"))

    def model(self) -> Any:
        """The trained float `tf_keras.Model`: float32 (pictures, height, width, channels) of (pixel - 128) / 128 → logits.

        Raises ModelError when the file is missing or damaged.
        """
        from edgeclf.host.keras import keras

        path = self.folder / MODEL
        try:
            return keras().models.load_model(path, compile=False, safe_mode=True)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            reason = "is missing" if not path.is_file() else f"cannot be loaded: {' '.join(str(error).split())[:200]}"
            raise ModelError(f"{path}: {reason}; copy the run again, or train again") from error


def open_run(folder: Path | None = None) -> Run:
    """The run in `folder`, or the newest finished one under `runs/`. Raises ConfigError, saying what to do."""
    if folder is None:
        finished = sorted(RUNS.glob(f"*/{CARD}"), key=lambda p: p.stat().st_mtime)
        if not finished:
            raise ConfigError(f"no finished run under {RUNS}/; train one first: edgeclf train compact DATA")
        folder = finished[-1].parent
    card = folder / CARD
    if not card.is_file():
        hint = f"; it was interrupted: edgeclf train --resume --out {folder}" if (folder / STARTED).is_file() else ""
        raise ConfigError(f"{folder}: not a finished run (no {CARD}){hint}")
    return Run(folder, read_recipe(folder / RECIPE), ModelCard.from_json(card.read_bytes(), str(card)))
