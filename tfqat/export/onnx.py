"""Quantized Keras model -> ONNX file with Q/DQ that TensorRT compiles: weights as int8 codes, BatchNorm folded into their scales."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from tfqat import __version__, files
from tfqat.errors import ExportError, RunDirectoryError
from tfqat.export import edit, naming, passes, tf2onnx_adapter
from tfqat.export import form as forms
from tfqat.export.float_parts import float_weights, in_float16
from tfqat.export.fold import BatchNormResult, Codes, fold_batch_norms
from tfqat.export.large import put_back, with_large_weights_apart
from tfqat.export.plain import plain
from tfqat.export.unsigned import saturating_products, unsigned_codes
from tfqat.export.weights import WeightInput, quantize_weights
from tfqat.form import Form
from tfqat.models.dtypes import float32_policy
from tfqat.models.names import given_name
from tfqat.placement.plan import QPoint
from tfqat.quantize import state
from tfqat.quantize.apply import with_fed_weights

FOLD_BATCHNORM = "tfqat.fold_batchnorm"
"""The metadata entry that says whether BatchNorm was to be folded."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What was written: the file, its size in bytes, the number of points of each kind, and what became of each BatchNorm.

    `saturating` names the layers that ONNX Runtime computes wrong on a CPU without VNNI: those with 8-bit weights that read tensors of
    both signs, in a graph that is for ONNX Runtime and a model that was not planned for it.
    """

    path: Path
    opset: int
    size_bytes: int
    activations: int
    weights: int
    batch_norms: tuple[BatchNormResult, ...]
    operations: Mapping[str, str]
    saturating: tuple[str, ...] = ()

    @property
    def kept_batch_norms(self) -> tuple[BatchNormResult, ...]:
        """The BatchNorms that could not be folded, with the reason."""
        return tuple(result for result in self.batch_norms if not result.folded)


@float32_policy()
def export_onnx(
    qmodel: Any,
    path: str | Path,
    *,
    opset: int = 17,
    fold_batchnorm: bool = True,
    form: Form | None = None,
    metadata: Mapping[str, str] | None = None,
    external_data: bool | None = None,
) -> ExportReport:
    """Write a calibrated quantized model as an ONNX Q/DQ graph.

    Args:
        qmodel: a calibrated quantized model.
        path: the file to write; written whole or not at all.
        opset: 13 to 23; above 17 by ONNX's version converter.
        fold_batchnorm: fold BatchNorm into the scales of the convolution before it.
        form: the runtime, types, sizes of axes, inputs and names of outputs; None: for TensorRT, as the model has them, with a free batch.
        metadata: entries for the file's metadata, such as the recipe's hash.
        external_data: put the constants into a file of their own beside `path`, `model.onnx.data`; None: above 1.5 GB.

    Raises:
        NotCalibratedError: a quantizer has no range.
        ExportError: the opset is out of range, an operation has no ONNX counterpart, or activations have a width other than 8 bits.
    """
    handles = state.handles(qmodel)
    ranges = state.ranges(qmodel)
    activations = [handle.point for handle in handles.values() if handle.weight is None]
    check_widths(activations)
    markers = {point.id: tf2onnx_adapter.Marker(point, ranges[point.id], number=number) for number, point in enumerate(activations)}
    with tf2onnx_adapter.quiet_converters():
        folded = fold_batch_norms(qmodel, enabled=fold_batchnorm)
        model, weight_inputs = with_fed_weights(
            qmodel, lambda point: markers[point.id], clone=plain, biases=folded.biases, dropped=folded.dropped, kernels=folded.kernels
        )
    form = form or Form()
    converted = tf2onnx_adapter.convert(model, opset=opset, markers=tuple(markers.values()))
    graph = converted.graph
    weights = [_weight_input(handles[point].point, name, folded.codes) for point, name in weight_inputs.items()]
    _bring_into_form(graph, weights, form, state.non_negative(handles))
    saturating = tuple(saturating_products(graph)) if form.target == "onnxruntime" else ()
    operations = naming.name_after_layers(
        graph, [name for layer in model.layers for name in dict.fromkeys((layer.name, given_name(layer.name)))], prefix=model.name
    )
    naming.settle_constants(graph)
    naming.name_dimensions(graph)
    recorded = {"tfqat.version": __version__, "tfqat.opset": str(opset), FOLD_BATCHNORM: str(fold_batchnorm).lower()}
    recorded |= form.to_metadata()
    if form.remainder == "float16":
        converted = in_float16(converted)
    size = _write(converted, Path(path), {**(metadata or {}), **recorded}, opset=opset, external_data=external_data)
    return ExportReport(
        path=Path(path),
        opset=opset,
        size_bytes=size,
        activations=len(activations),
        weights=len(handles) - len(activations),
        batch_norms=folded.batch_norms,
        operations=operations,
        saturating=saturating,
    )


def _bring_into_form(graph: ir.Graph, weights: Sequence[WeightInput], form: Form, non_negative: Collection[str]) -> None:
    """All passes over the structure of the graph, in their order."""
    quantize_weights(graph, weights)
    passes.join_quantizers(graph)
    forms.apply(graph, form)
    passes.cancel_transposes(graph)
    passes.plain_resizes(graph)
    passes.padded_average_pools(graph)
    if form.target == "onnxruntime":
        unsigned_codes(graph, non_negative)
    if form.weights == "float":
        float_weights(graph)


def export_float_onnx(model: Any, path: str | Path, *, opset: int = 17) -> int:
    """Write a float model as tf2onnx converts it, for comparison; returns the size in bytes."""
    model, apart = with_large_weights_apart(model)
    converted = tf2onnx_adapter.convert(model, opset=opset)
    put_back(converted.graph, apart)
    return _write(converted, Path(path), {}, opset=opset)


def _weight_input(point: QPoint, input_name: str, codes: Mapping[str, Codes]) -> WeightInput:
    found = codes[point.source]
    return WeightInput(
        layer=point.given_source, weight=str(point.weight), input_name=input_name, codes=found.codes, scale=found.scale, axes=found.axes
    )


def check_widths(points: list[QPoint]) -> None:
    """Make sure that all activations have 8 bits.

    Raises:
        ExportError: one has another width.
    """
    narrow = [point.id for point in points if point.spec.num_bits != 8]
    if narrow:
        raise ExportError(
            f"activations of {narrow[0]!r} have a width other than 8 bits: QuantizeLinear has int8 codes only up to opset 18; use 8 bits"
        )


def _write(model: ir.Model, path: Path, metadata: Mapping[str, str], *, opset: int, external_data: bool | None = None) -> int:
    model.metadata_props.update(metadata)
    model.producer_name, model.producer_version, model.graph.doc_string = "tfqat", __version__, None
    if opset > tf2onnx_adapter.LAST_OPSET:
        model = forms.upgraded(model, opset)
    constants = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if constants > edit.IN_MEMORY if external_data is None else external_data:
        return _write_with_data(model, path)
    proto = ir.to_proto(model)
    _check(proto)
    # Shapes of inner values can be inferred again from the rest; in a small network they are 5% of the file.
    del proto.graph.value_info[:]
    data = proto.SerializeToString()
    _write_alone(path, data)
    return len(data)


def _write_with_data(model: ir.Model, path: Path) -> int:
    """Write the graph and, beside it, the file of its constants; both are in place, or what was there before."""
    data = _data_file(path)
    if path.is_dir() or data.is_dir():
        raise RunDirectoryError(f"cannot write {path}: {path if path.is_dir() else data} is a folder; choose another name")
    try:
        with files.staging(path.parent) as folder:
            written = folder / path.name
            ir.save(model, written, external_data=data.name, size_threshold_bytes=1024)
            _check(str(written))
            size = written.stat().st_size + (folder / data.name).stat().st_size
            with files.one_at_a_time(path.parent):
                # The data first: a graph without its data cannot be read.
                files.put_in_place([(folder / data.name, data), (written, path)], folder)
    except OSError as error:
        raise files.unwritable(path, error) from error
    return size


def _write_alone(path: Path, content: bytes) -> None:
    """Write a graph that holds its constants; the file with those of the graph that was there before goes with it."""
    with files.one_at_a_time(path.parent):
        stale = _reads_data_file(path)
        files.write_bytes(path, content)
        if stale:
            _data_file(path).unlink(missing_ok=True)


def _reads_data_file(path: Path) -> bool:
    """Whether a graph is there whose constants are in its data file."""
    data = _data_file(path)
    if not (path.is_file() and data.is_file()):
        return False
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (OSError, DecodeError):
        return False
    return any(entry.key == "location" and entry.value == data.name for one in graph.initializer for entry in one.external_data)


def _data_file(path: Path) -> Path:
    """Where the constants of a graph are that has them in a file of their own."""
    return path.with_name(f"{path.name}.data")


def _check(model: onnx.ModelProto | str) -> None:
    """ONNX's own checks, with shape inference in strict mode."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"the exported graph is not valid ONNX: {str(error).splitlines()[0]}. This is a fault of tfqat: please report it"
        ) from error
