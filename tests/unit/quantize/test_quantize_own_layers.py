"""Layer classes of the user's own: quantized through a QuantizeConfig or the recipe, from the float model to the proven file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tensorflow as tf
import tf_keras
from onnx import numpy_helper
from tf_keras import layers

import tfqat
from tfqat import numerics
from tfqat.errors import PlacementError
from tfqat.quantize import state

DATA = np.random.default_rng(4).normal(size=(16, 8, 8, 3)).astype(np.float32)
BY_CHANNEL = tfqat.Weight(attribute="taps", channel_axes=(3,))


@tf_keras.utils.register_keras_serializable("test_quantize_own_layers")
class OwnConv(layers.Layer):
    """A convolution whose weight is called `taps`, plus an offset that is not quantized."""

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters

    def build(self, input_shape: Any) -> None:
        self.offset = self.add_weight(name="offset", shape=(self.filters,))
        self.taps = self.add_weight(name="taps", shape=(3, 3, input_shape[-1], self.filters))
        super().build(input_shape)

    def call(self, x: Any) -> Any:
        return tf.nn.conv2d(x, self.taps, 1, "SAME") + self.offset

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


def network() -> Any:
    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.ReLU(name="relu")(OwnConv(6, name="own")(image))
    x = layers.Add(name="add")([OwnConv(6, name="more")(x), x])
    model = tf_keras.Model(image, layers.Dense(4, name="fc")(layers.GlobalAveragePooling2D(name="pool")(x)), name="net")
    rng = np.random.default_rng(2)
    model.set_weights([rng.normal(size=value.shape) for value in model.get_weights()])
    return model


def dequantized_constants(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Point id -> codes and scale of each weight in a file."""
    graph = onnx.load(path).graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    return {
        node.name.removesuffix("/DQ"): (stored[node.input[0]], stored[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    }


CONFIGS = {"OwnConv": tfqat.WeightedQuantizeConfig(weight=BY_CHANNEL)}
RECIPE = {"custom_layers": [{"class_name": "OwnConv", "weight": "taps", "channel_axes": [3]}]}
WAYS: dict[str, dict[str, Any]] = {"QuantizeConfig": {"configs": CONFIGS}, "recipe": {"quantization": RECIPE}}


def test_without_a_config_the_class_is_float() -> None:
    qmodel = tfqat.quantize_model(network())
    assert sorted(state.handles(qmodel)) == ["add", "fc/kernel", "pool"]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_class_of_the_users_own_from_the_model_to_the_proven_file(way: dict[str, Any], tmp_path: Path) -> None:
    model = network()
    qmodel = tfqat.quantize_model(model, **way)
    wanted = ["add", "fc/kernel", "image", "more/taps", "own/taps", "pool", "relu"]
    assert sorted(state.handles(qmodel)) == wanted
    assert np.array_equal(qmodel(DATA).numpy(), model(DATA).numpy())

    tfqat.calibrate(qmodel, [DATA], batches=1)
    handle = state.handles(qmodel)["own/taps"]
    taps = model.get_layer("own").taps
    np.testing.assert_array_equal(handle.amax, np.abs(taps.numpy()).max(axis=(0, 1, 2)))
    codes, scale = state.weight_codes(handle)
    np.testing.assert_array_equal(scale, np.abs(taps.numpy()).max(axis=(0, 1, 2)) / np.float32(127))
    np.testing.assert_array_equal(codes, np.clip(np.rint(taps.numpy() / scale), -127, 127).astype(np.int8))

    report = tfqat.export_onnx(qmodel, tmp_path / "m.onnx")
    assert (report.weights, report.activations) == (3, 4)
    stored = dequantized_constants(tmp_path / "m.onnx")["own/taps"]
    np.testing.assert_array_equal(stored[0], codes.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(stored[1], scale)
    proof = tfqat.verify(qmodel, tmp_path / "m.onnx", [DATA], examples=16)
    assert proof.failures == ()
    assert {point.id for point in proof.points} == {"image", "relu", "add", "pool"}


def test_a_class_without_channel_axes_has_one_scale(tmp_path: Path) -> None:
    configs = {"OwnConv": tfqat.WeightedQuantizeConfig(weight=tfqat.Weight(attribute="taps"))}
    qmodel = tfqat.quantize_model(network(), configs=configs)
    tfqat.calibrate(qmodel, [DATA], batches=1)
    assert state.ranges(qmodel)["own/taps"].shape == ()
    tfqat.export_onnx(qmodel, tmp_path / "m.onnx")
    assert tfqat.verify(qmodel, tmp_path / "m.onnx", [DATA], examples=16).failures == ()


def test_trained_saved_and_loaded(tmp_path: Path) -> None:
    qmodel = tfqat.quantize_model(network(), configs=CONFIGS)
    tfqat.calibrate(qmodel, [DATA], batches=1)
    before = qmodel.get_layer("own").layer.taps.numpy()
    qmodel.compile(tf_keras.optimizers.SGD(0.01), "mse")
    qmodel.fit(DATA, np.zeros((16, 4)), verbose=0)
    assert np.abs(qmodel.get_layer("own").layer.taps.numpy() - before).max() > 1e-5
    qmodel.save(tmp_path / "m.keras")
    loaded = tfqat.load_model(tmp_path / "m.keras")
    assert np.array_equal(loaded(DATA).numpy(), qmodel(DATA).numpy())
    assert sorted(state.handles(loaded)) == sorted(state.handles(qmodel))
    np.testing.assert_array_equal(tfqat.strip(loaded).get_layer("own").taps, qmodel.get_layer("own").layer.taps)


def test_inputs_without_a_weight() -> None:
    configs = {"OwnConv": tfqat.InputQuantizeConfig()}
    placement = tfqat.plan(network(), configs=configs)
    assert [(point.id, point.kind) for point in placement.points if point.source in ("image", "own", "more")] == [("image", "activation")]


def test_a_config_that_names_a_weight_that_the_layer_does_not_have() -> None:
    configs = {"OwnConv": tfqat.WeightedQuantizeConfig(weight=tfqat.Weight(attribute="kernel", channel_axes=(3,)))}
    with pytest.raises(PlacementError, match=r"^layer 'own' \(OwnConv\) has no variable 'kernel' to quantize; it has offset, taps$"):
        tfqat.quantize_model(network(), configs=configs)


def test_configs_go_through_keras_configuration() -> None:
    config = CONFIGS["OwnConv"]
    again = tfqat.WeightedQuantizeConfig.from_config(config.get_config())
    assert (again.weight, again.get_config()) == (BY_CHANNEL, config.get_config())
    assert again.weight_point(OwnConv(2, name="own")).spec == numerics.QuantSpec(granularity=tfqat.PerChannel(axes=(3,)), narrow_range=True)


def transposed() -> Any:
    image = tf_keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(5, 3, strides=2, padding="same", activation="relu", name="conv")(image)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu", name="up")(x)
    model = tf_keras.Model(image, layers.Conv2D(2, 1, name="head")(x), name="net")
    rng = np.random.default_rng(2)
    model.set_weights([rng.normal(size=value.shape) for value in model.get_weights()])
    return model


def test_a_forced_transposed_convolution_from_the_model_to_the_proven_file(tmp_path: Path) -> None:
    model = transposed()
    assert "up/kernel" not in state.handles(tfqat.quantize_model(model))
    qmodel = tfqat.quantize_model(model, {"force": ["up"]})
    assert sorted(state.handles(qmodel)) == ["conv", "conv/kernel", "head/kernel", "image", "up", "up/kernel"]
    tfqat.calibrate(qmodel, [DATA], batches=1)
    kernel = model.get_layer("up").kernel.numpy()
    codes, scale = state.weight_codes(state.handles(qmodel)["up/kernel"])
    assert (scale.shape, codes.shape) == ((), (3, 3, 4, 5))
    assert scale == np.abs(kernel).max() / np.float32(127)
    np.testing.assert_array_equal(codes, np.rint(kernel / scale).astype(np.int8))

    report = tfqat.export_onnx(qmodel, tmp_path / "m.onnx")
    assert report.operations["up"] == "ConvTranspose"
    stored = dequantized_constants(tmp_path / "m.onnx")["up/kernel"]
    np.testing.assert_array_equal(stored[0], codes.transpose(3, 2, 0, 1))  # (in, out, height, width)
    assert (stored[1].shape, stored[1]) == ((), scale)
    assert tfqat.verify(qmodel, tmp_path / "m.onnx", [DATA], examples=16).failures == ()
