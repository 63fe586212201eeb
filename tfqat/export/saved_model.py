"""Quantized Keras model -> SavedModel whose quantizers are TensorFlow's own operations, so that plain tf2onnx makes Q/DQ of them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfqat import numerics
from tfqat.errors import ExportError
from tfqat.export import tf2onnx_adapter
from tfqat.export.fold import Codes, fold_batch_norms
from tfqat.export.onnx import check_widths
from tfqat.export.plain import plain
from tfqat.models.dtypes import float32_policy
from tfqat.quantize import state
from tfqat.quantize.apply import with_fed_weights

QUANTIZED = Path("assets.extra") / "tfqat.keras"
"""The quantized model itself, in the folder that SavedModels have for what TensorFlow does not read."""

_HI = np.float32(127)


@float32_policy()
def export_saved_model(qmodel: Any, path: str | Path, *, fold_batchnorm: bool = True) -> None:
    """Write a calibrated quantized model as a SavedModel.

    Its signature `serving_default` has the model's inputs and outputs by name. Quantizers are `QuantizeAndDequantize`: TensorFlow
    computes these with a product where the grid is defined by a quotient, so a value at the edge between two codes can come out
    differently than in the Keras model and in the ONNX graph. `python -m tf2onnx.convert --saved-model` makes QuantizeLinear and
    DequantizeLinear of them, with the same scales and codes as `export_onnx`; but weights stay float before their Q, and a Reshape stands
    between those of a depthwise convolution, which TensorRT then runs in float. `tfqat export` takes the folder and writes the exact graph.

    Args:
        qmodel: a calibrated quantized model.
        path: the folder to make; written whole or not at all.
        fold_batchnorm: fold BatchNorm into the scales of the convolution before it.

    Raises:
        NotCalibratedError: a quantizer has no range.
        ExportError: the folder exists, or activations have a width other than 8 bits.
    """
    path = Path(path)
    if path.exists():
        raise ExportError(f"{path} exists; choose another folder, or remove it")
    handles, ranges = state.handles(qmodel), state.ranges(qmodel)
    check_widths([handle.point for handle in handles.values() if handle.weight is None])
    with tf2onnx_adapter.quiet_converters():
        folded = fold_batch_norms(qmodel, enabled=fold_batchnorm)
        model, fed = with_fed_weights(
            qmodel,
            lambda point: _Quantizer(numerics.scale_from_amax(ranges[point.id], point.spec).numpy()),
            clone=plain,
            biases=folded.biases,
            dropped=folded.dropped,
        )
        weights = [folded.codes[handles[point].point.source] for point in fed]
        _save(qmodel, _Serving(model, qmodel, weights), path)


class _Quantizer(tf_keras.layers.Layer):  # type: ignore[misc]
    """An activation quantizer as one operation."""

    def __init__(self, scale: np.ndarray) -> None:
        super().__init__()
        self._scale = scale

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """The input on the grid."""
        return _quantized(inputs, self._scale.reshape(-1), axis=-1)


class _Serving(tf.Module):
    """The model with its weights, and its signature."""

    def __init__(self, model: Any, qmodel: Any, weights: list[Codes]) -> None:
        super().__init__()
        self.model = model
        self._weights, self._inputs = weights, list(qmodel.inputs)
        names = list(qmodel.input_names)
        signature = {name: tf.TensorSpec(given.shape, given.dtype, name=name) for name, given in zip(names, self._inputs, strict=True)}

        def serve(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            fed = [inputs[name] for name in names] + [_weight(codes) for codes in self._weights]
            outputs = tf.nest.flatten(self.model(fed, training=False))
            return dict(zip(qmodel.output_names, outputs, strict=True))

        self.serve = tf.function(serve, autograph=False).get_concrete_function(**signature)


def _weight(codes: Codes) -> tf.Tensor:
    """A weight as floats and its quantizer; scales along several axes (of a depthwise kernel) lie along one in between."""
    axes, shape = codes.axes, codes.codes.shape
    scale = np.asarray(codes.scale, np.float32)
    along = scale.reshape([size if axis in axes else 1 for axis, size in enumerate(shape)]) if axes else scale
    values = codes.codes.astype(np.float32) * along
    if len(axes) < 2:
        return _quantized(tf.constant(values), scale.reshape(-1), axis=axes[0] if axes else -1)
    if axes != tuple(range(axes[0], axes[0] + len(axes))):
        raise ExportError(f"a weight of shape {shape} has scales along the axes {axes}, which do not follow each other")
    merged = (*shape[: axes[0]], scale.size, *shape[axes[-1] + 1 :])
    return tf.reshape(_quantized(tf.constant(values.reshape(merged)), scale.reshape(-1), axis=axes[0]), shape)


def _quantized(value: tf.Tensor, scales: np.ndarray, *, axis: int) -> tf.Tensor:
    """One operation with these scales: tf2onnx divides the upper end of the range by 127 to get them.

    V4 rounds half to even, but takes no scales along an axis on a CPU (TensorFlow 2.21). V3 takes them; weights lie on codes already.
    """
    largest = _ends(scales)
    if axis == -1:
        largest = largest.reshape(())
    operation = tf.raw_ops.QuantizeAndDequantizeV4 if axis == -1 else tf.raw_ops.QuantizeAndDequantizeV3
    return operation(input=value, input_min=-largest, input_max=largest, signed_input=True, num_bits=8, range_given=True, axis=axis)


def _ends(scales: np.ndarray) -> np.ndarray:
    """The largest float32 that gives each scale when it is divided by 127, or the nearest."""
    ends = scales * _HI
    for candidate in (np.nextafter(ends, np.float32(0)), np.nextafter(ends, np.float32(np.inf))):
        ends = np.where((ends / _HI != scales) & (candidate / _HI == scales), candidate, ends)
    return ends.astype(np.float32)


def _save(qmodel: Any, serving: _Serving, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    try:
        tf.saved_model.save(serving, str(temporary), signatures={"serving_default": serving.serve})
        (temporary / QUANTIZED).parent.mkdir()
        qmodel.save(temporary / QUANTIZED)
        temporary.chmod(0o755)
        temporary.rename(path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
