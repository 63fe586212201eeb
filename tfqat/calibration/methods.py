"""The calibrators: histogram of |x| -> amax, by max, percentile, entropy or mse."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from tfqat.calibration.histogram import Histogram
from tfqat.spec import Calibrator, QuantSpec

# TensorRT's entropy calibrator looks at 2048 bins and compares with 128 levels (8-bit magnitudes).
ENTROPY_BINS = 2048
MSE_CANDIDATES = 256


def amax_of(histogram: Histogram, calibrator: Calibrator, spec: QuantSpec) -> float:
    """The range that `calibrator` chooses."""
    if calibrator.method == "percentile":
        return percentile_amax(histogram, calibrator.percentile)
    return {"max": max_amax, "entropy": entropy_amax, "mse": mse_amax}[calibrator.method](histogram, spec)


def max_amax(histogram: Histogram, spec: QuantSpec) -> float:
    """The largest |x| that was seen, exactly."""
    return histogram.largest


def percentile_amax(histogram: Histogram, percentile: float) -> float:
    """The upper edge of the bin in which `percentile` per cent of all values are reached, at most the largest |x|.

    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 4.
    """
    counts = histogram.occupied()
    # Exact: in floats 99.9% of 1000 values is a little over 999, and the outlier would be kept.
    needed = math.ceil(int(counts.sum()) * Fraction(str(percentile)) / 100)
    reached = int(np.searchsorted(np.cumsum(counts), needed))
    return min((min(reached, len(counts) - 1) + 1) * histogram.bin_width, histogram.largest)


def entropy_amax(histogram: Histogram, spec: QuantSpec) -> float:
    """The cut that loses least information by Kullback-Leibler divergence, as TensorRT's entropy calibrator defines it.

        P_i = counts[:i], with all counts beyond i added to its last bin
        Q_i = counts[:i] averaged over hi + 1 equal groups, each group's sum spread over its bins that are not empty
        amax = upper edge of the i >= hi + 1 with the least KL(P_i || Q_i)

    The zero bin is left out, as a ReLU's zeros say nothing about the range. Source: Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    counts, width = _in_bins(histogram, ENTROPY_BINS)
    counts[0] = 0
    levels = spec.hi + 1
    if len(counts) <= levels or counts.sum() == 0:
        return histogram.largest
    beyond = counts.sum() - np.cumsum(counts)
    divergences = [_divergence(counts[:cut], beyond[cut - 1], levels) for cut in range(levels, len(counts) + 1)]
    best = levels + int(np.argmin(divergences))
    return min(best * width, histogram.largest)


def mse_amax(histogram: Histogram, spec: QuantSpec) -> float:
    """The cut with the least squared error: argmin over amax of sum of counts * (x - fake_quantize(x, amax)) ** 2, x at bin centres.

    MSE_CANDIDATES cuts, evenly spaced up to the largest |x|, are tried.
    """
    counts = histogram.occupied()
    filled = np.flatnonzero(counts)
    centres = (filled + 0.5) * histogram.bin_width
    weights = counts[filled].astype(np.float64)
    candidates = histogram.largest * np.arange(1, MSE_CANDIDATES + 1) / MSE_CANDIDATES
    if histogram.largest == 0:
        return 0.0
    errors = []
    for candidate in candidates:
        scale = candidate / spec.hi
        codes = np.minimum(np.rint(centres / scale), spec.hi)
        errors.append(float(np.dot(weights, (codes * scale - centres) ** 2)))
    return float(candidates[int(np.argmin(errors))])


def _in_bins(histogram: Histogram, bins: int) -> tuple[np.ndarray, float]:
    """The occupied counts merged in powers of two until at most `bins` are left, and their width."""
    counts, width = histogram.occupied().astype(np.float64), histogram.bin_width
    while len(counts) > bins:
        counts = np.pad(counts, (0, len(counts) % 2)).reshape(-1, 2).sum(axis=1)
        width *= 2
    return counts.copy(), width


def _divergence(kept: np.ndarray, beyond: float, levels: int) -> float:
    """KL(P || Q) for one cut; infinite where Q is 0 and P is not."""
    reference = kept.copy()
    reference[-1] += beyond
    starts = (np.arange(levels) * len(kept)) // levels
    filled = (kept > 0).astype(np.float64)
    sizes = np.diff(np.append(starts, len(kept)))
    mean = np.add.reduceat(kept, starts) / np.maximum(np.add.reduceat(filled, starts), 1.0)
    candidate = np.repeat(mean, sizes) * filled
    used = reference > 0
    if candidate.sum() == 0 or np.any(candidate[used] == 0):
        return float("inf")
    p, q = reference[used] / reference.sum(), candidate[used] / candidate.sum()
    return float(np.dot(p, np.log(p / q)))
