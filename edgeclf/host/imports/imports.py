"""Import: a model that was made elsewhere in, a run folder out, from which export, evaluate, report and run go on.

The run's network takes (pixel - 128) / 128, whatever the foreign one takes, so that int8 files see pixels as they are. Files
are looked at before anything opens them, and opened in a child process first: a hostile one can crash, hang or fill memory.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core import config, files
from edgeclf.core.bundle import Bundle, attach_onnx, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import MEAN, STD, Colour, Fit, ImageSpec
from edgeclf.core.progress import Report
from edgeclf.core.recipe import ImageSection, ModelSection, Recipe
from edgeclf.core.tflite import logits_view, read_model
from edgeclf.host.data.dataset import make_dataset, open_catalogue, place_of, split_of
from edgeclf.host.imports import import_child
from edgeclf.host.imports.house import RAW, UNKNOWN_NORMALISATION, Normalize, difference, trial_pixels
from edgeclf.host.imports.house_tflite import check_float32, house_tflite
from edgeclf.host.imports.keras_files import Kind, kind_of
from edgeclf.host.quiet import quiet
from edgeclf.host.run import CARD, FLOAT32, MODEL, ONNX, RECIPE, STARTED, Run, open_run
from edgeclf.runtime import foreign, probe
from edgeclf.runtime.accuracy import matching_classes
from edgeclf.runtime.engine import tflite_runtime
from edgeclf.runtime.onnx import OnnxEngine, onnxruntime

CHILD = Path(import_child.__file__)
SECONDS = 900  # for the child: the largest models take minutes on a busy machine
MEMORY_BYTES = 8 << 30  # besides 32 times the file; TensorFlow reserves much more than it uses
IMPORTED = "imported"


@dataclass(frozen=True)
class Imported:
    """A run that was made of a foreign model; `made_with` says what wrote it, `notes` what was done to it, a line each.

    `difference` is the largest between the answers of both on a few pictures of noise; None where they were not compared.
    """

    run: Run
    made_with: str
    notes: tuple[str, ...]
    difference: float | None


@dataclass(frozen=True)
class _Found:
    """The foreign model as the house has it: the bytes of one of MODEL, FLOAT32, ONNX, and what its card has to say."""

    file: str
    data: bytes
    labels: tuple[str, ...]
    image: ImageSpec
    outputs: str
    made_with: str
    notes: tuple[str, ...] = ()
    difference: float | None = None


def import_model(
    path: Path,
    labels: tuple[str, ...],
    *,
    normalize: Normalize | None = None,
    fit: Fit = "stretch",
    colour: Colour | None = None,
    side: int | None = None,
    trust: bool = False,
    out: Path | None = None,
) -> Imported:
    """Make a run folder (default `runs/NAME`, numbered when taken) of a `.keras`, `.h5`, `.tflite` or `.onnx` file, or a
    SavedModel folder.

    `labels` are in the order of its outputs; a `.tflite` may carry them itself. `normalize` is (mean, std), one number or
    one a channel: it takes (pixel - mean) / std. None is right where the model, its metadata or its card says it. `colour`
    is the order of its channels; None is RGB, or grey for one channel. `side` is in pixels, for a model that leaves its size
    open. `trust` allows Python code in a Keras file to run; pickles are never opened. Raises ModelError for a file that
    cannot be used, ConfigError when `out` holds a run already.
    """
    if out is not None and ((out / STARTED).exists() or (out / CARD).exists()):
        raise ConfigError(f"{out}: already holds a run; choose another --out")
    kind = kind_of(path)
    asked = _Asked(path, kind, labels, normalize, fit, colour, side, trust)
    if labels:
        foreign.check_labels(labels, str(path))
    found = asked.onnx() if kind == "onnx" else asked.tflite(read_bundle(path)) if kind == "tflite" else asked.keras()
    folder = out or _free_folder(path)
    return Imported(_write(folder, path, found, normalize), found.made_with, found.notes, found.difference)


@dataclass(frozen=True)
class _Asked:
    """One import, as it was asked for."""

    path: Path
    kind: Kind
    labels: tuple[str, ...]
    normalize: Normalize | None
    fit: Fit
    colour: Colour | None
    side: int | None
    trust: bool

    def keras(self) -> _Found:
        """Of a Keras file or SavedModel: a Keras network, or a float32 flatbuffer where tf-keras cannot have it."""
        if not self.labels:
            raise ModelError(f"{self.path}: does not say what its outputs mean; give one label a line: --labels FILE")
        with _in_child(self) as (folder, answer):
            notes, made_with = tuple(answer["notes"]), str(answer["made_with"])
            if (folder / import_child.KERAS).is_file():
                data = (folder / import_child.KERAS).read_bytes()
                return _Found(
                    MODEL, data, self.labels, self._spec(_input_of(folder)), "logits", made_with, notes, answer["difference"]
                )
            converted = Bundle((folder / import_child.TFLITE).read_bytes(), name=str(self.path))
        normalize = self.normalize or (RAW if answer["raw"] else None)
        found = replace(self, normalize=normalize).tflite(converted)
        return replace(found, made_with=made_with, notes=(*notes, *found.notes))

    def tflite(self, bundle: Bundle) -> _Found:
        """Of a float32 flatbuffer."""
        runtime, where = tflite_runtime(), str(self.path)
        foreign.check_ports(bundle.structure, bundle.card.image if bundle.card else None, where, single=True)
        check_float32(bundle.structure, where)
        labels, normalize, image = self._described(bundle)
        probe.check(bundle.model, where, runtime.module, runtime.name)
        model, notes = house_tflite(bundle.model, normalize, len(labels), where)
        found = _compare(bundle.model, model, normalize, where)
        return _Found(FLOAT32, model, labels, image, "probabilities", "TFLite", tuple(notes), found)

    def _described(self, bundle: Bundle) -> tuple[tuple[str, ...], Normalize, ImageSpec]:
        """Labels, normalisation and input of a flatbuffer: from its card, else from what was asked and its metadata."""
        shape = bundle.structure.input.shape[1:]
        if bundle.card is not None:
            foreign.refuse_overrides(str(self.path), self.labels, (0.0, 1.0) if self.normalize else None)
            image = bundle.card.image
            return bundle.card.labels, ((image.mean,), (image.std,)), replace(image, mean=MEAN, std=STD)
        labels = self.labels or bundle.labels
        if not labels:
            raise ModelError(f"{self.path}: does not say what its outputs mean; give one label a line: --labels FILE")
        normalize = self.normalize
        if normalize is None:
            try:
                mean, std = foreign.normalization(bundle.structure, str(self.path))
            except ModelError as error:
                raise ModelError(f"{self.path}: {UNKNOWN_NORMALISATION}") from error
            normalize = (mean,), (std,)
        return labels, normalize, self._spec(shape)

    def onnx(self) -> _Found:
        """Of an ONNX file, which stays one."""
        from edgeclf.host.imports.house_onnx import house_onnx

        bundle, where = read_bundle(self.path), str(self.path)
        runtime = onnxruntime()
        if bundle.card is not None:
            foreign.refuse_overrides(where, self.labels, (0.0, 1.0) if self.normalize else None)
        probe.check(bundle.model, where, "onnxruntime", f"onnxruntime {runtime.__version__} (CPU)")
        data, notes = house_onnx(bundle.model, self.normalize, len(self.labels), where)
        single = self.normalize is None or max(map(len, self.normalize)) == 1
        scalar = (self.normalize[0][0], self.normalize[1][0]) if self.normalize and single else None
        opened = Bundle(data, bundle.card, name=where)
        own = OnnxEngine(opened, None, True, self.labels, scalar if single else (MEAN, STD)).card
        image = own.image if bundle.card else replace(own.image, fit=self.fit, colour=self._colour(own.image.channels))
        return _Found(ONNX, data, own.labels, image, own.outputs, "ONNX", tuple(notes))

    def _spec(self, shape: tuple[int, ...]) -> ImageSpec:
        return ImageSpec(shape[1], shape[0], self.fit, self._colour(shape[2]))

    def _colour(self, channels: int) -> Colour:
        colour: Colour = self.colour or ("grey" if channels == 1 else "rgb")
        if (colour == "grey") != (channels == 1):
            raise ConfigError(f"--colour {colour}: the model takes {channels} channel{'s' if channels > 1 else ''}")
        return colour


def give_data(run: Run, data: str, progress: Report | None = None) -> Run:
    """The run with DATA to calibrate and measure on; an imported one keeps it in its card.

    A trained run has data of its own: it takes the very same at another place, and no other. Raises DataError when the
    classes are not the model's or the pictures cannot be split, ConfigError for other data.
    """
    catalogue = open_catalogue(data)
    provenance = {**run.card.provenance, "data": place_of(data), "fingerprint": catalogue.fingerprint}
    if not run.imported:
        if catalogue.fingerprint != run.card.provenance.get("fingerprint"):
            raise ConfigError(f"{data}: is not the data that {run.folder} was trained on; leave it out, and its own is taken")
        return replace(run, card=replace(run.card, provenance=provenance))
    matching_classes(catalogue.labels, run.card.labels, data)
    split = split_of(catalogue, run.recipe)
    make_dataset(catalogue, run.recipe, split, progress, run.card.image)  # that it can be split, before it is written down
    card = replace(run.card, provenance={**provenance, "split": split})
    files.write_text(run.folder / CARD, card.to_json())
    return open_run(run.folder)


def _free_folder(path: Path) -> Path:
    from edgeclf.host.train.train import free_folder

    return free_folder(_name(path))


def _name(path: Path) -> str:
    stem = path.resolve().stem
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in stem).strip(".") or "imported"


def _write(folder: Path, path: Path, found: _Found, normalize: Normalize | None) -> Run:
    """The run folder; the card last, which makes it a finished one."""
    name, image = _name(path), found.image
    recipe = Recipe(
        name,
        f"imported from {path.name}",
        ModelSection(IMPORTED),
        ImageSection(max(image.width, image.height), image.fit, image.colour),
    )
    provenance = {
        IMPORTED: {
            "file": path.name, "sha256": _digest(path), "made_with": found.made_with, "notes": list(found.notes),
            "normalize": [list(values) for values in normalize] if normalize else None,
        },
        "recipe": name,
        "seed": recipe.training.seed,
        "command": shlex.join(["edgeclf", *sys.argv[1:]]),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    outputs: Any = found.outputs
    card = ModelCard(name, found.labels, image, outputs=outputs, provenance=provenance)
    data = found.data
    if found.file == ONNX:
        data = attach_onnx(data, replace(card, provenance={k: v for k, v in provenance.items() if k != "command"}))
    with files.locked(folder):
        files.write_text(folder / RECIPE, config.to_toml(recipe))
        files.write_bytes(folder / found.file, data)
        files.write_text(folder / CARD, card.to_json())
    return open_run(folder)


def _digest(path: Path) -> str:
    inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in inside:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _compare(before: bytes, after: bytes, normalize: Normalize, where: str) -> float:
    """The largest difference between the answers of both on a few pictures. Raises ModelError when it is no rounding."""
    pixels = trial_pixels(read_model(after, where).input.shape[1:])
    mean, std = (np.asarray(values) for values in normalize)
    try:
        with quiet():  # LiteRT greets below Python
            first, second = _answers(before, (pixels - mean) / std), _answers(logits_view(after), (pixels - MEAN) / STD)
        return difference(first, second)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error


def _answers(model: bytes, pictures: Any) -> Any:
    interpreter = tflite_runtime().interpreter(model_content=model)
    interpreter.allocate_tensors()
    given, answer, rows = interpreter.get_input_details()[0], interpreter.get_output_details()[0], []
    for picture in pictures:
        interpreter.set_tensor(given["index"], picture[None].astype(np.float32))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(answer["index"]).reshape(-1))
    return np.stack(rows).astype(np.float64)


def _input_of(folder: Path) -> tuple[int, ...]:
    """(height, width, channels) of the network that the child left."""
    shape: tuple[int, ...] = tuple(json.loads((folder / import_child.ANSWER).read_text())["shape"])
    return shape


@contextlib.contextmanager
def _in_child(asked: _Asked) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What import_child.py made of the file, in a folder that goes again. Raises ModelError, naming the file."""
    folder = Path(tempfile.mkdtemp(prefix="edgeclf-import-"))
    size = sum(p.stat().st_size for p in asked.path.rglob("*")) if asked.path.is_dir() else asked.path.stat().st_size
    request = {
        "path": sys.path, "file": str(asked.path.resolve()), "kind": asked.kind, "normalize": asked.normalize,
        "classes": len(asked.labels), "side": asked.side, "trust": asked.trust, "out": str(folder),
        "memory": MEMORY_BYTES + 32 * size, "seconds": SECONDS, "debug": bool(os.environ.get("EDGECLF_DEBUG")),
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, str(CHILD), json.dumps(request)], capture_output=True, timeout=2 * SECONDS, check=False
        )
        if done.returncode < 0:
            reason = probe.signal_reason(-done.returncode, SECONDS)
            raise ModelError(f"{asked.path}: refused, because when another process opened it, it {reason}")
        yield folder, _answer(asked.path, folder, done)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{asked.path}: refused, because it takes more than {2 * SECONDS} s to open") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answer(path: Path, folder: Path, done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads((folder / import_child.ANSWER).read_bytes())
    except (OSError, ValueError) as error:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ModelError(f"{path}: cannot be opened: {last[0][:300]}") from error
    if "error" in answer:
        raise ModelError(f"{path}: {answer['error'].removeprefix(f'{path}: ')}")
    return answer
