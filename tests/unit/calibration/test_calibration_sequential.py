"""Correction layer by layer: the mean error it leaves, what it leaves alone and says so, and the model it leaves behind."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfqat
from tfqat import numerics
from tfqat.calibration import sequential
from tfqat.calibration.sequential import Correction, correct
from tfqat.errors import NotCalibratedError
from tfqat.quantize import state

K = tf_keras.layers


def images(seed: int, count: int = 16) -> np.ndarray:
    """Smooth images with a mean, so that what a layer reads goes along with its neighbours."""
    x = np.random.default_rng(seed).normal(0.4, 1.0, (count, 10, 10, 3))
    return np.float32((x[:, :-2, :-2] + x[:, 1:-1, 1:-1] + x[:, 2:, 2:] + x[:, 1:-1, :-2] + x[:, 2:, 1:-1]) / 2)


BATCHES = [images(seed) for seed in range(3)]


def randomize(model: Any) -> Any:
    """BatchNorms with statistics, gammas of both signs, and biases."""
    rng = np.random.default_rng(4)
    for weight in model.weights:
        name, shape = weight.name.split("/")[-1].split(":")[0], weight.shape
        if name in ("bias", "beta", "moving_mean"):
            weight.assign(rng.normal(0, 0.3, shape))
        if name in ("gamma", "moving_variance"):
            weight.assign(rng.uniform(0.5, 1.5, shape) * (rng.choice([-1, 1], shape) if name == "gamma" else 1))
    return model


def network() -> Any:
    """A convolution with BatchNorm, one with a bias and an activation of its own, a depthwise one with BatchNorm and bias, Dense."""
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input((8, 8, 3), name="x")
    y = K.ReLU(name="a_relu")(K.BatchNormalization(name="a_bn")(K.Conv2D(8, 3, padding="same", use_bias=False, name="a")(x)))
    y = K.Conv2D(6, 3, activation="relu", padding="same", name="b")(y)
    y = K.ReLU(name="c_relu")(K.BatchNormalization(name="c_bn")(K.DepthwiseConv2D(3, padding="same", name="c")(y)))
    return randomize(tf_keras.Model(x, K.Dense(4, name="logits")(K.GlobalAveragePooling2D(name="pool")(y)), name="net"))


def calibrated(model: Any, bits: int = 4) -> Any:
    qmodel = tfqat.quantize_model(model, {"weights": {"num_bits": bits}})
    tfqat.calibrate(qmodel, BATCHES, batches=len(BATCHES))
    return qmodel


@functools.cache
def _calibrated_network() -> tuple[Any, list[np.ndarray]]:
    qmodel = calibrated(network())
    return qmodel, qmodel.get_weights()


def calibrated_network() -> Any:
    """The calibrated `network`, as it was before any test: made once, its weights set again."""
    qmodel, weights = _calibrated_network()
    qmodel.set_weights(weights)
    return qmodel


def enabled(qmodel: Any) -> bool:
    return all(bool(handle.enabled) for handle in state.handles(qmodel).values())


def read_by(qmodel: Any, layer: str) -> tf.Tensor:
    """What a layer reads in the quantized model, over all batches."""
    return tf_keras.Model(qmodel.input, qmodel.get_layer(layer).input)(np.concatenate(BATCHES))


def product(x: tf.Tensor, layer: str, kernel: tf.Tensor) -> tf.Tensor:
    """The linear part of a layer of `network`, written with TensorFlow's operations."""
    if layer == "c":
        return tf.nn.depthwise_conv2d(x, kernel, [1, 1, 1, 1], "SAME")
    return x @ kernel if layer == "logits" else tf.nn.conv2d(x, kernel, 1, "SAME")


def mean_error(qmodel: Any, layer: str, kernel: np.ndarray, gain: np.ndarray | float, shift: np.ndarray | float) -> np.ndarray:
    """The mean by channel of gain * (W x - Q x) - shift."""
    handle = next(handle for handle in state.handles(qmodel).values() if handle.weight is not None and handle.point.source == layer)
    quantized = numerics.fake_quantize(handle.weight, handle.amax, handle.point.spec)
    x = read_by(qmodel, layer)
    difference = (product(x, layer, tf.constant(kernel)) - product(x, layer, quantized)).numpy()
    return np.asarray((gain * np.float64(difference)).reshape(-1, difference.shape[-1]).mean(axis=0) - shift)


