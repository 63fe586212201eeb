"""The pass that puts int8 codes in the place of the weights, in whatever layout the graph reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfqat.errors import ExportError
from tfqat.export.edit import MATRIX_OPS, SETTLED, constant_of, dequantize_before, permutation_of
from tfqat.models.graph import CALL


@dataclass(frozen=True, kw_only=True)
class WeightInput:
    """A quantized weight that the graph reads from an input: its int8 codes in Keras's layout, and its scales along `axes`.

    `scale` has the shape () per tensor, else the sizes of the axes.
    """

    layer: str
    weight: str
    input_name: str
    codes: np.ndarray
    scale: np.ndarray
    axes: tuple[int, ...]


def quantize_weights(graph: ir.Graph, weights: Iterable[WeightInput]) -> None:
    """Replace the graph input of each quantized weight by int8 codes and a DequantizeLinear.

        before   w (input) -> Transpose, Reshape ... -> Conv          after   codes -> DequantizeLinear -> Conv

    The layout that the operation wants is read off the graph: codes, and the number of the channel that each belongs to, go
    through the nodes between the input and the operation.

    Requires: the inputs. Ensures: they are gone, nothing stands between DequantizeLinear and the operation, and the operation is
    named after its layer.

    A layer that is called several times has one weight and several operations, which share its codes.

    Raises:
        ExportError: an input ends elsewhere than in convolutions or matrix products, or its channels do not lie along one axis there.
    """
    for weight in weights:
        source = next((value for value in graph.inputs if value.name == weight.input_name), None)
        if source is None:
            raise ExportError(
                f"layer {weight.layer!r}: the ONNX graph lost its weight {weight.weight!r}; is the layer part of the outputs?"
            )
        dequantized: dict[tuple[object, ...], ir.Value] = {}
        between: list[ir.Node] = []
        for number, (layout, (operation, position)) in enumerate(ways_to_operations(weight.layer, source), start=1):
            operand = _operand(graph, weight, layout, operation, dequantized)
            operation.replace_input_with(position, operand)
            operation.name, operation.meta[SETTLED] = weight.layer if number == 1 else f"{weight.layer}{CALL}{number}", True
            between += [node for node in layout if node not in between]
        graph.remove(list(reversed(between)), safe=True)
        graph.inputs.remove(source)


def _operand(
    graph: ir.Graph, weight: WeightInput, layout: list[ir.Node], operation: ir.Node, dequantized: dict[tuple[object, ...], ir.Value]
) -> ir.Value:
    """The dequantized weight as an operation reads it; operations that read it in one layout share it."""
    codes = through(layout, weight.codes)
    axis, channels = _channel_axis(weight, layout)
    scale = weight.scale.reshape(-1)[channels] if axis is not None else weight.scale
    key = (axis, codes.shape, codes.tobytes(), scale.tobytes())
    if key not in dequantized:
        name = f"{weight.layer}/{weight.weight}" + (f"{CALL}{len(dequantized) + 1}" if dequantized else "")
        dequantized[key] = dequantize_before(graph, operation, name, codes, scale, axis)
    return dequantized[key]


def ways_to_operations(layer: str, source: ir.Value) -> list[tuple[list[ir.Node], tuple[ir.Node, int]]]:
    """For each operation that reads the weight: the nodes that only change its layout, and the operation with the operand's position.

    In the order of the graph, so that what stands before the first operation stands before the others.
    """
    found: list[tuple[list[ir.Node], tuple[ir.Node, int]]] = []
    open_ends: list[tuple[list[ir.Node], ir.Value]] = [([], source)]
    while open_ends:
        layout, value = open_ends.pop()
        for node, position in value.uses():
            if node.op_type in MATRIX_OPS:
                found.append((layout, (node, position)))
            elif node.op_type in _LAYOUT_OPS:
                open_ends.append(([*layout, node], node.outputs[0]))
            else:
                raise ExportError(
                    f"layer {layer!r}: its weight goes into {node.op_type} in the ONNX graph, which no rule brings into INT8; "
                    "leave the layer float (quantization.skip)"
                )
    if not found:
        raise ExportError(f"layer {layer!r}: no operation of the ONNX graph reads its weight")
    order = {node: number for number, node in enumerate(source.graph or ())}
    return sorted(found, key=lambda way: order[way[1][0]])


def through(layout: Iterable[ir.Node], array: np.ndarray) -> np.ndarray:
    """What the layout nodes make of an array."""
    for node in layout:
        array = _LAYOUT_OPS[node.op_type](node, array)
    return np.ascontiguousarray(array)


def _channel_axis(weight: WeightInput, layout: Iterable[ir.Node]) -> tuple[int | None, np.ndarray]:
    """The axis of the operation's operand that the channels lie along, and the channel at each of its indices; None per tensor."""
    if not weight.axes:
        return None, np.zeros(0, np.int64)
    shape = [size if axis in weight.axes else 1 for axis, size in enumerate(weight.codes.shape)]
    numbers = np.arange(weight.scale.size).reshape(shape)
    channels = through(layout, np.broadcast_to(numbers, weight.codes.shape))
    for axis in range(channels.ndim):
        along = np.moveaxis(channels, axis, 0).reshape(channels.shape[axis], -1)
        if (along == along[:, :1]).all() and channels.shape[axis] == weight.scale.size:
            return axis, along[:, 0]
    raise ExportError(
        f"layer {weight.layer!r}: the channels of its weight do not lie along one axis in the ONNX graph; quantize it per_tensor"
    )


def _reshape(node: ir.Node, array: np.ndarray) -> np.ndarray:
    return array.reshape([int(size) for size in constant_of(node.inputs[1])])


def _unsqueeze(node: ir.Node, array: np.ndarray) -> np.ndarray:
    return np.expand_dims(array, tuple(int(axis) for axis in constant_of(node.inputs[1])))


def _squeeze(node: ir.Node, array: np.ndarray) -> np.ndarray:
    return np.squeeze(array, tuple(int(axis) for axis in constant_of(node.inputs[1])))


_LAYOUT_OPS: Mapping[str, Callable[[ir.Node, np.ndarray], np.ndarray]] = {
    "Transpose": lambda node, array: array.transpose(permutation_of(node)),
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Identity": lambda node, array: array,
}
