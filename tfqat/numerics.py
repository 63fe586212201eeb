"""The arithmetic of quantization: amax -> scale, quantize, dequantize, fake_quantize and its gradient. Nothing else defines them.

The grid is symmetric with zero point 0, as ONNX's QuantizeLinear and TensorRT define it:

    scale = max(amax, TINY) / hi                      hi = 2 ** (num_bits - 1) - 1
    code  = clip(round_half_even(x / scale), lo, hi)
    x_hat = code * scale

The quotient is a division: multiplying by 1 / scale moves ties, and with them codes (ONNX operator QuantizeLinear, opset 13).
`amax` has one entry per index along `spec.axes`, or shape () per tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.spec import QuantSpec

# The smallest amax that is told from 0: with it a dead channel has a positive scale, which TensorRT demands.
TINY = np.float32(1e-12)


def scale_from_amax(amax: Any, spec: QuantSpec) -> tf.Tensor:
    """scale = max(amax, TINY) / hi, in float32.

    Args:
        amax: the largest magnitudes that are represented; any shape.
        spec: gives hi.

    Returns:
        float32 scales of the shape of `amax`, all positive.
    """
    return tf.maximum(tf.cast(amax, tf.float32), TINY) / tf.constant(spec.hi, tf.float32)


def quantize(x: Any, scale: Any, spec: QuantSpec) -> tf.Tensor:
    """code = clip(round_half_even(x / scale), lo, hi), as int8.

    Args:
        x: a float tensor.
        scale: float32, shape () or one entry per index along `spec.axes` (see `scale_from_amax`).
        spec: the grid.

    Returns:
        int8 codes of the shape of `x`.
    """
    x = tf.convert_to_tensor(x)
    return tf.cast(tf.clip_by_value(_unclipped_codes(x, scale, spec), spec.lo, spec.hi), tf.int8)


def dequantize(codes: Any, scale: Any, spec: QuantSpec) -> tf.Tensor:
    """x_hat = code * scale, as float32; shapes as in `quantize`."""
    codes = tf.convert_to_tensor(codes)
    return tf.cast(codes, tf.float32) * _along_axes(scale, codes, spec, tf.float32)


def fake_quantize(x: Any, amax: Any, spec: QuantSpec) -> tf.Tensor:
    """dequantize(quantize(x)) with a straight-through gradient that is clipped where the code is clipped.

        forward   x_hat = clip(round_half_even(x / scale), lo, hi) * scale
        backward  dx    = dy where lo <= round_half_even(x / scale) <= hi, else 0;  amax gets none

    Source: Bengio et al. 2013 (straight-through estimator), Jacob et al. 2018 (clipped range).

    Args:
        x: a float tensor; float64 is computed in float64 with the same float32 scale.
        amax: float32, shape () or one entry per index along `spec.axes`.
        spec: the grid.

    Returns:
        A tensor of the shape and dtype of `x`.
    """

    @tf.custom_gradient
    def rounded(x: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, Any]:
        codes = _unclipped_codes(x, scale, spec)
        clipped = tf.clip_by_value(codes, spec.lo, spec.hi)

        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
            return tf.where(tf.equal(codes, clipped), dy, tf.zeros_like(dy)), None

        return clipped * _along_axes(scale, x, spec, x.dtype), gradient

    return rounded(tf.convert_to_tensor(x), scale_from_amax(amax, spec))


def weight_amax(weight: Any, spec: QuantSpec) -> tf.Tensor:
    """The max calibrator of weights: max |w| over all axes but `spec.axes`, float32."""
    weight = tf.convert_to_tensor(weight)
    reduced = [axis for axis in range(weight.shape.rank) if axis not in spec.axes]
    return tf.cast(tf.reduce_max(tf.abs(weight), axis=reduced), tf.float32)


def amax_shape(shape: Any, spec: QuantSpec) -> tuple[int, ...]:
    """The shape of `amax` for a tensor of `shape`: the sizes along `spec.axes`, () per tensor."""
    return tuple(int(shape[axis]) for axis in spec.axes)


def _unclipped_codes(x: tf.Tensor, scale: Any, spec: QuantSpec) -> tf.Tensor:
    return tf.round(x / _along_axes(scale, x, spec, x.dtype))


def _along_axes(scale: Any, x: tf.Tensor, spec: QuantSpec, dtype: tf.DType) -> tf.Tensor:
    """The scale reshaped so that it broadcasts along `spec.axes` of `x`."""
    scale = tf.cast(scale, dtype)
    if not spec.axes:
        return scale
    shape = [x.shape[axis] if axis in spec.axes else 1 for axis in range(x.shape.rank)]
    return tf.reshape(scale, shape)
