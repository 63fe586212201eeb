"""Which layers compute what arithmetic and activation functions of TensorFlow compute.

A rule takes an operation's arguments by name and returns the layer to make, or None where no layer computes the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tf_keras import layers

from tfqat.models.activations import gelu_tanh
from tfqat.models.layers import MatMul
from tfqat.models.steps import Rule, Step, constant, is_symbolic, per_channel, step


def merge(layer_class: Any, tensors: Sequence[Any]) -> Step | None:
    """Operations broadcast missing axes in front, layers after the batch: only tensors of one rank mean the same."""
    if not all(is_symbolic(tensor) for tensor in tensors) or len(tensors) < 2:
        return None
    ranks = {tensor.shape.rank for tensor in tensors}
    if len(ranks) != 1 or None in ranks or 0 in ranks:
        return None
    batches = {tensor.shape[0] for tensor in tensors} - {None}
    return step(layer_class, list(tensors)) if len(batches) <= 1 else None


def _rescale(tensor: Any, scale: np.ndarray | float, offset: np.ndarray | float) -> Step:
    return step(layers.Rescaling, tensor, scale=np.asarray(scale).tolist(), offset=np.asarray(offset).tolist())


def _add(x: Any, y: Any) -> Step | None:
    if is_symbolic(x) and is_symbolic(y):
        return merge(layers.Add, [x, y])
    tensor, other = (x, y) if is_symbolic(x) else (y, x)
    number = per_channel(other, tensor)
    return None if number is None else _rescale(tensor, 1.0, number)


def _subtract(x: Any, y: Any) -> Step | None:
    if is_symbolic(x) and is_symbolic(y):
        return merge(layers.Subtract, [x, y])
    if is_symbolic(x):
        number = per_channel(y, x)
        return None if number is None else _rescale(x, 1.0, -number)
    number = per_channel(x, y)
    return None if number is None else _rescale(y, -1.0, number)


def _multiply(x: Any, y: Any) -> Step | None:
    if is_symbolic(x) and is_symbolic(y):
        return merge(layers.Multiply, [x, y])
    tensor, other = (x, y) if is_symbolic(x) else (y, x)
    number = per_channel(other, tensor)
    return None if number is None else _rescale(tensor, number, 0.0)


def _divide(x: Any, y: Any) -> Step | None:
    number = per_channel(y, x) if is_symbolic(x) else None
    return None if number is None or not number.all() else _rescale(x, 1.0 / number, 0.0)


def _bias_add(value: Any, bias: Any, data_format: Any) -> Step | None:
    return _add(value, bias) if is_symbolic(value) and not str(data_format or "").startswith("NC") else None


def _maximum(x: Any, y: Any) -> Step | None:
    if is_symbolic(x) and is_symbolic(y):
        return merge(layers.Maximum, [x, y])
    tensor, other = (x, y) if is_symbolic(x) else (y, x)
    number = per_channel(other, tensor)
    return step(layers.ReLU, tensor) if number is not None and number.ndim == 0 and number == 0 else None


def _matmul(a: Any, b: Any, transpose_b: bool, **options: Any) -> Step | None:
    """Tensors of rank 2 are left alone: their product mixes the batch."""
    if any(options.values()) or not (is_symbolic(a) and is_symbolic(b)) or a.shape.rank != b.shape.rank or (a.shape.rank or 0) < 3:
        return None
    return step(MatMul, [a, b], transpose_b=bool(transpose_b))


def dot(layer: Any, inputs: Sequence[Any]) -> Step | None:
    """The matrix product that a Dot layer is: it multiplies over the batch axis only, so that of rank 3 alone it is a matrix product."""
    if layer.normalize or [tensor.shape.rank for tensor in inputs] != [3, 3]:
        return None
    first, second = (layer.axes, layer.axes) if isinstance(layer.axes, int) else layer.axes
    if first % 3 != 2 or second % 3 == 0:
        return None
    config = {"transpose_b": second % 3 == 2, "dtype": layer.dtype, "trainable": layer.trainable}
    return Step(layer_class=MatMul, reads=list(inputs), config=config)


# Activations


def _activation(name: str) -> Callable[..., Step | None]:
    return lambda **arguments: step(layers.Activation, next(iter(arguments.values())), activation=name)


def _relu(features: Any) -> Step:
    return step(layers.ReLU, features)


def _relu6(features: Any) -> Step:
    return step(layers.ReLU, features, max_value=6.0)


def _leaky_relu(features: Any, alpha: Any) -> Step | None:
    slope = constant(alpha)
    return step(layers.LeakyReLU, features, alpha=float(slope)) if slope is not None and slope.ndim == 0 and slope >= 0 else None


def _silu(features: Any, beta: Any) -> Step | None:
    return step(layers.Activation, features, activation="swish") if constant(beta) == 1 else None


def _gelu(features: Any, approximate: bool) -> Step:
    return step(layers.Activation, features, activation=gelu_tanh if approximate else "gelu")


def _softmax(logits: Any, axis: Any) -> Step | None:
    axis = -1 if axis is None else axis
    rank = logits.shape.rank
    return step(layers.Softmax, logits, axis=axis) if isinstance(axis, int) and rank and axis % rank != 0 else None


def _clip(t: Any, clip_value_min: Any, clip_value_max: Any) -> Step | None:
    low, high = constant(clip_value_min), constant(clip_value_max)
    if low is None or high is None or low.ndim or high.ndim or low != 0 or high <= 0:
        return None
    return step(layers.ReLU, t, max_value=float(high))


def _identity(input: Any) -> Step:
    return step(layers.Activation, input, activation="linear")


def _cast(x: Any, dtype: Any) -> Step | None:
    return _identity(x) if tf.as_dtype(dtype) == tf.float32 else None


ARITHMETIC: Mapping[str, Rule] = {
    "__operators__.add": _add,
    "math.add": _add,
    "math.add_n": lambda inputs: merge(layers.Add, inputs),
    "math.subtract": _subtract,
    "math.multiply": _multiply,
    "math.truediv": _divide,
    "math.divide": _divide,
    "math.negative": lambda x: _rescale(x, -1.0, 0.0),
    "math.maximum": _maximum,
    "math.minimum": lambda x, y: merge(layers.Minimum, [x, y]),
    "nn.bias_add": _bias_add,
    "linalg.matmul": _matmul,
    "nn.relu": _relu,
    "nn.relu6": _relu6,
    "nn.leaky_relu": _leaky_relu,
    "nn.silu": _silu,
    "nn.gelu": _gelu,
    "nn.softmax": _softmax,
    "nn.elu": _activation("elu"),
    "nn.selu": _activation("selu"),
    "nn.softsign": _activation("softsign"),
    "math.sigmoid": _activation("sigmoid"),
    "math.tanh": _activation("tanh"),
    "math.softplus": _activation("softplus"),
    "math.exp": _activation("exponential"),
    "clip_by_value": _clip,
    "identity": _identity,
    "cast": _cast,
}
