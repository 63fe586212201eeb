"""Rules of what multiplies: which weights are quantized along which axes, and which products stay float for which reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement import rules
from tfqat.placement.planner import plan_graph
from tfqat.placement.rules import KeepFloat, Quantize, Weight, products
from tfqat.recipe.load import quantization_config

Draw = Callable[..., ModelGraph]

AXES = {
    "Conv1D": Weight(attribute="kernel", channel_axes=(2,)),
    "Conv2D": Weight(attribute="kernel", channel_axes=(3,)),
    "Conv3D": Weight(attribute="kernel", channel_axes=(4,)),
    "DepthwiseConv1D": Weight(attribute="depthwise_kernel", channel_axes=(1, 2)),
    "DepthwiseConv2D": Weight(attribute="depthwise_kernel", channel_axes=(2, 3)),
    "Dense": Weight(attribute="kernel", channel_axes=(1,)),
}


@pytest.mark.parametrize("preset", ["selective", "naive", "hybrid"])
def test_weights_and_the_axes_of_their_channels(draw: Draw, preset: Any) -> None:
    graph = draw("image InputLayer", *(f"{name} {name} image" for name in AXES))
    view = rules.view(graph, preset=preset)
    found = {name: view.decide(graph.node(name)) for name in AXES}
    assert found == {name: Quantize(inputs=(0,), reason=f"input of {name}", weight=weight) for name, weight in AXES.items()}
    assert rules.WEIGHTS == AXES


def test_a_convolution_that_reads_two_tensors_is_left_float(draw: Draw) -> None:
    graph = draw("image InputLayer", "rows InputLayer", "conv Conv2D image rows")
    assert products.weighted_layer(rules.view(graph), graph.node("conv")) == KeepFloat(
        reason="Conv2D that reads 2 tensors: only layers with one input have a quantized weight"
    )


# --- small products ---


def weighted(class_name: str, **weights: tuple[int, ...]) -> ModelGraph:
    image = Node(name="image", class_name="InputLayer", inputs=())
    op = Node(name="op", class_name=class_name, inputs=(TensorRef(layer="image"),), weights=weights)
    return ModelGraph(nodes=(image, op), outputs=(TensorRef(layer="op"),))


# class, weights -> input and output channels
CHANNELS: dict[str, tuple[str, dict[str, tuple[int, ...]], tuple[int, int] | None]] = {
    "Conv2D": ("Conv2D", {"kernel": (3, 3, 16, 24), "bias": (24,)}, (16, 24)),
    "grouped: those of one group": ("Conv2D", {"kernel": (3, 3, 8, 64)}, (8, 64)),
    "Conv1D": ("Conv1D", {"kernel": (5, 40, 20)}, (40, 20)),
    "Conv3D": ("Conv3D", {"kernel": (2, 2, 2, 4, 32)}, (4, 32)),
    "Dense": ("Dense", {"kernel": (100, 10)}, (100, 10)),
    "DepthwiseConv2D": ("DepthwiseConv2D", {"depthwise_kernel": (3, 3, 12, 2)}, (12, 24)),
    "DepthwiseConv1D": ("DepthwiseConv1D", {"depthwise_kernel": (3, 20, 1)}, (20, 20)),
    "no shape known": ("Conv2D", {}, None),
    "no weight to quantize": ("Embedding", {"embeddings": (10, 4)}, None),
}


@pytest.mark.parametrize(("class_name", "weights", "channels"), CHANNELS.values(), ids=CHANNELS)
def test_channels_of_a_product(class_name: str, weights: Any, channels: Any) -> None:
    assert products.channels_of(weighted(class_name, **weights).node("op")) == channels


# kernel -> reason, None where the rule does not match
SMALL: dict[str, tuple[tuple[int, int], str | None]] = {
    "few inputs": ((15, 64), "small product: 15 input and 64 output channels, fewer than 16"),
    "few outputs": ((64, 10), "small product: 64 input and 10 output channels, fewer than 16"),
    "16 of both": ((16, 16), None),
}


@pytest.mark.parametrize(("kernel", "reason"), SMALL.values(), ids=SMALL)
def test_small_product(kernel: tuple[int, int], reason: str | None) -> None:
    graph = weighted("Dense", kernel=kernel)
    decision = products.small_product(rules.view(graph, small_products_float=True), graph.node("op"))
    assert decision == (KeepFloat(reason=reason) if reason else None)
    assert products.small_product(rules.view(graph), graph.node("op")) is None  # off unless asked for


def test_a_small_product_that_is_forced_is_quantized() -> None:
    graph = weighted("Dense", kernel=(64, 10))
    view = rules.view(graph, small_products_float=True, forced={"op"})
    assert products.small_product(view, graph.node("op")) is None
    assert isinstance(view.decide(graph.node("op")), Quantize)


def test_a_product_of_unknown_size_is_not_small() -> None:
    graph = weighted("Conv2D")
    assert products.small_product(rules.view(graph, small_products_float=True), graph.node("op")) is None


def test_small_products_of_a_whole_model_stay_float_in_a_recipe(draw: Draw) -> None:
    drawn = draw("image InputLayer", "stem Conv2D image", "body Conv2D stem", "gap GlobalAveragePooling2D body", "head Dense gap")
    kernels = {"stem": (3, 3, 3, 32), "body": (3, 3, 32, 32), "head": (32, 10)}
    nodes = tuple(replace(node, weights={"kernel": kernels[node.name]} if node.name in kernels else {}) for node in drawn.nodes)
    graph = ModelGraph(nodes=nodes, outputs=drawn.outputs)

    def ids(**block: Any) -> list[str]:
        return [point.id for point in plan_graph(graph, quantization_config(block)).points]

    assert ids() == ["image", "stem/kernel", "stem", "body/kernel", "body", "gap", "head/kernel"]
    assert ids(small_products="float") == ["stem", "body/kernel"]  # the pooling before the float Dense is float too
    assert ids(small_products="float", force=["head"]) == ["stem", "body/kernel", "body", "gap", "head/kernel"]


# --- transposed convolutions ---

TRANSPOSED = ["Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"]


@pytest.mark.parametrize("class_name", TRANSPOSED)
def test_transposed_convolution_is_float_unless_it_is_forced(draw: Draw, class_name: str) -> None:
    graph = draw("image InputLayer", f"up {class_name} image")
    node = graph.node("up")
    assert rules.view(graph).decide(node) == KeepFloat(
        reason=f"{class_name}: TensorRT for RTX runs it in float; with quantization.force it gets Q/DQ, weights per tensor"
    )
    forced = rules.view(graph, forced={"up"})
    assert forced.decide(node) == Quantize(
        inputs=(0,), reason=f"input of {class_name}, forced by the recipe", weight=Weight(attribute="kernel", channel_axes=())
    )
    assert (rules.view(graph).is_int8_weighted(node), forced.is_int8_weighted(node)) == (False, True)


def test_transposed_convolution_does_not_match_another_layer(draw: Draw) -> None:
    graph = draw("image InputLayer", "conv Conv2D image")
    assert products.transposed_convolution(rules.view(graph, forced={"conv"}), graph.node("conv")) is None


def test_a_forced_transposed_convolution_has_one_scale_whatever_the_granularity(draw: Draw) -> None:
    graph = draw("image InputLayer", "conv Conv2D image", "up Conv2DTranspose conv")
    placement = plan_graph(graph, quantization_config({"force": ["up"], "weights": {"granularity": "per_channel"}}))
    assert {point.id: point.spec.axes for point in placement.weights} == {"conv/kernel": (3,), "up/kernel": ()}
    assert [point.id for point in placement.activations] == ["image", "conv"]
    assert "up" in {layer.layer for layer in plan_graph(graph, quantization_config("selective")).float_layers}


# --- products of two activations, and what has no rule ---


def test_both_factors_of_a_matrix_product_are_quantized(draw: Draw) -> None:
    graph = draw("q InputLayer", "k InputLayer", "scores MatMul q k", "soft Softmax scores", "mixed MatMul soft k")
    view = rules.view(graph)
    both = Quantize(inputs=(0, 1), reason="product of two activations: both in INT8")
    assert [view.decide(graph.node(name)) for name in ("scores", "mixed")] == [both, both]
    assert products.product_of_activations(view, graph.node("soft")) is None
    # The softmax is one of the factors: its output has a quantizer, its input has none.
    assert [point.id for point in plan_graph(graph, quantization_config("selective")).points] == ["q", "k", "soft"]


UNSUPPORTED = {
    "EinsumDense": "EinsumDense: its equation is no plain matrix product over the last axes; computes in float",
    "MultiHeadAttention": "MultiHeadAttention: its options keep it from being split into projections and products; computes in float",
    "Dot": "Dot: no plain batch matrix product; computes in float",
    "SeparableConv1D": "SeparableConv1D: not split, see tfqat.load_model; computes in float",
    "SeparableConv2D": "SeparableConv2D: not split, see tfqat.load_model; computes in float",
    "LocallyConnected1D": "LocallyConnected1D: a weight of its own at every position; computes in float",
    "LocallyConnected2D": "LocallyConnected2D: a weight of its own at every position; computes in float",
}


@pytest.mark.parametrize(("class_name", "reason"), UNSUPPORTED.items(), ids=UNSUPPORTED)
def test_a_product_without_an_int8_form_is_float_with_its_reason(draw: Draw, class_name: str, reason: str) -> None:
    graph = draw("image InputLayer", f"op {class_name} image", "conv Conv2D op")
    view = rules.view(graph)
    assert view.decide(graph.node("op")) == KeepFloat(reason=reason)
    assert products.unsupported_product(view, graph.node("conv")) is None


def test_embedding_is_a_look_up(draw: Draw) -> None:
    graph = draw("words InputLayer", "table Embedding words", "fc Dense table")
    placement = plan_graph(graph, quantization_config("selective"))
    assert [point.id for point in placement.points] == ["table", "fc/kernel"]
    assert [(layer.layer, layer.reason) for layer in placement.float_layers] == [("table", "a table look-up: its weights stay float")]
    assert products.embedding(rules.view(graph), graph.node("fc")) is None
