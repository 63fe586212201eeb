"""Keras 3 models become tf_keras models: every layer, operation and form of graph gives the same outputs, and the source is only read.

Bit-equal means that TensorFlow computes the same operations. BatchNormalization (fused in tf_keras), LayerNormalization and attention order
their arithmetic otherwise; there the bound is 1e-6 of the largest output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers as k3
from keras import ops

from tfqat.errors import ModelError
from tfqat.models import activations, graph, keras3, keras3_layers

CUSTOM_OBJECTS = {**activations.CUSTOM_OBJECTS, **keras3_layers.CUSTOM_OBJECTS}
IMAGE, STEPS, VECTOR = (8, 8, 6), (5, 6), (6,)


def fill(model: Any) -> Any:
    """Random weights; variances and scales positive."""
    rng = np.random.default_rng(3)
    for variable in model.variables:
        if "seed" not in variable.path:
            value = rng.normal(0, 0.5, variable.shape)
            variable.assign(np.abs(value) + 0.1 if "variance" in variable.path else value)
    for layer in model._flatten_layers():
        if isinstance(layer, k3.Normalization):
            layer.finalize_state()
    return model


def batch(model: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(4)
    shapes = [(tuple(axis or 2 for axis in tensor.shape), tf.as_dtype(tensor.dtype).name) for tensor in model.inputs]
    return [(rng.integers(0, 7, shape) if "int" in dtype else rng.normal(0, 1.5, shape)).astype(dtype) for shape, dtype in shapes]


def outputs(model: Any, inputs: Any) -> list[np.ndarray]:
    given = inputs[0] if len(inputs) == 1 else inputs
    return [np.asarray(tensor) for tensor in tf.nest.flatten(model(given, training=False))]


def check(model: Any, *, tolerance: float = 0.0, in_float64: bool = True) -> Any:
    """Convert and compare; the converted model, its clone and its float64 form. Returns the Converted."""
    fill(model)
    before = [variable.numpy() for variable in model.variables]
    inputs = batch(model)
    converted = keras3.convert(model)
    expected, found = outputs(model, inputs), outputs(converted.model, inputs)
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert np.abs(one.astype(np.float64) - other).max() <= tolerance * np.abs(one).max()
    assert all(np.array_equal(one, other) for one, other in zip(found, outputs(graph.clone(converted.model), inputs), strict=True))
    doubled = [value.astype("float64") if value.dtype == np.float32 else value for value in inputs]
    for one, other in zip(found, outputs(graph.as_float64(converted.model), doubled), strict=True):
        assert not in_float64 or np.abs(one - other).max() <= 2e-6 * np.abs(one).max()
    assert all(np.array_equal(old, variable.numpy()) for old, variable in zip(before, model.variables, strict=True))
    for name, variables in converted.origins.items():
        weights = converted.model.get_layer(name).weights
        assert all(np.array_equal(variable.numpy(), weight.numpy()) for variable, weight in zip(variables, weights, strict=True))
    return converted


def kinds(model: Any) -> list[str]:
    return [type(layer).__name__ for layer in model.layers if not isinstance(layer, tf_keras.layers.InputLayer)]


def sequential(layer: Any, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    return keras.Sequential([keras.Input(shape, dtype=dtype), layer])


@keras.saving.register_keras_serializable("test_models_keras3")
class Scaled(k3.Layer):
    """A layer of a user, with a layer inside that it builds at the first call."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dense = k3.Dense(3)

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")
        self.moved = self.add_weight(shape=(), name="moved", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.moved.assign(self.moved + 1.0)
        return self.dense(x * self.scale)


class Unregistered(Scaled):
    pass


def shifted_silu(x: Any) -> Any:
    return ops.sigmoid(x) * x + 0.1


# name -> layer, input shape, classes of the tf_keras layers
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...], list[str]]] = {
    "conv": (lambda: k3.Conv2D(4, 3, strides=2, padding="same", activation="relu"), IMAGE, ["Conv2D"]),
    "conv_settings": (
        lambda: k3.Conv2D(4, 3, dilation_rate=2, kernel_regularizer="l2", kernel_constraint="non_neg"),
        IMAGE,
        ["Conv2D"],
    ),
    "conv_groups": (lambda: k3.Conv2D(4, 3, groups=2), IMAGE, ["Conv2D"]),
    "conv1d_causal": (lambda: k3.Conv1D(4, 3, padding="causal"), STEPS, ["Conv1D"]),
    "conv3d": (lambda: k3.Conv3D(4, 2), (4, 4, 4, 3), ["Conv3D"]),
    "depthwise": (lambda: k3.DepthwiseConv2D(3, depth_multiplier=2, activation="hard_silu"), IMAGE, ["DepthwiseConv2D"]),
    "separable": (lambda: k3.SeparableConv2D(5, 3, depth_multiplier=2), IMAGE, ["SeparableConv2D"]),
    "transposed": (lambda: k3.Conv2DTranspose(4, 3, strides=2, padding="same", output_padding=1), IMAGE, ["Conv2DTranspose"]),
    "transposed1d": (lambda: k3.Conv1DTranspose(4, 3, strides=2), STEPS, ["Conv1DTranspose"]),
    "dense": (lambda: k3.Dense(4, activation="hard_sigmoid"), STEPS, ["Dense"]),
    "einsum_dense": (lambda: k3.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), STEPS, ["EinsumDense"]),
    "batchnorm_vectors": (lambda: k3.BatchNormalization(), VECTOR, ["BatchNormalization"]),
    "group_norm": (lambda: k3.GroupNormalization(2), IMAGE, ["GroupNormalization"]),
    "unit_norm": (lambda: k3.UnitNormalization(), VECTOR, ["UnitNormalization"]),
    "adapted": (lambda: k3.Normalization(), IMAGE, ["Normalization"]),
    "normalization": (lambda: k3.Normalization(axis=None, mean=2.0, variance=3.0, invert=True), IMAGE, ["Normalization"]),
    "rescaling": (lambda: k3.Rescaling([0.1] * 6, offset=1), IMAGE, ["Rescaling"]),
    "resizing": (lambda: k3.Resizing(5, 11, interpolation="bicubic", crop_to_aspect_ratio=True), IMAGE, ["Resizing"]),
    "resizing_antialias": (lambda: k3.Resizing(5, 11, antialias=True), IMAGE, ["Keras3Layer"]),
    "upsampling": (lambda: k3.UpSampling2D(3, interpolation="nearest"), IMAGE, ["UpSampling2D"]),
    "leaky_relu": (lambda: k3.LeakyReLU(negative_slope=0.1), IMAGE, ["LeakyReLU"]),
    "prelu": (lambda: k3.PReLU(shared_axes=[1, 2]), IMAGE, ["PReLU"]),
    "relu": (lambda: k3.ReLU(6, negative_slope=0.1, threshold=0.2), IMAGE, ["ReLU"]),
    "max_pooling": (lambda: k3.MaxPooling2D(3, 2, padding="same"), IMAGE, ["MaxPooling2D"]),
    "global_pooling": (lambda: k3.GlobalAveragePooling2D(keepdims=True), IMAGE, ["GlobalAveragePooling2D"]),
    "global_pooling1d": (lambda: k3.GlobalMaxPooling1D(keepdims=True), STEPS, ["GlobalMaxPooling1D"]),
    "adaptive_pooling": (lambda: k3.AdaptiveAveragePooling2D(2), IMAGE, ["Keras3Layer"]),
    "padding1d": (lambda: k3.ZeroPadding1D((1, 2)), STEPS, ["ZeroPadding1D"]),
    "padding": (lambda: k3.ZeroPadding2D(((1, 0), (0, 2))), IMAGE, ["ZeroPadding2D"]),
    "center_crop": (lambda: k3.CenterCrop(4, 4), IMAGE, ["CenterCrop"]),
    "reshape": (lambda: k3.Reshape((-1, 6)), IMAGE, ["Reshape"]),
    "lstm": (lambda: k3.LSTM(4, recurrent_activation="hard_sigmoid", return_state=True, go_backwards=True), STEPS, ["LSTM"]),
    "gru": (lambda: k3.GRU(4, return_sequences=True), STEPS, ["GRU"]),
    "bidirectional": (lambda: k3.Bidirectional(k3.LSTM(3, return_sequences=True)), STEPS, ["Bidirectional"]),
    "time_distributed": (lambda: k3.TimeDistributed(k3.Dense(3, activation="hard_silu")), STEPS, ["TimeDistributed"]),
    "dropout": (lambda: k3.Dropout(0.3), IMAGE, ["Dropout"]),
    "flip": (lambda: k3.RandomFlip(), IMAGE, ["RandomFlip"]),
    "rms_norm": (lambda: k3.RMSNormalization(), STEPS, ["Keras3Layer"]),
    "lambda": (lambda: k3.Lambda(lambda x, k: ops.relu(x) * k, arguments={"k": 3.0}), IMAGE, ["Lambda"]),
    "custom": (lambda: Scaled(), STEPS, ["Keras3Layer"]),
    "custom_unregistered": (lambda: Unregistered(), STEPS, ["Keras3Layer"]),
    "custom_activation": (lambda: k3.Conv2D(4, 3, activation=shifted_silu), IMAGE, ["Conv2D", "Keras3Layer"]),
    "custom_activation_lstm": (lambda: k3.LSTM(4, activation=shifted_silu), STEPS, ["Keras3Layer"]),
    "activation_layer": (lambda: k3.Dense(4, activation=k3.LeakyReLU(0.1)), VECTOR, ["Dense", "LeakyReLU"]),
    "activation_lambda": (lambda: k3.Activation(lambda x: x * x), IMAGE, ["Keras3Layer"]),
    "sparsemax": (lambda: k3.Dense(4, activation="sparsemax"), VECTOR, ["Dense", "Keras3Layer"]),
    "nested_in_wrapper": (lambda: k3.TimeDistributed(sequential(k3.Dense(3), VECTOR)), STEPS, ["Keras3Layer"]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    make, shape, expected = LAYERS[name]
    assert kinds(check(sequential(make(), shape)).model) == expected


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: k3.BatchNormalization(scale=False), IMAGE),
        (lambda: k3.LayerNormalization(), STEPS),
        (lambda: k3.LayerNormalization(axis=[-2, -1], epsilon=1e-6), IMAGE),
    ],
)
def test_layers_with_other_arithmetic(make: Callable[[], Any], shape: tuple[int, ...]) -> None:
    layer = make()
    assert kinds(check(sequential(layer, shape), tolerance=1e-6).model) == [type(layer).__name__]


