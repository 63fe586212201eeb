"""Lint rules that look at Q/DQ nodes themselves: their types, scales and zero points.

Sources: NVIDIA TensorRT developer guide, "Working with Quantized Types"; and one graph for each rule, built with TensorRT for RTX 1.7.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from tfqat.placement.lint_graph import (
    DQ,
    PER_CHANNEL_OPSET,
    Finding,
    Q,
    QdqGraph,
    array,
    int_attribute,
    label,
    operand,
    readers,
    same_scale,
)

NodeRule = Callable[[QdqGraph, ir.Node], Iterator[Finding]]

_INT8_FIX = "quantize symmetrically to int8 (ONNX Runtime: activation_type=QInt8, weight_type=QInt8, ActivationSymmetric, WeightSymmetric)"
_NOT_INT8 = (ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.UINT4)
_INTEGER_OPS = frozenset(
    {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QGemm", "QAttention", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)


def integer_operator(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """Operators on integers instead of Q/DQ: TensorRT's parser has none of them.

    before   x -> QuantizeLinear -> QLinearConv          after   x -> Q -> DQ -> Conv, w -> DQ -> Conv
    """
    if node.op_type.startswith("QLinear") or node.op_type in _INTEGER_OPS:
        yield Finding(
            layer=label(node),
            rule="integer-operator",
            message=f"{node.op_type}: TensorRT cannot parse it",
            fix="write Q/DQ around the float operator (ONNX Runtime: quantize_static with quant_format=QDQ)",
        )


def zero_point(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """A grid that is not symmetric int8: TensorRT ends with a parse error on a zero point, and computes in int8 whatever the type is.

    before   Q(scale, zero point 128, uint8)          after   Q(scale, zero point 0, int8)
    """
    if not _is_own_grid(node) or _code_type(node) == ir.DataType.INT32:
        return
    zero, code_type = operand(node, 2), _code_type(node)
    zeros = array(zero)
    if zero is not None and zeros is None:
        problem = "its zero point is no constant: TensorRT needs the constant 0"
    elif zeros is not None and np.any(zeros.astype(np.float32) != 0):
        problem = f"zero point {_value(zeros)} ({_type_name(code_type)}): TensorRT takes 0 only, and ends with a parse error"
    elif code_type in _NOT_INT8:
        problem = f"codes of type {_type_name(code_type)}: TensorRT computes in int8, which holds codes from -128 to 127"
    else:
        return
    yield Finding(layer=label(node), rule="zero-point", message=problem, fix=_INT8_FIX)


def scale_value(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """A scale that is zero, negative, NaN or infinite (a parse error), or not constant (the build of TensorRT for RTX 1.7.1 crashes).

    before   Q(scale 0)          after   Q(scale max(amax, tiny) / 127)
    """
    if not _is_own_grid(node):
        return
    scale = array(node.inputs[1])
    if scale is None:
        if node.op_type == Q and not graph.is_constant(node.inputs[1]):
            message = "the scale is computed while the model runs: TensorRT needs a constant"
            yield Finding(layer=label(node), rule="scale-value", message=message, fix="calibrate, and write the scale as an initializer")
        return
    values = scale.astype(np.float64).ravel()
    bad = values[~(np.isfinite(values) & (values > 0))]
    if bad.size:
        where = "scale" if values.size == 1 else f"{bad.size} of {values.size} scales, the first of them"
        yield Finding(
            layer=label(node),
            rule="scale-value",
            message=f"{where} {bad[0]:g}: TensorRT takes positive finite scales only, and ends with a parse error",
            fix="calibrate on data that reach this tensor; give dead channels a tiny positive scale",
        )


def activation_scale(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """An activation scale that is no scalar: TensorRT silently runs what reads it in float, also with a single scale of shape [1].

    before   Q(x, scale of shape [1])          after   Q(x, scale of shape [])
    """
    scale = node.inputs[1] if node.op_type in (Q, DQ) and _is_own_grid(node) else None
    values = array(scale)
    if values is None or values.shape == () or graph.is_weight_quantizer(node) or int_attribute(node, "block_size", 0):
        return
    yield Finding(
        layer=label(node),
        rule="activation-scale",
        message=f"activation scale of shape {list(values.shape)}: TensorRT silently runs what reads it in float",
        fix="store the scale (and the zero point) with shape []"
        if values.size == 1
        else "one scale for the tensor, of shape []; per-channel scales are for weights",
    )


def per_channel_opset(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """Per-channel scales below opset 13, which has no axis for them.

    before   opset 11, DQ(w, scale [out])          after   opset 13 or later, DQ(w, scale [out], axis 0)
    """
    scale = array(node.inputs[1]) if node.op_type in (Q, DQ) and graph.opset < PER_CHANNEL_OPSET else None
    if scale is not None and scale.size > 1:
        yield Finding(
            layer=label(node),
            rule="per-channel-opset",
            message=f"{scale.size} scales in opset {graph.opset}: per-channel Q/DQ exist since opset {PER_CHANNEL_OPSET}",
            fix="export with opset 13 or later (17 is a safe choice)",
        )


def int32_bias(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """A bias in int32 behind a DequantizeLinear: a parse error in TensorRT, which adds the bias in float.

    before   bias int32 -> DQ -> Conv          after   bias float32 -> Conv
    """
    if node.op_type == DQ and _code_type(node) == ir.DataType.INT32:
        reader = next(iter(readers(node.outputs[0])), node)
        yield Finding(
            layer=label(reader),
            rule="int32-bias",
            message=f"int32 input of DequantizeLinear {label(node)!r}: TensorRT ends with a parse error",
            fix="keep the bias float32, without Q/DQ (ONNX Runtime: extra_options={'QuantizeBias': False})",
        )


def two_quantizers(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """One tensor quantized on two grids: what makes it can end in one of them only, and the other costs a kernel of its own.

    before   x -> Q(0.1) -> ..., x -> Q(0.2) -> ...          after   x -> Q(0.2) -> DQ -> both
    """
    value = node.inputs[0] if node.op_type == Q and not graph.is_weight_quantizer(node) else None
    first = next(reader for reader in readers(value) if reader.op_type == Q) if value is not None else node
    if value is not None and first is not node and not same_scale(first, node):
        yield Finding(
            layer=label(node),
            rule="two-quantizers",
            message=f"quantizes {value.name!r} with the scale {_scale(node)}, {label(first)!r} with {_scale(first)}: two conversions",
            fix="one Q/DQ pair for the tensor, read by all its consumers",
        )


def dynamic_axes(graph: QdqGraph) -> Iterator[Finding]:
    """Inputs of the graph with another dynamic axis than the first: an engine needs an optimization profile for each.

    before   image [N, 3, H, W]          after   image [N, 3, 224, 224]
    """
    for value in graph.inputs:
        axes = [] if value.shape is None else [axis for axis, size in enumerate(value.shape) if axis and not isinstance(size, int)]
        if axes or value.shape is None:
            yield Finding(
                layer=str(value.name),
                rule="dynamic-axes",
                message=f"input without a fixed size on axis {', '.join(map(str, axes))}" if axes else "input of unknown rank",
                fix="fix every axis but the batch, or build with an optimization profile of your own",
                severity="advice",
            )


QUANTIZER_RULES: tuple[NodeRule, ...] = (
    integer_operator,
    zero_point,
    scale_value,
    activation_scale,
    per_channel_opset,
    int32_bias,
    two_quantizers,
)


def _is_own_grid(node: ir.Node) -> bool:
    """Whether a node is a Q, or a DQ whose grid no Q in front of it states already."""
    if node.op_type != DQ:
        return node.op_type == Q
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    return maker is None or maker.op_type != Q or not same_scale(maker, node)


def _code_type(node: ir.Node) -> ir.DataType:
    """The type of the codes of a Q or DQ node; a QuantizeLinear that names none makes uint8."""
    typed = node.inputs[0] if node.op_type == DQ else operand(node, 2)
    tensor = ir.convenience.get_const_tensor(typed) if typed is not None else None
    if tensor is not None:
        return tensor.dtype
    if node.op_type == Q and typed is None:
        return ir.DataType(int_attribute(node, "output_dtype", 0) or ir.DataType.UINT8.value)
    maker = typed.producer() if typed is not None else None
    if maker is not None and maker.op_type == Q:
        return _code_type(maker)
    return typed.dtype if typed is not None and typed.dtype is not None else ir.DataType.INT8


def _type_name(code_type: ir.DataType) -> str:
    return code_type.name.lower()


def _value(values: np.ndarray) -> str:
    return str(values.ravel()[0]) if len(set(values.ravel().tolist())) == 1 else f"{values.min()} to {values.max()}"


def _scale(node: ir.Node) -> str:
    scale = array(node.inputs[1])
    return "of its own" if scale is None else f"{scale.ravel()[0]:g}"
