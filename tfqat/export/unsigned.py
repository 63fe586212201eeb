"""The pass that writes the int8 grid of every activation as uint8, which ONNX Runtime's CPU kernels run faster, and rightly.

The codes of a tensor that may be negative are shifted by the zero point 128; those of one that is not keep their numbers, 0 to 127, with
the zero point 0, so that kernels which add two products with int8 weights in 16 bits do not saturate: 127 * 127 * 2 < 2 ** 15.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from tfqat.export.edit import MATRIX_OPS, SETTLED, add_initializer, constant_of, is_constant, remove_unused, weight_codes
from tfqat.form import Target
from tfqat.numerics import TINY

SIGNED, UNSIGNED = 128, 0
"""The zero points of tensors that may be negative, and of those that are not."""

HIGHEST = 127
# What gives the same on codes as on values, and ONNX Runtime has for uint8.
_MOVES = ("MaxPool", "Pad", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_LIMITS = ("Relu", "Clip")


def unsigned_codes(graph: ir.Graph, non_negative: Collection[str]) -> int:
    """Write every activation's codes as uint8.

        before   Conv -> Relu -> MaxPool -> Q -> DQ          after   Conv -> Q -> Clip(0..127) -> MaxPool -> DQ

    The quantizer moves in front of what only moves values or takes the largest, and a ReLU (or ReLU6) becomes limits of the codes: both
    give the same codes, and leave a Q right behind the product, without which ONNX Runtime multiplies in float.

    Args:
        graph: Q directly before DQ; the Q of a point is named `<point>/Q`.
        non_negative: the points whose tensors hold no negative value.

    Requires: join_quantizers. Ensures: codes less their zero point are what they were. Returns: how many points were written anew.
    """
    found = [node for node in graph if node.op_type == "QuantizeLinear"]
    for node in found:
        point = str(node.name).removesuffix("/Q")
        _write(graph, node, point, UNSIGNED if point in non_negative else SIGNED)
    _plausible_scales(graph)
    _subtracted_biases(graph)
    remove_unused(graph)
    return len(found)


def _write(graph: ir.Graph, quantize: ir.Node, point: str, zero_point: int) -> None:
    zero = add_initializer(graph, f"{point}/zero_point_{zero_point}", np.array(zero_point, np.uint8))
    dequantize = next(use.node for use in quantize.outputs[0].uses())
    moves = _moves_before(quantize)
    _put_first(quantize, dequantize, moves, zero)
    if zero_point == UNSIGNED:
        _limit(graph, quantize, point)
    for node in (quantize, dequantize):
        node.replace_input_with(2, zero)
    for node in (quantize, *moves):
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.UINT8), None  # it may have another place now


def _moves_before(quantize: ir.Node) -> list[ir.Node]:
    """The nodes between what computes a tensor and its quantizer, the first one first."""
    moves: list[ir.Node] = []
    value = quantize.inputs[0]
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.op_type not in _MOVES or (node.op_type == "Pad" and not _pads_with_zeros(node)):
            break
        moves.insert(0, node)
        value = node.inputs[0]
    source = value.producer() if value is not None and len(value.uses()) == 1 else None
    return moves if source is not None and source.op_type != "DequantizeLinear" else []


def _pads_with_zeros(node: ir.Node) -> bool:
    fill = node.inputs[2] if len(node.inputs) > 2 else None
    return node.attributes.get_string("mode", "constant") == "constant" and (fill is None or not constant_of(fill).any())


def _put_first(quantize: ir.Node, dequantize: ir.Node, moves: list[ir.Node], zero: ir.Value) -> None:
    if not moves:
        return
    first, last = moves[0], moves[-1]
    source, codes = first.inputs[0], quantize.outputs[0]
    graph = quantize.graph
    assert graph is not None and source is not None
    dequantize.replace_input_with(0, last.outputs[0])
    quantize.replace_input_with(0, source)
    first.replace_input_with(0, codes)
    graph.remove(quantize)
    graph.insert_before(first, quantize)
    for node in moves:
        if node.op_type == "Pad":
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, zero)


def _limit(graph: ir.Graph, quantize: ir.Node, point: str) -> None:
    """Codes of at most 127, or of the limit that the activation before the quantizer sets, which is left out then."""
    highest = HIGHEST
    value = quantize.inputs[0]
    activation = value.producer() if value is not None else None
    if activation is not None and value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        bounds = _bounds(activation)
        if bounds is not None:
            scale = constant_of(quantize.inputs[1]).astype(np.float32)
            highest = int(np.clip(np.rint(np.float32(bounds) / scale), 0, HIGHEST))
            quantize.replace_input_with(0, activation.inputs[0])
    upper = add_initializer(graph, f"{point}/highest", np.array(highest, np.uint8))
    limit = ir.node("Clip", [quantize.outputs[0], None, upper], name=f"{point}/limit")
    limit.meta[SETTLED] = True
    limit.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
    convenience.replace_all_uses_with(quantize.outputs[0], limit.outputs[0])
    limit.replace_input_with(0, quantize.outputs[0])
    graph.insert_after(quantize, limit)


def _bounds(node: ir.Node) -> float | None:
    """The upper limit of an activation whose lower one is 0; None for any other node."""
    if node.op_type not in _LIMITS:
        return None
    if node.op_type == "Relu":
        return float("inf")
    lower, upper = (node.inputs[index] if index < len(node.inputs) else None for index in (1, 2))
    constants = [convenience.get_const_tensor(value) if value is not None else None for value in (lower, upper)]
    if constants[0] is None or constants[0].numpy().any() or (upper is not None and (constants[1] is None or constants[1].size != 1)):
        return None
    return float("inf") if constants[1] is None else float(constants[1].numpy())


def _plausible_scales(graph: ir.Graph) -> None:
    """Give a channel whose codes are all 0 a scale like those of the others: it multiplies nothing, and 32-bit biases are in its unit."""
    for node in _weight_dequantizers(graph):
        codes, scale = constant_of(node.inputs[0]), constant_of(node.inputs[1])
        if scale.ndim == 1 and (scale <= TINY).any():
            axis = node.attributes.get_int("axis", 1)
            empty = (scale <= TINY) & ~codes.any(axis=tuple(other for other in range(codes.ndim) if other != axis))
            name = str(node.inputs[1].name)  # type: ignore[union-attr]
            del graph.initializers[name]
            node.replace_input_with(
                1, add_initializer(graph, name, np.where(empty, scale_of_zeros(scale, empty, "onnxruntime"), scale).astype(np.float32))
            )


def _subtracted_biases(graph: ir.Graph) -> None:
    """Subtract the negative bias from a matrix product, which is the same.

        before   MatMul(DQ, DQ) -> Add(bias)          after   MatMul(DQ, DQ) -> Sub(-bias)

    ONNX Runtime (1.32) makes a Gemm of product and Add before it looks for Q/DQ, and runs that in float.
    """
    for add in [node for node in graph if node.op_type == "Add"]:
        position = next((index for index, value in enumerate(add.inputs) if _is_quantized_product(value)), None)
        if position is None or not is_constant(bias := add.inputs[1 - position]):
            continue
        name = f"{add.name}/negative_bias"
        negative = add_initializer(graph, name, -constant_of(bias))
        node = ir.node("Sub", [add.inputs[position], negative], name=add.name)
        node.outputs[0].type, node.outputs[0].shape, made = add.outputs[0].type, add.outputs[0].shape, str(add.outputs[0].name)
        convenience.replace_all_uses_with(add.outputs[0], node.outputs[0], replace_graph_outputs=True)
        graph.insert_before(add, node)
        graph.remove(add, safe=True)
        node.outputs[0].name = made


def _is_quantized_product(value: ir.Value | None) -> bool:
    product = value.producer() if value is not None and len(value.uses()) == 1 else None
    makers = [one.producer() for one in product.inputs if one is not None] if product is not None and product.op_type == "MatMul" else []
    return bool(makers) and all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def scale_of_zeros(scale: np.ndarray, empty: np.ndarray, target: Target) -> np.float32:
    """The scale of the channels that hold nothing but zeros: the smallest there is; for ONNX Runtime the median of the others."""
    if target == "tensorrt":
        return np.float32(TINY)
    return np.float32(np.median(scale[~empty]) if not empty.all() else 1 / HIGHEST)


def _weight_dequantizers(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        if (
            node.op_type == "DequantizeLinear"
            and is_constant(node.inputs[0])
            and any(use.node.op_type in MATRIX_OPS for use in node.outputs[0].uses())
        ):
            yield node


def saturating_products(graph: ir.Graph) -> dict[str, int]:
    """The products whose codes can make a sum of two products, uint8 times int8, that 16 bits do not hold: name -> the largest sum."""
    found = {}
    for dequantize in (node for node in graph if node.op_type == "DequantizeLinear"):
        codes = weight_codes(dequantize)
        if codes is None:
            continue
        largest = 2 * int(np.abs(codes.astype(np.int32)).max(initial=0))
        for product in _products(dequantize.outputs[0]):
            source = _dequantizer(product.inputs[0])
            if source is None or len(source.inputs) < 3:
                continue
            sums = largest * (HIGHEST if constant_of(source.inputs[2]) == UNSIGNED else 255)
            if sums >= 2**15:
                found[str(product.name)] = sums
    return found


def _products(value: ir.Value) -> Iterator[ir.Node]:
    """The products that read a weight, as it is or in another float type."""
    for use in value.uses():
        if use.node.op_type == "Cast":
            yield from _products(use.node.outputs[0])
        elif use.node.op_type in MATRIX_OPS:
            yield use.node


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in (*_MOVES, "Cast"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None
