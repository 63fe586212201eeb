"""The tree of a placement: order, names, what counts as INT8, and where a quantizer is shown that was moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfqat.placement.planner import plan_graph
from tfqat.placement.tree import Branch, PlannedLayer, planned_layers, tree_of
from tfqat.recipe.quantization import QuantizationConfig

Draw = Callable[..., Any]


def planned(graph: Any) -> dict[str, PlannedLayer]:
    return {layer.name: layer for layer in planned_layers(graph, plan_graph(graph, QuantizationConfig()))}


def outline(branch: Branch) -> list[Any]:
    return [(entry.name, outline(entry)) if isinstance(entry, Branch) else entry.name for entry in branch.entries]


def test_branches_and_layers_stand_in_the_order_of_the_graph(draw: Draw) -> None:
    lines = ("image InputLayer", "stem Conv2D image", "net/b/c1 Conv2D stem", "mid ReLU net/b/c1", "net/c2 Conv2D mid", "net Conv2D net/c2")
    graph = draw(*lines)
    tree = tree_of(graph, plan_graph(graph, QuantizationConfig()))
    assert outline(tree) == ["stem", ("net", [("b", ["net/b/c1"]), "net/c2"]), "mid", "net"]


def test_names_are_those_of_the_users_model(draw: Draw) -> None:
    found = planned(draw("image InputLayer", "._stem Conv2D image"))
    assert list(found) == ["_stem"]
    assert [point.id for point in found["_stem"].points] == ["_stem/kernel", "image"]


def test_a_layer_behind_a_padding_is_int8_and_the_padding_is_not(draw: Draw) -> None:
    found = planned(draw("image InputLayer", "pad ZeroPadding2D image", "conv Conv2D pad", "relu ReLU conv"))
    assert [(name, layer.quantized, [point.id for point in layer.points]) for name, layer in found.items()] == [
        ("pad", False, ["image"]),
        ("conv", True, ["conv/kernel"]),
        ("relu", False, []),
    ]
    assert found["conv"].reason == "its input is quantized in front of pad"
    assert found["pad"].reason.startswith("padding with zeros commutes")


def test_a_pool_behind_dropout_is_int8(draw: Draw) -> None:
    lines = ("image InputLayer", "conv Conv2D image", "drop Dropout conv", "pool GlobalAveragePooling2D drop", "logits Dense pool")
    found = planned(draw(*lines))
    assert (found["pool"].quantized, found["pool"].points) == (True, ())
    assert found["pool"].reason == "its input is quantized in front of drop"


def test_every_call_of_a_shared_layer_shows_its_weight(draw: Draw) -> None:
    found = planned(draw("a InputLayer", "b InputLayer", "conv Conv2D a", "conv@2 Conv2D b", "add Add conv conv@2"))
    assert [[point.id for point in found[name].points] for name in ("conv", "conv@2")] == [["conv/kernel", "a"], ["conv/kernel", "b"]]
