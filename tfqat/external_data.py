"""Where the constants of an ONNX graph lie that are not in its file: in the same folder, or nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def outside(model: Any, path: Path) -> str | None:
    """The first file of a graph's external data that is not within the folder of the graph; None if there is none.

    onnx and ONNX Runtime refuse such a graph when they load it; onnx_ir 1.1 not before it reads the constant, with a ValueError.

    Args:
        model: an onnx_ir.Model, of which no constant has been read.
        path: its file.
    """
    folder = path.parent.resolve()
    for tensor in _external(model):
        location = str(tensor.location)
        target = Path(location)
        if target.is_absolute() or ".." in target.parts or not (folder / target).resolve().is_relative_to(folder):
            return location
    return None


def _external(model: Any) -> Iterator[Any]:
    import onnx_ir as ir

    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    for graph in graphs:
        for value in getattr(graph, "initializers", {}).values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in ir.traversal.RecursiveGraphIterator(graph):
            for attribute in node.attributes.values():
                yield from _of_attribute(attribute)


def _of_attribute(attribute: Any) -> Iterator[Any]:
    import onnx_ir as ir

    if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
        yield attribute.value
    inner = {ir.AttributeType.GRAPH: [attribute.value], ir.AttributeType.GRAPHS: attribute.value}.get(attribute.type, ())
    for graph in inner:
        yield from (value.const_value for value in graph.initializers.values() if isinstance(value.const_value, ir.ExternalTensor))
