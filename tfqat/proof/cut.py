"""Opens a Q/DQ graph at its quantization points, so that codes can be read from it and fed into it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience

from tfqat.engines import onnxruntime as runtime
from tfqat.errors import ExportError
from tfqat.export import edit

_CODES, _GIVEN = "codes/", "given/"


@dataclass(frozen=True)
class OpenGraph:
    """A graph whose codes can be read, and fed where it is cut, running in ONNX Runtime.

    Attributes:
        session: of ONNX Runtime.
        zero_points: what the graph adds to the codes of each point.
        is_cut: whether every segment reads codes that it is given.
    """

    session: Any
    zero_points: Mapping[str, int]
    is_cut: bool

    @classmethod
    def observed(cls, path: str | Path, points: Iterable[str]) -> OpenGraph:
        """The model with the int8 codes of every point as further outputs."""
        model = with_free_batch(path)
        zero_points = _add_code_outputs(model.graph, points)
        return cls(session_of(model, literal=True), zero_points, False)

    @classmethod
    def segmented(cls, path: str | Path, points: Iterable[str], *, literal: bool = True) -> OpenGraph:
        """The model cut at every point: DequantizeLinear reads codes that are given, and the codes that come out are further outputs.

        `literal`: see `tfqat.engines.onnxruntime.session`.

        before   segment A -> Q -> DQ -> segment B          after   A -> Q -> codes/p      given/p -> DQ -> B
        """
        model = with_free_batch(path)
        zero_points = _add_code_outputs(model.graph, tuple(points))
        for point in zero_points:
            dequantize = _node(model.graph, f"{point}/DQ")
            codes = dequantize.inputs[0]
            given = ir.Value(name=f"{_GIVEN}{point}", type=codes.type if codes is not None else None)
            model.graph.inputs.append(given)
            dequantize.replace_input_with(0, given)
        return cls(session_of(model, literal=literal), zero_points, True)

    def __call__(
        self, inputs: Mapping[str, np.ndarray], codes: Mapping[str, np.ndarray] | None = None
    ) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
        """The model's own outputs, and the codes by point, less their zero points.

        Args:
            inputs: by name, as the graph takes them.
            codes: what the segments read, in the graph's layout; for a graph that is cut.
        """
        given = {f"{_GIVEN}{point}": self._as_stored(point, array) for point, array in (codes or {}).items()} if self.is_cut else {}
        names = [value.name for value in self.session.get_outputs()]
        values = dict(zip(names, runtime.execute(self.session, {**inputs, **given}), strict=True))
        found = {point: self._as_codes(point, values[f"{_CODES}{point}"]) for point in self.zero_points}
        return [values[name] for name in names if not name.startswith(_CODES)], found

    def _as_stored(self, point: str, codes: np.ndarray) -> np.ndarray:
        zero = self.zero_points[point]
        return (codes.astype(np.int16) + zero).astype(np.uint8) if zero or self._is_unsigned(point) else codes

    def _is_unsigned(self, point: str) -> bool:
        return next(one.type == "tensor(uint8)" for one in self.session.get_inputs() if one.name == f"{_GIVEN}{point}")

    def _as_codes(self, point: str, stored: np.ndarray) -> np.ndarray:
        """In int8; of int16 where codes are outside of it, which no grid of ours has."""
        if stored.dtype == np.int8:
            return stored
        shifted = stored.astype(np.int16) - self.zero_points[point]
        return shifted.astype(np.int8) if shifted.min(initial=0) >= -128 and shifted.max(initial=0) <= 127 else shifted


def session_of(model: ir.Model, *, literal: bool) -> Any:
    """ONNX Runtime with a graph; one too large for a message of ONNX goes through a file."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size <= edit.IN_MEMORY:
        return runtime.session(ir.to_proto(ir.external_data.load_to_model(model)).SerializeToString(), literal=literal)
    with tempfile.TemporaryDirectory() as folder:  # ONNX Runtime has read all of it when the session is there
        path = Path(folder, "model.onnx")
        ir.save(model, path, external_data="model.onnx.data")
        return runtime.session(path, literal=literal)


def with_free_batch(path: str | Path) -> ir.Model:
    """The model; one that is written for a fixed batch size computes the same for every other."""
    model = ir.load(path)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None  # it holds the fixed size too, which ONNX Runtime would make a constant of
    return model


def _add_code_outputs(graph: ir.Graph, points: Iterable[str]) -> dict[str, int]:
    """Let the graph return the codes of each point; the zero points."""
    zero_points = {}
    for point in points:
        dequantize = _node(graph, f"{point}/DQ")
        codes = dequantize.inputs[0]
        zero = convenience.get_const_tensor(dequantize.inputs[2]) if len(dequantize.inputs) > 2 and dequantize.inputs[2] else None
        assert codes is not None
        codes.name = f"{_CODES}{point}"
        codes.type = ir.TensorType(ir.DataType.INT8 if zero is None else zero.dtype)
        graph.outputs.append(codes)
        zero_points[point] = 0 if zero is None else int(zero.numpy())
    return zero_points


def _node(graph: ir.Graph, name: str) -> ir.Node:
    node = next((node for node in graph if node.name == name), None)
    if node is None:
        raise ExportError(f"the ONNX graph has no node {name!r}: it was not exported from this model, or by another tool")
    return node
