"""Maps of a float network whose evidence lies in a known place, by every method; and how float and int8 are compared."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("needs TensorFlow", allow_module_level=True)

from edgeclf.core.card import ModelCard
from edgeclf.core.errors import ConfigError, ModelError
from edgeclf.core.image import ImageSpec, Pixels
from edgeclf.host.architectures.cnn import cnn2
from edgeclf.host.full_model import answering
from edgeclf.host.keras import keras
from edgeclf.host.understand import activation_maps
from edgeclf.host.understand.activation_maps import cam, grad_cam, grad_cam_plus, open_maps
from edgeclf.host.understand.explain import Subject, correlation, explain
from edgeclf.runtime.occlusion import occlude, spearman

RED, GREEN, NEITHER = range(3)
SIDE, SQUARE = 32, 8
LABELS = ("red", "green", "neither")


def squares() -> Pixels:
    """Red in the upper left, green in the lower right, on grey; RGB."""
    picture = np.full((SIDE, SIDE, 3), 128, np.uint8)
    picture[:SQUARE, :SQUARE] = 255, 0, 0
    picture[-SQUARE:, -SQUARE:] = 0, 255, 0
    return picture


def colour_network(pooled: bool = True) -> Any:
    """Set by hand: one channel sees red, one green, at a quarter of the resolution; each class counts its own."""
    layers = keras().layers
    inputs = layers.Input((SIDE, SIDE, 3))
    seen = layers.Conv2D(2, 1, activation="relu", name="colours")(inputs)
    maps = layers.Conv2D(2, 4, strides=4, use_bias=False, name="maps")(seen)
    x = (
        layers.GlobalAveragePooling2D(name="features")(maps)
        if pooled
        else layers.Flatten()(layers.MaxPooling2D(name="pool")(maps))
    )
    model = keras().Model(inputs, layers.Dense(3, name="logits")(layers.Dropout(0.5)(x)))
    colours = np.array([[1, -1], [-1, 1], [0, 0]], np.float32)[None, None]
    model.get_layer("colours").set_weights([colours, np.zeros(2, np.float32)])
    model.get_layer("maps").set_weights([np.eye(2, dtype=np.float32)[None, None].repeat(4, 0).repeat(4, 1) / 16])
    each = model.get_layer("logits").input_shape[-1] // 2
    model.get_layer("logits").set_weights([np.tile([[9, -3, 0], [-3, 9, 0]], (each, 1)), np.array([0, 0, 0.5])])
    return model


@pytest.fixture(scope="module")
def network() -> Any:
    return colour_network()


def place(heat: Any) -> tuple[str, str]:
    y, x = np.unravel_index(np.argmax(heat), heat.shape)
    return "upper" if y < SIDE // 2 else "lower", "left" if x < SIDE // 2 else "right"


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "cam", "occlusion"])
def test_every_method_finds_the_square_of_its_class(method: str, network: Any) -> None:
    """Red evidence lies in the upper left corner, green in the lower right, and nothing elsewhere speaks for either."""
    if method == "occlusion":
        infer = answering(network)
        find: Callable[[int], Any] = lambda target: occlude(infer, squares(), target).heat  # noqa: E731
    else:
        maps = open_maps(network, method)
        find = lambda target: maps.heat(squares(), target)  # noqa: E731
    for target, wanted in ((RED, ("upper", "left")), (GREEN, ("lower", "right"))):
        heat = find(target)
        assert heat.shape == (SIDE, SIDE)
        assert place(heat) == wanted
        assert heat[12:20, 12:20].max() < 0.2 * heat.max()


def test_cam_is_signed_and_grad_cam_is_its_positive_part(network: Any) -> None:
    """Behind global average pooling the gradient is the weight over the area, so the two agree exactly (Zhou, Selvaraju)."""
    signed, positive = (open_maps(network, method).heat(squares(), RED) for method in ("cam", "gradcam"))
    assert place(-signed) == ("lower", "right")
    look = activation_maps._looking(network, network.get_layer("maps"))
    activations, gradient = look(squares(), RED)
    kernel = np.asarray(network.get_layer("logits").kernel, np.float64)
    area = activations.shape[0] * activations.shape[1]
    assert np.allclose(grad_cam(activations, gradient) * area, np.maximum(cam(activations, kernel[:, RED]), 0), atol=1e-6)
    assert positive.min() == 0


def test_grad_cam_plus_is_equation_19() -> None:
    """Against the sums of the paper, written out place by place."""
    random = np.random.RandomState(0)
    a, g = random.rand(3, 4, 2), random.randn(3, 4, 2)
    wanted = np.zeros((3, 4))
    for k in range(2):
        weight = 0.0
        for i in range(3):
            for j in range(4):
                alpha = g[i, j, k] ** 2 / (2 * g[i, j, k] ** 2 + a[:, :, k].sum() * g[i, j, k] ** 3)
                weight += alpha * max(g[i, j, k], 0)
        wanted += weight * a[:, :, k]
    assert np.allclose(grad_cam_plus(a, g), np.maximum(wanted, 0))


def test_a_channel_without_gradient_weighs_nothing() -> None:
    """0 / 0 in the formula."""
    assert grad_cam_plus(np.ones((2, 2, 1)), np.zeros((2, 2, 1))).tolist() == [[0, 0], [0, 0]]


def test_maps_depend_on_the_weights(network: Any) -> None:
    """The sanity check of Adebayo et al. (2018): with all weights drawn at random, a map is another one."""
    before = open_maps(network).heat(squares(), RED)
    other = colour_network()
    look, alike = open_maps(other), []
    for seed in range(8):
        random = np.random.RandomState(seed)
        other.set_weights([random.randn(*weight.shape) for weight in network.get_weights()])
        alike.append(spearman(before, look.heat(squares(), RED)) or 0.0)
    assert sum(abs(value) > 0.9 for value in alike) <= 1
    other.set_weights(network.get_weights())
    assert spearman(before, look.heat(squares(), RED)) == pytest.approx(1)


def test_a_frozen_network_has_maps_too(network: Any) -> None:
    """Gradients are of activations, whether or not anything is trainable, as after a transfer."""
    frozen = keras().models.clone_model(network)
    frozen.set_weights(network.get_weights())
    frozen.trainable = False
    assert np.allclose(open_maps(frozen).heat(squares(), RED), open_maps(network).heat(squares(), RED))


def test_of_two_classes_both_have_a_map() -> None:
    """cnn2 holds one of its two logits at 0: by the difference of both, each class still has evidence."""
    keras().utils.set_random_seed(3)
    model = cnn2((SIDE, SIDE, 3), 2, dense=8)
    heats = [open_maps(model, method).heat(squares(), target) for method in ("gradcam", "gradcam++") for target in (0, 1)]
    assert all(heat.max() > 0 for heat in heats)


def test_the_layer_is_the_last_with_maps_before_any_pooling() -> None:
    """What stands behind pooling shows the same in less detail; a layer may also be named."""
    assert open_maps(colour_network(pooled=False)).layer == "maps"
    assert open_maps(colour_network(), layer="colours").heat(squares(), RED).argmax() // SIDE < SQUARE


def test_a_layer_that_is_not_there_names_the_nearest(network: Any) -> None:
    """As for every name."""
    with pytest.raises(ConfigError, match=r"--layer 'map': .*did you mean 'maps'\? \(known: colours, maps\)"):
        open_maps(network, layer="map")


def test_cam_says_why_it_cannot(network: Any) -> None:
    """Another head, another layer; the message says what to do."""
    with pytest.raises(ConfigError, match=r"ends in MaxPooling2D → Dense; use --method gradcam|Conv2D → MaxPooling2D → Dense"):
        open_maps(colour_network(pooled=False), "cam")
    with pytest.raises(ConfigError, match="at 'maps' alone"):
        open_maps(network, "cam", "colours")


def test_a_network_without_maps_is_told_what_is_left() -> None:
    """A linear model has no place to look at."""
    layers = keras().layers
    model = keras().Sequential([layers.Input((8, 8, 3)), layers.Flatten(), layers.Dense(3)])
    with pytest.raises(ModelError, match="--method occlusion"):
        open_maps(model)


def answer_as(*weights: tuple[float, float, float], size: int = SIDE, fit: Any = "stretch") -> Subject:
    """A model that answers by mean colours: one row of RGB weights a class."""
    kernel = np.array(weights, np.float32).T
    card = ModelCard("fake", LABELS, ImageSpec(size, size, fit))
    return Subject(f"{size} {fit}", card, lambda batch: (batch.astype(np.float32) / 128 - 1).mean((1, 2)) @ kernel)


LIKES_COLOURS = (9.0, -9.0, 0.0), (-9.0, 9.0, 0.0), (0.0, 0.0, 0.0)


def bgr() -> Pixels:
    return np.ascontiguousarray(squares()[:, :, ::-1])


def test_two_models_that_agree_have_like_maps() -> None:
    """Though their inputs differ in size: maps are compared over the picture."""
    found = explain(bgr(), "occlusion", [answer_as(*LIKES_COLOURS), answer_as(*LIKES_COLOURS, size=48)], "red")
    assert [view.method for view in found.views] == ["occlusion", "occlusion"]
    assert found.similarity is not None
    assert found.similarity > 0.9
    assert all(max(view.peak) < SQUARE + 4 for view in found.views)


def test_two_models_that_differ_have_unlike_maps() -> None:
    """The second one takes green for red: same picture, same class, opposite evidence."""
    first, second = answer_as(*LIKES_COLOURS), answer_as(LIKES_COLOURS[1], LIKES_COLOURS[0], LIKES_COLOURS[2], size=31)
    found = explain(bgr(), "occlusion", [first, second], "red")
    assert found.similarity is not None
    assert found.similarity < -0.95
    assert found.to_json()["spearman_of_occlusion_maps"] == found.similarity


def test_the_answer_is_explained_unless_a_class_is_named() -> None:
    """And a class that the model does not know is an error with the nearest name."""
    subject = answer_as((0, 0, 0), (5, 5, 5), (9, 9, 9))
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    assert explain(white, "occlusion", [subject]).label == "neither"
    named = explain(white, "occlusion", [subject], "red")
    assert named.label == "red"
    assert named.answers[0].answer == "neither"
    with pytest.raises(ConfigError, match=r"--class 'gren': .* did you mean 'green'"):
        explain(white, "occlusion", [subject], "gren")


def test_a_correlation_is_never_rounded_up() -> None:
    """1.000 means 1."""
    assert [correlation(value) for value in (1.0, 0.99996, -0.25)] == ["1.000", "0.999", "-0.250"]
