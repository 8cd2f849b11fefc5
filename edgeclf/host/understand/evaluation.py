"""Evaluation of a run: its full Keras model on pictures, with the same answer as `runtime.accuracy` gives for a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeclf.core.card import ModelCard
from edgeclf.core.catalogue import Catalogue
from edgeclf.core.errors import ConfigError, DataError, EdgeclfError
from edgeclf.core.image import Pixels
from edgeclf.core.progress import Report
from edgeclf.host.data.dataset import open_catalogue
from edgeclf.host.data.reading import Reading
from edgeclf.host.full_model import open_full
from edgeclf.host.run import CARD, Run, open_run
from edgeclf.host.understand.compare import Infer, batches
from edgeclf.runtime.accuracy import Evaluation, Indices, evaluated, matching_classes
from edgeclf.runtime.engine import Scores

Answer: TypeAlias = Callable[[Pixels, Indices], Scores]
"""Prepared pictures (n, height, width, channels) and their true classes (n,) in; logits (n, classes) out."""


def evaluate_run(
    run: Run,
    catalogue: Catalogue,
    indices: npt.NDArray[np.integer[Any]],
    progress: Report | None = None,
    answer: Answer | None = None,
) -> Evaluation:
    """Answer the pictures `indices` of `catalogue` with the full model of `run`, or with `answer` in its place.

    `answer` may be a model that is open already, or one that must know the true classes, as under an attack. Raises
    DataError when the classes are not the model's or no picture can be read.
    """
    card, chosen = run.card, np.asarray(indices, np.int64)
    classes = matching_classes(catalogue.labels, card.labels, str(catalogue.source))
    truth = classes[catalogue.classes[chosen]]
    answer = answer or plain(open_full(run).infer)
    scores = np.zeros((len(chosen), len(card.labels)), np.float32)
    with Reading(catalogue, [card.image]) as reading:
        for part in batches(len(chosen)):
            scores[part] = answer(reading.take(chosen[part])[card.image], truth[part])
            if progress:
                progress(part.stop, len(chosen))
    reasons = {row: reading.refused[index] for row, index in enumerate(chosen.tolist()) if index in reading.refused}
    return evaluated(card, catalogue, chosen, classes, scores, reasons)


def home_of(file: Path, card: ModelCard) -> Run | None:
    """The run that an exported file comes from, where it still lies in that run's folder."""
    if not (file.parent / CARD).is_file():
        return None
    try:
        run = open_run(file.parent)
    except EdgeclfError:
        return None
    return run if run.card.provenance.get("created") == card.provenance.get("created") else None


def pictures(data: str | None, run: Run | None, what: Path, how: str = "DATA") -> Catalogue:
    """The catalogue of `data`, or of what `run` was trained on.

    Messages say for `what` pictures are looked for and `how` the user may name some.

    Raises ConfigError when neither is given, DataError when the run's data is gone or has changed.
    """
    if data is not None:
        return open_catalogue(data)
    own = run.card.provenance.get("data") if run else None
    if run is None or not own:
        raise ConfigError(f"{what}: which pictures? It does not lie in the folder of a run that knows its data; give {how}")
    catalogue = open_catalogue(str(own))
    if catalogue.fingerprint != run.card.provenance.get("fingerprint"):
        raise DataError(f"{own}: has changed since {run.folder} was trained on it; restore it, or name other data")
    return catalogue


def plain(infer: Infer) -> Answer:
    """A model that looks at the pictures alone."""
    return lambda pictures, truth: infer(pictures)
