"""Draws a placement: layers in rows by their depth, what is quantized in colour, and a mark on every edge that a quantizer sits on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from markupsafe import Markup

from tfqat.models.graph import ModelGraph, Node
from tfqat.models.names import given_name
from tfqat.placement.plan import Placement, QPoint
from tfqat.placement.tree import PlannedLayer, planned_layers, quantizers_on_edges
from tfqat.report.layered import Item, Layout, layered
from tfqat.report.svg import element, join

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN, _HEAD = 176, 34, 24, 30, 20, 36
_LANE = 18  # the width of a line that passes a row
_LETTERS = 27  # of a name that fit into a box
# Plain colours, no variables: viewers other than browsers know only those.
_CSS = """
svg { font: 11px system-ui, sans-serif } text { fill: #1a1a1a } .page { fill: #fff }
.box { stroke: #777; fill: #f2f2f2 } .int8 .box { stroke: #1667b7; fill: #d9eafb } .input .box { fill: none }
.class { opacity: .65; font-size: 9px }
.edge { fill: none; stroke: #999 } .edge.int8 { stroke: #1667b7; stroke-width: 1.6 }
.mark { fill: #1667b7; stroke: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #e8e8e8 } .page { fill: #16181b } .box { fill: #26292d; stroke: #888 } .int8 .box { fill: #143252; stroke: #5aa7f0 }
  .edge { stroke: #666 } .edge.int8 { stroke: #5aa7f0 } .mark { fill: #5aa7f0; stroke: #16181b }
}
"""
_LEGEND = "blue box: INT8 · grey box: float · circle: Q/DQ of a tensor · square: Q/DQ of a weight · reasons as tool tips"


def placement_svg(graph: ModelGraph, placement: Placement) -> str:
    """A self-contained SVG file: a box for each call of a layer, tool tips with the reasons."""
    inputs = {node.name: tuple(tensor.layer for tensor in node.inputs) for node in graph.nodes}
    page = _Page(layered(inputs, box=_WIDTH + _GAP_X, lane=_LANE))
    width = int(max(page.layout.width, 4.6 * len(_LEGEND))) + 2 * _MARGIN
    height = int(_top(max(page.layout.rows.values())) + _HEIGHT + _MARGIN)
    title = f"{placement.preset}: {len(placement.activations)} activations and {len(placement.weights)} weights in INT8"
    layers = {layer.node.name: layer for layer in planned_layers(graph, placement)}
    parts = [
        element("style", Markup(_CSS)),
        element("title", title),
        element("rect", class_="page", width=width, height=height),
        element("text", title, x=_MARGIN, y=_MARGIN),
        element("text", _LEGEND, class_="class", x=_MARGIN, y=_MARGIN + 14),
        *page.trunks(),
        *page.readings(graph, quantizers_on_edges(placement)),
        *(page.box(node, layers.get(node.name)) for node in graph.nodes),
    ]
    return str(element("svg", join(parts), xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", width=width, height=height))


@dataclass(frozen=True)
class _Page:
    """Where things stand in pixels, and how they are drawn."""

    layout: Layout

    def trunks(self) -> Iterator[Markup]:
        """The lines down the lanes, one for each layer whose outputs pass a row."""
        for (node, row), x in self.layout.centres.items():
            if row > self.layout.rows[node]:
                line = self._line((node, row - 1), x + _MARGIN, _top(row)) + f"V{_top(row) + _HEIGHT:.1f}"
                yield element("path", class_="edge", d=line)

    def readings(self, graph: ModelGraph, quantizers: Mapping[tuple[str, int], QPoint]) -> Iterator[Markup]:
        """The last piece of every edge, down to the box that reads it, with the mark of the quantizer that sits there."""
        for node in graph.nodes:
            bottom = _top(self.layout.rows[node.name])
            for index, x in self._ports(node).items():
                point = quantizers.get((node.name, index))
                line = self._line(self.layout.above(node.inputs[index].layer, node.name), x, bottom)
                yield element("path", class_="edge int8" if point else "edge", d=line)
                if point:
                    yield element("circle", element("title", _described(point)), class_="mark", cx=x, cy=bottom - 5, r=4)

    def box(self, node: Node, layer: PlannedLayer | None) -> Markup:
        """The box of a layer (None: an input of the model), with a mark if its weight is quantized."""
        x, y = self._centre((node.name, self.layout.rows[node.name])) - _WIDTH / 2, _top(self.layout.rows[node.name])
        name = given_name(node.name)
        shown = name if len(name) <= _LETTERS else "…" + name[1 - _LETTERS :]
        kind = "input" if layer is None else "int8" if layer.quantized else "float"
        parts = [
            element("title", f"{name} ({node.class_name}), {kind}: {_reason(layer)}"),
            element("rect", class_="box", x=x, y=y, width=_WIDTH, height=_HEIGHT, rx=4),
            element("text", shown, x=x + 8, y=y + 15),
            element("text", node.class_name, class_="class", x=x + 8, y=y + 27),
        ]
        for point in layer.points if layer else ():
            if point.kind == "weight":
                tip = element("title", _described(point))
                parts.append(element("rect", tip, class_="mark weight", x=x + _WIDTH - 14, y=y + _HEIGHT - 14, width=8, height=8))
        return element("g", join(parts), class_=kind)

    def _ports(self, node: Node) -> dict[int, float]:
        """Input index -> where its line meets the box; in the order in which the lines arrive, so that they do not cross there."""
        arriving = [self._centre(self.layout.above(tensor.layer, node.name)) for tensor in node.inputs]
        left = self._centre((node.name, self.layout.rows[node.name])) - _WIDTH / 2
        order = sorted(range(len(arriving)), key=lambda index: arriving[index])
        return {index: left + _WIDTH * (port + 1) / (len(order) + 1) for port, index in enumerate(order)}

    def _line(self, start: Item, x: float, y: float) -> str:
        """From below an item of the row above to (x, y)."""
        ax, ay = self._centre(start), _top(start[1]) + _HEIGHT
        return f"M{ax:.1f} {ay:.1f}C{ax:.1f} {(ay + y) / 2:.1f} {x:.1f} {(ay + y) / 2:.1f} {x:.1f} {y:.1f}"

    def _centre(self, item: Item) -> float:
        return self.layout.centres[item] + _MARGIN


def _top(row: int) -> float:
    return float(_MARGIN + _HEAD + row * (_HEIGHT + _GAP_Y))


def _reason(layer: PlannedLayer | None) -> str:
    if layer is None:
        return "input of the model"
    return layer.reason or "; ".join(dict.fromkeys(point.reason for point in layer.points))


def _described(point: QPoint) -> str:
    group = f", one scale with {point.scale_group}" if point.scale_group not in (None, point.id) else ""
    return f"{point.id}: {point.spec.describe()}, {point.calibrator.describe()}{group}. {point.reason}"
