"""Rules of layers that average, pick, move or resize values."""

from __future__ import annotations

from collections.abc import Iterator

from tfqat.models.graph import Node, TensorRef
from tfqat.placement.rules import classes
from tfqat.placement.rules.decision import Decision, KeepFloat, Quantize, View


def average_pool(view: View, node: Node) -> Decision | None:
    """Average pooling runs in INT8 only with Q/DQ before and after it, so it is quantized if what follows is.

    before   x -> AvgPool -> Q -> DQ -> Dense          after   x -> Q -> DQ -> AvgPool -> Q -> DQ -> Dense
    """
    return _between_quantizers(view, node, "average pooling") if node.class_name in classes.AVERAGE_POOLS else None


def interpolation(view: View, node: Node) -> Decision | None:
    """Resizing that mixes values (bilinear ...): in float, in the kernel of what produces its input; Q/DQ come after it.

    TensorRT for RTX 1.7.1 reads and writes float there whether or not the input is quantized.
    """
    if node.class_name not in classes.UPSAMPLINGS or classes.commutes(node):
        return None
    return KeepFloat(reason=f"{node.config.get('interpolation')} resizing computes in float; Q/DQ come after it")


def max_pool(view: View, node: Node) -> Decision | None:
    """Max pooling commutes with quantization: TensorRT moves it behind the Q of the layer that reads it."""
    if node.class_name not in classes.MAX_POOLS:
        return None
    if view.is_read_quantized(TensorRef(layer=node.name)):
        return KeepFloat(reason="max pooling commutes with Q/DQ: it runs in INT8 by the quantizer behind it")
    return KeepFloat(reason="max pooling whose output is not quantized everywhere: in the type of its input")


def identity(view: View, node: Node) -> Decision | None:
    """Layers that leave values as they are at inference need no quantizer of their own."""
    if node.class_name in classes.INFERENCE_IDENTITIES or (node.class_name == "Activation" and classes.activation_name(node) == "linear"):
        return KeepFloat(reason="leaves the values as they are at inference")
    return None


def movement(view: View, node: Node) -> Decision | None:
    """Padding, reshaping, nearest resizing: they move values and so commute with quantization."""
    if node.class_name in classes.PADDINGS:
        return KeepFloat(reason="padding with zeros commutes with Q/DQ: it becomes the padding of the convolution behind it")
    return KeepFloat(reason="moves values only: commutes with Q/DQ") if classes.commutes(node) else None


def _between_quantizers(view: View, node: Node, what: str) -> Decision:
    if view.is_read_quantized(TensorRef(layer=node.name)):
        follower = next(_readers_through_movement(view, node))
        return Quantize(inputs=(0,), reason=f"{what} before {follower.name}, which reads INT8")
    return KeepFloat(reason=f"{what} whose output is not quantized everywhere: INT8 would only add conversions")


def _readers_through_movement(view: View, node: Node) -> Iterator[Node]:
    for consumer, _ in view.graph.consumers(TensorRef(layer=node.name)):
        if classes.commutes(consumer):
            yield from _readers_through_movement(view, consumer)
        else:
            yield consumer
