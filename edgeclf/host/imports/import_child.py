"""The child of imports.py, run as a file: it opens a stranger's Keras file and leaves a network of the house's kind, or why not.

One argument of JSON. Into the folder `out` go `model.keras` (the house's network) or `model.tflite` (float32, as the stranger
made it), and `answer.json`: {"made_with", "notes", "raw", "difference", "shape"} or {"error"}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KERAS, TFLITE, ANSWER = "model.keras", "model.tflite", "answer.json"


def main() -> int:
    """Open, convert, compare; exit code 1 with a reason in `answer.json` when that cannot be done."""
    request = json.loads(sys.argv[1])
    sys.path[:0] = [place for place in request["path"] if place]
    from edgeclf.core.errors import EdgeclfError
    from edgeclf.core.files import write_json
    from edgeclf.host.keras import tensorflow
    from edgeclf.runtime.probe_child import limit

    out = Path(request["out"])
    tensorflow()
    limit(request["memory"], request["seconds"])
    try:
        write_json(out / ANSWER, _import(request, out))
    except MemoryError:
        write_json(out / ANSWER, {"error": "it needs too much memory"})
        return 1
    except EdgeclfError as error:
        write_json(out / ANSWER, {"error": str(error)})
        return 1
    except Exception as error:  # Keras and the converter name their failures in many ways
        if request["debug"]:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        write_json(out / ANSWER, {"error": f"cannot be read as a Keras model: {reason[:300]}"})
        return 1
    return 0


def _import(request: dict[str, Any], out: Path) -> dict[str, Any]:
    from edgeclf.core.errors import ModelError
    from edgeclf.host.imports.keras_files import read_keras

    path, kind, trust = Path(request["file"]), request["kind"], request["trust"]
    found = read_keras(path, kind)
    if found.code and not trust:
        raise ModelError(f"holds Python code ({found.code}), which runs when it is opened; if you know who made it: --trust")
    made_with = f"Keras {found.version}" if found.version not in ("", "2") else "Keras 2" if found.version else "TensorFlow"
    if kind == "savedmodel" and (found.code or not found.version):
        return _converted(out, made_with, lambda lite: lite.from_saved_model(str(path)))
    if found.major == 3:
        return _from_keras3(request, path, out, made_with, found.code)
    model = _load(path, trust and bool(found.code), kind)
    if found.code:
        return _converted(out, made_with, lambda lite: lite.from_keras_model(model), "Python code")
    return _housed(request, model, model, out, made_with)


def _load(path: Path, trust: bool, kind: str) -> Any:
    from edgeclf.core.errors import ModelError
    from edgeclf.host.keras import keras

    try:
        return keras().models.load_model(path, compile=False, **({"safe_mode": not trust} if kind == "keras" else {}))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"tf-keras {keras().__version__} cannot read it: {reason}; a class of your own is not in the file: "
            "where it was made, convert it (TFLiteConverter.from_keras_model) and import the .tflite"
        ) from error


def _from_keras3(request: dict[str, Any], path: Path, out: Path, made_with: str, code: str) -> dict[str, Any]:
    from edgeclf.host.imports import keras3
    from edgeclf.host.keras import tensorflow

    model = keras3.load(path, bool(code))
    try:
        if code:
            raise keras3.Untranslatable("Python code")
        return _housed(request, model, keras3.translate(model), out, made_with)
    except keras3.Untranslatable as error:
        model.export(str(out / "exported"), verbose=False)
        (out / TFLITE).write_bytes(_flatbuffer(tensorflow().lite.TFLiteConverter.from_saved_model(str(out / "exported"))))
        raw = any(type(layer).__name__ in ("Rescaling", "Normalization") for layer in model.layers[:4])
        return {"made_with": made_with, "notes": [_without_keras(str(error))], "raw": raw, "difference": None}


def _converted(out: Path, made_with: str, source: Any, reason: str = "") -> dict[str, Any]:
    """A float32 flatbuffer instead of a Keras network: of a graph that no longer has layers, or whose code must stay behind."""
    from edgeclf.host.keras import tensorflow

    (out / TFLITE).write_bytes(_flatbuffer(source(tensorflow().lite.TFLiteConverter)))
    return {"made_with": made_with, "notes": [_without_keras(reason or "layers")], "raw": False, "difference": None}


def _flatbuffer(converter: Any) -> bytes:
    from edgeclf.core.errors import ModelError
    from edgeclf.host.keras import tensorflow

    converter.target_spec.supported_ops = [tensorflow().lite.OpsSet.TFLITE_BUILTINS]
    try:
        return bytes(converter.convert())
    except Exception as error:  # it raises private classes too
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"TensorFlow's converter refuses it: {lines[0][:160]}; leave out what only training needs, such as layers that "
            "change pictures at random"
        ) from error


def _without_keras(reason: str) -> str:
    what = "it holds operators and no layers" if reason == "layers" else f"it holds {reason}, which tf-keras cannot take over"
    return f"{what}, so the run keeps a float32 .tflite: export, evaluate, report and run work, what trains further does not"


def _housed(request: dict[str, Any], original: Any, translated: Any, out: Path, made_with: str) -> dict[str, Any]:
    from edgeclf.host.imports.house import house

    mean, std = request["normalize"] or ((), ())
    normalize = (tuple(mean), tuple(std)) if mean else None
    made, notes = house(translated, normalize, request["classes"], request["side"])
    difference = _compare(original, made, normalize)
    made.save(out / KERAS, save_format="keras")
    return {
        "made_with": made_with, "notes": notes, "raw": False, "difference": difference, "shape": list(made.input_shape[1:])
    }  # fmt: skip


def _compare(original: Any, made: Any, normalize: Any) -> float:
    """The largest difference between the answers of both on a few pictures. Raises ModelError when it is no rounding."""
    import numpy as np

    from edgeclf.core.image import MEAN, STD
    from edgeclf.host.imports.house import RAW, difference, trial_pixels

    pixels = trial_pixels(made.input_shape[1:])
    mean, std = (np.asarray(values) for values in (normalize or RAW))
    before = np.asarray(original(((pixels - mean) / std).astype(np.float32), training=False), np.float64)
    logits = np.asarray(made(((pixels - MEAN) / STD).astype(np.float32), training=False), np.float64)
    return difference(before.reshape(len(pixels), -1), logits)


if __name__ == "__main__":
    sys.exit(main())
