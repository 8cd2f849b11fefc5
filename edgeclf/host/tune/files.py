"""What a tuning leaves in its folder: the best recipe, a table of the trials, the result as JSON, and three figures."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from edgeclf.core import config, files
from edgeclf.core.recipe import Recipe, override
from edgeclf.core.results import wilson
from edgeclf.host.plots import COLOURS
from edgeclf.host.tune.search_space import Choice, Dimension, Value, value_in
from edgeclf.host.tune.study import Trial

if TYPE_CHECKING:
    from edgeclf.host.tune.tune import Tuned, Tuning

TRIALS, BEST, RESULT = "trials.csv", "best.toml", "tune.json"
HISTORY, IMPORTANCES, SLICES = "history.png", "importances.png", "slices.png"
ACROSS = 3  # panels beside each other


def write_trials(tuning: Tuning, trials: Sequence[Trial]) -> None:
    """`trials.csv`, one row a trial, with the values of its recipe."""
    names = [dimension.name for dimension in tuning.dimensions]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "val_accuracy", "epochs", "seconds", "parameters", *names, "reason"])
    for t in trials:
        own = [value_in(t.recipe, name) for name in names]
        writer.writerow([t.number, t.state, t.accuracy, t.epochs, t.seconds, t.parameters, *own, t.reason])
    files.write_text(tuning.folder / TRIALS, text.getvalue())


def write_result(tuned: Tuned) -> None:
    """`best.toml`, `tune.json` and the figures."""
    folder = tuned.tuning.folder
    files.write_text(folder / BEST, config.to_toml(best_recipe(tuned)))
    files.write_json(folder / RESULT, result_json(tuned))
    draw(tuned)


def best_recipe(tuned: Tuned) -> Recipe:
    """The recipe of the best trial, with the epochs of the one that was given, and a name and description of its own."""
    tuning, best = tuned.tuning, tuned.best
    name = f"{tuning.recipe.name.removesuffix('-tuned')}-tuned"
    about = (
        f"{tuning.recipe.name}, tuned: the best of {len(tuned.trials)} trials of {tuning.recipe.training.epochs} epochs by "
        f"accuracy on {_pictures(tuned)} validation pictures."
    )
    return replace(override(best.recipe, training__epochs=tuning.epochs), name=name, description=about)


def result_json(tuned: Tuned) -> dict[str, Any]:
    """The result for machines; accuracies are fractions, of validation pictures."""
    tuning = tuned.tuning
    return {
        "folder": str(tuning.folder),
        "recipe": tuning.recipe.name,
        "data": tuning.settings["data"],
        "fingerprint": tuning.settings["fingerprint"],
        "epochs": tuning.recipe.training.epochs,
        "validation_pictures": _pictures(tuned),
        "best": _trial_json(tuned, tuned.best),
        "given": _trial_json(tuned, tuned.given) if tuned.given else None,
        "best_recipe": str(tuning.folder / BEST),
        "importances": tuned.importances,
        "trials": [_trial_json(tuned, trial) for trial in tuned.trials],
    }


def _trial_json(tuned: Tuned, trial: Trial) -> dict[str, Any]:
    record = {key: value for key, value in vars(trial).items() if key != "recipe"}
    record["values"] = {d.name: value_in(trial.recipe, d.name) for d in tuned.tuning.dimensions}
    if trial.state == "done" and trial.accuracy is not None:
        record["interval"] = asdict(wilson(round(trial.accuracy * _pictures(tuned)), _pictures(tuned)))
    return record


def improvement(tuned: Tuned) -> str:
    """What was gained, in a sentence that does not flatter."""
    best, given, pictures = tuned.best, tuned.given, _pictures(tuned)
    interval = wilson(round((best.accuracy or 0.0) * pictures), pictures)
    found = f"best: trial {best.number}, {best.accuracy:.2%} of {pictures} validation pictures"
    if best is given:
        return f"{found}: the recipe as it was; no trial beat it"
    before = f"{given.accuracy:.2%}" if given and given.accuracy is not None else "nothing"
    return (
        f"{found} (95% {interval.low:.2%} to {interval.high:.2%}); the recipe as it was reached {before}. "
        "Chosen by these pictures, so too good a figure: train it and see the test part"
    )


def _pictures(tuned: Tuned) -> int:
    return len(tuned.tuning.dataset.parts["val"])


def draw(tuned: Tuned) -> None:
    """The three figures; importances only where there are enough trials to tell."""
    from edgeclf.host import plots

    folder, tuning = tuned.tuning.folder, tuned.tuning
    with plots.drawing(folder / HISTORY) as figure:
        _history(figure, tuned.trials)
    if tuned.importances:
        with plots.drawing(folder / IMPORTANCES, height_in=0.3 * len(tuned.importances) + 0.9) as figure:
            _importances(figure, tuned.importances)
    with plots.drawing(folder / SLICES, 7.5, 1.8 * -(-len(tuning.dimensions) // ACROSS) + 0.2) as figure:
        _slices(figure, tuned)


def _history(figure: Any, trials: Sequence[Trial]) -> None:
    """Accuracy by trial, and the best so far."""
    axes = figure.subplots()
    best = list(itertools.accumulate((t.accuracy if t.state == "done" else None for t in trials), _better))
    axes.step(
        [t.number for t in trials], [a * 100 if a is not None else math.nan for a in best],
        where="post", color=COLOURS[0], lw=1.6, label="best so far",
    )  # fmt: skip
    _points(axes, trials, [t.number for t in trials])
    axes.set_title("validation accuracy, %")
    axes.set_xlabel("trial")
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=3)


def _better(one: float | None, other: float | None) -> float | None:
    return max((a for a in (one, other) if a is not None), default=None)


def _points(axes: Any, trials: Sequence[Trial], places: Sequence[Any]) -> None:
    """Finished trials are circles, those given up crosses, at the accuracy they had then."""
    for state, marker, colour, label in (("done", "o", COLOURS[0], "finished"), ("pruned", "x", COLOURS[1], "given up early")):
        some = [(x, t.accuracy * 100) for x, t in zip(places, trials, strict=True) if t.state == state and t.accuracy is not None]
        if some:
            axes.plot(*zip(*some, strict=True), marker, color=colour, label=label, markersize=5, markerfacecolor="none")


def _importances(figure: Any, importances: dict[str, float]) -> None:
    axes = figure.subplots()
    ranked = sorted(importances.items(), key=lambda entry: entry[1])
    axes.barh([name for name, _ in ranked], [share * 100 for _, share in ranked], color=COLOURS[0], height=0.6)
    axes.set_title("importance, %")
    axes.grid(False, axis="y")


def _slices(figure: Any, tuned: Tuned) -> None:
    """Accuracy against each value that was searched."""
    dimensions = tuned.tuning.dimensions
    grid = figure.subplots(-(-len(dimensions) // ACROSS), ACROSS, sharey=True, squeeze=False)
    for axes, dimension in zip(grid.flat, dimensions, strict=False):
        _slice(axes, dimension, tuned.trials)
    for axes in list(grid.flat)[len(dimensions) :]:
        axes.set_visible(False)
    figure.supylabel("validation accuracy, %", fontsize=9)


def _slice(axes: Any, dimension: Dimension, trials: Sequence[Trial]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values = [value_in(t.recipe, dimension.name) for t in trials]
    axes.set_title(dimension.name)
    if isinstance(dimension, Choice):
        kinds = sorted(set(values), key=_rank)
        _points(axes, trials, [kinds.index(value) for value in values])
        axes.set_xticks(range(len(kinds)), [_ends(value) for value in kinds])
        axes.margins(x=0.15)
        return
    shown = [t for t, value in zip(trials, values, strict=True) if value or not dimension.log]  # no nought on a log axis
    _points(axes, shown, [value_in(t.recipe, dimension.name) for t in shown])
    if dimension.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _rank(value: Value) -> tuple[float, str]:
    """For sorting: numbers, and widths by their sum, before words."""
    parts = str(value).split("-")
    return (sum(map(float, parts)), "") if all(part.replace(".", "", 1).isdecimal() for part in parts) else (math.inf, parts[0])


def _ends(value: Value) -> str:
    """16-32-64-80 → 16…80."""
    first, dash, rest = str(value).partition("-")
    return f"{first}…{rest.rpartition('-')[2]}" if dash else first
