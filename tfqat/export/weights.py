"""The pass that puts int8 codes in the place of the weights, in whatever layout the graph reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from tfqat.errors import ExportError
from tfqat.export.edit import MATRIX_OPS, SETTLED, constant_of, dequantize_before, permutation_of


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

    Raises:
        ExportError: an input does not end in exactly one convolution or matrix product, or its channels do not lie along one axis there.
    """
    for weight in weights:
        source = next((value for value in graph.inputs if value.name == weight.input_name), None)
        if source is None:
            raise ExportError(
                f"layer {weight.layer!r}: the ONNX graph lost its weight {weight.weight!r}; is the layer part of the outputs?"
            )
        layout, (operation, position) = _way_to_operation(weight, source)
        codes = _through(layout, weight.codes)
        axis, channels = _channel_axis(weight, layout)
        scale = weight.scale.reshape(-1)[channels] if axis is not None else weight.scale
        operation.replace_input_with(position, dequantize_before(graph, operation, f"{weight.layer}/{weight.weight}", codes, scale, axis))
        operation.name, operation.meta[SETTLED] = weight.layer, True
        graph.remove(list(reversed(layout)), safe=True)
        graph.inputs.remove(source)


def _way_to_operation(weight: WeightInput, source: ir.Value) -> tuple[list[ir.Node], tuple[ir.Node, int]]:
    """The nodes that only change the layout of the weight, and the operation that reads it, with the position of the operand."""
    layout: list[ir.Node] = []
    value = source
    while True:
        readers = list(value.uses())
        if len(readers) != 1:
            raise ExportError(f"layer {weight.layer!r}: its weight is read {len(readers)} times in the ONNX graph; expected once")
        node, position = readers[0]
        if node.op_type in MATRIX_OPS:
            return layout, (node, position)
        if node.op_type not in _LAYOUT_OPS:
            raise ExportError(
                f"layer {weight.layer!r}: its weight goes into {node.op_type} in the ONNX graph, which no rule brings into an INT8 form; "
                "leave the layer float (quantization.skip)"
            )
        layout.append(node)
        value = node.outputs[0]


def _through(layout: Iterable[ir.Node], array: np.ndarray) -> np.ndarray:
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
    channels = _through(layout, np.broadcast_to(numbers, weight.codes.shape))
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
