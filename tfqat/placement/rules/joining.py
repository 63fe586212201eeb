"""Rules of layers that join several tensors: residual Add, Concatenate, Multiply."""

from __future__ import annotations

from tfqat.models.graph import Node, TensorRef
from tfqat.placement.rules import classes
from tfqat.placement.rules.decision import Decision, KeepFloat, Quantize, View


def residual_add(view: View, node: Node) -> Decision | None:
    """Residual Add: Q/DQ on all inputs but one, so that the branch of that one fuses convolution and Add into one kernel.

    before   shortcut, conv -> bn -> Add          after   shortcut -> Q -> DQ, conv -> bn -> Add
    """
    if node.class_name != "Add" or len(node.inputs) < 2:
        return None
    branches = [_convolution_of_branch(view, tensor) for tensor in node.inputs]
    fused = _fused_input(view, node, branches)
    if fused is None:
        return KeepFloat(reason="Add without a quantized convolution right before it: nothing to fuse with")
    convolution = branches[fused]
    others = tuple(index for index in range(len(node.inputs)) if index != fused)
    kind = "residual shortcut" if len(others) == 1 else "residual shortcuts"
    return Quantize(inputs=others, reason=f"{kind}: Add fuses with {convolution.name if convolution else 'its other input'}")


def every_add(view: View, node: Node) -> Decision | None:
    """The naive treatment of Add: Q/DQ on every input."""
    return Quantize(inputs=tuple(range(len(node.inputs))), reason="Add: every input in INT8") if node.class_name == "Add" else None


def concatenate(view: View, node: Node) -> Decision | None:
    """Concatenate whose result is read in INT8: Q/DQ on all inputs with one scale, so that the codes are only put side by side.

    before   a, b -> Concat -> Q -> DQ -> Conv          after   a -> Q -> DQ, b -> Q -> DQ -> Concat -> Q -> DQ -> Conv, one scale
    """
    if node.class_name != "Concatenate":
        return None
    if view.is_read_quantized(TensorRef(layer=node.name)):
        return Quantize(
            inputs=tuple(range(len(node.inputs))), reason="concatenation that is read in INT8: one scale for all", one_scale=True
        )
    return KeepFloat(reason="concatenation whose result is not read in INT8 everywhere: INT8 would only add conversions")


def multiply(view: View, node: Node) -> Decision | None:
    """Multiply by a gate, as in squeeze-and-excite: Q/DQ on both inputs; an activation that is written out (x * sigmoid(x)) has none.

    before   x, gate -> Multiply -> Conv          after   x -> Q -> DQ, gate -> Q -> DQ -> Multiply -> Q -> DQ -> Conv
    """
    if node.class_name != "Multiply" or len(node.inputs) != 2:
        return None
    source = self_gated(view, node)
    if source is not None:
        return KeepFloat(reason=f"activation written out as a product, on {source.layer}: Q/DQ come after it")
    if _is_gate(view, node) or view.is_read_quantized(TensorRef(layer=node.name)):
        return Quantize(inputs=(0, 1), reason="product of two tensors, as in squeeze-and-excite: both in INT8")
    return KeepFloat(reason="product whose result is not read in INT8 everywhere: INT8 would only add conversions")


def self_gated(view: View, node: Node) -> TensorRef | None:
    """The tensor x of `x * f(x)` with f elementwise; None if the two inputs do not come from one tensor so."""
    left, right = (_pointwise_origins(view, tensor) for tensor in node.inputs)
    common = [tensor for tensor in left if tensor in right]
    return common[0] if common else None


def _pointwise_origins(view: View, tensor: TensorRef) -> list[TensorRef]:
    """The tensor, and those that it is computed from elementwise."""
    origins = [tensor]
    while True:
        node = view.graph.producer(origins[-1])
        if node.class_name not in classes.POINTWISE or classes.activation_name(node) == "softmax":
            return origins
        origins.append(node.inputs[0])


def _is_gate(view: View, node: Node) -> bool:
    """Whether one input has size 1 along the axes between batch and channels, and the other has not: one factor per channel."""
    sizes = [view.graph.shape(tensor)[1:-1] for tensor in node.inputs]
    return any(sizes) and sum(all(size == 1 for size in axes) for axes in sizes) == 1


def _convolution_of_branch(view: View, tensor: TensorRef) -> Node | None:
    """The quantized convolution that ends the branch, if only what fuses stands between it and the Add, each read once."""
    while len(view.graph.consumers(tensor)) == 1 and tensor not in view.graph.outputs:
        node = view.graph.producer(tensor)
        if node.class_name in classes.CONVOLUTIONS | set(view.custom) and view.is_int8_weighted(node):
            return node
        if node.class_name not in classes.BEFORE_ADD:
            return None
        tensor = node.inputs[0]
    return None


def _fused_input(view: View, node: Node, branches: list[Node | None]) -> int | None:
    """Which input of an Add fuses: of those that end in a convolution the one with most layers with weights, of equals the last."""
    depths = {index: _weighted_depth(view, node.inputs[index]) for index, branch in enumerate(branches) if branch}
    return max(depths, key=lambda index: (depths[index], index)) if depths else None


def _weighted_depth(view: View, tensor: TensorRef) -> int:
    """How many layers with weights follow each other, back from `tensor` along first inputs, before a tensor that several layers read."""
    depth = 0
    while len(view.graph.consumers(tensor)) == 1:
        node = view.graph.producer(tensor)
        depth += view.weight(node) is not None
        if not node.inputs:
            break
        tensor = node.inputs[0]
    return depth
