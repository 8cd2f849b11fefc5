"""Verbs that show what a model looks at and what its layers know: explain, probe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import need_training, pictures_in, print_json, progress, say
from edgeclf.cli.options import Json, Labels, Normalize, pair
from edgeclf.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edgeclf.host.understand.explain import Explanation, Method, Subject
    from edgeclf.host.understand.probe_readings import Probing, Reading

PIPE_WIDTH = 160  # columns of a table that goes to no terminal


def explain(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|FILE", help="A run folder, or an exported model, NAME-int8.tflite.", show_default=False)
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, or folders of them.", show_default=False)],
    method: Annotated[
        str | None,
        typer.Option(metavar="gradcam|gradcam++|cam|occlusion", show_default="gradcam for a run, occlusion for a file"),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A second model to show.", show_default="the int8 file of a run, if any")
    ] = None,
    label: Annotated[
        str | None, typer.Option("--class", metavar="LABEL", help="Class to explain.", show_default="what the model answers")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(metavar="NAME", help="Layer to look at.", show_default="the last feature maps")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures.", show_default="RUN/explain, or explain for a file")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Pictures that a file answers at once.", min=1, show_default="one a core")
    ] = None,
    labels: Labels = None,
    normalize: Normalize = None,
    as_json: Json = False,
) -> None:
    """Show where in pictures a model found its answer: a heatmap over each picture.

    Of a run, Grad-CAM; of a file, an occlusion map, which needs no TensorFlow. With two models, both are shown side by side.
    Vermilion speaks for the class, blue against it. A picture that cannot be read is named, the others are explained; exit
    code 5 then.

    Example: edgeclf explain runs/photos holiday.jpg
    """
    from edgeclf.host.understand.explain import open_subjects

    if source.is_dir():
        need_training("explain RUN")
    pictures = pictures_in(images)
    chosen, subjects = open_subjects(
        source, _method(method), against, layer, threads, labels, pair(normalize) if normalize else None
    )
    folder = out or (source / "explain" if source.is_dir() else Path("explain"))
    rows = [
        _explain(image, target, chosen, subjects, label, as_json)
        for image, target in zip(pictures, _targets(pictures, folder, chosen), strict=True)
    ]
    if as_json:
        layers = [subject.layer for subject in subjects]
        print_json({"model": str(source), "method": chosen, "layer": layers[0], "images": rows})
    if any("error" in row for row in rows):
        raise typer.Exit(DataError.exit_code)


def probe(
    run: Annotated[Path, typer.Argument(help="A run folder.", show_default=False)],
    data: Annotated[
        str | None, typer.Argument(help="Pictures as 'edgeclf train' takes them.", show_default="those of the run")
    ] = None,
    layers: Annotated[
        str, typer.Option(metavar="all|conv", help="Convolutions alone, or ends of blocks and hidden dense layers too.")
    ] = "all",
    pictures: Annotated[int, typer.Option(help="Training pictures to fit on, at most; drawn by class.", min=10)] = 10_000,
    out: Annotated[Path | None, typer.Option(help="Folder for probe.png and probe.json.", show_default="the run folder")] = None,
    as_json: Json = False,
) -> None:
    """Measure what each layer knows: linear classifiers of its averaged features, alone and with all layers before it.

    They are fitted on training pictures to convergence and scored on held-out ones.

    Example: edgeclf probe runs/photos
    """
    need_training("probe")
    from edgeclf.host.run import open_run
    from edgeclf.host.understand import probe as stage
    from edgeclf.host.understand import probe_readings

    opened = open_run(run)
    found = stage.probe(opened, data, layers, pictures, progress)
    document, figure = probe_readings.write(found, out or opened.folder)
    if as_json:
        print_json(found.to_json())
    else:
        _print_probing(found)
    say(f"figure: {figure}; numbers: {document}")


def _print_probing(found: Probing) -> None:
    from rich.console import Console
    from rich.table import Table

    print(
        f"{found.run} on {found.data}: probes fitted on {found.train_pictures:,} training pictures, "
        f"scored on {found.held_out_pictures:,} held-out ones; {found.seconds:.0f} s"
    )
    table = Table("layer", "kind", "map")
    for head in ("features", "alone", "95% interval", "features so far", "cumulated", "95% interval"):
        table.add_column(head, justify="right")
    for layer in found.layers:
        size = "x".join(map(str, layer.shape))
        table.add_row(layer.name, layer.kind, size, *_reading(layer.alone), *_reading(layer.cumulated))
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)).print(table)
    if found.model:
        low, high = found.model.interval.low, found.model.interval.high
        print(
            f"the network itself: {found.model.top1:.2%} ({low:.2%} to {high:.2%}); the largest class alone: {found.chance:.2%}"
        )
    for remark in _remarks(found):
        say(remark)


def _reading(reading: Reading) -> tuple[str, str, str]:
    low, high = reading.interval.low, reading.interval.high
    return str(reading.features), f"{reading.top1:.2%}{'' if reading.converged else ' *'}", f"{low:.2%} to {high:.2%}"


def _remarks(found: Probing) -> list[str]:
    remarks = []
    if len(found.layers) < found.layers_in_network:
        remarks.append(f"note: {len(found.layers)} of {found.layers_in_network} places were probed, evenly chosen")
    if found.unfinished():
        remarks.append(f"warning: {found.unfinished()} probes, marked *, did not converge; they may read too low")
    if not found.own_data:
        remarks.append(
            "note: these are not the run's own data; the network may have seen some of the held-out pictures in training"
        )
    return remarks


def _method(name: str | None) -> Method | None:
    from edgeclf.host.understand.explain import METHODS

    if name is None:
        return None
    known = {str(method): method for method in METHODS}
    if name not in known:
        raise ConfigError(f"--method {name}: expected one of: {', '.join(known)}")
    return known[name]


def _targets(pictures: list[Path], folder: Path, method: str) -> list[Path]:
    """One file for each picture: two of one name get numbers, and no picture is ever written over."""
    taken = {picture.resolve() for picture in pictures}
    targets = []
    for picture in pictures:
        target, number = folder / f"{picture.stem}-{method}.png", 2
        while target.resolve() in taken:
            target, number = folder / f"{picture.stem}-{method}-{number}.png", number + 1
        taken.add(target.resolve())
        targets.append(target)
    return targets


def _explain(
    image: Path, target: Path, method: Method, subjects: list[Subject], label: str | None, as_json: bool
) -> dict[str, Any]:
    from edgeclf.core.image import read_picture
    from edgeclf.host.understand import explain as stage

    try:
        frame = read_picture(image)
    except DataError as error:
        say(f"edgeclf: {error}")
        return {"image": str(image), "error": str(error)}
    with progress(f"explaining {image.name}") as report:
        found = stage.explain(frame, method, subjects, label, report)
    stage.write(target, stage.draw(frame, image.name, found))
    if not as_json:
        print(f"{image}: {_sentence(found)}; {target}")
    return {"image": str(image), "file": str(target), **found.to_json()}


def _sentence(found: Explanation) -> str:
    from edgeclf.host.understand.explain import correlation, in_words

    if len(found.answers) == 1:
        return in_words(found.answers[0], found.label)
    both = "; ".join(f"{answer.model} {in_words(answer, found.label)}" for answer in found.answers)
    return both if found.similarity is None else f"{both}; Spearman of both maps {correlation(found.similarity)}"
