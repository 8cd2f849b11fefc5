"""Verbs that say what there is: inspect, models, devices."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import print_json, say
from edgeclf.core.errors import ConfigError, EdgeclfError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeclf.core.bundle import Bundle
    from edgeclf.core.card import ModelCard
    from edgeclf.core.catalogue import Catalogue
    from edgeclf.runtime.classifier import Classifier

SAMPLE = 64  # pictures that are read to tell sizes
MOST_LABELS = 10
MOST_TEXT = 100
FEW = 4  # facts that fit one line


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE|DATA",
            help="A model file or ready-to-run model, or data as 'edgeclf train' takes it.",
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what is inside a model file or a data set.

    Of a model: card, labels, tensors, precision as the tensors show it, size, checksum, and whether this machine computes
    what was shipped. Of data: pictures of each class and split, and their sizes.

    Example: edgeclf inspect runs/photos/photos-int8.tflite
    """
    model = _model_of(what)
    found = _inspect_model(model) if model else _inspect_data(what)
    if as_json:
        print_json(found)
        return
    _print_facts(found)
    if not model:
        say(f"doubles, broken files, sizes of all pictures: edgeclf data inspect {shlex.quote(what)}")


def models(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List the recipes that 'edgeclf train' knows by name, and the trained models that are ready to run.

    Example: edgeclf models
    """
    from edgeclf.core import config
    from edgeclf.core.recipe import load_recipe

    recipes = [load_recipe(name) for name in config.names("models")]
    measured = {r.name: _measured(config.shipped("models") / f"{r.name}.results.json") for r in recipes}
    ready = _ready_to_run()
    if as_json:
        print_json(
            [
                {
                    "name": r.name, "description": r.description, "image_size": r.image.size,
                    "epochs": r.training.epochs, "measured": measured[r.name],
                    "ready_to_run": [card.name for card in ready if card.provenance.get("recipe") == r.name],
                }
                for r in recipes
            ]
        )  # fmt: skip
        return
    rows = [(r.name, f"{r.image.size} px", _accuracies(measured[r.name]), r.description) for r in recipes]
    _print_rows(("model", "input", "top-1 float, int8", "description"), rows)
    if ready:
        print()
        _print_rows(("ready to run", "input", "top-1", "classes"), [_ready_row(card) for card in ready])
        print(f"\nas in: edgeclf predict {ready[0].name} photo.jpg")


def _ready_to_run() -> list[ModelCard]:
    """The cards of the trained models that come with edgeclf."""
    from edgeclf.core.bundle import read_bundle
    from edgeclf.runtime import shipped

    cards = [read_bundle(shipped.path_of(name)).card for name in shipped.names()]
    return [card for card in cards if card is not None]


def _ready_row(card: ModelCard) -> tuple[str, ...]:
    measured = card.accuracy.get("file", {})
    top1 = f"{measured['top1']:.2%} of {measured['pictures']:,}" if measured else "not measured"
    shown = ", ".join(card.labels[:MOST_LABELS])
    more = f" and {len(card.labels) - MOST_LABELS} more" if len(card.labels) > MOST_LABELS else ""
    return card.name, f"{card.image.width} px", top1, shown + more


def _measured(path: Path) -> dict[str, Any] | None:
    """The results file beside a recipe, or None when there is none yet."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _accuracies(measured: dict[str, Any] | None) -> str:
    if measured is None or "full_model" not in measured:
        return "not measured"
    full, int8 = measured["full_model"]["top1"], measured["variants"]["int8"]["top1"]
    return f"{full:.2%}, {int8:.2%} on {measured['data']}"


def devices(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """List the boards that edgeclf has a profile of.

    Example: edgeclf devices
    """
    from dataclasses import asdict

    from edgeclf.core import config
    from edgeclf.core.devices import load_device

    profiles = [load_device(name) for name in config.names("devices")]
    if as_json:
        print_json([asdict(p) for p in profiles])
        return
    rows = [
        (p.name, p.cpu, f"{p.cores} cores", f"{p.memory_mb} MB", "yes" if p.dot_product else "no", f"{p.budget.latency_ms:g} ms")
        for p in profiles
    ]
    _print_rows(("device", "CPU", "cores", "memory", "int8 dot product", "budget"), rows)
    print("\nPublished by others, one picture:")
    for profile in profiles:
        by_source: dict[str, list[str]] = {}
        for figure in profile.published:
            shown = f"{figure.model} {figure.precision} {figure.latency_ms:g} ms"
            by_source.setdefault(f"{figure.conditions}; {figure.source}", []).append(shown)
        for source, figures in by_source.items():
            print(f"  {profile.name}: {', '.join(figures)} ({source})")


def _model_of(what: str) -> Path | None:
    """The model file that is meant, a shipped one included; None for data."""
    from edgeclf.runtime import shipped

    if shipped.is_name(what) and what in shipped.names():
        return shipped.path_of(what)
    return Path(what) if _is_model(Path(what)) else None


def _is_model(path: Path) -> bool:
    """By its name, or by the identifier that TFLite files begin with."""
    if path.suffix.lower() in (".tflite", ".onnx", ".mlpackage"):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8)[4:] == b"TFL3"


def _inspect_model(path: Path) -> dict[str, Any]:
    from edgeclf.runtime.classifier import read_file
    from edgeclf.runtime.latency import file_size

    bundle = read_file(path)
    size = file_size(path)
    facts: dict[str, Any] = {"file": str(path), "file_bytes": size.file_bytes, "gzip_bytes": size.gzip_bytes}
    facts |= _graph_facts(bundle) if path.suffix.lower() == ".onnx" else _structure_facts(bundle)
    trial, card = _trial(bundle)
    return facts | _card_facts(bundle, card) | trial


def _structure_facts(bundle: Bundle) -> dict[str, Any]:
    from collections import Counter

    from edgeclf.core.tflite import scheme
    from edgeclf.runtime.engine import multiply_adds

    model = bundle.structure
    return {
        "precision": scheme(model),
        "input": _tensor_facts(model.input),
        "output": _tensor_facts(model.output),
        "operators": dict(Counter(op.name for op in model.operators).most_common()),
        "multiply_adds": multiply_adds(model),
        "constant_bytes": sum(tensor.buffer_bytes for tensor in model.tensors),
    }


def _graph_facts(bundle: Bundle) -> dict[str, Any]:
    """As `_structure_facts`, of an ONNX file."""
    from collections import Counter

    model = bundle.graph
    ends = {"input": model.inputs[0], "output": model.outputs[0]}
    return {
        "precision": bundle.precision,
        "opset": model.opset,
        **{name: {"name": end.name, "shape": list(end.shape), "type": end.type} for name, end in ends.items()},
        "operators": dict(Counter(node.operator for node in model.nodes).most_common()),
    }


def _tensor_facts(tensor: Any) -> dict[str, Any]:
    scale, zero = (tensor.scales[0], tensor.zero_points[0]) if tensor.scales else (None, None)
    return {"shape": list(tensor.shape), "type": tensor.type, "scale": scale, "zero_point": zero}


def _card_facts(bundle: Bundle, known: ModelCard | None) -> dict[str, Any]:
    """The card, `known` or of the bundle, whose checksum has been compared when that was read; or that there is none."""
    shown = bundle.card or known
    if shown is None:
        return {"card": None, "labels": list(bundle.labels)}
    card = json.loads(shown.to_json())
    del card["self_test"]
    checked = {"sha256": "matches the card"} if shown.sha256 else {}
    return {**checked, "labels": card.pop("labels"), "card": card}


def _trial(bundle: Bundle) -> tuple[dict[str, Any], ModelCard | None]:
    """Whether it runs here, and whether it computes what was shipped; and its own card, which ONNX shows only when open."""
    from edgeclf.runtime.selftest import self_test

    try:
        classifier = _opened(bundle)
        result = self_test(classifier.engine, classifier.card)
    except EdgeclfError as error:
        return {"runs_here": False, "reason": str(error)}, None
    facts = {"runs_here": True, "runtime": classifier.engine.runtime, "self_test": result.to_json() if result else None}
    return facts, classifier.card if classifier.own else None


def _opened(bundle: Bundle) -> Classifier:
    """A float file that says nothing of normalisation is opened with any, only to see that it computes."""
    from edgeclf.runtime.classifier import from_bundle

    try:
        return from_bundle(bundle, 1)
    except ModelError:
        if bundle.card:
            raise
        return from_bundle(bundle, 1, normalize=(128.0, 128.0))


def _inspect_data(data: str) -> dict[str, Any]:
    import numpy as np

    from edgeclf.core.catalogue import SPLITS, UNSPLIT
    from edgeclf.host.data.dataset import open_catalogue

    if (Path(data) / "recipe.toml").is_file():
        raise ConfigError(f"{data}: is a run folder; inspect one of its files, such as {data.rstrip('/')}/NAME-int8.tflite")
    catalogue = open_catalogue(data)
    parts = [*((name, i) for i, name in enumerate(SPLITS)), ("unsplit", UNSPLIT)]
    counts = {
        name: np.bincount(catalogue.classes[catalogue.folders == i], minlength=len(catalogue.labels)).tolist()
        for name, i in parts
        if (catalogue.folders == i).any()
    }
    total = np.bincount(catalogue.classes, minlength=len(catalogue.labels))
    return {
        "data": data,
        "kind": catalogue.kind,
        "pictures": len(catalogue),
        "classes": {label: {name: column[i] for name, column in counts.items()} for i, label in enumerate(catalogue.labels)},
        "imbalance": round(float(total.max() / total.min()), 2),
        "fingerprint": catalogue.fingerprint,
        **_sample(catalogue),
    }


def _sample(catalogue: Catalogue) -> dict[str, Any]:
    """Sizes of a few pictures, evenly spread."""
    import numpy as np

    from edgeclf.core.catalogue import reader
    from edgeclf.core.errors import DataError

    read, sizes, broken = reader(catalogue), [], []
    chosen = np.unique(np.linspace(0, len(catalogue) - 1, SAMPLE).round().astype(int)).tolist()
    for i in chosen:
        try:
            sizes.append(read(i).shape[1::-1])
        except DataError as error:
            broken.append(str(error))
    widths, heights = [w for w, _ in sizes], [h for _, h in sizes]
    return {
        "sampled": len(chosen),
        "width": [min(widths), max(widths)] if sizes else None,
        "height": [min(heights), max(heights)] if sizes else None,
        "unreadable_in_sample": broken,
    }


def _print_facts(facts: dict[str, Any], indent: str = "") -> None:
    """One fact a line; tables are indented, long lists cut."""
    from edgeclf.core.text import printable

    width = max(len(key) for key in facts)
    for name, value in facts.items():
        key = printable(name)
        if isinstance(value, dict) and 0 < len(value) <= FEW and not any(isinstance(v, dict) for v in value.values()):
            print(f"{indent}{key:<{width}}  " + "  ".join(f"{printable(k)} {_text(v)}" for k, v in value.items()))
        elif isinstance(value, dict) and value:
            print(f"{indent}{key}")
            _print_facts(value, indent + "  ")
        else:
            print(f"{indent}{key:<{width}}  {_text(value)}")


def _text(value: object) -> str:
    from edgeclf.core.text import printable

    if isinstance(value, list):
        rest = f" and {len(value) - MOST_LABELS} more" if len(value) > MOST_LABELS else ""
        return (printable(", ".join(map(str, value[:MOST_LABELS]))) or "none") + rest
    if value in (None, {}, ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = printable(f"{value:,}" if isinstance(value, int) else str(value))
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} … (all of it with --json)"


def _print_rows(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
