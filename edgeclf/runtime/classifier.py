"""Classifier: a deployable file, loaded; a frame in, labels with probabilities out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclf.core.bundle import Bundle, read_bundle
from edgeclf.core.calibrate import softmax as softmax
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ModelError
from edgeclf.core.image import Pixels, prepare
from edgeclf.core.tflite import logits_view
from edgeclf.core.unknown import energy
from edgeclf.runtime import foreign, onnx, shipped
from edgeclf.runtime.decision import UNKNOWN, Rules, card_rules
from edgeclf.runtime.decision import likeliest as likeliest
from edgeclf.runtime.engine import Engine, Normalize, Scores, open_engine


@dataclass(frozen=True)
class Prediction:
    """A class and its probability in [0, 1]."""

    label: str
    score: float


class Classifier:
    """A model with its card and engine. Not safe to share between threads: load one in each."""

    def __init__(
        self, engine: Engine, card: ModelCard, own: bool = True, reopen: Callable[[int | None], Engine] | None = None
    ) -> None:
        """`own` says that the card came with the file; a foreign file's card is made from its tensors.

        `reopen(threads)` gives a second engine of the same model, for another thread; None when there can be only one.
        """
        self.engine, self.card, self.own, self._reopen = engine, card, own, reopen

    @classmethod
    def load(
        cls,
        path: Path | str,
        threads: int | None = None,
        labels: Path | str | tuple[str, ...] | None = None,
        normalize: Normalize | None = None,
    ) -> Classifier:
        """The classifier in a `.tflite` or `.onnx` file, or the shipped one of that name, such as `compact-cifar10`.

        `threads` None chooses by the size of the net. `labels` (a file with one a line, or the labels) and `normalize`
        (mean, std) are for files without a model card. Raises ModelError for a file that cannot be used, MissingExtra when
        no runtime for it is installed.
        """
        return from_bundle(read_file(Path(path)), threads, given_labels(labels), normalize)

    def another(self, threads: int | None = None) -> Classifier:
        """The same model loaded again, for another thread or another number of threads. Raises ModelError when it cannot be."""
        if self._reopen is None:
            raise ModelError(f"{self.card.name}: only one engine of it can be open")
        return Classifier(self._reopen(threads), self.card, self.own, self._reopen)

    @property
    def copies(self) -> bool:
        """Whether `another` works."""
        return self._reopen is not None

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of the scores."""
        return self.card.labels

    @property
    def rules(self) -> Rules:
        """How scores become answers by the card; where it says nothing, the likeliest class always is the answer."""
        return card_rules(self.card)

    def answer(self, frame_bgr: Pixels) -> Prediction:
        """The likeliest class, or `unknown` with its score where the card's limits are not reached. Raises as `classify`."""
        (best,), known = self.judge(frame_bgr, top=1)
        return best if known else Prediction(UNKNOWN, best.score)

    def classify(self, frame_bgr: Pixels, top: int = 5) -> list[Prediction]:
        """The `top` likeliest classes, likeliest first, whatever the card's limits say.

        `frame_bgr` is a picture as OpenCV reads it: uint8 (height, width, 3), any size. Raises DataError for anything else,
        and ModelError when the model answers with NaN or infinity, which is no label.
        """
        return self.judge(frame_bgr, top)[0]

    def judge(self, frame_bgr: Pixels, top: int = 5) -> tuple[list[Prediction], bool]:
        """As `classify`, and whether the likeliest class is an answer: whether it reaches the limits in the card."""
        logits = self.logits(frame_bgr)
        scores = softmax(logits, self.card.temperature)
        if math.isnan(scores[0]):  # then all are
            raise ModelError(f"{self.card.name}: the model answered with scores that are not numbers (NaN or infinity)")
        labels, order = self.card.labels, likeliest(scores, top)
        known = self.rules.accepts(scores, order[0], energy(logits, self.card.temperature))
        return [Prediction(labels[i], float(scores[i])) for i in order], known

    def probabilities(self, frame_bgr: Pixels) -> Scores:
        """Probabilities of all classes, float32 (classes,) in label order; NaN where the model's answer is no number."""
        return softmax(self.logits(frame_bgr), self.card.temperature)

    def logits(self, frame_bgr: Pixels) -> Scores:
        """What the network answers before softmax, float32 (classes,) in label order."""
        logits: Scores = self.engine.infer(prepare(frame_bgr, self.card.image)[None])[0]
        return logits


load = Classifier.load


def read_file(path: Path) -> Bundle:
    """The deployable file at `path`, checked as `core.bundle` does.

    A bare name that is no file here means the shipped model of that name. Raises ModelError.
    """
    return read_bundle(shipped.resolve(path))


def from_bundle(
    bundle: Bundle,
    threads: int | None = None,
    labels: tuple[str, ...] = (),
    normalize: Normalize | None = None,
    probed: bool = False,
) -> Classifier:
    """The classifier in a file that was read already; `probed` says that this process may open it without a trial."""
    if onnx.is_onnx(bundle.name):
        return _from_onnx(bundle, threads, labels, normalize, probed)
    card = foreign.card_of(bundle, labels, normalize)
    # The one copy of the model that stays in memory is the one that the engine computes.
    carded = replace(bundle, card=card, model=logits_view(bundle.model))
    engine = open_engine(carded, threads, probed)
    return Classifier(engine, card, bundle.card is not None, lambda wanted: open_engine(carded, wanted, probed=True))


def _from_onnx(
    bundle: Bundle, threads: int | None, labels: tuple[str, ...], normalize: Normalize | None, probed: bool
) -> Classifier:
    if bundle.card is not None:
        foreign.refuse_overrides(bundle.name, labels, normalize)
    engine = onnx.OnnxEngine(bundle, threads, probed, labels, normalize)
    carded = replace(bundle, card=engine.card)
    return Classifier(engine, engine.card, bundle.card is not None, lambda wanted: onnx.OnnxEngine(carded, wanted, probed=True))


def given_labels(labels: Path | str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The labels in a file, or as they were given; none when there are none. Raises ModelError."""
    if labels is None:
        return ()
    return labels if isinstance(labels, tuple) else foreign.read_labels(Path(labels))
