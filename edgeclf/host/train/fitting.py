"""The training loop: from the checkpoint where there is one to the last epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeclf.core.errors import ModelError
from edgeclf.core.progress import Bar, Report
from edgeclf.core.recipe import Recipe
from edgeclf.host import architectures
from edgeclf.host.data.batches import Share, batch_size, check_shares, steps_of, streamed, training_batches, validation_batches
from edgeclf.host.data.dataset import Dataset
from edgeclf.host.keras import keras, tensorflow
from edgeclf.host.train import adversarial, distribute, dropout, precision, transfer, weights
from edgeclf.host.train.checkpoint import CHECKPOINT, OnEpoch, Row, State, after_each_epoch, restore, use_average, write_history
from edgeclf.host.train.distribute import StrategyName
from edgeclf.host.train.objective import compile_model


@dataclass(frozen=True)
class Options:
    """How a training runs, apart from what it computes: kept with the run, so that `--resume` goes on in the same way.

    `deterministic` makes TensorFlow refuse kernels that are not; `weights` is a file of weights to start from, which must
    still have the SHA-256 `weights_sha256` when a training goes on before its first checkpoint.
    """

    strategy: StrategyName = "none"
    deterministic: bool = False
    weights: str = ""
    weights_sha256: str = ""


def startable(
    recipe: Recipe, classes: int, options: Options, say: Callable[[str], None], bar: Bar
) -> tuple[Options, dict[str, str]]:
    """(the options with the weights to start from found, what the card says of these weights; nothing where there are none).

    Weights that the recipe wants are downloaded where Keras' cache lacks them: `say` announces that, `bar` shows it. Builds
    the network, so that options, sizes and weights that do not fit are refused before pictures are read: ConfigError,
    ModelError.
    """
    network = architectures.build(recipe, classes)
    found = weights.find(recipe, options.weights, say, bar)
    if not found:
        return options, {}
    transfer.load(network, recipe, found)
    return replace(options, weights=str(found.path.resolve()), weights_sha256=found.sha256), found.provenance()


@dataclass(frozen=True)
class Listeners:
    """Who hears of a training: each epoch, the steps within it, and each epoch of a frozen first stage."""

    on_epoch: OnEpoch | None = None
    on_step: Report | None = None
    on_frozen: OnEpoch | None = None


def fit(recipe: Recipe, dataset: Dataset, folder: Path, options: Options, listeners: Listeners) -> tuple[Any, State]:
    """Train, with a checkpoint in `folder` after every epoch: (float32 model with the weights to keep, what was reached).

    Of several workers all go on from the checkpoint of worker 0. Raises EdgeclfError when one of them is lost.
    """
    if options.deterministic:
        tensorflow().config.experimental.enable_op_determinism()
    strategy, worker = distribute.strategy_of(options.strategy), distribute.worker(options.strategy)
    with distribute.together(folder, worker):
        distribute.share(folder / CHECKPOINT, strategy, worker)
        return _fit(recipe, dataset, folder, options, listeners)


def _fit(recipe: Recipe, dataset: Dataset, folder: Path, options: Options, listeners: Listeners) -> tuple[Any, State]:
    section, steps = recipe.training, steps_of(dataset, recipe.training)
    with distribute.scope(distribute.strategy_of(options.strategy)):
        model, frozen = _prepared(recipe, dataset, folder, options, listeners)
        compile_model(model, section, steps)
        state = restore(folder, model)
    frozen_only = bool(options.weights) and recipe.transfer.thaw == "none"
    if frozen_only:
        state = State(frozen)
        write_history(folder, frozen)
    elif not state.is_over(section):
        run_epochs(model, recipe, dataset, folder, state, listeners)
    if not frozen_only:
        use_average(model, section)
    plain = architectures.build(recipe, len(dataset.labels), folder)  # float32, without optimiser state and loss
    plain.set_weights(state.best or model.get_weights())
    return plain, state


def run_epochs(
    model: Any,
    recipe: Recipe,
    dataset: Dataset,
    folder: Path,
    state: State,
    listeners: Listeners,
    until: int = 0,
    callbacks: Sequence[Any] = (),
) -> None:
    """Train a compiled model from where `state` is to the epoch `until` (0: the recipe's last), a checkpoint after each."""
    section = recipe.training
    steps = steps_of(dataset, section)
    model.fit(
        _drawn(dataset, recipe, len(state.history), model.distribute_strategy),
        steps_per_epoch=steps,
        epochs=until or section.epochs,
        initial_epoch=len(state.history),
        validation_data=_as_wanted(validation_batches(dataset, recipe)),
        callbacks=[*callbacks, after_each_epoch(folder, state, section, steps, listeners.on_epoch, listeners.on_step)],
        verbose=0,
    )  # fmt: skip


def _prepared(recipe: Recipe, dataset: Dataset, folder: Path, options: Options, listeners: Listeners) -> tuple[Any, list[Row]]:
    """The network as it starts: seeded, in its precision, with given weights where there are any; and the first stage's rows."""
    seed, classes = recipe.training.seed, len(dataset.labels)
    keras().utils.set_random_seed(seed)
    with precision.computing_in(recipe.training.precision):
        model = architectures.build(recipe, classes, folder)
    dropout.make_repeatable(model)
    rows = []
    if options.weights:
        if not (folder / CHECKPOINT).exists():
            rows = _first_stage(model, recipe, dataset, folder, options, listeners)
        transfer.freeze(model, recipe)
        keras().utils.set_random_seed(seed)
    if recipe.adversarial.epsilon:
        model = adversarial.trained_on_attacks(model, recipe.adversarial, seed)
    return model, rows


def _first_stage(model: Any, recipe: Recipe, dataset: Dataset, folder: Path, options: Options, listeners: Listeners) -> list[Row]:
    """Give `model` the weights, and a head trained on the frozen network, which computes in float32."""
    begun, found = architectures.build(recipe, len(dataset.labels), folder), weights.find(recipe, options.weights)
    if found and options.weights_sha256 not in ("", found.sha256):
        raise ModelError(f"{options.weights}: has changed since {folder} was started; restore it, or start a new run")
    rows = transfer.prepare(begun, recipe, dataset, folder, found, listeners.on_step, listeners.on_frozen) if found else []
    model.set_weights(begun.get_weights())
    return rows


def _drawn(dataset: Dataset, recipe: Recipe, first_epoch: int, strategy: Any) -> Any:
    """Training batches; several workers get theirs from shards of their own, where there are shards."""

    def own(context: Any) -> Any:
        devices = context.num_replicas_in_sync // context.num_input_pipelines
        share = Share(context.input_pipeline_id, context.num_input_pipelines, devices)
        return _as_wanted(training_batches(dataset, recipe, first_epoch, share))

    several = isinstance(strategy, tensorflow().distribute.MultiWorkerMirroredStrategy)
    if not several or not streamed(dataset):
        return _as_wanted(training_batches(dataset, recipe, first_epoch))
    check_shares(batch_size(dataset, recipe.training), strategy.num_replicas_in_sync)
    return strategy.distribute_datasets_from_function(own)


def _as_wanted(batches: Any) -> Any:
    """Batches that several workers divide among them, and that end as soon as they are no longer wanted.

    Without the first, TensorFlow looks for files to divide and warns. Without the second, a thread that tunes what leaves
    nothing to tune sleeps for twice as long each time, up to a minute, and whoever drops an iterator waits for it.
    """
    options = tensorflow().data.Options()
    options.experimental_distribute.auto_shard_policy = tensorflow().data.experimental.AutoShardPolicy.DATA
    options.autotune.enabled = False
    return batches.with_options(options)