SHIFTED = {"a": "a_bn", "b": "b", "c": "c_bn", "logits": "logits"}


def shifting(qmodel: Any) -> dict[str, np.ndarray]:
    """The variable that shifts each product's output: bias, or the beta of the BatchNorm behind it."""
    layers = {name: qmodel.get_layer(at) for name, at in SHIFTED.items()}
    return {name: (layer.beta if SHIFTED[name].endswith("bn") else layer.layer.bias).numpy() for name, layer in layers.items()}


def kernels(qmodel: Any) -> dict[str, np.ndarray]:
    return {handle.point.source: handle.weight.numpy() for handle in state.handles(qmodel).values() if handle.weight is not None}


def gain_of(qmodel: Any, layer: str) -> np.ndarray | float:
    if not SHIFTED[layer].endswith("bn"):
        return 1.0
    norm = qmodel.get_layer(SHIFTED[layer])
    return np.asarray(norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon))


@pytest.mark.parametrize("rounding", [False, True])
def test_no_product_has_a_mean_error_afterwards(rounding: bool) -> None:
    qmodel = calibrated_network()
    weights, before = kernels(qmodel), shifting(qmodel)
    found = correct(qmodel, BATCHES, rounding=rounding)
    assert (found.examples, found.left, set(found.shifts)) == (48, {}, set(SHIFTED))
    for layer, value in shifting(qmodel).items():
        shift, gain = value - before[layer], gain_of(qmodel, layer)
        assert np.abs(mean_error(qmodel, layer, weights[layer], gain, shift)).max() < 1e-6, layer
        assert np.abs(mean_error(qmodel, layer, weights[layer], gain, 0.0)).max() > 1e-3, layer  # so much was to be corrected
        assert np.allclose(found.shifts[layer], shift, atol=1e-6) and found.shifts[layer].dtype == np.float32
    assert enabled(qmodel)


def test_changes_what_it_is_asked_to_and_nothing_else() -> None:
    changed: dict[str, set[str]] = {}
    for asked in ("bias", "rounding"):
        qmodel = calibrated_network()
        before = {weight.name: weight.numpy() for weight in qmodel.weights}
        found = correct(qmodel, BATCHES, bias=asked == "bias", rounding=asked == "rounding")
        changed[asked] = {weight.name.split(":")[0] for weight in qmodel.weights if not np.array_equal(before[weight.name], weight.numpy())}
        assert bool(found.shifts) == (asked == "bias") and bool(found.rounded) == (asked == "rounding")
    assert changed["bias"] == {"a_bn/beta", "b/bias", "c_bn/beta", "logits/bias"}
    assert changed["rounding"] == {"a/kernel", "b/kernel", "c/depthwise_kernel", "logits/kernel"}


def test_rounded_weights_are_on_their_grid_and_their_changed_codes_are_counted() -> None:
    qmodel = calibrated_network()
    handles = {handle.point.source: handle for handle in state.handles(qmodel).values() if handle.weight is not None}
    nearest = {layer: state.weight_codes(handle)[0] for layer, handle in handles.items()}
    found = correct(qmodel, BATCHES)
    for layer, handle in handles.items():
        assert np.array_equal(numerics.fake_quantize(handle.weight, handle.amax, handle.point.spec), handle.weight), layer
        assert found.rounded[layer] == np.mean(state.weight_codes(handle)[0] != nearest[layer])
        assert 0.02 < found.rounded[layer] < 0.9, layer


def error(qmodel: Any, model: Any) -> float:
    fresh = images(99, 256)
    return float(np.mean((qmodel(fresh) - model(fresh)) ** 2))


def test_the_output_of_data_it_has_not_seen_is_less_wrong() -> None:
    model = network()
    qmodel, errors = calibrated(model), {}
    weights = qmodel.get_weights()
    for name, asked in {"none": {}, "bias": {"rounding": False}, "rounding": {"bias": False}, "both": {}}.items():
        qmodel.set_weights(weights)
        if name != "none":
            correct(qmodel, BATCHES, **asked)
        errors[name] = error(qmodel, model)
    assert errors["bias"] < errors["none"] / 2 and errors["rounding"] < errors["none"] / 2, errors
    assert errors["both"] < errors["none"] / 4, errors


