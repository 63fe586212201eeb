"""The calibrators of activations: histogram of |x| -> amax, by max, percentile, entropy or mse."""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np

from tfqat.calibration.histogram import Histogram
from tfqat.spec import Calibrator, QuantSpec

# TensorRT's entropy calibrator looks at 2048 bins and compares with 128 levels (8-bit magnitudes).
ENTROPY_BINS = 2048
# Losses so close to the least that they differ by rounding; of these the widest range is taken, which clips least.
ENTROPY_TIE = 1e-7
BLOCK = 2**15
MSE_CANDIDATES = 128
MSE_REFINED = 32
# mse merges bins until an octave has 2 ** MSE_BITS, but none narrower than the top octave's would be with FINEST_BITS.
MSE_BITS, FINEST_BITS = 8, 10


def amax_of(histogram: Histogram, calibrator: Calibrator, spec: QuantSpec) -> float:
    """The range that `calibrator` chooses."""
    if calibrator.method == "percentile":
        return percentile_amax(histogram, calibrator.percentile)
    return {"max": max_amax, "entropy": entropy_amax, "mse": mse_amax}[calibrator.method](histogram, spec)


def max_amax(histogram: Histogram, spec: QuantSpec) -> float:
    """The largest |x| that was seen, exactly."""
    return histogram.largest


def percentile_amax(histogram: Histogram, percentile: float) -> float:
    """The smallest v such that `percentile` per cent of all values are <= v.

        needed = ceil(total * percentile / 100), exactly
        v      = lower + (upper - lower) * (needed - values below the bin) / count      in the bin where `needed` is reached

    So it lies in the bin of the value of that rank, whose width is 2 ** -9 of its octave; 0 where that many values are 0.
    Source: Wu et al. 2020, "Integer Quantization for Deep Learning Inference", section 4.
    """
    found = histogram.occupied()
    reached = np.cumsum(found.counts)
    # Exact: in floats 99.9% of 1000 values is a little over 999, and the outlier would be kept.
    needed = math.ceil(histogram.total * Fraction(str(percentile)) / 100)
    if needed <= histogram.zeros:
        return 0.0
    number = int(np.searchsorted(reached, needed))
    count, lower, upper = int(found.counts[number]), float(found.lower[number]), float(found.upper[number])
    return lower + (upper - lower) * ((needed - int(reached[number]) + count) / count)


def entropy_amax(histogram: Histogram, spec: QuantSpec) -> float:
    """The cut that loses least information by Kullback-Leibler divergence, as TensorRT's entropy calibrator defines it.

        c      = counts in ENTROPY_BINS equal bins from 0 to the largest |x|, without the first one
        P_i    = c[:i], with all counts beyond i added to its last bin
        Q_i    = c[:i] averaged over hi + 1 equal groups, each group's sum spread over its bins that are not empty
        KL_i   = sum of p * log(p / q), p and q being P_i and Q_i over their sums; infinite where q is 0 and p is not
        amax   = upper edge of the i >= hi + 1 with the least KL_i

    The first bin is left out, as a ReLU's zeros say nothing about the range. Source: Migacz, "8-bit Inference with TensorRT", GTC 2017.
    """
    counts = histogram.uniform(ENTROPY_BINS)
    counts[0] = 0.0
    if not counts.any():
        return histogram.largest
    divergence = _divergences(counts, spec.hi + 1)
    widest = np.flatnonzero(divergence <= divergence.min() + ENTROPY_TIE)[-1]
    return histogram.largest * float(spec.hi + 1 + widest) / ENTROPY_BINS


def mse_amax(histogram: Histogram, spec: QuantSpec) -> float:
    """The range with the least squared error of the values, which count as spread evenly over their bin.

        error(amax) = sum over bins of count / (b - a) * integral from a to b of (x - fake_quantize(x, amax)) ** 2 dx
                    = sum over bins of count / (b - a) * scale ** 3 * (G(b / scale) - G(a / scale))
        G(t)        = n / 12 + (t - n) ** 3 / 3,  n = min(round(t), hi)      scale = amax / hi

    G is the integral of (u - min(round(u), hi)) ** 2 from 0 to t: every unit of t adds 1 / 12, and past hi the values are clipped.
    MSE_CANDIDATES ranges, evenly spaced up to the largest |x|, are tried, then MSE_REFINED between the neighbours of the best.
    """
    largest = histogram.largest
    if largest == 0.0:
        return 0.0
    edges, steps, at_largest = _density(histogram)
    candidates = np.linspace(0.0, largest, MSE_CANDIDATES + 1)[1:]
    best = int(np.argmin(_squared_errors(candidates, edges, steps, at_largest, largest, spec.hi)))
    around = np.linspace(candidates[max(best - 1, 0)], candidates[min(best + 1, MSE_CANDIDATES - 1)], MSE_REFINED + 1)
    return float(around[int(np.argmin(_squared_errors(around, edges, steps, at_largest, largest, spec.hi)))])


