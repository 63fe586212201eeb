"""BatchNorm in front of a float layer: its weights take it in, where nothing is padded; the outputs stay within 1e-5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tf_keras

import tfqat
from tfqat.engines import onnxruntime as runtime
from tfqat.models.graph import read

K = tf_keras.layers


def network(layer: Any, shape: tuple[int, ...], **norm: Any) -> Any:
    """image -> int8 Conv -> pool -> BatchNorm -> `layer`, which stays float; random weights. The pool keeps BatchNorm off the Conv."""
    image = tf_keras.Input(shape, name="image")
    x = K.Dense(6, activation="relu", name="first")(image)
    x = K.BatchNormalization(name="bn", **norm)(x)
    model = tf_keras.Model(image, layer(x))
    rng = np.random.default_rng(3)
    for one in model.layers:
        if one.weights:
            one.set_weights([rng.normal(size=weight.shape).astype(np.float32) for weight in one.weights])
    model.get_layer("bn").moving_variance.assign(rng.uniform(0.1, 3.0, 6))
    return model


def exported(model: Any, path: Path, **quantization: Any) -> tuple[Any, Any, np.ndarray]:
    images = np.random.default_rng(1).normal(size=(8, *model.input_shape[1:])).astype(np.float32)
    qmodel = tfqat.quantize_model(model, quantization)
    tfqat.calibrate(qmodel, [images], 1)
    return qmodel, tfqat.export_onnx(qmodel, path), images


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...], dict[str, Any]]] = {
    "Conv2D": (lambda: K.Conv2D(5, 3, name="op"), (8, 8, 4), {}),
    "Conv2D without bias, strided": (lambda: K.Conv2D(5, 3, strides=2, use_bias=False, name="op"), (9, 9, 4), {}),
    "no gamma, no beta": (lambda: K.Conv2D(5, 3, name="op"), (8, 8, 4), {"scale": False, "center": False}),
    "grouped": (lambda: K.Conv2D(4, 3, groups=2, name="op"), (8, 8, 4), {}),
    "depthwise": (lambda: K.DepthwiseConv2D(3, name="op"), (8, 8, 4), {}),
    "depthwise, multiplier 2": (lambda: K.DepthwiseConv2D(3, depth_multiplier=2, name="op"), (8, 8, 4), {}),
    "Conv1D": (lambda: K.Conv1D(5, 3, name="op"), (9, 4), {}),
    "Dense": (lambda: K.Dense(5, name="op"), (4,), {}),
}


@pytest.mark.parametrize(("layer", "shape", "norm"), LAYERS.values(), ids=LAYERS)
def test_a_float_layer_takes_it_in(layer: Any, shape: Any, norm: dict[str, Any], tmp_path: Path) -> None:
    model = network(layer(), shape, **norm)
    qmodel, report, images = exported(model, tmp_path / "model.onnx", skip=["op"])
    assert [(result.folded, result.reason) for result in report.batch_norms] == [(True, "folded into the weight of op")]
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    outputs, wanted = runtime.run_batches(runtime.session(tmp_path / "model.onnx", literal=True), [images]), qmodel(images).numpy()
    assert np.abs(outputs - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert read(qmodel).node("bn").class_name == "BatchNormalization"  # the model is left as it was


KEPT = {
    "padding": (
        lambda: K.Conv2D(5, 3, padding="same", name="op"),
        {"skip": ["op"]},
        "first before it is no product without activation, and op behind it pads with zeros, which BatchNorm would shift",
    ),
    "quantized": (
        lambda: K.Conv2D(5, 3, name="op"),
        {},
        "first before it is no product without activation, and its output is read as int8 codes",
    ),
}


@pytest.mark.parametrize(("layer", "quantization", "reason"), KEPT.values(), ids=KEPT)
def test_it_stays_where_that_is_not_exact(layer: Any, quantization: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = network(layer(), (8, 8, 4))
    qmodel, report, images = exported(model, tmp_path / "model.onnx", **quantization)
    assert [(result.folded, result.reason) for result in report.batch_norms] == [(False, reason)]
    outputs, wanted = runtime.run_batches(runtime.session(tmp_path / "model.onnx", literal=True), [images]), qmodel(images).numpy()
    assert np.abs(outputs - wanted).max() <= 0.05 * np.abs(wanted).max()