# name -> operation on one image, class of the tf_keras layer
OPERATIONS: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "x * 2": (lambda x: x * 2, ["Rescaling"]),
    "2 * x": (lambda x: 2 * x, ["Rescaling"]),
    "x + 1": (lambda x: x + 1, ["Rescaling"]),
    "1 - x": (lambda x: 1 - x, ["Rescaling"]),
    "x - 0.5": (lambda x: x - 0.5, ["Rescaling"]),
    "x / 4": (lambda x: x / 4.0, ["Rescaling"]),
    "-x": (lambda x: -x, ["Rescaling"]),
    "channels": (lambda x: x * np.arange(6, dtype=np.float32), ["Rescaling"]),
    "x + x": (lambda x: x + x, ["Add"]),
    "constant": (lambda x: x + np.ones((8, 6), np.float32), ["KerasOperation"]),
    "power": (lambda x: x**2, ["KerasOperation"]),
    "relu": (ops.relu, ["Activation"]),
    "relu6": (ops.relu6, ["ReLU"]),
    "clip": (lambda x: ops.clip(x, 0, 6), ["ReLU"]),
    "clip_signed": (lambda x: ops.clip(x, -1, 2), ["KerasOperation"]),
    "max_0": (lambda x: ops.maximum(x, 0), ["ReLU"]),
    "capped": (lambda x: keras.activations.relu(x, max_value=3.0), ["ReLU"]),
    "leaky": (lambda x: ops.leaky_relu(x, 0.3), ["LeakyReLU"]),
    "celu": (lambda x: ops.celu(x, 0.5), ["KerasOperation"]),
    "softmax": (lambda x: ops.softmax(x, 1), ["Softmax"]),
    "log_softmax": (lambda x: ops.log_softmax(x, 1), ["KerasOperation"]),
    "gelu": (ops.gelu, ["Activation"]),
    "exact_gelu": (lambda x: ops.gelu(x, approximate=False), ["Activation"]),
    "mean": (lambda x: ops.mean(x, (1, 2)), ["GlobalAveragePooling2D"]),
    "mean_keepdims": (lambda x: ops.mean(x, [-3, -2], keepdims=True), ["GlobalAveragePooling2D"]),
    "mean_of_channels": (lambda x: ops.mean(x, -1), ["KerasOperation"]),
    "max": (lambda x: ops.max(x, (1, 2)), ["GlobalMaxPooling2D"]),
    "sum": (lambda x: ops.sum(x, (1, 2)), ["KerasOperation"]),
    "reshape": (lambda x: ops.reshape(x, (-1, 64, 6)), ["Reshape"]),
    "reshape_batch": (lambda x: ops.reshape(x, (-1, 6)), ["KerasOperation"]),
    "transpose": (lambda x: ops.transpose(x, (0, 3, 1, 2)), ["Permute"]),
    "transpose_batch": (lambda x: ops.transpose(x, (1, 0, 2, 3)), ["KerasOperation"]),
    "expand": (lambda x: ops.expand_dims(x, 1), ["Reshape"]),
    "squeeze": (lambda x: ops.squeeze(x[:, 0:1], 1), ["KerasOperation", "Reshape"]),
    "slice": (lambda x: x[:, ::2, ..., 1], ["KerasOperation"]),
    "new_axis": (lambda x: x[:, None, 0], ["KerasOperation"]),
    "pad": (lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0))), ["ZeroPadding2D"]),
    "pad_ones": (lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=1.0), ["KerasOperation"]),
    "pad_mirror": (lambda x: ops.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), mode="reflect"), ["KerasOperation"]),
    "resize": (lambda x: ops.image.resize(x, (5, 11)), ["Resizing"]),
    "cast": (lambda x: ops.cast(ops.cast(x, "int32"), "float32"), ["KerasOperation", "KerasOperation"]),
    "cast_to_itself": (lambda x: ops.cast(x, "float32") * 2, ["Rescaling"]),
    "split": (lambda x: ops.split(x, 2, axis=-1), ["KerasOperation"]),
    "top_k": (lambda x: ops.top_k(x, 2), ["KerasOperation"]),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    operation, expected = OPERATIONS[name]
    x = keras.Input(IMAGE)
    assert kinds(check(keras.Model(x, operation(x))).model) == expected


