"""The verb classify: millions of pictures through a deployable file, into Parquet, here or on a cluster."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Literal

import typer

from edgeclf.cli.common import print_json, progress
from edgeclf.cli.options import Address, File, Json, Labels, Normalize, pair


def classify(
    file: File,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Folders, quoted patterns, .zip, .tar shards, .parquet tables; or URLs of these, s3://bucket/folder.",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="Where the parts go: a folder here, or a URL.", show_default=False)],
    top: Annotated[int, typer.Option(help="How many classes to name.", min=1)] = 5,
    column: Annotated[
        str | None,
        typer.Option(help="The column of tables with pictures or their paths.", show_default="image, path, and the like"),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="One process a core of this machine, or Ray and its cluster.")
    ] = "local",
    address: Address = None,
    workers: Annotated[int | None, typer.Option(help="Processes that classify.", min=1, show_default="one a core")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another model or other inputs left there.")
    ] = False,
    labels: Labels = None,
    normalize: Normalize = None,
    as_json: Json = False,
) -> None:
    """Classify any number of pictures into Parquet: path, label, score, the likeliest classes, or an error.

    The same command again goes on where a job was stopped. Results can be read while it runs. Where the likeliest class stays
    below the limits in the model card, the label is 'unknown'.

    Example: edgeclf classify compact-cifar10 photos/ 'shards/*.tar' --out results.parquet
    """
    from edgeclf.runtime.bulk.run import classify as run
    from edgeclf.runtime.classifier import given_labels

    done = run(
        file, inputs, out, engine, address, workers, top, column, given_labels(labels), pair(normalize) if normalize else None,
        overwrite, partial(progress, rate=True),
    )  # fmt: skip
    if as_json:
        print_json(asdict(done))
        return
    broken = f", {done.errors:,} of them without an answer (column 'error')" if done.errors else ""
    print(f"{done.out}: {done.pictures:,} pictures{broken}")
    if not done.answered:
        print("nothing was left to do")
    else:
        before = done.pictures - done.answered
        rest = f"; {before:,} were there already" if before else ""
        print(
            f"{done.answered:,} answered in {done.seconds:,.1f} s, {done.answered / max(done.seconds, 1e-9):,.0f} a second{rest}"
        )
