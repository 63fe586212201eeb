"""The placement of a model by layer, and as a tree of the names of nested models: what `tfqat plan` shows."""

from __future__ import annotations

from dataclasses import dataclass

from tfqat.models.graph import ModelGraph, Node
from tfqat.models.names import given_name
from tfqat.placement.plan import Placement, QPoint
from tfqat.placement.rules.classes import INFERENCE_IDENTITIES, PADDINGS


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """One call of a layer, what it computes in, its points (weight, then inputs), and the reason.

    `quantized` says whether the layer computes on INT8. A layer in float can have a point too: the quantizer of a convolution behind a
    padding sits in front of the padding. The reason is that of a layer left float, or says where the input of a quantized layer is
    quantized if that is not at the layer itself; else it is empty, and the points have theirs.
    """

    node: Node
    name: str
    quantized: bool
    points: tuple[QPoint, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What is below one name, in topological order: `backbone` holds `backbone/conv1`. A branch stands where its first layer does."""

    name: str
    entries: tuple[PlannedLayer | Branch, ...] = ()


def planned_layers(graph: ModelGraph, placement: Placement) -> tuple[PlannedLayer, ...]:
    """Every call of a layer but the inputs, in topological order."""
    weights: dict[str, list[QPoint]] = {}
    for point in placement.weights:
        weights.setdefault(point.source, []).append(point)
    on_edges = quantizers_on_edges(placement)
    reasons = {layer.layer: layer.reason for layer in placement.float_layers}

    def planned(node: Node) -> PlannedLayer:
        read = [on_edges[node.name, index] for index in range(len(node.inputs)) if (node.name, index) in on_edges]
        quantized = node.name not in reasons
        reason = "" if quantized and read else reasons.get(node.name) or _quantized_before(graph, node, on_edges)
        return PlannedLayer(
            node=node,
            name=given_name(node.name),
            quantized=quantized,
            points=tuple(dict.fromkeys((*(weights.get(node.layer, ()) if quantized else ()), *read))),
            reason=reason,
        )

    return tuple(planned(node) for node in graph.nodes if node.class_name != "InputLayer")


def tree_of(graph: ModelGraph, placement: Placement) -> Branch:
    """The planned layers as a tree of the segments of their names."""
    return _branch("", planned_layers(graph, placement), depth=0)


def quantizers_on_edges(placement: Placement) -> dict[tuple[str, int], QPoint]:
    """(node, input index) -> the point whose quantizer sits there."""
    return {(edge.layer, edge.index): point for point in placement.activations for edge in point.edges}


def _quantized_before(graph: ModelGraph, node: Node, on_edges: dict[tuple[str, int], QPoint]) -> str:
    """Where the quantizer of a layer's input was moved: in front of the paddings and identities that the input passes."""
    while node.inputs:
        node = graph.producer(node.inputs[0])
        if node.class_name not in INFERENCE_IDENTITIES | PADDINGS:
            break
        if (node.name, 0) in on_edges:
            return f"its input is quantized in front of {given_name(node.name)}"
    return ""


def _branch(name: str, layers: tuple[PlannedLayer, ...], depth: int) -> Branch:
    found: dict[str, list[PlannedLayer]] = {}
    for layer in layers:  # a path without a slash is a layer's own name; with one it is that of a branch
        segments = layer.name.split("/")
        found.setdefault(f"{segments[depth]}/" if len(segments) > depth + 1 else layer.name, []).append(layer)
    entries: list[PlannedLayer | Branch] = []
    for key, below in found.items():
        is_branch = len(below[0].name.split("/")) > depth + 1
        entries += [_branch(key.removesuffix("/"), tuple(below), depth + 1)] if is_branch else below
    return Branch(name=name, entries=tuple(entries))
