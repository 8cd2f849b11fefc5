"""Quantisation-aware training: a network trained with the rounding of its int8 file, by tensorflow-model-optimization.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference". What comes
out is a plain float network and a range for each tensor, from which `host.export.quantize` writes the int8 file as it writes
every other; so the accuracy of that very file decides which epoch is kept, and not what the training graph shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edgeclf.core.errors import ModelError
from edgeclf.core.tflite import TfliteModel
from edgeclf.host.compress.sparsity import copy_of
from edgeclf.host.export.activations import INPUT_RANGE, Ranges
from edgeclf.host.keras import keras, tensorflow, tfmot
from edgeclf.host.quiet import hushed, quiet

PREFIX = "quant_"
FOLLOWED_BY_NORMALISATION = ("Conv2D", "DepthwiseConv2D", "Dense")
FUSED = ("BatchNormalization", "ReLU", "Activation")  # the converter makes one operator of these and what is before them

LayerRanges = dict[str, tuple[float, float]]  # by the name of the layer whose output it is


@dataclass(frozen=True, eq=False)
class FakeQuantised:
    """A network in quantisation-aware training: `model` trains, `plain` is the float network that it was made of.

    `left_out` names layers that tfmot cannot imitate, with their kinds: they train in floats, and their ranges are those
    of calibration.
    """

    model: Any
    plain: Any
    left_out: tuple[str, ...]


def wrap(plain: Any, ranges: LayerRanges) -> FakeQuantised:
    """The network with fake quantisation, starting from ranges that calibration found.

    The input's range is set to what makes a quantised input the pixel itself, and stays. Raises ModelError when tfmot
    refuses the network as a whole.
    """
    left_out = tuple(
        f"{layer.name} ({type(layer).__name__})"
        for layer in plain.layers
        if not _imitated(layer) and type(layer).__name__ != "InputLayer"
    )

    def annotated(layer: Any) -> Any:
        return tfmot().quantization.keras.quantize_annotate_layer(layer) if _imitated(layer) else layer

    try:
        with quiet(), hushed("tensorflow", "absl"):
            marked = keras().models.clone_model(copy_of(plain), clone_function=annotated)
            marked.set_weights(plain.get_weights())
            model = tfmot().quantization.keras.quantize_apply(marked)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{plain.name}: quantisation-aware training cannot imitate this network: {reason}; use export --int8, whose "
            "ranges come from calibration"
        ) from error
    wrapped = FakeQuantised(model, plain, left_out)
    _set_ranges(wrapped, ranges)
    return wrapped


def _imitated(layer: Any) -> bool:
    """Whether tfmot knows the layer; normalisation only where it is folded into what is before it."""
    if type(layer).__name__ == "InputLayer":
        return False
    if type(layer).__name__ == "BatchNormalization":
        before = layer.inbound_nodes[0].inbound_layers
        return type(before).__name__ in FOLLOWED_BY_NORMALISATION and len(before.outbound_nodes) == 1
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import default_8bit_quantize_registry

    return bool(default_8bit_quantize_registry.Default8BitQuantizeRegistry().supports(layer))


def _quantizers(model: Any) -> dict[str, tuple[Any, Any]]:
    """The variables (low, high) of each layer's output range, by the layer's own name."""
    found = {}
    for layer in model.layers:
        pairs = {w.name.split("/")[-1].split(":")[0]: w for w in layer.weights}
        for kind in ("output", "post_activation"):
            if f"{kind}_min" in pairs:
                found[layer.name.removeprefix(PREFIX)] = pairs[f"{kind}_min"], pairs[f"{kind}_max"]
    return found


def _set_ranges(wrapped: FakeQuantised, ranges: LayerRanges) -> None:
    for name, (low, high) in _quantizers(wrapped.model).items():
        if name in ranges:
            low.assign(ranges[name][0])
            high.assign(ranges[name][1])
    for layer in wrapped.model.layers:
        if hasattr(layer, "quantizer_vars"):
            layer.quantizer_vars["min_var"].assign(INPUT_RANGE[0])
            layer.quantizer_vars["max_var"].assign(INPUT_RANGE[1])
            layer.quantizer = _fixed()


def _fixed() -> Any:
    """A quantiser whose range does not move."""
    tf = tensorflow()

    class Fixed(tfmot().quantization.keras.quantizers.MovingAverageQuantizer):  # type: ignore[misc]
        def __call__(self, inputs: Any, training: Any, weights: Any, **rest: Any) -> Any:
            return tf.quantization.fake_quant_with_min_max_vars(inputs, weights["min_var"], weights["max_var"])

    return Fixed(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)


def kernels(wrapped: FakeQuantised) -> dict[str, Any]:
    """The variable of each layer's kernel before it is rounded, by the layer's name."""
    return {name: found["kernel"] for name, found in _variables(wrapped).items() if "kernel" in found}


def _variables(wrapped: FakeQuantised) -> dict[str, dict[str, Any]]:
    """The trained variables of each layer of the plain network, by layer and by their own short names."""
    names = {layer.name for layer in wrapped.plain.layers if layer.weights}
    found = {}
    for layer in wrapped.model.layers:
        if layer.name.removeprefix(PREFIX) in names:
            found[layer.name.removeprefix(PREFIX)] = {_short(w): w for w in layer.weights}
    return found


def _short(variable: Any) -> str:
    return str(variable.name).split("/")[-1].split(":")[0]


def strip(wrapped: FakeQuantised) -> tuple[Any, LayerRanges]:
    """(a plain float network with the trained weights, the range of each output that was imitated)."""
    plain, trained = copy_of(wrapped.plain), _variables(wrapped)
    for layer in plain.layers:
        if layer.weights:
            layer.set_weights([trained[layer.name][_short(w)].numpy() for w in layer.weights])
    pairs = _quantizers(wrapped.model).items()
    return plain, {name: (float(low.numpy()), float(high.numpy())) for name, (low, high) in pairs}


def freeze_normalisation(wrapped: FakeQuantised) -> None:
    """Let batch normalisation use its averages from here on; the training function is made anew."""
    for layer in wrapped.model.layers:
        inner = getattr(layer, "layer", layer)
        if isinstance(inner, keras().layers.BatchNormalization):
            inner.trainable = False


def by_layer(ranges: Ranges, structure: TfliteModel, plain: Any) -> LayerRanges:
    """Ranges of a float32 file's tensors as ranges of the layers that give them."""
    owners = tensor_layers(computed(structure), plain)
    return {layer: ranges.by_tensor[tensor] for tensor, layer in owners.items() if tensor in ranges.by_tensor}


