"""ONNX Runtime behind the same seam: a `.onnx` classifier, with a model card in its metadata or without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.bundle import Bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import MissingExtra, ModelError
from edgeclf.core.image import Colour, ImageSpec, Pixels
from edgeclf.core.onnx import is_onnx as is_onnx
from edgeclf.core.onnx import logits_view
from edgeclf.runtime.engine import Normalize, Scores
from edgeclf.runtime.probe_child import plain

INPUT_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
SMALLEST = np.float32(1e-12)  # a probability of 0 has no logarithm


class OnnxEngine:
    """A model in ONNX Runtime on the CPU; `card` is the file's own, or made from its input, `labels` and `normalize`.

    A file that ends in Softmax is run up to what feeds it, which are the logits.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None, probed: bool, labels: tuple[str, ...] = (), normalize: Normalize | None = None
    ) -> None:
        runtime = onnxruntime()
        self.runtime = f"onnxruntime {runtime.__version__} (CPU)"
        self.threads = threads or 1
        view = logits_view(bundle.model, bundle.name)
        if not probed:
            from edgeclf.runtime import probe

            probe.check(view, bundle.name, "onnxruntime", self.runtime)
        self._session = _session(runtime, view, bundle.name, self.threads)
        self._given = self._session.get_inputs()[0]
        self._channels_first, size = _layout(self._session, bundle.name)
        softmax = view is not bundle.model
        self.card = bundle.card or _made_up(self._session, bundle.name, size, labels, normalize, softmax)
        _check_size(self.card, size, bundle.name)
        self._probabilities = self.card.outputs == "probabilities" and not softmax
        self._mean, self._std = np.float32(self.card.image.mean), np.float32(self.card.image.std)

    def infer(self, batch: Pixels) -> Scores:
        return np.stack([self._answer(batch[i : i + 1]) for i in range(len(batch))])

    def raw(self, batch: Pixels) -> Scores:
        return self.infer(batch)

    def logits(self, stored: Scores) -> Scores:
        """What is given: ONNX files answer in floats."""
        return stored

    def _answer(self, picture: Pixels) -> Scores:
        given: Any = picture
        if self._given.type == "tensor(float)":
            given = (picture.astype(np.float32) - self._mean) / self._std
        if self._channels_first:
            given = np.ascontiguousarray(given.transpose(0, 3, 1, 2))
        scores = self._run(given).reshape(-1).astype(np.float32, copy=False)
        # softmax(log(p)) = p, so probabilities of another origin are undone exactly enough for the answer to stay the same
        return np.log(np.maximum(scores, SMALLEST)) if self._probabilities else scores

    def _run(self, given: Any) -> Scores:
        try:
            answer: Scores = self._session.run(None, {self._given.name: given})[0]
        except Exception as error:  # every failure has a class of its own, all below Exception
            raise ModelError(f"the model fails while it computes: {plain(error)[:200]}") from error
        return answer


def onnxruntime() -> Any:
    """The module `onnxruntime`. Raises MissingExtra."""
    try:
        import onnxruntime as runtime
    except ImportError as error:
        raise MissingExtra.for_extra("onnx", "ONNX Runtime is not installed") from error
    return runtime


def _session(runtime: Any, model: bytes, where: str, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    try:
        return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # every failure has a class of its own, all below Exception
        raise ModelError(f"{where}: ONNX Runtime cannot load it: {plain(error)[:200]}") from error


def _layout(session: Any, where: str) -> tuple[bool, tuple[int, int, int]]:
    """(channels come first, (height, width, channels)). Raises ModelError unless the model takes one picture."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise ModelError(f"{where}: it takes {len(inputs)} inputs; an image classifier takes one picture")
    given, shape = inputs[0], inputs[0].shape
    if given.type not in INPUT_TYPES:
        raise ModelError(f"{where}: its input is {given.type}; expected one of: {', '.join(INPUT_TYPES)}")
    if len(shape) != 4 or not all(isinstance(size, int) and size > 0 for size in shape[1:]):
        raise ModelError(f"{where}: its input has shape {shape}; a picture has a fixed (1, height, width, channels)")
    if shape[3] in (1, 3):
        return False, (shape[1], shape[2], shape[3])
    if shape[1] in (1, 3):
        return True, (shape[2], shape[3], shape[1])
    raise ModelError(f"{where}: its input has shape {shape}; a picture has 1 or 3 channels")


def _check_size(card: ModelCard, size: tuple[int, int, int], where: str) -> None:
    if card.image.shape != size:
        raise ModelError(f"{where}: its input is {size}, its model card says {card.image.shape}; export it again")


def _made_up(
    session: Any, where: str, size: tuple[int, int, int], labels: tuple[str, ...], normalize: Normalize | None, softmax: bool
) -> ModelCard:
    from edgeclf.runtime import foreign

    height, width, channels = size
    given = session.get_inputs()[0]
    if given.type == "tensor(float)" and normalize is None:
        raise ModelError(foreign.UNKNOWN_NORMALIZATION.format(where=where))
    mean, std = normalize or (128.0, 128.0)
    colour: Colour = "grey" if channels == 1 else "rgb"
    classes = session.get_outputs()[0].shape[-1]
    labels = foreign.fit_labels(labels, classes, where)
    image = ImageSpec(width, height, "stretch", colour, mean, std)
    outputs = "probabilities" if softmax or _gives_probabilities(session, given) else "logits"
    return ModelCard(Path(where).stem, labels, image, outputs=outputs)  # type: ignore[arg-type]


def _gives_probabilities(session: Any, given: Any) -> bool:
    """Whether the answer to noise is a distribution: ONNX Runtime does not show the graph, so it is asked."""
    shape = (1, *given.shape[1:])
    noise = np.random.RandomState(0).randint(0, 256, shape).astype(INPUT_TYPES[given.type])
    scores = session.run(None, {given.name: noise})[0]
    return bool((scores >= 0).all() and abs(float(scores.sum()) - 1) < 1e-3)
