"""The placement of a model by layer, and as a tree of the names of nested models: what `tfqat plan` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.models.names import given_name
from tfqat.placement.plan import Placement, QPoint


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """One call of a layer: whether it is quantized, its points (weight, then inputs), and the reason if it is left float."""

    node: Node
    name: str
    points: tuple[QPoint, ...]
    reason: str

    @property
    def quantized(self) -> bool:
        """Whether the layer computes on quantized inputs or weights."""
        return bool(self.points)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The layers below one name, in topological order: `backbone` holds `backbone/conv1`."""

    name: str
    layers: tuple[PlannedLayer, ...] = ()
    branches: Mapping[str, Branch] = field(default_factory=dict)


def planned_layers(graph: ModelGraph, placement: Placement) -> tuple[PlannedLayer, ...]:
    """Every call of a layer but the inputs, in topological order."""
    weights = {point.source: point for point in placement.weights}
    reads: dict[str, list[QPoint]] = {}
    for point in placement.activations:
        for edge in point.edges:
            reads.setdefault(edge.layer, []).append(point)
    reasons = {layer.layer: layer.reason for layer in placement.float_layers}
    return tuple(
        PlannedLayer(
            node=node,
            name=given_name(node.name),
            points=tuple(dict.fromkeys((*([weights[node.layer]] if node.layer in weights else ()), *reads.get(node.name, ())))),
            reason=reasons.get(node.name, ""),
        )
        for node in graph.nodes
        if node.class_name != "InputLayer"
    )


def tree_of(graph: ModelGraph, placement: Placement) -> Branch:
    """The planned layers as a tree of the segments of their names."""
    return _branch("", planned_layers(graph, placement), depth=0)


def quantizers_on_edges(placement: Placement) -> dict[tuple[str, int], QPoint]:
    """(node, input index) -> the point whose quantizer sits there."""
    return {(edge.layer, edge.index): point for point in placement.activations for edge in point.edges}


def depths(graph: ModelGraph) -> dict[str, int]:
    """How many layers lie between each node and the inputs, along the longest way."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        found[node.name] = 1 + max((found[tensor.layer] for tensor in node.inputs), default=-1)
    return found


def _branch(name: str, layers: tuple[PlannedLayer, ...], depth: int) -> Branch:
    own = tuple(layer for layer in layers if layer.name.count("/") <= depth)
    below: dict[str, list[PlannedLayer]] = {}
    for layer in layers:
        if layer.name.count("/") > depth:
            below.setdefault(layer.name.split("/")[depth], []).append(layer)
    return Branch(name=name, layers=own, branches={key: _branch(key, tuple(found), depth + 1) for key, found in below.items()})


def tensor_name(tensor: TensorRef) -> str:
    """A tensor as people call it: its layer, with the number of the output if there are several."""
    return given_name(tensor.layer) + (f":{tensor.index}" if tensor.index else "")
