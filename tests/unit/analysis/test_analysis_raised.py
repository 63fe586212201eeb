"""A placement with units at higher precision, and the recipe that plans the same."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tf_keras
from ruamel.yaml import YAML
from tf_keras import layers

import tfqat
from tfqat.analysis.bench import Level
from tfqat.analysis.raised import REASON, places, raised, recipe_lines, recipe_text
from tfqat.analysis.units import Unit, units_of
from tfqat.models import graph as model_graph
from tfqat.placement.plan import Placement

W4 = {"weights": {"num_bits": 4}}


def of(model: Any, quantization: Any = "selective") -> tuple[Placement, Any, tuple[Unit, ...]]:
    placement, graph = tfqat.plan(model, quantization), model_graph.read(model)
    return placement, graph, units_of(graph, placement.points)


def shown(placement: Placement) -> set[Any]:
    """What a placement computes: tensors and weights, who reads them, in how many bits, and with whom they share a scale."""

    def partners(group: str | None) -> frozenset[str] | None:
        return frozenset(other.source for other in placement.points if other.scale_group == group) if group else None

    return {(point.kind, point.source, point.output, point.edges, point.spec, partners(point.scale_group)) for point in placement.points}


def test_float_drops_the_points_of_the_unit_alone(networks: SimpleNamespace) -> None:
    placement, graph, units = of(networks.residual())
    found = raised(placement, graph, units, {"a1": "float"}, {"a1": "sensitive: why"})
    before, after = ({point.id: point for point in one.points} for one in (placement, found))
    assert set(before) - set(after) == {"a1/kernel"}
    assert [(edge.layer, edge.index) for edge in after["stem_relu"].edges] == [("a_add", 1)]  # the Add reads it quantized still
    assert {name for name in after if after[name] != before[name]} == {"stem_relu"}
    assert {layer.layer: layer.reason for layer in found.float_layers}["a1"] == "sensitive: why"
    assert len(found.float_layers) == len(placement.float_layers) + 1


def test_float_of_a_fused_unit_takes_the_add_with_it(networks: SimpleNamespace) -> None:
    placement, graph, units = of(networks.residual())
    found = raised(placement, graph, units, {"a2": "float", "a1": "float"}, {"a1": "sensitive: x", "a2": "sensitive: y"})
    assert {point.id for point in placement.points} - {point.id for point in found.points} == {
        *("a1/kernel", "stem_relu", "a2/kernel", "a1_relu"),
    }
    reasons = {layer.layer: (layer.class_name, layer.reason) for layer in found.float_layers}
    assert (reasons["a2"], reasons["a_add"]) == (("Conv2D", "sensitive: y"), ("Add", "sensitive: y"))
    order = {node.name: number for number, node in enumerate(graph.nodes)}
    names = [layer.layer for layer in found.float_layers]
    assert names == sorted(names, key=order.__getitem__)


def test_int8_widens_the_weight_and_nothing_else(networks: SimpleNamespace) -> None:
    placement, graph, units = of(networks.residual(), W4)
    found = raised(placement, graph, units, {"b1": "int8"}, {"b1": "sensitive: why; 8 bits"})
    before, after = ({point.id: point for point in one.points} for one in (placement, found))
    changed = [name for name in before if before[name] != after[name]]
    assert (changed, after["b1/kernel"].spec.num_bits, before["b1/kernel"].spec.num_bits) == (["b1/kernel"], 8, 4)
    assert after["b1/kernel"].spec.axes == (3,)
    assert after["b1/kernel"].reason == f"{before['b1/kernel'].reason}; sensitive: why; 8 bits"
    assert found.float_layers == placement.float_layers


def test_without_levels_it_is_the_placement(networks: SimpleNamespace) -> None:
    placement, graph, units = of(networks.mobile())
    assert raised(placement, graph, units, {}, {}) == placement


LEVELS: list[tuple[str, Any, dict[str, Level]]] = [
    ("residual", "selective", {"a1": "float"}),
    ("residual", "selective", {"a2": "float", "b1": "float"}),
    ("residual", "selective", {"stem": "float", "b2": "float"}),
    ("mobile", "selective", {"expand": "float", "dw": "float"}),
    ("mobile", "selective", {"project": "float"}),
    ("mobile", "selective", {"left": "float"}),
    ("mobile", "selective", {"pool": "float"}),
    ("residual", W4, {"a1": "int8", "fc": "int8"}),
    ("residual", W4, {"a1": "float", "b2": "int8", "stem": "int8"}),
]


def planned_again(model: Any, quantization: Any, levels: dict[str, Level]) -> tuple[Placement, Placement]:
    """(what `raised` gives, what the recipe with `recipe_lines` gives)."""
    placement, graph, units = of(model, quantization)
    levels = {next(unit.name for unit in units if name in unit.layers): level for name, level in levels.items()}
    reasons = dict.fromkeys(levels, f"{REASON}why")
    lines = YAML(typ="safe").load(recipe_text(recipe_lines(graph, units, levels)))["quantization"]
    return raised(placement, graph, units, levels, reasons), tfqat.plan(
        model, {**(quantization if isinstance(quantization, dict) else {}), **lines}
    )


@pytest.mark.parametrize(("network", "quantization", "levels"), LEVELS, ids=[f"{name}-{'-'.join(levels)}" for name, _, levels in LEVELS])
def test_the_recipe_plans_the_same_points(network: str, quantization: Any, levels: dict[str, Level], networks: SimpleNamespace) -> None:
    found, planned = planned_again(getattr(networks, network)(), quantization, levels)
    assert shown(planned) == shown(found)
    assert places(planned) == places(found)
    floats = {layer.layer for layer in found.float_layers if layer.reason == f"{REASON}why"}
    assert floats >= {name for name, level in levels.items() if level == "float"}
    weights = {point.id for point in found.points if REASON in point.reason}
    assert weights == {f"{name}/kernel" for name, level in levels.items() if level == "int8"}


@pytest.mark.parametrize(("network", "levels"), [("residual", {"fc": "float"}), ("mobile", {"head": "float"}), ("mobile", {"fc": "float"})])
def test_places_tell_where_a_rule_looks_at_the_reader(network: str, levels: dict[str, Level], networks: SimpleNamespace) -> None:
    """A pooling, or a Concat, whose reader is left float is planned float too; what was measured has it in INT8."""
    found, planned = planned_again(getattr(networks, network)(), "selective", levels)
    assert places(planned) != places(found)


def test_the_recipe_plans_the_same_scale_groups(networks: SimpleNamespace) -> None:
    found, planned = planned_again(networks.mobile(), "selective", {"concat": "float"})
    assert shown(planned) == shown(found)


@pytest.mark.parametrize("name", ["conv[1]", "conv*", "conv?", "a[b*c]?", "plain", "a b"])
def test_a_name_with_signs_of_a_glob_is_matched_alone(name: str) -> None:
    """`conv1`, `convx` and the like, which the name would match as a glob, stay quantized."""
    from tfqat.models.names import given_name, legal_name

    image = tf_keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(3, 1, name=legal_name(name))(image)
    for other in ("conv1", "convx", "conv12", "ab", "abxcb"):
        x = layers.Conv2D(3, 1, name=other)(x)
    model = tf_keras.Model(image, x)
    _, graph, units = of(model)
    lines = recipe_lines(graph, units, {legal_name(name): "float"})
    assert {layer.layer for layer in tfqat.plan(model, lines).float_layers} == {legal_name(name)}
    assert given_name(legal_name(name)) == name
    wide = tfqat.plan(model, {**W4, **recipe_lines(graph, of(model, W4)[2], {legal_name(name): "int8"})})
    assert {point.source for point in wide.weights if point.spec.num_bits == 8} == {legal_name(name)}


def test_a_layer_that_is_called_like_a_class_is_matched_alone() -> None:
    image = tf_keras.Input((6, 6, 3), name="image")
    model = tf_keras.Model(image, layers.Conv2D(2, 1, name="other")(layers.Conv2D(3, 1, name="Conv2D")(image)))
    planned = tfqat.plan(model, recipe_lines(*of(model)[1:], {"Conv2D": "float"}))
    assert [layer.layer for layer in planned.float_layers] == ["Conv2D"]


def test_the_lines_and_their_text(networks: SimpleNamespace) -> None:
    _, graph, units = of(networks.residual(), W4)
    lines = recipe_lines(graph, units, {"b2": "float", "stem": "int8", "a1": "planned"})
    assert lines == {"skip": ["b2", "b_add"], "overrides": [{"match": "stem", "weights": {"num_bits": 8}}]}
    assert YAML(typ="safe").load(recipe_text(lines)) == {"quantization": lines}
    assert (recipe_lines(graph, units, {}), recipe_text({})) == ({}, "")
