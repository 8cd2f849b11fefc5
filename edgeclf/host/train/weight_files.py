"""A file of trained weights into a network of the house: .h5, .weights.h5 and .keras, read array by array.

No array is read before its shape was found to be the network's, and nothing in a file is run or followed out of it.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ModelError
from edgeclf.core.image import MEAN, STD
from edgeclf.host.architectures.backbones import CENTRE, TORCH_STD, Wanted

MAX_FILE_BYTES, MAX_CONFIG_BYTES = 1 << 30, 64 << 20
HEAD, NORMALISATION = "logits", "normalization"
INSIDE, CONFIG = "model.weights.h5", "config.json"  # of a .keras file
OTHER = "give the .h5, .weights.h5 or .keras file of this very network"

Arrays: TypeAlias = list[npt.NDArray[np.float32]]
Kinds: TypeAlias = Sequence[tuple[str, str]]  # name and class of layers


@dataclass(frozen=True)
class _Stored:
    """What a file holds: the datasets of each layer with weights, in order; `names` of all layers, empty where it has none."""

    layers: dict[str, list[Any]]
    names: frozenset[str]


def load(model: Any, path: Path, wanted: Wanted | None) -> None:
    """Give a network of the house the weights in `path`, the head left out, for input of (pixel - 128) / 128.

    A file of Keras' own was trained on `wanted`, to which it is fitted (`_fold`); the model.keras of a run is taken as it
    is. Layers are matched by name or, where the names differ, by their order. Raises ModelError when one does not fit,
    naming it and both shapes, and for a file that is damaged or of another kind.
    """
    targets = [layer for layer in model.layers if layer.weights and layer.name not in (HEAD, CENTRE)]
    try:
        with _opened(path, model) as stored:
            values = [_arrays(path, layer, found) for layer, found in _matched(path, targets, stored.layers)]
            normalised = _normalised(stored.layers.get(NORMALISATION))
    except (OSError, LookupError, ValueError, RuntimeError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: cannot be read as weights ({' '.join(str(error).split())[:120]}); copy it again") from error
    if HEAD not in stored.names:
        if wanted is None:
            raise ModelError(f"{path}: is no model.keras of a run, so how its pixels were normalised is unknown; give one")
        _fold(model, values, normalised or wanted)
    for layer, arrays in zip(targets, values, strict=True):
        layer.set_weights(arrays)


@contextlib.contextmanager
def _opened(path: Path, model: Any) -> Iterator[_Stored]:
    import h5py

    with path.open("rb") as start:
        first = start.read(8)
    if first[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            layers = json.loads(_member(archive, CONFIG, MAX_CONFIG_BYTES))["config"]["layers"]
            data = _member(archive, INSIDE, MAX_FILE_BYTES)
        kinds = [(str(layer["config"]["name"]), str(layer["class_name"])) for layer in layers]
        with h5py.File(io.BytesIO(data), "r") as file:
            yield _Stored(_by_class(file, kinds), frozenset(name for name, _ in kinds))
    elif first == b"\x89HDF\r\n\x1a\n":
        with h5py.File(path, "r") as file:
            root = _inside(file, "model_weights") if "model_weights" in file else file
            if "layer_names" in root.attrs or "layer_names0" in root.attrs:
                names = _names(root, "layer_names")
                yield _Stored(_by_name(root, names), frozenset(names))
            else:
                kinds = [(layer.name, type(layer).__name__) for layer in model.layers]
                yield _Stored(_by_class(file, [*kinds, (NORMALISATION, "Normalization")]), frozenset())
    else:
        raise ModelError(f"{path}: neither an HDF5 nor a .keras file; {OTHER}")


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A file of an archive, no more than `most` bytes of it whatever its header says."""
    with archive.open(name) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{name} inside has more than {most >> 20} MB")
    return data


def _by_name(root: Any, names: Sequence[str]) -> dict[str, list[Any]]:
    """Keras 2's HDF5: a group a layer, whose attributes name its arrays."""
    groups = {name: _inside(root, name) for name in names}
    found = {name: [_inside(group, weight) for weight in _names(group, "weight_names")] for name, group in groups.items()}
    return {name: arrays for name, arrays in found.items() if arrays}


