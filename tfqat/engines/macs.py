"""How many multiply-accumulates each convolution and matrix product of an ONNX graph has, from its inferred shapes.

Conv            elements of the output x elements of one filter          [M, C/g, k...]: C/g * k...
ConvTranspose   elements of the input x what each of them is spread to   [C, M/g, k...]: M/g * k...
MatMul, Gemm    elements of the output x the length of the sums
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def multiply_accumulates(model: Any, sizes: Mapping[str, Sequence[int]], ops: Sequence[str]) -> tuple[int | None, ...]:
    """The number of each node of the given kinds, in the order of the graph.

    Args:
        model: A ModelProto; it is not changed.
        sizes: Input -> the shape to count at.
        ops: The kinds of nodes.

    Returns:
        A number for each node, or None where a shape cannot be inferred.
    """
    shapes = _inferred(model, sizes)
    return tuple(_count(node, shapes) for node in model.graph.node if node.op_type in ops)


def _inferred(model: Any, sizes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Every value of a known shape, initializers among them."""
    import onnx

    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
            dim.dim_value = size
    for value in sized.graph.output:  # a batch that is written here would contradict the one of the inputs
        value.type.tensor_type.ClearField("shape")
    del sized.graph.value_info[:]
    try:
        graph = onnx.shape_inference.infer_shapes(sized, data_prop=True).graph
    except onnx.shape_inference.InferenceError:  # a graph that TensorRT may still build; its shapes are not known then
        graph = sized.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[value.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _count(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    data, weights, output = (shapes.get(name) for name in (*node.input[:2], node.output[0]))
    if node.op_type == "ConvTranspose":
        return None if data is None or weights is None else math.prod(data) * math.prod(weights[1:])
    if node.op_type == "Conv":
        return None if output is None or weights is None else math.prod(output) * math.prod(weights[1:])
    if output is None or data is None:
        return None
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(output) * data[0 if transposed else -1]
