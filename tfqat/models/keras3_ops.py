"""Which tf_keras layer computes what a call of an operation of Keras 3 (`x + y`, `keras.ops.relu(x)`) computes.

    keras.ops.mean(x, axis=(1, 2))    ->   GlobalAveragePooling2D()(x)
    x * 0.5 + 1                       ->   Rescaling(1.0, offset=1)(Rescaling(0.5)(x))

A rule looks at one call and returns the class and arguments of the layer, or None where the layer would compute something else; such a call
becomes a `KerasOperation`. Checked on Keras 3.15.1 and tf-keras 2.21.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfqat.models import activations

Layer = tuple[str, Mapping[str, Any]]
"""The name of a class in `tf_keras.layers`, and what its constructor takes."""


@dataclass(frozen=True, kw_only=True)
class OperationCall:
    """An operation, what it is called with, the symbolic tensors among that, and the one it returns (the first of several)."""

    operation: Any
    args: Sequence[Any]
    tensors: Sequence[Any]
    output: Any

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of the first tensor."""
        return tuple(self.tensors[0].shape)


def layer_for(call: OperationCall) -> Layer | None:
    """The tf_keras layer for a call; None if there is none, or if some tensor is not of the result's type."""
    rule = _RULES.get(type(call.operation).__name__)
    if rule is None or any(tensor.dtype != call.output.dtype for tensor in call.tensors) or "float" not in call.output.dtype:
        return None
    return rule(call)


def _merge(layer: str) -> Callable[[OperationCall], Layer | None]:
    """Rule for two tensors of one rank: tf_keras expands a tensor of a lower rank at its second axis, not at its first."""

    def rule(call: OperationCall) -> Layer | None:
        same = len({(len(tensor.shape), tensor.shape[0] if tensor.shape else None) for tensor in call.tensors}) == 1
        return (layer, {}) if len(call.args) == len(call.tensors) == 2 and same and len(call.shape) > 1 else None

    return rule


def _affine(merge: str | None, first: Callable[[Any], Any], second: Callable[[Any], Any] | None) -> Callable[[OperationCall], Layer | None]:
    """Rule for tensor and constant: `first` makes (scale, offset) of the constant in `x op c`, `second` that in `c op x`."""

    def rule(call: OperationCall) -> Layer | None:
        if len(call.tensors) == 2:
            return _merge(merge)(call) if merge else None
        if len(call.args) != 2 or not call.tensors:
            return None
        after = call.args[0] is call.tensors[0]
        constant, made = call.args[1 if after else 0], first if after else second
        value = _factor(constant, call)
        if made is None or value is None:
            return None
        scale, offset = made(value)
        return "Rescaling", {"scale": _number(scale), "offset": _number(offset)}

    return rule


def _factor(constant: Any, call: OperationCall) -> Any:
    """A constant as float64 array if it is a number, or one number for each channel; None otherwise."""
    if isinstance(constant, bool) or not (isinstance(constant, int | float) or hasattr(constant, "__array__")):
        return None
    value = np.asarray(constant)
    fits = value.ndim == 0 or (value.ndim == 1 and len(call.shape) > 1 and value.shape[0] == call.shape[-1])
    return value.astype(np.float64) if fits and value.dtype.kind in "iuf" and tuple(call.output.shape) == call.shape else None


def _number(value: Any) -> Any:
    return np.asarray(value).tolist()


def _activation(call: OperationCall) -> Layer | None:
    return "Activation", {"activation": _FUNCTIONS[type(call.operation).__name__]}


def _gelu(call: OperationCall) -> Layer | None:
    return "Activation", {"activation": activations.gelu_tanh if call.operation.approximate else "gelu"}


def _relu_of_keras(call: OperationCall) -> Layer | None:
    settings = {key: getattr(call.operation, key) for key in ("negative_slope", "max_value", "threshold")}
    return "ReLU", settings


def _leaky_relu(call: OperationCall) -> Layer | None:
    return "LeakyReLU", {"alpha": call.operation.negative_slope}


def _elu(call: OperationCall) -> Layer | None:
    return "ELU", {"alpha": call.operation.alpha}


def _softmax(call: OperationCall) -> Layer | None:
    axis = call.operation.axis
    return ("Softmax", {"axis": axis}) if isinstance(axis, int) else None


def _with_default(name: str, default: Any) -> Callable[[OperationCall], Layer | None]:
    """Rule for an operation whose setting `name` is fixed in tf_keras or in our activation function."""
    return lambda call: _activation(call) if getattr(call.operation, name) == default else None


def _clip(call: OperationCall) -> Layer | None:
    low, high = call.operation.x_min, call.operation.x_max
    scalar = isinstance(low, int | float) and isinstance(high, int | float)
    return ("ReLU", {"max_value": float(high)}) if scalar and low == 0 < high else None


def _maximum(call: OperationCall) -> Layer | None:
    with_zero = [value for value in call.args if isinstance(value, int | float) and value == 0]
    return ("ReLU", {}) if len(call.tensors) == 1 and with_zero else _merge("Maximum")(call)


def _concatenate(call: OperationCall) -> Layer | None:
    ranks = {len(tensor.shape) for tensor in call.tensors}
    all_tensors = len(call.args) == 1 and len(call.args[0]) == len(call.tensors) > 1
    return ("Concatenate", {"axis": call.operation.axis}) if all_tensors and len(ranks) == 1 and _axis(call, call.operation.axis) else None


def _axis(call: OperationCall, axis: int) -> int:
    return axis % len(call.shape)


