"""What a Keras file or SavedModel holds, read without running any of it: its version, and whether it carries Python code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeclf.core.bundle import MAX_MODEL_BYTES
from edgeclf.core.errors import ModelError

Kind = Literal["keras", "h5", "savedmodel", "tflite", "onnx"]
SUFFIXES: dict[str, Kind] = {".keras": "keras", ".h5": "h5", ".hdf5": "h5", ".tflite": "tflite", ".onnx": "onnx"}
SAVED_MODEL, KERAS_METADATA = "saved_model.pb", "keras_metadata.pb"
CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
PICKLES = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".ckpt", ".npy", ".dill"})
MAX_ENTRIES, MAX_CONFIG_BYTES, MAX_RATIO = 10_000, 64 << 20, 200
# Modules whose classes and functions a file may name: Keras' own, which are looked up, and no others, which would be imported.
OWN_MODULES = ("keras", "tf_keras", "tensorflow.keras", "builtins")
FUNCTION_HOMES = {"builtins", "activations", "initializers", "regularizers", "constraints", "losses", "metrics", "optimizers"}
# What TFOpLambda may call: TensorFlow's arithmetic on tensors; nothing that reads, writes, prints or calls back into Python.
SAFE_CALLS = ("math.", "nn.", "linalg.", "image.", "__operators__.", "keras.backend.", "compat.v1.nn.", "compat.v1.math.")
SAFE_NAMES = frozenset({
    "abs", "add", "broadcast_to", "cast", "clip_by_value", "compat.v1.pad", "compat.v1.shape", "compat.v1.squeeze",
    "compat.v1.transpose", "concat", "convert_to_tensor", "divide", "exp", "expand_dims", "gather", "identity", "matmul",
    "maximum", "minimum", "multiply", "negative", "ones_like", "pad", "pow", "reduce_max", "reduce_mean", "reduce_min",
    "reduce_sum", "reshape", "reverse", "round", "shape", "sigmoid", "split", "sqrt", "square", "squeeze", "stack",
    "strided_slice", "subtract", "tanh", "tile", "transpose", "truediv", "unstack", "where", "zeros_like",
})  # fmt: skip
# Operators of a graph that reach outside of it; saving and restoring checkpoints is in every SavedModel.
REACHING_OUT = frozenset(
    {"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "PrintV2", "Print"}
)


@dataclass(frozen=True)
class KerasFile:
    """`version` of the Keras that wrote it, "" where unknown; `code` says what Python code it holds, "" for none."""

    version: str
    code: str

    @property
    def major(self) -> int:
        return 3 if self.version.startswith("3.") else 2


def kind_of(path: Path) -> Kind:
    """What kind of model that is, by name and first bytes, and of a bounded size. Raises ModelError, saying what can be."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give a .keras, .h5, .tflite or .onnx file, or a SavedModel folder")
    size = path.stat().st_size
    if not 0 < size <= MAX_MODEL_BYTES:
        raise ModelError(f"{path}: {size:,} bytes; a model has more than none and at most {MAX_MODEL_BYTES >> 20} MB")
    with path.open("rb") as file:
        first = file.read(8)
    if path.suffix.lower() in PICKLES or first[:1] == b"\x80":
        raise ModelError(
            f"{path}: a pickle or checkpoint, which may run any Python code when it is opened, so it never is; "
            "where it was made, save the model as .onnx, .keras or .tflite"
        )
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ModelError(f"{path}: cannot be imported; give a .keras, .h5, .tflite or .onnx file, or a SavedModel folder")
    if kind == "keras":
        _check_zip(path)
    if kind == "h5" and first != b"\x89HDF\r\n\x1a\n":
        raise ModelError(f"{path}: not an HDF5 file, whatever its name; copy it again")
    return kind


def _folder(path: Path) -> Kind:
    if not (path / SAVED_MODEL).is_file():
        hint = "is a run folder already" if (path / "card.json").is_file() else f"holds no {SAVED_MODEL}, so it is no SavedModel"
        raise ModelError(f"{path}: {hint}; give a .keras, .h5, .tflite or .onnx file, or a SavedModel folder")
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    if size > MAX_MODEL_BYTES:
        raise ModelError(f"{path}: {size >> 20} MB is more than the limit of {MAX_MODEL_BYTES >> 20} MB for a model")
    return "savedmodel"


