"""Layer-wise linear probes: what a linear classifier can read from each layer of a trained network (Alain and Bengio 2016)."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ConfigError, DataError, MissingExtra, ModelError
from edgeclf.core.progress import Bar, Report, no_bar
from edgeclf.core.results import wilson
from edgeclf.host.augment.augment import normalise
from edgeclf.host.data.calibration import shares
from edgeclf.host.data.dataset import Dataset, make_dataset, open_catalogue, open_dataset
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.quiet import quiet
from edgeclf.host.run import Run
from edgeclf.host.understand.probe_points import Point, points_of, thinned
from edgeclf.host.understand.probe_readings import LayerReading, ModelReading, Probing, Reading
from edgeclf.runtime.engine import cores

TRAIN_PICTURES = 10_000
LEAST_VALIDATION = 2_000
SEED = 1
BATCH = 250
# C of scikit-learn times the number of pictures, strong regularisation first: each fit starts where the last one ended.
STRENGTHS = 1.0, 10.0, 100.0, 1000.0, 10_000.0
MOST_ITERATIONS = 5_000
MOST_AT_ONCE = 8  # fits, each of which copies its part of the features

Features = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Probe:
    """A fitted classifier of the first or of some columns of the features."""

    columns: slice
    classifier: Any
    strength: float
    iterations: int
    converged: bool


@dataclass(frozen=True, eq=False)
class _Scale:
    """Mean and deviation (features,) of the training pictures; a feature that never changes stays 0."""

    mean: Features
    deviation: Features

    def apply(self, features: Features) -> Features:
        features -= self.mean
        features /= self.deviation
        return features


def probe(run: Run, data: str | None = None, layers: str = "all", pictures: int = TRAIN_PICTURES, bar: Bar = no_bar) -> Probing:
    """Probe the float network of `run` on its own data, or on `data`, which may have other classes.

    `layers` is `conv` for the convolutions alone, or `all`, with the ends of blocks and hidden dense layers. At most `pictures`
    training pictures, drawn by class with a fixed seed, are looked at once, as their globally averaged features; logistic
    regressions of standardised features are fitted to convergence, regularised as suits the validation part best; the held-out
    part, all of it, is streamed past them. Very deep networks are thinned, evenly (`probe_points.thinned`). Raises DataError,
    ConfigError, ModelError, or MissingExtra when scikit-learn is not installed.
    """
    start = time.monotonic()
    with bar("reading pictures") as report:
        dataset = _dataset(run, data, report)
    model = run.model()
    train, val = drawn(dataset, "train", pictures), drawn(dataset, "val", max(LEAST_VALIDATION, pictures // 5))
    everything = points_of(model, layers)
    points = thinned(everything, len(train) + len(val))
    look = _looking(model, points)
    with bar("reading features") as report:
        x, y = _features(look, dataset, np.concatenate([train, val]), report)
    scale = _standardise(x, len(train))
    with bar("fitting probes") as report:
        probes = _fit_all(x, y, len(train), points, report)
    with bar("scoring probes") as report:
        rights, model_right, total = _score(look, dataset, probes, scale, report)
    del x
    return Probing(
        run.name, Path(data or run.data).name, dataset.catalogue.fingerprint == run.card.provenance.get("fingerprint"),
        dataset.labels, len(train), len(val), total, len(everything), round(time.monotonic() - start, 1),
        float(np.bincount(dataset.classes_of("test")).max() / total),
        ModelReading(model_right / total, wilson(model_right, total)) if dataset.labels == run.card.labels else None,
        _readings(points, probes, rights, total),
    )  # fmt: skip


def drawn(dataset: Dataset, part: str, count: int) -> Indices:
    """At most `count` pictures of a part, each class by its share, always the same ones. Raises DataError when it is empty."""
    pool = dataset.parts[part]
    if not len(pool):
        raise DataError(f"{dataset.catalogue.source}: no usable picture in {part}; add some")
    classes, random = dataset.catalogue.classes[pool], np.random.RandomState(SEED)
    quotas = shares(np.bincount(classes, minlength=len(dataset.labels)), count)
    chosen = [random.permutation(pool[classes == i])[:quota] for i, quota in enumerate(quotas)]
    return np.sort(np.concatenate(chosen))


def fit(x: Features, y: Classes, val_x: Features, val_y: Classes) -> tuple[Any, float, int, bool]:
    """(the classifier that is best on the validation pictures, its strength, its iterations, whether it converged).

    `x` is (pictures, features), standardised; of equally good ones the most regularised is taken.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    best: tuple[float, Any, float, int, bool] = (-1.0, None, 0.0, 0, False)
    classifier = LogisticRegression(max_iter=MOST_ITERATIONS, warm_start=True)
    for strength in STRENGTHS:
        classifier.C = strength / len(y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(x, y)
        iterations = int(np.max(classifier.n_iter_))
        right = float(np.mean(classifier.predict(val_x) == val_y))
        if right > best[0]:
            best = right, copy.deepcopy(classifier), strength, iterations, iterations < MOST_ITERATIONS
    return best[1:]


def _dataset(run: Run, data: str | None, progress: Report) -> Dataset:
    provenance, recipe = run.card.provenance, run.recipe
    if data is None:
        if "data" not in provenance:
            raise ConfigError(f"{run.folder}: has no data of its own; name some: edgeclf probe {run.folder} DATA")
        return open_dataset(run, progress)
    split = provenance.get("split") or {"seed": recipe.training.seed, **asdict(recipe.data)}
    return make_dataset(open_catalogue(data), recipe, split, progress)


def _looking(model: Any, points: list[Point]) -> Callable[[Any], tuple[Features, Any]]:
    """uint8 pictures → (features (pictures, all points'), logits (pictures, classes))."""
    tf = tensorflow()
    inner = keras().Model(model.inputs, [point.output for point in points] + [model.output])

    @tf.function(input_signature=[tf.TensorSpec(model.input_shape, tf.uint8)], autograph=False)  # type: ignore[untyped-decorator]
    def look(pictures: Any) -> Any:
        *maps, logits = inner(normalise(pictures), training=False)
        pooled = [tf.reduce_mean(x, [1, 2]) if len(x.shape) == 4 else x for x in maps]
        return tf.concat(pooled, 1), logits

    with quiet():  # the graph optimiser complains of a graph with many ends when it sees it first
        look(tf.zeros((1, *model.input_shape[1:]), tf.uint8))

    def answer(pictures: Any) -> tuple[Features, Any]:
        features, logits = look(tf.constant(pictures))
        return features.numpy(), logits.numpy()

    return answer


def _features(look: Any, dataset: Dataset, indices: Indices, progress: Report) -> tuple[Features, Classes]:
    parts = [features for _, features, _ in _stream(look, dataset, indices, progress)]
    x = np.concatenate(parts)
    if not np.isfinite(x).all():
        raise ModelError(
            "the network's features are not all numbers (NaN or infinity), so there is nothing to probe; train again"
        )
    return x, dataset.catalogue.classes[indices]


def _stream(look: Any, dataset: Dataset, indices: Indices, progress: Report) -> Iterator[tuple[Indices, Features, Any]]:
    """(indices, features, logits) a batch at a time, so that pictures never lie in memory together."""
    for first in range(0, len(indices), BATCH):
        chosen = indices[first : first + BATCH]
        features, logits = look(dataset.shards.take(chosen))
        dataset.shards.release()
        yield chosen, features, logits
        progress(first + len(chosen), len(indices))


def _standardise(x: Features, train: int) -> _Scale:
    """Scale `x` in place by its first `train` rows."""
    deviation = x[:train].std(0)
    scale = _Scale(x[:train].mean(0), np.where(deviation > 0, deviation, np.float32(1)))
    scale.apply(x)
    return scale


def _fit_all(x: Features, y: Classes, train: int, points: list[Point], progress: Report) -> list[tuple[_Probe, _Probe]]:
    """(alone, cumulated) of every point; as many fits at once as there are cores, each on one."""
    try:
        from threadpoolctl import threadpool_limits  # comes with scikit-learn
    except ImportError as error:
        raise MissingExtra.for_extra("train", "scikit-learn is not installed") from error
    ends = np.cumsum([point.features for point in points]).tolist()
    columns = [slice(end - point.features, end) for point, end in zip(points, ends, strict=True)]
    wanted = sorted({(c.start, c.stop) for c in columns} | {(0, end) for end in ends}, key=lambda c: c[0] - c[1])

    def work(start: int, stop: int) -> _Probe:
        chosen = np.ascontiguousarray(x[:, start:stop])
        return _Probe(slice(start, stop), *fit(chosen[:train], y[:train], chosen[train:], y[train:]))

    # BLAS threads of several fits would fight over the cores: one each is ten times as fast.
    with threadpool_limits(1), ThreadPoolExecutor(min(cores(), MOST_AT_ONCE)) as pool:
        running = {pool.submit(work, *c): c for c in wanted}
        done: dict[tuple[int, int], _Probe] = {}
        try:
            for future in as_completed(running):
                done[running[future]] = future.result()
                progress(len(done), len(wanted))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [(done[c.start, c.stop], done[0, c.stop]) for c in columns]


def _score(
    look: Any, dataset: Dataset, probes: list[tuple[_Probe, _Probe]], scale: _Scale, progress: Report
) -> tuple[npt.NDArray[np.int64], int, int]:
    """(right answers (points, 2) of alone and cumulated, right answers of the network, held-out pictures)."""
    rights, model_right, indices = np.zeros((len(probes), 2), np.int64), 0, dataset.parts["test"]
    for chosen, features, logits in _stream(look, dataset, indices, progress):
        truth = dataset.catalogue.classes[chosen]
        x = scale.apply(features)
        for i, pair in enumerate(probes):
            rights[i] += [int(np.sum(p.classifier.predict(x[:, p.columns]) == truth)) for p in pair]
        model_right += int(np.sum(logits.argmax(1) == truth))
    return rights, model_right, len(indices)


def _readings(
    points: list[Point], probes: list[tuple[_Probe, _Probe]], rights: npt.NDArray[np.int64], total: int
) -> tuple[LayerReading, ...]:
    def reading(found: _Probe, right: int) -> Reading:
        count = found.columns.stop - found.columns.start
        return Reading(right / total, wilson(right, total), count, found.strength, found.iterations, found.converged)

    return tuple(
        LayerReading(
            point.name, point.kind, point.shape, point.features, reading(pair[0], int(right[0])), reading(pair[1], int(right[1]))
        )
        for point, pair, right in zip(points, probes, rights, strict=True)
    )
