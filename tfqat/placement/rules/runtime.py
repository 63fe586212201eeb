"""Rules for ONNX Runtime's CPU kernels, where they want other Q/DQ than TensorRT: it has INT8 kernels for DQ -> operation -> Q alone.

What it fuses between a product and the Q is nothing (a ReLU or ReLU6 becomes the Q's own limits at export). Checked on ONNX Runtime 1.32.
"""

from __future__ import annotations

from tfqat.models.graph import Node
from tfqat.placement.rules import classes, elementwise, joining
from tfqat.placement.rules.decision import Decision, Quantize, Rule, View

_LIMITS = frozenset({"relu", "relu6"})


def residual_add(view: View, node: Node) -> Decision | None:
    """Residual Add: Q/DQ on every input, so that the convolution before it ends in a Q, and the Add runs in INT8.

    before   shortcut, conv -> Add          after   shortcut -> Q -> DQ, conv -> Q -> DQ -> Add
    """
    decision = joining.residual_add(view, node)
    if not isinstance(decision, Quantize):
        return decision
    return Quantize(inputs=tuple(range(len(node.inputs))), reason="residual Add: every input in INT8, as ONNX Runtime adds")


def activation(view: View, node: Node) -> Decision | None:
    """An activation other than ReLU and ReLU6 behind a quantized product: Q/DQ before it too, without which the product runs in float.

    before   Conv -> HardSwish -> Conv          after   Conv -> Q -> DQ -> HardSwish -> Q -> DQ -> Conv
    """
    decision = elementwise.activation(view, node)
    if node.class_name not in classes.ACTIVATIONS or classes.activation_name(node) in _LIMITS | {"linear"}:
        return decision
    if not view.is_int8_weighted(elementwise.source_of_activation(view, node)):
        return decision
    return Quantize(inputs=(0,), reason="output of a product: ONNX Runtime multiplies in INT8 only if that is quantized")


def multiply(view: View, node: Node) -> Decision | None:
    """An activation that is written out as `x * f(x)`: its x is quantized, as for any other activation."""
    decision = joining.multiply(view, node)
    gated = joining.self_gated(view, node) if node.class_name == "Multiply" and len(node.inputs) == 2 else None
    if gated is None or not view.is_int8_weighted(elementwise.source_of(view, gated)):
        return decision
    inputs = tuple(index for index, tensor in enumerate(node.inputs) if tensor == gated)
    return Quantize(inputs=inputs, reason="output of a product, read by its activation: quantized once for both") if inputs else decision


REPLACED: dict[Rule, Rule] = {joining.residual_add: residual_add, elementwise.activation: activation, joining.multiply: multiply}
"""TensorRT's rule -> the one to take in its place."""
