"""The training loop: from the checkpoint where there is one to the last epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclf.core.errors import ConfigError
from edgeclf.core.progress import Report
from edgeclf.core.recipe import Recipe
from edgeclf.host import adversarial, architectures, distribute
from edgeclf.host.batches import batch_size, training_batches, validation_batches
from edgeclf.host.checkpoint import OnEpoch, State, after_each_epoch, restore, use_average
from edgeclf.host.data import Dataset
from edgeclf.host.distribute import StrategyName
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.objective import compile_model


@dataclass(frozen=True)
class Options:
    """How a training runs, apart from what it computes: kept with the run, so that `--resume` goes on in the same way.

    `deterministic` makes TensorFlow refuse kernels that are not; `weights` is a file of weights to start from.
    """

    strategy: StrategyName = "none"
    deterministic: bool = False
    weights: str = ""


def fit(
    recipe: Recipe, dataset: Dataset, folder: Path, options: Options, on_epoch: OnEpoch | None, on_step: Report | None
) -> tuple[Any, State]:
    """Train, with a checkpoint in `folder` after every epoch: (float32 model with the weights to keep, what was reached)."""
    section, steps = recipe.training, len(dataset.parts["train"]) // batch_size(dataset, recipe.training)
    if options.deterministic:
        tensorflow().config.experimental.enable_op_determinism()
    strategy = distribute.strategy_of(options.strategy)
    with distribute.scope(strategy):
        model = _prepared(recipe, dataset, folder, options)
        compile_model(model, section, steps)
        state = restore(folder, model)
    if not state.is_over(section):
        model.fit(
            _shared(training_batches(dataset, recipe, first_epoch=len(state.history))),
            steps_per_epoch=steps,
            epochs=section.epochs,
            initial_epoch=len(state.history),
            validation_data=_shared(validation_batches(dataset, recipe)),
            callbacks=[after_each_epoch(folder, state, section, steps, on_epoch, on_step)],
            verbose=0,
        )
    use_average(model, section)
    plain = architectures.build(recipe, len(dataset.labels))  # float32, without optimiser state and loss
    plain.set_weights(state.best or model.get_weights())
    return plain, state


def _prepared(recipe: Recipe, dataset: Dataset, folder: Path, options: Options) -> Any:
    """The network as it starts: seeded, in its precision, with given weights where there are any."""
    keras().utils.set_random_seed(recipe.training.seed)
    with _precision(recipe.training.precision):
        model = architectures.build(recipe, len(dataset.labels))
        if recipe.adversarial.epsilon:
            model = adversarial.trained_on_attacks(model, recipe.adversarial, recipe.training.seed)
    return model


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    """Layers made inside compute in `name`; their weights are float32."""
    policy = keras().mixed_precision
    if name == "float16" and not tensorflow().config.list_physical_devices("GPU"):
        raise ConfigError("precision float16 needs a GPU; on a CPU use bfloat16 or float32")
    before = policy.global_policy()
    policy.set_global_policy(name if name == "float32" else f"mixed_{name}")
    try:
        yield
    finally:
        policy.set_global_policy(before)


def _shared(batches: Any) -> Any:
    """Workers divide each batch among them; without this, TensorFlow looks for files to divide and warns."""
    options = tensorflow().data.Options()
    options.experimental_distribute.auto_shard_policy = tensorflow().data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options)