def _check_zip(path: Path) -> None:
    """A .keras file is a zip of three files or a few more: sizes and names are looked at before anything is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: not a whole .keras file ({error}); copy it again") from error
    names = [info.filename for info in infos]
    if len(names) > MAX_ENTRIES or len(set(names)) != len(names):
        raise ModelError(f"{path}: {len(names)} files inside, some perhaps of one name; a .keras file has a few")
    if any(name.startswith(("/", "\\")) or ".." in name.split("/") for name in names):
        raise ModelError(f"{path}: a file inside has a name that leads out of it; refused")
    if CONFIG not in names:
        raise ModelError(f"{path}: holds no {CONFIG}, so it is no Keras model")
    unpacked = sum(info.file_size for info in infos)
    if (
        unpacked > min(4 * MAX_MODEL_BYTES, MAX_RATIO * path.stat().st_size)
        or archive.getinfo(CONFIG).file_size > MAX_CONFIG_BYTES
    ):
        raise ModelError(f"{path}: unpacks to {unpacked >> 20} MB, far more than it should; refused")


def read_keras(path: Path, kind: Kind) -> KerasFile:
    """What a Keras file or SavedModel is. Raises ModelError for one that cannot be read or holds weights alone.

    HDF5 and protocol buffers are read by libraries in C, so call this in a child process.
    """
    if kind == "keras":
        with zipfile.ZipFile(path) as archive:
            config = _json(archive.read(CONFIG), CONFIG)
            version = _json(archive.read(METADATA), METADATA).get("keras_version", "") if METADATA in archive.namelist() else ""
        return KerasFile(str(version), python_code(config))
    return _read_h5(path) if kind == "h5" else _read_saved_model(path)


def _read_h5(path: Path) -> KerasFile:
    import h5py

    with h5py.File(path, "r") as file:
        config, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
    if config is None:
        raise ModelError("holds weights alone and no network; save the whole model with model.save('name.keras')")
    text = version.decode() if isinstance(version, bytes) else str(version)
    return KerasFile(text, python_code(_json(config, "model_config")))


def _read_saved_model(path: Path) -> KerasFile:
    from edgeclf.host.keras import saved_model_messages

    saved, metadata = saved_model_messages()
    saved.ParseFromString((path / SAVED_MODEL).read_bytes())
    graphs = [graph.graph_def for graph in saved.meta_graphs]
    found = {node.op for graph in graphs for node in graph.node}
    found |= {node.op for graph in graphs for function in graph.library.function for node in function.node_def}
    code = ", ".join(f"the operator {name}, which reaches outside the network" for name in sorted(found & REACHING_OUT))
    if not (path / KERAS_METADATA).is_file():
        return KerasFile("", code)
    metadata.ParseFromString((path / KERAS_METADATA).read_bytes())
    configs = [_json(node.metadata, KERAS_METADATA) for node in metadata.nodes if node.metadata]
    return KerasFile("2", code or next((c for c in map(python_code, configs) if c), ""))


def _json(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"its {what} is no JSON; copy it again") from error


def python_code(config: Any) -> str:
    """The first thing in a Keras configuration that runs Python code when the model is loaded or called; "" for none."""
    return next(_code_in(config), "")


def _code_in(root: Any) -> Iterator[str]:
    open_parts = [root]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, dict):
            yield from _code_of(part)
            open_parts += part.values()
        elif isinstance(part, list):
            open_parts += part


def _code_of(part: dict[str, Any]) -> Iterator[str]:
    kind, module, config = part.get("class_name"), part.get("module"), part.get("config")
    name = config.get("name", "") if isinstance(config, dict) else ""
    if kind in ("Lambda", "__lambda__"):
        yield f"the Lambda layer {name!r}" if name else "a lambda"
    elif kind == "TFOpLambda" and isinstance(config, dict):
        function = str(config.get("function", ""))
        if not (function.startswith(SAFE_CALLS) or function in SAFE_NAMES):
            yield f"a call of tf.{function}"
    if (
        isinstance(module, str)
        and isinstance(kind, str)
        and not any(module == m or module.startswith(f"{m}.") for m in OWN_MODULES)
    ):
        yield f"{kind} of the module {module!r}"
    if kind == "function" and isinstance(module, str) and not set(module.split(".")) & FUNCTION_HOMES:
        yield f"the function {config!r} of the module {module!r}"
    if module == "builtins" and kind not in ("function", "slice", "NoneType", None):
        yield f"{kind} of Python itself"
