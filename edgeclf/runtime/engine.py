"""Engine, the seam: a batch of prepared pictures in, logits in label order out; one engine for each kind of runtime."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core.bundle import Bundle
from edgeclf.core.errors import ConfigError, MissingExtra, ModelError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.core.tflite import Tensor, TfliteModel, logits_view

Scores: TypeAlias = npt.NDArray[np.float32]
Normalize: TypeAlias = tuple[float, float]  # (mean, std): a float network sees (pixel - mean) / std

# Package → module with the interpreter, in the order of preference.
TFLITE_RUNTIMES = {"ai-edge-litert": "ai_edge_litert.interpreter", "tflite-runtime": "tflite_runtime.interpreter"}

# Multiply-adds from which a second thread is worth waking; resnet8 has 12.5 million, MobileNet V1 alpha 0.25 at 224 41 million.
SMALL_NET = 20_000_000
MOST_THREADS = 4  # of the boards that are meant; more only helps nets that do not run live there

_first_open = threading.Lock()
_greeted = threading.Event()


class Engine(Protocol):
    """A loaded model. `runtime` names runtime, version and kernels. Not safe to share between threads: open one in each."""

    threads: int

    @property
    def runtime(self) -> str: ...

    def infer(self, batch: Pixels) -> Scores:
        """Logits, float32 (pictures, classes) in label order, dequantised, not softmaxed.

        `batch` is uint8 (pictures, height, width, channels), as `core.image.prepare` makes them. Pictures are computed one
        by one, so an answer does not depend on its neighbours.
        """
        ...

    def raw(self, batch: Pixels) -> npt.NDArray[Any]:
        """As `infer`, in the type in which the model holds its logits: what a golden self-test compares."""
        ...

    def logits(self, stored: npt.NDArray[Any]) -> Scores:
        """What `infer` gives, from what `raw` gave; of many pictures it costs little more than of one."""
        ...


@dataclass(frozen=True)
class TfliteRuntime:
    """The installed interpreter: its class, and the package and version that it comes from."""

    interpreter: Any
    module: str
    name: str


def open_engine(bundle: Bundle, threads: int | None = None, probed: bool = False) -> Engine:
    """Load a model with the runtime that fits its kind and is installed.

    `threads` None chooses: one for a small net, otherwise one a core up to four. Unless `probed`, a file that was never
    opened on this machine is opened in a child process first. Raises ModelError for a file that cannot be run, MissingExtra
    when no runtime is installed, ConfigError for a bad number of threads.
    """
    from edgeclf.runtime import foreign, onnx, probe

    if threads is not None and threads < 1:
        raise ConfigError(f"threads = {threads}: must be at least 1")
    if onnx.is_onnx(bundle.name):
        return onnx.OnnxEngine(bundle, threads, probed)
    image = foreign.card_of(bundle).image
    data, runtime = logits_view(bundle.model), tflite_runtime()
    if not probed:
        probe.check(data, bundle.name, runtime.module, runtime.name)
    return TfliteEngine(data, bundle.structure, image, runtime, threads or default_threads(bundle.structure), bundle.name)


def tflite_runtime() -> TfliteRuntime:
    """The first of TFLITE_RUNTIMES that can be imported. Raises MissingExtra, with the reason of the last failure."""
    reason = "no TFLite runtime is installed"
    for package, module in TFLITE_RUNTIMES.items():
        if importlib.util.find_spec(module.split(".")[0]) is None:
            continue
        try:
            return TfliteRuntime(importlib.import_module(module).Interpreter, module, f"{package} {_version(package)}")
        except (ImportError, AttributeError) as error:  # tflite-runtime beside NumPy 2 fails with either
            reason = f"{package} is installed but cannot be imported ({str(error).splitlines()[0]})"
    raise MissingExtra(f"{reason}; install one with: pip install ai-edge-litert (on a 32-bit board: 'edgeclf[tflite-runtime]')")


def default_threads(model: TfliteModel) -> int:
    """1 for a net of fewer than SMALL_NET multiply-adds, which more threads slow down, else one a core up to MOST_THREADS."""
    return 1 if multiply_adds(model) < SMALL_NET else min(cores(), MOST_THREADS)


def cores() -> int:
    """How many CPU cores this process may use; fewer where PYTHON_CPU_COUNT says so, as Python itself reads it from 3.13 on."""
    wanted = os.environ.get("PYTHON_CPU_COUNT", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def multiply_adds(model: TfliteModel) -> int:
    """Multiply-adds of one picture in convolutions and dense layers; other operators are not counted."""
    return sum(_multiply_adds(model, op.name, op.inputs, op.outputs) for op in model.operators)


def _multiply_adds(model: TfliteModel, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> int:
    if name not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") or len(inputs) < 2 or inputs[1] < 0 or not outputs:
        return 0
    weights, answer = model.tensors[inputs[1]].shape, model.tensors[outputs[0]].shape
    pixels = math.prod(size for size in answer[1:-1] if size > 0)
    return pixels * math.prod(size for size in weights if size > 0)


class TfliteEngine:
    """A model in LiteRT or tflite-runtime, XNNPACK on where the runtime has it."""

    def __init__(
        self, data: bytes, model: TfliteModel, image: ImageSpec, runtime: TfliteRuntime, threads: int, name: str
    ) -> None:
        self.threads = threads
        self._runtime = runtime.name
        with without_greeting():
            self._interpreter = _interpreter(runtime, data, name, threads)
        given, answer = self._interpreter.get_input_details()[0], self._interpreter.get_output_details()[0]
        self._input, self._output = given["index"], answer["index"]
        self._table = input_table(model.input, image)
        self._plain = _is_identity(self._table)
        self._scale, self._zero_point = np.float32(answer["quantization"][0]), np.float32(answer["quantization"][1])
        self._values = (
            self._dequantised(np.arange(256).astype(np.uint8).view(answer["dtype"]))
            if np.dtype(answer["dtype"]).itemsize == 1
            else None
        )

    @cached_property
    def runtime(self) -> str:
        return f"{self._runtime} ({self.kernels})"

    @property
    def kernels(self) -> str:
        """`xnnpack` when that delegate took part of the graph, else `builtin`; `unknown` when the runtime does not say."""
        try:
            names = {op["op_name"] for op in self._interpreter._get_ops_details()}
        except (AttributeError, ValueError):
            return "unknown"
        return "xnnpack" if "DELEGATE" in names else "builtin"

    def infer(self, batch: Pixels) -> Scores:
        return self.logits(self.raw(batch))

    def logits(self, stored: npt.NDArray[Any]) -> Scores:
        if stored.dtype == np.float32:
            return stored
        if self._values is not None:
            return self._values[stored.view(np.uint8)]
        return self._dequantised(stored)

    def _dequantised(self, stored: npt.NDArray[Any]) -> Scores:
        scores: Scores = (stored.astype(np.float32) - self._zero_point) * self._scale
        return scores

    def raw(self, batch: Pixels) -> npt.NDArray[Any]:
        if len(batch) == 1:
            return self._invoke(batch)
        stored: npt.NDArray[Any] = np.concatenate([self._invoke(batch[i : i + 1]) for i in range(len(batch))])
        return stored

    def _invoke(self, picture: Pixels) -> npt.NDArray[Any]:
        interpreter = self._interpreter
        try:
            interpreter.set_tensor(self._input, picture if self._plain else self._table[picture])
        except ValueError as error:
            raise ModelError(f"the model does not take pictures of shape {picture.shape[1:]}: {error}") from error
        try:
            interpreter.invoke()
        except RuntimeError as error:  # what it says is about its own operators
            raise ModelError(f"the model fails while it computes: {' '.join(str(error).split())[:200]}") from error
        answer: npt.NDArray[Any] = interpreter.get_tensor(self._output).reshape(1, -1)
        return answer


def input_table(tensor: Tensor, image: ImageSpec) -> npt.NDArray[Any]:
    """What the input tensor holds for each of the 256 pixel values: (256,) in the tensor's type.

    Quantised: round((pixel - mean) / std / scale) + zero point; a quantised tensor without scale takes the pixel itself,
    or pixel - 128 when it is int8. Float: (pixel - mean) / std.
    """
    pixels = np.arange(256)
    real = ((pixels.astype(np.float32) - np.float32(image.mean)) / np.float32(image.std)).astype(np.float32)
    if tensor.type == "float32":
        return real
    kind = np.dtype(tensor.type)
    if not tensor.scales or not tensor.scales[0] > 0:
        return (pixels - (128 if tensor.type == "int8" else 0)).astype(kind)
    stored = np.rint(real.astype(np.float64) / tensor.scales[0]) + tensor.zero_points[0]
    table: npt.NDArray[Any] = np.clip(stored, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)
    return table


def _is_identity(table: npt.NDArray[Any]) -> bool:
    return table.dtype == np.uint8 and bool((table == np.arange(256)).all())


def _interpreter(runtime: TfliteRuntime, data: bytes, name: str, threads: int) -> Any:
    try:
        interpreter = runtime.interpreter(model_content=data, num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ModelError(f"{name}: {runtime.name} cannot load it: {' '.join(str(error).split())[:200]}") from error
    return interpreter


@contextlib.contextmanager
def without_greeting() -> Iterator[None]:
    """Hold back the line "INFO: Created TensorFlow Lite XNNPACK delegate", which LiteRT writes once below Python.

    No setting silences it. Whatever else is written to standard error meanwhile is passed on.
    """
    if _greeted.is_set() or os.environ.get("EDGECLF_DEBUG"):
        yield
        return
    with _first_open, contextlib.ExitStack() as undo:
        with contextlib.suppress(OSError, ValueError):  # without a standard error or a temporary folder it is not worth a failure
            _redirect_standard_error(undo)
        yield
        _greeted.set()


def _redirect_standard_error(undo: contextlib.ExitStack) -> None:
    kept = os.dup(2)
    undo.callback(os.close, kept)
    held = undo.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (`undo` closes it)
    os.dup2(held.fileno(), 2)

    def restore() -> None:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(kept, 2)
        held.seek(0)
        rest = b"".join(line for line in held if not line.startswith(b"INFO: Created TensorFlow Lite XNNPACK"))
        if rest:
            os.write(2, rest)

    undo.callback(restore)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
