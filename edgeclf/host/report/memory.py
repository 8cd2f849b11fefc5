"""Peak memory of each model of a report, in a fresh process that has nothing else: for exported files that of a device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeclf.core.errors import ModelError
from edgeclf.core.image import Pixels, prepare
from edgeclf.core.results import Memory
from edgeclf.host.full_model import FullModel, open_reference
from edgeclf.host.keras import keras
from edgeclf.host.run import Run, open_run
from edgeclf.runtime.engine import tflite_runtime
from edgeclf.runtime.latency import ColdStart, cold_start, fresh_process, print_cold_start
from edgeclf.runtime.onnx import is_onnx, onnxruntime


def of_file(path: Path, threads: int) -> Memory | None:
    """Of an exported file and its runtime, without TensorFlow; None where it cannot be measured."""
    return _memory(lambda: cold_start(path, threads))


def of_full(run: Run, full: FullModel) -> Memory | None:
    """Of what the files of `run` are compared with and its runtime, most often TensorFlow; it takes as long as importing that."""
    return _memory(lambda: fresh_process(__name__, json.dumps([str(run.folder), full.keras is not None]), full.path))


def cold_child(request: str) -> None:
    """What runs in the fresh process of a full model: prints a ColdStart as JSON."""
    folder, with_keras = json.loads(request)
    run = open_run(Path(folder))

    def load() -> Callable[[Pixels], Any]:
        full = open_reference(run)
        return lambda frame: full.infer(prepare(frame, run.card.image)[None])

    print_cold_start(keras if with_keras else onnxruntime if is_onnx(run.model_file.name) else tflite_runtime, load)


def _memory(measured: Callable[[], ColdStart]) -> Memory | None:
    """None when the process fails or the system does not say: a report is worth more than this figure."""
    try:
        found = measured()
    except ModelError:
        return None
    return Memory(found.peak_bytes, found.peak_bytes - found.imports_bytes) if found.peak_bytes else None
