"""TFMOT's own idiom with our scheme: annotate, apply; nothing else may have to be imported, registered or scoped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.default_8bit.default_8bit_quantize_configs import (
    Default8BitOutputQuantizeConfig,
)
from tf_keras import layers

import tfqat
from tfqat.models import graph
from tfqat.quantize import state
from tfqat.quantize.apply import placement_of

annotate_layer = tfmot.quantization.keras.quantize_annotate_layer
annotate_model = tfmot.quantization.keras.quantize_annotate_model
quantize_apply = tfmot.quantization.keras.quantize_apply
ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def test_scheme_is_tfmots() -> None:
    base = tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme.__mro__[1]
    assert isinstance(tfqat.TensorRTScheme(), base)
    assert not tfqat.TensorRTScheme().get_quantize_registry().supports(layers.Dense(2))
    config = tfqat.TensorRTScheme().get_quantize_registry().get_quantize_config(layers.Dense(2))
    assert isinstance(config, tfqat.WeightedQuantizeConfig)


def sequential(*made: Any) -> Any:
    return tf_keras.Sequential([tf_keras.Input((4,), name="x"), *made], name="dense")


def test_annotated_with_explicit_configs() -> None:
    spec = tfqat.QuantSpec(num_bits=4, granularity=tfqat.PerChannel(axes=(1,)), narrow_range=True)
    model = sequential(
        annotate_layer(layers.Dense(5, activation="relu", name="a"), tfqat.WeightedQuantizeConfig(weights=spec)),
        layers.Dense(3, name="b"),
        annotate_layer(layers.Dense(2, name="c"), tfqat.WeightedQuantizeConfig(inputs=(), reason="weight alone")),
    )
    qmodel = quantize_apply(model, scheme=tfqat.TensorRTScheme())
    assert [layer.name for layer in qmodel.layers] == ["x", "x.q", "a", "b", "c"]
    points = {point.id: point for point in placement_of(qmodel).points}
    assert sorted(points) == ["a/kernel", "c/kernel", "x"]
    assert (points["a/kernel"].spec, points["c/kernel"].reason) == (spec, "weight alone")
    assert np.array_equal(qmodel(ROWS).numpy(), model(ROWS).numpy())


def test_annotated_layers_without_configs_follow_the_rules() -> None:
    model = sequential(
        annotate_layer(layers.Dense(5, name="a")),
        annotate_layer(layers.BatchNormalization(name="bn")),
        annotate_layer(layers.ReLU(name="relu")),
        annotate_layer(layers.Dense(2, name="b")),
    )
    qmodel = quantize_apply(model, scheme=tfqat.TensorRTScheme())
    assert [layer.name for layer in qmodel.layers] == ["x", "x.q", "a", "bn", "relu", "relu.q", "b"]
    assert np.array_equal(qmodel(ROWS).numpy(), model(ROWS).numpy())


def test_whole_model_annotated_is_the_selective_placement(net: Any, images: np.ndarray) -> None:
    qmodel = quantize_apply(annotate_model(net), scheme=tfqat.TensorRTScheme())
    reference = tfqat.quantize_model(net)
    assert sorted(state.handles(qmodel)) == sorted(state.handles(reference))
    assert [layer.name for layer in qmodel.layers] == [layer.name for layer in reference.layers]
    for name, handle in state.handles(reference).items():
        assert state.handles(qmodel)[name].point.edges == handle.point.edges
        assert state.handles(qmodel)[name].point.spec == handle.point.spec
    assert np.array_equal(qmodel(images).numpy(), net(images).numpy())


def dropped(annotate: Any) -> Any:
    x = tf_keras.Input((4,), name="x")
    relu = layers.ReLU(name="relu")(x)
    drop = layers.Dropout(0.5, name="drop")(relu)
    outputs = [annotate(layers.Dense(3, name="a"))(drop), annotate(layers.Dense(3, name="b"))(relu)]
    return tf_keras.Model(x, layers.Concatenate(name="done")(outputs))


@pytest.mark.parametrize("config", [None, tfqat.WeightedQuantizeConfig()], ids=["by the rules", "explicit"])
def test_annotated_quantizers_sit_before_dropout(config: Any) -> None:
    qmodel = quantize_apply(dropped(lambda layer: annotate_layer(layer, config)), scheme=tfqat.TensorRTScheme())
    assert [(point.id, [edge.layer for edge in point.edges]) for point in placement_of(qmodel).activations] == [("relu", ["drop", "b"])]
    read = graph.read(qmodel)
    assert [read.node(name).inputs[0].layer for name in ("drop", "a", "b")] == ["relu.q", "drop", "relu.q"]
    assert [point.edges for point in tfqat.plan(dropped(lambda layer: layer)).activations] == [
        point.edges for point in placement_of(qmodel).activations
    ]


def test_an_annotated_model_of_mixed_precision_is_refused() -> None:
    """A convolution: TFMOT's own annotation of a mixed-precision Dense fails before a scheme is asked (0.8.1)."""
    x = tf_keras.Input((8, 8, 3))
    model = tf_keras.Model(x, layers.Conv2D(3, 1, name="a", dtype="mixed_float16")(x), name="half")
    with pytest.raises(tfqat.errors.ModelError, match=r"^layer 'a' of model 'half' computes in float16; expected float32"):
        quantize_apply(annotate_model(model), scheme=tfqat.TensorRTScheme())


