"""Keras graphs, walked layer by layer and built anew: flat, in float32, with layers exchanged on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from edgeclf.core.errors import ModelError
from edgeclf.host.keras import keras, tensorflow

Call: TypeAlias = Callable[..., Any]
"""What is called with tensors instead of a layer."""

STATELESS = ("TFOpLambda", "SlicingOpLambda")  # calls such as `x * 2`, which Keras wraps; they have nothing to copy


def rebuild(
    model: Any,
    swap: Callable[[Any], Call | None] = lambda layer: None,
    front: Call = lambda tensor: tensor,
    tail: Call = lambda tensor: tensor,
    side: int | None = None,
    reserved: frozenset[str] = frozenset(),
) -> Any:
    """The same network as one flat functional `tf_keras.Model` of float32 copies; nested models are laid out.

    `swap(layer)` may give something else to call in a layer's place, `front` and `tail` stand at the ends, and `side` is the
    side in pixels of an input that leaves it open; no copy takes a `reserved` name. Raises ModelError for a model without a
    graph, one with more than one input or output, and one whose input has no fixed size.
    """
    shape, copies = _input_shape(model, side), _Copies(swap, reserved)
    inputs = keras().layers.Input(shape[1:])
    outputs = tail(walk(model, front(inputs), copies.of))
    return keras().Model(inputs, outputs, name=model.name)


def walk(model: Any, tensor: Any, call: Callable[[Any], Call]) -> Any:
    """`model` on `tensor`, each layer replaced by what `call(layer)` gives; nested models are walked in their turn."""
    values = {str(id(model.inputs[0])): tensor}
    for node in nodes(model):
        arguments, keywords = node.map_arguments({key: [values[key]] * node_uses(node, key) for key in _ids(node)})
        keywords = {key: value for key, value in keywords.items() if key not in ("training", "mask")}
        layer = node.layer
        answer = walk(layer, arguments[0], call) if is_graph(layer) else call(layer)(*arguments, **keywords)
        values |= zip(node.flat_output_ids, tensorflow().nest.flatten(answer), strict=True)
    return values[str(id(model.outputs[0]))]


def nodes(model: Any) -> Iterator[Any]:
    """Calls of layers in an order in which they can be made, inputs left out. Raises ModelError when there is no graph."""
    if not is_graph(model) or not model.inputs:
        raise ModelError(
            f"{model.name}: is a network without a fixed graph (a subclass of Model, or Sequential that was never built); "
            "in the Python where it was made: model.export('folder'), and import that folder"
        )
    for depth in sorted(model._nodes_by_depth, reverse=True):  # no public way leads to the nodes of a model
        yield from (node for node in model._nodes_by_depth[depth] if not node.is_input)


def is_graph(layer: Any) -> bool:
    return isinstance(layer, keras().Model) and hasattr(layer, "_nodes_by_depth")


def node_uses(node: Any, key: str) -> int:
    """How many arguments of a call are that tensor."""
    return list(node.flat_input_ids).count(key)


def _ids(node: Any) -> list[str]:
    return list(dict.fromkeys(node.flat_input_ids))


def _input_shape(model: Any, side: int | None) -> tuple[int | None, ...]:
    next(nodes(model))
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        found = f"{len(model.inputs)} inputs and {len(model.outputs)} outputs"
        raise ModelError(f"{model.name}: has {found}; an image classifier has one of each")
    shape = tuple(model.inputs[0].shape)
    if len(shape) == 4 and side and shape[1:3] == (None, None):
        shape = (None, side, side, shape[3])
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3):
        raise ModelError(f"{model.name}: takes {shape[1:]}, channels first; build it again with data_format='channels_last'")
    if len(shape) == 4 and shape[3] in (1, 3) and None in shape[1:3]:
        raise ModelError(f"{model.name}: leaves the size of its input open; say it: --image-size PIXELS")
    if len(shape) != 4 or shape[3] not in (1, 3):
        raise ModelError(f"{model.name}: takes {shape[1:]}; a picture has (height, width, 1 or 3)")
    return shape


class _Copies:
    """One float32 copy of each layer, made when it is first met, so that a layer that is used twice stays one."""

    def __init__(self, swap: Callable[[Any], Call | None], reserved: frozenset[str]) -> None:
        self.swap, self.made, self.names = swap, dict[int, Call](), set(reserved)

    def of(self, layer: Any) -> Call:
        if id(layer) not in self.made:
            self.made[id(layer)] = self.swap(layer) or self._copy(layer)
        return self.made[id(layer)]

    def _copy(self, layer: Any) -> Call:
        if type(layer).__name__ in STATELESS:
            return layer  # type: ignore[no-any-return]
        name, number = layer.name, 2
        while name in self.names:
            name, number = f"{layer.name}_{number}", number + 1
        self.names.add(name)
        return with_weights(type(layer), {**layer.get_config(), "name": name, "dtype": "float32"}, layer.get_weights())


def with_weights(cls: Any, config: dict[str, Any], weights: list[Any]) -> Call:
    """A new layer from its configuration, which takes its weights when it is first called."""
    layer, fresh = cls.from_config(config), True

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal fresh
        answer = layer(*arguments, **keywords)
        if fresh and weights:
            layer.set_weights(weights)
        fresh = False
        return answer

    return call
