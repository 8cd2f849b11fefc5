"""A user's own builder: what it may be, what is refused and why, and that a run outlives the file it came from."""

import json
import shutil

import numpy as np
import pytest

from edgeclf.core.errors import ConfigError
from edgeclf.core.recipe import override
from edgeclf.host import graphs
from edgeclf.host.full_model import open_full
from edgeclf.host.train import custom
from edgeclf.host.train import train as training

MINE = """
import tf_keras as keras
L = keras.layers

class Twice(L.Layer):
    def call(self, x):
        return x * 2

def build(shape, classes, width=4):
    inputs = L.Input(shape)
    x = Twice()(L.Conv2D(width, 3, 2, activation="relu")(inputs))
    return keras.Model(inputs, L.Dense(classes)(L.GlobalAveragePooling2D()(x)))

def nested(shape, classes):
    inner = build(shape, 5)
    return keras.Sequential([L.Input(shape), inner, L.Dense(classes)])

def softmax(shape, classes):
    model = build(shape, classes)
    return keras.Model(model.inputs, L.Softmax()(model.output))

def small(shape, classes):
    return build((4, 4, 3), classes)

def three(shape, classes):
    import keras as keras3
    return keras3.Sequential([keras3.layers.Input(shape), keras3.layers.Flatten(), keras3.layers.Dense(classes)])

def nothing(shape, classes):
    pass

def broken(shape, classes):
    return 1 / 0

number = 7
"""


@pytest.fixture
def mine(tmp_path):
    """`folder/mine.py`."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_function_of_a_file_builds_the_network_with_its_options(mine):
    """`build` when none is named; options are its keywords."""
    model = custom.load_builder(str(mine))((12, 12, 3), 2, width=6)
    assert (model.input_shape, model.output_shape) == ((None, 12, 12, 3), (None, 2))
    assert model.layers[1].filters == 6
    assert custom.load_builder(f"{mine}:build")((12, 12, 3), 2).layers[1].filters == 4


def test_nested_models_come_out_flat(mine):
    """Later stages want one graph."""
    assert not any(graphs.is_graph(layer) for layer in custom.load_builder(f"{mine}:nested")((12, 12, 3), 2).layers)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("softmax", "ends in softmax; leave it out"), ("small", r"from \(4, 4, 3\) to \(2,\); asked for \(12, 12, 3\)"),
        ("three", "keras.*import tf_keras as keras"), ("nothing", "returned a builtins.NoneType"),
        ("broken", "ZeroDivisionError in line 33"), ("number", "has no function 'number'"),
        ("absent", "has no function 'absent'"),
    ],
)  # fmt: skip
def test_what_a_builder_must_not_do_is_one_line_with_the_remedy(mine, function, reason):
    """The file and the function are named."""
    with pytest.raises(ConfigError, match=reason) as failure:
        custom.load_builder(f"{mine}:{function}")((12, 12, 3), 2)
    assert str(mine) in str(failure.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def build(:", "SyntaxError in line 1"),
        ("import sibling", "one file that imports installed packages"),
        ("1 / 0", "in line 1"),
    ],
)
def test_a_file_that_cannot_be_run_says_where(tmp_path, text, reason):
    """Also where it counts on files beside it, which a run folder would not have."""
    (tmp_path / "sibling.py").write_text("x = 1")
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        custom.load_builder(str(tmp_path / "bad.py"))


def test_only_python_files_are_taken_for_the_users_own(tmp_path):
    """Names of recipes and of shipped architectures are not."""
    assert [custom.is_spec(s) for s in ("compact", "a.toml", "a.py", "a/b.py:build", "C:/a.py:f")] == [
        False,
        False,
        True,
        True,
        True,
    ]
    with pytest.raises(ConfigError, match="no such file"):
        custom.recipe(str(tmp_path / "absent.py:build"))


def test_a_run_outlives_the_file_it_was_built_from(mine, tmp_path):
    """Trained, then resumed and loaded, custom layer and all, with the original gone; the recipe names the copy."""
    random = np.random.RandomState(0)
    np.savez(tmp_path / "d.npz", x=random.randint(0, 256, (60, 12, 12, 3)).astype(np.uint8), y=np.arange(60) % 2)
    recipe = override(custom.recipe(f"{mine}:build"), image__size=12, training__epochs=2, training__batch_size=16)

    def stop(row, epochs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(training.start(recipe, str(tmp_path / "d.npz"), tmp_path / "run"), stop)
    mine.unlink()
    run = training.train(training.resume(tmp_path / "run"))
    assert run.recipe.model.architecture == "mine.py:build"
    assert run.recipe.name == "mine"
    moved = shutil.copytree(run.folder, tmp_path / "elsewhere" / "run")
    assert str(mine.parent) not in (moved / "recipe.toml").read_text()
    again = open_full(type(run)(moved, run.recipe, run.card))
    pictures = random.randint(0, 256, (2, 12, 12, 3)).astype(np.uint8)
    assert np.array_equal(again.infer(pictures), open_full(run).infer(pictures))
    assert json.loads((moved / "card.json").read_text())["provenance"]["epochs"] == 2