def _by_class(file: Any, kinds: Kinds) -> dict[str, list[Any]]:
    """Later formats: groups are called by the layer's class and a running number, or by its name; arrays by number."""
    top = next((name for name in ("layers", "_layer_checkpoint_dependencies") if name in file), None)
    if top is None:
        raise ValueError("it holds no layers")
    root, counts, found = _inside(file, top), dict[str, int](), {}
    for name, kind in kinds:
        snake = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)).lower()
        number = counts[snake] = counts.get(snake, -1) + 1
        key = f"{snake}_{number}" if number else snake
        key = key if key in root else name
        if key in root and "vars" in (group := _inside(root, key)):
            variables = _inside(group, "vars")
            if len(variables):
                found[name] = [_inside(variables, str(i)) for i in range(len(variables))]
    return found


def _names(group: Any, attribute: str) -> list[str]:
    """A list of names in the attributes of a group, which Keras divides when it is long."""
    parts = [attribute] if attribute in group.attrs else sorted(
        (key for key in group.attrs if re.fullmatch(rf"{attribute}\d+", key)), key=lambda key: int(key[len(attribute) :])
    )  # fmt: skip
    return [name.decode() if isinstance(name, bytes) else str(name) for part in parts for name in group.attrs[part]]


def _inside(group: Any, name: str) -> Any:
    """What `name`, a path, leads to inside the file. Raises ValueError for links and for data that lie elsewhere."""
    import h5py

    for part in filter(None, name.split("/")):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{name!r} is missing, or a link")
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.is_virtual or group.external or group.dtype.kind not in "fiu"):
        raise ValueError(f"{name!r} is no plain array of numbers")
    return group


def _matched(path: Path, targets: list[Any], stored: dict[str, list[Any]]) -> list[tuple[Any, list[Any]]]:
    """Each layer of the network with its arrays in the file, not read yet."""
    if all(layer.name in stored for layer in targets):
        return [(layer, stored[layer.name]) for layer in targets]
    in_order = [found for name, found in stored.items() if name != NORMALISATION]
    if len(in_order) < len(targets):
        missing = next(layer.name for layer in targets if layer.name not in stored)
        raise ModelError(
            f"{path}: has {len(in_order)} layers with weights where this network has {len(targets)}, "
            f"for instance {missing!r}; {OTHER}"
        )
    return list(zip(targets, in_order, strict=False))


def _arrays(path: Path, layer: Any, found: list[Any]) -> Arrays:
    """The arrays of one layer, float32. Raises ModelError unless number and shapes are the layer's."""
    wanted, given = [tuple(v.shape) for v in layer.weights], [tuple(d.shape) for d in found]
    if wanted != given:
        ours, theirs = next(((w, g) for w, g in zip(wanted, given, strict=False) if w != g), (wanted, given))
        raise ModelError(f"{path}: layer {layer.name!r} has weights of {theirs}, this network needs {ours}; {OTHER}")
    values = [np.asarray(dataset[()], np.float32) for dataset in found]
    if not all(np.isfinite(v).all() for v in values):
        raise ModelError(f"{path}: layer {layer.name!r} holds values that are no numbers; copy it again")
    return values


def _normalised(arrays: list[Any] | None) -> Wanted | None:
    """What a network wants whose file has a Normalization layer, behind 1/255: EfficientNet.

    Keras' ImageNet files keep the deviation where the variance belongs, and their network divides by it once more.
    """
    if not arrays or any(dataset.shape != (3,) for dataset in arrays[:2]):
        return None
    mean, variance = (np.asarray(dataset[()], np.float64) for dataset in arrays[:2])
    deviation = variance if np.allclose(variance, TORCH_STD, rtol=1e-3) else np.sqrt(np.maximum(variance, 1e-14))
    return Wanted(tuple(1 / 255 / deviation), tuple(-mean / deviation))


def _fold(model: Any, values: list[Arrays], wanted: Wanted) -> None:
    """Change the first convolution, and the mean of the batch normalisation behind it, in place: x = scale * house + offset.

    Exact but for zero padding, which `centre` sees to where it matters.
    """
    centre = next((layer for layer in model.layers if layer.name == CENTRE), None)
    zero = -centre.bias.numpy().astype(np.float64) if centre else np.zeros(3)
    scale, offset = np.asarray(wanted.scale) * STD, np.asarray(wanted.scale) * (STD * zero + MEAN) + np.asarray(wanted.offset)
    kernel = values[0][0].astype(np.float64)
    kernel = kernel[:, :, ::-1] if wanted.bgr else kernel
    values[0][0] = (kernel * scale[:, None]).astype(np.float32)
    values[1][2] = (values[1][2] - np.einsum("ijck,c->k", kernel, offset)).astype(np.float32)
