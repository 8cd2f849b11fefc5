"""The verb evaluate: accuracy, calibration and, where asked for, curves of a file or of a run's full model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import console, print_json, progress, say
from edgeclf.cli.options import Json, Labels, Normalize, pair
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from edgeclf.core.calibrate import Calibration
    from edgeclf.core.results import Accuracy
    from edgeclf.runtime.accuracy import Evaluation

MOST_CLASSES_IN_MATRIX = 20
MIXUPS_IN_LINE = 5


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="FILE|RUN", help="An exported file, or a run for its full model.", show_default=False)
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            help="A folder of class folders, a .zip, .tar or .npz, or digits, cifar10, cifar100.", show_default="the run's own"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take only so many pictures, evenly spread.", min=1)] = None,
    workers: Annotated[int | None, typer.Option(help="Pictures answered at once.", min=1, show_default="one a core")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the interpreter in each worker.", min=1)] = 1,
    labels: Labels = None,
    normalize: Normalize = None,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Draw ROC, precision-recall, reliability and confusion there, with curves.json."),
    ] = None,
    adversarial: Annotated[
        bool, typer.Option("--adversarial", help="Attack the pictures of a run first (PGD), and measure what is left.")
    ] = False,
    epsilon: Annotated[
        float | None, typer.Option(help="Largest change of a pixel, of 255.", show_default="the run's, else 8", min=0, max=128)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy and calibration on held-out pictures: the test split where DATA has one.

    Prints top-1 with its 95% interval, averages, how honest the probabilities are (ECE), precision, recall and F1 of each
    class, what the limits in the model card leave, and the confusion matrix.

    Example: edgeclf evaluate runs/photos/photos-int8.tflite photos/
    """
    if plots:
        from edgeclf.host.understand.curves import need_packages

        need_packages()
    if adversarial and not model.is_dir():
        raise ConfigError(f"{model}: an attack follows the network's gradient, which a file has not; give the run folder")
    if epsilon is not None and not adversarial:
        raise ConfigError("--epsilon is for --adversarial; give both, or neither")
    if model.is_dir() and model.suffix != ".mlpackage":
        which, runtime, found = _evaluate_run(model, data, limit, adversarial, epsilon)
    else:
        which, runtime, found = evaluate_file(model, data, limit, workers, threads, labels, normalize)
    areas = None
    if plots:
        from edgeclf.host.understand.curves import write

        areas = write(found, plots).areas()
    data = data or str(found.source)
    if as_json:
        print_json({**_evaluation_json(str(model), data, which, runtime, found), **({"curves": areas} if areas else {})})
    else:
        _print_evaluation(str(model), data, which, runtime, found)
        if areas and areas["macro"]:
            print(
                "area under the curves, mean of the classes: ROC {auc:.4f}, PR {average_precision:.4f}".format(**areas["macro"])
            )
            print(f"drawn in {plots}")


def _evaluate_run(
    run: Path, data: str | None, limit: int | None, adversarial: bool, epsilon: float | None
) -> tuple[str, str, Evaluation]:
    from edgeclf.host.full_model import open_full
    from edgeclf.host.run import open_run
    from edgeclf.host.understand.evaluation import evaluate_run, pictures, plain
    from edgeclf.runtime.accuracy import held_out, limited

    opened = open_run(run)
    catalogue = pictures(data, opened, run)
    indices, which = held_out(catalogue, opened.card)
    full = open_full(opened)
    answer = plain(full.infer)
    if adversarial:
        from edgeclf.host.train.adversarial import answering_attacked, described, section_of

        section = section_of(opened.recipe, epsilon)
        answer, which = answering_attacked(opened.model(), section), f"{which}, {described(section)}"
    with progress(f"evaluating {run}") as report:
        found = evaluate_run(opened, catalogue, limited(indices, limit), report, answer)
    return which, full.runtime, found


def evaluate_file(
    file: Path,
    data: str | None,
    limit: int | None,
    workers: int | None,
    threads: int,
    labels: Path | None,
    normalize: str | None,
) -> tuple[str, str, Evaluation]:
    """In words which pictures were answered, the runtime, and how an exported file did."""
    from edgeclf.host.data.reading import prepared_for
    from edgeclf.host.understand.evaluation import home_of, pictures
    from edgeclf.runtime.accuracy import evaluate, held_out, limited
    from edgeclf.runtime.classifier import Classifier

    classifier = Classifier.load(file, threads, labels, pair(normalize) if normalize else None)
    catalogue = prepared_for(pictures(data, home_of(file, classifier.card), file), classifier.card.image)
    indices, which = held_out(catalogue, classifier.card)
    with progress(f"evaluating {file.name}") as report:
        found = evaluate(classifier, catalogue, limited(indices, limit), workers, report, threads)
    return which, classifier.engine.runtime, found


