"""Activation functions of Keras 3 that tf_keras lacks or defines otherwise, and which tf_keras function equals which of Keras 3.

Checked on Keras 3.15.1 and tf-keras 2.21.0. Each function computes with the TensorFlow operations of Keras 3, so results are bit-equal.
A function never has the name of another one in `tf_keras.activations`: tf_keras saves those by their bare name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

_register = tf_keras.utils.register_keras_serializable("tfqat")


@_register
def relu6(x: Any) -> Any:
    """min(max(x, 0), 6)."""
    return tf.nn.relu6(x)


@_register
def hard_sigmoid_relu6(x: Any) -> Any:
    """relu6(x + 3) / 6, the hard sigmoid of Keras 3 and of MobileNetV3; that of tf_keras is clip(0.2 x + 0.5, 0, 1)."""
    return tf.nn.relu6(x + tf.constant(3.0, x.dtype)) / tf.constant(6.0, x.dtype)


@_register
def hard_silu(x: Any) -> Any:
    """x relu6(x + 3) / 6, also known as hard swish."""
    return x * hard_sigmoid_relu6(x)


@_register
def gelu_tanh(x: Any) -> Any:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return tf.nn.gelu(x, approximate=True)


@_register
def leaky_relu(x: Any) -> Any:
    """x where it is positive, else 0.2 x."""
    return tf.nn.leaky_relu(x, alpha=0.2)


@_register
def log_softmax(x: Any) -> Any:
    """log(softmax(x)) along the last axis."""
    return tf.nn.log_softmax(x, axis=-1)


@_register
def log_sigmoid(x: Any) -> Any:
    """log(sigmoid(x))."""
    return tf.math.log_sigmoid(x)


@_register
def celu(x: Any) -> Any:
    """max(x, 0) + min(exp(x) - 1, 0)."""
    return tf.maximum(x, 0.0) + tf.math.expm1(tf.minimum(x, 0.0))


@_register
def glu(x: Any) -> Any:
    """a sigmoid(b), where a and b are the halves of x along the last axis."""
    first, second = tf.split(x, num_or_size_splits=2, axis=-1)
    return first * tf.sigmoid(second)


@_register
def hard_tanh(x: Any) -> Any:
    """clip(x, -1, 1)."""
    return tf.clip_by_value(x, -1.0, 1.0)


@_register
def hard_shrink(x: Any) -> Any:
    """x where |x| > 0.5, else 0."""
    return tf.where(tf.abs(x) > 0.5, x, tf.zeros_like(x))


@_register
def soft_shrink(x: Any) -> Any:
    """x - 0.5 where x > 0.5, x + 0.5 where x < -0.5, else 0."""
    return tf.where(x > 0.5, x - 0.5, tf.where(x < -0.5, x + 0.5, tf.zeros_like(x)))


@_register
def tanh_shrink(x: Any) -> Any:
    """x - tanh(x)."""
    return x - tf.math.tanh(x)


@_register
def squareplus(x: Any) -> Any:
    """(x + sqrt(x^2 + 4)) / 2."""
    return (x + tf.sqrt(tf.square(x) + tf.constant(4.0, x.dtype))) / 2


@_register
def sparse_plus(x: Any) -> Any:
    """0 up to -1, (x + 1)^2 / 4 up to 1, x from there on."""
    return tf.where(x <= -1, tf.zeros_like(x), tf.where(x < 1, (1 / 4) * tf.pow(x + 1, 2), x))


@_register
def sparse_sigmoid(x: Any) -> Any:
    """clip((x + 1) / 2, 0, 1)."""
    return tf.where(x <= -1, tf.constant(0.0, x.dtype), tf.where(x >= 1, tf.constant(1.0, x.dtype), 0.5 * (x + 1)))


_OWN: tuple[Callable[[Any], Any], ...] = (
    relu6,
    hard_silu,
    leaky_relu,
    log_softmax,
    log_sigmoid,
    celu,
    glu,
    hard_tanh,
    hard_shrink,
    soft_shrink,
    tanh_shrink,
    squareplus,
    sparse_plus,
    sparse_sigmoid,
)

CUSTOM_OBJECTS: Mapping[str, Any] = {f"tfqat>{function.__name__}": function for function in (*_OWN, hard_sigmoid_relu6, gelu_tanh)}
"""What Keras has to know to load a model with these functions."""

_SAME = ("relu", "sigmoid", "tanh", "softmax", "elu", "selu", "softplus", "softsign", "gelu", "exponential", "linear", "mish")

EQUIVALENTS: Mapping[str, Any] = {
    **{name: name for name in _SAME},
    **{function.__name__: function for function in _OWN},
    "silu": "swish",
    "hard_sigmoid": hard_sigmoid_relu6,
}
"""Function of `keras.activations` with default arguments -> what tf_keras takes as `activation`."""

_OF_OPS: Mapping[str, Any] = {**EQUIVALENTS, "gelu": gelu_tanh, "exp": "exponential"}
_OF_TENSORFLOW: Mapping[str, Any] = {
    **{name: EQUIVALENTS[name] for name in (*_SAME, "silu", "relu6", "leaky_relu", "log_softmax", "log_sigmoid")},
    "swish": "swish",
    "softmax_v2": "softmax",
    "log_softmax_v2": log_softmax,
}


def equivalent(function: Any) -> Any:
    """What tf_keras takes as `activation` for an activation function of Keras 3, `keras.ops` or TensorFlow; None for any other."""
    module, name = getattr(function, "__module__", None) or "", getattr(function, "__name__", "")
    if module.startswith("keras.src.activations"):
        return EQUIVALENTS.get(name)
    if module.startswith("keras.src.ops"):
        return _OF_OPS.get(name)
    return _OF_TENSORFLOW.get(name) if module.startswith("tensorflow.") else None
