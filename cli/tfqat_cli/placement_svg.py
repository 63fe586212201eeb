"""Draws a placement: layers in rows by their depth, what is quantized in colour, and a mark on every edge that a quantizer sits on."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from tfqat.models.graph import ModelGraph
from tfqat.models.names import given_name
from tfqat.placement.plan import Placement
from tfqat.placement.tree import PlannedLayer, depths, planned_layers, quantizers_on_edges
from tfqat.report.svg import element, join

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 176, 34, 24, 30, 20
_LETTERS = 27  # of a name that fit into a box
_CSS = """
svg { font: 11px system-ui, sans-serif; background: #fff; color: #1a1a1a }
.box { stroke: #777; fill: #f2f2f2 } .int8 .box { stroke: #1667b7; fill: #d9eafb } .input .box { fill: none }
text { fill: currentColor } .class { opacity: .65; font-size: 9px }
.edge { fill: none; stroke: #999 } .edge.int8 { stroke: #1667b7; stroke-width: 1.6 }
.mark { fill: #1667b7; stroke: #fff }
@media (prefers-color-scheme: dark) {
  svg { background: #16181b; color: #e8e8e8 } .box { fill: #26292d; stroke: #888 } .int8 .box { fill: #143252; stroke: #5aa7f0 }
  .edge { stroke: #666 } .edge.int8 { stroke: #5aa7f0 } .mark { fill: #5aa7f0; stroke: #16181b }
}
"""


def placement_svg(graph: ModelGraph, placement: Placement) -> str:
    """A self-contained SVG file: a box for each call of a layer, tool tips with the reasons."""
    places = _places(graph)
    width = max(x for x, _ in places.values()) + _WIDTH + 2 * _MARGIN
    height = max(y for _, y in places.values()) + _HEIGHT + _MARGIN
    layers = {layer.node.name: layer for layer in planned_layers(graph, placement)}
    title = f"{len(placement.activations)} activations and {len(placement.weights)} weights in INT8"
    drawn = [*_edges(graph, placement, places), *_boxes(graph, layers, places)]
    parts = join([element("style", Markup(_CSS)), element("title", title), *drawn])
    return str(element("svg", parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width, height=height))


def _places(graph: ModelGraph) -> dict[str, tuple[int, int]]:
    """The upper left corner of every box: its row is its depth; within a row boxes lie below what they read, as far as there is room."""
    rows: dict[int, list[str]] = {}
    for name, depth in depths(graph).items():
        rows.setdefault(depth, []).append(name)
    columns: dict[str, int] = {}
    for depth in sorted(rows):
        wanted = {name: min((columns[tensor.layer] for tensor in graph.node(name).inputs), default=0) for name in rows[depth]}
        taken = -1
        for name in sorted(rows[depth], key=wanted.__getitem__):
            columns[name] = taken = max(wanted[name], taken + 1)
    order = depths(graph)
    return {name: (_MARGIN + column * (_WIDTH + _GAP_X), _MARGIN + order[name] * (_HEIGHT + _GAP_Y)) for name, column in columns.items()}


def _edges(graph: ModelGraph, placement: Placement, places: Mapping[str, tuple[int, int]]) -> list[Markup]:
    quantizers = quantizers_on_edges(placement)
    found = []
    for node in graph.nodes:
        for index, tensor in enumerate(node.inputs):
            (x1, y1), (x2, y2) = places[tensor.layer], places[node.name]
            left = x2 + _WIDTH * (index + 1) / (len(node.inputs) + 1)
            start, end = (x1 + _WIDTH / 2, y1 + _HEIGHT), (left, y2)
            bend = (end[1] - start[1]) / 2
            (ax, ay), (bx, by) = start, end
            # An edge that passes rows goes around the boxes in them, on their right.
            side = max(x1, x2) + _WIDTH + 2 * _GAP_X if y2 - y1 > _HEIGHT + _GAP_Y else None
            line = f"M{ax:.1f} {ay} C{side or ax:.1f} {ay + bend:.1f} {side or bx:.1f} {by - bend:.1f} {bx:.1f} {by}"
            point = quantizers.get((node.name, index))
            found.append(element("path", class_="edge int8" if point else "edge", d=line))
            if point:
                tip = element("title", f"{point.id}: {point.spec.describe()}, {point.calibrator.describe()}. {point.reason}")
                found.append(element("circle", tip, class_="mark", cx=end[0], cy=end[1] - 5, r=4))
    return found


def _boxes(graph: ModelGraph, layers: Mapping[str, PlannedLayer], places: Mapping[str, tuple[int, int]]) -> list[Markup]:
    found = []
    for node in graph.nodes:
        x, y = places[node.name]
        layer = layers.get(node.name)
        kind = "input" if layer is None else "int8" if layer.quantized else "float"
        name = given_name(node.name)
        shown = name if len(name) <= _LETTERS else "…" + name[1 - _LETTERS :]
        reason = "input of the model" if layer is None else layer.reason or "; ".join(point.reason for point in layer.points)
        found.append(
            element(
                "g",
                join(
                    [
                        element("title", f"{name} ({node.class_name}): {reason}"),
                        element("rect", class_="box", x=x, y=y, width=_WIDTH, height=_HEIGHT, rx=4),
                        element("text", shown, x=x + 8, y=y + 15),
                        element("text", node.class_name, class_="class", x=x + 8, y=y + 27),
                    ]
                ),
                class_=kind,
            )
        )
    return found
