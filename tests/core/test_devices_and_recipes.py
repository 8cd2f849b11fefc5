"""Every shipped recipe and device profile loads, and says what its name says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeclf.core import config
from edgeclf.core.devices import load_device
from edgeclf.core.errors import ConfigError
from edgeclf.core.recipe import load_recipe, override

BOARDS = {"raspberry-pi-zero-2w", "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "host"}


def test_the_boards_are_there() -> None:
    """A profile for each board that the project names, and for the host."""
    assert set(config.names("devices")) >= BOARDS


@pytest.mark.parametrize("name", config.names("devices"))
def test_every_device_profile_loads(name: str) -> None:
    """Its name is its file's, and its budgets fit the board."""
    device = load_device(name)
    assert device.name == name
    assert 0 < device.budget.memory_mb < device.memory_mb
    assert device.budget.latency_ms > 0
    assert device.cores >= device.threads


@pytest.mark.parametrize("name", config.names("devices"))
def test_a_profile_says_what_runs_there_and_where_figures_are_from(name: str) -> None:
    """A system and its Pythons, all of which edgeclf runs in; published figures with a source, int8 not slower than float."""
    device = load_device(name)
    assert device.system
    assert device.pythons
    assert set(device.pythons) <= {"3.11", "3.12", "3.13"}
    times = {(figure.model, figure.precision): figure.latency_ms for figure in device.published}
    assert len(times) == len(device.published)
    assert all(figure.conditions for figure in device.published)
    assert all(times[model, "int8"] <= ms for (model, precision), ms in times.items() if precision == "float32")


def test_a_figure_without_source_is_refused() -> None:
    """As is a time that is none, and a Python that is none."""
    figure = load_device("raspberry-pi-4").published[0]
    with pytest.raises(ConfigError, match="https://"):
        replace(figure, source="a friend")
    with pytest.raises(ConfigError, match="above 0"):
        replace(figure, latency_ms=float("nan"))
    with pytest.raises(ConfigError, match=r"such as 3\.11"):
        replace(load_device("host"), pythons=("three",))


def test_only_the_pi_5_has_dot_product_instructions() -> None:
    """A fact of its Cortex-A76; the A53 and A72 lack them, so int8 gains less there."""
    assert {name for name in BOARDS if load_device(name).dot_product} == {"raspberry-pi-5"}


def test_threads_beyond_the_cores_are_refused() -> None:
    """In the profile, before anything is measured with it."""
    with pytest.raises(ConfigError, match="between 1 and cores"):
        replace(load_device("host"), threads=99)


@pytest.mark.parametrize("name", config.names("models"))
def test_every_recipe_loads_and_is_written_back_equal(name: str, tmp_path: Path) -> None:
    """The run folder keeps the recipe as TOML, so nothing may be lost."""
    recipe = load_recipe(name)
    assert recipe.name == name
    copy = tmp_path / "copy.toml"
    copy.write_text(config.to_toml(recipe))
    assert load_recipe(str(copy)) == recipe


def test_single_values_are_replaced_and_checked() -> None:
    """None changes nothing; a bad value names its key."""
    recipe = load_recipe("resnet8")
    changed = override(recipe, training__epochs=3, training__seed=None, image__size=48)
    assert (changed.training.epochs, changed.image.size, changed.training.seed) == (3, 48, recipe.training.seed)
    with pytest.raises(ConfigError, match="epochs = 0: must be at least 1"):
        override(recipe, training__epochs=0)


OUT_OF_RANGE = [
    ("training", "batch_size", (-1,)), ("training", "learning_rate", (0.0, -1.0, float("nan"))),
    ("training", "momentum", (-0.1, 1.0)), ("training", "weight_decay", (-1e-4,)), ("training", "warmup_epochs", (-1.0,)),
    ("training", "label_smoothing", (-0.1, 1.0)), ("training", "seed", (-1, 2**31)), ("augmentation", "shift", (-0.1, 0.51)),
    ("data", "val", (0.0, 0.5)), ("data", "val_pictures", (0,)), ("data", "test", (0.0, 0.5)),
    ("training", "ema", (-0.1, 1.0)), ("training", "clip_norm", (-1.0,)), ("training", "early_stopping", (-1,)),
    ("training", "step_factor", (0.0, 1.0)), ("training", "plateau_patience", (0,)), ("training", "focal_gamma", (-1.0,)),
    ("transfer", "frozen_epochs", (-1,)), ("transfer", "frozen_learning_rate", (0.0,)), ("adversarial", "epsilon", (-1.0, 129.0)),
    ("adversarial", "step", (0.0,)), ("adversarial", "steps", (0,)), ("augmentation", "rotate", (-1.0, 181.0)),
    ("augmentation", "zoom", (1.0,)), ("augmentation", "cutout", (1.1,)), ("augmentation", "mixup", (-0.1,)),
    ("export", "calibration_pictures", (49,)),
]  # fmt: skip


@pytest.mark.parametrize(("section", "key", "value"), [(s, k, v) for s, k, values in OUT_OF_RANGE for v in values])
def test_a_value_out_of_range_is_refused_by_its_key(section: str, key: str, value: float) -> None:
    """Before a training has run for an hour on it."""
    with pytest.raises(ConfigError, match=rf"{key} = {value}: must be "):
        override(load_recipe("resnet8"), **{f"{section}__{key}": value})