def test_layers_that_share_a_tensor_share_its_quantizer_with_the_first_grid() -> None:
    x = tf_keras.Input((4,), name="x")
    config = tfqat.WeightedQuantizeConfig(activations=tfqat.QuantSpec(num_bits=6), calibrator=tfqat.Calibrator(method="mse"))
    a = annotate_layer(layers.Dense(3, name="a"), config)(x)
    b = annotate_layer(layers.Dense(3, name="b"), tfqat.WeightedQuantizeConfig())(x)
    add = annotate_layer(layers.Add(name="add"), tfqat.InputQuantizeConfig(inputs=(1,)))([a, b])
    points = placement_of(quantize_apply(tf_keras.Model(x, add), scheme=tfqat.TensorRTScheme())).activations
    assert {point.id: [(edge.layer, edge.index) for edge in point.edges] for point in points} == {
        "x": [("a", 0), ("b", 0)],
        "add:shortcut": [("add", 1)],
    }
    first = next(point for point in points if point.id == "x")
    assert (first.spec.num_bits, first.calibrator.method) == (6, "mse")


def test_foreign_config_beside_ours() -> None:
    """TFMOT applies its own config to its layer; ours goes on with the rest, and the un-annotated layer before stays float."""
    model = sequential(
        layers.Dense(5, name="plain"),
        annotate_layer(layers.ReLU(name="theirs"), Default8BitOutputQuantizeConfig()),
        annotate_layer(layers.Dense(2, name="ours"), tfqat.WeightedQuantizeConfig()),
    )
    with tfmot.quantization.keras.quantize_scope():
        qmodel = quantize_apply(model, scheme=tfqat.TensorRTScheme())
    assert [layer.name for layer in qmodel.layers] == ["x", "plain", "quant_theirs", "theirs.q", "ours"]
    assert not isinstance(qmodel.get_layer("quant_theirs"), tfqat.QuantizeWrapper)
    assert sorted(state.handles(qmodel)) == ["ours/kernel", "theirs"]


def test_apply_leaves_the_annotated_model_alone(images: np.ndarray) -> None:
    model = sequential(annotate_layer(layers.Dense(3, name="a"), tfqat.WeightedQuantizeConfig()))
    config, weights = model.get_config(), model.get_weights()
    qmodel = quantize_apply(model, scheme=tfqat.TensorRTScheme())
    qmodel.compile("sgd", "mse")
    qmodel.fit(ROWS, np.ones((6, 3)), verbose=0)
    assert model.get_config() == config
    assert all(np.array_equal(new, old) for new, old in zip(model.get_weights(), weights, strict=True))


def test_scheme_with_a_placement_takes_its_points(net: Any) -> None:
    placement = tfqat.plan(net, {"skip": ["add", "pool"]})
    qmodel = tfqat.quantize_model(net, placement)
    assert sorted(state.handles(qmodel)) == sorted(point.id for point in placement.points)
    assert [source.layer for source in graph.read(qmodel).node("add").inputs] == ["project", "stem_relu"]


@pytest.mark.parametrize("misuse", [layers.ReLU, layers.BatchNormalization], ids=["ReLU", "BatchNormalization"])
def test_weighted_config_on_a_layer_without_a_weight(misuse: Any) -> None:
    model = sequential(annotate_layer(misuse(name="it"), tfqat.WeightedQuantizeConfig()))
    with pytest.raises(tfqat.errors.PlacementError, match=r"^layer 'it' \(\w+\) has no weight that can be quantized"):
        quantize_apply(model, scheme=tfqat.TensorRTScheme())


def test_an_annotated_concatenation_has_one_scale_in_the_model() -> None:
    x = tf_keras.Input((4,), name="x")
    a, b = layers.Dense(3, name="a")(x), layers.Dense(3, name="b")(x)
    joined = annotate_layer(layers.Concatenate(name="cat"), tfqat.InputQuantizeConfig(inputs=(0, 1)))([a, b])
    model = tf_keras.Model(x, annotate_layer(layers.Dense(2, name="fc"))(joined))
    qmodel = quantize_apply(model, scheme=tfqat.TensorRTScheme())
    points = {point.id: point.scale_group for point in placement_of(qmodel).activations}
    assert points == {"a": "a", "b": "a", "cat": "a"}
    tfqat.calibrate(qmodel, [ROWS], batches=1)
    assert len({float(state.ranges(qmodel)[name]) for name in points}) == 1
