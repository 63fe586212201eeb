"""A streaming histogram of |x| whose result does not depend on the order or the split of the data.

There are BINS bins of width 2 ** exponent from 0 on. A bin's index is floor(|x| / width), exact because the width is a power of two.
When a value does not fit, the exponent grows by one and neighbouring pairs of bins merge; since floor(floor(x / w) / 2) =
floor(x / 2w), the counts are those that the final width would have given from the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 8192
_LOG2_BINS = 13
# Exponents below this would make 2 ** -exponent overflow in float32; values this small all count into the first bins.
MIN_EXPONENT = -120


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of |x| in BINS bins of width 2 ** exponent, and the exact largest |x|."""

    counts: np.ndarray
    exponent: int
    largest: float

    @property
    def bin_width(self) -> float:
        """The width of a bin."""
        return float(2.0**self.exponent)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of both data sets."""
        exponent = max(self.exponent, other.exponent)
        counts = widen(self.counts, exponent - self.exponent) + widen(other.counts, exponent - other.exponent)
        return Histogram(counts=counts, exponent=exponent, largest=max(self.largest, other.largest))

    def occupied(self) -> np.ndarray:
        """The counts up to the last bin that is not empty; at least one bin."""
        filled = np.flatnonzero(self.counts)
        return self.counts[: (filled[-1] if len(filled) else 0) + 1]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        return {"bin_width": self.bin_width, "max": self.largest, "counts": self.occupied().tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Histogram:
        """The inverse of `to_dict`."""
        counts = np.zeros(BINS, np.int64)
        counts[: len(data["counts"])] = data["counts"]
        return cls(counts=counts, exponent=int(np.log2(data["bin_width"])), largest=data["max"])


def widen(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The same counts in bins 2 ** doublings times as wide; the array keeps its length."""
    group = 2 ** min(doublings, _LOG2_BINS)
    merged = counts.reshape(-1, group).sum(axis=1)
    return np.concatenate([merged, np.zeros(len(counts) - len(merged), counts.dtype)])


def exponent_for(largest: float) -> int:
    """The smallest exponent whose BINS bins hold `largest`."""
    if largest == 0.0:
        return MIN_EXPONENT
    return max(MIN_EXPONENT, int(np.frexp(np.float64(largest))[1]) - _LOG2_BINS)
