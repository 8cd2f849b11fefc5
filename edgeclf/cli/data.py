"""Verbs that look at pictures: data inspect, data preview, and errors."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from edgeclf.cli.common import need_training, print_json, progress, say
from edgeclf.cli.options import Json, Labels, Normalize, pair
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeclf.core.catalogue import Catalogue
    from edgeclf.host.data.inspection import Findings
    from edgeclf.host.understand.mistakes import Mistakes
    from edgeclf.runtime.accuracy import Evaluation

MOST_LINES = 10  # of a list on the terminal
MOST_CLASSES = 40
KINDS = {
    "exact": "equal pictures", "near": "nearly equal pictures", "across_classes": "doubles under different classes",
    "across_parts": "doubles in different parts",
}  # fmt: skip

app = typer.Typer(no_args_is_help=True, help="Look at a data set before and as it is trained on.")
Data: TypeAlias = Annotated[
    str, typer.Argument(help="A folder of class folders, a .zip, .tar or .npz, or digits, cifar10, cifar100.", show_default=False)
]


@app.command()
def inspect(
    data: Data,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with pictures there too.")] = None,
    as_json: Json = False,
) -> None:
    """Read every picture and say what is in the data and what is wrong with it.

    Counts by class and part, sizes, formats, broken files, equal and nearly equal pictures, also across classes and parts.

    Example: edgeclf data inspect photos/ --html photos.html
    """
    from edgeclf.host.data import inspection as data_report
    from edgeclf.host.data.dataset import open_catalogue

    _no_run(data)
    if html:
        from edgeclf.host.understand.gallery import template

        template()
    found = data_report.inspect(open_catalogue(data), progress)
    if html:
        from edgeclf.core.files import write_text
        from edgeclf.host.understand.gallery import data_page

        write_text(html, data_page(found))
    if as_json:
        print_json(found.to_json())
    else:
        _print_findings(found)
    if html:
        say(f"page: {html}")


@app.command()
def preview(
    data: Data,
    model: Annotated[str, typer.Option(help="The recipe whose augmentation is shown: a name, or a .toml file.")] = "compact",
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Another value of the recipe, as augmentation.rotate=15."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("preview.png"),
    pictures: Annotated[int, typer.Option(help="Training pictures to show, a row each.", min=1, max=64)] = 8,
    versions: Annotated[int, typer.Option(help="Changed versions of each.", min=1, max=20)] = 7,
    seed: Annotated[int, typer.Option(help="Decides which pictures and which changes.", min=0, max=2**31 - 1)] = 1,
) -> None:
    """Draw training pictures beside what augmentation makes of them, as the network sees them in training.

    Where pictures are mixed, the soft label of each stands under it.

    Example: edgeclf data preview photos/ --model compact --set augmentation.randaugment=2 --set augmentation.cutmix=1
    """
    need_training("data preview")
    from edgeclf.core.recipe import load_recipe, override_by_text
    from edgeclf.host.augment import preview as stage
    from edgeclf.host.data.dataset import make_dataset, open_catalogue

    _no_run(data)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: the preview is a PNG; name it {out.with_suffix('.png')}")
    recipe = override_by_text(load_recipe(model), assignments or [])
    with progress("reading pictures") as report:
        dataset = make_dataset(open_catalogue(data), recipe, recipe.split, report)
    stage.draw(stage.preview(dataset, recipe, pictures, versions, seed), recipe.image.colour, out)
    policies = {key: value for key, value in vars(recipe.augmentation).items() if value and key != "magnitude"}
    changes = ", ".join(key if value is True else f"{key} {value:g}" for key, value in policies.items()) or "nothing is changed"
    print(f"{out}: {min(pictures, len(dataset.parts['train']))} training pictures, {versions} versions of each; {changes}")


@app.command()
def shard(
    data: Data,
    out: Annotated[
        str, typer.Option(metavar="FOLDER|URL", help="Where to write: a folder, or s3://, gs://, …", show_default=False)
    ],
    model: Annotated[str, typer.Option(help="The recipe that decides size and split: a name, or a .toml file.")] = "compact",
    image_size: Annotated[int | None, typer.Option(help="Side of the network's square input, in pixels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides the split, and the order in the shards.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Another value of the recipe, as data.val=0.05."),
    ] = None,
    shards: Annotated[
        int, typer.Option(help="Files of training pictures; 0: of 128 MB, and at least 8.", min=0, show_default="by size")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Write pictures as shards (TFRecord with an index), to train on more of them than memory holds, or from object storage.

    Pictures are prepared for the network once, and parted for good. Killed, it goes on when it is called again.

    Example: edgeclf data shard photos/ --out s3://bucket/photos --image-size 96 --shards 64
    """
    need_training("data shard")
    from edgeclf.core.recipe import load_recipe, override, override_by_text
    from edgeclf.core.text import printable
    from edgeclf.host.data.dataset import open_catalogue
    from edgeclf.host.data.shards.write import shard as write

    _no_run(data)
    recipe = override_by_text(override(load_recipe(model), image__size=image_size, training__seed=seed), assignments or [])
    with progress("sharding pictures") as report:
        index = write(open_catalogue(data), recipe.image.spec(), recipe.split, out, shards, report)
    counts = {part: len(index.members(part)) for part in ("train", "val", "test")}
    files, size = index.header.shards, sum(shard.bytes for shard in index.header.shards)
    if as_json:
        print_json({
            "shards": out, "files": len(files), "bytes": size, "pictures": counts, "skipped": len(index.header.skipped),
            "leaked": index.header.leaked,
        })  # fmt: skip
        return
    said = ", ".join(f"{count:,} {part}" for part, count in counts.items())
    print(f"{out}: {said} pictures in {len(files):,} shards, {size / 1e6:,.1f} MB")
    for name, reason in index.header.skipped[:MOST_LINES]:
        say(f"skipped {printable(name)}: {printable(reason)}")
    if index.header.leaked:
        say(f"warning: {index.header.leaked:,} training pictures are also held out for val or test; they were left out")
    print(f"next: edgeclf train {model} {shlex.quote(out)} --image-size {recipe.image.size}")


