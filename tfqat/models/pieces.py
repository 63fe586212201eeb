"""Cuts a functional model into pieces that run one after the other, so that what comes before a change need not be computed again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import tensorflow as tf

from tfqat.models import graph as model_graph
from tfqat.models.depth import functional_model
from tfqat.models.graph import ModelGraph, Node, TensorRef

Values = Mapping[TensorRef, tf.Tensor]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some nodes of a model: what they read from outside, what of them is read outside, and the function between.

    `compute` takes the tensors of `reads` and gives those of `writes`, at inference; it shares the variables of the model.
    """

    nodes: tuple[str, ...]
    reads: tuple[TensorRef, ...]
    writes: tuple[TensorRef, ...]
    compute: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A model as a chain of pieces."""

    inputs: tuple[TensorRef, ...]
    dtypes: tuple[Any, ...]
    names: tuple[str, ...]
    chain: tuple[Piece, ...]
    outputs: tuple[TensorRef, ...]

    def of(self, node: str) -> int:
        """The number of the piece that computes a node."""
        return self._places[node]

    def start(self, inputs: Any) -> dict[TensorRef, tf.Tensor]:
        """What is live before the first piece: the model's inputs, from a batch as `model(inputs)` takes it."""
        parts = [inputs[name] for name in self.names] if isinstance(inputs, Mapping) else tf.nest.flatten(inputs)
        return {ref: tf.cast(tf.convert_to_tensor(value), dtype) for ref, value, dtype in zip(self.inputs, parts, self.dtypes, strict=True)}

    def run(self, live: Values, first: int = 0, last: int | None = None) -> dict[TensorRef, tf.Tensor]:
        """What is live after piece `last` - 1, from what is live before piece `first`; `live` stays as it is."""
        values = dict(live)
        for number in range(first, len(self.chain) if last is None else last):
            piece = self.chain[number]
            values.update(zip(piece.writes, piece.compute([values[ref] for ref in piece.reads]), strict=True))
            values = {ref: value for ref, value in values.items() if ref in self._live_after[number]}
        return values

    def results(self, live: Values) -> list[tf.Tensor]:
        """The outputs of the model, once the last piece has run."""
        return [live[ref] for ref in self.outputs]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {node: number for number, piece in enumerate(self.chain) for node in piece.nodes}

    @cached_property
    def _live_after(self) -> list[set[TensorRef]]:
        needed = set(self.outputs)
        found: list[set[TensorRef]] = []
        for piece in reversed(self.chain):
            found.append(set(needed))
            needed |= set(piece.reads)
        return found[::-1]


def cut(model: Any, starts: Iterable[Collection[str]] = (), *, ends: Collection[str] = (), late: Collection[str] = ()) -> Pieces:
    """The model in pieces, a new one beginning at the first node of each set of `starts`, and after each node of `ends`.

    Args:
        model: a flat functional tf_keras model; it is not changed, its layers and variables are shared.
        starts: sets of node names.
        ends: node names.
        late: nodes that are computed right before what reads them, not as early as they can be.
    """
    graph = model_graph.read(model)
    inputs = [node for node in graph.nodes if node.class_name == "InputLayer"]
    ordered_nodes = _ordered(graph, late)
    order = {node.name: number for number, node in enumerate(ordered_nodes)}
    begins = {min(names, key=order.__getitem__) for names in starts}
    groups: list[list[str]] = [[]]
    for node in ordered_nodes:
        if node.name in begins and groups[-1]:
            groups.append([])
        groups[-1].append(node.name)
        if node.name in ends:
            groups.append([])
    tensors = model_graph.tensors(model)
    references = {node.name: TensorRef(layer=node.name) for node in inputs}
    ordered = [references[name] for name in model.input_names]
    keys = sorted(model.input) if isinstance(model.input, Mapping) else model.input_names  # what a batch calls them, in this order
    return Pieces(
        inputs=tuple(ordered),
        dtypes=tuple(tensors[ref].dtype for ref in ordered),
        names=tuple(keys),
        chain=tuple(piece(graph, tensors, nodes) for nodes in groups if nodes),
        outputs=graph.outputs,
    )


def piece(graph: ModelGraph, tensors: Mapping[TensorRef, Any], nodes: Sequence[str], *, traced: bool = True) -> Piece:
    """The piece of some nodes, which are in topological order.

    Args:
        graph: of the model.
        tensors: its symbolic tensors, from `model_graph.tensors`.
        nodes: names.
        traced: as a tf.function of its own; False for use within another one.
    """
    inside = set(nodes)
    made = {ref for ref in tensors if ref.layer in inside}
    reads = tuple(dict.fromkeys(ref for name in nodes for ref in graph.node(name).inputs if ref.layer not in inside))
    outside = [ref for ref in made if ref in graph.outputs or any(reader.name not in inside for reader, _ in graph.consumers(ref))]
    writes = tuple(sorted(outside, key=lambda ref: (nodes.index(ref.layer), ref.index)))
    model = functional_model([tensors[ref] for ref in reads], [tensors[ref] for ref in writes])

    def compute(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return tf.nest.flatten(model(list(values), training=False))

    if not traced:
        return Piece(nodes=tuple(nodes), reads=reads, writes=writes, compute=compute)
    return Piece(nodes=tuple(nodes), reads=reads, writes=writes, compute=_traced(compute, [tensors[ref] for ref in reads]))


def _traced(compute: Callable[..., list[tf.Tensor]], reads: Sequence[Any]) -> Callable[[Sequence[tf.Tensor]], list[tf.Tensor]]:
    """The function as one trace, made at its first call.

    Not by calling the tf.function: TensorFlow takes those of several pieces for one that is traced over and over, and warns (2.21).
    """
    function = tf.function(compute, input_signature=[[tf.TensorSpec(read.shape, read.dtype) for read in reads]], autograph=False)
    concrete = cache(function.get_concrete_function)

    def call(values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return tf.nest.flatten(concrete()(list(values)))

    return call


def _ordered(graph: ModelGraph, late: Collection[str]) -> list[Node]:
    """The nodes but the inputs, in topological order, those of `late` right before the first that reads them."""
    ordered: list[Node] = []
    waiting = set(late)

    def place(node: Node) -> None:
        for ref in node.inputs:
            if ref.layer in waiting:
                waiting.remove(ref.layer)
                place(graph.node(ref.layer))
        ordered.append(node)

    for node in graph.nodes:
        if node.name not in late and node.class_name != "InputLayer":
            place(node)
    for node in graph.nodes:  # what nothing reads
        if node.name in waiting:
            waiting.remove(node.name)
            place(node)
    return ordered
