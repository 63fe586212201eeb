"""Lint rules of a planned placement: the rules of an exported graph that can be told before there are scales, on Keras layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement.lint_graph import Finding
from tfqat.placement.plan import Placement, QPoint
from tfqat.placement.rules import classes
from tfqat.placement.rules.products import SMALL, channels_of

# How the reasons of layers that are left float on purpose begin.
_ON_PURPOSE = ("skipped", "small product")
_PRODUCTS = (
    frozenset(classes.WEIGHTS) | classes.PRODUCTS | {"EinsumDense", "MultiHeadAttention", "Dot", "SeparableConv1D", "SeparableConv2D"}
)


class Planned:
    """A model with its placement: which inputs are read quantized, and which layers have a quantized weight."""

    def __init__(self, graph: ModelGraph, placement: Placement) -> None:
        self.graph = graph
        self.weighted = {point.source.partition("@")[0] for point in placement.weights}
        self.reasons = {layer.layer: layer.reason for layer in placement.float_layers}
        self._points = {(edge.layer, edge.index): point for point in placement.activations for edge in point.edges}

    def point(self, node: Node, index: int) -> QPoint | None:
        """The quantizer of an input, in front of layers that commute with Q/DQ or at the input itself; None if it is read in float."""
        while (node.name, index) not in self._points:
            maker = self.graph.node(node.inputs[index].layer)
            if not classes.commutes(maker) or len(maker.inputs) != 1:
                return None
            node, index = maker, 0
        return self._points[node.name, index]

    def reads_directly(self, node: Node) -> bool:
        """Whether the quantizer of the first input is there for this layer."""
        return (node.name, 0) in self._points

    def points(self, node: Node) -> list[QPoint | None]:
        """The quantizer of each input."""
        return [self.point(node, index) for index in range(len(node.inputs))]

    def is_read_quantized(self, tensor: TensorRef) -> bool:
        """Whether all that reads a tensor reads it quantized."""
        readers = self.graph.consumers(tensor)
        return bool(readers) and tensor not in self.graph.outputs and all(self._reads_quantized(node, index) for node, index in readers)

    def is_on_purpose(self, node: Node) -> bool:
        """Whether the recipe leaves a layer float."""
        return self.reasons.get(node.name, "").startswith(_ON_PURPOSE)

    def is_weighted(self, node: Node) -> bool:
        """Whether the layer has a quantized weight."""
        return node.name.partition("@")[0] in self.weighted

    def _reads_quantized(self, node: Node, index: int) -> bool:
        return (node.name, index) in self._points or (classes.commutes(node) and self.is_read_quantized(TensorRef(layer=node.name)))

    @cached_property
    def read_once(self) -> frozenset[TensorRef]:
        """The tensors that exactly one layer reads, and the model does not return."""
        tensors = {tensor for node in self.graph.nodes for tensor in node.inputs}
        return frozenset(tensor for tensor in tensors if len(self.graph.consumers(tensor)) == 1 and tensor not in self.graph.outputs)


PlannedRule = Callable[[Planned, Node], Iterator[Finding]]


def lint(graph: ModelGraph, placement: Placement) -> tuple[Finding, ...]:
    """What every rule says of every layer."""
    planned = Planned(graph, placement)
    return tuple(finding for node in graph.nodes if node.inputs for rule in PLANNED_RULES for finding in rule(planned, node))


def float_product(planned: Planned, node: Node) -> Iterator[Finding]:
    """A layer that multiplies and stays float for a reason that the recipe did not give."""
    reason = planned.reasons.get(node.name)
    if reason is not None and node.class_name in _PRODUCTS and not planned.is_on_purpose(node):
        fix = "nothing, if that is meant; name it in quantization.skip to say so"
        yield _advice(node, "float-product", f"runs in float: {reason}", fix)


def half_quantized(planned: Planned, node: Node) -> Iterator[Finding]:
    """A weight and an input of which only one is quantized: TensorRT multiplies in float."""
    if node.class_name not in classes.WEIGHTS:
        return
    weight, read = planned.is_weighted(node), planned.point(node, 0) is not None
    if weight and not read:
        yield _finding(node, "half-quantized", "its weight is quantized, its input is not: TensorRT multiplies in float", "quantize both")
    if planned.reads_directly(node) and not weight:
        yield _finding(node, "half-quantized", "its input is quantized, its weight is not: TensorRT multiplies in float", "quantize both")


def residual_add(planned: Planned, node: Node) -> Iterator[Finding]:
    """Residual Add: Q/DQ on every input but one, whose convolution takes the Add into its kernel."""
    if node.class_name != "Add" or planned.is_on_purpose(node):
        return
    fused = [branch for tensor in node.inputs if (branch := _convolution_of_branch(planned, tensor)) is not None]
    quantized = [point is not None for point in planned.points(node)]
    if not fused or sum(quantized) == len(quantized) - 1:
        return
    if all(quantized):
        message = f"every input is quantized: the Add cannot fuse with {fused[-1].name!r}"
        yield _finding(node, "residual-add", message, "use the preset selective, which quantizes the shortcut only")
    elif not any(quantized):
        message = f"no input is quantized: the Add fuses with {fused[-1].name!r}, but reads the shortcut in float"
        yield _finding(node, "residual-add", message, "use the preset selective, which quantizes the shortcut")


def concat_scales(planned: Planned, node: Node) -> Iterator[Finding]:
    """Concatenate whose quantized inputs do not share one scale."""
    points = {point.id: point for point in planned.points(node) if point is not None} if node.class_name == "Concatenate" else {}
    groups = {point.scale_group or point.id for point in points.values()}
    if len(groups) > 1:
        message = f"its inputs have quantizers of their own ({', '.join(sorted(points))}): their scales will be unequal"
        yield _finding(node, "concat-scales", message, "give them one scale_group")


def half_quantized_pool(planned: Planned, node: Node) -> Iterator[Finding]:
    """Average pooling with Q/DQ on one side only."""
    if node.class_name not in classes.AVERAGE_POOLS or planned.is_on_purpose(node):
        return
    before, after = planned.point(node, 0) is not None, planned.is_read_quantized(TensorRef(layer=node.name))
    if before != after:
        sides = ("input", "output") if before else ("output", "input")
        message = f"its {sides[0]} is quantized, its {sides[1]} is not: {node.class_name} runs in float"
        yield _finding(node, "half-quantized-pool", message, f"quantize its {sides[1]} too, or neither")


def conv_transpose(planned: Planned, node: Node) -> Iterator[Finding]:
    """A quantized transposed convolution, which TensorRT for RTX runs in float."""
    if node.class_name in classes.TRANSPOSED and planned.is_weighted(node):
        message = f"quantized {node.class_name}: TensorRT for RTX always runs it in float"
        yield _finding(node, "conv-transpose", message, "remove it from quantization.force")


def half_quantized_gate(planned: Planned, node: Node) -> Iterator[Finding]:
    """The Multiply of squeeze-and-excite with one quantized input."""
    quantized = [point is not None for point in planned.points(node)] if node.class_name == "Multiply" else []
    if any(quantized) and not all(quantized):
        message = f"input {quantized.index(False)} is not quantized, another one is: it runs in float"
        yield _finding(node, "half-quantized-gate", message, "quantize all of its inputs, or none")


def small_product(planned: Planned, node: Node) -> Iterator[Finding]:
    """An int8 product with few channels."""
    channels = channels_of(node) if planned.is_weighted(node) else None
    if channels and min(channels) < SMALL:
        message = f"{channels[0]} input and {channels[1]} output channels: below {SMALL}, FP16 is usually faster than int8"
        yield _advice(node, "small-product", message, "leave it float: `small_products: float` in the recipe's quantization block")


PLANNED_RULES: tuple[PlannedRule, ...] = (
    float_product,
    half_quantized,
    residual_add,
    concat_scales,
    half_quantized_pool,
    conv_transpose,
    half_quantized_gate,
    small_product,
)


def _finding(node: Node, rule: str, message: str, fix: str) -> Finding:
    return Finding(layer=node.name, rule=rule, message=message, fix=fix)


def _advice(node: Node, rule: str, message: str, fix: str) -> Finding:
    return Finding(layer=node.name, rule=rule, message=message, fix=fix, severity="advice")


def _convolution_of_branch(planned: Planned, tensor: TensorRef) -> Node | None:
    """The quantized convolution that ends a branch of an Add, if only what fuses stands between them and each is read once."""
    while tensor in planned.read_once:
        node = planned.graph.node(tensor.layer)
        if node.class_name in classes.CONVOLUTIONS and planned.is_weighted(node):
            return node
        if node.class_name not in classes.BEFORE_ADD:
            return None
        tensor = node.inputs[0]
    return None
