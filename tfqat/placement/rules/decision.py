"""What a rule answers, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement.rules import classes
from tfqat.placement.rules.classes import Weight


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantize the inputs of the layer that are listed, and its weight if it has one; `one_scale`: all inputs on one grid."""

    inputs: tuple[int, ...]
    reason: str
    weight: Weight | None = None
    one_scale: bool = False


@dataclass(frozen=True, kw_only=True)
class KeepFloat:
    """Add no Q/DQ for this layer."""

    reason: str


Decision = Quantize | KeepFloat
Rule = Callable[["View", Node], Decision | None]


@dataclass(frozen=True, kw_only=True)
class View:
    """What a rule may look at.

    Args:
        graph: the model.
        rules: the rules of the preset, in their order; the last one matches everything.
        skipped: layer -> reason, for the layers that the user keeps out.
        forced: the layers that the user wants quantized although the rules keep them float.
        custom: class name -> answer, for classes of the user's own.
        small_products_float: leave products with few channels in float (see `products.small_product`).
    """

    graph: ModelGraph
    rules: tuple[Rule, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    forced: frozenset[str] = frozenset()
    custom: Mapping[str, Quantize] = field(default_factory=dict)
    small_products_float: bool = False
    _decided: dict[str, Decision] = field(default_factory=dict, init=False, repr=False, compare=False)
    _read_quantized: dict[TensorRef, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def decide(self, node: Node) -> Decision:
        """The answer of the first rule that matches."""
        if node.name not in self._decided:
            self._decided[node.name] = next(found for rule in self.rules if (found := rule(self, node)) is not None)
        return self._decided[node.name]

    def weight(self, node: Node) -> Weight | None:
        """The weight that the layer's class multiplies with, whether it is quantized or not."""
        custom = self.custom.get(node.class_name)
        return custom.weight if custom else classes.WEIGHTS.get(node.class_name)

    def is_int8_weighted(self, node: Node) -> bool:
        """Whether the layer has a weight that is quantized."""
        if self.weight(node) is None and node.class_name not in classes.TRANSPOSED:
            return False
        decision = self.decide(node)
        return isinstance(decision, Quantize) and decision.weight is not None

    def quantized_inputs(self, node: Node) -> tuple[int, ...]:
        """Which inputs the layer reads quantized."""
        decision = self.decide(node)
        return decision.inputs if isinstance(decision, Quantize) else ()

    def is_read_quantized(self, tensor: TensorRef) -> bool:
        """Whether everything that reads the tensor, through layers that commute with Q/DQ, reads it quantized."""
        if tensor not in self._read_quantized:
            readers = self.graph.consumers(tensor)
            self._read_quantized[tensor] = (
                bool(readers) and tensor not in self.graph.outputs and all(self._reads_quantized(node, index) for node, index in readers)
            )
        return self._read_quantized[tensor]

    def _reads_quantized(self, node: Node, index: int) -> bool:
        if classes.commutes(node):
            return self.is_read_quantized(TensorRef(layer=node.name))
        return index in self.quantized_inputs(node)
