"""Activation functions: the ones that tf_keras lacks or defines otherwise give what Keras 3 gives, and survive cloning and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfqat.models import activations

X = np.linspace(-8, 8, 64, dtype=np.float32).reshape(4, 16)
TABLE = {
    "hard_sigmoid_relu6": ([-4.0, -3.0, 0.0, 1.5, 3.0], [0.0, 0.0, 0.5, 0.75, 1.0]),
    "hard_silu": ([-4.0, -1.5, 0.0, 3.0, 4.0], [0.0, -0.375, 0.0, 3.0, 4.0]),
    "relu6": ([-1.0, 2.0, 7.0], [0.0, 2.0, 6.0]),
    "leaky_relu": ([-1.0, 2.0], [-0.2, 2.0]),
    "hard_tanh": ([-3.0, 0.5, 3.0], [-1.0, 0.5, 1.0]),
    "hard_shrink": ([-1.0, 0.25, 0.75], [-1.0, 0.0, 0.75]),
    "soft_shrink": ([-1.0, 0.25, 0.75], [-0.5, 0.0, 0.25]),
    "sparse_plus": ([-2.0, 0.0, 2.0], [0.0, 0.25, 2.0]),
    "sparse_sigmoid": ([-2.0, 0.5, 2.0], [0.0, 0.75, 1.0]),
    "squareplus": ([0.0, 1.5], [1.0, 2.0]),
}


@pytest.mark.parametrize("name", TABLE)
def test_values(name: str) -> None:
    inputs, expected = TABLE[name]
    assert np.allclose(getattr(activations, name)(tf.constant(inputs)), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", activations.EQUIVALENTS)
def test_equal_to_keras3(name: str) -> None:
    function = getattr(keras.activations, name)
    ours = tf_keras.activations.get(activations.equivalent(function))
    assert np.array_equal(ours(tf.constant(X)), function(tf.constant(X)))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (keras.ops.gelu, activations.gelu_tanh),
        (keras.activations.gelu, "gelu"),
        (keras.ops.silu, "swish"),
        (tf.nn.relu6, activations.relu6),
        (tf.nn.softmax, "softmax"),
        (tf.nn.silu, "swish"),
        (keras.activations.sparsemax, None),
        (len, None),
        (lambda x: x, None),
    ],
)
def test_equivalent(function: Any, expected: Any) -> None:
    assert activations.equivalent(function) is expected or activations.equivalent(function) == expected


@pytest.mark.parametrize("function", activations.CUSTOM_OBJECTS.values(), ids=lambda function: function.__name__)
def test_saved_and_loaded(function: Any, tmp_path: Path) -> None:
    inputs = tf_keras.Input((16,))
    dense = tf_keras.layers.Dense(4, activation=function, name="fc")(inputs)
    model = tf_keras.Model(inputs, tf_keras.layers.Activation(function)(dense))
    copied = tf_keras.layers.Dense.from_config(model.get_layer("fc").get_config())
    assert copied.activation is function
    model.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras", custom_objects=dict(activations.CUSTOM_OBJECTS))
    assert np.array_equal(loaded(X), model(X))


def test_names_do_not_hide_those_of_tf_keras() -> None:
    """tf_keras would save a function of such a name by the bare name, and load its own."""
    assert not [name for name in activations.CUSTOM_OBJECTS if hasattr(tf_keras.activations, name.removeprefix("tfqat>"))]
