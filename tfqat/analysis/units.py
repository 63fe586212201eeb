"""The units of sensitivity analysis: layers that are quantized, or left at higher precision, together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement.plan import Edge, QPoint
from tfqat.placement.rules import classes
from tfqat.spec import MAX_BITS

PASSED = classes.INFERENCE_IDENTITIES | classes.PADDINGS  # a quantizer may sit before these, for the layer behind them


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Layers that are switched together.

    That is one product (a convolution, a Dense layer, a matrix product) with the residual Add that TensorRT fuses with it, or one other
    layer that reads quantized tensors, such as a pooling. Layers that share a weight, or a quantizer that cannot be told apart, are
    one unit.

    Attributes:
        name: of the first layer with a weight, else of the first layer.
        layers: names, in topological order.
        nodes: the calls of these layers.
        class_name: of the layer called `name`.
        weights: ids of the weight points.
        edges: where the unit reads quantized tensors.
        num_bits: the least width among its points.
        max_bits: the largest that its points may have.
        macs: multiply-accumulates for one example; an axis without fixed size counts as 1.
    """

    name: str
    layers: tuple[str, ...]
    nodes: tuple[str, ...]
    class_name: str
    weights: tuple[str, ...]
    edges: tuple[Edge, ...]
    num_bits: int
    macs: int
    max_bits: int = MAX_BITS


def units_of(graph: ModelGraph, points: Iterable[QPoint]) -> tuple[Unit, ...]:
    """The units of a placement, in topological order.

    Args:
        graph: the float model.
        points: the points of its placement.
    """
    points = tuple(points)
    readers = {edge: _readers(graph, edge) for point in points for edge in point.edges}
    weights = {point.source: point for point in points if point.kind == "weight"}
    quantized = {node.name for nodes in readers.values() for node in nodes} | {
        call.name for layer in weights for call in graph.calls(layer)
    }
    groups = _Groups()
    for nodes in readers.values():
        groups.join([node.name for node in nodes])
    for layer in weights:
        groups.join([call.name for call in graph.calls(layer)])
    for name in quantized:
        if graph.node(name).class_name == "Add" and (product := _fused(graph, graph.node(name), readers, weights)):
            groups.join([product, name])
    members: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.name in quantized:
            members.setdefault(groups.root(node.name), []).append(node.name)
    return tuple(_unit(graph, names, readers, weights, points) for names in members.values())


def macs_of(graph: ModelGraph, node: Node) -> int:
    """Multiply-accumulates of one call for one example: weight size times output positions; 0 for what is no product."""
    weight = classes.WEIGHTS.get(node.class_name) or classes.TRANSPOSED.get(node.class_name)
    if node.class_name in classes.PRODUCTS:
        return math.prod(size or 1 for size in node.shapes[0][1:]) * (graph.shape(node.inputs[0])[-1] or 1)
    if weight is None or weight.attribute not in node.weights:
        return 0
    positions = graph.shape(node.inputs[0]) if node.class_name in classes.TRANSPOSED else node.shapes[0]
    return math.prod(size or 1 for size in positions[1:-1]) * math.prod(node.weights[weight.attribute])


def _unit(
    graph: ModelGraph, names: list[str], readers: Mapping[Edge, list[Node]], weights: Mapping[str, QPoint], points: tuple[QPoint, ...]
) -> Unit:
    nodes = [graph.node(name) for name in names]
    edges = tuple(edge for edge, found in readers.items() if any(node.name in names for node in found))
    weighted = [node for node in nodes if node.layer in weights]
    first = (weighted or nodes)[0]
    owned = tuple(dict.fromkeys(weights[node.layer].id for node in weighted))
    used = [point for point in points if point.id in owned or set(point.edges) & set(edges)]
    return Unit(
        name=first.layer,
        layers=tuple(dict.fromkeys(node.layer for node in nodes)),
        nodes=tuple(names),
        class_name=first.class_name,
        weights=owned,
        edges=edges,
        num_bits=min(point.spec.num_bits for point in used),
        macs=sum(macs_of(graph, node) for node in nodes),
        max_bits=min(point.max_bits for point in used),
    )


def _readers(graph: ModelGraph, edge: Edge) -> list[Node]:
    """The layers that an edge's quantizer is for: the one that it sits before, or those behind it if that one only passes values on."""
    node = graph.node(edge.layer)
    if node.class_name not in PASSED:
        return [node]
    found = [
        reader
        for consumer, index in graph.consumers(TensorRef(layer=node.name))
        for reader in _readers(graph, Edge(layer=consumer.name, index=index))
    ]
    return found or [node]


def _fused(graph: ModelGraph, add: Node, readers: Mapping[Edge, list[Node]], weights: Mapping[str, QPoint]) -> str | None:
    """The product that an Add fuses with: the one that ends the branch which the Add reads in float."""
    read = {edge.index for edge in readers if edge.layer == add.name}
    for index, tensor in enumerate(add.inputs):
        node = graph.producer(tensor) if index not in read else None
        while node is not None and node.layer not in weights:
            alone = node.class_name in classes.BEFORE_ADD and len(graph.consumers(TensorRef(layer=node.name))) == 1
            node = graph.producer(node.inputs[0]) if alone else None
        if node is not None:
            return node.name
    return None


class _Groups:
    """Names joined into groups."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def root(self, name: str) -> str:
        while name in self._parents:
            name = self._parents[name]
        return name

    def join(self, names: list[str]) -> None:
        for name in names[1:]:
            first, second = self.root(names[0]), self.root(name)
            if first != second:
                self._parents[second] = first
