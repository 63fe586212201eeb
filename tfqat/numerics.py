"""The arithmetic of quantization: amax -> scale, quantize, dequantize, fake_quantize and its gradient. Nothing else defines them.

The grid is symmetric with zero point 0, as ONNX's QuantizeLinear and TensorRT define it:

    scale = max(amax, TINY) / hi                      hi = 2 ** (num_bits - 1) - 1
    code  = clip(round_half_even(x / scale), lo, hi)
    x_hat = code * scale

The quotient is a division: multiplying by 1 / scale moves ties, and with them codes (ONNX operator QuantizeLinear, opset 13).
`amax` has one entry per index along `spec.axes`, or shape () per tensor.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfqat.spec import QuantSpec

# The smallest amax that is told from 0: with it a dead channel has a positive scale, which TensorRT demands.
TINY = np.float32(1e-12)

Gradient = Literal["clipped", "pass_through"]
Rule = Literal["lsq", "pact"]


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


def fake_quantize(x: Any, amax: Any, spec: QuantSpec, *, gradient: Gradient = "clipped") -> tf.Tensor:
    """dequantize(quantize(x)) with a straight-through gradient.

        forward   x_hat = clip(round_half_even(x / scale), lo, hi) * scale
        backward  dx    = dy where (lo - 1/2) * scale < x < (hi + 1/2) * scale, so where the code is not clipped, else 0
                  amax gets none

    Source: Bengio et al. 2013 (straight-through estimator), Jacob et al. 2018 (clipped range).

    Args:
        x: a float tensor; float64 is computed in float64 with the same float32 scale.
        amax: float32, shape () or one entry per index along `spec.axes`.
        spec: the grid.
        gradient: `clipped` as above; `pass_through`: dx = dy everywhere.

    Returns:
        A tensor of the shape and dtype of `x`.
    """

    @tf.custom_gradient
    def rounded(x: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, Any]:
        scale = _along_axes(scale, x, spec, x.dtype)
        passes = None if gradient == "pass_through" else _inside(x, scale, spec)

        def backward(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
            return dy if passes is None else _masked(dy, passes), None

        return _rounded(x, scale, spec.lo, spec.hi), backward

    return rounded(tf.convert_to_tensor(x), scale_from_amax(amax, spec))


def fake_quantize_relu(z: Any, amax: Any, spec: QuantSpec, *, cap: float | None = None, gradient: Gradient = "clipped") -> tf.Tensor:
    """fake_quantize(relu(z)), or of min(relu(z), cap), per tensor: the same codes, without computing the ReLU.

        forward   x_hat = clip(round_half_even(z / scale), 0, min(hi, round_half_even(cap / scale))) * scale
        backward  dz    = dy where 0 < z < min((hi + 1/2) * scale, cap), else 0;  `pass_through`: where 0 < z < cap

    Division and rounding never change the order of two values, so that the limits may be applied after them.

    Args:
        z: what the ReLU reads.
        amax: float32, shape ().
        spec: the grid.
        cap: of a ReLU6 6.0.
        gradient: as for `fake_quantize`.
    """

    @tf.custom_gradient
    def rounded(z: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, Any]:
        scale = tf.cast(scale, z.dtype)
        hi = tf.constant(spec.hi, z.dtype)
        if cap is not None:
            hi = tf.minimum(hi, tf.round(tf.constant(cap, z.dtype) / scale))

        upper = _upper(scale, spec, cap, gradient)
        passes = z > 0.0 if upper is None else tf.logical_and(z > 0.0, z < upper)

        def backward(dy: tf.Tensor) -> tuple[tf.Tensor, None]:
            return _masked(dy, passes), None

        return _rounded(z, scale, 0, hi), backward

    return rounded(tf.convert_to_tensor(z), scale_from_amax(amax, spec))


def learned_fake_quantize(x: Any, amax: Any, spec: QuantSpec, *, rule: Rule = "lsq", has_batch: bool = True) -> tf.Tensor:
    """fake_quantize(x) whose amax is trained: a gradient to amax beside that to x.

        lsq    damax = g / hi * sum of dy * (code - x / scale where lo < x / scale < hi, else lo or hi)
               dx    = dy where lo < x / scale < hi, else 0
               g     = 1 / sqrt(n * hi), n the values that share the scale; of an activation those of one example
        pact   damax = sum of dy where x >= amax
               dx    = dy where lo < x / scale < hi, else 0

    lsq's sum is the derivative by scale of (clip(x / scale, lo, hi) + offset) * scale, with the rounding's offset held fixed. PACT is meant
    for tensors without negative values, such as those behind a ReLU. An amax at or below 0 counts as TINY, and can grow again by what it
    clips.

    Sources: Esser et al. 2020 (LSQ: equation 3, and the gradient scale of section 2.2); Choi et al. 2018 (PACT: equation 3).

    Args:
        x: a float tensor.
        amax: float32, shape () or one entry per index along `spec.axes`.
        spec: the grid.
        rule: whose gradient.
        has_batch: whether the first axis of `x` is the batch, as that of an activation is.
    """

    @tf.custom_gradient
    def rounded(x: tf.Tensor, amax: tf.Tensor) -> tuple[tf.Tensor, Any]:
        scale = _along_axes(scale_from_amax(amax, spec), x, spec, x.dtype)

        def backward(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            ratio = tf.minimum(tf.maximum(x / scale, spec.lo), spec.hi)
            inside = tf.cast(tf.logical_and(ratio > spec.lo, ratio < spec.hi), dy.dtype)
            if rule == "pact":
                return dy * inside, _sum_per_scale(dy * tf.cast(ratio >= spec.hi, dy.dtype), spec)
            found = _sum_per_scale(dy * (tf.round(ratio) - ratio * inside), spec)
            return dy * inside, found * _lsq_factor(x, spec, has_batch)

        return _rounded(x, scale, spec.lo, spec.hi), backward

    return rounded(tf.convert_to_tensor(x), tf.convert_to_tensor(amax, tf.float32))


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


def _rounded(x: tf.Tensor, scale: tf.Tensor, lo: Any, hi: Any) -> tf.Tensor:
    """clip(round(x / scale), lo, hi) * scale; minimum and maximum compute in place, which clip_by_value does not."""
    lo, hi = tf.cast(lo, x.dtype), tf.cast(hi, x.dtype)
    return tf.minimum(tf.maximum(tf.round(x / scale), lo), hi) * scale


def _inside(x: tf.Tensor, scale: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    """Where the code is not clipped: hi + 1/2 rounds up, as hi is odd; lo - 1/2 rounds up too, or down where lo is odd."""
    above = tf.less if spec.lo % 2 else tf.less_equal
    return tf.logical_and(above((spec.lo - 0.5) * scale, x), x < (spec.hi + 0.5) * scale)


def _upper(scale: tf.Tensor, spec: QuantSpec, cap: float | None, gradient: Gradient) -> tf.Tensor | None:
    """Below which values the gradient passes; None for all."""
    limits = [] if gradient == "pass_through" else [(spec.hi + 0.5) * scale]
    limits += [] if cap is None else [tf.constant(cap, scale.dtype)]
    return functools.reduce(tf.minimum, limits) if limits else None


def _masked(dy: tf.Tensor, passes: tf.Tensor) -> tf.Tensor:
    """dy where it passes, else 0. Between the two passes only the mask is kept, of one byte for a value: neither the tensor, nor the
    mask as floats, which TensorFlow would compute as soon as it can and not when dy is there."""
    with tf.control_dependencies([dy]):
        factor = tf.cast(passes, dy.dtype)
    return dy * factor


def _sum_per_scale(values: tf.Tensor, spec: QuantSpec) -> tf.Tensor:
    axes = [axis for axis in range(values.shape.rank) if axis not in spec.axes]
    return tf.cast(tf.reduce_sum(values, axis=axes), tf.float32)


def _lsq_factor(x: tf.Tensor, spec: QuantSpec, has_batch: bool) -> tf.Tensor:
    """1 / (hi * sqrt(n * hi)): the gradient scale, and from scale to amax."""
    counted = [axis for axis in range(int(has_batch), x.shape.rank) if axis not in spec.axes]
    count = tf.cast(tf.reduce_prod(tf.gather(tf.shape(x), counted)), tf.float32) if counted else tf.constant(1.0)
    return 1.0 / (spec.hi * tf.sqrt(count * spec.hi))


def _along_axes(scale: Any, x: tf.Tensor, spec: QuantSpec, dtype: tf.DType) -> tf.Tensor:
    """The scale reshaped so that it broadcasts along `spec.axes` of `x`."""
    scale = tf.cast(scale, dtype)
    if not spec.axes:
        return scale
    shape = [x.shape[axis] if axis in spec.axes else 1 for axis in range(x.shape.rank)]
    return tf.reshape(scale, shape)
