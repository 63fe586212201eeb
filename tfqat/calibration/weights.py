"""The calibrators of weights: the values of a weight -> one amax for each channel, the largest magnitude or the least squared error."""

from __future__ import annotations

import numpy as np

from tfqat import numerics
from tfqat.spec import QuantSpec

MSE_RATIOS = np.linspace(0.3, 1.0, 141, dtype=np.float32)
"""Tried amax over the largest |w| of a channel."""

BLOCK = 2**16
"""Values that are evaluated at a time: they stay in the processor's cache."""


def weight_amax(weight: np.ndarray, method: str, spec: QuantSpec) -> np.ndarray:
    """The range of each channel of a weight by `method`, max or mse; float32, shape `numerics.amax_shape(weight.shape, spec)`."""
    return mse_amax(weight, spec) if method == "mse" else numerics.weight_amax(weight, spec).numpy()


def mse_amax(weight: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """For each channel the amax whose quantization changes the weight least.

        amax = argmin over r in MSE_RATIOS of sum (w - fake_quantize(w, r * max |w|)) ** 2      of two equal ones the larger

    The errors are those of the values themselves, with the float32 arithmetic of `numerics`.

    Args:
        weight: finite values, any shape.
        spec: gives the channels and the grid.

    Returns:
        float32, one entry per index along `spec.axes`, shape () per tensor; 0 for a channel of zeros.
    """
    channels_first = np.moveaxis(np.asarray(weight, np.float32), spec.axes, range(len(spec.axes)))
    rows = channels_first.reshape(int(np.prod(channels_first.shape[: len(spec.axes)])), -1)
    step = max(1, BLOCK // rows.shape[1])
    found = [_of_rows(np.ascontiguousarray(rows[start : start + step]), spec) for start in range(0, len(rows), step)]
    amax: np.ndarray = np.concatenate(found).reshape(numerics.amax_shape(np.shape(weight), spec))
    return amax


def _of_rows(rows: np.ndarray, spec: QuantSpec) -> np.ndarray:
    largest = np.abs(rows).max(axis=1)
    best, least = largest.copy(), np.full(len(rows), np.inf)
    for ratio in MSE_RATIOS[::-1]:
        amax = largest * ratio
        scale = (np.maximum(amax, numerics.TINY) / np.float32(spec.hi))[:, None]
        error = rows / scale
        np.clip(np.rint(error, out=error), spec.lo, spec.hi, out=error)
        error *= scale
        error -= rows
        total = np.einsum("ij,ij->i", error, error, dtype=np.float64, casting="unsafe")
        better = total < least
        best[better], least[better] = amax[better], total[better]
    return best
