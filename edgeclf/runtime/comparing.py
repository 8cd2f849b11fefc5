"""Comparing: opens a second model for the same frames, and keeps frames on which the two disagree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.live_settings import CompareSection, DecideSection
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.decision import UNKNOWN, Rules, asked_rules, card_rules
from edgeclf.runtime.live import Comparison, Summary
from edgeclf.runtime.scoring import scorer
from edgeclf.runtime.sinks.disagreements import Disagreements
from edgeclf.runtime.sinks.keeping import Folder
from edgeclf.runtime.sinks.sink import Background


@contextlib.contextmanager
def comparing(
    section: CompareSection, decide: DecideSection, first: Classifier, threads: int | None, warn: Callable[[str], None]
) -> Iterator[tuple[Comparison | None, Disagreements | None]]:
    """The comparison that the settings ask for, and what keeps its frames; (None, None) when they ask for none.

    Raises ConfigError for settings that do not fit together, ModelError for a second file that cannot be used or has other
    labels than the first, StorageError when the folder cannot be written to. Nothing is being written any more at the end.
    """
    if not section.file:
        if section.folder:
            raise ConfigError(
                f"{section.folder}: frames on which two models disagree need a second model; give it with --compare FILE"
            )
        yield None, None
        return
    other = Classifier.load(section.file, threads)
    check_labels(first.labels, other.labels, section.file)
    other.probabilities(np.zeros((*other.card.image.shape[:2], 3), np.uint8))  # the first answer is slow
    name, rules, own = Path(section.file).name, rules_beside(other, decide), asked_rules(first.card, decide)
    if rules.limited != own.limited:
        warn(
            f"{name} and the first model differ in that one alone has limits for '{UNKNOWN}', so each '{UNKNOWN}' counts as a "
            "disagreement; run edgeclf calibrate on both alike, or give a --threshold"
        )
    comparison = Comparison(scorer(other, rules.by_energy), other.labels, rules, name=name)
    if not section.folder:
        yield comparison, None
        return
    kept = Disagreements(Folder(Path(section.folder), section.min_free_mb, max_mb=None), section, name, warn)
    writing = Background(kept, "disagreements", on_trouble=warn)
    try:
        yield replace(comparison, disagreed=writing.emit), kept
    finally:
        writing.close()


def check_labels(own: tuple[str, ...], others: tuple[str, ...], file: str) -> None:
    """Raises ModelError unless both know the same labels, in any order."""
    unknown, absent = [x for x in others if x not in own], [x for x in own if x not in others]
    if unknown or absent:
        parts = [f"{_few(unknown)} unknown to the first model"] * bool(unknown) + [f"lacks {_few(absent)}"] * bool(absent)
        raise ModelError(f"{file}: cannot be compared, its labels are others: {', '.join(parts)}")


def rules_beside(other: Classifier, decide: DecideSection) -> Rules:
    """How the second model's scores become answers: by its own card, but by a threshold that was given where that means the
    same to every model, as that of a probability or a margin does and that of an energy does not."""
    if decide.threshold is not None and decide.unknown_by != "energy":
        return asked_rules(other.card, replace(decide, smooth=0.0, votes=1, of=1))
    return card_rules(other.card)


def with_saved(summary: Summary, kept: Disagreements | None) -> Summary:
    """The summary with how many frames were kept, which is known when nothing is being written any more."""
    if kept is None or summary.compared is None:
        return summary
    return replace(summary, compared=replace(summary.compared, saved=kept.saved))


def _few(labels: list[str], most: int = 5) -> str:
    return ", ".join(map(repr, labels[:most])) + (f" and {len(labels) - most} more" if len(labels) > most else "")
