"""The passes that name nodes, values, constants and axes, so that a graph can be read and equal models give equal files."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from tfqat.export.edit import MATRIX_OPS, SETTLED, constant_of

# What keeps the name that a pass gave it: weights, their scales and biases, and the scales of activations.
_OWN_NAMES = ("/kernel", "/depthwise_kernel", "/scale", "/bias")

_SMALL = 8


def name_after_layers(graph: ir.Graph, layers: Iterable[str], prefix: str) -> Mapping[str, str]:
    """Name every convolution or matrix product that is still float after its layer, and every value after the node that makes it.

    Requires: quantize_weights, which names the others, and tf2onnx's node names, `<prefix>/<layer>/<op>`. Ensures: inputs and outputs
    of the graph keep their names. Returns: layer -> ONNX operation, for the layers that have one.
    """
    layers = sorted(layers, key=len, reverse=True)  # `a/b` before `a`: the longest name that fits is the layer's
    operations: dict[str, str] = {}
    taken = {str(node.name) for node in graph if _is_settled(node)}
    for node in graph:
        if not _is_settled(node):
            name = str(node.name or node.op_type)
            fits = [
                layer for layer in layers if node.op_type in MATRIX_OPS and name.startswith(f"{prefix}/{layer}/") and layer not in taken
            ]
            # tf2onnx numbers its nodes over all conversions of a process; without the number equal models give equal files.
            node.name = _unused(fits[0] if fits else re.sub(r"__\d+$", "", name.removeprefix(f"{prefix}/")), taken)
        if node.op_type in MATRIX_OPS and node.name in layers:
            operations[str(node.name)] = node.op_type
    for node in graph:
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = f"{node.name}:{index}" if index else f"{node.name}.out"
    return operations


def name_dimensions(graph: ir.Graph) -> None:
    """Call the dynamic first axis of all inputs and outputs `batch`, and every other dynamic axis after its value.

    Requires: nothing. Ensures: no axis has a number that tf2onnx made up.
    """
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            sizes = enumerate(value.shape)
            value.shape = ir.Shape(
                size if isinstance(size, int) else "batch" if not axis else f"{value.name}_{axis}" for axis, size in sizes
            )


def settle_constants(graph: ir.Graph) -> None:
    """Keep one of each set of equal small constants, name the others after the node that reads them, and put all in the order of use.

    Requires: name_after_layers. Ensures: the same model gives the same file; scales keep the names of their points.
    """
    kept: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    ordered: dict[str, ir.Value] = {}
    for node in graph:
        for index, value in enumerate(node.inputs):
            if value is None or value.name not in graph.initializers:
                continue
            codes = node.op_type == "DequantizeLinear" and node.name == f"{value.name}/DQ"
            own = codes or str(value.name).endswith(_OWN_NAMES)
            array = constant_of(value)
            key = (str(array.dtype), array.shape, array.tobytes())
            if not own and array.size <= _SMALL:
                value = kept.setdefault(key, value)
                node.replace_input_with(index, value)
            if value not in ordered.values():
                bias = index == 2 and node.op_type in ("Conv", "ConvTranspose", "Gemm")
                name = str(value.name) if own else f"{node.name}/bias" if bias else f"{node.name}.in{index}"
                ordered[_zero_point_name(array) if node.op_type == "QuantizeLinear" and index == 2 and not array.ndim else name] = value
    graph.initializers.clear()
    for name, value in ordered.items():
        value.name = name
        graph.register_initializer(value)


def _zero_point_name(zero_point: np.ndarray) -> str:
    return "zero_point" if zero_point.dtype == np.int8 and not zero_point else f"zero_point_{zero_point.dtype}_{int(zero_point)}"


def _is_settled(node: ir.Node) -> bool:
    """Whether a node has its final name: Q/DQ nodes are named after points, and quantize_weights marks what it names."""
    return node.op_type in ("QuantizeLinear", "DequantizeLinear") or SETTLED in node.meta


def _unused(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken; it is taken from then on."""
    numbered = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
    unused = next(candidate for candidate in numbered if candidate not in taken)
    taken.add(unused)
    return unused
