"""Verbs that answer with a deployable file and time it: predict, bench."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import console, pictures_in, print_json, progress, say
from edgeclf.cli.options import File, Json, Labels, Normalize, pair
from edgeclf.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edgeclf.core.results import Latency
    from edgeclf.host.report.emulate import Count
    from edgeclf.runtime.classifier import Classifier
    from edgeclf.runtime.latency import Bench


class Board(StrEnum):
    """The choices of --emulate."""

    pi4 = "pi4"
    pi5 = "pi5"


def predict(
    file: File,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, or folders of them.", show_default=False)],
    top: Annotated[int, typer.Option(help="How many classes to name.", min=1)] = 3,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the interpreter.", min=1, show_default="what suits the net")
    ] = None,
    labels: Labels = None,
    normalize: Normalize = None,
    ignore_thresholds: Annotated[
        bool, typer.Option("--no-thresholds", help="Name the likeliest class, whatever the limits in the model card say.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is on pictures. A picture that cannot be read is named, the others are answered; exit code 5 then.

    Where the likeliest class stays below the limits in the model card, the answer is 'unknown'.

    Example: edgeclf predict runs/photos/photos-int8.tflite holiday.jpg --top 3
    """
    from edgeclf.runtime.classifier import Classifier

    classifier = Classifier.load(file, threads, labels, pair(normalize) if normalize else None)
    answers = []
    for image in pictures_in(images):
        answer = _answer(classifier, image, top, ignore_thresholds)
        answers.append(answer)
        if not as_json:
            _print_answer(answer)
    if as_json:
        print_json({"file": str(file), "images": answers})
    if any("error" in answer for answer in answers):
        raise typer.Exit(DataError.exit_code)


