"""Verbs that make a run: train, and quickstart, which goes the whole way on a small data set."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgeclf.cli.common import need_training, print_json, progress, say
from edgeclf.cli.options import Address, CpusPerTrial, GpusPerTrial
from edgeclf.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeclf.host.run import Run
    from edgeclf.host.train.checkpoint import OnEpoch
    from edgeclf.host.train.train import Job
    from edgeclf.host.train.train_ray import Scaling, Work


def train(
    model: Annotated[
        str | None,
        typer.Argument(help="A recipe: a name that 'edgeclf models' lists, a .toml file, or path/to/file.py:build of your own."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            help="A folder of class folders, a .zip, .tar or .npz, shards (also s3://…), or digits, cifar10, cifar100."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to make.", show_default="runs/MODEL-DATA")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the interrupted run in --out, or the newest one.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step; 0 finds the fastest.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides split, weights, order and augmentation.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the network's square input, in pixels.")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror pictures at random.")] = None,
    early_stopping: Annotated[
        int | None, typer.Option(metavar="EPOCHS", help="Stop after so many epochs without a better validation.")
    ] = None,
    class_balance: Annotated[
        str | None, typer.Option(metavar="HOW", help="For uneven folders: none, weights or sampling.")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, or float16 on a GPU.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Any other value of the recipe, as training.ema=0.999."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A file of weights to start from.", show_default=False)] = None,
    adversarial: Annotated[
        bool, typer.Option("--adversarial", help="Train on attacked pictures (PGD, 8 of 255), and measure what they do.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Refuse kernels that do not repeat; a CPU repeats to the bit without.")
    ] = False,
    strategy: Annotated[str, typer.Option(help="none, mirrored (all GPUs here), or multi-worker (hosts in TF_CONFIG).")] = "none",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="In this process, or in workers that Ray Train starts, and again when lost.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="With --engine ray: processes that share each batch.", min=1, show_default="2")
    ] = None,
    address: Address = None,
    cpus_per_worker: CpusPerTrial = None,
    gpus_per_worker: GpusPerTrial = None,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's event files.", show_default=False)] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow tracking server, or sqlite:///FILE.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a classifier on a folder of pictures and write a run folder.

    Example: edgeclf train compact photos/ --epochs 50 --set augmentation.colour=0.2
    """
    need_training("train")
    if resume and (model or data):
        raise ConfigError("--resume goes on with what the run folder says; leave MODEL and DATA out, name it with --out")
    if not resume and not (model and data):
        raise ConfigError("give MODEL and DATA, as in: edgeclf train compact photos/ (or --resume)")
    from edgeclf.core import config
    from edgeclf.core.recipe import load_recipe, override, override_by_text
    from edgeclf.host.train import custom, distribute, logs
    from edgeclf.host.train import train as stage
    from edgeclf.host.train.adversarial import USUAL_EPSILON
    from edgeclf.host.train.fitting import Options

    on_ray = _ray_workers(engine, workers, address, cpus_per_worker, gpus_per_worker)
    if on_ray and strategy == "mirrored":
        raise ConfigError("--strategy mirrored: is about one machine; leave it out with --engine ray")
    if on_ray and resume:
        from edgeclf.host.train import train_ray

        _on_ray(train_ray.interrupted(out, on_ray), on_ray, tensorboard, mlflow, as_json)
        return
    with progress("reading pictures") as report:
        if resume:
            job = stage.resume(out, report)
        else:
            own = custom.is_spec(str(model))
            if own:
                say(f"running {custom.source(str(model))}")
            known = custom.recipe(str(model)) if own else load_recipe(str(model))
            recipe = override(
                known, training__epochs=epochs, training__batch_size=batch_size, training__learning_rate=learning_rate,
                training__seed=seed, image__size=image_size, augmentation__flip=flip, training__precision=precision,
                training__early_stopping=early_stopping, training__class_balance=class_balance,
                adversarial__epsilon=USUAL_EPSILON if adversarial else None,
            )  # fmt: skip
            recipe = override_by_text(recipe, settings or ())
            chosen = {"strategy": strategy, "deterministic": deterministic, "weights": str(weights.resolve()) if weights else ""}
            options = config.build(Options, chosen, "options")
            if on_ray:
                from edgeclf.host.train import train_ray

                _on_ray(train_ray.prepared(recipe, str(data), out, options, on_ray), on_ray, tensorboard, mlflow, as_json)
                return
            job = stage.start(recipe, str(data), out, report, options, say, progress)
    describe(job)
    if not distribute.worker(job.options.strategy).is_chief:
        tensorboard = mlflow = None  # one log of a training is enough
    with logs.following(job.folder, job.recipe, tensorboard, mlflow, say) as following:
        run = fit(job, *following)
        for log in following:
            log.finish(run)
    _tell(run, as_json)


