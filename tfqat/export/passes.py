"""The passes over the structure of tf2onnx's graph: transposes that undo each other, and BatchNorm folded into scales.

Every pass of export changes the graph it is given and says what it changed. Their order: weights.quantize_weights, cancel_transposes,
fold_batch_norms, naming.name_after_layers, naming.settle_constants, naming.name_dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from tfqat.export.edit import add_initializer, constant_of, dequantize_before, permutation_of, remove_unused
from tfqat.numerics import TINY


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
        inner, outer = permutation_of(first), permutation_of(node)
        source = first.inputs[0]
        if source is not None and [inner[axis] for axis in outer] == sorted(inner):
            convenience.replace_all_uses_with(node.outputs[0], source)
            graph.remove(node, safe=True)
            removed += 1
    remove_unused(graph)
    return removed


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


def fold_obstacle(norm: ir.Node) -> str:
    """Why a BatchNormalization cannot be folded; empty if it can."""
    conv = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if conv is None or conv.op_type != "Conv":
        return "no convolution right before it"
    dequantize = conv.inputs[1].producer() if conv.inputs[1] is not None else None
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return f"the weight of {conv.name} is not quantized"
    if len(list(conv.outputs[0].uses())) != 1 or conv.outputs[0].is_graph_output():
        return f"the output of {conv.name} is read elsewhere too"
    return ""


def _fold_batch_norm(graph: ir.Graph, norm: ir.Node) -> BatchNormResult:
    name = norm.name or "BatchNormalization"
    obstacle = fold_obstacle(norm)
    conv = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    dequantize = conv.inputs[1].producer() if not obstacle and conv is not None and conv.inputs[1] is not None else None
    if conv is None or dequantize is None:
        return BatchNormResult(node=name, folded=False, reason=obstacle)
    _fold_into(graph, conv, dequantize, norm)
    return BatchNormResult(node=name, folded=True, reason=f"folded into the scales of {conv.name}")


def _fold_into(graph: ir.Graph, conv: ir.Node, dequantize: ir.Node, norm: ir.Node) -> None:
    codes = constant_of(dequantize.inputs[0])
    channels = codes.shape[0]
    scale = np.broadcast_to(constant_of(dequantize.inputs[1]), (channels,)).astype(np.float64)
    gamma, beta, mean, variance = (constant_of(value).astype(np.float64) for value in norm.inputs[1:5])
    bias = constant_of(conv.inputs[2]).astype(np.float64) if len(conv.inputs) > 2 and conv.inputs[2] is not None else 0.0
    gain = gamma / np.sqrt(variance + norm.attributes["epsilon"].as_float())
    signs = np.sign(gain).astype(np.int8).reshape(-1, *[1] * (codes.ndim - 1))
    folded_scale = np.maximum(scale * np.abs(gain), TINY).astype(np.float32)
    folded_bias = (beta + (bias - mean) * gain).astype(np.float32)
    name = str(dequantize.name).removesuffix("/DQ")
    weight = dequantize_before(graph, conv, name, codes * signs, folded_scale, axis=0)
    constant = add_initializer(graph, f"{name.rpartition('/')[0]}/bias", folded_bias)
    folded = ir.node("Conv", [conv.inputs[0], weight, constant], attributes=conv.attributes, name=conv.name)
    folded.meta.update(conv.meta)
    folded.outputs[0].shape, folded.outputs[0].type = norm.outputs[0].shape, norm.outputs[0].type
    graph.insert_before(conv, folded)
    convenience.replace_all_uses_with(norm.outputs[0], folded.outputs[0], replace_graph_outputs=True)
    graph.remove([norm, conv, dequantize], safe=True)
    remove_unused(graph)
