"""Export: a trained run in, deployable files out, each measured against the full model before it may exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from edgeclf.core import files
from edgeclf.core.bundle import attach, attach_onnx
from edgeclf.core.card import Io, ModelCard, SelfTest, golden_inputs
from edgeclf.core.errors import ConfigError, ModelError, QualityError
from edgeclf.core.image import Pixels
from edgeclf.core.progress import Bar, no_bar
from edgeclf.core.results import Interval, PairedDrop, wilson
from edgeclf.core.tflite import named_scheme, read_model
from edgeclf.host.data import calibration
from edgeclf.host.data.calibration import Indices
from edgeclf.host.data.dataset import Dataset, open_dataset
from edgeclf.host.export import candidates, export_onnx, gates, guarded, quantize, sparse_file
from edgeclf.host.export.candidates import Candidate, Setting
from edgeclf.host.export.guarded import Budget
from edgeclf.host.export.to_onnx import OnnxRequest
from edgeclf.host.full_model import open_full, open_reference
from edgeclf.host.report.comparison import FULL
from edgeclf.host.run import ONNX, Run
from edgeclf.host.understand import compare
from edgeclf.host.understand.compare import Against
from edgeclf.runtime.engine import Scores, TfliteEngine, input_table, tflite_runtime
from edgeclf.runtime.onnx import OnnxEngine

MOST_HELD_OUT = 10_000
GOLDEN_SEED, GOLDEN_PICTURES = 20_250, 2


@dataclass(frozen=True)
class Exported:
    """A deployable file that passed every gate, and what was measured of it on held-out pictures.

    `variant` of an ONNX file begins with `onnx-`. `drop` is against the full Keras model, `agreement` the share of equal
    answers, `largest_logit_difference` that of the logits; `runtime` names what ran the file. `notes` are sentences that a
    user of the file should know.
    """

    variant: str
    io: Io
    path: Path
    file_bytes: int
    top1: float
    top1_interval: Interval
    drop: PairedDrop
    agreement: float
    largest_logit_difference: float
    runtime: str
    notes: tuple[str, ...] = ()


def export(
    run: Run,
    variants: Sequence[str],
    *,
    io: Io = "uint8",
    onnx: OnnxRequest | None = None,
    budget: Budget | None = None,
    out: Path | None = None,
    bar: Bar = no_bar,
    on_exported: Callable[[Exported], None] | None = None,
) -> list[Exported]:
    """Write `NAME-VARIANT.tflite` for every variant into the run folder, or into `out`; and the `.onnx` files of `onnx`.

    `io` is the type of the int8 file's input and output; all other files have float32 there. With a `budget` the
    int8 file is the first way of `host.export.guard` that holds it on validation pictures. Every file is measured on
    the test part beside the full model and must pass `host.export.gates`; one that does not is not written, while the others are,
    and QualityError then names it. `on_exported` hears of each file as soon as it is there. Raises ConfigError for an
    unknown variant or type, DataError when the data is gone or has changed.
    """
    onnx = onnx if onnx and onnx.variants else None
    if variants or not onnx:
        _check_request(variants, io)
        need_tflite(run)
    setting = set_up(run, bar)
    found, refused = _tflite(variants, io, budget, setting, bar) if variants else ([], [])
    if onnx:
        more, too = export_onnx.make(onnx, setting, bar)
        found, refused = found + more, refused + too
    done = []
    for candidate, scores, against in _measured(found, setting, bar):
        try:
            done.append(_finish(candidate, scores, against, setting, out or run.folder))
        except (QualityError, ModelError) as error:
            refused.append(str(error))
            continue
        if on_exported:
            on_exported(done[-1])
    if refused:
        raise not_exported(refused, [exported.variant for exported in done])
    return done


def need_tflite(run: Run) -> None:
    """Raise ConfigError for a run from which there is no way to TFLite."""
    if run.model_file.name == ONNX:
        raise ConfigError(
            f"{run.model_file}: there is no maintained converter from ONNX to TFLite, so this run is evaluated and run as it is: "
            f"edgeclf evaluate {run.model_file} DATA; for a small file: edgeclf export {run.folder} --onnx-int8, "
            "or import the .keras or .tflite that it was made from"
        )


def set_up(run: Run, bar: Bar = no_bar) -> Setting:
    """Open what the files of a run are made of and measured on. Raises DataError when its pictures are gone or have changed."""
    own = open_full(run)
    with bar("reading pictures") as report:
        dataset = open_dataset(run, report)
    if own.classes != len(dataset.labels):
        raise QualityError(f"the network has {own.classes} outputs for {len(dataset.labels)} labels; train again on this data")
    seed = run.recipe.training.seed
    chosen = calibration.draw(dataset, run.recipe.export.calibration_pictures, seed)
    return Setting(run, dataset, _held_out(dataset, seed), own, open_reference(run), chosen)


def _check_request(variants: Sequence[str], io: str) -> None:
    unknown = [v for v in variants if v not in (*quantize.VARIANTS, *quantize.SPARSE)]
    if unknown or not variants:
        raise ConfigError(f"variant {', '.join(unknown) or 'missing'}: expected one of: {', '.join(quantize.VARIANTS)}")
    if len(set(variants)) != len(variants):
        raise ConfigError(f"variants {', '.join(variants)}: one is given twice")
    if io not in get_args(Io):
        raise ConfigError(f"io {io!r}: expected one of: {', '.join(get_args(Io))}")


def _held_out(dataset: Dataset, seed: int) -> Indices:
    """The test part, or a seeded draw of 10,000 from a larger one; sorted."""
    test = dataset.parts["test"]
    if len(test) <= MOST_HELD_OUT:
        return test
    return np.sort(np.random.RandomState(seed).permutation(test)[:MOST_HELD_OUT])


def _tflite(
    variants: Sequence[str], io: Io, budget: Budget | None, setting: Setting, bar: Bar
) -> tuple[list[Candidate], list[str]]:
    """One of each variant in the order asked for, the int8 one within the budget, and why the others cannot be."""
    made_from = candidates.source(setting, bool(set(variants) & set(quantize.CALIBRATED)), bar)
    made, refused = list[Candidate](), list[str]()
    for variant in variants:
        try:
            if variant == "int8" and budget:
                made.append(guarded.within(budget, io, made_from, setting, bar))
            else:
                made.append(candidates.make(variant, io, made_from, setting))
        except (QualityError, ModelError) as error:
            refused.append(str(error))
    return made, refused


def _measured(found: list[Candidate], setting: Setting, bar: Bar) -> Iterator[tuple[Candidate, Scores, Against]]:
    """Each candidate with its logits on the held-out pictures, and how they compare with the full model's."""
    if not found:
        return
    models = {c.name: c.engine.infer for c in found}
    with bar("measuring on held-out pictures") as report:
        scores = compare.answers({FULL: setting.full.infer, **models}, setting.dataset.shards.take, setting.held_out, report)
    truth = setting.dataset.catalogue.classes[setting.held_out]
    for candidate in found:
        mine = scores[candidate.name]
        yield candidate, mine, compare.against(scores[FULL], mine, truth, setting.dataset.labels)


