"""The passes that give a graph its form (see `tfqat.form`), and the opset that it is written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir import convenience

from tfqat.errors import ExportError
from tfqat.form import Form


def apply(graph: ir.Graph, form: Form) -> None:
    """Give a graph its form.

    Requires: inputs in Keras's layout; Q directly before DQ. Ensures: the values of the graph stay.

    Raises:
        ExportError: a size that the model does not take, or other outputs than the model has.
    """
    _rename_outputs(graph, form.outputs)
    _set_sizes(graph, form)
    if form.layout == "nchw":
        for value in graph.inputs:
            if _has_channels(value):
                _channels_first(graph, value)
    if form != Form():
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None  # inferred anew, from the inputs
        _set_batch_of_outputs(graph, form.batch)


def upgraded(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same graph in a later opset, by ONNX's own converter; names, constants and metadata stay.

    Raises:
        ExportError: the converter does not know how.
    """
    try:
        return version_converter.convert_version(proto, opset)
    except Exception as error:  # the converter raises RuntimeError and its own classes (onnx 1.19)
        raise ExportError(f"ONNX's version converter cannot write opset {opset}: {str(error).splitlines()[0]}; take a lower one") from error


def _has_channels(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) > 2


def _rename_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    if not names:
        return
    if len(names) != len(graph.outputs) or len(set(names)) != len(names):
        raise ExportError(f"the model has the outputs {', '.join(str(value.name) for value in graph.outputs)}; got the names {list(names)}")
    taken = {str(value.name) for value in graph.inputs} & set(names)
    if taken:
        raise ExportError(f"an output cannot be called {min(taken)!r}: an input is")
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _set_sizes(graph: ir.Graph, form: Form) -> None:
    for value in graph.inputs:
        if value.shape is None:
            continue
        sizes = list(value.shape)
        if form.batch is not None:
            sizes[0] = _agreed(value, sizes[0], form.batch, "batch")
        if form.size is not None and _has_channels(value):
            if len(form.size) != len(sizes) - 2:
                raise ExportError(f"input {value.name!r} has {len(sizes) - 2} axes between batch and channels; got the size {form.size}")
            sizes[1:-1] = [_agreed(value, old, new, "size") for old, new in zip(sizes[1:-1], form.size, strict=True)]
        value.shape = ir.Shape(sizes)


def _agreed(value: ir.Value, old: Any, new: int, what: str) -> int:
    if isinstance(old, int) and old != new:
        raise ExportError(f"input {value.name!r} of the model has a fixed {what} of {old}; got {new}: build the model with that axis free")
    return new


def _set_batch_of_outputs(graph: ir.Graph, batch: int | None) -> None:
    for value in graph.outputs:
        if value.shape is not None and batch is not None:
            value.shape = ir.Shape([batch, *list(value.shape)[1:]])


def _channels_first(graph: ir.Graph, value: ir.Value) -> None:
    """Let the graph read an input channels first: a Transpose behind it, and behind its Q/DQ where only those read it.

    before   x -> Q -> DQ -> y          after   x' -> Q -> DQ -> Transpose -> y
    """
    assert value.shape is not None
    sizes = list(value.shape)
    value.shape = ir.Shape([sizes[0], sizes[-1], *sizes[1:-1]])
    last = value
    for kind in ("QuantizeLinear", "DequantizeLinear"):
        readers = [use.node for use in last.uses()]
        if len(readers) != 1 or readers[0].op_type != kind or _scales(readers[0]) != 1:
            break
        last = readers[0].outputs[0]
    last = last if last.producer() is None or last.producer().op_type == "DequantizeLinear" else value  # type: ignore[union-attr]
    back = [0, *range(2, len(sizes)), 1]
    node = ir.node("Transpose", [last], attributes={"perm": back}, name=f"{value.name}/channels_last")
    node.outputs[0].name, node.outputs[0].type = f"{value.name}/channels_last.out", ir.TensorType(ir.DataType.FLOAT)
    readers = [use.node for use in last.uses() if use.node is not node]
    convenience.replace_all_uses_with(last, node.outputs[0])
    node.replace_input_with(0, last)
    graph.insert_before(readers[0], node)


def _scales(node: ir.Node) -> int:
    found = convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    return int(found.numpy().size) if found is not None else 0
