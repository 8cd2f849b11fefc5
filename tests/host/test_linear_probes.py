"""Linear probes: where they are put, that they converge, and that only held-out pictures count."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if any(importlib.util.find_spec(package) is None for package in ("tensorflow", "sklearn")):
    pytest.skip("needs TensorFlow and scikit-learn", allow_module_level=True)

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import Pixels
from edgeclf.core.recipe import load_recipe, override
from edgeclf.core.results import wilson
from edgeclf.host.architectures.resnet8 import resnet8
from edgeclf.host.data.dataset import make_dataset, open_catalogue
from edgeclf.host.keras import keras
from edgeclf.host.run import Run
from edgeclf.host.understand import probe, probe_points, probe_readings
from edgeclf.host.understand.probe_points import Point, points_of, thinned

SPLIT = {"seed": 1, "val": 0.2, "val_pictures": 2000, "test": 0.4}
SIDE, CLASSES, EACH = 12, 3, 60


def stripes(angle_matters: bool = True) -> tuple[Pixels, Any]:
    """Grey pictures of one mean: fine stripes, a checkerboard, or coarse stripes; then noise. Mean colours tell nothing."""
    random, y = np.random.RandomState(0), np.repeat(np.arange(CLASSES), EACH)
    rows, columns = np.indices((SIDE, SIDE))
    kinds = [rows % 2, (rows + columns) % 2, rows // 3 % 2]
    x = np.stack([kinds[i] for i in y]) * 120.0 + 68 + random.normal(0, 25, (len(y), SIDE, SIDE))
    if not angle_matters:
        random.shuffle(y)
    return np.clip(x, 0, 255).astype(np.uint8), y


def make_run(folder: Path, model: Any, pictures: Pixels, y: Any, labels: tuple[str, ...] = ("a", "b", "c")) -> Run:
    """A run folder as training leaves it, as far as probes look at it."""
    folder.mkdir()
    np.savez(folder / "pictures.npz", x=np.repeat(pictures[..., None], 3, axis=3), y=y, labels=np.array(labels))
    recipe = override(load_recipe("compact"), image__size=SIDE)
    dataset = make_dataset(open_catalogue(str(folder / "pictures.npz")), recipe, SPLIT)
    model.save(folder / "model.keras")
    provenance = {"data": str(folder / "pictures.npz"), "fingerprint": dataset.catalogue.fingerprint, "split": SPLIT}
    return Run(folder, recipe, ModelCard("tiny", labels, recipe.image.spec(), outputs="logits", provenance=provenance))


def untrained() -> Any:
    """Random convolutions with a dead channel, a sum, and a hidden dense layer; no training is needed for features."""
    layers = keras().layers
    keras().utils.set_random_seed(5)
    inputs = layers.Input((SIDE, SIDE, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", name="first")(inputs)))
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="second")(x)
    x = layers.ReLU()(layers.Add(name="sum")([x, y]))
    x = layers.Dense(6, "relu", name="features")(layers.GlobalAveragePooling2D()(x))
    model = keras().Model(inputs, layers.Dense(3, name="logits")(x), name="tiny")
    kernel, bias = model.get_layer("first").get_weights()
    kernel[..., 0] = 0  # a dead channel is a feature that never changes
    model.get_layer("first").set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("probe") / "tiny", untrained(), *stripes())


@pytest.fixture(scope="module")
def probing(run: Run) -> probe_readings.Probing:
    return probe.probe(run)


def test_layers_are_read_and_mean_colours_are_not(probing: probe_readings.Probing) -> None:
    """The classes differ in texture alone: chance at the input, nearly all right behind a convolution."""
    by_name = {layer.name: layer for layer in probing.layers}
    assert list(by_name) == ["input", "first", "second", "sum", "features"]
    assert by_name["input"].alone.top1 < 0.6
    assert by_name["second"].alone.top1 > 0.85
    assert [layer.cumulated.features for layer in probing.layers] == [3, 11, 19, 27, 33]
    assert by_name["input"].alone == by_name["input"].cumulated
    assert probing.unfinished() == 0


def test_pictures_are_counted_by_part(probing: probe_readings.Probing, run: Run) -> None:
    """40% held out, a fifth of the rest for validation; intervals are Wilson's of the held-out part."""
    assert (probing.train_pictures, probing.validation_pictures, probing.held_out_pictures) == (87, 21, 72)
    assert probing.own_data
    assert probing.chance == pytest.approx(1 / 3)
    assert probing.model is not None
    first = probing.layers[0].alone
    assert first.interval == wilson(round(first.top1 * 72), 72)


