"""The passes that turn tf2onnx's graph into the exported form; each changes the graph it is given and says what it changed.

Order: cancel_transposes, quantize_weights, fold_batch_norms, name_after_layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from tfqat.errors import ExportError
from tfqat.numerics import TINY

MATRIX_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True, kw_only=True)
class WeightCodes:
    """The int8 codes of a layer's weight in ONNX's layout, its float32 scales, and the axis that they go along (None: one scale)."""

    layer: str
    weight: str
    codes: np.ndarray
    scale: np.ndarray
    axis: int | None


@dataclass(frozen=True, kw_only=True)
class BatchNormResult:
    """Whether the BatchNorm of a node was folded; if not, why."""

    node: str
    folded: bool
    reason: str


def cancel_transposes(graph: ir.Graph) -> int:
    """Remove pairs of Transpose that undo each other.

        before   x -> Transpose(p) -> Transpose(q) -> y,  p[q] = identity          after   x -> y

    Requires: nothing. Ensures: no such pair is left. Returns: how many second Transposes were removed.
    """
    removed = 0
    for node in list(graph):
        first = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
        if first is None or first.op_type != "Transpose" or node.outputs[0].is_graph_output():
            continue
        inner, outer = _permutation(first), _permutation(node)
        source = first.inputs[0]
        if source is not None and [inner[axis] for axis in outer] == sorted(inner):
            convenience.replace_all_uses_with(node.outputs[0], source)
            graph.remove(node, safe=True)
            removed += 1
    _remove_unused(graph)
    return removed


def quantize_weights(graph: ir.Graph, weights: Iterable[WeightCodes], prefix: str) -> None:
    """Replace the float constant of each quantized weight by int8 codes and a DequantizeLinear.

        before   Conv(x, w)          after   Conv(x, DequantizeLinear(codes, scale, axis))

    Requires: the constant holds exactly codes * scale (the weights were moved onto their grid before conversion), and nodes are named
    `<prefix>/<layer>/<op>`.
    Ensures: nothing stands between DequantizeLinear and the operation, and the values are the same to the last bit.

    Raises:
        ExportError: a layer has no such operation, or the constant holds other values.
    """
    for weight in weights:
        node = _operation_of(graph, weight.layer, prefix)
        constant = convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        expected = weight.codes.astype(np.float32) * _along(weight.scale, weight.axis, weight.codes.ndim)
        if constant is None or constant.shape.numpy() != expected.shape or not np.array_equal(constant.numpy(), expected):
            raise ExportError(
                f"layer {weight.layer!r}: the weight that tf2onnx wrote for node {node.name!r} is not the quantized one. "
                "This is a fault of tfqat: please report it with the model"
            )
        node.replace_input_with(1, _dequantize(graph, node, f"{weight.layer}/{weight.weight}", weight.codes, weight.scale, weight.axis))
    _remove_unused(graph)


def fold_batch_norms(graph: ir.Graph) -> tuple[BatchNormResult, ...]:
    """Fold each BatchNormalization into the scales of the convolution before it; the magnitudes of all codes stay.

        before   y = gamma * (Conv(x, code * s) + b - mean) / sqrt(var + eps) + beta
        after    y = Conv(x, code' * s') + b'
                 g = gamma / sqrt(var + eps);  s' = s * |g|;  code' = code * sign(g);  b' = beta + (b - mean) * g

    Codes can be negated because weights use [-hi, hi]. A channel with g = 0 gets codes 0 and the smallest scale.
    Computed in float64 and rounded once. Source: Jacob et al. 2018, section 3.2, for scales instead of weights.

    Requires: quantize_weights. Ensures: a folded convolution has a float32 bias and a per-channel scale.
    """
    return tuple(_fold_batch_norm(graph, node) for node in list(graph) if node.op_type == "BatchNormalization")


def name_after_layers(graph: ir.Graph, layers: Iterable[str], prefix: str) -> Mapping[str, str]:
    """Name the convolution or matrix product of each layer after it, and every value after the node that makes it.

    Requires: tf2onnx's node names, `<prefix>/<layer>/<op>`. Ensures: inputs and outputs of the graph keep their names.
    Returns: layer -> ONNX operation, for the layers that have one.
    """
    operations = {}
    for layer in layers:
        node = next((node for node in graph if node.op_type in MATRIX_OPS and _belongs_to(node, layer, prefix)), None)
        if node is not None:
            node.name = layer
            operations[layer] = node.op_type
    for node in graph:
        node.name = (node.name or node.op_type).removeprefix(f"{prefix}/")
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{node.name}:{index}" if index else f"{node.name}.out"
    _name_constants(graph, prefix)
    return operations


def _name_constants(graph: ir.Graph, prefix: str) -> None:
    """Constants lose the model's name; the zero point, which all activation points share, loses that of the point it was first made for."""
    for name, value in list(graph.initializers.items()):
        short = "zero_point" if name.endswith("/zero_point") else name.removeprefix(f"{prefix}/")
        if short not in graph.initializers:
            value.name = short


