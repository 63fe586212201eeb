"""The histogram: what it counts depends on the values alone, bit for bit, not on their order or on how they are split."""

from __future__ import annotations

import itertools
import json
import struct
from fractions import Fraction

import numpy as np
import pytest

from tfqat.calibration.histogram import BINS, MANTISSA_BITS, Histogram, lower_edges
from tfqat.errors import DataError


def index_by_hand(value: float) -> int:
    """The bits of a float32, read as a big-endian integer, without its sign and its last 23 - MANTISSA_BITS bits."""
    return int.from_bytes(struct.pack(">f", abs(value)), "big") // 2 ** (23 - MANTISSA_BITS)


def of(values: list[float] | np.ndarray) -> Histogram:
    counts = np.zeros(BINS, np.int64)
    for value in np.float32(values).ravel().tolist():
        counts[index_by_hand(value)] += 1
    return Histogram(counts=counts, largest=float(np.abs(np.float32(values)).max()))


def same(one: Histogram, other: Histogram) -> bool:
    return one.largest == other.largest and bool(np.array_equal(one.counts, other.counts))


RNG = np.random.default_rng(5)
BATCHES = {
    "growing": [RNG.normal(0, 10.0**power, 50) for power in (-3, -1, 0, 2)],
    "zeros first": [np.zeros(20), RNG.normal(0, 1, 50), RNG.normal(0, 3, 30)],
    "all zeros": [np.zeros(3), np.zeros(4)],
    "huge and small": [np.array([3.4e38, -1.0]), np.array([1e-30, 2e-38]), np.array([1e-45, 5e-40, 0.0])],
    "edges of bins": [np.array([0.25, 0.5, 1.0]), np.array([2.0, 4.0, 1023.9999, 1024.0])],
    "one outlier": [RNG.laplace(0, 1, 90), np.array([1e6])],
}


def test_bins_are_512_to_an_octave() -> None:
    first = index_by_hand(1.0)
    assert index_by_hand(2.0) - first == 512 and index_by_hand(4.0) - first == 1024
    edges = lower_edges(np.arange(first, first + 513))
    assert edges[0] == 1.0 and edges[-1] == 2.0 and np.all(np.diff(edges) == 2.0**-9)
    assert lower_edges(np.array([0, 1])).tolist() == [0.0, 2.0**-135]
    assert index_by_hand(float(np.finfo(np.float32).max)) == BINS - 1


@pytest.mark.parametrize("name", BATCHES)
def test_every_value_lies_in_its_bin(name: str) -> None:
    values = np.float32(np.concatenate(BATCHES[name]))
    found = of(values).occupied()
    assert np.all(found.lower <= found.upper) and np.all(found.lower[1:] >= found.upper[:-1])
    assert found.upper[-1] == np.abs(values).max() and found.counts.sum() == len(values)
    for lower, upper, count in zip(found.lower[:-1], found.upper[:-1], found.counts[:-1], strict=True):
        assert np.sum((np.abs(values) >= lower) & (np.abs(values) < upper)) == count


@pytest.mark.parametrize("name", BATCHES)
def test_any_order_gives_the_histogram_of_all_values(name: str) -> None:
    whole = of(np.concatenate(BATCHES[name]))
    for order in itertools.permutations(BATCHES[name]):
        merged = of(order[0])
        for batch in order[1:]:
            before = merged.counts.copy()
            parts, merged = merged, merged.merge(of(batch))
            assert np.array_equal(parts.counts, before)
        assert same(merged, whole) and merged.total == sum(map(len, order))


def uniform_by_hand(histogram: Histogram, bins: int) -> list[float]:
    """In fractions: how much of each occupied bin lies in each uniform one."""
    largest, found = Fraction(histogram.largest), histogram.occupied()
    counts = [Fraction(0)] * bins
    for lower, upper, count in zip(found.lower.tolist(), found.upper.tolist(), found.counts.tolist(), strict=True):
        a, b = Fraction(lower), Fraction(upper)
        if lower == 0.0:
            counts[0] += count
        elif a == b:
            counts[-1] += count
        else:
            for number in range(int(a * bins / largest), bins):
                start, end = largest * number / bins, largest * (number + 1) / bins
                if start >= b:
                    break
                counts[number] += count * (min(b, end) - max(a, start)) / (b - a)
    return [float(count) for count in counts]


@pytest.mark.parametrize("bins", [1, 7, 64, 2048])
@pytest.mark.parametrize("name", BATCHES)
def test_uniform_spreads_each_bin_evenly(name: str, bins: int) -> None:
    histogram = of(np.concatenate(BATCHES[name]))
    counts = histogram.uniform(bins)
    if histogram.largest:
        np.testing.assert_allclose(counts, uniform_by_hand(histogram, bins), rtol=1e-9, atol=1e-9)
    assert counts.shape == (bins,) and np.all(counts >= 0)
    assert counts.sum() == pytest.approx(histogram.total, rel=1e-12)
    assert counts[0] >= histogram.zeros


def test_uniform_of_what_has_no_width() -> None:
    assert of([0.0, 0.0]).uniform(4).tolist() == [2, 0, 0, 0]
    # All at the largest, an edge of bins: their bin has no width, and they are in the last one.
    assert of([0.0, 6.0, -6.0, 6.0]).uniform(3).tolist() == [1, 0, 3]
    assert Histogram(counts=np.zeros(BINS, np.int64), largest=0.0).uniform(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", BATCHES)
def test_json_round_trip(name: str) -> None:
    histogram = of(np.concatenate(BATCHES[name]))
    again = Histogram.from_dict(json.loads(json.dumps(histogram.to_dict())))
    assert same(again, histogram) and again.counts.dtype == np.int64
    assert len(histogram.to_dict()["counts"]) == np.count_nonzero(histogram.counts)


def test_other_bins_are_refused() -> None:
    with pytest.raises(DataError, match=r"mantissa_bits 7; this version of tfqat reads 9: calibrate again"):
        Histogram.from_dict({**of([1.0]).to_dict(), "mantissa_bits": 7})
    with pytest.raises(DataError, match=r"mantissa_bits None"):
        Histogram.from_dict({"bin_width": 1.0, "counts": [1], "max": 0.5})
