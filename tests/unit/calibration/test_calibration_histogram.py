"""The streaming histogram: what it counts depends on the values alone, bit for bit, not on their order or on how they are split."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from tfqat.calibration.histogram import BINS, MIN_EXPONENT, Histogram, exponent_for, widen


def of(values: list[float] | np.ndarray) -> Histogram:
    """A brute-force histogram of one array: floor(|x| / width) with Python's exact arithmetic on doubles."""
    magnitudes = [abs(float(value)) for value in np.ravel(values)]
    largest = max(magnitudes)
    exponent = exponent_for(largest)
    counts = np.zeros(BINS, np.int64)
    for magnitude in magnitudes:
        counts[int(magnitude // 2.0**exponent)] += 1
    return Histogram(counts=counts, exponent=exponent, largest=largest)


def same(one: Histogram, other: Histogram) -> bool:
    return one.exponent == other.exponent and one.largest == other.largest and bool(np.array_equal(one.counts, other.counts))


# largest -> exponent: the largest value lies in the upper half of the 8192 bins.
EXPONENTS = {
    "zero": (0.0, MIN_EXPONENT),
    "one": (1.0, -12),
    "just below one": (float(np.nextafter(np.float32(1), np.float32(0))), -13),
    "six": (6.0, -10),
    "a power of two": (8192.0, 1),
    "the largest float32": (float(np.finfo(np.float32).max), 115),
    "the smallest normal float32": (2.0**-126, MIN_EXPONENT),
    "a subnormal": (1e-45, MIN_EXPONENT),
    "the last value that has its own exponent": (2.0**-108, -120),
    "the first that has not": (2.0**-109, MIN_EXPONENT),
}


@pytest.mark.parametrize("name", EXPONENTS)
def test_exponent(name: str) -> None:
    largest, expected = EXPONENTS[name]
    assert exponent_for(largest) == expected
    assert largest < BINS * 2.0**expected
    if largest >= 2.0**-108:
        assert largest >= BINS / 2 * 2.0**expected


def test_widen_adds_pairs_and_keeps_the_length() -> None:
    counts = np.arange(BINS, dtype=np.int64)
    assert np.array_equal(widen(counts, 0), counts)
    wider = widen(counts, 1)
    assert wider.shape == (BINS,) and wider.dtype == np.int64
    assert wider[:3].tolist() == [0 + 1, 2 + 3, 4 + 5] and wider[BINS // 2 - 1] == 2 * BINS - 3 and not wider[BINS // 2 :].any()
    assert widen(counts, 3)[:2].tolist() == [sum(range(8)), sum(range(8, 16))]
    for doublings in (13, 14, 200):
        assert widen(counts, doublings)[0] == counts.sum() and not widen(counts, doublings)[1:].any()
    assert np.array_equal(widen(widen(counts, 2), 3), widen(counts, 5))


RNG = np.random.default_rng(5)
# Batches whose range grows, shrinks, starts at nothing, or spans everything that float32 holds.
BATCHES = {
    "growing": [RNG.normal(0, 10.0**power, 50) for power in (-3, -1, 0, 2)],
    "zeros first": [np.zeros(20), RNG.normal(0, 1, 50), RNG.normal(0, 3, 30)],
    "all zeros": [np.zeros(3), np.zeros(4)],
    "huge and small": [np.array([3.4e38, -1.0]), np.array([1e-30, 2e-38]), np.array([1e-45, 5e-40, 0.0])],
    "edges of bins": [np.array([0.25, 0.5, 1.0]), np.array([2.0, 4.0, 1023.9999, 1024.0])],
    "one outlier": [RNG.laplace(0, 1, 90), np.array([1e6])],
}


@pytest.mark.parametrize("name", BATCHES)
def test_any_order_gives_the_histogram_of_all_values(name: str) -> None:
    batches = [np.float32(batch) for batch in BATCHES[name]]
    whole = of(np.concatenate(batches))
    for order in itertools.permutations(batches):
        merged = of(order[0])
        for batch in order[1:]:
            merged = merged.merge(of(batch))
        assert same(merged, whole)
        assert merged.total == sum(len(batch) for batch in batches)


@pytest.mark.parametrize("name", BATCHES)
def test_merge_is_associative_and_commutative(name: str) -> None:
    a, b, c = (of(np.float32(batch)) for batch in (BATCHES[name] * 2)[:3])
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert same(a.merge(b), b.merge(a))


def test_merge_does_not_change_its_parts() -> None:
    a, b = of(np.float32([1.0, 0.5])), of(np.float32([100.0]))
    before = a.counts.copy()
    a.merge(b)
    assert np.array_equal(a.counts, before) and a.exponent == -12 and a.largest == 1.0


def test_numbers_of_one_small_case() -> None:
    histogram = of([0.0, -1.0, 1.5, 6.0])  # width 2 ** -10
    assert histogram.bin_width == 0.0009765625
    assert np.flatnonzero(histogram.counts).tolist() == [0, 1024, 1536, 6144]
    assert len(histogram.occupied()) == 6145
    assert (histogram.total, histogram.largest) == (4, 6.0)


def test_occupied_of_zeros_is_one_bin() -> None:
    assert of([0.0, 0.0]).occupied().tolist() == [2]
    assert Histogram(counts=np.zeros(BINS, np.int64), exponent=0, largest=0.0).occupied().tolist() == [0]


@pytest.mark.parametrize("name", BATCHES)
def test_json_round_trip(name: str) -> None:
    histogram = of(np.float32(np.concatenate(BATCHES[name])))
    again = Histogram.from_dict(json.loads(json.dumps(histogram.to_dict())))
    assert same(again, histogram)
    assert again.counts.dtype == np.int64
    assert len(histogram.to_dict()["counts"]) <= BINS and histogram.to_dict()["max"] == histogram.largest
