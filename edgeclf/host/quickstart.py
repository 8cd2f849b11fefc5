"""The whole job on a small real data set: train, export, evaluate, report, run live."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeclf.core.errors import QualityError
from edgeclf.core.image import Pixels
from edgeclf.core.progress import Bar
from edgeclf.core.recipe import load_recipe
from edgeclf.host import wording
from edgeclf.host.data.dataset import Dataset
from edgeclf.host.data.demo import PICTURE_S, render_video
from edgeclf.host.export.export import export
from edgeclf.host.report.report import HTML, make_report
from edgeclf.host.run import Run
from edgeclf.host.train import train as training
from edgeclf.host.train.checkpoint import OnEpoch
from edgeclf.runtime.accuracy import evaluate
from edgeclf.runtime.classifier import Classifier
from edgeclf.runtime.events import Event, Seen
from edgeclf.runtime.live import Live, Summary
from edgeclf.runtime.scoring import scorer
from edgeclf.runtime.sources.camera import find_source

RECIPE, DATA = "compact-digits", "digits"
VARIANTS = ("float32", "float16", "int8")
VIDEO = "digits.avi"


@dataclass(frozen=True)
class Done:
    """What quickstart leaves: the run, the int8 file, the report's page, the video, and how the live loop did on it.

    `named_right` is the share of the video's frames whose label was the right one; `seconds` the time of everything.
    """

    run: Run
    int8: Path
    page: Path
    video: Path
    summary: Summary
    named_right: float
    seconds: float


def quickstart(say: Callable[[str], None], bar: Bar, on_epoch: OnEpoch | None = None, folder: Path | None = None) -> Done:
    """Do the whole job; `say` hears one line a step. Raises QualityError when the live loop does not recognise the digits."""
    began = time.monotonic()
    job = training.start(load_recipe(RECIPE), DATA, folder or training.free_folder("quickstart"))
    say(f"1/5 train: {RECIPE} on {len(job.dataset.catalogue):,} scans of handwritten digits, shipped with scikit-learn")
    run = training.train(job, on_epoch)
    say(f"2/5 export: {', '.join(VARIANTS)}")
    exported = {e.variant: e for e in export(run, VARIANTS, bar=bar)}
    dataset = job.dataset
    say(f"3/5 evaluate: every file on the {len(dataset.parts['test'])} held-out scans")
    for variant, one in exported.items():
        say(f"    {variant:<8} {_accuracy(one.path, dataset)}  {wording.size(one.file_bytes)}")
    say("4/5 report: every file beside the full model")
    make_report(run, bar=bar)
    say("5/5 run: a short video of held-out digits through the live loop")
    video = run.folder / VIDEO
    int8 = exported["int8"].path
    summary, named_right = _live(int8, video, dataset)
    return Done(run, int8, run.folder / HTML, video, summary, named_right, time.monotonic() - began)


def _accuracy(path: Path, dataset: Dataset) -> str:
    found = evaluate(path, dataset.catalogue, dataset.parts["test"]).accuracy
    return f"top-1 {found.top1:.2%} ({found.top1_interval.low:.2%} to {found.top1_interval.high:.2%})"


def _live(int8: Path, video: Path, dataset: Dataset) -> tuple[Summary, float]:
    """Render a video of one held-out picture a class, run the loop on it, and compare each label with what was drawn."""
    _, first = np.unique(dataset.classes_of("test"), return_index=True)
    pictures = dataset.shards.take(dataset.parts["test"][first])
    drawn = render_video(video, list(pictures), dataset.labels, seconds=PICTURE_S * len(pictures))
    classifier, answers = Classifier.load(int8), _Answers()
    summary = Live([find_source(str(video))], scorer(classifier), classifier.labels, sinks=[answers]).run()
    right = _share_equal(answers.labels, drawn)
    if right < 0.5:
        raise QualityError(f"{int8}: the live loop named only {right:.0%} of {len(drawn)} frames of {video} right; report this")
    return summary, right


def _share_equal(answers: Sequence[str], drawn: Sequence[str]) -> float:
    return sum(a == d for a, d in zip(answers, drawn, strict=False)) / max(1, len(drawn))


class _Answers:
    """A sink that keeps the likeliest label of every frame."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def emit(self, event: Event, image: Pixels | None) -> None:
        if isinstance(event, Seen):
            self.labels.append(event.decision.top[0][0])

    def close(self) -> bool:
        return True
