"""The error that a range causes in the layers that read a point, against the same sums written out with the float model's layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfqat
from tfqat import numerics
from tfqat.calibration.best import output_errors
from tfqat.quantize import state
from tfqat.spec import QuantSpec

K = tf_keras.layers
BATCHES = [np.float32(np.random.default_rng(seed).normal(0.3, 1.0 + seed, (4, 6, 6, 3))) for seed in range(2)]
RANGES = [0.5, 1.5, 3.0, 10.0]


def network() -> Any:
    """x is read by a (conv, BatchNorm, ReLU) and by b; the ReLU by c and, as a shortcut, by the Add."""
    tf_keras.utils.set_random_seed(1)
    x = tf_keras.Input((6, 6, 3), name="x")
    a = K.ReLU(name="a_relu")(K.BatchNormalization(name="a_bn")(K.Conv2D(8, 3, padding="same", use_bias=False, name="a")(x)))
    b = K.Conv2D(8, 1, strides=2, activation="relu", name="b")(x)
    y = K.Add(name="add")([a, K.Conv2D(8, 3, padding="same", name="c")(a)])
    y = K.Concatenate(name="joined")([K.GlobalAveragePooling2D(name="pool")(y), K.GlobalMaxPooling2D(name="most")(b)])
    model = tf_keras.Model(x, K.Dense(2, name="logits")(y))
    norm, rng = model.get_layer("a_bn"), np.random.default_rng(5)
    for variable in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance):
        variable.assign(rng.uniform(0.5, 1.5, 8))
    return model


def quantized(model: Any) -> Any:
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, BATCHES, batches=2)
    return qmodel


def relative(read: Any, tensors: list[tf.Tensor]) -> np.ndarray:
    """sum (f(fake_quantize(x, amax)) - f(x))^2 / sum f(x)^2 for each of RANGES, over all batches, in float64."""
    errors, signal = np.zeros(len(RANGES)), 0.0
    for number, x in enumerate(tensors):
        wanted = np.float64(read(x, number))
        signal += np.sum(wanted**2)
        errors += [np.sum((np.float64(read(numerics.fake_quantize(x, amax, QuantSpec()), number)) - wanted) ** 2) for amax in RANGES]
    return np.asarray(errors / signal)


def outputs(model: Any, layer: str) -> list[tf.Tensor]:
    return [tf_keras.Model(model.input, model.get_layer(layer).output)(batch) for batch in BATCHES]


def test_two_readers_each_with_what_a_kernel_computes_behind_it() -> None:
    model = network()
    layer = model.get_layer
    inputs = [tf.constant(batch) for batch in BATCHES]
    expected = [
        relative(lambda x, _: layer("a_relu")(layer("a_bn")(layer("a")(x))), inputs),  # conv, BatchNorm, ReLU
        relative(lambda x, _: layer("b")(x), inputs),
    ]
    found = output_errors(quantized(model), {"x": RANGES}, BATCHES)
    assert list(found) == ["x"] and found["x"].dtype == np.float64
    assert found["x"] == pytest.approx(sum(expected), rel=1e-4)
    assert min(np.max(one) for one in expected) > 0.01  # either reader alone would be told apart


def error_of_a_relu(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """What each range of `a_relu` does to the convolution that reads it, and as a shortcut to the sum."""
    layer, branch, tensors = model.get_layer, outputs(model, "c"), outputs(model, "a_relu")
    return relative(lambda x, _: layer("c")(x), tensors), relative(lambda x, number: layer("add")([x, branch[number]]), tensors)


def test_a_shortcut_counts_in_the_sum_that_it_enters() -> None:
    model = network()
    convolution, shortcut = error_of_a_relu(model)
    found = output_errors(quantized(model), {"a_relu": RANGES}, BATCHES)["a_relu"]
    assert found == pytest.approx(convolution + shortcut, rel=1e-4)
    assert shortcut[0] > 0.1


def test_other_points_are_float_while_one_is_tried() -> None:
    model = network()
    qmodel = quantized(model)
    state.set_ranges(qmodel, {"x": np.float32(0.01)})  # would spoil everything behind it
    found = output_errors(qmodel, {"a_relu": RANGES, "x": RANGES[:1]}, BATCHES)
    assert found["a_relu"] == pytest.approx(sum(error_of_a_relu(model)), rel=1e-4)
    assert found["x"].shape == (1,)


def snapshot(qmodel: Any) -> dict[str, tuple[bytes, bool]]:
    return {name: (handle.amax.numpy().tobytes(), bool(handle.enabled)) for name, handle in state.handles(qmodel).items()}


def interrupted() -> Iterator[np.ndarray]:
    yield BATCHES[0]
    raise RuntimeError("the disk is gone")


def test_quantizers_are_as_they_were_also_after_an_error() -> None:
    qmodel = quantized(network())
    handles = state.handles(qmodel)
    handles["a/kernel"].enabled.assign(False)
    before = snapshot(qmodel)
    assert len({enabled for _, enabled in before.values()}) == 2
    output_errors(qmodel, {"x": RANGES}, BATCHES)
    assert snapshot(qmodel) == before
    with pytest.raises(RuntimeError, match="the disk is gone"):
        output_errors(qmodel, {"x": RANGES}, interrupted())
    assert snapshot(qmodel) == before


def test_outliers_that_no_reader_looks_at_do_not_widen_the_range() -> None:
    """Channel 2 is thirty times as large, and its kernel zero: the tensor's own error wants a wide range, the reader a narrow one."""
    x = tf_keras.Input((6, 6, 3), name="x")
    model = tf_keras.Model(x, K.Conv2D(8, 3, name="a")(x))
    kernel = model.get_layer("a").kernel
    kernel.assign(kernel.numpy() * np.array([1.0, 1.0, 0.0])[:, None])
    batches = [batch * np.float32([1.0, 1.0, 30.0]) for batch in BATCHES]
    small, large = (float(np.abs(np.stack(batches)[..., channels]).max()) for channels in (slice(2), slice(2, 3)))
    qmodel = tfqat.quantize_model(model)
    tfqat.calibrate(qmodel, batches, batches=2)
    tensor = np.stack(batches)
    own = [float(tf.reduce_sum((numerics.fake_quantize(tensor, amax, QuantSpec()) - tensor) ** 2)) for amax in (small, large)]
    found = output_errors(qmodel, {"x": [small, large]}, batches)["x"]
    assert (int(np.argmin(own)), int(np.argmin(found))) == (1, 0)
    assert found[0] < found[1] / 50