def test_the_float_model_is_untouched() -> None:
    model = network()
    before = model.get_weights()
    qmodel = calibrated(model)
    correct(qmodel, BATCHES)
    assert all(np.array_equal(one, other) for one, other in zip(before, model.get_weights(), strict=True))
    assert not all(np.array_equal(one, other) for one, other in zip(before, tfqat.strip(qmodel).get_weights(), strict=True))


def single(*layers: Any) -> Any:
    """These layers in a row, then pooling and Dense."""
    x = y = tf_keras.Input((8, 8, 3), name="x")
    for layer in layers:
        y = layer(y)
    return randomize(tf_keras.Model(x, K.Dense(4, name="logits")(K.GlobalAveragePooling2D()(y))))


NO_BIAS = "it has no bias, and no BatchNorm with one follows"
WITHOUT_BIAS = {
    "no BatchNorm": [K.Conv2D(6, 3, use_bias=False, name="op"), K.ReLU()],
    "BatchNorm without centre": [K.Conv2D(6, 3, use_bias=False, name="op"), K.BatchNormalization(center=False)],
    "BatchNorm behind an activation": [K.Conv2D(6, 3, use_bias=False, activation="relu", name="op"), K.BatchNormalization()],
}


@pytest.mark.parametrize("layers", WITHOUT_BIAS.values(), ids=WITHOUT_BIAS)
def test_a_layer_without_bias_is_rounded_and_the_rest_left_with_the_reason(layers: list[Any]) -> None:
    qmodel = calibrated(single(*layers))
    found = correct(qmodel, BATCHES)
    assert found.left == {"op": NO_BIAS}
    assert set(found.shifts) == {"logits"} and set(found.rounded) == {"op", "logits"}


def test_a_bias_is_shifted_where_the_batch_norm_cannot_be() -> None:
    qmodel = calibrated(single(K.Conv2D(6, 3, name="op"), K.BatchNormalization(center=False, name="bn")))
    before = qmodel.get_layer("op").layer.bias.numpy()
    found = correct(qmodel, BATCHES)
    assert found.left == {}
    assert np.array_equal(qmodel.get_layer("op").layer.bias.numpy(), before + found.shifts["op"]) and np.any(found.shifts["op"])


def test_a_layer_whose_inputs_cannot_be_lined_up_gets_its_mean_only() -> None:
    x = tf_keras.Input((8, 24), name="x")
    y = K.GlobalAveragePooling1D()(K.Conv1D(6, 3, padding="causal", name="op")(x))
    model = randomize(tf_keras.Model(x, K.Dense(4, name="logits")(y)))
    qmodel = tfqat.quantize_model(model, {"weights": {"num_bits": 4}})
    batch = [images(0).reshape(-1, 8, 24)]
    tfqat.calibrate(qmodel, batch, batches=1)
    kernel = qmodel.get_layer("op").layer.kernel.numpy()
    found = correct(qmodel, batch)
    assert found.left == {"op": "rounded to the nearest: causal padding"}
    assert set(found.shifts) == {"op", "logits"} and set(found.rounded) == {"logits"}
    assert np.array_equal(qmodel.get_layer("op").layer.kernel.numpy(), kernel)


def test_a_shared_layer_is_left_alone() -> None:
    shared = K.Conv2D(3, 3, padding="same", name="op")
    qmodel = calibrated(single(shared, K.ReLU(), shared))
    before = [weight.numpy() for weight in qmodel.get_layer("op").layer.weights]
    found = correct(qmodel, BATCHES)
    assert found.left == {"op": "it is called several times"}
    assert set(found.shifts) == set(found.rounded) == {"logits"}
    assert all(np.array_equal(one, other) for one, other in zip(before, qmodel.get_layer("op").layer.weights, strict=True))


