"""Folding a BatchNorm on real layers: codes, scales and biases held against the equation, computed here a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tf_keras

import tfqat
from tfqat.export.fold import fold_batch_norms
from tfqat.quantize import state

K = tf_keras.layers
GAMMA = (1.5, -0.7, 0.0, -2.0, 0.9, 1.1)


def network(product: Any, shape: tuple[int, ...], gamma: Any = GAMMA, **norm: Any) -> Any:
    """image -> `product` -> BatchNormalization -> ReLU, all weights random, 6 channels, quantized, with ranges."""
    x = tf_keras.Input(shape, name="image")
    model = tf_keras.Model(x, K.ReLU(name="relu")(K.BatchNormalization(name="bn", **norm)(product(x))), name="net")
    rng = np.random.default_rng(7)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([rng.normal(size=weight.shape).astype(np.float32) for weight in layer.weights])
    norm_layer = model.get_layer("bn")
    if norm_layer.scale:
        norm_layer.gamma.assign(np.asarray(gamma, np.float32))
    norm_layer.moving_variance.assign(rng.uniform(0.01, 3.0, norm_layer.moving_variance.shape))
    return model


def quantized(model: Any, quantization: Any = "selective") -> Any:
    qmodel = tfqat.quantize_model(model, quantization)
    tfqat.calibrate(qmodel, [np.random.default_rng(1).normal(size=(4, *model.input_shape[1:])).astype(np.float32)], 1)
    return qmodel


# product, input shape, axes of the output channels, arguments of the BatchNormalization
PRODUCTS: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "Conv2D": (lambda: K.Conv2D(6, 3, name="op", use_bias=False), (7, 7, 4), (3,), {}),
    "Conv2D with a bias": (lambda: K.Conv2D(6, 3, name="op"), (7, 7, 4), (3,), {}),
    "Conv2D, large epsilon": (lambda: K.Conv2D(6, 3, name="op"), (7, 7, 4), (3,), {"epsilon": 0.5}),
    "Conv2D, no gamma, no beta": (lambda: K.Conv2D(6, 3, name="op"), (7, 7, 4), (3,), {"scale": False, "center": False}),
    "grouped": (lambda: K.Conv2D(6, 3, groups=2, name="op"), (7, 7, 4), (3,), {}),
    "depthwise": (lambda: K.DepthwiseConv2D(3, name="op"), (7, 7, 6), (2, 3), {}),
    "depthwise, multiplier 2": (lambda: K.DepthwiseConv2D(3, depth_multiplier=2, name="op"), (7, 7, 3), (2, 3), {}),
    "Conv1D": (lambda: K.Conv1D(6, 3, name="op"), (9, 4), (2,), {}),
    "Conv3D": (lambda: K.Conv3D(6, 2, name="op"), (4, 4, 4, 2), (4,), {}),
    "Dense": (lambda: K.Dense(6, name="op"), (5,), (1,), {}),
}


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize(("product", "shape", "axes", "norm"), PRODUCTS.values(), ids=PRODUCTS)
def test_folded_numbers_are_those_of_the_equation(product: Any, shape: Any, axes: Any, norm: dict[str, Any], granularity: str) -> None:
    qmodel = quantized(network(product(), shape, **norm), {"weights": {"granularity": granularity}})
    (handle,) = [handle for handle in state.handles(qmodel).values() if handle.weight is not None]
    codes, scale = state.weight_codes(handle)
    layer, bn = qmodel.get_layer("op").layer, qmodel.get_layer("bn")

    folded = fold_batch_norms(qmodel)

    ones = np.ones(6)
    gamma = bn.gamma.numpy().astype(np.float64) if bn.scale else ones
    beta = bn.beta.numpy().astype(np.float64) if bn.center else 0 * ones
    gain = gamma / np.sqrt(bn.moving_variance.numpy().astype(np.float64) + bn.epsilon)
    bias = layer.bias.numpy().astype(np.float64) if layer.use_bias else 0 * ones
    signs = np.sign(gain).astype(np.int8).reshape([codes.shape[axis] if axis in axes else 1 for axis in range(codes.ndim)])
    np.testing.assert_array_equal(folded.codes["op"].codes, codes * signs)
    assert folded.codes["op"].axes == axes
    wanted = np.maximum(np.broadcast_to(scale, [codes.shape[axis] for axis in axes]).reshape(-1).astype(np.float64) * abs(gain), 1e-12)
    np.testing.assert_array_equal(folded.codes["op"].scale.reshape(-1), wanted.astype(np.float32))
    np.testing.assert_array_equal(folded.biases["op"], (beta + (bias - bn.moving_mean.numpy()) * gain).astype(np.float32))
    assert folded.biases["op"].dtype == folded.codes["op"].scale.dtype == np.float32
    assert (folded.dropped, folded.batch_norms[0].reason) == ({"bn"}, "folded into the scales of op")


@pytest.mark.parametrize(("product", "shape", "axes", "norm"), PRODUCTS.values(), ids=PRODUCTS)
def test_the_exported_graph_of_each_is_proven_and_has_no_batch_norm(tmp_path: Any, product: Any, shape: Any, axes: Any, norm: Any) -> None:
    import onnx

    qmodel = quantized(network(product(), shape, **norm))
    report = tfqat.export_onnx(qmodel, tmp_path / "m.onnx")
    assert (report.kept_batch_norms, report.weights) == ((), 1)
    assert not [node for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type in ("BatchNormalization", "Mul")]
    batch = np.random.default_rng(2).normal(size=(16, *shape)).astype(np.float32)
    assert tfqat.verify(qmodel, tmp_path / "m.onnx", [batch], examples=16).failures == ()


def joined(kind: str) -> Any:
    x = tf_keras.Input((7, 7, 6), name="image")
    norm = K.BatchNormalization(name="bn")
    if kind == "read elsewhere too":
        y = K.Conv2D(6, 3, name="op")(x)
        return tf_keras.Model(x, K.Concatenate()([norm(y), y]))
    if kind == "also an output":
        y = K.Conv2D(6, 3, name="op")(x)
        return tf_keras.Model(x, [norm(y), y])
    if kind == "an activation between":
        return tf_keras.Model(x, norm(K.Conv2D(6, 3, activation="relu", name="op")(x)))
    if kind == "no product before it":
        return tf_keras.Model(x, K.Conv2D(6, 3, name="op")(norm(x)))
    if kind == "training":
        return tf_keras.Model(x, norm(K.Conv2D(6, 3, name="op")(x), training=True))
    if kind == "another axis":
        return tf_keras.Model(x, K.BatchNormalization(name="bn", axis=1)(K.Conv2D(6, 3, name="op")(x)))
    if kind == "normalizes another tensor too":
        return tf_keras.Model(x, K.Concatenate()([norm(K.Conv2D(6, 7, name="op")(x)), norm(K.MaxPooling2D(7)(x))]))
    return tf_keras.Model(x, norm(K.Conv2DTranspose(6, 3, name="op")(K.Conv2D(6, 1, name="first")(x))))


OBSTACLES = {
    "read elsewhere too": "the output of op is read elsewhere too",
    "also an output": "the output of op is read elsewhere too",
    "an activation between": "op before it is no product without activation",
    "no product before it": "image before it has no quantized weight, and its output is read as int8 codes",
    "training": "it is called with training=True",
    "another axis": "it normalizes another axis than the channels",
    "normalizes another tensor too": "it normalizes other tensors than the output of op too",
    "a float convolution": "op before it has no quantized weight",
}


@pytest.mark.parametrize(("kind", "reason"), OBSTACLES.items(), ids=OBSTACLES)
def test_a_batch_norm_stays_and_says_why(kind: str, reason: str) -> None:
    folded = fold_batch_norms(quantized(joined(kind)))
    assert [(result.node, result.folded, result.reason) for result in folded.batch_norms] == [("bn", False, reason)]
    assert (folded.biases, folded.dropped) == ({}, frozenset())


def test_folding_can_be_switched_off() -> None:
    folded = fold_batch_norms(quantized(network(K.Conv2D(6, 3, name="op"), (7, 7, 4))), enabled=False)
    assert [(result.folded, result.reason) for result in folded.batch_norms] == [(False, "folding is switched off")]
    assert folded.biases == {}


def test_a_shared_convolution_and_its_shared_batch_norm_fold_once(tmp_path: Any) -> None:
    conv, norm = K.Conv2D(6, 3, name="op"), K.BatchNormalization(name="bn")
    left, right = tf_keras.Input((7, 7, 4), name="left"), tf_keras.Input((7, 7, 4), name="right")
    model = tf_keras.Model(
        [left, right], K.Concatenate(name="cat")([K.ReLU(name=f"relu{i}")(norm(conv(x))) for i, x in enumerate((left, right))])
    )
    norm.moving_mean.assign(np.linspace(-1, 1, 6))
    qmodel = tfqat.quantize_model(model)
    data = [{name: np.random.default_rng(seed).normal(size=(8, 7, 7, 4)).astype(np.float32) for seed, name in enumerate(("left", "right"))}]
    tfqat.calibrate(qmodel, data, 1)
    assert [(result.folded) for result in fold_batch_norms(qmodel).batch_norms] == [True]
    report = tfqat.export_onnx(qmodel, tmp_path / "m.onnx")
    assert (report.weights, report.activations) == (1, 2)
    assert tfqat.verify(qmodel, tmp_path / "m.onnx", data, examples=8).failures == ()
