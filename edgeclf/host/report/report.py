"""The report: every exported file of a run measured beside its full model, written as report.html, report.json, report.md.

`report.json` is one object; shares are fractions, times milliseconds, sizes bytes, and nothing in it is NaN:

    edgeclf_report   1, the version of this layout
    run recipe data fingerprint created parameters pictures labels versions
    machine          {cpu, cores, system, python, load, throttled, vector_units} (runtime.latency.Machine)
    full             a MODEL: the float Keras model run by TensorFlow, or what an import has in its place
    variants         list of MODEL with, besides:
        io               type of the input and output tensors
        precision        scheme found in the tensors; named_right: whether the file's name claims the same
        against_full     drop, interval {low, high}, lost, won, total, p_value (core.results.PairedDrop); agreement,
                         agreement_interval, largest_logit_difference; classes: list of {label, pictures, before, after,
                         change, lost, won, significant}; negative_flips: list of {picture, truth, answer, full_confidence}
        speedup_over_full, speedup_over_float32 (or null)    {factor, interval, measurable}
    unusable         list of {file, reason}
    boards           list of {name, variants, report}: what `report --add` was given (runtime.device_report.DeviceReport)
    emulated         list of {device, name, instructions by variant}: what `report --emulate` counted; no latency
    recommendation   {variant (or null), sentence, remarks}

    MODEL: name file runtime threads; size {file_bytes, gzip_bytes}; memory {process_bytes, model_bytes} or null;
    accuracy {top1, top5, top1_interval, top5_interval, pictures, per_class, confusion};
    latency {p50_ms, p90_ms, p99_ms, p25_ms, p75_ms, runs, rounds_ms}
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgeclf.core import files
from edgeclf.core.bundle import Bundle, read_bundle
from edgeclf.core.calibrate import calibration
from edgeclf.core.errors import ConfigError, DataError, EdgeclfError, ModelError
from edgeclf.core.image import Pixels
from edgeclf.core.onnx import is_onnx
from edgeclf.core.progress import Bar, Report, no_bar
from edgeclf.core.results import Memory, Size
from edgeclf.host import wording
from edgeclf.host.data.dataset import Dataset, open_dataset
from edgeclf.host.full_model import FullModel, open_reference
from edgeclf.host.inside import look_inside
from edgeclf.host.plots import History, read_history
from edgeclf.host.report import devices as report_devices
from edgeclf.host.report import emulate as emulation
from edgeclf.host.report import html as report_html
from edgeclf.host.report import memory, timing
from edgeclf.host.report.comparison import FULL, Comparison, Emulated, Model, Unusable, Variant
from edgeclf.host.report.devices import Board
from edgeclf.host.report.timing import Timing
from edgeclf.host.report.verdict import recommend
from edgeclf.host.run import HISTORY, ONNX, Run
from edgeclf.host.understand import compare
from edgeclf.host.understand.compare import Infer
from edgeclf.runtime.engine import Scores, open_engine
from edgeclf.runtime.latency import Machine, file_size, this_machine

HTML, JSON, MARKDOWN = "report.html", "report.json", "report.md"
FLOAT32, ONNX_PREFIX = "float32", "onnx-"


@dataclass(frozen=True, eq=False)
class Entrant:
    """An exported file that opens and answers."""

    name: str
    path: Path
    bundle: Bundle
    infer: Infer
    runtime: str
    threads: int
    size: Size


def make_report(
    run: Run,
    out: Path | None = None,
    threads: int | None = None,
    rounds: int = timing.ROUNDS,
    bar: Bar = no_bar,
    add: Sequence[Path] = (),
    emulate: Sequence[str] = (),
) -> Comparison:
    """Measure every exported file of `run` beside its full model and write the report into `out`, or into the run folder.

    `threads` is for the exported files, None for what the runtime chooses; TensorFlow takes what it takes. `add` are device
    reports of this run's files, `emulate` boards (pi4, pi5) on which instructions are counted. Raises ConfigError when
    nothing was exported, ModelError when no exported file can be measured, DataError when the data is gone or has changed,
    or a device report is of other files, MissingExtra where a board cannot be emulated.
    """
    if emulate:
        emulation.need(emulation.default_home())
    entrants, unusable = enter(run, threads)
    boards = report_devices.read_boards(add, [(entrant.name, entrant.path) for entrant in entrants])
    with bar("reading pictures") as report:
        dataset = open_dataset(run, report)
    entrants, peeked = _apart_from_test(entrants, dataset)
    emulated = count(entrants, emulate, bar)
    comparison = measure(run, dataset, entrants, [*unusable, *peeked], rounds, bar, boards, emulated)
    write(comparison, dataset, run, out or run.folder)
    return comparison


def enter(run: Run, threads: int | None = None) -> tuple[list[Entrant], list[Unusable]]:
    """Open every exported file, float32 first, then the largest; a damaged one is listed with its reason.

    Raises ConfigError when nothing was exported, ModelError when no file opens.
    """
    paths = run.exports()
    if not paths and run.model_file.name == ONNX:
        raise ConfigError(f"{run.folder}: nothing exported yet; first: edgeclf export {run.folder} --onnx-int8")
    if not paths:
        raise ConfigError(f"{run.folder}: nothing exported yet; first: edgeclf export {run.folder} --all")
    entrants, unusable = [], []
    for path in paths:
        try:
            entrants.append(_enter(run, path, threads))
        except EdgeclfError as error:
            unusable.append(Unusable(path.name, str(error).removeprefix(f"{path}: ")))
    if not entrants:
        raise ModelError(f"{run.folder}: no exported file can be measured; the first: {unusable[0].file}: {unusable[0].reason}")
    return sorted(entrants, key=lambda e: (e.name != FLOAT32, -e.size.file_bytes)), unusable


def count(entrants: Sequence[Entrant], devices: Sequence[str], bar: Bar = no_bar) -> tuple[Emulated, ...]:
    """Instructions of every `.tflite` entrant on each emulated board. Raises what `host.report.emulate` does."""
    found = []
    for device in dict.fromkeys(devices):
        counts, counted = {}, [e for e in entrants if not is_onnx(e.path.name)]
        with bar(f"counting instructions, {emulation.NAMES[device]}") as report:
            for number, entrant in enumerate(counted):
                counts[entrant.name] = emulation.count(entrant.bundle, device, emulation.default_home()).instructions
                report(number + 1, len(counted))
        found.append(Emulated(device, emulation.NAMES[device], counts))
    return tuple(found)


def measure(
    run: Run,
    dataset: Dataset,
    entrants: list[Entrant],
    unusable: list[Unusable],
    rounds: int = timing.ROUNDS,
    bar: Bar = no_bar,
    boards: tuple[Board, ...] = (),
    emulated: tuple[Emulated, ...] = (),
) -> Comparison:
    """Answers, accuracy and latency of the full model and every entrant, on the test part alone; what boards say beside it."""
    machine = this_machine()  # before the work, which is load too
    reference = open_reference(run)
    models: dict[str, Infer] = {FULL: reference.infer, **{e.name: e.infer for e in entrants}}
    test, truth = dataset.parts["test"], dataset.classes_of("test")
    with bar("answering test pictures") as report:
        scores = compare.answers(models, dataset.shards.take, test, report)
    with bar("timing, in turns") as report:
        times = timing.interleaved(_single_calls(models, dataset.shards.take(test[:1])), rounds, report)
    with bar("measuring memory, in fresh processes") as report:
        peaks = _memories(run, reference, entrants, report)

    def measured(name: str, file: str, runtime: str, threads: str, size: Size) -> Model:
        accuracy, top5 = compare.accuracy(scores[name], truth, dataset.labels)
        return Model(
            name, file, runtime, threads, size, accuracy, top5, times[name], calibration(scores[name], truth), peaks[name]
        )

    full = measured(FULL, reference.path.name, reference.runtime, reference.threads, file_size(reference.path))
    variants = tuple(
        _variant(e, measured(e.name, e.path.name, e.runtime, str(e.threads), e.size), scores, truth, dataset.labels, times)
        for e in entrants
    )
    warnings = _warnings(machine) + ((wording.UNKNOWN_TRAINING,) if run.imported else ())
    return Comparison(
        run=run.name, recipe=run.recipe.name, data=Path(run.data).name, fingerprint=dataset.catalogue.fingerprint,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"), parameters=reference.parameters,
        labels=dataset.labels, names=tuple(dataset.catalogue.names[i] for i in test),
        machine=machine, versions=_versions(entrants, reference.runtime),
        full=full, variants=variants, unusable=tuple(unusable),
        verdict=recommend(variants, unusable, warnings, machine, boards, emulated),
        made_elsewhere=run.imported, boards=boards, emulated=emulated,
    )  # fmt: skip


def write(comparison: Comparison, dataset: Dataset, run: Run, out: Path) -> None:
    """Write the three files, each whole."""
    rows = [flip.row for flip in comparison.focus().against.flips[: report_html.MOST_FLIPS]]
    pictures = dataset.shards.take(dataset.parts["test"][rows])
    thumbs = report_html.thumbnails(comparison, pictures, run.recipe.image.colour)
    html = report_html.render_html(comparison, thumbs, _history(run))
    files.write_json(out / JSON, comparison.to_json())
    files.write_text(out / MARKDOWN, report_html.render_markdown(comparison))
    files.write_text(out / HTML, html)


def _enter(run: Run, path: Path, threads: int | None) -> Entrant:
    bundle = read_bundle(path)
    if bundle.card is None:
        raise ModelError("it carries no model card; export it again")
    if bundle.card.labels != run.card.labels:
        raise ModelError("its labels are not those of this run; export it again")
    made = bundle.card.provenance
    if made.get("optimize", made).get("created") != run.card.provenance.get("created"):  # optimize may take a compressed network
        raise ModelError("it comes from another training than this run's; export it again")
    if run.imported and bundle.card.provenance.get("fingerprint") != run.card.provenance.get("fingerprint"):
        raise ModelError("it was calibrated and measured on other data than the run has now; export it again")
    engine = open_engine(bundle, threads)
    found = engine.infer(np.zeros((1, *run.card.image.shape), np.uint8))
    if found.shape != (1, len(run.card.labels)):
        raise ModelError(f"it answers with shape {found.shape} for one picture of {len(run.card.labels)} classes")
    name = path.stem.removeprefix(f"{run.name}-")
    name = f"{ONNX_PREFIX}{name}" if is_onnx(path.name) else name
    return Entrant(name, path, bundle, engine.infer, engine.runtime, engine.threads, file_size(path))


def _apart_from_test(entrants: list[Entrant], dataset: Dataset) -> tuple[list[Entrant], list[Unusable]]:
    """Set aside files whose card lists a test picture among those that calibrated it. Raises ModelError when none is left."""
    test, good, peeked = set(dataset.parts["test"].tolist()), [], []
    for entrant in entrants:
        card = entrant.bundle.card
        calibrated = str(card.calibration.get("indices", "")).split() if card else []
        if test.isdisjoint(int(i) for i in calibrated if i.isdecimal()):
            good.append(entrant)
        else:
            peeked.append(Unusable(entrant.path.name, "it was calibrated on test pictures; export it again"))
    if not good:
        raise ModelError(f"{entrants[0].path.parent}: {peeked[0].file}: {peeked[0].reason}")
    return good, peeked


def _variant(
    entrant: Entrant,
    model: Model,
    scores: dict[str, Scores],
    truth: compare.Classes,
    labels: tuple[str, ...],
    times: dict[str, Timing],
) -> Variant:
    card, precision = entrant.bundle.card, entrant.bundle.precision
    over_float32 = timing.speedup(times[FLOAT32], model.timing) if FLOAT32 in times and entrant.name != FLOAT32 else None
    return Variant(
        model=model,
        io=card.io if card else "",
        precision=precision,
        named_right=_claims(entrant.name, precision) and (card is None or _claims(card.variant, precision)),
        against=compare.against(scores[FULL], scores[entrant.name], truth, labels),
        over_full=timing.speedup(times[FULL], model.timing),
        over_float32=over_float32,
        inside=None if is_onnx(entrant.path.name) else look_inside(entrant.bundle.model),
    )


def _claims(name: str, precision: str) -> bool:
    """Whether a variant's name (`int8`, `int8-qat`, `pruned50-int8`) says that precision; `float32-sparse` is not `float32`."""
    return f"-{precision}-" in f"-{name}-" and name.endswith("-sparse") == precision.endswith("-sparse")