def branches() -> Any:
    """Two convolutions with BatchNorms side by side, as a residual block with a projection has them: a, b, a_bn, b_bn in Keras's order."""
    tf_keras.utils.set_random_seed(2)
    x = tf_keras.Input((8, 8, 3), name="x")
    y = K.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    a, b = K.Conv2D(8, 3, padding="same", use_bias=False, name="a")(y), K.Conv2D(8, 1, use_bias=False, name="b")(y)
    y = K.ReLU()(K.Add()([K.BatchNormalization(name="a_bn")(a), K.BatchNormalization(name="b_bn")(b)]))
    return randomize(tf_keras.Model(x, K.Dense(4, name="logits")(K.GlobalAveragePooling2D()(y))))


def test_products_side_by_side_are_corrected_each() -> None:
    qmodel = calibrated(branches())
    weights = kernels(qmodel)
    found = correct(qmodel, BATCHES)
    assert found.left == {} and set(found.rounded) == {"stem", "a", "b", "logits"}
    for layer in ("a", "b"):
        norm = qmodel.get_layer(f"{layer}_bn")
        gain = np.asarray(norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon))
        assert np.abs(found.shifts[layer]).max() > 1e-4
        assert np.abs(mean_error(qmodel, layer, weights[layer], gain, found.shifts[layer])).max() < 1e-6, layer


def interrupted() -> Iterator[np.ndarray]:
    yield BATCHES[0]
    raise RuntimeError("the disk is gone")


def test_a_model_is_whole_again_when_the_data_end_in_an_error() -> None:
    qmodel = calibrated_network()
    wanted = qmodel(BATCHES[0]).numpy()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        correct(qmodel, interrupted())
    assert enabled(qmodel) and qmodel.get_layer("b").layer.activation is tf_keras.activations.relu
    assert np.array_equal(qmodel(BATCHES[0]), wanted)


def test_a_model_is_whole_again_when_the_caller_stops_in_the_middle() -> None:
    qmodel, calls = calibrated_network(), []

    def advance() -> None:
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        correct(qmodel, BATCHES, advance=advance)
    assert enabled(qmodel) and qmodel.get_layer("b").layer.activation is tf_keras.activations.relu


def test_activations_are_back_and_advance_was_called_after_each_product() -> None:
    qmodel, calls = calibrated_network(), []
    correct(qmodel, BATCHES, rounding=False, advance=lambda: calls.append(0))
    assert len(calls) == 4
    assert qmodel.get_layer("b").layer.activation is tf_keras.activations.relu
    hidden = tf_keras.Model(qmodel.input, qmodel.get_layer("b").output)(BATCHES[0])
    assert float(tf.reduce_min(hidden)) == 0.0


def test_the_export_is_still_proven(tmp_path: Path) -> None:
    qmodel = calibrated(network(), bits=8)
    assert min(correct(qmodel, BATCHES).rounded.values()) > 0
    tfqat.export_onnx(qmodel, tmp_path / "model.onnx")
    assert tfqat.verify(qmodel, tmp_path / "model.onnx", [images(50)], examples=16).failures == ()


def used(memory: int, monkeypatch: pytest.MonkeyPatch) -> Correction:
    monkeypatch.setattr(sequential, "MEMORY", memory)
    return correct(calibrated_network(), BATCHES, rounding=False)


def test_as_many_batches_are_used_as_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 16 * 8 * 8 * 8 * 4  # the output of a, the BatchNorm behind it or its ReLU
    assert used(1, monkeypatch).examples == 16
    assert used(2 * widest, monkeypatch).examples == 32
    assert used(3 * widest, monkeypatch).examples == 48


def test_labelled_batches_are_taken() -> None:
    labelled = tf.data.Dataset.from_tensor_slices((np.concatenate(BATCHES), np.zeros(48))).batch(16)
    shifts = [correct(calibrated_network(), data, rounding=False).shifts for data in (BATCHES, labelled)]
    assert all(np.array_equal(shifts[0][layer], shifts[1][layer]) for layer in SHIFTED)


def test_a_model_without_ranges_is_refused() -> None:
    with pytest.raises(NotCalibratedError, match="quantizers of model 'net' have no range"):
        correct(tfqat.quantize_model(network()), BATCHES)
