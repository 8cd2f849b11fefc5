"""What a model looked at: class activation maps of a run, occlusion maps of a file, and both beside each other.

A run has gradients, so it gives Grad-CAM, Grad-CAM++ and CAM. A deployable file gives an occlusion map, which needs its
engine alone: files are explained without TensorFlow. Maps are explained in `edgeclf.host.understand.activation_maps` and
`edgeclf.runtime.occlusion`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np

from edgeclf.core import files
from edgeclf.core.calibrate import softmax
from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import ImageSpec, Pixels, prepare
from edgeclf.core.progress import Report
from edgeclf.core.text import nearest
from edgeclf.host.run import Run, open_run
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.engine import Normalize
from edgeclf.runtime.heatmap import Panel, drawn_picture, over_picture, overlay, peak, row
from edgeclf.runtime.occlusion import Heat, Infer, occlude, spearman, spread

Method = Literal["gradcam", "gradcam++", "cam", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)
TITLES = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "cam": "CAM", "occlusion": "Occlusion"}
COMPARED_SIDE = 128  # pixels of the longer side of the picture on which two maps are compared


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to be explained: `infer` gives its logits, `activations` its maps, None for a file, which has no gradients.

    `activations(pixels, target)` is a map over the input, and `layer` where it is read.
    """

    name: str
    card: ModelCard
    infer: Infer
    activations: Callable[[Pixels, int], Heat] | None = None
    layer: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a model says of a picture: its own answer and that one's probability, and the probability of the explained class."""

    model: str
    answer: str
    answer_score: float
    score: float