def _ray_workers(engine: str, count: int | None, address: str | None, cpus: int | None, gpus: float | None) -> Scaling | None:
    """The workers that were asked for; None for this process. Raises ConfigError for an option that would have no effect."""
    if engine == "ray":
        from edgeclf.host.train.train_ray import Scaling

        return Scaling(count or 2, address, cpus or 1, gpus or 0.0)
    given = {"--workers": count, "--address": address, "--cpus-per-worker": cpus, "--gpus-per-worker": gpus}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"{option} {value}: is about Ray; give --engine ray too, or leave it out")
    return None


def _on_ray(work: Work, workers: Scaling, tensorboard: Path | None, mlflow: str | None, as_json: bool) -> None:
    from edgeclf.host.train import logs, train_ray

    recipe = train_ray.recipe_of(work)
    say(f"{work.folder}: {recipe.name} on Ray, {workers.count} worker{'s' if workers.count > 1 else ''}")
    with logs.following(work.folder, recipe, tensorboard, mlflow, say) as following:
        run = train_ray.train(work, workers, logs.several(epoch_line, *following))
        for log in following:
            log.finish(run)
    _tell(run, as_json)


def _tell(run: Run, as_json: bool) -> None:
    if as_json:
        print_json({"run": str(run.folder), "accuracy": run.card.accuracy["model"], "labels": list(run.card.labels)})
    else:
        _print_result(run)


def _print_result(run: Run) -> None:
    accuracy = run.card.accuracy["model"]
    test = accuracy["test"]
    print(f"{run.folder}: test top-1 {test['top1']:.2%} ({test['low']:.2%} to {test['high']:.2%}) on {test['pictures']} pictures")
    if attacked := accuracy.get("test_attacked"):
        print(
            f"attacked (PGD, epsilon {attacked['epsilon']:g} of 255, {attacked['steps']} steps): {attacked['top1']:.2%} "
            f"({attacked['low']:.2%} to {attacked['high']:.2%})"
        )
    print(f"next: edgeclf export {shlex.quote(str(run.folder))} --all")


def describe(job: Job) -> None:
    """Tell what will be trained on, and what was left out and why."""
    dataset = job.dataset
    counts = ", ".join(f"{len(indices)} {part}" for part, indices in dataset.parts.items())
    say(f"{job.folder}: {job.recipe.name} on {len(dataset.labels)} classes; pictures: {counts}")
    for name, reason in dataset.shards.skipped[:5]:
        say(f"skipped {name}: {reason}")
    if len(dataset.shards.skipped) > 5:
        say(f"skipped {len(dataset.shards.skipped)} pictures in all; the full list is in {job.folder}/split.json")
    if dataset.leaked:
        say(f"warning: {dataset.leaked} training pictures are also held out for val or test; they were left out of training")


def fit(job: Job, *watchers: OnEpoch) -> Run:
    """Train with a line an epoch, and a bar where there is a terminal; `watchers` hear of every epoch too."""
    from edgeclf.host.train import logs
    from edgeclf.host.train import train as stage

    with progress("training") as on_step:
        return stage.train(job, logs.several(epoch_line, *watchers), on_step, frozen_line)


def epoch_line(row: dict[str, float], epochs: int) -> None:
    """Print what an epoch gave."""
    say(
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.2%}  "
        f"val {row['val_accuracy']:.2%}  {row['seconds']:.1f} s"
    )


def frozen_line(row: dict[str, float], epochs: int) -> None:
    """Print what an epoch of the head on the frozen network gave."""
    say(f"frozen {row['epoch']:.0f}/{epochs}  loss {row['loss']:.4f}  val {row['val_accuracy']:.2%}  {row['seconds']:.1f} s")


def quickstart(
    out: Annotated[Path | None, typer.Option(help="Run folder to make.", show_default="runs/quickstart")] = None,
) -> None:
    """Do the whole job once, on handwritten digits: train, export, evaluate, report, and run a video live.

    Takes about a minute and needs no network. Example: edgeclf quickstart
    """
    need_training("quickstart")
    from edgeclf.cli.live import in_words
    from edgeclf.host.quickstart import quickstart as whole_job

    done = whole_job(say, progress, epoch_line, out)
    say(in_words(done.summary))
    program = _as_typed()
    print(
        f"""
Done in {done.seconds:.0f} s; the live loop named {done.named_right:.0%} of the video's frames right.

  report     {done.page}   (open it in a browser)
  int8 file  {done.int8}

See it again:
  {program} run {done.int8} --source {done.video}

Your own pictures, one folder a class:
  {program} train compact photos/
  {program} export --int8
  {program} report
  {program} run runs/compact-photos/compact-photos-int8.tflite --source 0"""
    )


def _as_typed() -> str:
    """How this program can be called again from here: by its name where the shell finds it, else as it was started."""
    return "edgeclf" if shutil.which("edgeclf") == shutil.which(sys.argv[0]) else sys.argv[0]