def test_division_is_rewritten() -> None:
    x = keras.Input(IMAGE)
    (layer,) = check(keras.Model(x, x / 255.0), tolerance=1e-6).model.layers[1:]
    assert (layer.scale, layer.offset) == (1 / 255, 0.0)


PAIRS: dict[str, tuple[Callable[[Any, Any], Any], list[str]]] = {
    "x + y": (lambda x, y: x + y, ["Add"]),
    "x - y": (lambda x, y: x - y, ["Subtract"]),
    "x * y": (lambda x, y: x * y, ["Multiply"]),
    "maximum": (ops.maximum, ["Maximum"]),
    "squeeze and excite": (lambda x, y: x * ops.mean(y, (1, 2), keepdims=True), ["GlobalAveragePooling2D", "Multiply"]),
    "other rank": (lambda x, y: x + y[0], ["KerasOperation", "KerasOperation"]),
    "concatenate": (lambda x, y: ops.concatenate([x, y], axis=-1), ["Concatenate"]),
    "stack": (lambda x, y: ops.stack([x, y], 1), ["KerasOperation"]),
    "where": (lambda x, y: ops.where(x > 0, x, y), ["KerasOperation", "KerasOperation"]),
    "einsum": (lambda x, y: ops.einsum("nhwc,nhwd->ncd", x, y), ["KerasOperation"]),
    "matmul": (lambda x, y: ops.matmul(ops.reshape(x, (-1, 8, 48)), ops.reshape(y, (-1, 48, 8))), ["MatMul", "Reshape", "Reshape"]),
    "matmul of 4 axes": (ops.matmul, ["MatMul"]),
    "add of three": (lambda x, y: k3.Add()([x, y, x]), ["Add"]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_operations_on_two(name: str) -> None:
    operation, expected = PAIRS[name]
    shape = (6, 6, 6) if "4 axes" in name else IMAGE
    x, y = keras.Input(shape), keras.Input(shape)
    assert sorted(kinds(check(keras.Model([x, y], operation(x, y))).model)) == expected


def token_models() -> dict[str, tuple[Any, list[str]]]:
    tokens, steps, state = keras.Input((5,), dtype="int32"), keras.Input(STEPS), keras.Input((4,))
    flags = keras.Input((5, 5))
    embedded = k3.Embedding(10, 6, mask_zero=True)(tokens)
    attended = k3.MultiHeadAttention(2, 3)(steps, steps, attention_mask=flags > 0, return_attention_scores=True)
    return {
        "mask": (keras.Model(tokens, k3.LSTM(3)(embedded)), ["Embedding", "LSTM"]),
        "masked mean": (keras.Model(tokens, k3.GlobalAveragePooling1D()(embedded)), ["Embedding", "GlobalAveragePooling1D"]),
        "operations drop masks": (keras.Model(tokens, ops.mean(embedded, 1)), ["Embedding", "KerasOperation"]),
        "masked attention": (keras.Model(tokens, k3.MultiHeadAttention(2, 3)(embedded, embedded)), ["Embedding", "MultiHeadAttention"]),
        "masks of a layer that tf_keras lacks": (
            keras.Model(tokens, k3.GroupQueryAttention(4, 2, 2)(embedded, embedded)),
            ["Embedding", "Keras3Layer"],
        ),
        "attention mask": (keras.Model([steps, flags], attended), ["KerasOperation", "MultiHeadAttention"]),
        "causal": (
            keras.Model(steps, k3.MultiHeadAttention(2, 3, dropout=0.1)(query=steps, value=steps, use_causal_mask=True)),
            ["MultiHeadAttention"],
        ),
        "initial state": (keras.Model([steps, state], k3.GRU(4)(steps, initial_state=state)), ["GRU"]),
    }


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask attached:UserWarning")
@pytest.mark.parametrize("name", token_models())
def test_sequences(name: str) -> None:
    model, expected = token_models()[name]
    # Attention adds -1e9 to what is masked. In float32 that leaves nothing of the scores of a wholly masked row, in float64 it does.
    assert kinds(check(model, tolerance=1e-6, in_float64=name != "masked attention").model) == expected


def encoder(name: str = "encoder") -> Any:
    x = keras.Input(IMAGE, name="in")
    inner = keras.Sequential([keras.Input(IMAGE), k3.Conv2D(4, 3, name="conv"), k3.BatchNormalization(name="bn")], name="inner")
    return keras.Model(x, k3.ReLU(name="_act")(inner(x) * 0.5), name=name)


def test_nested_models_are_flattened() -> None:
    x = keras.Input(IMAGE, name="image")
    model = keras.Model(x, k3.Dense(2, name="fc 1")(k3.Flatten(name="flat")(encoder()(x))), name="outer")
    converted = check(model, tolerance=1e-6)
    names = [layer.name for layer in converted.model.layers]
    assert [name for name in names if "multiply" not in name] == [
        "image",
        "encoder/inner/conv",
        "encoder/inner/bn",
        "encoder/._act",
        "flat",
        "fc>201",
    ]
    assert converted.model.name == "outer"
    assert list(converted.origins) == ["encoder/inner/conv", "encoder/inner/bn", "fc>201"]


def test_shared_models_and_layers_stay_shared() -> None:
    left, right, shared = keras.Input(IMAGE), keras.Input(IMAGE), encoder()
    dense = k3.Dense(3, name="fc")
    first, second = (dense(k3.GlobalAveragePooling2D()(shared(x))) for x in (left, right))
    converted = check(keras.Model([left, right], first - second), tolerance=1e-6)
    calls = {layer.name: len(layer._inbound_nodes) for layer in converted.model.layers}
    assert calls["encoder/inner/conv"] == calls["encoder/._act"] == calls["fc"] == 2
    assert len(converted.model.weights) == len(shared.weights) + 2


def test_structures_of_inputs_and_outputs() -> None:
    inputs = {"b": keras.Input((4,), name="b"), "a": keras.Input((6,), name="a")}
    joined = k3.Concatenate()([inputs["a"], inputs["b"]])
    model = fill(keras.Model(inputs, {"sum": k3.Dense(2)(joined), "raw": joined, "both": [inputs["a"], joined * 2]}))
    made = keras3.convert(model).model
    rows = {"a": np.ones((3, 6), np.float32), "b": np.full((3, 4), 2, np.float32)}
    expected, found = model(rows), made(rows)
    assert set(found) == {"sum", "raw", "both"}
    assert all(np.array_equal(*pair) for pair in zip(tf.nest.flatten(expected), tf.nest.flatten(found), strict=True))
    assert made.input_names == ["a", "b"]


def test_training_that_was_asked_for_is_kept() -> None:
    """A backbone called with training=False keeps its BatchNormalization in inference mode; otherwise the mode stays free."""
    x = keras.Input(IMAGE)
    frozen = keras3.convert(keras.Model(x, encoder()(x, training=False))).model
    free = keras3.convert(keras.Model(x, k3.Dropout(0.5)(encoder()(x)))).model
    rows = np.random.default_rng(0).normal(size=(4, *IMAGE)).astype(np.float32)
    assert np.array_equal(frozen(rows, training=True), frozen(rows, training=False))
    assert not np.array_equal(free(rows, training=True), free(rows, training=False))


def test_frozen_layers_stay_frozen() -> None:
    shared = encoder()
    shared.trainable = False
    x = keras.Input(IMAGE)
    converted = check(keras.Model(x, k3.Conv2D(2, 1, name="head")(shared(x))), tolerance=1e-6)
    assert [weight.name for weight in converted.model.trainable_weights] == ["head/kernel:0", "head/bias:0"]


def test_convnext_layers() -> None:
    from keras.src.applications.convnext import LayerScale, StochasticDepth

    x = keras.Input(IMAGE)
    converted = check(keras.Model(x, StochasticDepth(0.5)(LayerScale(0.1, 6)(x))))
    assert kinds(converted.model) == ["LayerScale", "StochasticDepth"]
    rows = np.ones((64, *IMAGE), np.float32)
    kept = converted.model(rows, training=True).numpy() / converted.model(rows, training=False).numpy()
    assert set(np.unique(kept)) == {0.0, 2.0}


def test_custom_layers_train() -> None:
    """Gradients reach the weights, and what the layer assigns in training is kept, all in the tf_keras layer alone."""
    source = fill(sequential(Scaled(name="scaled"), STEPS))
    made = keras3.convert(source).model
    before = {weight.name: weight.numpy() for weight in made.weights}
    made.compile("sgd", "mse")
    made.fit(np.ones((8, *STEPS)), np.zeros((8, 5, 3)), epochs=1, batch_size=8, verbose=0)
    changed = {weight.name for weight in made.weights if not np.array_equal(before[weight.name], weight.numpy())}
    assert len(changed) == len(made.weights) == 4
    moved = next(weight for weight in made.non_trainable_weights)
    assert moved.numpy() == pytest.approx(before[moved.name] + 1)
    assert np.array_equal(source.layers[0].moved.numpy(), before[moved.name])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_saved_and_loaded(tmp_path: Path, suffix: str) -> None:
    x, y = keras.Input(STEPS), keras.Input(STEPS)
    mixed = Scaled()(k3.GroupQueryAttention(4, 2, 2)(x, k3.RMSNormalization()(y)))
    sliced = ops.concatenate(
        [mixed[:, 1:, ..., None], ops.sum(x[:, 1:], -1, keepdims=True)[..., None] + np.ones(3, np.float32)[:, None]], 2
    )
    converted = check(keras.Model([x, y], sliced), tolerance=1e-6)
    converted.model.save(tmp_path / f"model{suffix}")
    loaded = tf_keras.models.load_model(tmp_path / f"model{suffix}", custom_objects=CUSTOM_OBJECTS, compile=False)
    rows = batch(converted.model)
    assert np.array_equal(outputs(loaded, rows)[0], outputs(converted.model, rows)[0])


def test_saved_with_a_class_given_at_loading(tmp_path: Path) -> None:
    made = keras3.convert(fill(sequential(Unregistered(), STEPS))).model
    made.save(tmp_path / "model.keras")
    given = {**CUSTOM_OBJECTS, "Unregistered": Unregistered, "test_models_keras3>Unregistered": Unregistered}
    loaded = tf_keras.models.load_model(tmp_path / "model.keras", custom_objects=given, compile=False)
    rows = batch(made)
    assert np.array_equal(outputs(loaded, rows)[0], outputs(made, rows)[0])


@pytest.mark.parametrize("path", ["os.path.join", "keras.src.ops.numpy.add", "keras.src.ops.nothing.Add", "keras.src.opsx.Add"])
def test_only_operations_of_keras_are_imported(path: str) -> None:
    with pytest.raises(ModelError, match=f"'{path}' is no operation of Keras 3"):
        keras3_layers.KerasOperation(path, settings={}, arguments={"args": [], "kwargs": {}})


def test_lora_is_merged() -> None:
    model = sequential(k3.Dense(4, name="fc"), VECTOR)
    model.get_layer("fc").enable_lora(2)
    fill(model)
    rows = batch(model)
    converted = keras3.convert(model)
    assert np.allclose(outputs(converted.model, rows)[0], outputs(model, rows)[0], rtol=1e-5, atol=1e-6)
    assert [variable.name for variable in converted.origins["fc"]] == ["kernel", "bias"]


class Subclassed(keras.Model):
    def call(self, x: Any) -> Any:
        return x


class OwnCall(keras.Model):
    def call(self, x: Any) -> Any:
        return super().call(x) + 1


class Doubled(keras.Operation):
    def call(self, x: Any) -> Any:
        return x * 2

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


def quantized() -> Any:
    model = sequential(k3.Dense(4, name="fc"), VECTOR)
    model.get_layer("fc").quantize("int8")
    return model


def own_call() -> Any:
    x = keras.Input(VECTOR)
    return OwnCall(x, k3.Dense(2)(x), name="own")


def own_operation() -> Any:
    x = keras.Input(VECTOR)
    return keras.Model(x, Doubled(name="twice")(x))


def mapped() -> Any:
    x = keras.Input(VECTOR)
    return keras.Model(x, ops.map(lambda row: row * 2, x))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "subclassed": (lambda: Subclassed(name="sub"), "model 'sub' .Subclassed. is a subclassed model.*Rebuild it with the functional API"),
    "own call": (own_call, "model 'own' .OwnCall. is a subclassed model"),
    "unbuilt": (
        lambda: keras.Sequential([k3.Dense(2)], name="s"),
        "model 's' is a Sequential without an input shape: start it with keras.Inp",
    ),
    "quantized": (quantized, "layer 'fc' .Dense. has been quantized by Keras .int8., expected float weights"),
    "own operation": (
        own_operation,
        "operation 'twice' is of class .*Doubled, expected a keras.ops operation: make it a keras.layers.Layer",
    ),
    "function": (mapped, "operation 'map.*' .Map. cannot be written to a file, because of .*function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        keras3.convert(make())


def test_is_keras3() -> None:
    assert keras3.is_keras3(encoder())
    assert keras3.is_keras3(Subclassed())
    assert not keras3.is_keras3(tf_keras.Sequential())
    assert not keras3.is_keras3(k3.Dense(2))
    assert not keras3.is_keras3("model.keras")


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files(tmp_path: Path, suffix: str) -> None:
    model = fill(sequential(k3.Dense(4), STEPS))
    model.save(tmp_path / f"model{suffix}")
    loaded = keras3.load_file(tmp_path / f"model{suffix}", {})
    assert np.array_equal(outputs(loaded, batch(model))[0], outputs(model, batch(model))[0])


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning")
def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    sequential(k3.Lambda(lambda x: x * 2), VECTOR).save(tmp_path / "lambda.keras")
    with pytest.raises(ModelError, match=r"lambda\.keras cannot be loaded by Keras 3.*holds Python byte code.*unsafe=True .--unsafe."):
        keras3.load_file(tmp_path / "lambda.keras", None)
    rows = np.ones((1, *VECTOR), np.float32)
    made = keras3.convert(keras3.load_file(tmp_path / "lambda.keras", None, unsafe=True)).model
    assert np.array_equal(made(rows), 2 * rows)

    class Local(k3.Layer):
        pass

    sequential(Local(), VECTOR).save(tmp_path / "custom.keras")
    with pytest.raises(ModelError, match=r"custom\.keras cannot be loaded by Keras 3.*Give the classes of custom layers as custom_objects"):
        keras3.load_file(tmp_path / "custom.keras", None)
    assert keras3.load_file(tmp_path / "custom.keras", {"Local": Local}).built

    encoder().save(tmp_path / "operation.h5")
    with pytest.raises(ModelError, match=r"operation\.h5 cannot be loaded by Keras 3.*save the model as \.keras"):
        keras3.load_file(tmp_path / "operation.h5", None)


SCRIPT = """
{imports}
import numpy as np
x = keras.Input((8, 8, 3)); y = keras.layers.Conv2D(4, 3, activation="relu")(x); y = keras.layers.BatchNormalization()(y)
y = keras.layers.Dense(2)(keras.ops.mean(y * 2, axis=(1, 2)))
model = keras.Model(x, y)
made = keras3.convert(model).model
rows = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
a, b = np.asarray(model(rows)), made(rows).numpy()
print(keras.backend.backend(), np.abs(a - b).max() <= 1e-6 * np.abs(a).max())
"""
OURS = "from tfqat.models import keras3"


def run(backend: str, imports: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    script = SCRIPT.format(imports=imports)
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("imports", [f"import keras\n{OURS}", f"{OURS}\nimport keras"])
def test_order_of_imports(imports: str) -> None:
    assert run("tensorflow", imports).stdout.split() == ["tensorflow", "True"]


OTHER_BACKEND: dict[str, tuple[Callable[[Any], Any], str]] = {
    "layer": (k3.RMSNormalization(name="rms"), r"layer 'rms' \(keras\.src\.layers\..*RMSNormalization\) has no counterpart in tf_keras"),
    "operation": (lambda x: x[:, 1:], r"layer 'get_item.*' \(keras\.src\.ops\.numpy\.GetItem\) has no counterpart in tf_keras"),
    "lambda": (k3.Lambda(lambda x: x, name="same"), "the function of Lambda layer 'same' computes with 'jax'"),
}


@pytest.mark.parametrize("name", OTHER_BACKEND)
def test_another_backend_cannot_compute_in_tf_keras(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = OTHER_BACKEND[name]
    x = keras.Input(STEPS)
    plain, other = keras.Model(x, k3.Dense(2)(x * 2)), keras.Model(x, make(x))
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert kinds(keras3.convert(plain).model) == ["Rescaling", "Dense"]
    with pytest.raises(ModelError, match=f"{message}.*set KERAS_BACKEND=tensorflow in the environment"):
        keras3.convert(other)


@pytest.mark.slow
def test_a_model_of_jax() -> None:
    pytest.importorskip("jax")
    assert run("jax", f"import keras\n{OURS}").stdout.split() == ["jax", "True"]


APPLICATIONS: dict[str, dict[str, Any]] = {
    "MobileNet": {},
    "MobileNetV2": {},
    "MobileNetV3Small": {},
    "ResNet50": {},
    "ResNet50V2": {},
    "EfficientNetB0": {},
    "EfficientNetV2B0": {},
    "DenseNet121": {},
    "InceptionV3": {"input_shape": (80, 80, 3)},
    "Xception": {"input_shape": (80, 80, 3)},
    "NASNetMobile": {},
    "ConvNeXtTiny": {},
    "VGG16": {"classes": 10, "input_shape": (32, 32, 3)},
}


def trained_alike(model: Any) -> Any:
    """The model with statistics, scales and offsets that are not those of a new model."""
    rng = np.random.default_rng(5)
    for layer in model._flatten_layers():
        if isinstance(layer, k3.BatchNormalization):
            shape = layer.moving_mean.shape
            layer.moving_mean.assign(rng.normal(0, 0.3, shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, shape))
            layer.beta.assign(rng.normal(0, 0.3, shape))
            if layer.gamma is not None:
                layer.gamma.assign(rng.uniform(0.5, 1.5, shape))
    return model


@pytest.mark.sweep
@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(name: str) -> None:
    settings = {"weights": None, "input_shape": (64, 64, 3), "classifier_activation": None, **APPLICATIONS[name]}
    model = trained_alike(getattr(keras.applications, name)(**settings))
    rows = np.random.default_rng(6).uniform(0, 2, (2, *settings["input_shape"])).astype(np.float32)
    expected, made = model(rows, training=False).numpy(), keras3.convert(model).model
    assert np.array_equal(made(rows, training=False), expected)
    assert not {"KerasOperation", "Keras3Layer", "Lambda"} & set(kinds(made))


@pytest.mark.slow
def test_an_application_is_bit_equal() -> None:
    model = trained_alike(keras.applications.MobileNetV3Small(weights=None, input_shape=(64, 64, 3), classifier_activation=None))
    rows = np.random.default_rng(6).uniform(0, 2, (2, 64, 64, 3)).astype(np.float32)
    assert np.array_equal(keras3.convert(model).model(rows, training=False), model(rows, training=False))
