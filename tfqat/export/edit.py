"""Small edits of an ONNX graph that several passes share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from tfqat.errors import ExportError

MATRIX_OPS = ("Conv", "ConvTranspose", "MatMul", "Gemm")

SETTLED = "tfqat_named"

IN_MEMORY = 1_500_000_000
"""Bytes of constants above which a graph goes through a file: a message of ONNX's format holds 2 GB."""


def dequantize_before(graph: ir.Graph, before: ir.Node, name: str, codes: np.ndarray, scale: np.ndarray, axis: int | None) -> ir.Value:
    """The output of a new DequantizeLinear in front of node `before`; its zero point is left out, which means int8 zero."""
    for old in (name, f"{name}/scale"):
        graph.initializers.pop(old, None)
    inputs = [add_initializer(graph, name, codes.astype(np.int8)), add_initializer(graph, f"{name}/scale", scale.astype(np.float32))]
    node = ir.node("DequantizeLinear", inputs, attributes={} if axis is None else {"axis": axis}, name=f"{name}/DQ")
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(codes.shape), ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(before, node)
    return node.outputs[0]


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new constant of the graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def is_constant(value: ir.Value | None) -> bool:
    """Whether a value is a constant of the graph."""
    return value is not None and convenience.get_const_tensor(value) is not None


def constant_of(value: ir.Value | None) -> np.ndarray:
    """The array of a constant value.

    Raises:
        ExportError: the value is not constant.
    """
    tensor = convenience.get_const_tensor(value) if value is not None else None
    if tensor is None:
        raise ExportError(f"value {value.name if value else None!r} should be a constant of the graph")
    return np.asarray(tensor.numpy())


def weight_codes(dequantize: ir.Node) -> np.ndarray | None:
    """The codes that a weight's DequantizeLinear reads: a constant, or what QuantizeLinear makes of one; None for an activation's."""
    value = dequantize.inputs[0]
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "QuantizeLinear":
        return constant_of(value) if is_constant(value) else None
    if not is_constant(maker.inputs[0]):
        return None
    values, scale = constant_of(maker.inputs[0]), constant_of(maker.inputs[1])
    if scale.ndim:
        axis = maker.attributes.get_int("axis", 1)
        scale = scale.reshape([-1 if other == axis else 1 for other in range(values.ndim)])
    return np.asarray(np.clip(np.rint(values / scale), -128, 127).astype(np.int8))


def permutation_of(node: ir.Node) -> list[int]:
    """The permutation of a Transpose."""
    return list(node.attributes["perm"].as_ints())


def remove_unused(graph: ir.Graph) -> None:
    """Remove nodes and initializers that nothing reads."""
    for node in reversed(list(graph)):
        if not any(list(value.uses()) or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not list(value.uses()) and not value.is_graph_output():
            del graph.initializers[name]
