"""The wrapper: the layer's variables stay the layer's, and it computes with their quantized values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfqat

X = np.array([[1.0, 2.0], [-1.0, 0.5]], np.float32)
KERNEL = np.array([[1.0, 0.3, 0.0], [-0.4, 3.0, 0.0]], np.float32)


@pytest.fixture
def wrapper() -> Any:
    made = tfqat.QuantizeWrapper(layers.Dense(3, name="fc"), tfqat.WeightedQuantizeConfig())
    made.build((None, 2))
    made.layer.set_weights([KERNEL, np.array([1, 2, 3], np.float32)])
    return made


def calibrated(wrapper: Any) -> Any:
    ((_, _, state),) = wrapper.quantized_weights()
    state["amax"].assign([1.0, 3.0, 0.0])
    state["enabled"].assign(True)
    return wrapper


def test_variables(wrapper: Any) -> None:
    assert [weight.name for weight in wrapper.trainable_weights] == ["kernel:0", "bias:0"]
    assert [weight.name for weight in wrapper.non_trainable_weights] == ["kernel_amax:0", "kernel_enabled:0"]
    assert [id(weight) for weight in wrapper.trainable_weights] == [id(weight) for weight in wrapper.layer.trainable_weights]
    assert len(wrapper.weights) == len({id(weight) for weight in wrapper.weights}) == 4
    ((quantizer, weight, state),) = wrapper.quantized_weights()
    assert weight is wrapper.layer.kernel
    assert (quantizer.point.id, sorted(state)) == ("fc/kernel", ["amax", "enabled"])
    assert not wrapper._trainable_weights, "the layer's variables would be saved twice, and trained even where it is frozen"


def test_frozen_layer_has_nothing_to_train(wrapper: Any) -> None:
    wrapper.trainable = False
    assert (wrapper.trainable_weights, len(wrapper.non_trainable_weights), wrapper.layer.trainable) == ([], 4, False)


def test_computes_with_quantized_weights_and_gives_the_variables_back(wrapper: Any) -> None:
    kernel = wrapper.layer.kernel
    assert np.array_equal(wrapper(X).numpy(), (X @ KERNEL + [1, 2, 3]).astype(np.float32))
    scale = np.array([1, 3, 1e-12], np.float32) / np.float32(127)
    codes = np.array([[127, 13, 0], [-51, 127, 0]], np.float32)
    expected = X @ (codes * scale) + np.array([1, 2, 3], np.float32)
    for training in (None, False, True):
        np.testing.assert_allclose(calibrated(wrapper)(X, training=training).numpy(), expected, rtol=1e-6)
    assert wrapper.layer.kernel is kernel
    assert np.array_equal(kernel.numpy(), KERNEL)


def test_an_error_in_the_layer_leaves_its_variables_in_place(wrapper: Any) -> None:
    kernel = calibrated(wrapper).layer.kernel
    with pytest.raises(tf.errors.InvalidArgumentError):
        wrapper.call(tf.ones((1, 5)))
    assert wrapper.layer.kernel is kernel


def test_configuration() -> None:
    config = tfqat.WeightedQuantizeConfig(weights=tfqat.QuantSpec(num_bits=4, narrow_range=True), reason="because")
    wrapper = tfqat.QuantizeWrapper(layers.Dense(3, name="fc"), config, name="quant_fc")
    copy = tf_keras.layers.deserialize(tf_keras.layers.serialize(wrapper))
    assert (type(copy), copy.name, copy.layer.name) == (tfqat.QuantizeWrapper, "quant_fc", "fc")
    assert vars(copy.quantize_config) == vars(config)