def finish(candidate: Candidate, setting: Setting, folder: Path, bar: Bar = no_bar) -> Exported:
    """One candidate measured on the test part, through the gates, and written into `folder`. Raises QualityError, ModelError."""
    ((_, scores, against),) = _measured([candidate], setting, bar)
    return _finish(candidate, scores, against, setting, folder)


def _finish(candidate: Candidate, scores: Scores, against: Against, setting: Setting, folder: Path) -> Exported:
    """The gates that need answers; then the card, the self-test, and the file."""
    card, engine, name = candidate.card, candidate.engine, candidate.name
    gates.check_answers(name, scores, card.labels)
    _check_probabilities(candidate, setting)
    gates.check_drop(name, against.drop, "--onnx" if candidate.onnx else "--float16 or --dynamic")
    right = int(np.sum(scores.argmax(axis=1) == setting.dataset.catalogue.classes[setting.held_out]))
    interval, runtime = wilson(right, len(scores)), engine.runtime
    path = folder / setting.run.exported(card.variant, ".onnx" if candidate.onnx else ".tflite").name
    drop = against.drop
    card = replace(
        card,
        accuracy={
            **card.accuracy,
            "file": {
                "part": "test", "pictures": len(scores), "top1": right / len(scores), "low": interval.low, "high": interval.high,
                "drop": drop.drop, "drop_low": drop.interval.low, "drop_high": drop.interval.high,
                "agreement": against.agreement, "runtime": runtime,
            },
        },
        self_test=self_test(engine, card),
    )  # fmt: skip
    data = (attach_onnx if candidate.onnx else attach)(candidate.model, card)
    files.write_bytes(path, data)
    return Exported(
        name, card.io, path, len(data), right / len(scores), interval, drop,
        against.agreement, against.largest_logit_difference, runtime,
        () if candidate.onnx else (*guard_notes(card), *notes(candidate.model, card.variant), *sparse_file.notes(card.variant)),
    )  # fmt: skip


