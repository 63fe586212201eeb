"""Rules of activations and normalizations: what fuses, what is a float kernel of its own, and which BatchNorm folds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tfqat.models.graph import ModelGraph, Node
from tfqat.placement import rules
from tfqat.placement.rules import KeepFloat, classes, elementwise

Draw = Callable[..., ModelGraph]
STEM = ("image InputLayer", "stem Conv2D image")
SWISH = {"class_name": "tests>Swish", "config": {"name": "swish"}, "registered_name": "tests>Swish"}


def node(class_name: str, **config: Any) -> Node:
    return Node(name="act", class_name=class_name, inputs=(), config=config)


NAMES: dict[str, tuple[Node, str]] = {
    "a layer of its own": (node("ReLU", max_value=6.0), "relu"),
    "leaky": (node("LeakyReLU", alpha=0.1), "leakyrelu"),
    "prelu": (node("PReLU"), "prelu"),
    "softmax layer": (node("Softmax", axis=-1), "softmax"),
    "a string": (node("Activation", activation="gelu"), "gelu"),
    "inside a convolution": (node("Conv2D", activation="relu6"), "relu6"),
    "none": (node("Conv2D", activation=None), "linear"),
    "no such key": (node("Add"), "linear"),
    "a registered function": (node("Activation", activation="tfqat>hard_silu"), "hard_silu"),
    "a serialized function": (node("Activation", activation={"class_name": "function", "config": "tfqat>gelu_tanh"}), "gelu_tanh"),
    "a serialized object": (node("Activation", activation=SWISH), "swish"),
    "an Activation layer as an activation": (
        node("Conv2D", activation={"class_name": "Activation", "config": {"activation": "tanh"}}), "tanh"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("layer", "name"), NAMES.values(), ids=NAMES)
def test_name_of_an_activation(layer: Node, name: str) -> None:
    assert classes.activation_name(layer) == name


FUSES = "fuses with stem; Q/DQ come after the activation"
OWN_KERNEL = "{} behind stem: a float kernel of its own; Q/DQ come after it"
# class, configuration -> the reason behind a quantized convolution
ACTIVATIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "relu": ("ReLU", {}, FUSES),
    "relu6": ("ReLU", {"max_value": 6.0}, FUSES),
    "leaky relu": ("LeakyReLU", {}, FUSES),
    "prelu": ("PReLU", {}, FUSES),
    "elu": ("ELU", {}, FUSES),
    "rescaling, a step of one that is written out": ("Rescaling", {"scale": 2.0}, FUSES),
    **{
        name: ("Activation", {"activation": name}, FUSES)
        for name in ("sigmoid", "swish", "silu", "hard_swish", "tfqat>hard_silu", "gelu", "tfqat>gelu_tanh", "hard_sigmoid", "tanh")
    },
    "thresholded relu": ("ThresholdedReLU", {}, OWN_KERNEL.format("thresholdedrelu")),
    "a function of the user's own": ("Activation", {"activation": "tests>odd"}, OWN_KERNEL.format("odd")),
    "softmax layer": ("Softmax", {}, "softmax: computes in float"),
    "softmax function": ("Activation", {"activation": "softmax"}, "softmax: computes in float"),
}


@pytest.mark.parametrize(("class_name", "config", "reason"), ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activation_behind_a_quantized_convolution(draw: Draw, class_name: str, config: dict[str, Any], reason: str) -> None:
    graph = draw(*STEM, f"act {class_name} stem", configs={"act": config})
    assert elementwise.activation(rules.view(graph), graph.node("act")) == KeepFloat(reason=reason)


# lines -> the layer that `act` fuses with, None for none
SOURCES: dict[str, tuple[tuple[str, ...], str | None]] = {
    "through a written-out activation": ((*STEM, "a Rescaling stem", "b ReLU a", "act Rescaling b"), "stem"),
    "through BatchNorm and steps": ((*STEM, "bn BatchNormalization stem", "a ReLU bn", "act ReLU a"), "stem"),
    "a Dense": ((*STEM, "fc Dense stem", "act ReLU fc"), "fc"),
    "an Add of three": ((*STEM, "conv Conv2D stem", "add Add stem image conv", "act ReLU add"), "add"),
    "a transposed convolution": ((*STEM, "up Conv2DTranspose stem", "act ReLU up"), None),
    "a LayerNormalization": ((*STEM, "norm LayerNormalization stem", "act ReLU norm"), None),
    "a concatenation": ((*STEM, "cat Concatenate stem image", "act ReLU cat"), None),
    "BatchNorm before any product": (("image InputLayer", "bn BatchNormalization image", "act ReLU bn", "conv Conv2D act"), None),
}


@pytest.mark.parametrize(("lines", "source"), SOURCES.values(), ids=SOURCES)
def test_what_an_activation_fuses_with(draw: Draw, lines: tuple[str, ...], source: str | None) -> None:
    graph = draw(*lines)
    decision = elementwise.activation(rules.view(graph), graph.node("act"))
    assert isinstance(decision, KeepFloat)
    assert (decision.reason == f"fuses with {source}; Q/DQ come after the activation") is (source is not None)
    assert decision.reason.endswith("which is not quantized: computes in float") is (source is None)


def test_an_activation_behind_a_forced_transposed_convolution_fuses(draw: Draw) -> None:
    graph = draw(*STEM, "up Conv2DTranspose stem", "act ReLU up")
    decision = elementwise.activation(rules.view(graph, forced={"up"}), graph.node("act"))
    assert decision == KeepFloat(reason="fuses with up; Q/DQ come after the activation")


# lines, outputs -> reason of `bn`
BATCH_NORMS: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "Conv1D": (("image InputLayer", "op Conv1D image", "bn BatchNormalization op"), (), "folded into the scales of op at export"),
    "Conv3D": (("image InputLayer", "op Conv3D image", "bn BatchNormalization op"), (), "folded into the scales of op at export"),
    "Dense": (("image InputLayer", "op Dense image", "bn BatchNormalization op"), (), "folded into the scales of op at export"),
    "pre-activation": (
        ("image InputLayer", "bn BatchNormalization image", "op Conv2D bn"), (),
        "BatchNorm after image, which is not quantized: stays float",
    ),
    "a concatenation before it": (
        (*STEM, "op Concatenate stem image", "bn BatchNormalization op"), (),
        "BatchNorm after op, which is not quantized: stays float",
    ),
    "a transposed convolution": (
        (*STEM, "op Conv2DTranspose stem", "bn BatchNormalization op"), (), "BatchNorm after op, which is not quantized: stays float",
    ),
    "a shared convolution with a shared BatchNorm": (
        ("image InputLayer", "op Conv2D image", "bn BatchNormalization op", "op@2 Conv2D bn", "bn@2 BatchNormalization op@2"), ("bn@2",),
        "folded into the scales of op at export",
    ),
    "a shared convolution whose calls have norms of their own": (
        ("image InputLayer", "op Conv2D image", "bn BatchNormalization op", "op@2 Conv2D bn", "b2 BatchNormalization op@2"), ("b2",),
        "BatchNorm after op, whose output is read elsewhere too: stays float",
    ),
    "a shared BatchNorm on two convolutions": (
        ("image InputLayer", "op Conv2D image", "bn BatchNormalization op", "c Conv2D bn", "bn@2 BatchNormalization c"), ("bn@2",),
        "BatchNorm after op, which is not the only layer that it normalizes: stays float",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "outputs", "reason"), BATCH_NORMS.values(), ids=BATCH_NORMS)
def test_batch_norm(draw: Draw, lines: tuple[str, ...], outputs: tuple[str, ...], reason: str) -> None:
    graph = draw(*lines, outputs=outputs)
    assert elementwise.batch_norm(rules.view(graph), graph.node("bn")) == KeepFloat(reason=reason)


def test_batch_norm_behind_a_class_of_the_users_own_stays(draw: Draw) -> None:
    graph = draw("image InputLayer", "op MyConv image", "bn BatchNormalization op")
    own = {"MyConv": rules.Quantize(inputs=(0,), reason="mine", weight=rules.Weight(attribute="kernel", channel_axes=(3,)))}
    decision = elementwise.batch_norm(rules.view(graph, custom=own), graph.node("bn"))
    assert decision == KeepFloat(reason="BatchNorm after op, which is not a convolution without activation: stays float")


@pytest.mark.parametrize("class_name", ["LayerNormalization", "GroupNormalization", "UnitNormalization", "Normalization"])
def test_normalizations_compute_in_float(draw: Draw, class_name: str) -> None:
    graph = draw(*STEM, f"norm {class_name} stem", "fc Dense norm")
    view = rules.view(graph)
    assert view.decide(graph.node("norm")) == KeepFloat(reason=f"{class_name}: computes in float, and its input is left float")
    assert elementwise.normalization(view, graph.node("stem")) is None


def test_layer_scale_fuses(draw: Draw) -> None:
    graph = draw(*STEM, "scale LayerScale stem")
    view = rules.view(graph)
    assert view.decide(graph.node("scale")) == KeepFloat(reason="a factor per channel: fuses with what is before it")
    assert elementwise.layer_scale(view, graph.node("stem")) is None


UNKNOWN: dict[str, tuple[str, dict[str, Any], str]] = {
    "an operation of TensorFlow": ("TFOpLambda", {"function": "math.cumsum"}, "operation math.cumsum: no rule for it, computes in float"),
    "slicing": (
        "SlicingOpLambda",
        {"function": "__operators__.getitem"},
        "operation __operators__.getitem: no rule for it, computes in float",
    ),
    "an operation of Keras 3": (
        "KerasOperation",
        {"operation": "numpy.Cumsum"},
        "operation numpy.Cumsum: no rule for it, computes in float",
    ),
    "an operation without a name": ("TFOpLambda", {}, "operation TFOpLambda: no rule for it, computes in float"),
    "Lambda": ("Lambda", {"function": "x"}, "Lambda: Python code that no rule can look into, computes in float"),
    "a class of the user's own": ("Mine", {}, "Mine: no rule for it, computes in float"),
}


@pytest.mark.parametrize(("class_name", "config", "reason"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_has_no_rule_is_float_with_its_name(draw: Draw, class_name: str, config: dict[str, Any], reason: str) -> None:
    graph = draw(*STEM, f"op {class_name} stem", configs={"op": config})
    assert rules.view(graph).decide(graph.node("op")) == KeepFloat(reason=reason)
