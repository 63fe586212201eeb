"""TensorRT's rules of where Q/DQ go, one rule per pattern; the first rule that matches a layer decides it.

A rule looks at one layer and answers with a `Quantize` (which inputs and which weight), a `KeepFloat` with the reason, or None when
its pattern does not match. Source of the rules: NVIDIA TensorRT developer guide, "Working with Quantized Types", section
"Q/DQ Layer-Placement Recommendations".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.recipe.schema import Preset


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Where a layer class keeps its weight, and the axes of that weight that index output channels."""

    attribute: str
    channel_axes: tuple[int, ...]


WEIGHTS = {
    "Conv2D": Weight(attribute="kernel", channel_axes=(3,)),
    "DepthwiseConv2D": Weight(attribute="depthwise_kernel", channel_axes=(2, 3)),
    "Dense": Weight(attribute="kernel", channel_axes=(1,)),
}
CONVOLUTIONS = {"Conv2D", "DepthwiseConv2D"}
AVERAGE_POOLS = {"AveragePooling2D", "GlobalAveragePooling2D"}
MAX_POOLS = {"MaxPooling2D", "GlobalMaxPooling2D"}
ACTIVATIONS = {"ReLU", "Activation", "LeakyReLU", "PReLU", "Softmax", "ELU", "ThresholdedReLU"}
# These leave the values as they are at inference, so a tensor before and after them is the same to a quantizer.
INFERENCE_IDENTITIES = {
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout"),
    *("GaussianDropout", "GaussianNoise", "ActivityRegularization"),
}
IDENTITIES = {*INFERENCE_IDENTITIES, "Flatten", "Reshape"}
# What may stand between a convolution and the Add that it fuses with.
BETWEEN_CONVOLUTION_AND_ADD = {"BatchNormalization", "Dropout", "SpatialDropout2D", "ReLU", "Activation", "LeakyReLU"}


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantize the inputs of the layer that are listed, and its weight if it has one."""

    inputs: tuple[int, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class KeepFloat:
    """Add no Q/DQ for this layer."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class View:
    """What a rule may look at: the graph, which layers the user keeps out (layer name -> reason), and the preset."""

    graph: ModelGraph
    skipped: dict[str, str]
    preset: Preset = "selective"

    def is_int8_weighted(self, node: Node) -> bool:
        """Whether the layer has a weight that is quantized."""
        return node.class_name in WEIGHTS and node.name not in self.skipped

    def quantized_inputs(self, node: Node) -> tuple[int, ...]:
        """Which inputs the layer reads quantized."""
        decision = decide(self, node)
        return decision.inputs if isinstance(decision, Quantize) else ()


Decision = Quantize | KeepFloat
Rule = Callable[[View, Node], Decision | None]


def skipped_layer(view: View, node: Node) -> Decision | None:
    """A layer that the user keeps out stays float, whatever it is."""
    reason = view.skipped.get(node.name)
    return KeepFloat(reason=reason) if reason else None


def weighted_layer(view: View, node: Node) -> Decision | None:
    """Convolution, depthwise convolution, Dense: Q/DQ on the input and on the weight, none on the output.

    before   x, w -> Conv -> y          after   x -> Q -> DQ, w -> Q -> DQ -> Conv -> y
    """
    if node.class_name not in WEIGHTS:
        return None
    return Quantize(inputs=(0,), reason=f"input of {node.class_name}")


def residual_add(view: View, node: Node) -> Decision | None:
    """Residual Add: Q/DQ on the shortcut only, so that the other branch fuses convolution and Add into one kernel.

    before   shortcut, conv -> bn -> Add          after   shortcut -> Q -> DQ, conv -> bn -> Add
    """
    if node.class_name != "Add" or len(node.inputs) != 2:
        return None
    branches = [_convolution_of_branch(view, tensor) for tensor in node.inputs]
    if branches == [None, None]:
        return KeepFloat(reason="Add without a quantized convolution right before it: nothing to fuse with")
    shortcut = _shortcut_index(view, node, branches)
    fused = branches[1 - shortcut]
    return Quantize(inputs=(shortcut,), reason=f"residual shortcut: Add fuses with {fused.name if fused else 'its other input'}")


def every_add(view: View, node: Node) -> Decision | None:
    """The naive treatment of Add: Q/DQ on every input."""
    return Quantize(inputs=tuple(range(len(node.inputs))), reason="Add: every input in INT8") if node.class_name == "Add" else None


def average_pool(view: View, node: Node) -> Decision | None:
    """Average pooling runs in INT8 only with Q/DQ before and after it, so it is quantized if what follows is.

    before   x -> AvgPool -> Q -> DQ -> Dense          after   x -> Q -> DQ -> AvgPool -> Q -> DQ -> Dense
    """
    if node.class_name not in AVERAGE_POOLS:
        return None
    if _is_read_quantized(view, TensorRef(layer=node.name)):
        follower = next(_readers_through_identities(view, node))
        return Quantize(inputs=(0,), reason=f"average pooling before {follower.name}, which reads INT8")
    return KeepFloat(reason="average pooling whose output is not quantized everywhere: INT8 would only add conversions")


def max_pool(view: View, node: Node) -> Decision | None:
    """Max pooling commutes with quantization: TensorRT moves it behind the Q of the layer that reads it."""
    if node.class_name not in MAX_POOLS:
        return None
    if _is_read_quantized(view, TensorRef(layer=node.name)):
        return KeepFloat(reason="max pooling commutes with Q/DQ: it runs in INT8 by the quantizer behind it")
    return KeepFloat(reason="max pooling whose output is not quantized everywhere: in the type of its input")


