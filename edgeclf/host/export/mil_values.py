"""What a Core ML program computes, worked out operator by operator where Core ML itself cannot run.

coremltools folds constants: an operator whose inputs are known gets its value by coremltools' own arithmetic, rounding to
float16 included. Given a picture as a constant the whole program folds, but for the few operators that coremltools never
folds; those are computed here as Apple's reference of MIL operators defines them
(https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html), windows by TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeclf.core.errors import ModelError
from edgeclf.core.image import Pixels
from edgeclf.host.keras import tensorflow
from edgeclf.runtime.engine import Scores

Values = npt.NDArray[Any]
Look = Callable[[Any], Any]  # the value of a variable of the program, None for an input that is not given
TO_PIXELS, TO_CHANNELS = (0, 2, 3, 1), (0, 3, 1, 2)


class Unfoldable(Exception):
    """An operator whose value neither coremltools nor this module works out; `str()` of it is its type."""


class Program:
    """A classifier as its package holds it: one picture in, `classify` out.

    `labels` are its classes in order, `operators` what is computed, in an order that works. Raises ModelError for
    a program that is not a softmax of logits, classified.
    """

    def __init__(self, spec: Any, weights_folder: str) -> None:
        from coremltools.converters.mil.frontend.milproto.load import load

        program = load(spec, spec.specificationVersion, weights_folder)
        self._function = program.functions["main"]
        self.operators = [op for op in self._function.operations if op.op_type not in ("const", "classify")]
        classify = [op for op in self._function.operations if op.op_type == "classify"]
        if len(self._function.inputs) != 1 or len(classify) != 1:
            raise ModelError("the Core ML program is no classifier of one picture")
        (self._picture,) = self._function.inputs.values()
        self._probabilities = classify[0].probabilities
        self._logits = _logits(self._probabilities)
        self.labels = tuple(str(label) for label in classify[0].classes.val)
        self._fixed: dict[Any, Any] = {}

    def answer(self, pictures: Pixels) -> tuple[Scores, Scores]:
        """Logits and probabilities of prepared pictures (uint8; n, height, width, channels): float32 (n, classes) each.

        Raises Unfoldable. Not for several threads: coremltools builds its programs on one stack.
        """
        found = [self._fold(picture) for picture in pictures]
        logits, probabilities = (np.concatenate(rows).astype(np.float32) for rows in zip(*found, strict=True))
        return logits, probabilities

    def _fold(self, picture: Pixels) -> tuple[Values, Values]:
        from coremltools.converters.mil.mil import Builder, Function

        known = dict(self._fixed)

        def look(variable: Any) -> Any:
            return None if variable is None else known[variable].val if variable in known else _constant(variable)

        with Function({}, opset_version=self._function.opset_version):
            known[self._picture] = Builder.const(val=picture.transpose(2, 0, 1)[None].astype(np.float32))
            for op in self.operators:
                if op.outputs[0] not in known:
                    made = dict(zip(op.outputs, _folded(op, look), strict=True))
                    known |= made
                    if op.op_type.startswith("constexpr_"):  # the same for every picture
                        self._fixed |= made
            return look(self._logits), look(self._probabilities)


def _logits(probabilities: Any) -> Any:
    """What the softmax before a tensor of probabilities is taken of."""
    while probabilities.op is not None and probabilities.op.op_type == "cast":
        probabilities = probabilities.op.x
    if probabilities.op is None or probabilities.op.op_type != "softmax":
        raise ModelError("the Core ML program does not end in a softmax of logits")
    return probabilities.op.x


def _constant(variable: Any) -> Any:
    """Of a `const`; numpy's truth value as Python's, which coremltools' own arithmetic wants for `keep_dims`."""
    value = variable.val
    return bool(value) if isinstance(value, np.bool_) else value


def _folded(op: Any, look: Look) -> list[Any]:
    """The outputs of an operator as variables that carry their values. Raises Unfoldable."""
    try:
        return _computed(op, look)
    except Unfoldable:
        raise
    except Exception as error:  # neither numpy nor TensorFlow nor coremltools say beforehand what they refuse
        raise Unfoldable(op.op_type) from error


def _computed(op: Any, look: Look) -> list[Any]:
    from coremltools.converters.mil.mil import Builder

    if op.op_type in OWN:
        return [Builder.const(val=OWN[op.op_type](op, look))]
    given = {
        name: [look(v) for v in variable] if isinstance(variable, (list, tuple)) else look(variable)
        for name, variable in op.inputs.items()
        if variable is not None
    }
    made = getattr(Builder, op.op_type)(**given)
    outputs = list(made) if isinstance(made, (list, tuple)) else [made]
    if any(output.val is None for output in outputs):
        raise Unfoldable(op.op_type)
    return outputs


