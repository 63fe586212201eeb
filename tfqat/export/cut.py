"""Opens a Q/DQ graph at its quantization points, so that codes can be read from it and fed into it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from tfqat.errors import ExportError


def observed(path: str, points: Iterable[str]) -> bytes:
    """The model with the int8 codes of every point as further outputs, named `codes/<point id>`."""
    model = _with_free_batch(path)
    _add_code_outputs(model.graph, points)
    return ir.to_proto(model).SerializeToString()


def segmented(path: str, points: Iterable[str]) -> bytes:
    """The model cut at every point: DequantizeLinear reads a new int8 input `given/<point id>`, and the codes are further outputs.

    before   segment A -> Q -> DQ -> segment B          after   A -> Q -> codes/p      given/p -> DQ -> B
    """
    points = tuple(points)
    model = _with_free_batch(path)
    _add_code_outputs(model.graph, points)
    for point in points:
        dequantize = _node(model.graph, f"{point}/DQ")
        given = ir.Value(name=f"given/{point}", type=ir.TensorType(ir.DataType.INT8))
        model.graph.inputs.append(given)
        dequantize.replace_input_with(0, given)
    return ir.to_proto(model).SerializeToString()


def _with_free_batch(path: str) -> ir.Model:
    """The model; one that is written for a fixed batch size computes the same for every other."""
    model = ir.load(path)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    return model


def _add_code_outputs(graph: ir.Graph, points: Iterable[str]) -> None:
    for point in points:
        codes = _node(graph, f"{point}/Q").outputs[0]
        codes.name = f"codes/{point}"
        codes.type = ir.TensorType(ir.DataType.INT8)
        graph.outputs.append(codes)


def _node(graph: ir.Graph, name: str) -> ir.Node:
    node = next((node for node in graph if node.name == name), None)
    if node is None:
        raise ExportError(f"the ONNX graph has no node {name!r}: it was not exported from this model, or by another tool")
    return node
