"""Answering pictures: encoded bytes in, rows of results out, the same whichever engine asks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from edgeclf.core.calibrate import softmax
from edgeclf.core.errors import DataError
from edgeclf.core.image import decode, prepare
from edgeclf.core.unknown import energy
from edgeclf.runtime.bulk.reading import Picture
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import UNKNOWN
from edgeclf.runtime.engine import Scores

ANSWERS = pa.schema([
    ("path", pa.string()),
    ("label", pa.string()),
    ("score", pa.float32()),
    ("top", pa.list_(pa.struct([("label", pa.string()), ("score", pa.float32())]))),
    ("error", pa.string()),
])  # fmt: skip


def answer(classifier: Classifier, pictures: Iterable[Picture], top: int) -> Any:
    """A RecordBatch of ANSWERS, a row a picture in their order.

    `label` is the likeliest class, or `unknown` where the card's limits are not reached; `score` its probability; `top` the
    likeliest classes. A picture without an answer has `error` instead. Raises ModelError when the model cannot compute.
    """
    paths: list[str] = []
    errors: list[str | None] = []
    rows: list[Any] = []
    engine, image = classifier.engine, classifier.card.image
    for path, data in pictures:
        paths.append(path)
        try:
            if isinstance(data, DataError):
                raise data
            rows.append(engine.raw(prepare(decode(data, path), image)[None]))
            errors.append(None)
        except DataError as error:
            errors.append(str(error))
    known = np.array([error is None for error in errors], bool)
    logits = engine.logits(np.concatenate(rows)) if rows else np.zeros((0, len(classifier.labels)), np.float32)
    return _batch(classifier, paths, errors, known, logits, min(top, len(classifier.labels)))


def _batch(classifier: Classifier, paths: list[str], errors: list[str | None], known: Any, logits: Scores, top: int) -> Any:
    card, rules = classifier.card, classifier.rules
    scores = softmax(logits, card.temperature) if len(logits) else logits
    finite = np.isfinite(scores).all(axis=1)
    for row in np.flatnonzero(known)[~finite].tolist():
        errors[row] = f"{paths[row]}: the model answered with scores that are not numbers (NaN or infinity)"
    known[np.flatnonzero(known)[~finite]] = False
    logits, scores = logits[finite], scores[finite]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]  # of equal ones the first class, as everywhere
    chosen = np.take_along_axis(scores, best, 1)
    asked = rules.unknown_by == "energy"
    accepted = [
        rules.accepts(row, first, energy(z, card.temperature) if asked else 0.0)
        for row, first, z in zip(scores, best[:, 0].tolist(), logits, strict=True)
    ]
    names = [card.labels[i] if yes else UNKNOWN for i, yes in zip(best[:, 0].tolist(), accepted, strict=True)]
    return pa.record_batch(
        [
            pa.array(paths, pa.string()),
            _spread(pa.array(names, pa.string()), known),
            _spread(pa.array(chosen[:, 0], pa.float32()), known),
            _tops(best, chosen, card.labels, known),
            pa.array(errors, pa.string()),
        ],
        schema=ANSWERS,
    )


def _spread(values: Any, known: Any) -> Any:
    """`values` at the rows that are known, null at the others."""
    return values.take(pa.array(np.cumsum(known) - 1, pa.int64(), mask=~known))


def _tops(best: Any, chosen: Any, labels: tuple[str, ...], known: Any) -> Any:
    structs = pa.StructArray.from_arrays(
        [pa.array(labels, pa.string()).take(pa.array(best.reshape(-1))), pa.array(chosen.reshape(-1), pa.float32())],
        fields=list(ANSWERS.field("top").type.value_type),
    )
    ends = np.concatenate([[0], np.cumsum(known) * best.shape[1]]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), structs, type=ANSWERS.field("top").type, mask=pa.array(~known))
