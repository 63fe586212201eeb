"""Lint rules of what stands around products: Q/DQ that break a fusion, or that leave an operator in float between conversions.

Sources: NVIDIA TensorRT developer guide, "Q/DQ Layer-Placement Recommendations"; and one graph for each rule, built with TensorRT for RTX
1.7.1, whose kernel list says what is computed between two products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx_ir as ir

from tfqat.placement.lint_graph import (
    ACTIVATIONS,
    COMMUTING,
    DQ,
    PRODUCTS,
    Finding,
    Q,
    QdqGraph,
    array,
    behind_activations,
    finding_at,
    label,
    maker_of,
    operand,
    reads_alone,
    same_scale,
)

NodeRule = Callable[[QdqGraph, ir.Node], Iterator[Finding]]

_GATES = ("Sigmoid", "HardSigmoid", "Clip")
_WITH_CONSTANT = ("Add", "Sub", "Mul", "Div")


def split_fusion(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """Q/DQ between a product and its BatchNormalization or activation: the values are rounded twice, and the two cannot fuse.

    before   Conv -> Q -> DQ -> Relu -> Q -> DQ          after   Conv -> Relu -> Q -> DQ
    """
    dequantize = maker_of(operand(node, 0)) if node.op_type in (*ACTIVATIONS, "BatchNormalization") else None
    quantize = maker_of(dequantize.inputs[0]) if dequantize is not None and dequantize.op_type == DQ else None
    source = maker_of(quantize.inputs[0]) if quantize is not None and quantize.op_type == Q else None
    if source is not None and source.op_type == "BatchNormalization" and node.op_type != "BatchNormalization":
        source = maker_of(source.inputs[0])
    if quantize is None or source is None or source.op_type not in (*PRODUCTS, "ConvTranspose", "Add"):
        return
    yield finding_at(
        node,
        "split-fusion",
        f"Q/DQ {label(quantize)!r} between {source.op_type} {label(source)!r} and {node.op_type}: they cannot fuse",
        f"quantize behind {node.op_type}, not before it",
    )


def residual_add(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """Residual Add: Q/DQ on the shortcut, none on the branch that ends in a convolution, which then takes the Add into its kernel.

    before   shortcut -> Q -> DQ, Conv -> Q -> DQ -> Add          after   shortcut -> Q -> DQ, Conv -> Add
    """
    inputs = graph.data_inputs(node) if node.op_type == "Add" else ()
    if len(inputs) != 2:
        return
    convolutions = [_convolution_of_branch(graph, value) for value in inputs]
    quantized = [graph.dequantizer(value) is not None for value in inputs]
    fused = next((conv for conv in convolutions if conv is not None), None)
    if fused is None or quantized == [conv is None for conv in convolutions]:
        return
    if all(quantized):
        yield finding_at(
            node,
            "residual-add",
            f"both inputs are quantized: the Add cannot fuse with {label(fused)!r}, whose output is rounded to int8 before it",
            f"remove the Q/DQ between {label(fused)!r} and the Add",
        )
    elif not any(quantized) and not any(_is_int8_sum(graph, value) for value in inputs):
        yield finding_at(
            node,
            "residual-add",
            f"no input is quantized: the Add fuses with {label(fused)!r}, but reads the shortcut in float",
            "put Q/DQ on the shortcut, for this Add",
        )
    elif any(quantized) and None in convolutions:
        yield finding_at(
            node,
            "residual-add",
            f"the branch of {label(fused)!r} is quantized and the shortcut is not: the Add cannot fuse with it",
            f"move the Q/DQ from the output of {label(fused)!r} to the shortcut",
        )


def concat_scales(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """Concat of tensors with unequal scales: their codes cannot be copied, each is converted; what reads it may run in float.

    before   a -> Q(0.1) -> DQ, b -> Q(0.2) -> DQ -> Concat          after   a -> Q(0.2) -> DQ, b -> Q(0.2) -> DQ -> Concat
    """
    found = [graph.dequantizer(value) for value in graph.data_inputs(node)] if node.op_type == "Concat" else []
    sources = [source for source in found if source is not None]
    if any(not same_scale(sources[0], source) for source in sources):
        scales = [array(source.inputs[1]) for source in sources]
        listed = ", ".join(f"{scale.ravel()[0]:g}" for scale in scales if scale is not None)
        yield finding_at(node, "concat-scales", f"its inputs have unequal scales ({listed})", "give all inputs the largest of them")


def half_quantized_pool(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """Average pooling with Q/DQ on one side only: it runs in float, between conversions.

    before   x -> AveragePool -> Q -> DQ          after   x -> Q -> DQ -> AveragePool -> Q -> DQ
    """
    if node.op_type not in ("AveragePool", "GlobalAveragePool"):
        return
    before, after = graph.dequantizer(node.inputs[0]) is not None, graph.is_read_by_q(node.outputs[0])
    if before != after:
        sides = ("input", "output") if before else ("output", "input")
        yield finding_at(
            node,
            "half-quantized-pool",
            f"its {sides[0]} is quantized, its {sides[1]} is not: {node.op_type} runs in float",
            f"put Q/DQ on its {sides[1]} too, or remove those on its {sides[0]}",
        )


def half_quantized_gate(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """The Mul of squeeze-and-excite with one quantized input: it runs in float, and the other input is converted for it.

    before   x -> Q -> DQ, sigmoid -> Mul          after   x -> Q -> DQ, sigmoid -> Q -> DQ -> Mul
    """
    inputs = graph.data_inputs(node) if node.op_type == "Mul" else ()
    quantized = [graph.dequantizer(value) is not None for value in inputs]
    if len(inputs) != 2 or sum(quantized) != 1 or not (_is_gate(graph, *inputs) or _is_gate(graph, *inputs[::-1])):
        return
    other = inputs[quantized.index(False)]
    yield finding_at(
        node,
        "half-quantized-gate",
        f"one input of this Mul is quantized, the other, {other.name!r}, is not: it runs in float",
        "put Q/DQ on both inputs, or on neither",
    )


def unfolded_batch_norm(graph: QdqGraph, node: ir.Node) -> Iterator[Finding]:
    """BatchNormalization right behind an int8 convolution: folded at export it costs nothing, here it depends on the runtime.

    before   Conv -> BatchNormalization          after   Conv with its scales times gamma / sqrt(var + eps)

    TensorRT folds it (TensorRT for RTX 1.7.1: the same kernels); ONNX Runtime does not fuse Conv with the Q behind it.
    """
    conv = maker_of(operand(node, 0)) if node.op_type == "BatchNormalization" else None
    if conv is not None and conv.op_type == "Conv" and graph.is_int8(conv) and reads_alone(conv.outputs[0]):
        yield finding_at(
            node,
            "unfolded-batch-norm",
            f"BatchNormalization behind the int8 convolution {label(conv)!r} is not folded into its scales",
            "fold it at export (tfqat: export.fold_batchnorm: true)",
            severity="advice",
        )


FUSION_RULES: tuple[NodeRule, ...] = (
    split_fusion,
    residual_add,
    concat_scales,
    half_quantized_pool,
    half_quantized_gate,
    unfolded_batch_norm,
)


def _convolution_of_branch(graph: QdqGraph, value: ir.Value) -> ir.Node | None:
    """The int8 convolution that ends a branch, if only activations, BatchNorm and Q/DQ stand behind it and each is read once."""
    dequantize = maker_of(value)
    if dequantize is not None and dequantize.op_type == DQ:
        quantize = maker_of(dequantize.inputs[0])
        if quantize is None or quantize.op_type != Q or not reads_alone(value) or not reads_alone(quantize.outputs[0]):
            return None
        source = quantize.inputs[0]
    else:
        source = value
    return next((node for node in behind_activations(source) if node.op_type == "Conv" and graph.is_int8(node)), None)


def _is_int8_sum(graph: QdqGraph, value: ir.Value) -> bool:
    """Whether a value is the first part of a sum of more than two tensors that reads its shortcuts quantized."""
    node = maker_of(value)
    return node is not None and node.op_type in ("Add", "Sum") and reads_alone(value) and any(map(graph.dequantizer, node.inputs))


def _is_gate(graph: QdqGraph, gate: ir.Value, other: ir.Value) -> bool:
    """Whether a value is a sigmoid of something else than `other`: swish, x * sigmoid(x), is no gate."""
    trail = list(_trail(graph, gate))
    tensors = {value for value, _ in trail}
    others = {value for value, node in _trail(graph, other) if node is None or node.op_type not in _GATES}
    return any(node is not None and node.op_type in _GATES for _, node in trail) and not tensors & others


def _trail(graph: QdqGraph, value: ir.Value) -> Iterator[tuple[ir.Value, ir.Node | None]]:
    """Values and the nodes that make them, back through Q/DQ, operators that commute, sigmoids, and arithmetic with a constant."""
    while True:
        node = value.producer()
        yield value, node
        data = graph.data_inputs(node) if node is not None else ()
        if node is None or len(data) != 1 or node.op_type not in (Q, DQ, *COMMUTING, *_GATES, *_WITH_CONSTANT):
            return
        value = data[0]
