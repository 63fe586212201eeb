"""A placement with some units at higher precision, and the lines of a recipe that ask for the same."""

from __future__ import annotations

import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ruamel.yaml import YAML

from tfqat.analysis.bench import Levels
from tfqat.analysis.units import Unit
from tfqat.models.graph import ModelGraph
from tfqat.models.names import given_name
from tfqat.placement.plan import Edge, FloatLayer, Placement, QPoint
from tfqat.placement.select import REGEX_PREFIX
from tfqat.spec import MAX_BITS

REASON = "sensitive: "
"""How the reason of a unit begins that is left at higher precision."""


def raised(placement: Placement, graph: ModelGraph, units: Sequence[Unit], levels: Levels, reasons: Mapping[str, str]) -> Placement:
    """The placement less the points of units that are left float, and with 8 bits for the weights of those raised to that.

    Args:
        placement: as planned.
        graph: the float model.
        units: its units.
        levels: unit -> `float` or `int8`.
        reasons: unit -> why, for each of `levels`.
    """
    to_float = [unit for unit in units if levels.get(unit.name) == "float"]
    to_int8 = {weight: reasons[unit.name] for unit in units if levels.get(unit.name) == "int8" for weight in unit.weights}
    dropped = {edge for unit in to_float for edge in unit.edges}
    gone = {weight for unit in to_float for weight in unit.weights}
    points: list[QPoint] = []
    for point in placement.points:
        edges = tuple(edge for edge in point.edges if edge not in dropped)
        if point.id in gone or (point.kind == "activation" and not edges):
            continue
        if point.id in to_int8:
            point = replace(point, spec=replace(point.spec, num_bits=point.max_bits), reason=f"{point.reason}; {to_int8[point.id]}")
        points.append(replace(point, edges=edges))
    left = {
        node: FloatLayer(layer=node, class_name=graph.node(node).class_name, reason=reasons[unit.name])
        for unit in to_float
        for node in unit.nodes
    }
    float_layers = (*(layer for layer in placement.float_layers if layer.layer not in left), *left.values())
    order = {node.name: number for number, node in enumerate(graph.nodes)}
    return Placement(
        preset=placement.preset, points=_regrouped(points), float_layers=tuple(sorted(float_layers, key=lambda layer: order[layer.layer]))
    )


def _regrouped(points: Sequence[QPoint]) -> tuple[QPoint, ...]:
    """The points with groups of one scale called by the first that is left of them; one alone is no group."""
    members: dict[str, list[str]] = {}
    for point in points:
        if point.scale_group is not None:
            members.setdefault(point.scale_group, []).append(point.id)
    names = {group: found[0] if len(found) > 1 else None for group, found in members.items()}
    return tuple(replace(point, scale_group=names.get(point.scale_group) if point.scale_group else None) for point in points)


def places(placement: Placement) -> set[tuple[str, str, int, tuple[Edge, ...], int]]:
    """What a placement quantizes, whatever its points are called: source, weight, output, edges and bits of each."""
    return {(point.source, str(point.weight), point.output, point.edges, point.spec.num_bits) for point in placement.points}


def recipe_lines(graph: ModelGraph, units: Sequence[Unit], levels: Levels) -> dict[str, Any]:
    """What to add to the `quantization` block of a recipe: `skip` for what is left float, `overrides` for what has 8 bits."""
    classes = {node.class_name for node in graph.nodes}
    skip = [_pattern(layer, classes) for unit in units if levels.get(unit.name) == "float" for layer in unit.layers]
    wide = [_pattern(layer, classes) for unit in units if levels.get(unit.name) == "int8" for layer in _weighted(unit)]
    found: dict[str, Any] = {"skip": skip} if skip else {}
    if wide:
        found["overrides"] = [{"match": layer, "weights": {"num_bits": MAX_BITS}} for layer in wide]
    return found


def recipe_text(lines: Mapping[str, Any]) -> str:
    """The lines as YAML; the empty string if there are none."""
    if not lines:
        return ""
    stream = io.StringIO()
    YAML(typ="safe", pure=True).dump({"quantization": dict(lines)}, stream)
    return stream.getvalue()


def _weighted(unit: Unit) -> list[str]:
    return list(dict.fromkeys(weight.rpartition("/")[0] for weight in unit.weights))


def _pattern(layer: str, classes: Collection[str]) -> str:
    """A pattern that matches this layer alone: its name, with what a glob would read otherwise in brackets."""
    if layer in classes:
        return f"{REGEX_PREFIX}{re.escape(given_name(layer))}"
    return re.sub(r"([*?\[])", r"[\1]", given_name(layer))
