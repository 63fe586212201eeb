"""A histogram of |x| whose bins are read off the bits of a float32, so that it does not depend on the order or the split of the data.

The sign apart, the bits of a float32 rise with its value: 8 bits of exponent, then 23 of mantissa. Bin number i holds the values whose
bits, cut to the exponent and the first MANTISSA_BITS of the mantissa, are i:

    index(x) = bits(|x|) >> (23 - MANTISSA_BITS)         lower edge of bin i = float(i << (23 - MANTISSA_BITS))

Every octave [2**e, 2**(e+1)) has 2**MANTISSA_BITS bins of equal width, and all floats have a bin, with no range to know beforehand. So
counts of any parts of the data add up to those of the whole, exactly, on one machine or on several.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tfqat.errors import DataError

MANTISSA_BITS = 9
SHIFT = 23 - MANTISSA_BITS
BINS = 255 << MANTISSA_BITS
"""Bins of finite values; Inf and NaN have larger bits."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of |x| by bin, int64 of shape (BINS,), and the exact largest |x|."""

    counts: np.ndarray
    largest: float

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """How many values are 0, or so small (below 2.3e-41) that they count as 0."""
        return int(self.counts[0])

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both data sets."""
        return Histogram(counts=self.counts + other.counts, largest=max(self.largest, other.largest))

    def occupied(self) -> Bins:
        """The bins that are not empty, in ascending order; the last one ends at the largest |x|."""
        return self._occupied

    def uniform(self, bins: int) -> np.ndarray:
        """Counts in `bins` bins of equal width from 0 to the largest |x|, float64 of shape (bins,).

        The values of a bin count as spread evenly over it, so that counts may be fractions; they add up to `total`. Zeros, and what is
        counted with them, stay in the first bin.
        """
        found, zeros = self.occupied(), self.zeros
        first = 1 if zeros else 0
        if len(found.counts) == first:
            return np.eye(1, bins)[0] * zeros
        # How many values lie below each edge, linear within a bin and constant between two: at both edges of every bin.
        edges = np.stack([found.lower[first:], found.upper[first:]], axis=1).ravel()
        below = np.repeat(np.append(0, np.cumsum(found.counts[first:])), 2)[1:-1]
        counts = np.diff(np.interp(np.linspace(0.0, self.largest, bins + 1), edges, below))
        counts[0] += zeros
        return counts

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        filled = np.flatnonzero(self.counts)
        return {"mantissa_bits": MANTISSA_BITS, "max": self.largest, "bins": filled.tolist(), "counts": self.counts[filled].tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Histogram:
        """The inverse of `to_dict`.

        Raises:
            DataError: it was written with other bins.
        """
        if data.get("mantissa_bits") != MANTISSA_BITS:
            raise DataError(
                f"a histogram with mantissa_bits {data.get('mantissa_bits')}; this version of tfqat reads {MANTISSA_BITS}: calibrate again"
            )
        counts = np.zeros(BINS, np.int64)
        counts[data["bins"]] = data["counts"]
        return cls(counts=counts, largest=data["max"])

    @cached_property
    def _occupied(self) -> Bins:
        filled = np.flatnonzero(self.counts)
        upper = lower_edges(filled + 1)
        upper[-1:] = self.largest
        return Bins(lower=lower_edges(filled), upper=upper, counts=self.counts[filled])


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Bins in ascending order: their lower and upper edges, float64, and their counts, int64; all of one shape."""

    lower: np.ndarray
    upper: np.ndarray
    counts: np.ndarray


def lower_edges(indices: np.ndarray) -> np.ndarray:
    """The lower edges of bins, float64."""
    return (np.asarray(indices, np.int64) << SHIFT).astype(np.int32).view(np.float32).astype(np.float64)
