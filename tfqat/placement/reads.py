"""Which layers read which tensor quantized, and where the quantizer of the tensor sits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.models.names import given_name
from tfqat.placement.plan import Edge
from tfqat.placement.rules.classes import INFERENCE_IDENTITIES, PADDINGS


@dataclass(frozen=True, kw_only=True)
class Read:
    """Input `index` of `node`, which reads its tensor quantized; `quantized` lists all inputs that it reads so.

    `edge` is where the quantizer sits: at the input itself, or before a layer in front of it that commutes with it.
    """

    node: Node
    index: int
    quantized: tuple[int, ...]
    reason: str
    edge: Edge

    @classmethod
    def of(cls, node: Node, index: int, quantized: tuple[int, ...], reason: str) -> Read:
        """A read whose quantizer sits at the input itself."""
        return cls(node=node, index=index, quantized=quantized, reason=reason, edge=Edge(layer=node.name, index=index))

    @property
    def id(self) -> str:
        """`add:shortcut` for the one input that an Add reads quantized, `add:0` and `add:1` for one of several; else the layer's name."""
        name = given_name(self.node.name)
        if self.node.class_name != "Add":
            return name
        return f"{name}:shortcut" if len(self.quantized) == 1 else f"{name}:{self.index}"


def by_tensor(graph: ModelGraph, reads: Iterable[Read]) -> dict[TensorRef, tuple[Read, ...]]:
    """The reads of each tensor, with quantizers moved in front of Dropout and the like, and of padding with zeros.

        before   relu -> Dropout -> Q -> DQ -> Dense          after   relu -> Q -> DQ -> Dropout -> Dense

    At inference both are the same. In training a quantizer behind Dropout would see values scaled by 1 / (1 - rate), beyond the range that
    was calibrated; and two layers that read one tensor, one of them through Dropout, would have two quantizers for it.
    In front of padding, which then becomes the padding of the convolution, the tensor has one quantizer whoever else reads it.
    A quantizer moves only if all that read the output of the layer read it quantized.

    Returns:
        Tensor -> its reads, in the order of the layers that their quantizer sits before.
    """
    grouped: dict[TensorRef, tuple[Read, ...]] = {}
    for read in reads:
        tensor = read.node.inputs[read.index]
        grouped[tensor] = (*grouped.get(tensor, ()), read)
    for node in reversed(graph.nodes):
        output = TensorRef(layer=node.name)
        if node.class_name in INFERENCE_IDENTITIES | PADDINGS and output in grouped and _all_quantized(graph, output, grouped[output]):
            moved = tuple(replace(read, edge=Edge(layer=node.name)) for read in grouped.pop(output))
            grouped[node.inputs[0]] = (*grouped.get(node.inputs[0], ()), *moved)
    order = {node.name: number for number, node in enumerate(graph.nodes)}
    return {tensor: tuple(sorted(found, key=lambda read: order[read.edge.layer])) for tensor, found in grouped.items()}


def edges_of(reads: Iterable[Read]) -> tuple[Edge, ...]:
    """Where the quantizer of a tensor sits, each place once."""
    return tuple(dict.fromkeys(read.edge for read in reads))


def point_id(tensor: TensorRef, reads: tuple[Read, ...]) -> str:
    """The id of a tensor's quantizer: that of the input where one Add alone reads it, else the name of the layer that makes the tensor."""
    if len(reads) == 1 and reads[0].node.class_name == "Add":
        return reads[0].id
    name = given_name(tensor.layer)
    return name if tensor.index == 0 else f"{name}:{tensor.index}"


def _all_quantized(graph: ModelGraph, tensor: TensorRef, reads: tuple[Read, ...]) -> bool:
    wanted = {(consumer.name, index) for consumer, index in graph.consumers(tensor)}
    return tensor not in graph.outputs and wanted == {(read.edge.layer, read.edge.index) for read in reads}
