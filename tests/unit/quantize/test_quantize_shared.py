"""A layer that is called twice: one quantizer for its weight, one for the tensor of each call, in every form the model takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfqat
from tfqat import numerics
from tfqat.models import graph
from tfqat.quantize import state
from tfqat.quantize.apply import placement_of

RNG = np.random.default_rng(5)
INPUTS = {"left": RNG.normal(size=(8, 6, 6, 3)).astype(np.float32), "right": 3 * RNG.normal(size=(8, 6, 6, 3)).astype(np.float32)}
POINTS = ["left", "enc/kernel", "right", "sub", "fc/kernel"]


def siamese() -> Any:
    left, right = tf_keras.Input((6, 6, 3), name="left"), tf_keras.Input((6, 6, 3), name="right")
    encoder, pool = layers.Conv2D(4, 3, activation="relu", name="enc"), layers.GlobalAveragePooling2D(name="pool")
    x = layers.Subtract(name="sub")([pool(encoder(left)), pool(encoder(right))])
    model = tf_keras.Model([left, right], layers.Dense(2, name="fc")(x), name="siamese")
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(size=value.shape) for value in model.get_weights()])
    return model


@pytest.fixture
def calibrated() -> Any:
    qmodel = tfqat.quantize_model(siamese(), {"activations": {"calibrator": "max"}})
    tfqat.calibrate(qmodel, [INPUTS], batches=1)
    return qmodel


def test_points_and_layers() -> None:
    qmodel = tfqat.quantize_model(siamese())
    assert sorted(state.handles(qmodel)) == sorted(POINTS)
    points = {point.id: point for point in placement_of(qmodel).points}
    assert [(edge.layer, edge.index) for name in ("left", "right") for edge in points[name].edges] == [("enc", 0), ("enc@2", 0)]
    read = graph.read(qmodel)
    assert [[source.layer for source in node.inputs] for node in read.calls("enc")] == [["left.q"], ["right.q"]]
    assert len(qmodel.get_layer("enc")._inbound_nodes) == 2
    assert len({id(weight) for weight in qmodel.trainable_weights}) == len(qmodel.trainable_weights) == 4


def test_without_ranges_the_outputs_are_the_float_ones_to_the_last_bit() -> None:
    model = siamese()
    assert np.array_equal(tfqat.quantize_model(model)(INPUTS).numpy(), model(INPUTS).numpy())


def test_each_call_has_a_range_of_its_own_and_both_read_one_quantized_weight(calibrated: Any) -> None:
    ranges = state.ranges(calibrated)
    assert {name: float(ranges[name]) for name in INPUTS} == {name: float(np.abs(value).max()) for name, value in INPUTS.items()}
    specs = {point.id: point.spec for point in placement_of(calibrated).points}

    def quantized(value: Any, name: str) -> Any:
        return numerics.fake_quantize(value, ranges[name], specs[name])

    weights = {weight.name: weight for weight in siamese().weights}
    kernel = quantized(weights["enc/kernel:0"], "enc/kernel")
    calls = [
        tf.reduce_mean(tf.nn.relu(tf.nn.conv2d(quantized(INPUTS[name], name), kernel, 1, "VALID") + weights["enc/bias:0"]), [1, 2])
        for name in INPUTS
    ]
    expected = quantized(calls[0] - calls[1], "sub") @ quantized(weights["fc/kernel:0"], "fc/kernel") + weights["fc/bias:0"]
    found = calibrated(INPUTS).numpy()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(found - siamese()(INPUTS).numpy()).max() > 1e-2


def test_the_gradient_of_a_shared_kernel_comes_from_both_calls(calibrated: Any) -> None:
    kernel = calibrated.get_layer("enc").layer.kernel
    silent = {name: np.zeros_like(value) for name, value in INPUTS.items()}

    def gradient(inputs: Any) -> np.ndarray:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(calibrated(inputs, training=True)[:, 0])
        return tape.gradient(loss, kernel).numpy()

    one, other = ({**silent, name: INPUTS[name]} for name in INPUTS)
    assert np.abs(gradient(one)).max() > 0.01 and np.abs(gradient(other)).max() > 0.01


def test_saved_and_loaded(tmp_path: Path, calibrated: Any) -> None:
    calibrated.save(tmp_path / "m.keras")
    loaded = tfqat.load_model(tmp_path / "m.keras")
    assert np.array_equal(loaded(INPUTS).numpy(), calibrated(INPUTS).numpy())
    assert {name: value.tolist() for name, value in state.ranges(loaded).items()} == {
        name: value.tolist() for name, value in state.ranges(calibrated).items()
    }
    assert placement_of(loaded) == placement_of(calibrated)


def test_stripped_it_is_the_float_model(calibrated: Any) -> None:
    model = siamese()
    stripped = tfqat.strip(calibrated)
    assert np.array_equal(stripped(INPUTS).numpy(), model(INPUTS).numpy())
    assert [node.name for node in graph.read(stripped).nodes] == [node.name for node in graph.read(model).nodes]
    assert len(stripped.weights) == 4


def test_strip_like_a_nested_model_gives_that_model_back() -> None:
    image = tf_keras.Input((6, 6, 3), name="image")
    encoder = tf_keras.Model(image, layers.GlobalAveragePooling2D(name="gap")(layers.Conv2D(4, 3, name="conv")(image)), name="encoder")
    left, right = tf_keras.Input((6, 6, 3), name="left"), tf_keras.Input((6, 6, 3), name="right")
    model = tf_keras.Model([left, right], layers.Dense(2, name="fc")(layers.Subtract(name="sub")([encoder(left), encoder(right)])))
    qmodel = tfqat.quantize_model(model)
    assert sorted(state.handles(qmodel)) == sorted(["left", "encoder/conv/kernel", "right", "sub", "fc/kernel"])
    assert np.array_equal(qmodel(INPUTS).numpy(), model(INPUTS).numpy())
    kernel = qmodel.get_layer("encoder/conv").layer.kernel
    kernel.assign(2 * kernel)
    stripped = tfqat.strip(qmodel, like=model)
    assert [layer.name for layer in stripped.layers] == ["left", "right", "encoder", "sub", "fc"]
    np.testing.assert_array_equal(stripped.get_layer("encoder").get_layer("conv").kernel, kernel)
    np.testing.assert_array_equal(model.get_layer("encoder").get_layer("conv").kernel * 2, kernel)


def test_skip_leaves_every_call_float() -> None:
    qmodel = tfqat.quantize_model(siamese(), {"skip": ["enc@2"]})
    assert sorted(state.handles(qmodel)) == ["fc/kernel", "sub"]
