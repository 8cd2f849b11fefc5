"""Verbs that answer with a deployable file and measure it: predict, evaluate, bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import print_json, progress, say
from edgeclf.cli.options import File, Json, Labels, Normalize, pair
from edgeclf.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.console import Console

    from edgeclf.core.results import Accuracy, Latency
    from edgeclf.runtime.accuracy import Evaluation
    from edgeclf.runtime.classifier import Classifier
    from edgeclf.runtime.latency import Bench

MOST_CLASSES_IN_MATRIX = 20
PIPE_WIDTH = 160  # columns of a table that goes to no terminal


def predict(
    file: File,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, or folders of them.", show_default=False)],
    top: Annotated[int, typer.Option(help="How many classes to name.", min=1)] = 3,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the interpreter.", min=1, show_default="what suits the net")
    ] = None,
    labels: Labels = None,
    normalize: Normalize = None,
    as_json: Json = False,
) -> None:
    """Say what is on pictures. A picture that cannot be read is named, the others are answered; exit code 5 then.

    Example: edgeclf predict runs/photos/photos-int8.tflite holiday.jpg --top 3
    """
    from edgeclf.runtime.classifier import Classifier

    classifier = Classifier.load(file, threads, labels, pair(normalize) if normalize else None)
    answers = []
    for image in _pictures(images):
        answer = _answer(classifier, image, top)
        answers.append(answer)
        if not as_json:
            _print_answer(answer)
    if as_json:
        print_json({"file": str(file), "images": answers})
    if any("error" in answer for answer in answers):
        raise typer.Exit(DataError.exit_code)


def evaluate(
    file: File,
    data: Annotated[
        str,
        typer.Argument(help="A folder of class folders, a .zip, .tar or .npz, or digits, cifar10, cifar100.", show_default=False),
    ],
    limit: Annotated[int | None, typer.Option(help="Take only so many pictures, evenly spread.", min=1)] = None,
    workers: Annotated[int | None, typer.Option(help="Pictures answered at once.", min=1, show_default="one a core")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the interpreter in each worker.", min=1)] = 1,
    labels: Labels = None,
    normalize: Normalize = None,
    as_json: Json = False,
) -> None:
    """Measure accuracy on held-out pictures: the test split where DATA has one.

    Prints top-1 with its 95% interval, top-5, precision, recall and F1 of each class, and the confusion matrix.

    Example: edgeclf evaluate runs/photos/photos-int8.tflite photos/
    """
    from edgeclf.host.data import open_catalogue
    from edgeclf.runtime.accuracy import evaluate as stage
    from edgeclf.runtime.accuracy import held_out, limited
    from edgeclf.runtime.classifier import Classifier

    classifier = Classifier.load(file, threads, labels, pair(normalize) if normalize else None)
    catalogue = open_catalogue(data)
    indices, which = held_out(catalogue, classifier.card)
    indices = limited(indices, limit)
    with progress(f"evaluating {file.name}") as report:
        found = stage(classifier, catalogue, indices, workers, report, threads)
    if as_json:
        print_json(_evaluation_json(file, data, which, classifier.engine.runtime, found))
    else:
        _print_evaluation(file, data, which, classifier.engine.runtime, found)


def bench(
    file: File,
    threads: Annotated[
        str, typer.Option(metavar="N|sweep", help="Threads of the interpreter, or 'sweep' for 1 to all cores.")
    ] = "sweep",
    seconds: Annotated[float, typer.Option(help="Time to measure for, all settings together.", min=0.2)] = 4.0,
    labels: Labels = None,
    normalize: Normalize = None,
    as_json: Json = False,
) -> None:
    """Measure latency, cold start, memory and size of a file on this machine.

    Latency is of single pictures, after warm-up: of the network alone, and from a 640x480 frame to its label.

    Example: edgeclf bench runs/photos/photos-int8.tflite --threads sweep
    """
    from edgeclf.runtime import latency

    wanted = None if threads == "sweep" else [_count(threads)]
    with progress(f"timing {file.name}") as report:
        found = latency.bench(
            file, wanted, str(labels) if labels else None, pair(normalize) if normalize else None, seconds, report
        )
    if as_json:
        print_json(found.to_json())
    else:
        _print_bench(found)


def _count(threads: str) -> int:
    if not threads.isdecimal() or int(threads) < 1:
        raise ConfigError(f"--threads {threads}: expected a number from 1, or sweep")
    return int(threads)


def _pictures(images: list[Path]) -> list[Path]:
    """The pictures that were named, and those in folders that were; hidden ones left out, as everywhere."""
    found: list[Path] = []
    for image in images:
        inside = sorted(p for p in image.rglob("*") if _is_picture(p)) if image.is_dir() else [image]
        if not inside:
            raise DataError(f"{image}: no pictures in this folder")
        found += inside
    return found


def _is_picture(path: Path) -> bool:
    from edgeclf.core.image import EXTENSIONS

    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _answer(classifier: Classifier, image: Path, top: int) -> dict[str, Any]:
    from edgeclf.core.image import read_picture

    try:
        predictions = classifier.classify(read_picture(image), top)
    except DataError as error:
        return {"image": str(image), "error": str(error)}
    return {"image": str(image), "predictions": [{"label": p.label, "score": round(p.score, 6)} for p in predictions]}


def _print_answer(answer: dict[str, Any]) -> None:
    if "error" in answer:
        say(f"edgeclf: {answer['error']}")
        return
    named = ", ".join(f"{p['label']} {p['score']:.1%}" for p in answer["predictions"])
    print(f"{answer['image']}: {named}")


def _evaluation_json(file: Path, data: str, which: str, runtime: str, found: Evaluation) -> dict[str, Any]:
    return {
        "file": str(file),
        "data": data,
        "pictures": which,
        "runtime": runtime,
        "accuracy": found.accuracy.to_json(),
        "skipped": [{"picture": name, "reason": reason} for name, reason in found.skipped],
    }


def _print_evaluation(file: Path, data: str, which: str, runtime: str, found: Evaluation) -> None:
    accuracy, console = found.accuracy, _console()
    low, high = accuracy.top1_interval.low, accuracy.top1_interval.high
    print(f"{file} on {data}: {which}")
    print(f"{accuracy.pictures} pictures, {runtime}")
    print(f"top-1 {accuracy.top1:.2%} (95% interval {low:.2%} to {high:.2%}), top-5 {accuracy.top5:.2%}")
    _print_classes(console, accuracy)
    _print_confusion(console, accuracy)
    for name, reason in found.skipped[:10]:
        say(f"skipped: {reason if name in reason else f'{name}: {reason}'}")
    if len(found.skipped) > 10:
        say(f"skipped: {len(found.skipped) - 10} more unreadable pictures")


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def _print_classes(console: Console, accuracy: Accuracy) -> None:
    from rich.table import Table

    table = Table("class", title="per class", title_justify="left")
    for head in ("pictures", "precision", "recall", "F1"):
        table.add_column(head, justify="right")
    for row in accuracy.per_class:
        table.add_row(row.label, str(row.pictures), f"{row.precision:.3f}", f"{row.recall:.3f}", f"{row.f1:.3f}")
    console.print(table)


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
        for count, i, j in _worst(accuracy.confusion):
            table.add_row(labels[i], labels[j], str(count))
    console.print(table)


def _worst(confusion: tuple[tuple[int, ...], ...], most: int = 20) -> list[tuple[int, int, int]]:
    wrong = [(count, i, j) for i, row in enumerate(confusion) for j, count in enumerate(row) if i != j and count]
    return sorted(wrong, key=lambda entry: (-entry[0], entry[1], entry[2]))[:most]


def _print_bench(found: Bench) -> None:
    from rich.table import Table

    machine, cold = found.machine, found.cold
    print(f"{found.file}: {found.size.file_bytes:,} bytes, {found.size.gzip_bytes:,} gzipped")
    print(f"{machine.cpu}, {machine.cores} cores, {machine.system}, Python {machine.python}, {found.runtime}")
    table = Table("threads", title="milliseconds, after warm-up", title_justify="left")
    for head in ("network p50", "p90", "p99", "frame to label p50", "p90", "p99"):
        table.add_column(head, justify="right")
    for timing in found.timings:
        table.add_row(str(timing.threads), *_milliseconds(timing.invoke), *_milliseconds(timing.frame))
    _console().print(table)
    print(f"cold start: {cold.imports_ms:.0f} ms to import, {cold.load_ms:.0f} ms to load, {cold.first_ms:.1f} ms for a frame")
    print(
        f"peak memory {cold.peak_bytes / 2**20:.0f} MB, of which {cold.imports_bytes / 2**20:.0f} MB before the file was opened"
    )
    if len(found.timings) > 1:
        print(f"best: --threads {found.best}")
    if machine.load > machine.cores:
        say(f"warning: the machine was busy (load {machine.load:.1f} on {machine.cores} cores), so these figures are too high")
    if machine.throttled:
        say("warning: the board is throttled by heat or a weak supply, so these figures are too high")


def _milliseconds(latency: Latency) -> list[str]:
    return [f"{value:.3f}" for value in (latency.p50_ms, latency.p90_ms, latency.p99_ms)]