def by_tensor(trained: LayerRanges, calibrated: Ranges, structure: TfliteModel, plain: Any) -> Ranges:
    """The calibrated ranges of all tensors, with the trained ones where training has them."""
    return Ranges({**calibrated.by_tensor, **of_tensors(trained, computed(structure), plain)}, calibrated.pictures)


def of_tensors(trained: LayerRanges, tensors: Iterable[str], plain: Any) -> dict[str, tuple[float, float]]:
    """The trained range of each tensor, by its name, whose layer has one."""
    return {tensor: trained[layer] for tensor, layer in tensor_layers(tensors, plain).items() if layer in trained}


def computed(structure: TfliteModel) -> Iterator[str]:
    """Names of the tensors that the operators of a file compute."""
    return (structure.tensors[operator.outputs[0]].name for operator in structure.operators)


def tensor_layers(tensors: Iterable[str], plain: Any) -> dict[str, str]:
    """Which layer gives each computed tensor of a float32 file: tensor name → layer name.

    The converter names a tensor after the operations that it fused, "model/relu/Relu;model/conv/Conv2D"; where it names a
    convolution alone, what follows it and was folded into it gives the tensor.
    """
    layers = {layer.name: layer for layer in plain.layers}
    longest = sorted(layers, key=len, reverse=True)
    found = {}
    for tensor in tensors:
        first = tensor.split(";")[0].removeprefix(f"{plain.name}/")
        name = next((n for n in longest if first.startswith(f"{n}/")), None)
        if name is not None:
            found[tensor] = _last_fused(layers[name]).name
    return found


def _last_fused(layer: Any) -> Any:
    """The last of the layers that become one operator with this one."""
    if type(layer).__name__ not in (*FOLLOWED_BY_NORMALISATION, "BatchNormalization", "Add"):
        return layer
    after = [node.outbound_layer for node in layer.outbound_nodes]
    if len(after) == 1 and type(after[0]).__name__ in FUSED and _is_fusible(after[0]):
        return _last_fused(after[0])
    return layer


def _is_fusible(layer: Any) -> bool:
    """Normalisation, or an activation that a kernel applies by clipping."""
    if type(layer).__name__ == "Activation":
        return layer.get_config()["activation"] in ("relu", "relu6", "linear")
    return True
