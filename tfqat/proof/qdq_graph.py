"""A Q/DQ graph as it is in a file, whoever wrote it: its inputs, points, scales, weight codes, and a session that returns codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from tfqat.errors import ExportError
from tfqat.export.edit import weight_codes
from tfqat.external_data import outside
from tfqat.form import Form, Pixels, images
from tfqat.proof.cut import session_of, with_free_batch
from tfqat.proof.segments import point_of

Q, DQ = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """An input in Keras's layout: its sizes (None: free), the first of which is the batch, and its type."""

    sizes: tuple[int | None, ...]
    dtype: np.dtype[Any]
    pixels: Pixels | None = None


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Codes of a constant, or None for an activation; scale and zero point of either."""

    scale: np.ndarray
    zero_point: np.ndarray
    codes: np.ndarray | None = None

    @property
    def steps(self) -> np.ndarray:
        """Code minus zero point of a weight, without the axes of size 1, which a layout may add."""
        return np.squeeze(np.asarray(self.codes).astype(np.int16) - self.zero_point.ravel()[0])


@dataclass(frozen=True, kw_only=True, eq=False)
class QdqGraph:
    """One file. `points` (their Q), `readers` (their DQ) and `weights` are in the order of its nodes; `constants` are its other floats."""

    path: Path
    model: ir.Model
    form: Form
    inputs: Mapping[str, GraphInput]
    points: Mapping[str, Grid]
    readers: Mapping[str, Grid]
    weights: Mapping[str, Grid]
    constants: Mapping[str, np.ndarray]

    @classmethod
    def open(cls, path: str | Path) -> QdqGraph:
        """Read a file.

        Raises:
            ExportError: it is missing, no ONNX graph, or holds no Q/DQ.
        """
        path = Path(path)
        model = load(path)
        graph, form = model.graph, Form.of(model.metadata_props)
        points = {_name(node): _grid(node) for node in graph if _is_point(node)}
        uneven = [name for name, grid in points.items() if grid.zero_point.ndim]
        if uneven:
            raise ExportError(f"{path}: point {uneven[0]!r} has different zero points by channel; expected one, as TensorRT asks for")
        dequantized = {_name(node): _grid(node) for node in graph if node.op_type == DQ}
        if not points:
            raise ExportError(f"{path} holds no QuantizeLinear of an activation; expected a Q/DQ graph, such as model.onnx of a run")
        return cls(
            path=path,
            model=model,
            form=form,
            inputs=_inputs(graph.inputs, form),
            points=points,
            readers={name: grid for name, grid in dequantized.items() if grid.codes is None},
            weights={name: grid for name, grid in dequantized.items() if grid.codes is not None},
            constants=dict(_other_constants(graph)),
        )

    def session(self) -> Any:
        """An ONNX Runtime session that runs the graph literally, on any batch size, and returns its outputs and `codes/<point>`."""
        model = with_free_batch(self.path)
        for node in model.graph:
            if _is_point(node):
                codes = _read_codes(node)
                codes.name, codes.type = f"codes/{_name(node)}", ir.TensorType(_code_type(node))
                model.graph.outputs.append(codes)
        return session_of(model, literal=True)

    def quantizer(self, point: str) -> ir.Node:
        """The Q node of a point."""
        return next(node for node in self.model.graph if _is_point(node) and _name(node) == point)


def load(path: Path) -> ir.Model:
    """The graph in a file.

    Raises:
        ExportError: it is missing or no ONNX graph.
    """
    if not path.is_file():
        raise ExportError(f"ONNX file {path} does not exist")
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise several types for a file that is no model.
        raise ExportError(f"{path} is not an ONNX model: {error}") from error
    if not list(model.graph):
        raise ExportError(f"{path} is not an ONNX model: it holds no nodes")
    if (location := outside(model, path)) is not None:
        raise ExportError(f"{path} is refused: its external data {location!r} are outside its folder; put them beside the model")
    return model


def _is_point(node: ir.Node) -> bool:
    return node.op_type == Q and _constant(node.inputs[0]) is None


def _read_codes(quantize: ir.Node) -> ir.Value:
    """The codes as the DequantizeLinear reads them, behind what works on codes; where several read them, as they are made."""
    value = quantize.outputs[0]
    while len(uses := list(value.uses())) == 1 and uses[0].node.op_type != DQ and len(uses[0].node.outputs) == 1:
        value = uses[0].node.outputs[0]
    return value if uses and uses[0].node.op_type == DQ else quantize.outputs[0]


def _name(node: ir.Node) -> str:
    return point_of(node) or str(node.outputs[0].name)


def _grid(node: ir.Node) -> Grid:
    zero = _constant(node.inputs[2]) if len(node.inputs) > 2 else None
    zero = np.zeros((), np.int16) if zero is None else zero.astype(np.int16)
    return Grid(
        scale=np.asarray(_constant(node.inputs[1]), np.float32),
        zero_point=zero if len(np.unique(zero)) > 1 else zero.ravel()[0].reshape(()),
        codes=weight_codes(node) if node.op_type == DQ else _constant(node.inputs[0]),
    )


def _code_type(node: ir.Node) -> ir.DataType:
    """That of the zero point; without one what the node says, and without that uint8 (ONNX's rule)."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    tensor = convenience.get_const_tensor(zero) if zero is not None else None
    if tensor is not None:
        return ir.DataType(tensor.dtype)
    return ir.DataType(node.attributes["output_dtype"].as_int()) if "output_dtype" in node.attributes else ir.DataType.UINT8


def _inputs(values: Sequence[ir.Value], form: Form) -> dict[str, GraphInput]:
    found = images({str(value.name): len(value.shape or ()) for value in values})
    return {str(value.name): _input(value, form if value.name in found else Form()) for value in values}


def _input(value: ir.Value, form: Form) -> GraphInput:
    sizes = [size if isinstance(size, int) else None for size in (value.shape or ())]
    if form.layout == "nchw" and len(sizes) > 3:
        sizes = [sizes[0], *sizes[2:], sizes[1]]
    pixels = form.pixels
    dtype = value.dtype.numpy() if value.dtype is not None and pixels is None else np.dtype(np.float32)
    return GraphInput(sizes=(None, *sizes[1:]), dtype=dtype, pixels=pixels)


def _other_constants(graph: ir.Graph) -> Iterator[tuple[str, np.ndarray]]:
    """The float constants that are no scale and no weight: biases, bounds of a Clip, what BatchNorm leaves."""
    for node in graph:
        for value in node.inputs if node.op_type not in (Q, DQ) else ():
            array = _constant(value)
            if array is not None and value is not None and array.dtype == np.float32:
                yield str(value.name), array


def _constant(value: ir.Value | None) -> np.ndarray | None:
    tensor = convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else np.asarray(tensor.numpy())