@dataclass(frozen=True, eq=False)
class View:
    """One map of one model over its input. `peak` is (x, y), the pixel of the picture that counts most.

    `least` is the lowest probability of the class that covering a part led to, None where nothing was covered.
    """

    model: str
    method: Method
    heat: Heat
    spec: ImageSpec
    peak: tuple[int, int]
    least: float | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why `label`: one view a map, one answer a model. `similarity` is Spearman's rank correlation of two models' occlusion maps.

    It is None for a single model, and where a map is flat.
    """

    label: str
    views: tuple[View, ...]
    answers: tuple[Answer, ...]
    similarity: float | None

    def to_json(self) -> dict[str, Any]:
        """Everything but the maps themselves."""
        views = [
            {"model": v.model, "method": v.method, "peak": list(v.peak), "least_score_when_covered": v.least} for v in self.views
        ]
        return {
            "label": self.label, "answers": [asdict(a) for a in self.answers], "maps": views,
            "spearman_of_occlusion_maps": self.similarity,
        }  # fmt: skip


def open_subjects(
    source: Path,
    method: Method | None = None,
    against: Path | None = None,
    layer: str | None = None,
    workers: int | None = None,
    labels: Path | None = None,
    normalize: Normalize | None = None,
) -> tuple[Method, list[Subject]]:
    """(the method, the models to explain) of a run folder or a deployable file.

    Without `method` it is gradcam for a run and occlusion for a file. The second model is `against`, or the int8 file of the
    run where there is one. `labels` and `normalize` are for a file without a model card. Raises ConfigError for what does not
    fit together, ModelError for what cannot be opened, MissingExtra for a run where TensorFlow is not installed.
    """
    is_run = source.is_dir()
    method = method or ("gradcam" if is_run else "occlusion")
    if not is_run and (method != "occlusion" or layer):
        what = f"--layer {layer}" if method == "occlusion" else f"--method {method}"
        raise ConfigError(f"{source}: {what} needs the layers of a run folder; of a file there is --method occlusion alone")
    if layer and method == "occlusion":
        raise ConfigError(f"--layer {layer}: an occlusion map has no layer; choose --method gradcam, gradcam++ or cam")
    if is_run:
        run = open_run(source)
        subjects, against = [_of_run(run, method, layer)], against or _int8_of(run)
    else:
        subjects = [_of_file(source, workers, labels, normalize)]
    if against:
        subjects.append(_of_file(against, workers))
        if subjects[0].name == subjects[1].name:  # two files of one variant
            names = (source.stem, against.stem) if source.stem != against.stem else (str(source), str(against))
            subjects = [replace(subject, name=name) for subject, name in zip(subjects, names, strict=True)]
        _check_labels(*subjects)
    return method, subjects


def explain(
    frame_bgr: Pixels, method: Method, subjects: list[Subject], label: str | None = None, progress: Report | None = None
) -> Explanation:
    """Explain one picture, uint8 (height, width, 3) BGR; `label` None explains what the first model answers.

    With two models, both get an occlusion map, for only that kind can be drawn for both. Raises ConfigError for an unknown label.
    """
    first = subjects[0]
    if label is not None and label not in first.card.labels:
        raise ConfigError(f"--class {label!r}: {first.name} knows no such class{nearest(label, list(first.card.labels))}")
    chances = [_probabilities(subject, frame_bgr) for subject in subjects]
    label = label or first.card.labels[int(np.argmax(chances[0]))]
    kinds: list[tuple[Subject, Method]] = [(first, method)] if method != "occlusion" else []
    kinds += [(subject, "occlusion") for subject in subjects if method == "occlusion" or len(subjects) > 1]
    views = tuple(_view(subject, kind, frame_bgr, label, progress) for subject, kind in kinds)
    answers = tuple(_answer(subject, chance, label) for subject, chance in zip(subjects, chances, strict=True))
    return Explanation(label, views, answers, _similarity(frame_bgr, views))


def draw(frame_bgr: Pixels, name: str, explanation: Explanation) -> Pixels:
    """The picture and every map over it in one row, with what the models answered: uint8 BGR."""
    alike = explanation.similarity
    note = f"why {explanation.label}" if alike is None else f"both maps: Spearman {correlation(alike)}"
    panels = [Panel(drawn_picture(frame_bgr), (name, note))]
    answers = {answer.model: answer for answer in explanation.answers}
    for view in explanation.views:
        title = f"{TITLES[view.method]}, {view.model}"
        panels.append(Panel(overlay(frame_bgr, view.heat, view.spec), (title, in_words(answers[view.model], explanation.label))))
    return row(panels)


def correlation(value: float) -> str:
    """Three decimals, rounded down, so that 1.000 is nothing but 1."""
    return f"{math.floor(value * 1000) / 1000:.3f}"


def write(path: Path, picture: Pixels) -> None:
    """Write a drawn explanation as PNG, whole or not at all. Raises StorageError."""
    files.write_bytes(path, cv2.imencode(".png", picture)[1].tobytes())


def in_words(answer: Answer, label: str) -> str:
    """`cat 93.1%`, and what the model answers instead where that is another class."""
    text = f"{label} {answer.score:.1%}"
    return text if answer.answer == label else f"{text}, answers {answer.answer} {answer.answer_score:.1%}"


def _of_run(run: Run, method: Method, layer: str | None) -> Subject:
    from edgeclf.host.full_model import answering
    from edgeclf.host.understand import activation_maps

    model = run.model()
    if method == "occlusion":
        return Subject("float", run.card, answering(model))
    found = activation_maps.open_maps(model, method, layer)
    return Subject("float", run.card, answering(model), found.heat, found.layer)


def _of_file(path: Path, workers: int | None, labels: Path | None = None, normalize: Normalize | None = None) -> Subject:
    classifier = Classifier.load(path, 1, labels, normalize)
    return Subject(_short_name(classifier), classifier.card, spread(classifier, workers))


def _short_name(classifier: Classifier) -> str:
    return classifier.card.variant if classifier.own else classifier.card.name


def _int8_of(run: Run) -> Path | None:
    """The int8 file of this very training. Raises ConfigError when the one that is there is of another."""
    path = run.exported("int8")
    if not path.is_file():
        return None
    from edgeclf.core.bundle import read_bundle

    card = read_bundle(path).card
    if card is None or card.provenance.get("created") != run.card.provenance.get("created"):
        raise ConfigError(f"{path}: is of another training than this run; export it again, or name a file: --against FILE")
    return path


def _check_labels(first: Subject, second: Subject) -> None:
    if set(first.card.labels) != set(second.card.labels):
        raise ConfigError(f"--against: {second.card.name} has other classes than {first.card.name}, so they cannot be compared")


def _probabilities(subject: Subject, frame_bgr: Pixels) -> Any:
    logits = subject.infer(prepare(frame_bgr, subject.card.image)[None])
    if not np.isfinite(logits).all():
        raise ModelError(f"{subject.card.name}: the model answered with scores that are not numbers (NaN or infinity)")
    return softmax(logits, subject.card.temperature)[0]


def _answer(subject: Subject, chances: Any, label: str) -> Answer:
    labels, best = subject.card.labels, int(np.argmax(chances))
    return Answer(subject.name, labels[best], float(chances[best]), float(chances[labels.index(label)]))


def _view(subject: Subject, method: Method, frame_bgr: Pixels, label: str, progress: Report | None) -> View:
    card, least = subject.card, None
    pixels, target = prepare(frame_bgr, card.image), card.labels.index(label)
    if method == "occlusion" or subject.activations is None:
        found = occlude(subject.infer, pixels, target, card.temperature, progress=progress)
        heat, least = found.heat, found.least
    else:
        heat = subject.activations(pixels, target)
    place = peak(heat, frame_bgr.shape[0], frame_bgr.shape[1], card.image)
    return View(subject.name, method, heat, card.image, place, least)


def _similarity(frame_bgr: Pixels, views: tuple[View, ...]) -> float | None:
    """Of the occlusion maps of two models, over the parts of the picture that both have seen."""
    maps = [view for view in views if view.method == "occlusion"]
    if len(maps) != 2:
        return None
    rows, columns = frame_bgr.shape[:2]
    scale = min(1.0, COMPARED_SIDE / max(rows, columns))
    first, second = (over_picture(view.heat, rows, columns, view.spec, scale) for view in maps)
    both = np.isfinite(first) & np.isfinite(second)
    return spearman(first[both], second[both])