def bench(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="Exported models, NAME-int8.tflite, or what 'edgeclf models' calls ready.", show_default=False
        ),
    ],
    threads: Annotated[
        str,
        typer.Option(
            metavar="N|sweep|auto", help="Threads of the interpreter; 'sweep' for 1 to all cores, 'auto' for what 'run' takes."
        ),
    ] = "sweep",
    seconds: Annotated[float, typer.Option(help="Time to measure each file for, all settings together.", min=0.2)] = 4.0,
    device_report: Annotated[
        Path | None,
        typer.Option(metavar="OUT.json", help="Write all that was measured, each stage too, for 'edgeclf report --add'."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Measure accuracy too, on held-out pictures, for --device-report.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take only so many pictures of --data, evenly spread.", min=1)] = None,
    emulate: Annotated[
        list[Board] | None, typer.Option(help="Also count instructions on this board, emulated; a count is no latency.")
    ] = None,
    labels: Labels = None,
    normalize: Normalize = None,
    as_json: Json = False,
) -> None:
    """Measure latency, cold start, memory and size of files on this machine.

    Latency is of single pictures, after warm-up: of the network alone, and from a 640x480 frame to its label.

    Example: edgeclf bench runs/photos/photos-int8.tflite --threads sweep
    """
    from edgeclf.runtime import shipped

    if data and not device_report:
        raise ConfigError("--data is for --device-report; or measure accuracy alone with: edgeclf evaluate FILE DATA")
    paths = [shipped.resolve(file) for file in files]
    if len({path.name for path in paths}) < len(paths):
        raise ConfigError("two of the files have the same name, so nobody could tell their figures apart")
    counts = {path: _instructions(path, emulate) if emulate else [] for path in paths}
    found: dict[Path, Bench] = {}

    def timed(path: Path) -> Bench:
        found[path] = _timed(path, threads, seconds, labels, normalize)
        if not as_json:
            _print_bench(found[path])
            for counted in counts[path]:
                print(_counted(counted))
        return found[path]

    if device_report:
        _write_device_report(device_report, paths, timed, data, limit, labels, normalize)
    else:
        for path in paths:
            timed(path)
    if as_json:
        answers = [{**found[p].to_json(), **({"emulated": [c.to_json() for c in counts[p]]} if emulate else {})} for p in paths]
        print_json(answers[0] if len(answers) == 1 else {"files": answers})


def _timed(path: Path, threads: str, seconds: float, labels: Path | None, normalize: str | None) -> Bench:
    from edgeclf.runtime import latency

    given = pair(normalize) if normalize else None
    wanted = None if threads == "sweep" else [_count(threads, path, labels, normalize)]
    with progress(f"timing {path.name}") as report:
        return latency.bench(path, wanted, str(labels) if labels else None, given, seconds, report)


def _write_device_report(
    out: Path,
    paths: list[Path],
    timed: Callable[[Path], Bench],
    data: str | None,
    limit: int | None,
    labels: Path | None,
    normalize: str | None,
) -> None:
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; name a file in it, as {out / 'out.json'}")
    from edgeclf.cli.evaluate import evaluate_file
    from edgeclf.core.files import write_json
    from edgeclf.runtime.device.device_report import Answered, measure

    def answered(path: Path) -> Answered | None:
        if data is None:
            return None
        which, _, found = evaluate_file(path, data, limit, None, 1, labels, normalize)
        accuracy = found.accuracy
        return Answered(accuracy.top1, accuracy.top1_interval, accuracy.pictures, Path(data).name, which)

    report = measure(paths, timed, answered, labels, pair(normalize) if normalize else None)
    write_json(out, report.to_json())
    for file in report.files:
        if file.accuracy:
            say(f"{file.file}: top-1 {file.accuracy.top1:.2%} of {file.accuracy.pictures} pictures")
    if report.throttled:
        say(f"warning: throttled meanwhile ({', '.join(report.throttled)}), so these figures are too high; the report says so")
    say(f"device report: {out}; on the training machine: edgeclf report RUN --add {out.name}")


def _instructions(file: Path, boards: list[Board]) -> list[Count]:
    """Counted before anything is timed, so that a missing emulator is told at once."""
    from edgeclf.host.report import emulate
    from edgeclf.runtime.classifier import read_file

    bundle, home = read_file(file), emulate.default_home()
    with progress("counting instructions") as report:
        counts = []
        for number, board in enumerate(dict.fromkeys(boards)):
            report(number, len(boards))
            counts.append(emulate.count(bundle, board.value, home))
    return counts


def _counted(count: Count) -> str:
    from edgeclf.host.report.emulate import NAMES

    same = "the same bits as here" if count.identical else f"logits differ from those here by up to {count.largest_difference:g}"
    figure = f"{count.instructions:,} instructions for one inference, one thread (a count, not a latency)"
    return f"emulated {NAMES[count.device]}: {figure}; {same}"


def _count(threads: str, path: Path, labels: Path | None, normalize: str | None) -> int:
    if threads == "auto":
        from edgeclf.runtime.device.threads import load_measured

        choice = load_measured(path, None, labels, pair(normalize) if normalize else None)[1]
        say(str(choice))
        return choice.threads
    if not threads.isdecimal() or int(threads) < 1:
        raise ConfigError(f"--threads {threads}: expected a number from 1, or sweep, or auto")
    return int(threads)


def _answer(classifier: Classifier, image: Path, top: int, ignore_thresholds: bool) -> dict[str, Any]:
    from edgeclf.core.image import read_picture
    from edgeclf.runtime.decision import UNKNOWN

    try:
        predictions, known = classifier.judge(read_picture(image), top)
    except DataError as error:
        return {"image": str(image), "error": str(error)}
    accepted = ignore_thresholds or known
    return {
        "image": str(image),
        "answer": predictions[0].label if accepted else UNKNOWN,
        "accepted": accepted,
        "predictions": [{"label": p.label, "score": round(p.score, 6)} for p in predictions],
    }


def _print_answer(answer: dict[str, Any]) -> None:
    if "error" in answer:
        say(f"edgeclf: {answer['error']}")
        return
    named = ", ".join(f"{p['label']} {p['score']:.1%}" for p in answer["predictions"])
    print(f"{answer['image']}: {named}" if answer["accepted"] else f"{answer['image']}: {answer['answer']} ({named})")


def _print_bench(found: Bench) -> None:
    from rich.table import Table

    machine, cold = found.machine, found.cold
    print(f"{found.file}: {found.size.file_bytes:,} bytes, {found.size.gzip_bytes:,} gzipped")
    units = "".join(f", {unit}" for unit in machine.vector_units)
    print(f"{machine.cpu}, {machine.cores} cores{units}, {machine.system}, Python {machine.python}, {found.runtime}")
    table = Table("threads", title="milliseconds, after warm-up", title_justify="left")
    for head in ("network p50", "p90", "p99", "frame to label p50", "p90", "p99"):
        table.add_column(head, justify="right")
    for timing in found.timings:
        table.add_row(str(timing.threads), *_milliseconds(timing.invoke), *_milliseconds(timing.frame))
    console().print(table)
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