def _divergences(counts: np.ndarray, levels: int) -> np.ndarray:
    """KL_i for all cuts i from `levels` to len(counts), of the counts without those left out.

    With S and N the sum and the number of filled bins of a group, sum(P) KL_i = sum p log p - sum S log(S / N) - (counts beyond) *
    log(q of the last bin) - sum(P) log(sum(P) / sum(Q)); each sum is a difference of cumulative sums.
    """
    starts = _group_starts(len(counts), levels)
    below, filled_below = np.append(0.0, np.cumsum(counts)), np.append(0, np.cumsum(counts > 0))
    # In blocks that stay in the processor's cache.
    in_groups = np.concatenate([_in_groups(below, filled_below, block) for block in np.array_split(starts, -(-starts.size // BLOCK))])
    cuts, groups = starts[:, -1], starts[:, -2]
    total, kept = below[-1], below[cuts]
    beyond, last = total - kept, counts[cuts - 1]
    inside = np.append(0.0, np.cumsum(_xlogx(counts)))
    with np.errstate(divide="ignore", invalid="ignore"):
        last_q = np.where(last > 0, (kept - below[groups]) / (filled_below[cuts] - filled_below[groups]), 0.0)
        tail = np.where(beyond > 0, beyond * np.log(last_q), 0.0)
        found = (inside[cuts - 1] + _xlogx(last + beyond) - in_groups - tail) / total - np.log(total / kept)
    return np.where(kept > 0, found, np.inf)


def _in_groups(below: np.ndarray, filled_below: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The sum of S * log(S / N) over the groups of each cut."""
    sums = np.diff(below.take(starts), axis=1)
    # float32 is enough within the logarithm: its error there, 1e-7, is added and not multiplied.
    logarithms = np.log(np.maximum(sums, 1e-30), dtype=np.float32)
    logarithms -= np.log(np.maximum(np.diff(filled_below.take(starts), axis=1), 1), dtype=np.float32)
    found: np.ndarray = np.einsum("ij,ij->i", sums, logarithms)
    return found


@functools.lru_cache(maxsize=8)
def _group_starts(bins: int, levels: int) -> np.ndarray:
    """For each cut i from `levels` to `bins`, where its groups begin and, last, i; shape (cuts, levels + 1)."""
    starts: np.ndarray = np.arange(levels + 1) * np.arange(levels, bins + 1)[:, None] // levels
    return starts


def _xlogx(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.maximum(x, 1e-300))


def _density(histogram: Histogram) -> tuple[np.ndarray, np.ndarray, int]:
    """Edges of coarser bins, how much the counts per width fall at each, and how many values have no width as they equal the largest.

    Bins are merged whole, as wide as 2 ** -MSE_BITS of their octave or 2 ** -FINEST_BITS of the top octave, whichever is more. Zeros
    have no error and are left out.
    """
    found, largest = histogram.occupied(), histogram.largest
    keep = (found.lower > 0) & (found.lower < found.upper)
    lower, counts = found.lower[keep], found.counts[keep]
    octave = np.frexp(lower)[1] - 1
    width = np.exp2(np.maximum(octave - MSE_BITS, math.frexp(largest)[1] - 1 - FINEST_BITS))
    starts, first, where = np.unique(np.floor(lower / width) * width, return_index=True, return_inverse=True)
    ends = np.minimum(starts + width[first], largest)
    sums = np.bincount(where, counts, minlength=len(starts))
    density = sums / (ends - starts)
    edges, at = np.unique(np.concatenate([starts, ends]), return_inverse=True)
    steps = np.bincount(at, np.concatenate([-density, density]), minlength=len(edges))
    return edges, steps, int(found.counts[found.lower == largest].sum())


def _squared_errors(candidates: np.ndarray, edges: np.ndarray, steps: np.ndarray, at_largest: int, largest: float, hi: int) -> np.ndarray:
    """The squared error for each candidate, summed edge by edge: a bin that ends at an edge adds G there, one that begins subtracts it."""
    scales = candidates / hi
    t = edges / scales[:, None]
    n = np.minimum(np.rint(t), hi)
    t -= n
    cubes = t * t * t
    clipped = np.minimum(np.rint(largest / scales), hi) * scales
    return scales**3 * ((n @ steps) / 12 + (cubes @ steps) / 3) + at_largest * (clipped - largest) ** 2