def test_labels_that_mean_nothing_read_as_chance(tmp_path: Path) -> None:
    """Had a probe seen the held-out pictures, it would know some by heart: 33 features for 72 pictures."""
    found = probe.probe(make_run(tmp_path / "shuffled", untrained(), *stripes(angle_matters=False)))
    assert max(layer.cumulated.top1 for layer in found.layers) < 0.52


def test_the_fit_is_at_its_optimum() -> None:
    """The gradient of the penalised loss vanishes there; a fit of one pass is far from it, and reads far too low."""
    random = np.random.RandomState(1)
    y = np.repeat(np.arange(3), 100).astype(np.int32)
    x = (random.randn(300, 12) + np.eye(3)[y].repeat(4, 1)).astype(np.float32)
    classifier, strength, iterations, converged = probe.fit(x[::2], y[::2], x[1::2], y[1::2])
    assert converged
    assert 0 < iterations < probe.MOST_ITERATIONS
    p = classifier.predict_proba(x[::2].astype(np.float64))
    gradient = (p - np.eye(3)[y[::2]]).T @ x[::2] / 150 + classifier.coef_ / strength
    assert np.abs(gradient).max() < 2e-3


def test_regularisation_is_picked_on_the_validation_part() -> None:
    """Noise that training can learn by heart asks for a strong one; of equally good ones the strongest is taken."""
    random = np.random.RandomState(2)
    y = np.repeat([0, 1], 40).astype(np.int32)
    noisy = np.concatenate([y[:, None] * 1.5 + random.randn(80, 1), random.randn(80, 300)], axis=1).astype(np.float32)
    _, strong, *_ = probe.fit(noisy[::2], y[::2], noisy[1::2], y[1::2])
    assert strong < max(probe.STRENGTHS)
    plain = (y[:, None] + 0.1 * random.randn(80, 1)).astype(np.float32)
    classifier, strength, *_ = probe.fit(plain[::2], y[::2], plain[1::2], y[1::2])
    assert classifier.score(plain[1::2], y[1::2]) == 1
    assert strength == min(s for s in probe.STRENGTHS if _right(plain, y, s) == 1)


def _right(x: Any, y: Any, strength: float) -> float:
    from sklearn.linear_model import LogisticRegression

    return float(LogisticRegression(C=strength / 40).fit(x[::2], y[::2]).score(x[1::2], y[1::2]))


def test_a_fit_that_runs_out_of_iterations_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without warnings of scikit-learn in the user's terminal."""
    monkeypatch.setattr(probe, "MOST_ITERATIONS", 2)
    random = np.random.RandomState(0)
    x, y = random.randn(90, 20).astype(np.float32), random.randint(0, 3, 90).astype(np.int32)
    _, _, iterations, converged = probe.fit(x, y, x, y)
    assert (iterations, converged) == (2, False)


def test_drawn_pictures_keep_the_shares_of_the_classes(run: Run) -> None:
    """The same ones every time, sorted, all from the part."""
    dataset = make_dataset(open_catalogue(run.data), run.recipe, SPLIT)
    chosen = probe.drawn(dataset, "train", 30)
    assert np.bincount(dataset.catalogue.classes[chosen]).tolist() == [10, 10, 10]
    assert np.isin(chosen, dataset.parts["train"]).all()
    assert (chosen == probe.drawn(dataset, "train", 30)).all()
    assert len(probe.drawn(dataset, "train", 10_000)) == len(dataset.parts["train"])


