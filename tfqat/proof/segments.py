"""What makes each quantization point: the layers of the model, and the nodes of the graph, back to the points before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir import convenience

from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph, TensorRef
from tfqat.quantize import state


@dataclass(frozen=True, kw_only=True)
class KerasSegments:
    """The layers between quantizers, in topological order: by the point that they make, and those behind the last points by output.

    `with_kernels` are the layers of the model that multiply by a weight, quantized or not.
    """

    points: Mapping[str, tuple[str, ...]]
    outputs: tuple[tuple[str, ...], ...]
    with_kernels: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class OnnxSegment:
    """The nodes that make one value, in the order of the graph, without Q and DQ.

    Attributes:
        ops: their ONNX operations, each once.
        nodes: their names.
        points: the points that they read.
        weights: the quantized weights that they read, `layer/kernel`.
        constants: the names of the constants that they read.
    """

    ops: tuple[str, ...]
    nodes: tuple[str, ...]
    points: tuple[str, ...]
    weights: tuple[str, ...]
    constants: tuple[str, ...]


def keras_segments(qmodel: Any) -> KerasSegments:
    """The layers of a quantized model, segment by segment."""
    graph = model_graph.read(qmodel)
    quantizers = {layer.name: point.id for layer in qmodel.layers if (point := state.point_of(layer)) is not None}
    points: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        if node.layer in quantizers:
            points.setdefault(quantizers[node.layer], _layers_before(graph, node.inputs, quantizers))
    return KerasSegments(
        points=points,
        outputs=tuple(_layers_before(graph, (output,), quantizers) for output in graph.outputs),
        with_kernels=frozenset(
            {handle.point.given_source for handle in state.handles(qmodel).values() if handle.weight is not None}
            | {node.layer for node in graph.nodes if any("kernel" in name for name in node.weights)}
        ),
    )


def _layers_before(graph: ModelGraph, tensors: Iterable[TensorRef], quantizers: Mapping[str, str]) -> tuple[str, ...]:
    found, open_ends = set(), [tensor.layer for tensor in tensors]
    while open_ends:
        node = graph.node(open_ends.pop())
        if node.name not in found and node.layer not in quantizers:
            found.add(node.name)
            open_ends += [tensor.layer for tensor in node.inputs]
    layers = dict.fromkeys(node.layer for node in graph.nodes if node.name in found and node.inputs)
    return tuple(layers or dict.fromkeys(node.layer for node in graph.nodes if node.name in found))


def onnx_segment(graph: ir.Graph, value: ir.Value | None) -> OnnxSegment:
    """The nodes that make a value, back to the activations that are dequantized."""
    seen: set[ir.Node] = set()
    points: list[str] = []
    weights: list[str] = []
    open_ends = [value]
    while open_ends:
        end = open_ends.pop()
        node = end.producer() if end is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "DequantizeLinear":
            (weights if convenience.get_const_tensor(node.inputs[0]) is not None else points).append(point_of(node))  # type: ignore[arg-type]
        else:
            open_ends += node.inputs
    ordered = [node for node in graph if node in seen and node.op_type != "DequantizeLinear"]
    constants = [str(one.name) for node in ordered for one in node.inputs if one is not None and one.name in graph.initializers]
    return OnnxSegment(
        ops=tuple(dict.fromkeys(node.op_type for node in ordered)),
        nodes=tuple(str(node.name) for node in ordered),
        points=tuple(sorted(points)),
        weights=tuple(sorted(weights)),
        constants=tuple(dict.fromkeys(constants)),
    )


def point_of(node: ir.Node) -> str:
    """The point of a Q or DQ node: `stem_relu` of `stem_relu/Q`; of another tool's node the whole name."""
    return (node.name or "").removesuffix("/DQ").removesuffix("/Q")
