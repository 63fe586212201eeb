"""The table from operations to layers: each operation's layer and its configuration, what stays, and that both compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import backend

from tfqat.models.canonical import Canonical, canonicalize, is_canonical
from tfqat.models.operations import RULES

Operation = Callable[..., Any]
IMAGES = (np.random.default_rng(1).normal(size=(3, 4, 6, 2)) * 4).astype(np.float32)
OTHERS = np.random.default_rng(2).normal(size=(3, 4, 6, 2)).astype(np.float32)


def built(operation: Operation) -> Any:
    """A model of one operation on images x and y; y is unused where it takes one."""
    x, y = tf_keras.Input((4, 6, 2), name="x"), tf_keras.Input((4, 6, 2), name="y")
    return tf_keras.Model([x, y], tf_keras.layers.Activation("linear", name="end")(operation(x, y)), name="net")


def made(result: Canonical) -> list[Any]:
    """The layers between the inputs and the end."""
    return [layer for layer in result.model.layers if layer.name not in ("x", "y", "end")]


def difference(first: Any, second: Any) -> float:
    """The largest difference, relative to the largest value; infinite where it is not finite."""
    first, second = np.asarray(first), np.asarray(second)
    assert first.shape == second.shape
    return float(np.max(np.abs(first - second)) / np.max(np.abs(first))) if np.isfinite(first).all() else np.inf


def both(operation: Operation) -> tuple[Canonical, float]:
    model = built(operation)
    result = canonicalize(model)
    assert is_canonical(result.model)
    return result, difference(model([IMAGES, OTHERS]), result.model([IMAGES, OTHERS]))


GELU_TANH = {"module": "builtins", "class_name": "function", "config": "tfqat>gelu_tanh", "registered_name": "function"}
CHANNELS = tf.constant([2.0, -3.0])

# operation, layer class, the part of its configuration that matters, its name, 1e-6 where it is not bit-equal
REWRITTEN: dict[str, tuple[Operation, str, dict[str, Any], str]] = {
    "x + y": (lambda x, y: x + y, "Add", {}, "add"),
    "tf.add": (lambda x, y: tf.add(x, y), "Add", {}, "add"),
    "tf.add by name": (lambda x, y: tf.add(x=x, y=y), "Add", {}, "add"),
    "tf.add_n": (lambda x, y: tf.add_n([x, y, x]), "Add", {}, "add_n"),
    "broadcast": (lambda x, y: x + y[:, :, :1], "Add", {}, "add"),
    "x + 2": (lambda x, y: x + 2, "Rescaling", {"scale": 1.0, "offset": 2.0}, "add"),
    "2 + x": (lambda x, y: 2.0 + x, "Rescaling", {"scale": 1.0, "offset": 2.0}, "add"),
    "a constant per channel": (lambda x, y: x + CHANNELS, "Rescaling", {"scale": 1.0, "offset": [2.0, -3.0]}, "add"),
    "bias_add": (lambda x, y: tf.nn.bias_add(x, CHANNELS), "Rescaling", {"scale": 1.0, "offset": [2.0, -3.0]}, "bias_add"),
    "x - y": (lambda x, y: x - y, "Subtract", {}, "subtract"),
    "x - 2": (lambda x, y: x - 2.0, "Rescaling", {"scale": 1.0, "offset": -2.0}, "subtract"),
    "2 - x": (lambda x, y: 2.0 - x, "Rescaling", {"scale": -1.0, "offset": 2.0}, "subtract"),
    "-x": (lambda x, y: -x, "Rescaling", {"scale": -1.0, "offset": 0.0}, "negative"),
    "x * y": (lambda x, y: x * y, "Multiply", {}, "multiply"),
    "x * x": (lambda x, y: x * x, "Multiply", {}, "multiply"),
    "x * 3": (lambda x, y: x * np.float32(3), "Rescaling", {"scale": 3.0, "offset": 0.0}, "multiply"),
    "a factor per channel": (lambda x, y: np.array([[2, 5]]) * x, "Rescaling", {"scale": [2.0, 5.0], "offset": 0.0}, "multiply"),
    "x / 4": (lambda x, y: x / 4, "Rescaling", {"scale": 0.25, "offset": 0.0}, "truediv"),
    "x / 3": (lambda x, y: x / 3, "Rescaling", {"scale": 1 / 3, "offset": 0.0}, "truediv"),
    "maximum": (lambda x, y: tf.maximum(x, y), "Maximum", {}, "maximum"),
    "maximum of zero": (lambda x, y: tf.maximum(0.0, x), "ReLU", {"max_value": None}, "maximum"),
    "minimum": (lambda x, y: tf.minimum(x, y), "Minimum", {}, "minimum"),
    "relu": (lambda x, y: tf.nn.relu(x), "ReLU", {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}, "relu"),
    "relu6": (lambda x, y: tf.nn.relu6(x), "ReLU", {"max_value": 6.0}, "relu6"),
    "tf_keras relu": (lambda x, y: tf_keras.activations.relu(x, max_value=6), "ReLU", {"max_value": 6.0}, "relu6"),
    "backend relu": (lambda x, y: backend.relu(x), "ReLU", {"max_value": None}, "relu"),
    "clip": (lambda x, y: tf.clip_by_value(x, 0, 5), "ReLU", {"max_value": 5.0}, "clip_by_value"),
    "leaky_relu": (lambda x, y: tf.nn.leaky_relu(x, alpha=0.25), "LeakyReLU", {"alpha": 0.25}, "leaky_relu"),
    "sigmoid": (lambda x, y: tf.sigmoid(x), "Activation", {"activation": "sigmoid"}, "sigmoid"),
    "tanh": (lambda x, y: tf.nn.tanh(x), "Activation", {"activation": "tanh"}, "tanh"),
    "swish": (lambda x, y: tf.nn.swish(x), "Activation", {"activation": "swish"}, "silu"),
    "gelu": (lambda x, y: tf.nn.gelu(x), "Activation", {"activation": "gelu"}, "gelu"),
    "gelu by tanh": (lambda x, y: tf.nn.gelu(x, approximate=True), "Activation", {"activation": GELU_TANH}, "gelu"),
    "elu": (lambda x, y: tf.nn.elu(x), "Activation", {"activation": "elu"}, "elu"),
    "selu": (lambda x, y: tf.nn.selu(x), "Activation", {"activation": "selu"}, "selu"),
    "softplus": (lambda x, y: tf.nn.softplus(x), "Activation", {"activation": "softplus"}, "softplus"),
    "softsign": (lambda x, y: tf.nn.softsign(x), "Activation", {"activation": "softsign"}, "softsign"),
    "exp": (lambda x, y: tf.exp(x), "Activation", {"activation": "exponential"}, "exp"),
    "identity": (lambda x, y: tf.identity(x), "Activation", {"activation": "linear"}, "identity"),
    "cast to its own type": (lambda x, y: tf.cast(x, tf.float32), "Activation", {"activation": "linear"}, "cast"),
    "softmax": (lambda x, y: tf.nn.softmax(x), "Softmax", {"axis": -1}, "softmax"),
    "softmax of an axis": (lambda x, y: tf.nn.softmax(x, axis=2), "Softmax", {"axis": 2}, "softmax"),
    "concat": (lambda x, y: tf.concat([x, y], 3), "Concatenate", {"axis": 3}, "concat"),
    "concat by name": (lambda x, y: tf.concat(axis=-2, values=(x, y)), "Concatenate", {"axis": -2}, "concat"),
    "reshape": (lambda x, y: tf.reshape(x, [-1, 8, 6]), "Reshape", {"target_shape": (8, 6)}, "reshape"),
    "reshape to its own batch": (
        lambda x, y: tf.reshape(x, [tf.shape(x)[0], -1, 2]),
        "Reshape",
        {"target_shape": (-1, 2)},
        "reshape",
    ),
    "flatten": (lambda x, y: backend.batch_flatten(x), "Flatten", {}, "batch_flatten"),
    "squeeze": (lambda x, y: tf.squeeze(x[:, :, :1], axis=[2]), "Reshape", {"target_shape": (4, 2)}, "squeeze"),
    "expand_dims": (lambda x, y: tf.expand_dims(x, -1), "Reshape", {"target_shape": (4, 6, 2, 1)}, "expand_dims"),
    "transpose": (lambda x, y: tf.transpose(x, [0, 3, 1, 2]), "Permute", {"dims": (3, 1, 2)}, "transpose"),
    "pad": (
        lambda x, y: tf.pad(x, [[0, 0], [1, 2], [3, 4], [0, 0]]),
        "ZeroPadding2D",
        {"padding": ((1, 2), (3, 4))},
        "pad",
    ),
    "mean": (lambda x, y: tf.reduce_mean(x, axis=[1, 2]), "GlobalAveragePooling2D", {"keepdims": False}, "reduce_mean"),
    "mean, axes counted from the end": (
        lambda x, y: tf.reduce_mean(x, (-2, -3), True),
        "GlobalAveragePooling2D",
        {"keepdims": True},
        "reduce_mean",
    ),
    "backend mean": (lambda x, y: backend.mean(x, axis=[1, 2]), "GlobalAveragePooling2D", {"keepdims": False}, "reduce_mean"),
    "max": (lambda x, y: tf.reduce_max(x, axis=[1, 2]), "GlobalMaxPooling2D", {"keepdims": False}, "reduce_max"),
    "max_pool": (
        lambda x, y: tf.nn.max_pool(x, 2, [1, 2, 1, 1], "SAME"),
        "MaxPooling2D",
        {"pool_size": (2, 2), "strides": (2, 1), "padding": "same"},
        "max_pool2d",
    ),
    "avg_pool": (
        lambda x, y: tf.nn.avg_pool2d(x, (2, 3), 2, "VALID"),
        "AveragePooling2D",
        {"pool_size": (2, 3), "strides": (2, 2), "padding": "valid"},
        "avg_pool2d",
    ),
    "resize": (lambda x, y: tf.image.resize(x, [8, 18]), "UpSampling2D", {"size": (2, 3), "interpolation": "bilinear"}, "resize"),
    "resize to the nearest": (
        lambda x, y: tf.image.resize(x, tf.shape(y)[1:3] * 2, method="nearest"),
        "UpSampling2D",
        {"size": (2, 2), "interpolation": "nearest"},
        "resize",
    ),
    "backend resize": (lambda x, y: backend.resize_images(x, 2, 2, "channels_last"), "UpSampling2D", {"size": (2, 2)}, "resize"),
    "matmul": (lambda x, y: tf.matmul(x, y, transpose_b=True), "MatMul", {"transpose_b": True}, "matmul"),
}
NOT_BIT_EQUAL = ("x / 3",)


@pytest.mark.parametrize("case", REWRITTEN)
def test_an_operation_becomes_the_layer_that_means_the_same(case: str) -> None:
    operation, class_name, config, name = REWRITTEN[case]
    tf_keras.backend.clear_session()
    result, error = both(operation)
    layer = made(result)[-1]
    assert type(layer).__name__ == class_name
    assert {key: layer.get_config()[key] for key in config} == config
    assert layer.name == name
    assert error <= (1e-6 if case in NOT_BIT_EQUAL else 0.0)


STAY: dict[str, Operation] = {
    "square": lambda x, y: tf.square(x),
    "c / x": lambda x, y: 1.0 / x,
    "x / y": lambda x, y: x / y,
    "maximum of one": lambda x, y: tf.maximum(x, 1.0),
    "clip from below zero": lambda x, y: tf.clip_by_value(x, -1, 1),
    "swish with beta": lambda x, y: tf.nn.silu(x, 2.0),
    "a constant image": lambda x, y: x + tf.ones((1, 4, 6, 2)),
    "fewer axes": lambda x, y: x + tf.reduce_mean(y, axis=[0, 1]),
    "concat with a constant": lambda x, y: tf.concat([x, tf.ones((3, 4, 6, 2))], -1),
    "concat of the batch": lambda x, y: tf.concat([x, y], 0),
    "reshape of the batch": lambda x, y: tf.reshape(x, [-1, 6, 2]),
    "transpose of the batch": lambda x, y: tf.transpose(x, [1, 0, 2, 3]),
    "squeeze of whatever is one": lambda x, y: tf.squeeze(x[:, :1]),
    "expand_dims of the batch": lambda x, y: tf.expand_dims(x, 0),
    "mean of channels": lambda x, y: tf.reduce_mean(x, axis=[1, 2, 3]),
    "mean of one axis": lambda x, y: tf.reduce_mean(x, axis=1),
    "pad with ones": lambda x, y: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=1),
    "reflecting pad": lambda x, y: tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT"),
    "pad of channels": lambda x, y: tf.pad(x, [[0, 0], [0, 0], [0, 0], [1, 1]]),
    "pool of explicit padding": lambda x, y: tf.nn.max_pool2d(x, 2, 2, [[0, 0], [1, 1], [1, 1], [0, 0]]),
    "resize to a broken factor": lambda x, y: tf.image.resize(x, [6, 6]),
    "resize with antialias": lambda x, y: tf.image.resize(x, [8, 12], antialias=True),
    "matmul of a transposed left": lambda x, y: tf.matmul(x, y, transpose_a=True),
    "slice": lambda x, y: x[:, 1:, ..., ::-1],
    "whole numbers": lambda x, y: tf.cast(tf.cast(x, tf.int32) + 2, tf.float32),
}


@pytest.mark.parametrize("case", STAY)
def test_other_operations_stay_and_can_be_saved(case: str, tmp_path: Path) -> None:
    model = built(STAY[case])
    result = canonicalize(model)
    expected = model([IMAGES, OTHERS]).numpy()
    assert is_canonical(result.model)
    assert not is_canonical(model) if case == "slice" else is_canonical(model)
    assert {type(layer).__name__ for layer in made(result)} <= {"TFOpLambda", "SlicingOpLambda"}
    assert [layer.name for layer in made(result)] == [layer.name for layer in model.layers if layer.name not in ("x", "y", "end")]
    assert np.array_equal(result.model([IMAGES, OTHERS]), expected, equal_nan=True)
    result.model.save(tmp_path / "model.keras")
    loaded = tf_keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(loaded([IMAGES, OTHERS]), expected, equal_nan=True)
    assert [(layer.name, type(layer)) for layer in loaded.layers] == [(layer.name, type(layer)) for layer in result.model.layers]
    assert is_canonical(loaded)


def test_tensors_with_a_mask_are_left_alone() -> None:
    """An operation drops the mask of its input, Add would hand it on to the pooling."""
    ids = tf_keras.Input((5,), dtype="int32", name="ids")
    x = tf_keras.layers.Embedding(7, 4, mask_zero=True, name="embedding")(ids) + 1.0
    model = tf_keras.Model(ids, tf_keras.layers.GlobalAveragePooling1D(name="pool")(x))
    result = canonicalize(model)
    assert [type(layer).__name__ for layer in result.model.layers] == [type(layer).__name__ for layer in model.layers]
    numbers = np.array([[1, 2, 0, 0, 0], [3, 0, 0, 0, 0]])
    assert np.array_equal(result.model(numbers), model(numbers))


def test_a_size_that_only_a_run_tells_stays() -> None:
    x = tf_keras.Input((None, None, 3), name="x")
    model = tf_keras.Model(x, tf.image.resize(x, tf.shape(x)[1:3] * 2))
    assert is_canonical(model)
    images = np.ones((1, 3, 4, 3), np.float32)
    assert canonicalize(model).model(images).shape == (1, 6, 8, 3)


DOTS = {
    "second by its rows": ((2, 1), (3, 4), (4, 5), {"transpose_b": False}),
    "both by their last": ((2, 2), (3, 4), (5, 4), {"transpose_b": True}),
    "both by their last, counted from the end": (-1, (3, 4), (5, 4), {"transpose_b": True}),
    "first by its rows": ((1, 2), (4, 3), (5, 4), None),
    "normalized": ((2, 2), (3, 4), (5, 4), None),
}


@pytest.mark.parametrize("case", DOTS)
def test_dot_of_matrices_is_a_matrix_product(case: str) -> None:
    axes, first, second, expected = DOTS[case]
    a, b = tf_keras.Input(first, name="a"), tf_keras.Input(second, name="b")
    model = tf_keras.Model([a, b], tf_keras.layers.Dot(axes, normalize=case == "normalized", name="dot")([a, b]))
    result = canonicalize(model)
    layer = result.model.get_layer("dot")
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, *shape)).astype(np.float32) for shape in (first, second)]
    assert type(layer).__name__ == ("Dot" if expected is None else "MatMul")
    assert expected is None or layer.transpose_b == expected["transpose_b"]
    assert difference(model(arrays), result.model(arrays)) <= 1e-6


def test_every_rule_has_a_case() -> None:
    """Symbols that the table knows but no case above reaches: older spellings, and the ones for other ranks."""
    reached = set()
    for operation, *_ in REWRITTEN.values():
        reached |= {getattr(layer, "symbol", None) for layer in built(operation).layers}
    assert set(RULES) - reached == {
        "math.divide",
        "squeeze",
        "transpose",
        "pad",
        "nn.max_pool",
        "nn.max_pool1d",
        "nn.max_pool3d",
        "compat.v1.nn.max_pool",
        "nn.avg_pool",
        "nn.avg_pool1d",
        "nn.avg_pool3d",
        "compat.v1.nn.avg_pool",
        "compat.v1.image.resize_nearest_neighbor",
    }


OTHER_RANKS: dict[str, tuple[tuple[int, ...], Callable[[Any], Any], str]] = {
    "mean of a sequence": ((6, 3), lambda x: tf.reduce_mean(x, 1), "GlobalAveragePooling1D"),
    "max of a volume": ((2, 3, 4, 5), lambda x: tf.reduce_max(x, [1, 2, 3]), "GlobalMaxPooling3D"),
    "max_pool1d": ((6, 3), lambda x: tf.nn.max_pool1d(x, 2, 2, "VALID"), "MaxPooling1D"),
    "avg_pool1d": ((6, 3), lambda x: tf.nn.avg_pool1d(x, 2, 2, "SAME"), "AveragePooling1D"),
    "avg_pool3d": ((4, 4, 4, 2), lambda x: tf.nn.avg_pool3d(x, 2, 2, "VALID"), "AveragePooling3D"),
    "avg_pool of a volume": ((4, 4, 4, 2), lambda x: tf.nn.avg_pool(x, 2, 2, "VALID"), "AveragePooling3D"),
    "backend max_pool": ((4, 4, 2), lambda x: backend.pool2d(x, (2, 2), (2, 2)), "MaxPooling2D"),
    "backend avg_pool": ((4, 4, 2), lambda x: backend.pool2d(x, (2, 2), (2, 2), pool_mode="avg"), "AveragePooling2D"),
    "pad of a sequence": ((6, 3), lambda x: tf.pad(x, [[0, 0], [2, 1], [0, 0]]), "ZeroPadding1D"),
    "nearest of TensorFlow 1": ((4, 4, 2), lambda x: tf.compat.v1.image.resize_nearest_neighbor(x, [8, 12]), "UpSampling2D"),
    "matmul of matrices": ((4, 4), lambda x: x @ x, "MatMul"),
}


@pytest.mark.parametrize("case", OTHER_RANKS)
def test_operations_on_other_ranks(case: str) -> None:
    shape, operation, class_name = OTHER_RANKS[case]
    x = tf_keras.Input(shape, name="x")
    model = tf_keras.Model(x, operation(x))
    result = canonicalize(model)
    values = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    assert type(result.model.layers[-1]).__name__ == class_name
    assert np.array_equal(result.model(values), model(values))