def test_other_data_may_have_other_classes(run: Run, tmp_path: Path) -> None:
    """Then there is no accuracy of the network itself, and the held-out pictures are not known to be new to it."""
    pictures, y = stripes()
    np.savez(tmp_path / "two.npz", x=pictures, y=np.minimum(y, 1), labels=np.array(["this", "that"]))
    found = probe.probe(run, str(tmp_path / "two.npz"), pictures=20)
    assert found.model is None
    assert not found.own_data
    assert found.labels == ("this", "that")
    assert found.train_pictures == 20


def test_files_are_whole_and_hold_the_numbers(probing: probe_readings.Probing, tmp_path: Path) -> None:
    """A figure of a readable size, JSON without NaN, and nothing besides."""
    import cv2

    document, figure = probe_readings.write(probing, tmp_path / "out")
    picture = cv2.imread(str(figure))
    assert picture is not None
    assert min(picture.shape[:2]) > 400
    table = json.loads(document.read_text(), parse_constant=lambda text: pytest.fail(text))
    assert table["edgeclf_probe"] == 1
    assert [layer["name"] for layer in table["layers"]] == [layer.name for layer in probing.layers]
    assert all(math.isclose(a["alone"]["top1"], b.alone.top1) for a, b in zip(table["layers"], probing.layers, strict=True))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["probe.json", "probe.png"]


def test_points_of_resnet8_are_its_convolutions_and_sums() -> None:
    """Each with its normalisation and activation; the pooled features at the end are those of the last sum."""
    model = resnet8((32, 32, 3), 10)
    points = points_of(model)
    assert [p.kind for p in points].count("convolution") == 9
    assert [p.kind for p in points].count("block") == 3
    assert points[-1].shape == (8, 8, 64)
    assert points[-1].output is model.get_layer("features").input
    conv = [p for p in points_of(model, "conv") if p.kind != "input"]
    assert len(conv) == 9
    assert points[1].output is not model.get_layer(points[1].name).output


def test_gates_are_no_stages() -> None:
    """The convolutions of a squeeze-and-excite see one pixel and weigh channels; the product behind them is a stage."""
    layers = keras().layers
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="before")(inputs)
    gate = layers.Conv2D(4, 1, activation="sigmoid", name="gate")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(5, 3, name="after")(layers.Multiply(name="weighed")([x, gate]))
    x = layers.Conv2D(7, 1, name="head")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    model = keras().Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    assert [p.name for p in points_of(model)] == ["input", "before", "weighed", "after", "head"]


def test_what_cannot_be_probed_is_said() -> None:
    """A model without layers to read, and a choice that does not exist."""
    layers = keras().layers
    linear = keras().Sequential([layers.Input((4, 4, 3)), layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ModelError, match="no convolution"):
        points_of(linear)
    with pytest.raises(ConfigError, match="--layers some: expected one of: all, conv"):
        points_of(linear, "some")


def test_deep_networks_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends stay, and less memory means fewer points."""

    class Wide:
        shape = (None, 4, 4, 1000)

    many = [Point(str(i), "convolution", Wide()) for i in range(100)]
    chosen = [int(p.name) for p in thinned(many, 10)]
    assert (chosen[0], chosen[-1], len(chosen)) == (0, 99, probe_points.MOST_POINTS)
    assert set(np.diff(chosen)) <= {4, 5}
    monkeypatch.setattr(probe_points, "MOST_BYTES", 4 * 10 * 5000)
    assert [p.name for p in thinned(many, 10)] == ["0", "25", "50", "74", "99"]
    assert len(thinned(many, 10_000)) == 2


def test_features_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    """As after a training that blew up."""
    model = untrained()
    kernel, bias = model.get_layer("second").get_weights()
    model.get_layer("second").set_weights([kernel, np.full_like(bias, np.inf)])
    with pytest.raises(ModelError, match="not all numbers"):
        probe.probe(make_run(tmp_path / "broken", model, *stripes()))