def _evaluation_json(model: str, data: str, which: str, runtime: str, found: Evaluation) -> dict[str, Any]:
    from edgeclf.core.results import top_k

    answered = found.answered
    return {
        "file": model,
        "data": data,
        "pictures": which,
        "runtime": runtime,
        "accuracy": found.accuracy.to_json(),
        "top_k": {str(k): share for k, share in enumerate(top_k(found.scores, found.truth), 1)},
        "mixed_up_most": [asdict(mixup) for mixup in found.accuracy.mixups()],
        "calibration": asdict(found.calibration),
        "thresholds": list(found.card.thresholds),
        "unknown": asdict(found.card.unknown) if found.card.unknown else None,
        "with_thresholds": {**asdict(answered), "coverage": answered.coverage} if answered else None,
        "skipped": [{"picture": name, "reason": reason} for name, reason in found.skipped],
    }


def _print_evaluation(model: str, data: str, which: str, runtime: str, found: Evaluation) -> None:
    accuracy, table_of = found.accuracy, console()
    low, high = accuracy.top1_interval.low, accuracy.top1_interval.high
    print(f"{model} on {data}: {which}")
    print(f"{accuracy.pictures} pictures, {runtime}")
    print(f"top-1 {accuracy.top1:.2%} (95% interval {low:.2%} to {high:.2%}), {_top_k(found)}top-5 {accuracy.top5:.2%}")
    trust = found.calibration
    print(
        f"calibration: ECE {trust.ece:.4f}, NLL {trust.nll:.4f}, Brier {trust.brier:.4f}; "
        f"{trust.confidence:.2%} sure on average, temperature {trust.temperature:.3g}"
    )
    _print_classes(table_of, accuracy)
    _print_reliability(table_of, trust)
    _print_answered(table_of, found)
    _print_confusion(table_of, accuracy)
    for name, reason in found.skipped[:10]:
        say(f"skipped: {reason if name in reason else f'{name}: {reason}'}")
    if len(found.skipped) > 10:
        say(f"skipped: {len(found.skipped) - 10} more unreadable pictures")


def _top_k(found: Evaluation) -> str:
    """Top-2 and top-3, where there are classes enough for them to say something."""
    from edgeclf.core.results import top_k

    shares = top_k(found.scores, found.truth, 3)
    return "".join(f"top-{k} {shares[k - 1]:.2%}, " for k in (2, 3) if k < len(found.card.labels))


def _print_classes(console: Console, accuracy: Accuracy) -> None:
    from rich.table import Table

    table = Table("class", title="per class", title_justify="left")
    for head in ("pictures", "precision", "recall", "F1"):
        table.add_column(head, justify="right")
    for row in accuracy.per_class:
        table.add_row(row.label, str(row.pictures), f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}")
    table.add_section()
    for name, mean in accuracy.averages.items():
        table.add_row(f"{name} average", str(accuracy.pictures), f"{mean.precision:.3f}", f"{mean.recall:.3f}", f"{mean.f1:.3f}")
    console.print(table)


def _print_reliability(console: Console, trust: Calibration) -> None:
    from rich.table import Table

    table = Table("confidence", title="reliability: how often an answer this sure is right", title_justify="left")
    for head in ("pictures", "mean confidence", "share right"):
        table.add_column(head, justify="right")
    for b in trust.bins:
        table.add_row(f"{b.low:.3f} to {b.high:.3f}", str(b.pictures), f"{b.confidence:.3f}", f"{b.accuracy:.3f}")
    console.print(table)


def _print_answered(console: Console, found: Evaluation) -> None:
    """What the limits in the card leave; nothing when there are none."""
    from rich.table import Table

    answered = found.answered
    if answered is None:
        return
    interval = answered.top1_interval
    table = Table("class", title="under the limits of the model card", title_justify="left")
    for head in ("threshold", "precision", "recall", "F1"):
        table.add_column(head, justify="right")
    for limit, row in zip(found.card.thresholds or [0.0] * len(answered.per_class), answered.per_class, strict=True):
        table.add_row(row.label, f"{limit:.6g}", f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}")
    console.print(table)
    print(
        f"{answered.coverage:.2%} of the pictures get an answer, {answered.top1:.2%} of which are right "
        f"(95% interval {interval.low:.2%} to {interval.high:.2%}); the others are 'unknown'"
    )
    if rule := found.card.unknown:
        print(f"unknown below {rule.by} {rule.limits[rule.by]:.6g}")


def _print_confusion(console: Console, accuracy: Accuracy) -> None:
    """The matrix, or for many classes the pairs that are mixed up most."""
    from rich.table import Table

    labels = [row.label for row in accuracy.per_class]
    if len(labels) <= MOST_CLASSES_IN_MATRIX:
        table = Table("is \\ called", *labels, title="confusion: rows are what the pictures show", title_justify="left")
        for label, row in zip(labels, accuracy.confusion, strict=True):
            table.add_row(label, *(str(count) if count else "·" for count in row))
    else:
        table = Table("is", "was called", "pictures", title="mixed up most", title_justify="left")
        for mixup in accuracy.mixups():
            table.add_row(mixup.truth, mixup.answer, str(mixup.pictures))
    console.print(table)
    if len(labels) <= MOST_CLASSES_IN_MATRIX:
        worst = ", ".join(f"{mixup.truth} → {mixup.answer} {mixup.pictures}" for mixup in accuracy.mixups(MIXUPS_IN_LINE))
        print(f"mixed up most: {worst or 'nothing'}")
