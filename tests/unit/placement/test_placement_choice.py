"""What the user decides: layers that are skipped or forced, and classes of their own, in the rules and in whole placements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tfqat.errors import PlacementError
from tfqat.models.graph import ModelGraph
from tfqat.placement import rules
from tfqat.placement.plan import Placement
from tfqat.placement.planner import plan_graph
from tfqat.placement.rules import KeepFloat, Quantize, Weight, choice
from tfqat.recipe.load import quantization_config
from tfqat.spec import QuantSpec

Draw = Callable[..., ModelGraph]
STEM = ("image InputLayer", "stem Conv2D image")


def made(graph: ModelGraph, configs: Any = None, **block: Any) -> Placement:
    return plan_graph(graph, quantization_config(block), configs=configs)


def ids(placement: Placement) -> list[str]:
    return [point.id for point in placement.points]


def reads(placement: Placement) -> dict[str, list[tuple[str, int]]]:
    return {point.id: [(edge.layer, edge.index) for edge in point.edges] for point in placement.activations}


# --- force ---

# class, number of inputs -> inputs that are read quantized when it is forced
FORCED: dict[str, tuple[str, int, Quantize]] = {
    "Add": ("Add", 2, Quantize(inputs=(0, 1), reason="Add: forced by the recipe")),
    "Add of three": ("Add", 3, Quantize(inputs=(0, 1, 2), reason="Add: forced by the recipe")),
    "Subtract": ("Subtract", 2, Quantize(inputs=(0, 1), reason="Subtract: forced by the recipe")),
    "Multiply": ("Multiply", 2, Quantize(inputs=(0, 1), reason="Multiply: forced by the recipe")),
    "average pooling": ("AveragePooling2D", 1, Quantize(inputs=(0,), reason="AveragePooling2D: forced by the recipe")),
    "resizing": ("UpSampling2D", 1, Quantize(inputs=(0,), reason="UpSampling2D: forced by the recipe")),
    "concatenation, on one scale": (
        "Concatenate", 2, Quantize(inputs=(0, 1), reason="Concatenate: forced by the recipe", one_scale=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("class_name", "inputs", "decision"), FORCED.values(), ids=FORCED)
def test_a_layer_without_a_weight_is_forced(draw: Draw, class_name: str, inputs: int, decision: Quantize) -> None:
    graph = draw(*STEM, f"op {class_name}" + " stem" * inputs)
    node = graph.node("op")
    assert isinstance(rules.view(graph).decide(node), KeepFloat)
    assert rules.view(graph, forced={"op"}).decide(node) == decision
    assert choice.obstacle_to_forcing(rules.view(graph), node) is None


def test_force_leaves_other_layers_alone(draw: Draw) -> None:
    graph = draw(*STEM, "pool AveragePooling2D stem", "other AveragePooling2D stem")
    view = rules.view(graph, forced={"pool"})
    assert choice.forced_layer(view, graph.node("other")) is None
    assert choice.forced_layer(rules.view(graph, forced={"stem"}), graph.node("stem")) is None  # its own rule quantizes it


def test_a_forced_pooling_in_a_placement(draw: Draw) -> None:
    graph = draw(*STEM, "pool AveragePooling2D stem")
    assert ids(made(graph)) == ["image", "stem/kernel"]
    placement = made(graph, force=["pool"])
    assert ids(placement) == ["image", "stem/kernel", "stem"]
    assert placement.points[-1].reason == "AveragePooling2D: forced by the recipe"
    assert "pool" not in {layer.layer for layer in placement.float_layers}


def test_a_forced_add_reads_both_inputs_by_their_number(draw: Draw) -> None:
    graph = draw(*STEM, "conv Conv2D stem", "add Add stem conv", "fc Dense add")
    assert reads(made(graph, force=["add"])) == {
        "image": [("stem", 0)],
        "stem": [("conv", 0), ("add", 0)],
        "add:1": [("add", 1)],
        "add": [("fc", 0)],
    }


# line -> why it cannot be forced
OBSTACLES = {
    "op BatchNormalization image": "BatchNorm after image, which is not quantized: stays float",
    "op LayerNormalization image": "LayerNormalization: computes in float, and its input is left float",
    "op Softmax image": "softmax: computes in float",
    "op ReLU image": "activation after image, which is not quantized: computes in float",
    "op Embedding image": "a table look-up: its weights stay float",
    "op Flatten image": "moves values only: commutes with Q/DQ",
    "op Dropout image": "leaves the values as they are at inference",
    "op MaxPooling2D image": "max pooling whose output is not quantized everywhere: in the type of its input",
    "op Lambda image": "Lambda: Python code that no rule can look into, computes in float",
    "op Mine image": "Mine: no rule for it, computes in float",
    "op EinsumDense image": "EinsumDense: its equation is no plain matrix product over the last axes; computes in float",
}


@pytest.mark.parametrize(("line", "reason"), OBSTACLES.items(), ids=OBSTACLES)
def test_what_cannot_be_forced_says_why(draw: Draw, line: str, reason: str) -> None:
    graph = draw("image InputLayer", line, "fc Dense image")
    assert choice.obstacle_to_forcing(rules.view(graph), graph.node("op")) == reason
    with pytest.raises(PlacementError) as caught:
        made(graph, force=["fc", "op"])
    assert str(caught.value) == (
        f"quantization.force[1]: layer 'op' ({line.split()[1]}) cannot be quantized: {reason}. Remove it from `force`; "
        "a class of your own can be described under quantization.custom_layers"
    )


@pytest.mark.parametrize("class_name", ["Conv2D", "Dense", "Conv2DTranspose", "MatMul"])
def test_what_can_be_forced(draw: Draw, class_name: str) -> None:
    graph = draw("image InputLayer", f"op {class_name} image")
    assert choice.obstacle_to_forcing(rules.view(graph), graph.node("op")) is None


# --- classes of the user's own ---

LINES = ("image InputLayer", "own Mine image", "fc Dense own")


@dataclass(frozen=True)
class Config:
    inputs: tuple[int, ...]
    weight: Weight | None = None
    has_weight: bool = False


WEIGHT = Weight(attribute="taps", channel_axes=(1,))


def test_a_class_without_a_config_is_float(draw: Draw) -> None:
    placement = made(draw(*LINES))
    assert ids(placement) == ["own", "fc/kernel"]
    assert [(layer.layer, layer.reason) for layer in placement.float_layers] == [("own", "Mine: no rule for it, computes in float")]


def test_a_class_with_a_config_is_quantized(draw: Draw) -> None:
    placement = made(draw(*LINES), configs={"Mine": Config(inputs=(0,), weight=WEIGHT, has_weight=True)})
    assert ids(placement) == ["image", "own/taps", "own", "fc/kernel"]
    weight = placement.weights[0]
    assert (weight.source, weight.weight, weight.reason, weight.spec.axes) == ("own", "taps", "weight of Mine", (1,))
    assert placement.activations[0].reason == "Mine: by its QuantizeConfig"
    assert not placement.float_layers


def test_a_config_that_does_not_say_where_the_weight_is(draw: Draw) -> None:
    with pytest.raises(PlacementError) as caught:
        made(draw(*LINES), configs={"Mine": Config(inputs=(0,), has_weight=True)})
    assert str(caught.value) == (
        "configs['Mine']: the QuantizeConfig is for a layer with a weight, and does not say where Mine keeps it; give it "
        "weight=tfqat.Weight(attribute=..., channel_axes=...), or use an InputQuantizeConfig"
    )


def test_a_config_of_keras_own_class_knows_where_the_weight_is(draw: Draw) -> None:
    placement = made(draw(*LINES), configs={"Dense": Config(inputs=(0,), has_weight=True)})
    assert [(point.id, point.spec.axes, point.reason) for point in placement.points] == [
        ("own", (), "Dense: by its QuantizeConfig"), ("fc/kernel", (1,), "weight of Dense")
    ]  # fmt: skip


def test_a_class_that_the_recipe_describes_is_quantized(draw: Draw) -> None:
    layer = {"class_name": "Mine", "weight": "taps", "channel_axes": [1]}
    placement = made(draw(*LINES), custom_layers=[layer])
    assert ids(placement) == ["image", "own/taps", "own", "fc/kernel"]
    assert placement.activations[0].reason == "Mine: declared by the recipe"
    assert placement.weights[0].spec.axes == (1,)


def test_a_config_comes_before_what_the_recipe_says(draw: Draw) -> None:
    layer = {"class_name": "Mine", "weight": "taps", "channel_axes": [1]}
    placement = made(draw(*LINES), configs={"Mine": Config(inputs=(0,))}, custom_layers=[layer])
    assert ids(placement) == ["image", "own", "fc/kernel"]
    assert placement.activations[0].reason == "Mine: by its QuantizeConfig"


def test_a_class_without_channel_axes_has_one_scale(draw: Draw) -> None:
    placement = made(draw(*LINES), custom_layers=[{"class_name": "Mine", "weight": "taps"}])
    assert placement.weights[0].spec == QuantSpec(narrow_range=True)


def test_inputs_of_a_class_of_the_users_own(draw: Draw) -> None:
    graph = draw("a InputLayer", "b InputLayer", "own Mine a b", "fc Dense own")
    placement = made(graph, custom_layers=[{"class_name": "Mine", "inputs": [1]}])
    assert reads(placement) == {"b": [("own", 1)], "own": [("fc", 0)]}


def test_a_class_of_the_users_own_can_be_skipped_and_is_not_hurt_by_force(draw: Draw) -> None:
    layer = {"class_name": "Mine", "weight": "taps", "channel_axes": [1]}
    assert ids(made(draw(*LINES), custom_layers=[layer], skip=["own"])) == ["own", "fc/kernel"]
    assert ids(made(draw(*LINES), custom_layers=[layer], force=["own"])) == ["image", "own/taps", "own", "fc/kernel"]


def test_a_description_of_keras_own_class_takes_the_place_of_its_rule(draw: Draw) -> None:
    layer = {"class_name": "Dense", "weight": "kernel"}
    placement = made(draw("image InputLayer", "fc Dense image"), custom_layers=[layer])
    assert [(point.id, point.spec.axes, point.reason) for point in placement.points] == [
        ("image", (), "Dense: declared by the recipe"), ("fc/kernel", (), "weight of Dense")
    ]  # fmt: skip


# --- layers that are called more than once ---

SHARED = ("a InputLayer", "b InputLayer", "conv Conv2D a", "relu ReLU conv", "conv@2 Conv2D b", "relu@2 ReLU conv@2", "add Add relu relu@2")


def test_a_layer_called_twice_has_one_weight_and_an_activation_for_each_call(draw: Draw) -> None:
    placement = made(draw(*SHARED))
    assert ids(placement) == ["a", "conv/kernel", "b", "add:shortcut"]
    assert reads(placement) == {"a": [("conv", 0)], "b": [("conv@2", 0)], "add:shortcut": [("add", 0)]}


@pytest.mark.parametrize("pattern", ["conv", "conv@2", "con*", "Conv2D"])
def test_skipping_any_call_skips_all_calls(draw: Draw, pattern: str) -> None:
    graph = draw(*SHARED, "fc Dense add")
    placement = made(graph, skip=[pattern])
    assert ids(placement) == ["add", "fc/kernel"]
    skipped = [layer.layer for layer in placement.float_layers if layer.reason.startswith("skipped")]
    assert skipped == ["conv", "conv@2"]


def test_an_override_of_a_call_sets_the_range_of_that_call(draw: Draw) -> None:
    overrides = [{"match": "conv@2", "activations": {"calibrator": "entropy"}}]
    placement = made(draw(*SHARED), overrides=overrides)
    assert [point.id for point in placement.activations if point.calibrator.method == "entropy"] == ["b"]
