"""Verbs that choose by training many times: tune searches for a better recipe, crossval measures one on every picture."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from edgeclf.cli.cluster import working
from edgeclf.cli.common import need_training, print_json, progress, say
from edgeclf.cli.options import Address, CpusPerTrial, Engine, GpusPerTrial, Json
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from edgeclf.core.recipe import Recipe
    from edgeclf.host.tune.crossval import CrossValidation, Fold
    from edgeclf.host.tune.study import Trial
    from edgeclf.host.tune.tune import Tuned, Tuning

SHOWN_TRIALS = 5  # beside each other, in 80 columns
PIPE_WIDTH = 160  # columns of a table that goes to no terminal

Model: TypeAlias = Annotated[
    str | None, typer.Argument(help="A recipe: a name that 'edgeclf models' lists, a .toml file, or path/to/file.py:build.")
]
Data: TypeAlias = Annotated[
    str | None, typer.Argument(help="A folder of class folders, a .zip, .tar or .npz, or digits, cifar10, cifar100.")
]
Resume: TypeAlias = Annotated[bool, typer.Option("--resume", help="Go on with the one in --out, or the newest one.")]
Settings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other value of the recipe, as training.ema=0.999."),
]
Weights: TypeAlias = Annotated[Path | None, typer.Option(help="A file of weights to start from.", show_default=False)]


def tune(
    model: Model = None,
    data: Data = None,
    trials: Annotated[int, typer.Option(help="Trials in all; the first is the recipe as it is.", min=1)] = 20,
    time: Annotated[
        float | None, typer.Option(metavar="MINUTES", help="End after so many minutes, also within a trial.", min=0.01)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the tuning.", show_default="runs/MODEL-DATA-tune")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of a trial; the best recipe gets the model's own back.", min=1)
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Do not search this, for instance width or batch_size; may be repeated."),
    ] = None,
    settings: Settings = None,
    weights: Weights = None,
    resume: Resume = False,
    engine: Engine = "local",
    address: Address = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    as_json: Json = False,
) -> None:
    """Search for a better recipe: learning rate, decay, optimiser, batch size, augmentation, label smoothing and width.

    Trials are judged by the validation pictures; test pictures are not looked at. The same command again goes on where it
    was interrupted, with either engine. Writes best.toml, trials.csv and figures. A wider network also costs more: --keep
    width compares equals.

    Example: edgeclf tune compact photos/ --trials 30 --time 60 --epochs 15
    """
    need_training("tune")
    from edgeclf.host.tune import tune as stage

    with working(engine, address, cpus_per_trial, gpus_per_trial) as workers:
        with progress("reading pictures") as report:
            if _resuming(resume, model, data, epochs, keep, settings, weights):
                tuning = stage.resume(out, report, say, progress)
            else:
                options, recipe = _options(weights), _recipe(model, settings)
                tuning = stage.start(recipe, str(data), out, epochs, keep or (), options, report, say, progress)
        _describe(tuning)
        try:
            with progress("epochs of all trials" if workers else "trial") as on_epoch:
                tuned = stage.tune(
                    tuning, trials, time, lambda trial, found: _trial_line(trial, found, trials), on_epoch, workers
                )
        except KeyboardInterrupt:
            say(f"{tuning.folder}: finished trials are kept; the same command goes on, or: {_again('tune', tuning.folder)}")
            raise
    if as_json:
        from edgeclf.host.tune.files import result_json

        print_json(result_json(tuned))
    else:
        _print_tuned(tuned, trials)


def crossval(
    model: Model = None,
    data: Data = None,
    folds: Annotated[int, typer.Option(help="Trainings, each scored on the pictures it did not see.", min=2, max=50)] = 5,
    out: Annotated[Path | None, typer.Option(help="Folder for the result.", show_default="runs/MODEL-DATA-crossval")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures of each fold.", min=1)] = None,
    settings: Settings = None,
    weights: Weights = None,
    resume: Resume = False,
    engine: Engine = "local",
    address: Address = None,
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    as_json: Json = False,
) -> None:
    """Train on K folds in turn and answer every picture by the network that did not see it.

    Folds are stratified, and equal pictures lie in the same one. Where the data has a test folder, folds are made of the
    other pictures and the test pictures are not touched. The same command again goes on where it was interrupted, with either
    engine; on Ray a fold is what a trial is.

    Example: edgeclf crossval compact photos/ --folds 5 --epochs 30
    """
    need_training("crossval")
    from edgeclf.core.recipe import override
    from edgeclf.host.tune import crossval as stage

    with working(engine, address, cpus_per_trial, gpus_per_trial) as workers:
        with progress("reading pictures") as report:
            if _resuming(resume, model, data, epochs, settings, weights):
                plan = stage.resume(out, report, say, progress)
            else:
                recipe = override(_recipe(model, settings), training__epochs=epochs)
                plan = stage.start(recipe, str(data), folds, out, _options(weights), report, say, progress)
        untouched = len(plan.dataset.parts["test"])
        say(
            f"{plan.folder}: {plan.recipe.name} on {len(plan.dataset.parts['train'])} pictures in {plan.folds} folds"
            + (f"; the {untouched} pictures of the test folder are not touched" if untouched else "")
        )
        try:
            with progress("epochs of all folds") as on_epoch:
                found = stage.crossvalidate(plan, lambda fold: _fold_line(fold, plan.folds), on_epoch, workers)
        except KeyboardInterrupt:
            say(f"{plan.folder}: finished folds are kept; the same command goes on, or: {_again('crossval', plan.folder)}")
            raise
    if as_json:
        print_json(found.to_json())
    else:
        _print_crossval(found)


def _resuming(resume: bool, model: str | None, data: str | None, *others: object) -> bool:
    """Whether --resume was given, and nothing that would contradict what the folder says."""
    if resume and (model or data or any(others)):
        raise ConfigError("--resume goes on with what the folder says; leave MODEL, DATA and their options out")
    if not resume and not (model and data):
        raise ConfigError("give MODEL and DATA, as in: edgeclf tune compact photos/ (or --resume)")
    return resume


def _recipe(model: str | None, settings: Sequence[str] | None) -> Recipe:
    from edgeclf.core.recipe import load_recipe, override_by_text
    from edgeclf.host.train import custom

    known = custom.recipe(str(model)) if custom.is_spec(str(model)) else load_recipe(str(model))
    return override_by_text(known, settings or ())


def _options(weights: Path | None) -> Any:
    from edgeclf.host.train.fitting import Options

    return Options(weights=str(weights.resolve()) if weights else "")


def _again(verb: str, folder: Path) -> str:
    return f"edgeclf {verb} --resume --out {shlex.quote(str(folder))}"


def _describe(tuning: Tuning) -> None:
    parts = tuning.dataset.parts
    say(
        f"{tuning.folder}: {tuning.recipe.name}, {_epochs(tuning.recipe.training.epochs)} a trial, the first as the recipe is; "
        f"{len(parts['train'])} pictures to train on, {len(parts['val'])} to judge by; "
        f"searching {', '.join(d.name for d in tuning.dimensions)}"
    )


def _trial_line(trial: Trial, found: Sequence[Trial], trials: int) -> None:
    from edgeclf.host.tune.tune import best_of

    best = best_of(found)
    so_far = f"  best {best.accuracy:.2%} (trial {best.number})" if best and best.accuracy is not None else ""
    what = {"done": "val", "pruned": "given up at val", "failed": f"failed: {trial.reason}"}[trial.state]
    reached = f" {trial.accuracy:.2%}" if trial.accuracy is not None else ""
    after = "" if trial.state == "done" else f" after {_epochs(trial.epochs)}"
    say(f"trial {trial.number}/{trials}  {what}{reached}{after}  {trial.seconds:.1f} s{so_far}")


def _print_tuned(tuned: Tuned, trials: int) -> None:
    from edgeclf.host.tune.files import BEST, SLICES, improvement
    from edgeclf.host.tune.search_space import value_in

    ranked = sorted(tuned.trials, key=lambda t: (t.state != "done", -(t.accuracy or 0.0), t.number))[:SHOWN_TRIALS]
    table = _table("the best trials", "trial", *(str(t.number) for t in ranked))
    table.add_row("validation, %", *(f"{t.accuracy * 100:.2f}" if t.accuracy is not None else t.state for t in ranked))
    table.add_row("parameters", *(f"{t.parameters:,}" for t in ranked))
    for dimension in tuned.tuning.dimensions:
        table.add_row(dimension.name, *(_shown(value_in(t.recipe, dimension.name)) for t in ranked))
    _show(table)
    folder = tuned.tuning.folder
    print(improvement(tuned))
    if len(tuned.trials) < trials:
        print(f"{len(tuned.trials)} of {trials} trials were done in this time; the same command goes on")
    print(f"trials, figures: {folder}/trials.csv, {folder}/{SLICES} and others")
    given = tuned.tuning.settings["options"]["weights"]
    weights = f" --weights {shlex.quote(given)}" if given else ""
    print(f"next: edgeclf train {shlex.quote(str(folder / BEST))} {shlex.quote(tuned.tuning.settings['data'])}{weights}")


def _shown(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _fold_line(fold: Fold, folds: int) -> None:
    say(f"fold {fold.number}/{folds}  {fold.top1:.2%} of {fold.pictures} pictures  {_epochs(fold.epochs)}  {fold.seconds:.1f} s")


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def _print_crossval(found: CrossValidation) -> None:
    from edgeclf.core.results import wilson
    from edgeclf.host.tune.crossval import PREDICTIONS

    table = _table("each fold, by the network that did not see it", "fold", "top-1, %", "95%", "pictures", "trained on", "epochs")
    for fold in found.folds:
        interval = wilson(fold.right, fold.pictures)
        spread = f"{interval.low * 100:.2f} to {interval.high * 100:.2f}"
        cells = f"{fold.top1 * 100:.2f}", spread, f"{fold.pictures:,}", f"{fold.trained_on:,}", str(fold.epochs)
        table.add_row(str(fold.number), *cells)
    _show(table)
    mean, pooled = found.mean, found.pooled
    print(
        f"mean {mean.top1:.2%} (95% {mean.interval.low:.2%} to {mean.interval.high:.2%}, t over {len(found.folds)} folds; "
        f"standard deviation {mean.deviation * 100:.2f} points)"
    )
    print("  too narrow an interval: the folds share training pictures (Bengio and Grandvalet 2004)")
    print(
        f"all {pooled.pictures:,} pictures: {pooled.top1:.2%} (95% {pooled.top1_interval.low:.2%} to "
        f"{pooled.top1_interval.high:.2%}, Wilson)"
    )
    print(f"  of these {len(found.folds)} networks on pictures like these; another training set may differ more")
    if untouched := len(found.plan.dataset.parts["test"]):
        print(f"the {untouched:,} pictures of the test folder were not touched")
    print(f"answers: {found.plan.folder / PREDICTIONS}")


def _table(title: str, first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(first, title=title, title_justify="left")
    for head in others:
        table.add_column(head, justify="right")
    return table


def _show(table: Table) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)).print(table)