def batch_norm(view: View, node: Node) -> Decision | None:
    """BatchNorm right after a quantized convolution is folded into its scales, unless the values between them are used."""
    if node.class_name != "BatchNormalization":
        return None
    source, obstacle = view.graph.node(node.inputs[0].layer), _obstacle_to_folding(view, node)
    if obstacle:
        return KeepFloat(reason=f"BatchNorm after {source.name}, {obstacle}: stays float")
    return KeepFloat(reason=f"folded into the scales of {source.name} at export")


def activation(view: View, node: Node) -> Decision | None:
    """An activation fuses with the convolution before it: Q/DQ come after it, not before."""
    if node.class_name not in ACTIVATIONS:
        return None
    if node.class_name == "Softmax" or node.config.get("activation") == "softmax":
        return KeepFloat(reason="softmax: computes in float")
    source = view.graph.node(node.inputs[0].layer)
    if source.class_name == "BatchNormalization" and not _obstacle_to_folding(view, source):
        source = view.graph.node(source.inputs[0].layer)
    if view.is_int8_weighted(source) or (source.class_name == "Add" and view.quantized_inputs(source)):
        return KeepFloat(reason=f"fuses with {source.name}; Q/DQ come after the activation")
    return KeepFloat(reason=f"activation after {source.name}, which is not quantized: computes in float")


def identity(view: View, node: Node) -> Decision | None:
    """Layers that leave values as they are need no quantizer of their own."""
    return KeepFloat(reason="leaves the values as they are at inference") if node.class_name in IDENTITIES else None


def anything_else(view: View, node: Node) -> Decision | None:
    """No rule: the layer computes in float."""
    return KeepFloat(reason=f"{node.class_name}: no rule for it, computes in float")


SELECTIVE: tuple[Rule, ...] = (
    skipped_layer,
    weighted_layer,
    residual_add,
    average_pool,
    max_pool,
    batch_norm,
    activation,
    identity,
    anything_else,
)
NAIVE: tuple[Rule, ...] = tuple(every_add if rule is residual_add else rule for rule in SELECTIVE)
RULES: dict[Preset, tuple[Rule, ...]] = {"selective": SELECTIVE, "naive": NAIVE, "hybrid": NAIVE}


def decide(view: View, node: Node) -> Decision:
    """The answer of the preset's first rule that matches; the last rule matches everything."""
    return next(decision for rule in RULES[view.preset] if (decision := rule(view, node)) is not None)


def _convolution_of_branch(view: View, tensor: TensorRef) -> Node | None:
    """The quantized layer that ends the branch, if only BN, activation or dropout stand between it and the Add, each read once."""
    while len(view.graph.consumers(tensor)) == 1:
        node = view.graph.node(tensor.layer)
        if view.is_int8_weighted(node):
            return node
        if node.class_name not in BETWEEN_CONVOLUTION_AND_ADD:
            return None
        tensor = node.inputs[0]
    return None


def _shortcut_index(view: View, node: Node, branches: list[Node | None]) -> int:
    """Which input of an Add is the shortcut: the one that ends in no convolution; of two that do, the one with fewer such layers."""
    if None in branches:
        return branches.index(None)
    depths = [_weighted_depth(view, tensor) for tensor in node.inputs]
    return depths.index(min(depths))


def _weighted_depth(view: View, tensor: TensorRef) -> int:
    """How many layers with weights follow each other, back from `tensor` along first inputs, before a tensor that several layers read."""
    depth = 0
    while len(view.graph.consumers(tensor)) == 1:
        node = view.graph.node(tensor.layer)
        depth += node.class_name in WEIGHTS
        if not node.inputs:
            break
        tensor = node.inputs[0]
    return depth


def _readers_through_identities(view: View, node: Node) -> Iterator[Node]:
    for consumer, _ in view.graph.consumers(TensorRef(layer=node.name)):
        if consumer.class_name in IDENTITIES:
            yield from _readers_through_identities(view, consumer)
        else:
            yield consumer


def _is_read_quantized(view: View, tensor: TensorRef) -> bool:
    """Whether everything that reads the tensor, through layers that commute with Q/DQ, reads it quantized."""
    consumers = view.graph.consumers(tensor)
    return bool(consumers) and tensor not in view.graph.outputs and all(_reads_quantized(view, node, index) for node, index in consumers)


def _reads_quantized(view: View, node: Node, index: int) -> bool:
    if node.class_name in IDENTITIES | MAX_POOLS:
        return _is_read_quantized(view, TensorRef(layer=node.name))
    return index in view.quantized_inputs(node)


def _obstacle_to_folding(view: View, batch_norm: Node) -> str | None:
    """What keeps a BatchNorm out of the scales of the layer before it; None if nothing does."""
    between = batch_norm.inputs[0]
    source = view.graph.node(between.layer)
    if not view.is_int8_weighted(source):
        return "which is not quantized"
    if source.class_name not in CONVOLUTIONS or source.config.get("activation", "linear") != "linear":
        return "which is not a convolution without activation"
    if len(view.graph.consumers(between)) > 1 or between in view.graph.outputs:
        return "whose output is read elsewhere too"
    return None