def _memories(run: Run, reference: FullModel, entrants: list[Entrant], progress: Report) -> dict[str, Memory | None]:
    found: dict[str, Memory | None] = {}
    for number, entrant in enumerate(entrants):
        found[entrant.name] = memory.of_file(entrant.path, entrant.threads)
        progress(number + 1, len(entrants) + 1)
    return {**found, FULL: memory.of_full(run, reference)}


def _single_calls(models: dict[str, Infer], picture: Pixels) -> dict[str, Callable[[], object]]:
    def single(infer: Infer) -> Callable[[], object]:
        return lambda: infer(picture)

    return {name: single(infer) for name, infer in models.items()}


def _history(run: Run) -> History | None:
    """The training history; None when it is missing or damaged, which costs the report one figure and no more."""
    try:
        return read_history(run.folder / HISTORY)
    except DataError:
        return None


def _warnings(machine: Machine) -> tuple[str, ...]:
    """What makes the times less certain than usual."""
    found = []
    if machine.load > machine.cores:
        found.append(f"The machine was busy (load {machine.load:.1f} on {machine.cores} cores), so the times are less certain.")
    if machine.throttled or this_machine().throttled:
        found.append("The board was throttled by heat or a weak supply, so the times are longer than they need be.")
    return tuple(found)


def _versions(entrants: list[Entrant], full: str) -> dict[str, str]:
    """What ran: the runtimes of the exported files and of the full model, edgeclf."""
    runtimes = dict.fromkeys(e.runtime for e in entrants)
    return {
        "exported files ran in": "; ".join(runtimes),
        "full model ran in": full,
        "edgeclf": version("edgeclf"),
    }
