"""Models side by side on the same held-out pictures: accuracy, paired differences with tests, size and latency; who wins.

Unlike the report, which sets the files of one run against its full model, these may be any runs and files of the same classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from edgeclf.core.card import ModelCard
from edgeclf.core.catalogue import Catalogue
from edgeclf.core.errors import ConfigError, DataError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.core.progress import Bar, no_bar
from edgeclf.core.results import Accuracy, PairedDrop, Size, holm, paired_drop, score
from edgeclf.host.data.reading import Reading
from edgeclf.host.full_model import open_full
from edgeclf.host.report import timing
from edgeclf.host.report.timing import Speedup, Timing
from edgeclf.host.run import Run, open_run
from edgeclf.host.understand import compare
from edgeclf.host.understand.compare import SIGNIFICANT, Infer
from edgeclf.host.understand.evaluation import home_of
from edgeclf.host.wording import at_most, p_value, points
from edgeclf.runtime import shipped
from edgeclf.runtime.accuracy import Indices, held_out, limited, matching_classes
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.engine import Scores
from edgeclf.runtime.latency import Machine, file_size, this_machine


@dataclass(frozen=True, eq=False)
class Entrant:
    """A model that opens and answers; `run` is the one it comes from, where that is known."""

    name: str
    card: ModelCard
    infer: Infer
    runtime: str
    threads: str
    size: Size
    run: Run | None


@dataclass(frozen=True)
class Row:
    """One model as measured. `agreement` is the share of pictures on which it gives the answer of the first model.

    `timing` is None when none was asked for, `over_first` also for the first model itself.
    """

    name: str
    runtime: str
    threads: str
    image: ImageSpec
    size: Size
    accuracy: Accuracy
    agreement: float
    timing: Timing | None
    over_first: Speedup | None


@dataclass(frozen=True)
class Pair:
    """Two models, by name: what accuracy `second` lost against `first`; `p_holm` is its p-value adjusted for all pairs."""

    first: str
    second: str
    drop: PairedDrop
    p_holm: float


@dataclass(frozen=True)
class SideBySide:
    """A comparison. `pairs` holds every pair, those with the first model first; `winner` is None where none is shown."""

    data: str
    which: str
    pictures: int
    skipped: int
    machine: Machine
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    winner: str | None
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Fractions, milliseconds and bytes; the accuracy of each model without its confusion matrix."""
        return {**asdict(self), "rows": [_row_json(row) for row in self.rows]}


def enter(paths: Sequence[Path], threads: int | None = None) -> list[Entrant]:
    """The models at these paths, called by the last part of their path where those differ.

    Raises ConfigError when there are fewer than two or one is given twice, DataError when their classes are not the same,
    ModelError when one cannot be used.
    """
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"compare {' '.join(map(str, paths))}: give at least two runs or files, each once")
    names = [path.name for path in paths]
    names = names if all(names) and len(set(names)) == len(names) else [str(path) for path in paths]
    entrants = [_enter(path, name, threads) for path, name in zip(paths, names, strict=True)]
    _check_classes(entrants)
    return entrants


def _enter(path: Path, name: str, threads: int | None) -> Entrant:
    """The full model of a run folder, or an exported file; `threads` is for files."""
    if path.is_dir():
        run = open_run(path)
        full = open_full(run)
        return Entrant(name, run.card, full.infer, full.runtime, full.threads, file_size(full.path), run)
    classifier = Classifier.load(path, threads)
    engine, card = classifier.engine, classifier.card
    size = file_size(shipped.resolve(path))
    return Entrant(name, card, engine.infer, engine.runtime, str(engine.threads), size, home_of(path, card))


def _check_classes(entrants: Sequence[Entrant]) -> None:
    """Their order does not matter."""
    first = entrants[0]
    for other in entrants[1:]:
        ours, theirs = set(first.card.labels), set(other.card.labels)
        if ours != theirs:
            raise DataError(
                f"{other.name}: its classes are not those of {first.name}: it lacks {_some(ours - theirs)}, "
                f"and has {_some(theirs - ours)} besides; only models of the same classes can be compared"
            )


def common_held_out(catalogue: Catalogue, entrants: Sequence[Entrant]) -> tuple[Indices, str]:
    """The pictures that none of the models was trained on, as far as their cards say, and in words which they are.

    Models with different splits of the same data leave only what all of them held out. Raises DataError when that is nothing.
    """
    parts = [held_out(catalogue, entrant.card) for entrant in entrants]
    indices = reduce(np.intersect1d, [part for part, _ in parts])
    if not len(indices):
        raise DataError(f"{catalogue.source}: no picture was held out by all of them; give other pictures with --data")
    least = min(parts, key=lambda part: len(part[0]))
    fewer = ", of which only those that all held out" if len(indices) < len(least[0]) else ""
    strangers = [e.name for e, (part, _) in zip(entrants, parts, strict=True) if len(indices) < len(part) == len(catalogue)]
    doubt = f"; not known whether {', '.join(strangers)} was trained on some of them" if strangers else ""
    return indices, least[1] + fewer + doubt


