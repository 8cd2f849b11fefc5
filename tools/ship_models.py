"""Rebuild the trained int8 files that travel in the wheel: `models/NAME.tflite`, ready to run by their name.

    python tools/ship_models.py compact-digits
    python tools/ship_models.py compact-cifar10 --data cifar10-jpeg.zip
    python tools/ship_models.py compact-cifar10 --run runs/compact-cifar10-jpeg

The first two train from the recipe (30 seconds and half an hour on two cores), the last takes a run as it is; each exports
int8, measures it on the held-out pictures, and writes the file under its shipped name. Nothing of this machine is in it.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclf.core import files
from edgeclf.core.bundle import Bundle, attach, read_bundle
from edgeclf.core.card import ModelCard
from edgeclf.core.recipe import load_recipe
from edgeclf.runtime.engine import open_engine
from edgeclf.runtime.selftest import self_test

MODELS = Path(__file__).resolve().parent.parent / "models"
MOST_BYTES = 500_000  # of all together


@dataclass(frozen=True)
class Shipped:
    """A shipped model: the recipe, and the data that it is trained on where the command line names no other."""

    recipe: str
    data: str


SHIPPED = {"compact-cifar10": Shipped("compact", "cifar10"), "compact-digits": Shipped("compact-digits", "digits")}


def exported(name: str, run: Path | None, data: str | None) -> Path:
    """The int8 file of `run`, exported if it is not there yet; without a run, of one that is trained now."""
    from edgeclf.host.export.export import export
    from edgeclf.host.run import open_run
    from edgeclf.host.train import train

    if run is None:
        wanted = SHIPPED[name]
        folder = Path(tempfile.mkdtemp(prefix="edgeclf-ship-")) / name
        opened = train.train(train.start(load_recipe(wanted.recipe), data or wanted.data, folder))
    else:
        opened = open_run(run)
    if opened.recipe.name != SHIPPED[name].recipe:
        raise SystemExit(f"{opened.folder} was trained from the recipe {opened.recipe.name!r}, not {SHIPPED[name].recipe!r}")
    path = opened.exported("int8")
    return path if path.is_file() else export(opened, ["int8"])[0].path


def ship(name: str, source: Path) -> Path:
    """Write `source` under its shipped name, which stands in its card too; it must be clean and compute what it says."""
    bundle = read_bundle(source)
    if bundle.card is None or bundle.card.variant != "int8":
        raise SystemExit(f"{source}: not an int8 file of edgeclf")
    card = replace(bundle.card, name=name)
    _check(bundle, card, source)
    target = MODELS / f"{name}.tflite"
    files.write_bytes(target, attach(bundle.model, card))
    return target


def _check(bundle: Bundle, card: ModelCard, source: Path) -> None:
    text = card.to_json()
    if "command" in card.provenance or "/" in str(card.provenance.get("data", "")) or str(Path.home()) in text:
        raise SystemExit(f"{source}: its card names folders of this machine; export it again")
    result = self_test(open_engine(replace(bundle, card=card)), card)
    if result is None or not result.passed:
        raise SystemExit(f"{source}: does not compute what its self-test says: {result}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SHIPPED)
    parser.add_argument("--run", type=Path, help="take this run instead of training one")
    parser.add_argument("--data", help="what to train on, where it is not what the recipe is for by name")
    options = parser.parse_args()
    target = ship(options.name, exported(options.name, options.run, options.data))
    card = read_bundle(target).card
    total = sum(path.stat().st_size for path in MODELS.glob("*.tflite"))
    print(f"{target.name}: {target.stat().st_size:,} bytes, top-1 {card.accuracy['file']['top1']:.2%}" if card else target)
    print(f"all shipped models: {total:,} of at most {MOST_BYTES:,} bytes")
    if total > MOST_BYTES:
        raise SystemExit("too large together")


if __name__ == "__main__":
    main()
