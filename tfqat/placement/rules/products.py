"""Rules of what multiplies: convolutions, Dense, and products of two activations."""

from __future__ import annotations

from tfqat.models.graph import Node
from tfqat.placement.rules import classes
from tfqat.placement.rules.decision import Decision, KeepFloat, Quantize, View

SMALL = 16
"""Below this many input or output channels a product is usually faster in FP16 than in INT8 (TensorRT, best practices for INT8)."""


def weighted_layer(view: View, node: Node) -> Decision | None:
    """Convolution, depthwise convolution, Dense: Q/DQ on the input and on the weight, none on the output.

    before   x, w -> Conv -> y          after   x -> Q -> DQ, w -> Q -> DQ -> Conv -> y
    """
    weight = view.weight(node)
    if weight is None:
        return None
    if len(node.inputs) != 1:
        return KeepFloat(
            reason=f"{node.class_name} that reads {len(node.inputs)} tensors: only layers with one input have a quantized weight"
        )
    return Quantize(inputs=(0,), reason=f"input of {node.class_name}", weight=weight)


def small_product(view: View, node: Node) -> Decision | None:
    """A product with few input or output channels, where the user wants those in float: its INT8 kernel pads the channels."""
    if not view.small_products_float or node.layer in view.forced or view.weight(node) is None:
        return None
    channels = channels_of(node)
    if channels and min(channels) < SMALL:
        return KeepFloat(reason=f"small product: {channels[0]} input and {channels[1]} output channels, fewer than {SMALL}")
    return None


def channels_of(node: Node) -> tuple[int, int] | None:
    """Input and output channels of a layer with a weight; those of one group, as that is what its kernel multiplies; None if unknown."""
    weight = classes.WEIGHTS.get(node.class_name)
    shape = node.weights.get(weight.attribute) if weight else None
    if weight is None or shape is None:
        return None
    if weight.attribute == "depthwise_kernel":
        return shape[-2], shape[-2] * shape[-1]
    return shape[-2], shape[-1]


def transposed_convolution(view: View, node: Node) -> Decision | None:
    """Transposed convolution: float, because TensorRT for RTX runs it in float whatever Q/DQ say; with one scale if it is forced."""
    if node.class_name not in classes.TRANSPOSED:
        return None
    if node.layer in view.forced:
        weight = classes.TRANSPOSED[node.class_name]
        return Quantize(inputs=(0,), reason=f"input of {node.class_name}, forced by the recipe", weight=weight)
    return KeepFloat(
        reason=f"{node.class_name}: TensorRT for RTX runs it in float; with quantization.force it gets Q/DQ, weights per tensor"
    )


def product_of_activations(view: View, node: Node) -> Decision | None:
    """MatMul of two activations, as in attention: Q/DQ on both.

    before   q, k -> MatMul          after   q -> Q -> DQ, k -> Q -> DQ -> MatMul
    """
    if node.class_name not in classes.PRODUCTS:
        return None
    return Quantize(inputs=tuple(range(len(node.inputs))), reason="product of two activations: both in INT8")


def unsupported_product(view: View, node: Node) -> Decision | None:
    """Layers that multiply in ways that no rule brings into an INT8 form."""
    reasons = {
        "EinsumDense": "its equation is no plain matrix product over the last axes",
        "MultiHeadAttention": "its options keep it from being split into projections and products",
        "Dot": "no plain batch matrix product",
        "SeparableConv1D": "not split, see tfqat.load_model",
        "SeparableConv2D": "not split, see tfqat.load_model",
        "LocallyConnected1D": "a weight of its own at every position",
        "LocallyConnected2D": "a weight of its own at every position",
    }
    reason = reasons.get(node.class_name)
    return KeepFloat(reason=f"{node.class_name}: {reason}; computes in float") if reason else None


def embedding(view: View, node: Node) -> Decision | None:
    """Embedding: a table look-up, which multiplies nothing."""
    return KeepFloat(reason="a table look-up: its weights stay float") if node.class_name == "Embedding" else None
