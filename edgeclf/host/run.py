"""Run: a folder that training filled; every later stage starts from one."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.files import sha256
from edgeclf.core.recipe import Recipe, read_recipe

RUNS = Path("runs")
RECIPE, CARD, MODEL, HISTORY, CURVES, SPLIT = "recipe.toml", "card.json", "model.keras", "history.csv", "curves.png", "split.json"
FLOAT32, ONNX = "model.tflite", "model.onnx"  # instead of model.keras in a run that was imported without a Keras network
FULL, RANGES = "full.keras", "ranges.json"  # of a compressed run: the network before, and what quantisation-aware training found
STARTED = "started.json"  # the last file of a start: what has it can be resumed


@dataclass(frozen=True)
class Run:
    """A finished training, or an import. `card.provenance` holds `data`, `seed`, `split`, `fingerprint`, `versions`, `command`.

    An imported run has `imported` there, and no `data`, `split` and `fingerprint` until some was given to it.
    """

    folder: Path
    recipe: Recipe
    card: ModelCard

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def data(self) -> str:
        """What the user gave as DATA: a path, or a built-in name such as `digits`. Raises ConfigError when there is none."""
        if "data" not in self.card.provenance:
            raise ConfigError(
                f"{self.folder}: was imported and has no data of its own; give it some: "
                f"edgeclf export {self.folder} --calibration DATA"
            )
        return str(self.card.provenance["data"])

    @property
    def imported(self) -> bool:
        """Whether the network was made elsewhere."""
        return "imported" in self.card.provenance

    @property
    def model_file(self) -> Path:
        """The file with the full model: `model.keras`, or for an imported run without a Keras network another."""
        others = (self.folder / name for name in (FLOAT32, ONNX))
        keras = self.folder / MODEL
        return keras if keras.is_file() or not self.imported else next((p for p in others if p.is_file()), keras)

    @property
    def full_file(self) -> Path:
        """The network that everything is compared with: the run's own, or what a compressed run was made from."""
        full = self.folder / FULL
        return full if full.is_file() else self.model_file

    @property
    def trained_for_int8(self) -> bool:
        """Whether quantisation-aware training was the last step."""
        return (self.folder / RANGES).is_file()

    def named(self, variant: str) -> str:
        """A variant as files of this run are called: the int8 file of a network that was trained for it says so."""
        return f"{variant}-qat" if variant == "int8" and self.trained_for_int8 else variant

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Ranges by layer that quantisation-aware training found; none of another run. Raises ModelError when damaged."""
        if not self.trained_for_int8:
            return {}
        try:
            found = json.loads((self.folder / RANGES).read_text(encoding="utf-8"))
            return {str(name): (float(low), float(high)) for name, (low, high) in found.items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(f"{self.folder / RANGES}: is damaged; compress again") from error

    def exported(self, variant: str, suffix: str = ".tflite") -> Path:
        """Where the file of that variant lies or would lie; `suffix` may be `.onnx`."""
        return self.folder / f"{self.name}-{variant}{suffix}"

    def exports(self) -> list[Path]:
        """Every deployable file in the folder, by kind and name."""
        return [path for suffix in (".tflite", ".onnx") for path in sorted(self.folder.glob(f"{self.name}-*{suffix}"))]

    def model(self) -> Any:
        """The trained float `tf_keras.Model`: float32 (pictures, height, width, channels) of (pixel - 128) / 128 → logits.

        Raises ModelError when the file is missing or damaged, or the run was imported without a Keras network.
        """
        path = self.model_file
        if self.card.sha256 and path.name == MODEL and path.is_file() and sha256_of(path) != self.card.sha256:
            raise ModelError(f"{path}: was altered after its training (SHA-256 differs from its card); copy the run again")
        return self._loaded(path)

    def full_model(self) -> Any:
        """As `model`, of `full_file`."""
        return self._loaded(self.full_file) if (self.folder / FULL).is_file() else self.model()

    def _loaded(self, path: Path) -> Any:
        if path.name not in (MODEL, FULL):
            raise ModelError(
                f"{path}: this run was imported as {path.suffix} and holds no Keras network, which is needed here; "
                f"import the .keras or .h5 file that it was made from"
            )
        return load_network(path, self.recipe, self.folder)


def load_network(path: Path, recipe: Recipe, folder: Path) -> Any:
    """The `tf_keras.Model` in a `.keras` file of the run in `folder`, whose own file may define layers. Raises ModelError."""
    from edgeclf.host.keras import keras
    from edgeclf.host.train import custom

    try:
        try:
            return keras().models.load_model(path, compile=False, safe_mode=True)
        except (ValueError, TypeError):
            if not custom.is_spec(recipe.model.architecture):
                raise
        with custom.known_layers(recipe.model.architecture, folder):
            return keras().models.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = "is missing" if not path.is_file() else f"cannot be loaded: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"{path}: {reason}; copy the run again, or train again") from error


def sha256_of(path: Path) -> str:
    """Of a file, hexadecimal. Raises ModelError when it cannot be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}; copy the run again, or train again") from error


def open_run(folder: Path | None = None) -> Run:
    """The run in `folder`, or the newest finished one under `runs/`. Raises ConfigError, saying what to do."""
    if folder is None:
        finished = sorted(RUNS.glob(f"*/{CARD}"), key=lambda p: p.stat().st_mtime)
        if not finished:
            raise ConfigError(f"no finished run under {RUNS}/; train one first: edgeclf train compact DATA")
        folder = finished[-1].parent
    card = folder / CARD
    if not card.is_file():
        verb = "compress" if (folder / FULL).is_file() else "train"
        hint = f"; it was interrupted: edgeclf {verb} --resume --out {folder}" if (folder / STARTED).is_file() else ""
        raise ConfigError(f"{folder}: not a finished run (no {CARD}){hint}")
    return Run(folder, read_recipe(folder / RECIPE), ModelCard.from_json(card.read_bytes(), str(card)))