def _fold_batch_norm(graph: ir.Graph, norm: ir.Node) -> BatchNormResult:
    name = norm.name or "BatchNormalization"
    conv = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if conv is None or conv.op_type != "Conv":
        return BatchNormResult(node=name, folded=False, reason="no convolution right before it")
    dequantize = conv.inputs[1].producer() if conv.inputs[1] is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return BatchNormResult(node=name, folded=False, reason=f"the weight of {conv.name} is not quantized")
    if len(list(conv.outputs[0].uses())) != 1 or conv.outputs[0].is_graph_output():
        return BatchNormResult(node=name, folded=False, reason=f"the output of {conv.name} is read elsewhere too")
    _fold_into(graph, conv, dequantize, norm)
    return BatchNormResult(node=name, folded=True, reason=f"folded into the scales of {conv.name}")


def _fold_into(graph: ir.Graph, conv: ir.Node, dequantize: ir.Node, norm: ir.Node) -> None:
    codes = _constant(dequantize.inputs[0])
    channels = codes.shape[0]
    scale = np.broadcast_to(_constant(dequantize.inputs[1]), (channels,)).astype(np.float64)
    gamma, beta, mean, variance = (_constant(value).astype(np.float64) for value in norm.inputs[1:5])
    bias = _constant(conv.inputs[2]).astype(np.float64) if len(conv.inputs) > 2 and conv.inputs[2] is not None else 0.0
    gain = gamma / np.sqrt(variance + norm.attributes["epsilon"].as_float())
    signs = np.sign(gain).astype(np.int8).reshape(-1, *[1] * (codes.ndim - 1))
    folded_scale = np.maximum(scale * np.abs(gain), TINY).astype(np.float32)
    folded_bias = (beta + (bias - mean) * gain).astype(np.float32)
    name = str(dequantize.name).removesuffix("/DQ")
    weight = _dequantize(graph, conv, name, codes * signs, folded_scale, axis=0)
    constant = _initializer(graph, f"{name.rpartition('/')[0]}/bias", folded_bias)
    folded = ir.node("Conv", [conv.inputs[0], weight, constant], attributes=conv.attributes, name=conv.name)
    folded.outputs[0].shape, folded.outputs[0].type = norm.outputs[0].shape, norm.outputs[0].type
    graph.insert_before(conv, folded)
    convenience.replace_all_uses_with(norm.outputs[0], folded.outputs[0], replace_graph_outputs=True)
    graph.remove([norm, conv, dequantize], safe=True)
    _remove_unused(graph)


def _dequantize(graph: ir.Graph, before: ir.Node, name: str, codes: np.ndarray, scale: np.ndarray, axis: int | None) -> ir.Value:
    """The output of a new DequantizeLinear in front of node `before`; its zero point is left out, which means int8 zero."""
    for old in (name, f"{name}/scale"):
        graph.initializers.pop(old, None)
    inputs = [_initializer(graph, name, codes.astype(np.int8)), _initializer(graph, f"{name}/scale", scale.astype(np.float32))]
    node = ir.node("DequantizeLinear", inputs, attributes={} if axis is None else {"axis": axis}, name=f"{name}/DQ")
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(codes.shape), ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, node)
    return node.outputs[0]


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _operation_of(graph: ir.Graph, layer: str, prefix: str) -> ir.Node:
    found = [node for node in graph if node.op_type in MATRIX_OPS and _belongs_to(node, layer, prefix)]
    if len(found) != 1:
        raise ExportError(f"layer {layer!r} became {len(found)} convolutions or matrix products in the ONNX graph; expected exactly one")
    return found[0]


def _belongs_to(node: ir.Node, layer: str, prefix: str) -> bool:
    return (node.name or "").startswith(f"{prefix}/{layer}/")


def _along(scale: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    return scale if axis is None else scale.reshape([-1 if index == axis else 1 for index in range(rank)])


def _permutation(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())


def _constant(value: ir.Value | None) -> np.ndarray:
    tensor = convenience.get_const_tensor(value) if value is not None else None
    if tensor is None:
        raise ExportError(f"value {value.name if value else None!r} should be a constant of the graph")
    return np.asarray(tensor.numpy())


def _remove_unused(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads."""
    for node in reversed(list(graph)):
        if not any(list(value.uses()) or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not list(value.uses()) and not value.is_graph_output():
            del graph.initializers[name]
