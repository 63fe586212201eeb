"""Rules of what stands behind a product: BatchNorm and activations, which fuse with it, and normalizations, which do not."""

from __future__ import annotations

from tfqat.models.graph import Node, TensorRef
from tfqat.placement.rules import classes
from tfqat.placement.rules.decision import Decision, KeepFloat, View

# What TensorRT computes in the epilogue of a convolution or in one pointwise kernel behind it.
FUSED = frozenset(
    {
        *("relu", "relu6", "leakyrelu", "leaky_relu", "prelu", "sigmoid", "hard_sigmoid", "hard_sigmoid_relu6", "tanh", "elu"),
        *("swish", "silu", "hard_swish", "hard_silu", "gelu", "gelu_tanh", "softplus", "softsign", "selu", "mish", "exponential"),
    }
)


def batch_norm(view: View, node: Node) -> Decision | None:
    """BatchNorm right after a quantized product is folded into its scales, unless the values between them are used."""
    if node.class_name != "BatchNormalization":
        return None
    source, obstacle = view.graph.producer(node.inputs[0]), obstacle_to_folding(view, node)
    if obstacle:
        return KeepFloat(reason=f"BatchNorm after {source.name}, {obstacle}: stays float")
    return KeepFloat(reason=f"folded into the scales of {source.name} at export")


def activation(view: View, node: Node) -> Decision | None:
    """An activation fuses with the product or the Add before it: Q/DQ come after it, not before.

    before   Conv -> BN -> ReLU -> Conv          after   Conv -> BN -> ReLU -> Q -> DQ -> Conv
    """
    if node.class_name not in classes.POINTWISE:
        return None
    name = classes.activation_name(node)
    if name == "softmax":
        return KeepFloat(reason="softmax: computes in float")
    source = source_of_activation(view, node)
    if view.is_int8_weighted(source) or (source.class_name == "Add" and view.quantized_inputs(source)):
        if node.class_name in classes.ACTIVATIONS and name not in FUSED:
            return KeepFloat(reason=f"{name} behind {source.name}: a float kernel of its own; Q/DQ come after it")
        return KeepFloat(reason=f"fuses with {source.name}; Q/DQ come after the activation")
    return KeepFloat(reason=f"activation after {source.name}, which is not quantized: computes in float")


def normalization(view: View, node: Node) -> Decision | None:
    """LayerNormalization and the like compute sums of squares: in float, from float inputs."""
    if node.class_name not in classes.NORMALIZATIONS:
        return None
    return KeepFloat(reason=f"{node.class_name}: computes in float, and its input is left float")


def layer_scale(view: View, node: Node) -> Decision | None:
    """LayerScale multiplies each channel by a constant: a pointwise operation that fuses with the product before it."""
    return KeepFloat(reason="a factor per channel: fuses with what is before it") if node.class_name == "LayerScale" else None


def anything_else(view: View, node: Node) -> Decision | None:
    """No rule: the layer computes in float."""
    if node.class_name in ("TFOpLambda", "SlicingOpLambda", "KerasOperation"):
        function = node.config.get("function") or node.config.get("operation") or node.class_name
        return KeepFloat(reason=f"operation {function}: no rule for it, computes in float")
    if node.class_name == "Lambda":
        return KeepFloat(reason="Lambda: Python code that no rule can look into, computes in float")
    return KeepFloat(reason=f"{node.class_name}: no rule for it, computes in float")


def obstacle_to_folding(view: View, batch_norm: Node) -> str | None:
    """What keeps a BatchNorm out of the scales of the layer before it; None if nothing does."""
    source = view.graph.producer(batch_norm.inputs[0])
    if not view.is_int8_weighted(source):
        return "which is not quantized"
    if source.class_name not in classes.WEIGHTS or classes.activation_name(source) != "linear":
        return "which is not a convolution without activation"
    if batch_norm.trains:
        return "which is called with training=True"
    if not _normalizes_channels(view, batch_norm):
        return "whose channels are on another axis than it normalizes"
    for call in view.graph.calls(source.layer):
        output = TensorRef(layer=call.name)
        readers = [node.layer for node, _ in view.graph.consumers(output)]
        if readers != [batch_norm.layer] or output in view.graph.outputs:
            return "whose output is read elsewhere too"
    if len(view.graph.calls(batch_norm.layer)) != len(view.graph.calls(source.layer)):
        return "which is not the only layer that it normalizes"
    return None


def _normalizes_channels(view: View, batch_norm: Node) -> bool:
    axis = batch_norm.config.get("axis", -1)
    axes = [axis] if isinstance(axis, int) else list(axis)
    return axes in ([-1], [len(view.graph.shape(batch_norm.inputs[0])) - 1])


def source_of_activation(view: View, node: Node) -> Node:
    """What an activation acts on, through the other steps of one that is written out, and through a BatchNorm that is folded."""
    return source_of(view, node.inputs[0])


def source_of(view: View, tensor: TensorRef) -> Node:
    """What makes a tensor, before activations, and before a BatchNorm that is folded."""
    source = view.graph.producer(tensor)
    while source.class_name in classes.POINTWISE:
        source = view.graph.producer(source.inputs[0])
    if source.class_name == "BatchNormalization" and not obstacle_to_folding(view, source):
        source = view.graph.producer(source.inputs[0])
    return source