def _reshape(call: OperationCall) -> Layer | None:
    """Reshape, Squeeze, ExpandDims: one free axis beside the batch at most, and the batch as it was."""
    target = tuple(call.output.shape)
    if not target or not call.shape or target[0] != call.shape[0]:
        return None
    free, sizes = target[1:].count(None), [size for size in target[1:] if size is not None]
    if free == 0 and None not in call.shape[1:]:
        fits = math.prod(sizes) == math.prod(size or 0 for size in call.shape[1:])
    else:  # a Reshape may have taken elements of the batch for its free axis
        fits = free == 1 == call.shape[1:].count(None) and type(call.operation).__name__ != "Reshape"
    return ("Reshape", {"target_shape": tuple(-1 if size is None else size for size in target[1:])}) if fits else None


def _transpose(call: OperationCall) -> Layer | None:
    axes = call.operation.axes
    return ("Permute", {"dims": tuple(axes[1:])}) if axes is not None and axes[0] == 0 and min(axes) == 0 else None


def _pooling(kind: str) -> Callable[[OperationCall], Layer | None]:
    """Rule for a reduction over all spatial axes, with the channels last."""

    def rule(call: OperationCall) -> Layer | None:
        axes, rank = call.operation.axis, len(call.shape)
        if axes is None or getattr(call.operation, "initial", None) is not None or not 3 <= rank <= 5:
            return None
        spatial = sorted(axis % rank for axis in (axes if isinstance(axes, list | tuple) else [axes]))
        settings = {"keepdims": bool(call.operation.keepdims), "data_format": "channels_last"}
        return (f"Global{kind}Pooling{rank - 2}D", settings) if spatial == list(range(1, rank - 1)) else None

    return rule


def _pad(call: OperationCall) -> Layer | None:
    widths, rank = [tuple(width) for width in call.operation.pad_width], len(call.shape)
    zeros = call.operation.mode == "constant" and not any(call.args[1:]) and 3 <= rank <= 5
    if not zeros or len(widths) != rank or widths[0] != (0, 0) or widths[-1] != (0, 0):
        return None
    return f"ZeroPadding{rank - 2}D", {"padding": tuple(widths[1:-1]) if rank > 3 else widths[1]}


def _resize(call: OperationCall) -> Layer | None:
    op = call.operation
    plain = not (op.antialias or op.crop_to_aspect_ratio or op.pad_to_aspect_ratio) and op.data_format == "channels_last"
    settings = {"height": op.size[0], "width": op.size[1], "interpolation": op.interpolation}
    return ("Resizing", settings) if plain and len(call.shape) == 4 and op.interpolation != "nearest" else None


def _matmul(call: OperationCall) -> Layer | None:
    ranks = [len(tensor.shape) for tensor in call.tensors]
    batches = {tensor.shape[0] for tensor in call.tensors}
    same = len(call.args) == 2 and len(ranks) == 2 and ranks[0] == ranks[1] >= 3 and len(batches) == 1
    return ("MatMul", {}) if same else None


_FUNCTIONS: Mapping[str, Any] = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Silu": "swish",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "Selu": "selu",
    "Exp": "exponential",
    "Mish": "mish",
    "HardSigmoid": activations.hard_sigmoid_relu6,
    "HardSilu": activations.hard_silu,
    "HardTanh": activations.hard_tanh,
    "LogSigmoid": activations.log_sigmoid,
    "TanhShrink": activations.tanh_shrink,
    "SparsePlus": activations.sparse_plus,
    "SparseSigmoid": activations.sparse_sigmoid,
    "LogSoftmax": activations.log_softmax,
    "Celu": activations.celu,
    "Glu": activations.glu,
    "HardShrink": activations.hard_shrink,
    "SoftShrink": activations.soft_shrink,
    "Squareplus": activations.squareplus,
}
_DEFAULTS = {"LogSoftmax": ("axis", -1), "Celu": ("alpha", 1.0), "Glu": ("axis", -1), "Squareplus": ("b", 4)}
_DEFAULTS |= {"HardShrink": ("threshold", 0.5), "SoftShrink": ("threshold", 0.5)}

_RULES: Mapping[str, Callable[[OperationCall], Layer | None]] = {
    **{name: _activation for name in _FUNCTIONS},
    **{name: _with_default(*setting) for name, setting in _DEFAULTS.items()},
    "Add": _affine("Add", lambda c: (1.0, c), lambda c: (1.0, c)),
    "Subtract": _affine("Subtract", lambda c: (1.0, -c), lambda c: (-1.0, c)),
    "Multiply": _affine("Multiply", lambda c: (c, 0.0), lambda c: (c, 0.0)),
    "Divide": _affine(None, lambda c: (1 / c, 0.0), None),
    "TrueDivide": _affine(None, lambda c: (1 / c, 0.0), None),
    "Negative": lambda call: ("Rescaling", {"scale": -1.0}),
    "Maximum": _maximum,
    "Minimum": _merge("Minimum"),
    "Relu6": lambda call: ("ReLU", {"max_value": 6.0}),
    "ReLU": _relu_of_keras,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Gelu": _gelu,
    "Softmax": _softmax,
    "Clip": _clip,
    "Concatenate": _concatenate,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "ExpandDims": _reshape,
    "Transpose": _transpose,
    "Mean": _pooling("Average"),
    "Max": _pooling("Max"),
    "Pad": _pad,
    "Resize": _resize,
    "Matmul": _matmul,
}
