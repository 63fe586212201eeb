"""Which tensors must share one scale: the inputs and the output of a concatenation, and what a layer that only moves values connects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tfqat.models.graph import ModelGraph, TensorRef
from tfqat.placement.rules import Decision, Quantize
from tfqat.placement.rules.classes import commutes


def scale_groups(graph: ModelGraph, decisions: Mapping[str, Decision], quantized: Iterable[TensorRef]) -> dict[TensorRef, int]:
    """The group of each quantized tensor that shares its scale with another one.

    With equal scales Q(DQ(code)) is the code itself, so that the quantizer behind a concatenation or a max pooling costs nothing and
    TensorRT keeps the tensor in INT8 from its producer on. Source: TensorRT developer guide, "Q/DQ propagation" (layers that commute).

    Args:
        graph: the model.
        decisions: node name -> what the rules say.
        quantized: the tensors with a quantizer.

    Returns:
        Tensor -> number of its group, in the order of the graph; tensors that share with no other are left out.
    """
    parents: dict[TensorRef, TensorRef] = {}

    def root(tensor: TensorRef) -> TensorRef:
        while tensor in parents:
            tensor = parents[tensor]
        return tensor

    for node in graph.nodes:
        decision = decisions.get(node.name)
        joins = isinstance(decision, Quantize) and decision.one_scale
        for tensor in node.inputs if joins or (node.inputs and commutes(node)) else ():
            first, second = root(tensor), root(TensorRef(layer=node.name))
            if first != second:
                parents[second] = first
    members: dict[TensorRef, list[TensorRef]] = {}
    for tensor in quantized:
        members.setdefault(root(tensor), []).append(tensor)
    shared = [tensors for tensors in members.values() if len(tensors) > 1]
    return {tensor: number for number, tensors in enumerate(shared) for tensor in tensors}
