"""The passes that give a graph its form (see `tfqat.form`), and the opset that it is written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import version_converter
from onnx_ir import convenience

from tfqat.errors import ExportError
from tfqat.export.edit import SETTLED, add_initializer, constant_of
from tfqat.form import Form, Pixels, images


def apply(graph: ir.Graph, form: Form) -> None:
    """Give a graph its form.

    Requires: inputs in Keras's layout; Q directly before DQ. Ensures: the values of the graph stay.

    Raises:
        ExportError: a size that the model does not take, or other outputs than the model has.
    """
    _rename_outputs(graph, form.outputs)
    found = _images(graph, form)
    _set_sizes(graph, form, found)
    for value in found:
        if form.pixels is not None:
            _pixels_in(graph, value, form.pixels)
        if form.layout == "nchw" and len(value.shape or ()) > 3:
            _channels_first(graph, value)
    if form != Form():
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None  # inferred anew, from the inputs
        _set_batch_of_outputs(graph, form.batch)


_PASSES_BY = 1_000_000
"""Bytes from which a constant stays out while the converter works: what it takes is one message of at most 2 GB."""


def upgraded(model: ir.Model, opset: int) -> ir.Model:
    """The same graph in a later opset, by ONNX's own converter; names, constants and metadata stay. The given model is used up.

    Raises:
        ExportError: the converter does not know how.
    """
    held: dict[str, ir.TensorProtocol] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes >= _PASSES_BY:
            held[name] = tensor
            value.const_value = ir.ExternalTensor("held", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)
    try:
        converted = ir.from_proto(version_converter.convert_version(ir.to_proto(model), opset))
    except Exception as error:  # the converter raises RuntimeError and its own classes (onnx 1.19)
        raise ExportError(f"ONNX's version converter cannot write opset {opset}: {str(error).splitlines()[0]}; take a lower one") from error
    for name, tensor in held.items():
        converted.graph.initializers[name].const_value = tensor
    return converted


def _images(graph: ir.Graph, form: Form) -> list[ir.Value]:
    """The inputs that are images.

    Raises:
        ExportError: the form says something of images, and there is none.
    """
    names = images({str(value.name): len(value.shape or ()) for value in graph.inputs})
    found = [value for value in graph.inputs if value.name in names]
    asked = [key for key, given in (("size", form.size), ("pixels", form.pixels), ("layout nchw", form.layout == "nchw")) if given]
    if asked and not (found if asked != ["layout nchw"] else [value for value in found if len(value.shape or ()) > 3]):
        shapes = ", ".join(f"{value.name} {value.shape}" for value in graph.inputs)
        raise ExportError(f"{asked[0]} is for images, and no input is one: {shapes}; leave it out")
    return found


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


def _set_sizes(graph: ir.Graph, form: Form, found: Sequence[ir.Value]) -> None:
    for value in graph.inputs:
        if value.shape is None:
            continue
        sizes = list(value.shape)
        if form.batch is not None:
            sizes[0] = _agreed(value, sizes[0], form.batch, "batch")
        if form.size is not None and value in found:
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
    """Let the graph read an input channels first: a Transpose behind it, and behind what works on each value where only that reads it.

    before   x -> Q -> DQ -> y          after   x' -> Q -> DQ -> Transpose -> y
    """
    assert value.shape is not None
    sizes = list(value.shape)
    value.shape = ir.Shape([sizes[0], sizes[-1], *sizes[1:-1]])
    last = value
    for kind in (*_NORMALIZING, "QuantizeLinear", "DequantizeLinear"):
        readers = [use.node for use in last.uses()]
        own = kind not in _NORMALIZING or (readers and readers[0].name == f"{value.name}/{_NORMALIZING[kind]}")
        if len(readers) == 1 and readers[0].op_type == kind and own and (kind in _NORMALIZING or _scales(readers[0]) == 1):
            last = readers[0].outputs[0]
            if kind in ("Sub", "Div"):
                _along_axis_1(graph, readers[0], len(sizes))
    if last.producer() is not None and last.producer().op_type == "QuantizeLinear":  # type: ignore[union-attr]
        last = last.producer().inputs[0]  # type: ignore[union-attr, assignment]
    first = _first_reader(graph, last)
    if first is None:
        return
    back = [0, *range(2, len(sizes)), 1]
    node = ir.node("Transpose", [last], attributes={"perm": back}, name=f"{value.name}/channels_last")
    node.outputs[0].name, node.outputs[0].type = f"{value.name}/channels_last.out", last.type
    convenience.replace_all_uses_with(last, node.outputs[0])
    node.replace_input_with(0, last)
    graph.insert_before(first, node)


def _first_reader(graph: ir.Graph, value: ir.Value) -> ir.Node | None:
    """The first node of the graph that reads a value; None if none does."""
    readers = [use.node for use in value.uses()]
    return next((node for node in graph if any(node is reader for reader in readers)), None)


def _along_axis_1(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Let a constant for each channel lie along the second axis."""
    constant = node.inputs[1]
    array = constant_of(constant)
    if array.ndim == 1 and constant is not None:
        graph.initializers.pop(str(constant.name))
        node.replace_input_with(1, add_initializer(graph, str(constant.name), array.reshape(-1, *[1] * (rank - 2))))


def _pixels_in(graph: ir.Graph, value: ir.Value, pixels: Pixels) -> None:
    """Let the graph take uint8 pixels in an input, and normalize them itself.

        before   x -> y          after   pixels -> Cast -> Sub(mean) -> Div(std) -> y

    Requires: an input of float32, channels last. Ensures: the values behind it are those that the model was given.

    Raises:
        ExportError: one number for each channel, and another number of channels.
    """
    channels = list(value.shape)[-1] if value.shape is not None else None
    for key, numbers in (("mean", pixels.mean), ("std", pixels.std)):
        if len(numbers) not in (1, channels):
            raise ExportError(
                f"input {value.name!r} has {channels} channels; got {len(numbers)} numbers for pixels.{key}, expected 1 or {channels}"
            )
    readers, first = [(use.node, use.idx) for use in value.uses()], _first_reader(graph, value)
    value.type = ir.TensorType(ir.DataType.UINT8)
    if first is None:
        return
    last = value
    steps: tuple[tuple[str, tuple[float, ...]], ...] = (("Cast", ()), ("Sub", pixels.mean), ("Div", pixels.std))
    for kind, numbers in steps:
        name = f"{value.name}/{_NORMALIZING[kind]}"
        constant = [add_initializer(graph, f"{name}.in1", _constant(numbers))] if numbers else []
        node = ir.node(kind, [last, *constant], attributes={} if numbers else {"to": int(ir.DataType.FLOAT)}, name=name)
        node.meta[SETTLED] = True
        node.outputs[0].name, node.outputs[0].type = f"{name}.out", ir.TensorType(ir.DataType.FLOAT)
        graph.insert_before(first, node)
        last = node.outputs[0]
    for node, index in readers:
        node.replace_input_with(index, last)


_NORMALIZING = {"Cast": "pixels", "Sub": "less_mean", "Div": "normalized"}


def _constant(numbers: Sequence[float]) -> np.ndarray:
    return np.array(numbers if len(numbers) > 1 else numbers[0], np.float32)


def _scales(node: ir.Node) -> int:
    found = convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    return int(found.numpy().size) if found is not None else 0
