"""Dropout whose draws follow from seed and epoch alone, so that an interrupted training goes on as if it had not been."""

from __future__ import annotations

from typing import Any

from edgeclf.host.keras import keras

LARGEST_SEED = 2**31 - 1


def make_repeatable(model: Any) -> None:
    """Give every dropout layer a generator that `start_epoch` can set; Keras' own draws go on from where a process began."""
    for layer in _dropouts(model):
        kind = type(layer._random_generator)  # Keras names it nowhere in public
        layer._random_generator = kind(0, rng_type="stateful")
        layer._random_generator._maybe_init()


def start_epoch(model: Any, seed: int, epoch: int) -> None:
    """Set the generators to what this epoch draws from; each layer has its own stream. Needs `make_repeatable` before."""
    for number, layer in enumerate(_dropouts(model)):
        mixed = (seed * 1_000_003 + epoch * 10_007 + number * 101) % LARGEST_SEED
        layer._random_generator._generator.reset_from_seed(mixed)


def _dropouts(model: Any) -> list[Any]:
    return [layer for layer in model.layers if isinstance(layer, keras().layers.Dropout)]
