"""Lint rules of products (Conv, Gemm, MatMul, ConvTranspose): what keeps one of them in float, and which are better left there.

Sources: NVIDIA TensorRT developer guide, "Working with Quantized Types"; and one graph for each
rule, built with TensorRT for RTX 1.7.1, whose kernel list says what ran in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from tfqat.placement.lint_graph import (
    PER_CHANNEL_OPSET,
    PRODUCTS,
    Finding,
    QdqGraph,
    array,
    finding_at,
    int_attribute,
    label,
    maker_of,
    operand,
    weight_constant,
)

NodeRule = Callable[[QdqGraph, ir.Node], Iterator[Finding]]

SMALL = 16
_WEIGHT_ONLY = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT4E2M1)


def weight_axis(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """A weight scale along another axis than the output channels: TensorRT silently multiplies in float.

    before   DQ(w [out, in, kh, kw], scale [in], axis 1) -> Conv          after   DQ(w, scale [out], axis 0) -> Conv
    """
    found = graph.weight(node) if node.op_type in PRODUCTS and graph.opset >= PER_CHANNEL_OPSET else None
    scale = array(found[0].inputs[1]) if found is not None else None
    if found is None or scale is None or scale.ndim != 1 or scale.size == 1 or int_attribute(found[0], "block_size", 0):
        return
    dequantize, between = found
    rank = _rank(dequantize)
    if rank is None or any(step.op_type not in ("Transpose", "Identity", "Cast") for step in between):
        return
    axis = int_attribute(dequantize, "axis", 1) % rank
    for step in between:
        axis = _axis_behind(step, axis, rank)
    wanted = 0 if node.op_type == "Conv" or int_attribute(node, "transB", 0) else rank - 1
    if axis != wanted:
        yield Finding(
            layer=label(node),
            rule="weight-axis",
            message=f"{scale.size} weight scales along axis {axis} of {node.op_type}'s weight: TensorRT silently runs it in float",
            fix=f"one scale per output channel, along axis {wanted}",
        )


def weight_path(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """Something between a weight's DequantizeLinear and its product: TensorRT falls back to float, silently.

    before   w -> DQ -> Reshape -> Conv          after   Reshape(w) as the constant -> DQ -> Conv

    TensorRT for RTX 1.7.1 looks through a Transpose (exporters write one before MatMul: nothing is said; before Conv: advice) and through a
    Reshape that moves axes of size 1 only; a Reshape that drops axes makes the product float.
    """
    found = graph.weight(node) if node.op_type in PRODUCTS else None
    between = [step for step in found[1] if step.op_type not in ("Identity", "Cast", "Dropout")] if found is not None else []
    if found is None or not between:
        return
    only_transposed = all(step.op_type == "Transpose" for step in between)
    if only_transposed and node.op_type != "Conv":
        return
    steps = ", ".join(f"{step.op_type} {label(step)!r}" for step in between)
    effect = "TensorRT for RTX looks through it, others may run float" if only_transposed else "TensorRT may silently run it in float"
    yield Finding(
        layer=label(node),
        rule="weight-path",
        message=f"{steps} between the weight's DequantizeLinear {label(found[0])!r} and {node.op_type}: {effect}",
        fix="apply it to the weight constant itself, and move the axis of its scale along",
        severity="advice" if only_transposed else "finding",
    )


def half_quantized(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """Only one operand of a product is quantized: TensorRT multiplies in float, and the Q/DQ cost accuracy and time for nothing.

    before   x, w -> DQ -> Conv          after   x -> Q -> DQ, w -> DQ -> Conv

    A weight of 4 bits alone is meant: weight-only quantization.
    """
    quantized = [index for index in (0, 1) if graph.is_quantized(node, index)] if node.op_type in PRODUCTS else []
    if len(quantized) != 1 or _is_weight_only(graph, node):
        return
    left = operand(node, 1 - quantized[0])
    source = maker_of(left)
    made = f" (output of {source.op_type} {label(source)!r})" if source is not None else ""
    names = ("the input", "the weight") if graph.is_constant(operand(node, 1)) else ("input 0", "input 1")
    done, missing = names[quantized[0]], names[1 - quantized[0]]
    yield finding_at(
        node,
        "half-quantized",
        f"{done} of this {node.op_type} is quantized, {missing}{made} is not: TensorRT multiplies in float",
        "put Q/DQ right before the other one too, or remove them here",
    )


def float_product(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """A float product with a constant weight among int8 ones: meant, or forgotten.

    before   x, w -> Conv          after   x -> Q -> DQ, w -> DQ -> Conv
    """
    if node.op_type not in PRODUCTS or not graph.is_constant(operand(node, 1)) or not graph.has_int8_products:
        return
    if any(graph.is_quantized(node, index) for index in (0, 1)) or _small(graph, node):
        return
    yield finding_at(
        node,
        "float-product",
        f"{node.op_type} without Q/DQ runs in float, while others run in int8",
        "nothing, if it was skipped on purpose; else put Q/DQ on its input and its weight",
        severity="advice",
    )


def small_product(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """An int8 product with fewer than 16 channels, or K or N below 16: usually faster in FP16.

    before   x [.., 8] -> Q -> DQ -> Conv          after   x [.., 8] -> Conv
    """
    small = _small(graph, node) if graph.is_int8(node) else ""
    if small:
        yield finding_at(
            node,
            "small-product",
            f"{node.op_type} with {small}: below {SMALL}, FP16 is usually faster than int8",
            "leave it float: `small_products: float` in the recipe's quantization block",
            severity="advice",
        )


def conv_transpose(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """A quantized ConvTranspose: TensorRT for RTX computes it in float whatever its Q/DQ, TensorRT at most with one scale for the weight.

    before   x -> Q -> DQ, w -> DQ -> ConvTranspose          after   x, w -> ConvTranspose
    """
    sources = [graph.dequantizer(operand(node, index)) for index in (0, 1)] if node.op_type == "ConvTranspose" else []
    if any(sources):
        scale = array(sources[1].inputs[1]) if sources[1] is not None else None
        per_channel = f", and its weight has {scale.size} scales" if scale is not None and scale.size > 1 else ""
        yield finding_at(
            node,
            "conv-transpose",
            f"quantized ConvTranspose{per_channel}: TensorRT for RTX always runs it in float",
            "leave it float; for TensorRT itself use one scale per weight tensor",
        )


PRODUCT_RULES: tuple[NodeRule, ...] = (weight_axis, weight_path, half_quantized, float_product, small_product, conv_transpose)


def _is_weight_only(graph: QdqGraph, node: ir.Node) -> bool:
    found = graph.weight(node)
    codes = found[0].inputs[0] if found is not None else None
    tensor = ir.convenience.get_const_tensor(codes) if codes is not None else None
    code_type = tensor.dtype if tensor is not None else codes.dtype if codes is not None else None
    return code_type in _WEIGHT_ONLY and not graph.is_quantized(node, 0)


def _rank(dequantize: ir.Node) -> int | None:
    value = weight_constant(dequantize)
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    shape = tensor.shape if tensor is not None else value.shape if value is not None else None
    return None if shape is None else len(shape)


def _axis_behind(step: ir.Node, axis: int, rank: int) -> int:
    if step.op_type != "Transpose":
        return axis
    order = list(step.attributes["perm"].as_ints()) if "perm" in step.attributes else list(range(rank))[::-1]
    return order.index(axis)


def _small(graph: QdqGraph, node: ir.Node) -> str:
    """`8 input channels and 32 output channels` if one of them is small, else the empty string."""
    shape = graph.weight_shape(node)
    if shape is None or len(shape) < 2:
        return ""
    if node.op_type == "Conv":
        # Of a group's channels, as those are what a kernel multiplies; all channels where every one is a group (depthwise).
        sizes, text = (int_attribute(node, "group", 1) if shape[1] == 1 else shape[1], shape[0]), "{} input and {} output channels"
    else:
        sizes, text = (shape[-2], shape[-1]), "K = {} and N = {}"
        sizes = sizes[::-1] if int_attribute(node, "transB", 0) else sizes
    return text.format(*sizes) if min(sizes) < SMALL else ""
