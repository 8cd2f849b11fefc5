"""Write `models/NAME.results.json` from a run's report, and the model table of the README from all of them.

    edgeclf train resnet8 DATA && edgeclf export --all && edgeclf report
    python tools/record_results.py runs/resnet8-DATA [--instructions counts.json]

A recipe that was not trained here gets a file that says so, with what building it tells:

    python tools/record_results.py --not-measured resnet50 densenet121

Nothing is typed by hand: figures come from report.json, model card and, where given, the output of
tools/count_instructions.py.
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeclf.core import files
from edgeclf.core.recipe import load_recipe
from edgeclf.host import wording
from edgeclf.host.run import open_run

REPOSITORY = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- models:begin -->", "<!-- models:end -->"
NOT_MEASURED = "not measured here"
COUNTED_CLASSES, FEWEST_CLASSES, TWO_CLASSES_ONLY = 10, 2, ("cnn2",)


def results(folder: Path, instructions: dict[str, Any]) -> dict[str, Any]:
    """What is worth keeping of a run and its report."""
    run = open_run(folder)
    report = json.loads((folder / "report.json").read_text())
    if report["fingerprint"] != run.card.provenance["fingerprint"]:
        raise SystemExit(f"{folder}/report.json was made from other data than the run; run: edgeclf report {folder}")
    return {
        "recipe": run.recipe.name,
        "data": Path(run.data).name,
        "fingerprint": run.card.provenance["fingerprint"],
        "classes": len(run.card.labels),
        "parameters": report["parameters"],
        "epochs": run.card.provenance["epochs"],
        "training_minutes": round(run.card.provenance["seconds"] / 60, 1),
        "versions": run.card.provenance["versions"],
        "machine": report["machine"],
        "measured": report["created"],
        "full_model": _figures(report["full"]),
        "variants": {v["name"]: _variant(v, instructions) for v in report["variants"]},
    }


def _figures(model: dict[str, Any]) -> dict[str, Any]:
    accuracy, latency = model["accuracy"], model["latency"]
    return {
        "top1": accuracy["top1"],
        "top1_interval": accuracy["top1_interval"],
        "test_pictures": accuracy["pictures"],
        "latency_p50_ms": latency["p50_ms"],
        "threads": model["threads"],
        "runtime": model["runtime"],
        "file_bytes": model["size"]["file_bytes"],
    }


def _variant(variant: dict[str, Any], instructions: dict[str, Any]) -> dict[str, Any]:
    against = variant["against_full"]
    counted = {board: counts[variant["file"]] for board, counts in instructions.items() if variant["file"] in counts}
    return {
        **_figures(variant),
        "gzip_bytes": variant["size"]["gzip_bytes"],
        "drop": against["drop"],
        "drop_interval": against["interval"],
        "agreement": against["agreement"],
        "instructions": counted or NOT_MEASURED,
    }


def not_measured(name: str) -> dict[str, Any]:
    """What is known of a recipe without training it: the size of its network."""
    from edgeclf.host import architectures

    recipe = load_recipe(name)
    classes = FEWEST_CLASSES if recipe.model.architecture in TWO_CLASSES_ONLY else COUNTED_CLASSES
    parameters = architectures.build(recipe, classes).count_params()
    return {"recipe": name, "measured": NOT_MEASURED, "classes": classes, "parameters": int(parameters), "versions": _versions()}


def _versions() -> dict[str, str]:
    return {package: metadata.version(package) for package in ("edgeclf", "tensorflow", "tf-keras")}


HEAD = (
    "model", "data", "parameters", "training", "float top-1", "int8 top-1", "drop, points (95% interval)",
    "int8 file", "int8 p50", "instructions, emulated Pi 4 / Pi 5",
)  # fmt: skip


def table(folder: Path) -> str:
    """One row a recipe: its full model, and what int8 makes of it."""
    rows = [HEAD, ("---",) * len(HEAD)]
    rows += [_row(path.stem, folder / f"{path.stem}.results.json") for path in sorted(folder.glob("*.toml"))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(name: str, path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return (f"`{name}`", NOT_MEASURED, *[""] * (len(HEAD) - 2))
    found = json.loads(path.read_text())
    if found["measured"] == NOT_MEASURED:
        of = f"{found['parameters']:,} ({found['classes']} classes)"
        return (f"`{name}`", NOT_MEASURED, of, *[""] * (len(HEAD) - 3))
    int8, full = found["variants"]["int8"], found["full_model"]
    low, high = int8["drop_interval"]["low"], int8["drop_interval"]["high"]
    return (
        f"`{name}`",
        f"{found['data']}, {full['test_pictures']:,} test pictures",
        f"{found['parameters']:,}",
        f"{found['epochs']} epochs, {found['training_minutes']} min",
        f"{full['top1']:.2%}",
        f"{int8['top1']:.2%}",
        f"{100 * int8['drop']:.2f} ({100 * low:.2f} to {100 * high:.2f})",
        wording.size(int8["file_bytes"]),
        f"{wording.milliseconds(int8['latency_p50_ms'])} ms",
        _instructions(int8["instructions"]),
    )


def _instructions(counted: dict[str, int] | str) -> str:
    if isinstance(counted, str):
        return counted
    return " / ".join(f"{counted[board]:,}" if board in counted else NOT_MEASURED for board in ("pi4", "pi5"))


def machines(folder: Path) -> str:
    """Where the figures of the table come from, as one sentence."""
    every = (json.loads(path.read_text()) for path in sorted(folder.glob("*.results.json")))
    found = [one for one in every if one["measured"] != NOT_MEASURED]
    places = {f"{f['machine']['cpu']}, {f['machine']['cores']} cores, Python {f['machine']['python']}" for f in found}
    runtimes = {f["variants"]["int8"]["runtime"] for f in found}
    if not found:
        return ""
    return (
        f"Measured on {'; '.join(sorted(places))}, shared with other work. p50: one picture, one thread, "
        f"{'; '.join(sorted(runtimes))}. "
        "Training minutes include whatever else the machine did. Instructions are counts, not latency."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--instructions", type=Path, help="JSON of {board: {file name: instructions per inference}}")
    parser.add_argument("--not-measured", nargs="+", default=[], metavar="RECIPE", help="recipes that were not trained here")
    options = parser.parse_args()
    counts = json.loads(options.instructions.read_text()) if options.instructions else {}
    models = REPOSITORY / "models"
    for folder in options.runs:
        found = results(folder, counts)
        files.write_json(models / f"{found['recipe']}.results.json", found)
    for name in options.not_measured:
        files.write_json(models / f"{name}.results.json", not_measured(name))
    readme = REPOSITORY / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    files.write_text(readme, f"{before}{BEGIN}\n{table(models)}\n\n{machines(models)}\n{END}{after}")


if __name__ == "__main__":
    main()
