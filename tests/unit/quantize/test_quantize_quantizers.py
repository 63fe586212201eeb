"""The quantizers as Keras state: what they hold, that they pass values on until enabled, and their configuration."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantizers import Quantizer

import tfqat
from tfqat.placement.plan import Edge, QPoint
from tfqat.quantize.quantizers import layer_name
from tfqat.spec import Calibrator, PerChannel, QuantSpec

ACTIVATION = QPoint(
    id="add:shortcut",
    kind="activation",
    source="x",
    spec=QuantSpec(),
    calibrator=Calibrator(method="entropy"),
    edges=(Edge(layer="add"),),
    reason="residual shortcut",
)
WEIGHT = QPoint(
    id="fc/kernel",
    kind="weight",
    source="fc",
    weight="kernel",
    spec=QuantSpec(granularity=PerChannel(axes=(1,)), narrow_range=True),
    calibrator=Calibrator(),
    reason="weight of Dense",
)
X = np.array([[-200.0, -128.5, -0.5, 0.5, 1.5, 126.6, 200.0]], np.float32)
ON_GRID = [[-128.0, -128.0, 0.0, 0.0, 2.0, 127.0, 127.0]]


def built(point: QPoint) -> tfqat.ActivationQuantizer:
    layer = tfqat.ActivationQuantizer(point)
    layer.build((None, 7))
    return layer


def test_activation_quantizer_holds_amax_and_enabled() -> None:
    layer = built(ACTIVATION)
    assert [(weight.name, weight.dtype, weight.shape, weight.trainable) for weight in layer.weights] == [
        ("output_amax:0", tf.float32, (), False),
        ("output_enabled:0", tf.bool, (), False),
    ]
    assert (layer.name, layer.point) == ("add.shortcut.q", ACTIVATION)
    assert layer_name(WEIGHT) == "fc/kernel.q"


def test_activation_quantizer_passes_values_on_until_it_is_enabled() -> None:
    layer = built(ACTIVATION)
    layer.quantizer_weights["amax"].assign(127.0)
    assert layer(X).numpy().tolist() == X.tolist()
    layer.quantizer_weights["enabled"].assign(True)
    for training in (None, False, True):
        assert layer(X, training=training).numpy().tolist() == ON_GRID


def test_activation_quantizer_gradient_is_one_until_enabled_then_clipped() -> None:
    layer, x = built(ACTIVATION), tf.constant(X)
    layer.quantizer_weights["amax"].assign(127.0)
    found = []
    for enabled in (False, True):
        layer.quantizer_weights["enabled"].assign(enabled)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        found.append(tape.gradient(y, x).numpy().tolist())
    assert found == [[[1] * 7], [[0, 1, 1, 1, 1, 1, 0]]]


def test_activation_quantizer_configuration() -> None:
    config = json.loads(json.dumps(tfqat.ActivationQuantizer(ACTIVATION).get_config()))
    copy = tfqat.ActivationQuantizer.from_config(config)
    assert (copy.point, copy.name, copy.get_config()) == (ACTIVATION, "add.shortcut.q", config)
    serialized = tf_keras.layers.serialize(tfqat.ActivationQuantizer(ACTIVATION))
    assert serialized["registered_name"] == "tfqat>ActivationQuantizer"
    assert tf_keras.layers.deserialize(serialized).point == ACTIVATION


@pytest.mark.parametrize("point", [ACTIVATION, WEIGHT], ids=["activation", "weight"])
def test_tensor_quantizer_is_tfmots_and_round_trips(point: QPoint) -> None:
    quantizer = tfqat.TensorQuantizer(point)
    assert isinstance(quantizer, Quantizer)
    assert tfqat.TensorQuantizer.from_config(json.loads(json.dumps(quantizer.get_config()))).point == point


def test_tensor_quantizer_state_per_channel() -> None:
    layer = tf_keras.layers.Layer()
    weights = tfqat.TensorQuantizer(WEIGHT).build(tf.TensorShape([4, 3]), "kernel", layer)
    assert [weight.name for weight in layer.non_trainable_weights] == ["kernel_amax:0", "kernel_enabled:0"]
    assert (weights["amax"].shape, bool(weights["enabled"])) == ((3,), False)
    weights["amax"].assign([127.0, 12.7, 0.0])
    weights["enabled"].assign(True)
    kernel = tf.constant([[-127.5, 1.26, 0.0], [2.5, 99.0, 0.0]] * 2)
    result = tfqat.TensorQuantizer(WEIGHT)(kernel, None, weights).numpy()
    np.testing.assert_allclose(result, [[-127.0, 1.3, 0.0], [2.0, 12.7, 0.0]] * 2, rtol=1e-6)