def errors(
    model: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="A run for its full model, or an exported file.", show_default=False)
    ],
    data: Annotated[
        str | None, typer.Argument(help="Held-out pictures, as 'edgeclf train' takes them.", show_default="the run's own")
    ] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("errors.html"),
    limit: Annotated[int, typer.Option(help="Most pictures in a section, and entries of a list in JSON.", min=1)] = 60,
    labels: Labels = None,
    normalize: Normalize = None,
    as_json: Json = False,
) -> None:
    """Show what a model got wrong on held-out pictures, as a page with the pictures.

    Misclassified ones, the surest first; labels that are likely wrong; the most confused pairs; and held-out pictures that
    nearly equal a training picture.

    Example: edgeclf errors runs/compact-photos --out errors.html
    """
    if model.is_dir():
        need_training("errors RUN")
    from edgeclf.core.files import write_text
    from edgeclf.host.understand.gallery import errors_page, summary, template
    from edgeclf.host.understand.mistakes import study

    template()
    if model.is_dir():
        evaluation, catalogue, which = _by_run(model, data)
    else:
        evaluation, catalogue, which = _by_file(model, data, labels, normalize)
    found = study(evaluation, catalogue, which, progress)
    write_text(out, errors_page(found, model.resolve().name, limit))
    if as_json:
        print_json({"model": str(model), "page": str(out), **found.to_json(limit)})
    else:
        _print_mistakes(model, found, summary(found))
    say(f"page: {out}")


def _by_run(folder: Path, data: str | None) -> tuple[Evaluation, Catalogue, str]:
    from edgeclf.host.run import open_run
    from edgeclf.host.understand.evaluation import evaluate_run, pictures
    from edgeclf.runtime.accuracy import held_out

    run = open_run(folder)
    catalogue = pictures(data, run, folder)
    indices, which = held_out(catalogue, run.card)
    with progress(f"evaluating {folder}") as report:
        return evaluate_run(run, catalogue, indices, report), catalogue, which


def _by_file(file: Path, data: str | None, labels: Path | None, normalize: str | None) -> tuple[Evaluation, Catalogue, str]:
    from edgeclf.host.data.reading import prepared_for
    from edgeclf.host.understand.evaluation import home_of, pictures
    from edgeclf.runtime.accuracy import evaluate, held_out
    from edgeclf.runtime.classifier import Classifier

    classifier = Classifier.load(file, 1, labels, pair(normalize) if normalize else None)
    catalogue = prepared_for(pictures(data, home_of(file, classifier.card), file), classifier.card.image)
    indices, which = held_out(catalogue, classifier.card)
    with progress(f"evaluating {file.name}") as report:
        return evaluate(classifier, catalogue, indices, progress=report), catalogue, which


def _no_run(data: str) -> None:
    if (Path(data) / "recipe.toml").is_file():
        raise ConfigError(f"{data}: is a run folder; give the pictures, or look at the run with: edgeclf errors {data}")


def _print_findings(found: Findings) -> None:
    from edgeclf.core.text import printable
    from edgeclf.host.data.inspection import count, tally

    catalogue = found.catalogue
    print(f"{catalogue.source}: {count(len(catalogue), 'picture')}, {len(catalogue.labels)} classes, {catalogue.kind}")
    _print_counts(found)
    for name, spread in (("width", found.width), ("height", found.height), ("width / height", found.aspect)):
        print(f"{name:<14}  {spread.least:g} to {spread.most:g}, median {spread.median:g}")
    print(f"{'formats':<14}  " + "; ".join(f"{name}: {number:,}" for name, number in found.formats.items()))
    for name, groups in found.kinds().items():
        counts = tally(groups)
        said = f"{count(counts['pictures'], 'picture')} in {count(counts['groups'], 'group')}" if groups else "none"
        print(f"{KINDS[name]}: {said}")
    if not found.complete:
        print("there are so many doubles that their search was ended early")
    broken = found.survey.broken
    for name, reason in broken[:MOST_LINES]:
        print(f"broken: {printable(name)}: {printable(reason)}")
    if len(broken) > MOST_LINES:
        print(f"broken: {len(broken) - MOST_LINES:,} more (all of them with --json)")
    for sentence in found.advice():
        print(f"→ {printable(sentence)}")


def _print_counts(found: Findings) -> None:
    labels, parts = found.catalogue.labels, list(found.counts)
    width = max(len(label) for label in ("class", *labels[:MOST_CLASSES]))
    print("  ".join([f"{'class':<{width}}", *(f"{part:>9}" for part in parts)]))
    for label in labels[:MOST_CLASSES]:
        print("  ".join([f"{label:<{width}}", *(f"{found.counts[part][label]:>9,}" for part in parts)]))
    if len(labels) > MOST_CLASSES:
        print(f"… {len(labels) - MOST_CLASSES:,} more classes (all of them with --json)")


def _print_mistakes(model: Path, found: Mistakes, sentences: list[str]) -> None:
    from edgeclf.core.text import printable

    print(f"{model} on {found.catalogue.source}: {found.which}")
    for sentence in sentences:
        print(sentence)
    print("surest mistakes (is → called):")
    for m in found.wrong[:MOST_LINES]:
        print(f"  {m.sure:6.1%}  {found.label(m.given)} → {found.label(m.called)}  {printable(found.catalogue.names[m.index])}")