def _conv(op: Any, look: Look) -> Values:
    tf, x, weight, bias = tensorflow(), look(op.x), look(op.weight), look(op.bias)
    groups, strides, dilations = int(look(op.groups) or 1), _pair(look(op.strides)), _pair(look(op.dilations))
    span = tuple((size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilations, strict=True))
    pixels = _padded(op, look, x, span, strides, 0.0)
    kernel = weight.astype(np.float32).transpose(2, 3, 1, 0)
    if groups == 1:
        made = tf.nn.convolution(pixels, kernel, strides=strides, padding="VALID", dilations=dilations)
    elif groups == x.shape[1]:  # both formats lay a channel's outputs side by side
        kernel = kernel.reshape(*kernel.shape[:2], groups, -1)
        made = tf.nn.depthwise_conv2d(pixels, kernel, (1, *strides, 1), "VALID", dilations=dilations)
    else:
        raise Unfoldable("conv in groups")
    return _as_channels(made.numpy() + (0 if bias is None else bias.astype(np.float32)), x)


def _pool(op: Any, look: Look) -> Values:
    tf, x = tensorflow(), look(op.x)
    size, strides = tuple(int(n) for n in look(op.kernel_sizes)), _pair(look(op.strides))
    if op.ceil_mode is not None and look(op.ceil_mode):
        raise Unfoldable(f"{op.op_type} with ceil_mode")
    if op.op_type == "max_pool":
        return _as_channels(tf.nn.max_pool2d(_padded(op, look, x, size, strides, -np.inf), size, strides, "VALID").numpy(), x)

    def mean(values: Values) -> Values:
        found: Values = tf.nn.avg_pool2d(_padded(op, look, values, size, strides, 0.0), size, strides, "VALID").numpy()
        return found

    made = mean(x)
    if look(op.exclude_padding_from_average):
        made = made / mean(np.ones_like(x))
    return _as_channels(made, x)


def _batch_norm(op: Any, look: Look) -> Values:
    x = look(op.x)
    mean, variance, gamma, beta = (
        np.asarray(fallback if look(v) is None else look(v), np.float32).reshape(1, -1, 1, 1)
        for v, fallback in ((op.mean, 0), (op.variance, 1), (op.gamma, 1), (op.beta, 0))
    )
    made = (x.astype(np.float32) - mean) / np.sqrt(variance + np.float32(look(op.epsilon))) * gamma + beta
    return np.asarray(made.astype(x.dtype))


def _silu(op: Any, look: Look) -> Values:
    x = look(op.x)
    wide = x.astype(np.float32)
    return np.asarray((wide / (1 + np.exp(-wide))).astype(x.dtype))


def _local_response_norm(op: Any, look: Look) -> Values:
    """MIL divides alpha by the size of the window, TensorFlow does not."""
    x, size = look(op.x), int(look(op.size))
    alpha, beta, k = (float(look(v)) for v in (op.alpha, op.beta, op.k))
    pixels = x.astype(np.float32).transpose(TO_PIXELS)
    return _as_channels(tensorflow().nn.lrn(pixels, (size - 1) // 2, k, alpha / size, beta).numpy(), x)


def _affine_dequantize(op: Any, look: Look) -> Values:
    stored, scale, zero_point = look(op.quantized_data), np.asarray(look(op.scale)), np.asarray(look(op.zero_point))
    along = [1] * stored.ndim
    along[int(look(op.axis))] = -1
    spread = [values.astype(np.float32).reshape(along) if values.ndim else values for values in (scale, zero_point)]
    return np.asarray(((stored.astype(np.float32) - spread[1]) * spread[0]).astype(scale.dtype))


OWN: dict[str, Callable[[Any, Look], Values]] = {
    "conv": _conv, "max_pool": _pool, "avg_pool": _pool, "batch_norm": _batch_norm, "silu": _silu,
    "local_response_norm": _local_response_norm, "constexpr_affine_dequantize": _affine_dequantize,
}  # fmt: skip


def _pair(values: Any) -> tuple[int, int]:
    down, across = (1, 1) if values is None else values
    return int(down), int(across)


def _padded(op: Any, look: Look, x: Values, size: tuple[int, ...], strides: tuple[int, int], value: float) -> Values:
    """`x` as float32 with the channels last, within the border that `pad_type` asks for; `size` is what the window spans."""
    kind, given = str(look(op.pad_type) or "valid"), look(op.pad)
    border = [(0, 0), (0, 0)]
    if kind == "custom":
        border = [(int(given[0]), int(given[1])), (int(given[2]), int(given[3]))]
    elif kind != "valid":
        border = [_same(n, k, s) for n, k, s in zip(x.shape[2:], size, strides, strict=True)]
        border = border if kind == "same" else [(after, before) for before, after in border]  # else same_lower
    pixels = x.astype(np.float32).transpose(TO_PIXELS)
    return np.pad(pixels, ((0, 0), *border, (0, 0)), constant_values=value)


def _same(length: int, size: int, stride: int) -> tuple[int, int]:
    """Before and after, so that a window at every `stride` starts within; an odd one more after. As TensorFlow means it."""
    missing = max((-(-length // stride) - 1) * stride + size - length, 0)
    return missing // 2, missing - missing // 2


def _as_channels(pixels: Values, like: Values) -> Values:
    """Channels first, in the type of `like`, which is what rounds to float16."""
    return np.ascontiguousarray(pixels.transpose(TO_CHANNELS)).astype(like.dtype)
