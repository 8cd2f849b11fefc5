"""The verb that makes a trained network smaller: compress."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeclf.cli.common import need_training, print_json, progress, say
from edgeclf.cli.train import epoch_line
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeclf.host.compress.compress import Job
    from edgeclf.host.compress.compression import Stage
    from edgeclf.host.run import Run


def compress(
    run: Annotated[Path | None, typer.Argument(help="Run folder.", show_default="the newest finished one under runs/")] = None,
    prune_channels: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Remove whole channels until this share of the target is gone: faster.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="What --prune-channels counts: macs, parameters, or latency here.")] = None,
    prune: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Make this share of the weights zero: smaller once zipped, no faster.")
    ] = None,
    prune_2_4: Annotated[bool, typer.Option("--prune-2-4", help="Make two of every four weights zero.")] = False,
    cluster: Annotated[
        int | None, typer.Option(metavar="N", help="Let each kernel keep N values: smaller once zipped, no faster.")
    ] = None,
    distill: Annotated[
        Path | None,
        typer.Option(
            metavar="TEACHER",
            help="A run whose answers are learned from, in every step; of any picture size.",
            show_default=False,
        ),
    ] = None,
    qat: Annotated[bool, typer.Option("--qat", help="Quantisation-aware training: the int8 file loses less.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Of every step, in place of its own.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of every step, in place of its own.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other value of the recipe, as compression.channel_steps=5."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.", show_default="runs/RUN-WHAT")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted compression in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a smaller network of a trained one, and write it as a run of its own.

    Options combine. The order is fixed: channels, zeros, clusters, quantisation-aware training; each step fine-tunes, and
    keeps what those before it made.

    Example: edgeclf compress runs/compact-photos --prune-channels 0.5 --qat
    """
    need_training("compress")
    changes: dict[str, Any] = {
        "prune_channels": prune_channels, "channel_target": target, "prune": prune, "prune_2_4": prune_2_4 or None,
        "cluster": cluster, "qat": qat or None, "epochs": epochs, "learning_rate": learning_rate,
    }  # fmt: skip
    if resume and (run or distill or settings or any(v is not None for v in changes.values())):
        raise ConfigError("--resume goes on with what the run folder says; name it with --out and leave the rest out")
    if resume and out is None:
        raise ConfigError("--resume needs --out, the folder of the interrupted compression")
    _check_shares(prune_channels=prune_channels, prune=prune)
    from edgeclf.core.recipe import override, override_by_text
    from edgeclf.host.compress import compress as stage
    from edgeclf.host.run import open_run

    with progress("reading pictures") as report:
        if resume and out is not None:
            job = stage.resume(out, report)
        else:
            source = open_run(run)
            if run is None:
                say(f"compressing the newest run: {source.folder}")
            wanted = {f"compression__{key}": value for key, value in changes.items()}
            recipe = override_by_text(override(stage.recipe_for(source), **wanted), settings or ())
            job = stage.start(source, recipe, out, open_run(distill) if distill else None, report)
    _answer(_compressed(job), job, as_json)


def _check_shares(**shares: float | None) -> None:
    """0 means none in a recipe; on the command line it is a mistake."""
    for name, share in shares.items():
        if share is not None and not 0 < share < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {share:g}: must lie between 0 and 1, as 0.5 for half")


def _compressed(job: Job) -> Run:
    from edgeclf.host.compress import compress as stage
    from edgeclf.host.train.fitting import Listeners

    steps = ", ".join(s.name for s in job.stages)
    say(f"{job.folder}: {job.source.folder} by {steps}")

    def announce(step: Stage) -> None:
        training = step.training
        say(f"{step.name}: {training.epochs} epochs of {training.optimizer} at {training.learning_rate:g}")

    with progress("compressing") as on_step:
        return stage.compress(job, Listeners(epoch_line, on_step), announce)


def _answer(run: Run, job: Job, as_json: bool) -> None:
    before, after = (r.card.accuracy["model"]["test"] for r in (job.source, run))
    if as_json:
        lineage = run.card.provenance["lineage"]
        print_json({"run": str(run.folder), "lineage": lineage, "accuracy": run.card.accuracy["model"], "before": before})
        return
    for step in run.card.provenance["lineage"][-len(job.stages) :]:
        for line in _facts(step):
            say(line)
    print(
        f"{run.folder}: float test top-1 {after['top1']:.2%} ({after['low']:.2%} to {after['high']:.2%}) "
        f"on {after['pictures']} pictures; {job.source.folder} has {before['top1']:.2%}"
    )
    print(f"next: edgeclf export {shlex.quote(str(run.folder))} --int8   and: edgeclf report {shlex.quote(str(run.folder))}")


UNITS = {"macs": "multiply-accumulates", "parameters": "weights", "latency": "ms (int8, one thread)"}


def _facts(step: dict[str, Any]) -> list[str]:
    """What a step did, and what that is good for."""
    if "channels_gone" in step:
        before, after, unit = step["before"], step["after"], UNITS[step["what"]]
        share = f"{1 - after / before:.0%} less"
        return [f"{step['step']}: {before:,.4g} → {after:,.4g} {unit}, {share}; {step['channels_gone']} channels removed"]
    if "values" in step:
        return [f"{step['step']}: at most {step['values']} values a kernel; smaller once zipped, and no faster"]
    if "pattern" in step:
        return [
            f"{step['step']}: {step['zeros']:.1%} of the weights are zero ({step['pattern']}); dense files are as large as "
            "before, smaller once zipped, and run no faster: the report shows both; export --sparse leaves the zeros out"
        ]
    if "int8_val_top1" in step:
        scores = ", ".join(f"{s:.2%}" for s in step["int8_val_top1"])
        lines = [f"{step['step']}: int8 file on validation pictures, epoch by epoch: {scores}; kept epoch {step['kept_epoch']}"]
        if step["left_out"]:
            lines.append(f"{step['step']}: not imitated in training, ranges from calibration: {', '.join(step['left_out'])}")
        return lines
    return []
