"""What a model got wrong on held-out pictures: which, how surely, which labels may be wrong instead, what it had seen before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeclf.core.card import ModelCard
from edgeclf.core.catalogue import SPLITS, UNSPLIT, Catalogue, split
from edgeclf.core.errors import ModelError
from edgeclf.core.progress import Bar, no_bar
from edgeclf.host.data import duplicates
from edgeclf.host.data.survey import survey
from edgeclf.runtime.accuracy import Evaluation, Indices
from edgeclf.runtime.classifier import softmax
from edgeclf.runtime.engine import Scores


@dataclass(frozen=True)
class Mistake:
    """A picture by its index in the catalogue; the class it stands under and the one it was called, indices into the labels.

    `called` is -1 where the model answered with no number. `sure` is the probability of the answer, `given_share` that of the
    class it stands under.
    """

    index: int
    given: int
    called: int
    sure: float
    given_share: float


@dataclass(frozen=True)
class Seen:
    """A held-out picture that equals (`exact`) or nearly equals a training picture, both by their index in the catalogue.

    `alike` is the correlation of the two as small grey pictures; `conflict`: they stand under different classes.
    """

    index: int
    twin: int
    alike: float
    exact: bool
    conflict: bool


@dataclass(frozen=True, eq=False)
class Mistakes:
    """Everything wrong in an evaluation, nothing left out; lists are sorted, the most telling first.

    `which` says in words which pictures were held out; `own` that the model was trained on other parts of this very data.
    `suspects` are mistakes whose label rather than the answer may be wrong.
    `pairs` gives (given, called, pictures). `seen` is None where nothing tells which pictures the model was trained on, and
    `top1_unseen` the accuracy, a fraction, on the others, None where there are none or all were.
    """

    catalogue: Catalogue
    card: ModelCard
    which: str
    own: bool
    pictures: int
    top1: float
    wrong: tuple[Mistake, ...]
    suspects: tuple[Mistake, ...]
    pairs: tuple[tuple[int, int, int], ...]
    seen: tuple[Seen, ...] | None
    top1_unseen: float | None

    def label(self, number: int) -> str:
        """The name of a class; for -1 that there was no answer."""
        return self.card.labels[number] if number >= 0 else "no answer"

    def to_json(self, limit: int) -> dict[str, Any]:
        """All counts, and the first `limit` entries of every list."""
        return {
            "data": str(self.catalogue.source),
            "pictures": self.pictures,
            "which": self.which,
            "top1": self.top1,
            "misclassified": {"count": len(self.wrong), "pictures": [self._mistake(m) for m in self.wrong[:limit]]},
            "label_suspects": {"count": len(self.suspects), "pictures": [self._mistake(m) for m in self.suspects[:limit]]},
            "confused": [
                {"is": self.label(given), "called": self.label(called), "pictures": count}
                for given, called, count in self.pairs[:limit]
            ],
            "seen_in_training": None if self.seen is None else self._seen(self.seen, limit),
        }

    def _mistake(self, mistake: Mistake) -> dict[str, Any]:
        return {
            "picture": self.catalogue.names[mistake.index], "is": self.label(mistake.given), "called": self.label(mistake.called),
            "probability": round(mistake.sure, 6), "probability_of_label": round(mistake.given_share, 6),
        }  # fmt: skip

    def _seen(self, seen: tuple[Seen, ...], limit: int) -> dict[str, Any]:
        names = self.catalogue.names
        return {
            "count": len(seen),
            "exact": sum(s.exact for s in seen),
            "other_class": sum(s.conflict for s in seen),
            "top1_without_them": self.top1_unseen,
            "pictures": [
                {"picture": names[s.index], "training_picture": names[s.twin], "alike": round(s.alike, 4), "exact": s.exact}
                for s in seen[:limit]
            ],
        }


def study(evaluation: Evaluation, catalogue: Catalogue, which: str, bar: Bar = no_bar) -> Mistakes:
    """Everything wrong in `evaluation`, which was made on `catalogue`; reads the pictures again to find doubles."""
    card, truth = evaluation.card, evaluation.truth
    shares = softmax(evaluation.scores, card.temperature)
    called = np.where(np.isnan(shares[:, 0]), -1, np.argmax(np.nan_to_num(shares, nan=-1.0), axis=1))
    wrong = [
        _mistake(int(evaluation.indices[row]), int(truth[row]), int(called[row]), shares[row])
        for row in np.flatnonzero(called != truth)
    ]
    by_index = {mistake.index: mistake for mistake in wrong}
    training = trained_on(catalogue, card)
    seen = None if training is None else doubles_in_training(catalogue, evaluation.indices, training, bar)
    unseen = ~np.isin(evaluation.indices, [s.index for s in seen or ()])
    pairs = Counter((m.given, m.called) for m in wrong)
    return Mistakes(
        catalogue, card, which, _is_own(catalogue, card), len(truth), evaluation.accuracy.top1,
        wrong=tuple(sorted(wrong, key=lambda m: (-m.sure, m.index))),
        suspects=tuple(by_index[int(evaluation.indices[row])] for row in label_suspects(shares, truth)),
        pairs=tuple((*pair, count) for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))),
        seen=seen,
        top1_unseen=float(np.mean(called[unseen] == truth[unseen])) if seen and unseen.any() else None,
    )  # fmt: skip


def label_suspects(shares: Scores, truth: Indices) -> list[int]:
    """Rows whose label is likely wrong, by confident learning (Northcutt, Jiang and Chuang 2021), the likeliest first.

    `shares` is float32 (pictures, classes), probabilities of a model that was trained on none of these pictures; `truth` is
    (pictures,). A class is confidently present where its probability reaches the mean that it has on pictures labelled so; a
    row is listed where that holds of the model's answer, and the answer is not the label. Sorted by how far the answer's
    probability lies above the label's.
    """
    classes, rows = shares.shape[1], np.arange(len(truth))
    given = shares[rows, truth]
    finite = np.isfinite(given)
    sums = np.bincount(truth[finite], weights=given[finite], minlength=classes)
    counts = np.bincount(truth[finite], minlength=classes)
    threshold = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
    called = np.argmax(np.nan_to_num(shares, nan=-1.0), axis=1)
    confident = finite & (shares[rows, called] >= threshold[called]) & (called != truth)
    found = np.flatnonzero(confident)
    margin = shares[found, called[found]] - given[found]
    return [int(row) for row in found[np.argsort(-margin, kind="stable")]]


def trained_on(catalogue: Catalogue, card: ModelCard) -> Indices | None:
    """The pictures of `catalogue` that the model was trained on: by its own split, else by the train folder; None if unknown."""
    if _is_own(catalogue, card):
        try:
            return split(catalogue, **card.provenance["split"])["train"]
        except (TypeError, ValueError) as error:  # a card may hold anything there
            raise ModelError(f"{card.name}: its model card does not say how its data were split") from error
    if not (catalogue.folders == SPLITS.index("test")).any():
        return None
    found = np.flatnonzero((catalogue.folders == SPLITS.index("train")) | (catalogue.folders == UNSPLIT)).astype(np.int64)
    return found if len(found) else None


def _is_own(catalogue: Catalogue, card: ModelCard) -> bool:
    return bool(card.provenance.get("split")) and card.provenance.get("fingerprint") == catalogue.fingerprint


def doubles_in_training(catalogue: Catalogue, held_out: Indices, training: Indices, bar: Bar = no_bar) -> tuple[Seen, ...]:
    """The held-out pictures with a double among the training pictures, each with its nearest one, the nearest first."""
    both = np.concatenate([held_out, training])
    with bar("looking for doubles") as report:
        seen = survey(catalogue, both, report)
    leaders, links = duplicates.leaders(seen), duplicates.near(seen)
    first_of = {int(leaders[row]): row for row in range(len(both) - 1, len(held_out) - 1, -1) if seen.readable[row]}
    nearest: dict[int, tuple[float, int]] = {leader: (1.0, row) for leader, row in first_of.items()}
    for first, second, alike in zip(links.first.tolist(), links.second.tolist(), links.alike.tolist(), strict=True):
        for mine, other in ((first, second), (second, first)):
            if other in first_of and mine not in first_of and alike > nearest.get(mine, (-1.0, 0))[0]:
                nearest[mine] = alike, first_of[other]
    found = []
    for row in range(len(held_out)):
        if seen.readable[row] and (twin := nearest.get(int(leaders[row]))):
            index, other = int(both[row]), int(both[twin[1]])
            exact = bool(seen.digests[row] == seen.digests[twin[1]])
            found.append(Seen(index, other, twin[0], exact, bool(catalogue.classes[index] != catalogue.classes[other])))
    return tuple(sorted(found, key=lambda s: (not s.conflict, -s.alike, s.index)))


def _mistake(index: int, given: int, called: int, shares: Scores) -> Mistake:
    sure, label = (float(shares[called]), float(shares[given])) if called >= 0 else (0.0, 0.0)
    return Mistake(index, given, called, sure, label)