def guard_notes(card: ModelCard) -> tuple[str, ...]:
    """What the guard tried before the file that it chose, a sentence each."""
    record = card.provenance.get("guard")
    if not record:
        return ()
    told = [f"guard, {a['name']}: {_told(a)}" for a in record["attempts"]]
    return (*told, f"{card.variant} holds --max-drop {record['max_drop'] * 100:g} on validation pictures")


def _told(attempt: dict[str, Any]) -> str:
    if attempt["drop"] is None:
        return str(attempt["note"])
    drop, low, high = (100 * attempt[key] for key in ("drop", "low", "high"))
    return f"{drop:+.2f} points ({low:+.2f} to {high:+.2f}) {'holds' if attempt['held'] else 'does not hold'}"


def notes(model: bytes, variant: str) -> tuple[str, ...]:
    """What the name of a variant does not say of the file: sentences for its user, most often none."""
    islands = gates.float_islands(read_model(model, variant)) if named_scheme(variant) == "int8" else ()
    return tuple(
        f"{variant}: {name} has no int8 kernel in TFLite, so {islands.count(name)} of them compute in floats between integer "
        "layers; accelerators and microcontrollers may refuse the file"
        for name in sorted(set(islands))
    )


def _check_probabilities(candidate: Candidate, setting: Setting) -> None:
    """Run the file as an app would, its own output and not the logits before it, on a few held-out pictures."""
    pictures = setting.dataset.shards.take(setting.held_out[: GOLDEN_PICTURES * 8])
    probabilities = (export_onnx.file_output if candidate.onnx else file_output)(candidate.model, candidate.card, pictures)
    rounded = named_scheme(candidate.name) in ("int8", quantize.MIXED)  # but in ONNX these are floats
    gates.check_probabilities(candidate.name, probabilities, 1 / 256 if rounded else 0.0)


def file_output(model: bytes, card: ModelCard, pictures: Pixels) -> Scores:
    """What the file's own output tensor holds, dequantised: float32 (pictures, classes)."""
    interpreter = tflite_runtime().interpreter(model_content=model)
    interpreter.allocate_tensors()
    given, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    table, (scale, zero_point) = input_table(read_model(model, card.name).input, card.image), answer["quantization"]
    rows = []
    for picture in pictures:
        interpreter.set_tensor(given["index"], table[picture][None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(answer["index"])[0])
    stored: Scores = np.stack(rows).astype(np.float32)
    return stored if not scale else (stored - np.float32(zero_point)) * np.float32(scale)


def self_test(engine: TfliteEngine | OnnxEngine, card: ModelCard) -> SelfTest:
    """Golden outputs of noise, as this engine computes them; floats in the 9 digits that give the same float32 back.

    The tolerance is one step for integers and, for floats, a thousandth of the largest output; where activations are
    rounded on the way to floats, as with weights of 8 bits and float sums or in int8 ONNX, a hundredth.
    """
    stored = engine.raw(golden_inputs(GOLDEN_SEED, GOLDEN_PICTURES, card.image.shape))
    outputs = tuple(tuple(float(f"{v:.9g}") for v in row) for row in stored.tolist())
    largest = max(1.0, float(np.abs(stored.astype(np.float64)).max()))
    tolerance = 1.0 if stored.dtype != np.float32 else largest * (0.01 if card.variant.startswith(("dynamic", "int8")) else 0.001)
    return SelfTest(GOLDEN_SEED, outputs, float(f"{tolerance:.3g}"), engine.runtime)


def not_exported(refused: list[str], written: list[str]) -> QualityError:
    """The error for files that were refused, for the reasons given, beside those that were written."""
    rest = f"; written: {', '.join(written)}" if written else ""
    return QualityError(f"not exported: {'; '.join(refused)}{rest}")
