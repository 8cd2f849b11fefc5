"""Structured pruning: whole channels leave a network, so that it is smaller and faster on any runtime.

Channels that belong together (`host.compress.channels`) leave together. They are ranked by the first-order Taylor criterion of
Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning": how much the loss would change without the
channel, estimated from (sum of gradient times weight) squared, averaged over batches of training pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ConfigError
from edgeclf.host.compress.channels import Channels, Ids, Ledger, trace, without
from edgeclf.host.keras import tensorflow

Target = Literal["macs", "parameters", "latency"]
TARGETS = get_args(Target)

TOGETHER = 8  # channels leave in such numbers, since kernels of all CPUs compute whole tiles of 8 or 16
LEAST = 8  # that stay in each layer, or half of a narrower one
LATENCY_PROBES = 6  # halvings of the search for a latency

Importance = npt.NDArray[np.float64]
Latency = Callable[[Any], float]


@dataclass(frozen=True)
class Pruned:
    """What left: `before` and `after` are of `what` (MACs, weights or milliseconds), `gone` counts channels of `channels`."""

    what: Target
    before: float
    after: float
    gone: int
    channels: int

    @property
    def share(self) -> float:
        """The share of the cost that left."""
        return 1 - self.after / self.before


def importance(model: Any, channels: Channels, batches: Iterable[tuple[Any, Any]]) -> Importance:
    """For the root of every channel, how much the loss would change without it; float64 (numbers of channels,).

    `batches` give normalised pictures and class indices. A channel that several layers make, as in a residual stage, gets
    what they give together.
    """
    tf = tensorflow()
    layers = [layer for layer in model.layers if layer.name in channels.computed]
    weights = [weight for layer in layers for weight in layer.trainable_weights]

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def gradients(pictures: Any, truth: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = tf.cast(model(pictures, training=False), tf.float32)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(truth, logits))
        return tape.gradient(loss, weights)

    found, count = np.zeros(len(channels.parents)), 0
    for pictures, truth in batches:
        products = [(w * g).numpy() for w, g in zip(weights, gradients(pictures, truth), strict=True)]
        found += _by_root(layers, channels, products) ** 2
        count += 1
    return found / max(1, count)


def _by_root(layers: list[Any], channels: Channels, products: list[Any]) -> Importance:
    """The sum of gradient times weight over all weights that make a channel."""
    sums, rest = np.zeros(len(channels.parents)), iter(products)
    for layer in layers:
        roots = channels.roots(channels.outputs[layer.name])
        for _ in layer.trainable_weights:
            product = next(rest)
            np.add.at(sums, roots, product.reshape(-1, product.shape[-1]).sum(axis=0))
    return sums


def prune(
    model: Any,
    share: float,
    target: Target,
    batches: Iterable[tuple[Any, Any]],
    latency: Latency,
    whole: Any = None,
) -> tuple[Any, Pruned]:
    """The network without the channels that matter least for what they cost, until `share` of the target has gone.

    The share is of `whole`, the network before any step, which is `model` itself where none is given. MACs and weights are
    counted; milliseconds are measured by `latency`. The new network has the layers' names and the
    weights of what stays, untrained since. Raises ConfigError when a layer cannot be followed, or when the share cannot be
    reached with the least number of channels in every layer.
    """
    if target not in TARGETS:
        raise ConfigError(f"channel target {target!r}: expected one of: {', '.join(TARGETS)}")
    channels = trace(model)
    widths = {names: len(roots) for names, roots in (channels if whole is None else trace(whole)).prunable().items()}
    order = _order(model, channels, importance(model, channels, batches), target, widths)
    cost = latency if target == "latency" else _counter(target)
    limit = (1 - share) * cost(model if whole is None else whole)
    if target == "latency":
        chosen = _until_latency(model, channels, [bundle for _, bundle in order], share, limit, latency)
    else:
        chosen = _until(model, channels, order, share, limit, target)
    narrow = without(model, channels, chosen)
    makers = sum(len(roots) for roots in channels.prunable().values())
    return narrow, Pruned(target, cost(model), cost(narrow), len(chosen), makers)


def _counter(target: str) -> Callable[[Any], float]:
    return lambda model: Ledger(model, trace(model), target).total


def _order(
    model: Any, channels: Channels, scores: Importance, target: str, widths: dict[frozenset[str], int]
) -> list[tuple[str, set[int]]]:
    """Sets of channels, each with its layers, in the order in which they leave: the one that loses least for what it saves."""
    ledger = Ledger(model, channels, "macs" if target == "latency" else target)
    waiting = {names: _bundles(roots, scores, widths[names]) for names, roots in channels.prunable().items()}
    order: list[tuple[str, set[int]]] = []
    while candidates := [(names, bundles[0]) for names, bundles in waiting.items() if bundles]:
        prices = [float(scores[list(b)].sum()) / max(ledger.saving(b), 1.0) for _, b in candidates]
        names, bundle = candidates[int(np.argmin(prices))]
        waiting[names].pop(0)
        ledger.remove(bundle)
        order.append((str(names), bundle))
    return order


def _bundles(roots: Ids, scores: Importance, width: int) -> list[set[int]]:
    """The channels of one group in sets that leave together, the least important first; the last ones stay.

    `width` is how many there were before any step, so that a later step does not go on below what the first one kept.
    """
    ranked = roots[np.argsort(scores[roots], kind="stable")]
    together = TOGETHER if width >= 2 * TOGETHER else 1
    stays = min(LEAST, math.ceil(width / 2))
    return [set(map(int, ranked[i : i + together])) for i in range(0, len(roots) - stays - together + 1, together)]


def _until(model: Any, channels: Channels, order: list[tuple[str, set[int]]], share: float, limit: float, what: str) -> set[int]:
    """Sets in that order while the cost is above the limit; the last is the smallest one that gets below it."""
    ledger, whole = Ledger(model, channels, what), limit / (1 - share)
    gone, waiting = set[int](), list(order)
    while waiting and ledger.total > limit:
        first = dict(reversed(waiting))  # a layer's own sets leave in their order
        enough = [item for item in first.items() if ledger.total - ledger.saving(item[1]) <= limit]
        next_one = waiting[0]
        if any(item == next_one for item in enough):
            next_one = min(enough, key=lambda item: ledger.saving(item[1]))
        waiting.remove(next_one)
        ledger.remove(next_one[1])
        gone |= next_one[1]
    if ledger.total > limit:
        raise _unreachable(share, what, 1 - ledger.total / whole)
    return gone


def _until_latency(
    model: Any, channels: Channels, order: list[set[int]], share: float, limit: float, latency: Latency
) -> set[int]:
    """As few sets as bring the measured latency down, found by halving; latency falls with them but for noise."""

    def after(count: int) -> set[int]:
        return set().union(*order[:count])

    reached = latency(without(model, channels, after(len(order))))
    if reached > limit:
        raise _unreachable(share, "latency", 1 - reached / (limit / (1 - share)))
    low, high = -1, len(order)
    for _ in range(LATENCY_PROBES):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        low, high = (low, middle) if latency(without(model, channels, after(middle))) <= limit else (middle, high)
    return after(high)


def _unreachable(share: float, what: str, most: float) -> ConfigError:
    return ConfigError(
        f"--prune-channels {share:g}: at most {most:.0%} of the {what} can go while every layer keeps {LEAST} channels "
        "or half of a narrower one; ask for less"
    )
