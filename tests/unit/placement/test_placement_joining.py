"""Rules of layers that join tensors: Adds of any number of inputs, concatenations on one scale, products by a gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tfqat.models.graph import ModelGraph
from tfqat.placement import rules
from tfqat.placement.planner import plan_graph
from tfqat.placement.rules import KeepFloat, Quantize, Weight, joining
from tfqat.recipe.load import quantization_config

Draw = Callable[..., ModelGraph]
STEM = ("image InputLayer", "stem Conv2D image")


def decided(draw: Draw, *lines: str, name: str, shapes: dict[str, tuple[Any, ...]] | None = None, **view: Any) -> Any:
    drawn = draw(*lines, configs={"sig": {"activation": "sigmoid"}, "soft": {"activation": "softmax"}})
    nodes = tuple(replace(node, shapes=((shapes or {}).get(node.name, ()),)) for node in drawn.nodes)
    graph = ModelGraph(nodes=nodes, outputs=drawn.outputs)
    return rules.view(graph, **view).decide(graph.node(name))


# --- Add ---

FUSES = "residual shortcut: Add fuses with {}"
FUSES_OF_MANY = "residual shortcuts: Add fuses with {}"
NOTHING = "Add without a quantized convolution right before it: nothing to fuse with"
BETWEEN = {
    "batch norm": ("b BatchNormalization conv",),
    "activation": ("b Activation conv",),
    "leaky relu": ("b LeakyReLU conv",),
    "prelu": ("b PReLU conv",),
    "dropout": ("b Dropout conv",),
    "stochastic depth": ("b StochasticDepth conv",),
    "layer scale": ("b LayerScale conv",),
    "rescaling": ("b Rescaling conv",),
    "padding": ("b ZeroPadding2D conv",),
    "all of them": ("p ZeroPadding2D conv", "n BatchNormalization p", "r ReLU n", "s LayerScale r", "d Dropout s", "b Rescaling d"),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_what_may_stand_between_convolution_and_add(draw: Draw, between: tuple[str, ...]) -> None:
    decision = decided(draw, *STEM, "conv Conv2D stem", *between, "add Add stem b", name="add")
    assert decision == Quantize(inputs=(0,), reason=FUSES.format("conv"))


NOT_BETWEEN = ["LayerNormalization", "MaxPooling2D", "Flatten", "Multiply", "UpSampling2D", "Lambda"]


@pytest.mark.parametrize("class_name", NOT_BETWEEN)
def test_what_keeps_an_add_from_fusing(draw: Draw, class_name: str) -> None:
    lines = (*STEM, "conv Conv2D stem", f"b {class_name} conv", "add Add stem b")
    assert decided(draw, *lines, name="add") == KeepFloat(reason=NOTHING)


# inputs of the Add -> its quantized inputs and what it fuses with
MANY: dict[str, tuple[tuple[str, ...], tuple[int, ...], str]] = {
    "the convolution last": (("conv Conv2D stem", "add Add stem image conv"), (0, 1), "conv"),
    "the convolution in the middle": (("conv Conv2D stem", "add Add stem conv image"), (0, 2), "conv"),
    "the convolution first": (("conv Conv2D stem", "add Add conv stem image"), (1, 2), "conv"),
    "the deepest of three": (("a Conv2D stem", "b Conv2D stem", "c Conv2D b", "d Conv2D stem", "add Add a c d"), (0, 2), "c"),
    "of three alike the last": (("a Conv2D stem", "b Conv2D stem", "c Conv2D stem", "add Add a b c"), (0, 1), "c"),
    "four inputs": (("a Conv2D stem", "add Add stem image a stem"), (0, 1, 3), "a"),
}


@pytest.mark.parametrize(("lines", "inputs", "fused"), MANY.values(), ids=MANY)
def test_an_add_of_many_inputs_quantizes_all_but_one(draw: Draw, lines: tuple[str, ...], inputs: tuple[int, ...], fused: str) -> None:
    assert decided(draw, *STEM, *lines, name="add") == Quantize(inputs=inputs, reason=FUSES_OF_MANY.format(fused))


def test_an_add_of_three_without_a_convolution_is_float(draw: Draw) -> None:
    lines = (*STEM, "a MaxPooling2D stem", "b MaxPooling2D stem", "add Add a b stem")
    assert decided(draw, *lines, name="add") == KeepFloat(reason=NOTHING)


def test_the_inputs_of_an_add_of_three_are_points_by_their_number(draw: Draw) -> None:
    graph = draw(*STEM, "a Conv2D stem", "d Conv2D stem", "b Conv2D stem", "c Conv2D b", "add Add a c d")
    placement = plan_graph(graph, quantization_config("selective"))
    reads = {point.id: [(edge.layer, edge.index) for edge in point.edges] for point in placement.activations}
    assert (reads["add:0"], reads["add:2"]) == ([("add", 0)], [("add", 2)])
    assert "add:1" not in reads and "add:shortcut" not in reads


OWN = {"MyConv": Quantize(inputs=(0,), reason="mine", weight=Weight(attribute="kernel", channel_axes=(3,)))}


def test_an_add_fuses_with_a_convolution_of_the_users_own(draw: Draw) -> None:
    lines = (*STEM, "own MyConv stem", "add Add stem own")
    assert decided(draw, *lines, name="add", custom=OWN) == Quantize(inputs=(0,), reason=FUSES.format("own"))
    assert decided(draw, *lines, name="add") == KeepFloat(reason=NOTHING)


def test_an_add_behind_a_dense_layer_has_no_convolution_to_fuse_with(draw: Draw) -> None:
    assert decided(draw, *STEM, "fc Dense stem", "add Add stem fc", name="add") == KeepFloat(reason=NOTHING)


# --- Concatenate ---

TOGETHER = "concatenation that is read in INT8: one scale for all"
APART = "concatenation whose result is not read in INT8 everywhere: INT8 would only add conversions"
PAIR = (*STEM, "a ReLU stem", "b MaxPooling2D stem", "cat Concatenate a b")
# what reads `cat` -> whether it is quantized
CONCATENATIONS: dict[str, tuple[tuple[str, ...], bool]] = {
    "a convolution": (("conv Conv2D cat",), True),
    "two convolutions": (("c Conv2D cat", "d Conv2D cat"), True),
    "a convolution through padding": (("pad ZeroPadding2D cat", "conv Conv2D pad"), True),
    "a convolution through nearest resizing": (("up UpSampling2D cat", "conv Conv2D up"), True),
    "average pooling that is quantized": (("gap GlobalAveragePooling2D cat", "fc Dense gap"), True),
    "another concatenation that is quantized": (("next Concatenate cat a", "conv Conv2D next"), True),
    "nothing": ((), False),
    "an activation": (("relu ReLU cat", "conv Conv2D relu"), False),
    "a convolution and an activation": (("conv Conv2D cat", "relu ReLU cat"), False),
    "another concatenation that is float": (("next Concatenate cat a",), False),
    "batch norm before the convolution": (("bn BatchNormalization cat", "conv Conv2D bn"), False),
}


@pytest.mark.parametrize(("readers", "is_quantized"), CONCATENATIONS.values(), ids=CONCATENATIONS)
def test_concatenate(draw: Draw, readers: tuple[str, ...], is_quantized: bool) -> None:
    decision = decided(draw, *PAIR, *readers, name="cat")
    assert decision == (Quantize(inputs=(0, 1), reason=TOGETHER, one_scale=True) if is_quantized else KeepFloat(reason=APART))


def test_concatenate_before_a_skipped_convolution_is_float(draw: Draw) -> None:
    assert decided(draw, *PAIR, "conv Conv2D cat", name="cat", skipped={"conv": "no"}) == KeepFloat(reason=APART)


def test_concatenate_does_not_match_another_layer(draw: Draw) -> None:
    graph = draw(*STEM, "add Add stem stem")
    assert joining.concatenate(rules.view(graph), graph.node("add")) is None


# --- Multiply ---

GATED = "product of two tensors, as in squeeze-and-excite: both in INT8"
PRODUCT = "product whose result is not read in INT8 everywhere: INT8 would only add conversions"
WRITTEN_OUT = "activation written out as a product, on {}: Q/DQ come after it"
WIDE, GATE = (None, 8, 8, 6), (None, 1, 1, 6)
# lines after the stem, shapes -> decision on `mul`
MULTIPLIES: dict[str, tuple[tuple[str, ...], dict[str, Any], Quantize | KeepFloat]] = {
    "a gate for each channel": (
        ("gate Dense stem", "sig Activation gate", "mul Multiply stem sig", "act ReLU mul"),
        {"stem": WIDE, "sig": GATE},
        Quantize(inputs=(0, 1), reason=GATED),
    ),
    "the gate first": (
        ("gate Dense stem", "sig Activation gate", "mul Multiply sig stem", "act ReLU mul"),
        {"stem": WIDE, "sig": GATE},
        Quantize(inputs=(0, 1), reason=GATED),
    ),
    "two tensors of one shape before a convolution": (
        ("a Conv2D stem", "b Conv2D stem", "mul Multiply a b", "conv Conv2D mul"),
        {"a": WIDE, "b": WIDE},
        Quantize(inputs=(0, 1), reason=GATED),
    ),
    "two tensors of one shape that nothing reads in INT8": (
        ("a Conv2D stem", "b Conv2D stem", "mul Multiply a b", "act ReLU mul"),
        {"a": WIDE, "b": WIDE},
        KeepFloat(reason=PRODUCT),
    ),
    "two gates": (
        ("a Conv2D stem", "b Conv2D stem", "mul Multiply a b", "act ReLU mul"),
        {"a": GATE, "b": GATE},
        KeepFloat(reason=PRODUCT),
    ),
    "two vectors have no axes between batch and channels": (
        ("a Dense stem", "b Dense stem", "mul Multiply a b", "act ReLU mul"),
        {"a": (None, 6), "b": (None, 6)},
        KeepFloat(reason=PRODUCT),
    ),
    "x * sigmoid(x) before a convolution": (
        ("sig Activation stem", "mul Multiply stem sig", "conv Conv2D mul"),
        {"stem": WIDE, "sig": WIDE},
        KeepFloat(reason=WRITTEN_OUT.format("stem")),
    ),
    "hard swish in three steps": (
        ("plus Rescaling stem", "six ReLU plus", "sixth Rescaling six", "mul Multiply sixth stem", "conv Conv2D mul"),
        {},
        KeepFloat(reason=WRITTEN_OUT.format("stem")),
    ),
    "two functions of one tensor": (
        ("sig Activation stem", "relu ReLU stem", "mul Multiply relu sig", "conv Conv2D mul"),
        {},
        KeepFloat(reason=WRITTEN_OUT.format("stem")),
    ),
    "softmax is no function of each value alone": (
        ("soft Activation stem", "mul Multiply stem soft", "conv Conv2D mul"),
        {},
        Quantize(inputs=(0, 1), reason=GATED),
    ),
}


@pytest.mark.parametrize(("lines", "shapes", "decision"), MULTIPLIES.values(), ids=MULTIPLIES)
def test_multiply(draw: Draw, lines: tuple[str, ...], shapes: dict[str, Any], decision: Quantize | KeepFloat) -> None:
    assert decided(draw, *STEM, *lines, name="mul", shapes=shapes) == decision


@pytest.mark.parametrize("line", ["mul Multiply stem stem stem", "mul Add stem stem"])
def test_multiply_does_not_match(draw: Draw, line: str) -> None:
    graph = draw(*STEM, line)
    assert joining.multiply(rules.view(graph), graph.node("mul")) is None


def test_a_product_that_the_model_returns_is_float_though_a_convolution_reads_it(draw: Draw) -> None:
    graph = draw(*STEM, "a Conv2D stem", "mul Multiply stem a", "conv Conv2D mul", outputs=("conv", "mul"))
    assert rules.view(graph).decide(graph.node("mul")) == KeepFloat(reason=PRODUCT)
