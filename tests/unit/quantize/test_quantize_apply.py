"""quantize_model and its way back: the float model is left alone, outputs are bit-exact until ranges are set, and exact codes after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfqat
from tfqat import numerics
from tfqat.errors import ModelError, PlacementError
from tfqat.models import graph
from tfqat.quantize import state
from tfqat.quantize.apply import placement_of, with_fed_weights

POINTS = ["image", "stem/kernel", "stem_relu", "dw/depthwise_kernel", "dw_relu", "project/kernel", "add", "pool", "fc/kernel"]
LAYERS = [
    *("image", "image.q", "stem", "stem_bn", "stem_relu", "stem_relu.q", "dw", "dw_relu", "dw_relu.q"),
    *("project", "add", "add.q", "pool", "pool.q", "fc"),
]


def test_layers_and_points(net: Any) -> None:
    qmodel = tfqat.quantize_model(net)
    assert [layer.name for layer in qmodel.layers] == LAYERS
    assert [point.id for point in tfqat.plan(net).points] == POINTS
    assert sorted(state.handles(qmodel)) == sorted(POINTS)
    read = graph.read(qmodel)
    assert [source.layer for source in read.node("add").inputs] == ["project", "stem_relu.q"]
    assert [source.layer for source in read.node("dw").inputs] == ["stem_relu.q"]
    assert (qmodel.name, qmodel.input_names, qmodel.output_shape) == ("net", ["image"], (None, 5))


def state_of(model: Any) -> Any:
    return (
        model.get_config(),
        [len(layer._inbound_nodes) for layer in model.layers],
        [len(layer._outbound_nodes) for layer in model.layers],
        [weight.name for weight in model.weights],
    )


def test_float_model_is_left_as_it_was(net: Any, images: np.ndarray, with_ranges: Callable[[Any], Any]) -> None:
    before, weights, outputs = state_of(net), net.get_weights(), net(images).numpy()
    qmodel = with_ranges(tfqat.quantize_model(net))
    qmodel.compile(tf_keras.optimizers.SGD(0.1), "mse")
    qmodel.fit(images, np.zeros((16, 5)), verbose=0)
    assert state_of(net) == before
    assert all(np.array_equal(new, old) for new, old in zip(net.get_weights(), weights, strict=True))
    assert np.array_equal(net(images).numpy(), outputs)
    assert not np.array_equal(tfqat.strip(qmodel).get_weights()[0], weights[0])


@pytest.mark.parametrize("preset", ["selective", "naive", "hybrid"])
def test_without_ranges_the_outputs_are_the_float_ones_to_the_last_bit(net: Any, images: np.ndarray, preset: str) -> None:
    qmodel = tfqat.quantize_model(net, preset)
    assert np.array_equal(qmodel(images).numpy(), net(images).numpy())
    assert np.array_equal(qmodel(images, training=True).numpy(), net(images, training=True).numpy())
    assert np.array_equal(qmodel.predict(images, verbose=0), net.predict(images, verbose=0))


def test_with_ranges_each_layer_computes_on_codes(net: Any, images: np.ndarray, with_ranges: Callable[[Any], Any]) -> None:
    """The same arithmetic, written out layer by layer."""
    ranges = state.ranges(qmodel := with_ranges(tfqat.quantize_model(net)))
    specs = {point.id: point.spec for point in tfqat.plan(net).points}

    def quantized(x: Any, name: str) -> Any:
        scale = numerics.scale_from_amax(ranges[name], specs[name])
        return numerics.dequantize(numerics.quantize(x, scale, specs[name]), scale, specs[name])

    layer = {each.name: each for each in net.layers}
    x = tf.nn.conv2d(quantized(images, "image"), quantized(layer["stem"].kernel, "stem/kernel"), 1, "SAME") + layer["stem"].bias
    split = quantized(layer["stem_relu"](layer["stem_bn"](x)), "stem_relu")
    x = tf.nn.depthwise_conv2d(split, quantized(layer["dw"].depthwise_kernel, "dw/depthwise_kernel"), [1, 1, 1, 1], "SAME")
    x = quantized(layer["dw_relu"](x), "dw_relu")
    x = tf.nn.conv2d(x, quantized(layer["project"].kernel, "project/kernel"), 1, "SAME") + layer["project"].bias
    x = quantized(layer["pool"](quantized(x + split, "add")), "pool")
    expected = x @ quantized(layer["fc"].kernel, "fc/kernel") + layer["fc"].bias

    np.testing.assert_allclose(qmodel(images).numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(qmodel(images).numpy() - net(images).numpy())) > 1e-3


def test_trainable_weights_are_the_float_ones_in_their_order(net: Any) -> None:
    qmodel = tfqat.quantize_model(net)
    assert [weight.name for weight in qmodel.trainable_weights] == [weight.name for weight in net.trainable_weights]
    assert all(np.array_equal(new, old) for new, old in zip(qmodel.trainable_weights, net.trainable_weights, strict=True))
    assert len({id(weight) for weight in qmodel.weights}) == len(qmodel.weights)


def test_frozen_layers_stay_frozen(net: Any) -> None:
    for name in ("stem", "stem_bn", "dw"):
        net.get_layer(name).trainable = False
    qmodel = tfqat.quantize_model(net)
    names = ["project/kernel:0", "project/bias:0", "fc/kernel:0", "fc/bias:0"]
    assert [weight.name for weight in qmodel.trainable_weights] == names
    assert [weight.name for weight in tfqat.strip(qmodel).trainable_weights] == names


def test_regularizers_are_kept(images: np.ndarray) -> None:
    x = tf_keras.Input((4,))
    model = tf_keras.Model(x, layers.Dense(3, kernel_regularizer="l2", name="fc")(x))
    assert [float(loss) for loss in tfqat.quantize_model(model).losses] == [float(loss) for loss in model.losses] != []


def test_gradient_flows_to_every_kernel(net: Any, images: np.ndarray, with_ranges: Callable[[Any], Any]) -> None:
    qmodel = with_ranges(tfqat.quantize_model(net))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(qmodel(images, training=True) ** 2)
    gradients = tape.gradient(loss, qmodel.trainable_weights)
    names = {weight.name for weight, gradient in zip(qmodel.trainable_weights, gradients, strict=True) if gradient is None}
    assert names == set()
    kernels = [gradient for weight, gradient in zip(qmodel.trainable_weights, gradients, strict=True) if "kernel" in weight.name]
    assert len(kernels) == 4
    assert all(np.all(np.isfinite(kernel)) and np.any(kernel != 0) for kernel in kernels)


def test_quantizers_are_switched_without_retracing(net: Any, images: np.ndarray, with_ranges: Callable[[Any], Any]) -> None:
    qmodel, traces = with_ranges(tfqat.quantize_model(net)), []

    @tf.function
    def predict(x: Any) -> Any:
        traces.append(1)
        return qmodel(x)

    on = predict(images).numpy()
    state.set_enabled(qmodel, False)
    off = predict(images).numpy()
    state.set_ranges(qmodel, {"image": 0.01})
    state.set_enabled(qmodel, True)
    narrow = predict(images).numpy()
    assert len(traces) == 1
    np.testing.assert_allclose(off, net(images).numpy(), rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(on - off)) > 1e-3
    assert np.max(np.abs(narrow - on)) > 1e-2


def test_float64(net: Any, images: np.ndarray, with_ranges: Callable[[Any], Any]) -> None:
    qmodel = with_ranges(tfqat.quantize_model(net))
    wide = graph.as_float64(qmodel)
    outputs = wide(images.astype(np.float64))
    assert outputs.dtype == tf.float64
    assert {key: float(np.sum(value)) for key, value in state.ranges(wide).items()} == {
        key: float(np.sum(value)) for key, value in state.ranges(qmodel).items()
    }
    assert {handle.amax.dtype for handle in state.handles(wide).values()} == {tf.float32}
    step = float(np.max(np.abs(outputs))) / 127
    assert np.median(np.abs(outputs.numpy() - qmodel(images).numpy())) < step


def test_strip_gives_the_float_model_back(net: Any, images: np.ndarray, with_ranges: Callable[[Any], Any]) -> None:
    qmodel = with_ranges(tfqat.quantize_model(net))
    stripped = tfqat.strip(qmodel)
    assert [(layer.name, type(layer)) for layer in stripped.layers] == [(layer.name, type(layer)) for layer in net.layers]
    assert all(np.array_equal(new, old) for new, old in zip(stripped.get_weights(), net.get_weights(), strict=True))
    assert np.array_equal(stripped(images).numpy(), net(images).numpy())
    assert sorted(state.ranges(qmodel)) == sorted(POINTS)


def test_strip_like_puts_trained_weights_into_a_copy(net: Any, images: np.ndarray) -> None:
    qmodel = tfqat.quantize_model(net)
    qmodel.get_layer("fc").layer.bias.assign_add(np.ones(5))
    before = net.get_weights()
    put_back = tfqat.strip(qmodel, like=net)
    assert np.array_equal(put_back(images).numpy(), qmodel(images).numpy())
    assert all(np.array_equal(new, old) for new, old in zip(net.get_weights(), before, strict=True))
    assert np.array_equal(put_back.get_layer("fc").bias.numpy(), net.get_layer("fc").bias.numpy() + 1)


def other(units: int, name: str) -> Any:
    x = tf_keras.Input((8, 8, 3), name="image")
    return tf_keras.Model(x, layers.Dense(units, name=name)(layers.GlobalAveragePooling2D()(x)))


def test_strip_like_another_model(net: Any) -> None:
    qmodel = tfqat.quantize_model(net)
    with pytest.raises(
        ModelError, match=r"^layer 'head' of the model given as `like` is not in the quantized model; give the model it was"
    ):
        tfqat.strip(qmodel, like=other(5, "head"))
    with pytest.raises(ModelError, match=r"^layer 'fc' has other weights in the quantized model: "):
        tfqat.strip(qmodel, like=other(5, "fc"))


def test_fed_weights_are_read_from_inputs(net: Any, images: np.ndarray, with_ranges: Callable[[Any], Any]) -> None:
    qmodel = with_ranges(tfqat.quantize_model(net))
    seen: list[str] = []

    class Passes(layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    def passes(point: Any) -> Any:
        seen.append(point.id)
        return Passes(name=f"{point.id}_here")

    model, names = with_fed_weights(qmodel, passes, biases={}, dropped=())
    assert sorted(seen) == ["add", "dw_relu", "image", "pool", "stem_relu"]
    weights = {name: handle for name, handle in state.handles(qmodel).items() if handle.weight is not None}
    assert list(names) == list(weights)
    assert model.input_names == ["image", *names.values()]
    fed = [weights[name].weight for name in names]
    assert np.array_equal(model([images, *fed]).numpy(), net(images).numpy())
    fed[1] = fed[1] * 0
    assert not np.array_equal(model([images, *fed]).numpy(), net(images).numpy())
    assert all(isinstance(handle.weight, tf.Variable) for handle in state.handles(qmodel).values() if handle.weight is not None)


def test_a_sequential_is_quantized(images: np.ndarray) -> None:
    model = tf_keras.Sequential([tf_keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="c"), layers.Flatten(), layers.Dense(2, name="d")])
    qmodel = tfqat.quantize_model(model)
    assert [point.id for point in placement_of(qmodel).weights] == ["c/kernel", "d/kernel"]
    batch = np.ones((2, 8, 8, 3), np.float32)
    assert np.array_equal(qmodel(batch).numpy(), model(batch).numpy())


def test_variables_of_float16_are_refused() -> None:
    given = tf_keras.Input((8, 8, 3))
    model = tf_keras.Model(given, layers.Conv2D(4, 3, name="c", dtype="float16")(given), name="half")
    with pytest.raises(ModelError, match=r"^layer 'c' of model 'half' computes in float16; expected float32"):
        tfqat.quantize_model(model)


def test_something_else_than_a_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^expected a tf_keras\.Model, got builtins\.str"):
        tfqat.quantize_model("float.keras")


def test_placement_is_read_back(net: Any) -> None:
    placement = tfqat.plan(net, {"weights": {"num_bits": 4}, "activations": {"calibrator": "mse"}})
    back = placement_of(tfqat.quantize_model(net, placement))
    assert (back.preset, back.float_layers) == ("as built", ())
    assert {(point.id, point.spec, point.edges, point.reason) for point in back.points} == {
        (point.id, point.spec, point.edges, point.reason) for point in placement.points
    }
    assert {point.calibrator for point in back.activations} == {tfqat.Calibrator(method="mse")}
    with pytest.raises(PlacementError, match=r"^model 'net' has no quantizers: make it with tfqat\.quantize_model$"):
        placement_of(net)


def test_placement_of_another_model(net: Any) -> None:
    with pytest.raises(PlacementError) as caught:
        tfqat.quantize_model(net, tfqat.plan(other(5, "head")))
    assert str(caught.value).startswith("the placement names layers that model 'net' does not have: ")
    assert "head" in str(caught.value)
    assert str(caught.value).endswith("; plan it again for this model")


def test_quantizing_twice_is_refused(net: Any) -> None:
    with pytest.raises(PlacementError, match="quantizes no layer of this model"):
        tfqat.quantize_model(tfqat.quantize_model(net))


def wrapped_layer() -> Any:
    x = tf_keras.Input((3, 8, 8, 3))
    y = layers.TimeDistributed(layers.Conv2D(2, 3), name="each")(x)
    return tf_keras.Model(x, layers.Dense(2, name="fc")(layers.Flatten()(y))), np.ones((2, 3, 8, 8, 3), np.float32)


def operators() -> Any:
    x = tf_keras.Input((8, 8, 3))
    y = layers.Conv2D(3, 1, name="conv")(x)
    y = tf.nn.relu(y + x) * 2.0
    return tf_keras.Model(x, layers.Dense(2, name="fc")(layers.Flatten()(y))), np.ones((2, 8, 8, 3), np.float32)


def dictionaries() -> Any:
    a, b = tf_keras.Input((4,), name="a"), tf_keras.Input((4,), name="b")
    outputs = {"left": layers.Dense(2, name="left")(a), "right": layers.Dense(2, name="right")(b)}
    return tf_keras.Model({"a": a, "b": b}, outputs), {"a": np.ones((2, 4), np.float32), "b": np.zeros((2, 4), np.float32)}


def projection() -> Any:
    x = tf_keras.Input((8, 8, 3))
    a, b = layers.Conv2D(4, 1, name="a")(x), layers.Conv2D(4, 3, padding="same", name="b")(x)
    return tf_keras.Model(x, layers.Add(name="add")([a, b])), np.ones((2, 8, 8, 3), np.float32)


SHAPES = {"a layer in TimeDistributed": wrapped_layer, "operators": operators, "dictionaries": dictionaries, "projection": projection}


@pytest.mark.parametrize("preset", ["selective", "naive"])
@pytest.mark.parametrize("build", SHAPES.values(), ids=SHAPES)
def test_other_shapes_of_model(build: Any, preset: str) -> None:
    model, inputs = build()
    qmodel = tfqat.quantize_model(model, preset)
    for made in (qmodel, tfqat.strip(qmodel)):
        got, expected = made(inputs), model(inputs)
        tf.nest.assert_same_structure(got, expected)
        assert all(np.array_equal(new, old) for new, old in zip(tf.nest.flatten(got), tf.nest.flatten(expected), strict=True))


def test_outputs_keep_their_names_also_after_a_reload(tmp_path: Path) -> None:
    given = tf_keras.Input((4,), name="x")
    model = tf_keras.Model(given, [layers.Dense(3, name=name)(given) for name in ("left", "right")])
    qmodel = tfqat.quantize_model(model)
    qmodel.save(tmp_path / "q.keras")
    assert model.output_names == qmodel.output_names == tfqat.load_model(tmp_path / "q.keras").output_names == ["left", "right"]
    qmodel.compile(loss={"left": "mse", "right": "mae"})
    assert qmodel.evaluate(np.zeros((2, 4)), {"left": np.zeros((2, 3)), "right": np.zeros((2, 3))}, verbose=0, return_dict=True).keys() >= {
        "left_loss",
        "right_loss",
    }