def compare_models(
    entrants: Sequence[Entrant],
    catalogue: Catalogue,
    limit: int | None = None,
    rounds: int = timing.ROUNDS,
    bar: Bar = no_bar,
) -> SideBySide:
    """Measure all on the pictures that all of them held out; `rounds` of timing, 0 for none.

    Every model gets each picture prepared for its own input size. Pictures that cannot be read count for none.
    """
    machine = this_machine()  # before the work, which is load too
    chosen, which = common_held_out(catalogue, entrants)
    labels = entrants[0].card.labels
    classes = matching_classes(catalogue.labels, labels, str(catalogue.source))
    chosen = limited(chosen, limit)
    with Reading(catalogue, [entrant.card.image for entrant in entrants]) as reading:
        with bar("answering held-out pictures") as report:
            scores = compare.answers({e.name: _on_its_own(e, labels) for e in entrants}, reading.take, chosen, report)
        kept = np.array([i not in reading.refused for i in chosen.tolist()])
        if not kept.any():
            raise DataError(
                f"{catalogue.source}: none of {len(chosen)} pictures can be read: {next(iter(reading.refused.values()))}"
            )
        sample = reading.take(chosen[kept][:1])
    times = _time(entrants, sample, rounds, bar)
    truth = classes[catalogue.classes[chosen[kept]]]
    return _result(
        entrants, {name: found[kept] for name, found in scores.items()}, truth, labels, times,
        (str(catalogue.source), which, int((~kept).sum()), machine),
    )  # fmt: skip


def _result(
    entrants: Sequence[Entrant],
    scores: dict[str, Scores],
    truth: Indices,
    labels: tuple[str, ...],
    times: dict[str, Timing],
    about: tuple[str, str, int, Machine],
) -> SideBySide:
    first = entrants[0].name
    called = {name: compare.predictions(found) for name, found in scores.items()}
    rows = tuple(
        Row(
            e.name, e.runtime, e.threads, e.card.image, e.size, score(scores[e.name], truth, labels),
            float(np.mean((called[e.name] == called[first]) & (called[first] >= 0))), times.get(e.name),
            timing.speedup(times[first], times[e.name]) if times and e.name != first else None,
        )
        for e in entrants
    )  # fmt: skip
    pairs = pairwise({name: found == truth for name, found in called.items()})
    winner, sentence = judge(rows, pairs)
    data, which, skipped, machine = about
    return SideBySide(data, which, len(truth), skipped, machine, rows, pairs, winner, sentence)


def pairwise(right: dict[str, np.ndarray[Any, np.dtype[np.bool_]]]) -> tuple[Pair, ...]:
    """Every pair of models by who was right on which picture, with McNemar's p-value adjusted for all of them (Holm)."""
    names = list(itertools.combinations(right, 2))
    drops = [paired_drop(right[a], right[b]) for a, b in names]
    adjusted = holm([drop.p_value for drop in drops])
    return tuple(Pair(a, b, drop, p) for (a, b), drop, p in zip(names, drops, adjusted, strict=True))


def judge(rows: Sequence[Row], pairs: Sequence[Pair]) -> tuple[str | None, str]:
    """(the model that is shown to be more accurate than every other, a sentence); None where the test shows none."""
    best = max(rows, key=lambda row: row.accuracy.top1)
    pictures = best.accuracy.pictures
    against = [pair for pair in pairs if best.name in (pair.first, pair.second)]
    close = [pair for pair in against if pair.p_holm >= SIGNIFICANT]
    if not close:
        worst = max(pair.p_holm for pair in against)
        than = "the other" if len(rows) == 2 else "every other"
        return best.name, f"{best.name} is more accurate than {than}: p {_is(worst)} on the same {pictures:,} pictures."
    if len(close) == len(pairs):
        room = max(max(abs(pair.drop.interval.low), abs(pair.drop.interval.high)) for pair in close)
        return (
            None,
            f"No difference in accuracy shown: {pictures:,} pictures leave room for {at_most(room, pictures)} points either way.",
        )
    others = ", ".join(pair.second if pair.first == best.name else pair.first for pair in close)
    share = points(best.accuracy.top1, pictures)
    return None, f"No single winner: {best.name} is highest with {share}%, but no difference to {others} is shown."


def _is(p: float) -> str:
    text = p_value(p)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"


def _on_its_own(entrant: Entrant, labels: tuple[str, ...]) -> Callable[[dict[ImageSpec, Pixels]], Scores]:
    """Its answers to pictures of its own size, in the order of `labels`."""
    columns = [entrant.card.labels.index(label) for label in labels]
    return lambda pictures: entrant.infer(pictures[entrant.card.image])[:, columns]


def _time(entrants: Sequence[Entrant], sample: dict[ImageSpec, Pixels], rounds: int, bar: Bar) -> dict[str, Timing]:
    if not rounds:
        return {}

    def single(entrant: Entrant) -> Callable[[], object]:
        picture = sample[entrant.card.image]
        return lambda: entrant.infer(picture)

    with bar("timing, in turns") as report:
        return timing.interleaved({e.name: single(e) for e in entrants}, rounds, report)


def _some(names: set[str], most: int = 3) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:most]) or "none"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _row_json(row: Row) -> dict[str, Any]:
    found = asdict(row)
    del found["accuracy"]["confusion"]
    return found
