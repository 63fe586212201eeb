"""Each rule: a match, a non-match with its reason, and what the order of the rules makes of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tfqat.placement import rules
from tfqat.placement.rules import KeepFloat, Quantize, choice, elementwise, joining, moving, products

Graph = tuple[str, ...]


def answer(rule: rules.Rule, draw: Callable[..., Any], lines: Graph, name: str, skipped: tuple[str, ...] = (), **kwargs: Any) -> Any:
    graph = draw(*lines, **kwargs)
    return rule(rules.view(graph, skipped={layer: f"skipped: {layer}" for layer in skipped}), graph.node(name))


@pytest.mark.parametrize("class_name", sorted(rules.WEIGHTS))
def test_weighted_layer_reads_its_input_quantized(draw: Callable[..., Any], class_name: str) -> None:
    decision = answer(products.weighted_layer, draw, ("image InputLayer", f"x {class_name} image"), "x")
    assert decision == Quantize(inputs=(0,), reason=f"input of {class_name}", weight=rules.WEIGHTS[class_name])


@pytest.mark.parametrize("class_name", ["SeparableConv2D", "Conv2DTranspose", "BatchNormalization", "Add"])
def test_weighted_layer_does_not_match(draw: Callable[..., Any], class_name: str) -> None:
    assert answer(products.weighted_layer, draw, ("image InputLayer", f"x {class_name} image"), "x") is None


def test_skipped_layer_gives_the_reason_it_was_skipped_for(draw: Callable[..., Any]) -> None:
    lines = ("image InputLayer", "conv Conv2D image", "other Conv2D conv")
    assert answer(choice.skipped_layer, draw, lines, "conv", skipped=("conv",)) == KeepFloat(reason="skipped: conv")
    assert answer(choice.skipped_layer, draw, lines, "other", skipped=("conv",)) is None


STEM = ("image InputLayer", "stem Conv2D image")
FUSES = "residual shortcut: Add fuses with {}"
NOTHING = "Add without a quantized convolution right before it: nothing to fuse with"

# lines, decision on the layer `add`
RESIDUALS: dict[str, tuple[Graph, Quantize | KeepFloat]] = {
    "identity shortcut first": (
        (*STEM, "conv Conv2D stem", "bn BatchNormalization conv", "add Add stem bn"),
        Quantize(inputs=(0,), reason=FUSES.format("conv")),
    ),
    "identity shortcut second": (
        (*STEM, "conv Conv2D stem", "bn BatchNormalization conv", "add Add bn stem"),
        Quantize(inputs=(1,), reason=FUSES.format("conv")),
    ),
    "convolution, batch norm, activation, dropout": (
        (*STEM, "conv Conv2D stem", "bn BatchNormalization conv", "relu ReLU bn", "drop Dropout relu", "add Add stem drop"),
        Quantize(inputs=(0,), reason=FUSES.format("conv")),
    ),
    "depthwise branch": ((*STEM, "dw DepthwiseConv2D stem", "add Add stem dw"), Quantize(inputs=(0,), reason=FUSES.format("dw"))),
    "projection shortcut first": (
        (*STEM, "short Conv2D stem", "a Conv2D stem", "b Conv2D a", "add Add short b"),
        Quantize(inputs=(0,), reason=FUSES.format("b")),
    ),
    "projection shortcut second": (
        (*STEM, "short Conv2D stem", "a Conv2D stem", "b Conv2D a", "add Add b short"),
        Quantize(inputs=(1,), reason=FUSES.format("b")),
    ),
    "projection shortcut with batch norms and activations": (
        (
            *STEM,
            *("a Conv2D stem", "a_bn BatchNormalization a", "a_relu ReLU a_bn", "b Conv2D a_relu", "b_bn BatchNormalization b"),
            *("short Conv2D stem", "short_bn BatchNormalization short", "add Add b_bn short_bn"),
        ),
        Quantize(inputs=(1,), reason=FUSES.format("b")),
    ),
    "two convolutions of equal depth: the first input is the shortcut": (
        (*STEM, "a Conv2D stem", "b Conv2D stem", "add Add a b"),
        Quantize(inputs=(0,), reason=FUSES.format("b")),
    ),
    "neither input is a convolution": ((*STEM, "p MaxPooling2D stem", "q MaxPooling2D stem", "add Add p q"), KeepFloat(reason=NOTHING)),
    "something else after the convolution": (
        (*STEM, "conv Conv2D stem", "up UpSampling2D conv", "add Add stem up"),
        KeepFloat(reason=NOTHING),
    ),
    "convolution read twice": ((*STEM, "conv Conv2D stem", "add Add stem conv", "tail ReLU conv"), KeepFloat(reason=NOTHING)),
    "batch norm read twice": (
        (*STEM, "conv Conv2D stem", "bn BatchNormalization conv", "add Add stem bn", "tail ReLU bn"),
        KeepFloat(reason=NOTHING),
    ),
    "the same tensor twice": ((*STEM, "add Add stem stem"), KeepFloat(reason=NOTHING)),
    "convolution read twice on one side, once on the other": (
        (*STEM, "a Conv2D stem", "b Conv2D stem", "add Add a b", "tail ReLU a"),
        Quantize(inputs=(0,), reason=FUSES.format("b")),
    ),
}


@pytest.mark.parametrize(("lines", "decision"), RESIDUALS.values(), ids=RESIDUALS)
def test_residual_add(draw: Callable[..., Any], lines: Graph, decision: Quantize | KeepFloat) -> None:
    assert answer(joining.residual_add, draw, lines, "add") == decision


def test_residual_add_whose_convolution_is_skipped_stays_float(draw: Callable[..., Any]) -> None:
    lines = (*STEM, "conv Conv2D stem", "add Add stem conv")
    assert answer(joining.residual_add, draw, lines, "add", skipped=("conv",)) == KeepFloat(reason=NOTHING)


def test_residual_add_with_one_skipped_branch_fuses_with_the_other(draw: Callable[..., Any]) -> None:
    lines = (*STEM, "short Conv2D stem", "a Conv2D stem", "b Conv2D a", "add Add short b")
    decision = answer(joining.residual_add, draw, lines, "add", skipped=("b",))
    assert decision == Quantize(inputs=(1,), reason=FUSES.format("short"))


NOT_RESIDUAL = {
    "one input": (*STEM, "add Add stem"),
    "another class": (*STEM, "conv Conv2D stem", "add Multiply stem conv"),
}


@pytest.mark.parametrize("lines", NOT_RESIDUAL.values(), ids=NOT_RESIDUAL)
def test_residual_add_does_not_match(draw: Callable[..., Any], lines: Graph) -> None:
    assert answer(joining.residual_add, draw, lines, "add") is None


def test_every_add_quantizes_all_inputs(draw: Callable[..., Any]) -> None:
    lines = (*STEM, "conv Conv2D stem", "add Add stem conv", "sum Add stem conv image", "mul Multiply stem conv")
    assert answer(joining.every_add, draw, lines, "add") == Quantize(inputs=(0, 1), reason="Add: every input in INT8")
    assert answer(joining.every_add, draw, lines, "sum") == Quantize(inputs=(0, 1, 2), reason="Add: every input in INT8")
    assert answer(joining.every_add, draw, lines, "mul") is None


POOL_FLOAT = KeepFloat(reason="average pooling whose output is not quantized everywhere: INT8 would only add conversions")
POOLS: dict[str, tuple[Graph, tuple[str, ...], Quantize | KeepFloat | None]] = {
    "before a Dense": (
        (*STEM, "pool GlobalAveragePooling2D stem", "fc Dense pool"),
        (),
        Quantize(inputs=(0,), reason="average pooling before fc, which reads INT8"),
    ),
    "through dropout and flatten": (
        (*STEM, "pool AveragePooling2D stem", "drop Dropout pool", "flat Flatten drop", "fc Dense flat"),
        (),
        Quantize(inputs=(0,), reason="average pooling before fc, which reads INT8"),
    ),
    "before a skipped Dense": ((*STEM, "pool GlobalAveragePooling2D stem", "fc Dense pool"), ("fc",), POOL_FLOAT),
    "before Dense and something else": ((*STEM, "pool AveragePooling2D stem", "fc Conv2D pool", "relu ReLU pool"), (), POOL_FLOAT),
    "last layer": ((*STEM, "pool AveragePooling2D stem"), (), POOL_FLOAT),
    "max pooling": ((*STEM, "pool MaxPooling2D stem", "fc Dense pool"), (), None),
}


@pytest.mark.parametrize(("lines", "skipped", "decision"), POOLS.values(), ids=POOLS)
def test_average_pool(draw: Callable[..., Any], lines: Graph, skipped: tuple[str, ...], decision: Any) -> None:
    assert answer(moving.average_pool, draw, lines, "pool", skipped=skipped) == decision


MAX_POOL_INT8 = "max pooling commutes with Q/DQ: it runs in INT8 by the quantizer behind it"
MAX_POOL_FLOAT = "max pooling whose output is not quantized everywhere: in the type of its input"
# what reads `pool`, skipped, outputs, reason
MAX_POOLS: dict[str, tuple[Graph, tuple[str, ...], tuple[str, ...], str]] = {
    "Dense through Flatten": (("flat Flatten pool", "fc Dense flat"), (), (), MAX_POOL_INT8),
    "another max pooling": (("next MaxPooling2D pool", "fc Dense next"), (), (), MAX_POOL_INT8),
    "average pooling that is quantized": (("gap GlobalAveragePooling2D pool", "fc Dense gap"), (), (), MAX_POOL_INT8),
    "average pooling that is not": (("gap GlobalAveragePooling2D pool",), (), (), MAX_POOL_FLOAT),
    "convolution and the shortcut of its Add": (("conv Conv2D pool", "add Add pool conv"), (), (), MAX_POOL_INT8),
    "convolution and a shortcut that is skipped": (("conv Conv2D pool", "add Add pool conv"), ("add",), (), MAX_POOL_FLOAT),
    "an Add of three, of which one fuses": (("conv Conv2D stem", "add Add conv stem pool"), (), (), MAX_POOL_INT8),
    "skipped Dense": (("fc Dense pool",), ("fc",), (), MAX_POOL_FLOAT),
    "Dense and Softmax": (("fc Dense pool", "soft Softmax pool"), (), (), MAX_POOL_FLOAT),
    "Dense, and it is an output": (("fc Dense pool",), (), ("fc", "pool"), MAX_POOL_FLOAT),
    "nothing": ((), (), (), MAX_POOL_FLOAT),
}


@pytest.mark.parametrize("class_name", ["MaxPooling2D", "GlobalMaxPooling2D"])
@pytest.mark.parametrize(("readers", "skipped", "outputs", "reason"), MAX_POOLS.values(), ids=MAX_POOLS)
def test_max_pool(
    draw: Callable[..., Any], class_name: str, readers: Graph, skipped: tuple[str, ...], outputs: tuple[str, ...], reason: str
) -> None:
    lines = (*STEM, f"pool {class_name} stem", *readers)
    assert answer(moving.max_pool, draw, lines, "pool", skipped=skipped, outputs=outputs) == KeepFloat(reason=reason)


def test_max_pool_does_not_match(draw: Callable[..., Any]) -> None:
    assert answer(moving.max_pool, draw, (*STEM, "pool AveragePooling2D stem"), "pool") is None


ACTIVATION_REASONS = {
    "convolution": ((*STEM, "act ReLU stem"), (), {}, "fuses with stem; Q/DQ come after the activation"),
    "convolution and BN": ((*STEM, "bn BatchNormalization stem", "act ReLU bn"), (), {}, "fuses with stem; Q/DQ come after the activation"),
    "skipped convolution": ((*STEM, "act ReLU stem"), ("stem",), {}, "activation after stem, which is not quantized: computes in float"),
    "input": (("image InputLayer", "act ReLU image"), (), {}, "activation after image, which is not quantized: computes in float"),
    "BN that is not folded": (
        (*STEM, "pool MaxPooling2D stem", "bn BatchNormalization pool", "act ReLU bn"),
        (),
        {},
        "activation after bn, which is not quantized: computes in float",
    ),
    "residual Add": (
        (*STEM, "conv Conv2D stem", "add Add stem conv", "act ReLU add"),
        (),
        {},
        "fuses with add; Q/DQ come after the activation",
    ),
    "skipped Add": (
        (*STEM, "conv Conv2D stem", "add Add stem conv", "act ReLU add"),
        ("add",),
        {},
        "activation after add, which is not quantized: computes in float",
    ),
    "Add without a convolution": (
        (*STEM, "add Add stem stem", "act ReLU add"),
        (),
        {},
        "activation after add, which is not quantized: computes in float",
    ),
    "softmax layer": ((*STEM, "act Softmax stem"), (), {}, "softmax: computes in float"),
    "softmax activation": ((*STEM, "act Activation stem"), (), {"activation": "softmax"}, "softmax: computes in float"),
}


@pytest.mark.parametrize(("lines", "skipped", "config", "reason"), ACTIVATION_REASONS.values(), ids=ACTIVATION_REASONS)
def test_reason_of_an_activation(
    lines: Graph, skipped: tuple[str, ...], config: dict[str, Any], reason: str, draw: Callable[..., Any]
) -> None:
    graph = draw(*lines, configs={"act": config})
    view = rules.view(graph, skipped=dict.fromkeys(skipped, "skipped"))
    assert elementwise.activation(view, graph.node("act")) == KeepFloat(reason=reason)


RELU, LINEAR = {"activation": "relu"}, {"activation": "linear"}
# lines, skipped, config of `conv`, outputs, reason for `bn`
BATCH_NORMS: dict[str, tuple[Graph, tuple[str, ...], dict[str, Any], tuple[str, ...], str]] = {
    "convolution": ((*STEM, "conv Conv2D stem", "bn BatchNormalization conv"), (), LINEAR, (), "folded into the scales of conv at export"),
    "depthwise": (
        (*STEM, "conv DepthwiseConv2D stem", "bn BatchNormalization conv"),
        (),
        LINEAR,
        (),
        "folded into the scales of conv at export",
    ),
    "skipped convolution": (
        (*STEM, "conv Conv2D stem", "bn BatchNormalization conv"),
        ("conv",),
        LINEAR,
        (),
        "BatchNorm after conv, which is not quantized: stays float",
    ),
    "after an Add": (
        (*STEM, "conv Add stem stem", "bn BatchNormalization conv"),
        (),
        {},
        (),
        "BatchNorm after conv, which is not quantized: stays float",
    ),
    "activation inside the convolution": (
        (*STEM, "conv Conv2D stem", "bn BatchNormalization conv"),
        (),
        RELU,
        (),
        "BatchNorm after conv, which is not a convolution without activation: stays float",
    ),
    "Dense": (
        (*STEM, "conv Dense stem", "bn BatchNormalization conv"),
        (),
        LINEAR,
        (),
        "folded into the scales of conv at export",
    ),
    "convolution read elsewhere": (
        (*STEM, "conv Conv2D stem", "bn BatchNormalization conv", "relu ReLU conv"),
        (),
        LINEAR,
        (),
        "BatchNorm after conv, whose output is read elsewhere too: stays float",
    ),
    "convolution is an output": (
        (*STEM, "conv Conv2D stem", "bn BatchNormalization conv"),
        (),
        LINEAR,
        ("conv", "bn"),
        "BatchNorm after conv, whose output is read elsewhere too: stays float",
    ),
}


@pytest.mark.parametrize(("lines", "skipped", "config", "outputs", "reason"), BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_batch_norm(
    draw: Callable[..., Any], lines: Graph, skipped: tuple[str, ...], config: dict[str, Any], outputs: tuple[str, ...], reason: str
) -> None:
    decision = answer(elementwise.batch_norm, draw, lines, "bn", skipped=skipped, configs={"conv": config}, outputs=outputs)
    assert decision == KeepFloat(reason=reason)
    assert answer(elementwise.batch_norm, draw, lines, "conv", skipped=skipped) is None


def test_activation_fuses_with_the_layer_before_the_batch_norm(draw: Callable[..., Any]) -> None:
    lines = (*STEM, "bn BatchNormalization stem", "relu ReLU bn", "mul Multiply relu relu")
    assert answer(elementwise.activation, draw, lines, "relu") == KeepFloat(reason="fuses with stem; Q/DQ come after the activation")
    assert answer(elementwise.activation, draw, lines, "mul") is None


def test_activation_fuses_with_every_add_of_the_naive_preset(draw: Callable[..., Any]) -> None:
    graph = draw(*STEM, "add Add stem stem", "act ReLU add")
    decision = elementwise.activation(rules.view(graph, skipped={}, preset="naive"), graph.node("act"))
    assert decision == KeepFloat(reason="fuses with add; Q/DQ come after the activation")


def test_identity(draw: Callable[..., Any]) -> None:
    lines = (*STEM, "drop Dropout stem", "flat Flatten drop", "up UpSampling2D stem", "pad ZeroPadding2D stem", "relu ReLU stem")
    moves = KeepFloat(reason="moves values only: commutes with Q/DQ")
    assert answer(moving.identity, draw, lines, "drop") == KeepFloat(reason="leaves the values as they are at inference")
    assert [answer(moving.identity, draw, lines, name) for name in ("flat", "up", "pad", "relu")] == [None] * 4
    assert [answer(moving.movement, draw, lines, name) for name in ("flat", "up", "relu")] == [moves, moves, None]
    padding = answer(moving.movement, draw, lines, "pad")
    assert padding == KeepFloat(reason="padding with zeros commutes with Q/DQ: it becomes the padding of the convolution behind it")


def test_anything_else_is_float_by_its_class(draw: Callable[..., Any]) -> None:
    lines = (*STEM, "up UpSampling2D stem")
    assert answer(elementwise.anything_else, draw, lines, "up") == KeepFloat(reason="UpSampling2D: no rule for it, computes in float")


def decisions(draw: Callable[..., Any], preset: str, skipped: tuple[str, ...] = ()) -> dict[str, Any]:
    graph = draw(*STEM, "conv Conv2D stem", "bn BatchNormalization conv", "add Add stem bn", "cat Concatenate add stem")
    view = rules.view(graph, skipped={name: "skipped" for name in skipped}, preset=preset)
    return {node.name: view.decide(node) for node in graph.nodes[1:]}


def test_first_rule_that_matches_decides(draw: Callable[..., Any]) -> None:
    selective, naive = decisions(draw, "selective"), decisions(draw, "naive")
    assert [isinstance(decision, Quantize) for decision in selective.values()] == [True, True, False, True, False]
    assert (selective["add"].inputs, naive["add"].inputs) == ((0,), (0, 1))
    assert {name for name in selective if selective[name] != naive[name]} == {"add"}
    assert decisions(draw, "hybrid") == naive
    assert selective["cat"] == KeepFloat(
        reason="concatenation whose result is not read in INT8 everywhere: INT8 would only add conversions"
    )


def test_skip_comes_before_every_rule(draw: Callable[..., Any]) -> None:
    skipped = decisions(draw, "selective", skipped=("conv", "add", "cat"))
    assert [name for name, decision in skipped.items() if decision == KeepFloat(reason="skipped")] == ["conv", "add", "cat"]
