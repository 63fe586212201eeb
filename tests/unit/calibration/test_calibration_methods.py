"""The four calibrators against brute-force versions in plain loops, and on cases whose answer is known."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tfqat.calibration import methods
from tfqat.calibration.histogram import BINS, MIN_EXPONENT, Histogram, exponent_for, widen
from tfqat.calibration.methods import amax_of
from tfqat.spec import METHODS, Calibrator, QuantSpec

INT8, INT4 = QuantSpec(), QuantSpec(num_bits=4)


def histogram_of(values: np.ndarray, *, coarser: int = 0) -> Histogram:
    """All values in one go; `coarser` doubles the bins so often, so that plain loops stay quick."""
    magnitudes = np.abs(np.float32(values)).astype(np.float64)
    exponent = exponent_for(float(magnitudes.max())) + coarser
    counts = np.bincount((magnitudes / 2.0**exponent).astype(np.int64), minlength=BINS)
    return Histogram(counts=counts, exponent=exponent, largest=float(magnitudes.max()))


def chosen(method: str, histogram: Histogram, spec: QuantSpec = INT8, percentile: float = 99.99) -> float:
    return amax_of(histogram, Calibrator(method=method, percentile=percentile), spec)


def entropy_by_hand(histogram: Histogram, levels: int) -> float:
    """Migacz, GTC 2017, slide "Pseudocode: KL", in plain loops; the zero bin is emptied and the cut is the upper edge of its last bin."""
    bins = [int(count) for count in histogram.occupied()]
    bins[0] = 0
    best, least = len(bins), math.inf
    for i in range(levels, len(bins) + 1):
        p = [float(count) for count in bins[:i]]
        p[-1] += sum(bins[i:])
        q = [0.0] * i
        for level in range(levels):
            group = range(level * i // levels, (level + 1) * i // levels)
            occupied = [b for b in group if bins[b]]
            for b in occupied:
                q[b] = sum(bins[b] for b in group) / len(occupied)
        divergence = 0.0
        for p_b, q_b in zip(p, q, strict=True):
            if p_b and not q_b:
                divergence = math.inf
            elif p_b:
                divergence += p_b / sum(p) * math.log((p_b / sum(p)) / (q_b / sum(q)))
        if divergence < least:
            best, least = i, divergence
    return min(best * histogram.bin_width, histogram.largest)


def mse_by_hand(histogram: Histogram, spec: QuantSpec) -> float:
    best, least = 0.0, math.inf
    for number in range(1, 257):
        amax = histogram.largest * number / 256
        scale, error = amax / spec.hi, 0.0
        for b, count in enumerate(histogram.occupied().tolist()):
            x = (b + 0.5) * histogram.bin_width
            error += count * (min(round(x / scale), spec.hi) * scale - x) ** 2
        if error < least * (1 - 1e-12):
            best, least = amax, error
    return best


def percentile_by_hand(values: np.ndarray, bin_width: float, percentile: str) -> float:
    """The upper edge of the bin of the value with the rank ceil(n * percentile / 100)."""
    ordered = sorted(abs(float(value)) for value in np.float32(values))
    value = ordered[max(1, math.ceil(len(ordered) * Fraction(percentile) / 100)) - 1]
    return min((value // bin_width + 1) * bin_width, ordered[-1])


RNG = np.random.default_rng(3)
SIZE = 20_000
DATA = {
    "gaussian": RNG.normal(0, 1, SIZE),
    "laplace": RNG.laplace(0, 2, SIZE),
    "after relu": np.maximum(RNG.normal(0, 1, SIZE), 0),
    "after relu6": np.clip(RNG.normal(3, 3, SIZE), 0, 6),
    "bimodal": np.where(RNG.random(SIZE) < 0.9, RNG.normal(0, 1, SIZE), RNG.normal(10, 0.1, SIZE)),
    "heavy tails": RNG.standard_t(3, SIZE),
    "one outlier": np.append(RNG.normal(0, 1, SIZE), 60.0),
}


@pytest.mark.parametrize("name", DATA)
def test_max_is_exact(name: str) -> None:
    assert chosen("max", histogram_of(DATA[name])) == float(np.abs(np.float32(DATA[name])).max())


@pytest.mark.parametrize("percentile", ["50", "99", "99.9", "99.99", "100"])
@pytest.mark.parametrize("name", DATA)
def test_percentile_against_sorting(name: str, percentile: str) -> None:
    histogram = histogram_of(DATA[name])
    assert chosen("percentile", histogram, percentile=float(percentile)) == percentile_by_hand(DATA[name], histogram.bin_width, percentile)


# 1000 values, 999 of them below 1: 99.9% is reached without the outlier, and 99.9 / 100 * 1000 is more than 999 in floats.
RANKS = {"99.9": 127 / 128, "99.91": 50.0, "100.0": 50.0, "7.0": 0.125}


@pytest.mark.parametrize("percentile", RANKS)
def test_percentile_counts_exactly(percentile: str) -> None:
    values = np.concatenate([np.full(70, 0.12), np.full(929, 0.99), [50.0]])
    histogram = histogram_of(values)  # width 2 ** -7
    assert chosen("percentile", histogram, percentile=float(percentile)) == RANKS[percentile]


@pytest.mark.parametrize("spec", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("name", DATA)
def test_entropy_against_plain_loops(name: str, spec: QuantSpec) -> None:
    histogram = histogram_of(DATA[name], coarser=5)  # 129 to 256 bins
    assert 128 < len(histogram.occupied()) <= 256
    assert chosen("entropy", histogram, spec) == entropy_by_hand(histogram, spec.hi + 1)


def test_entropy_divergence_of_the_published_example() -> None:
    """Migacz, GTC 2017: P of 8 bins in 2 levels, Q = [2, 0, 2, 2, 4, 4, 4, 4] / 22."""
    p = np.array([1, 0, 2, 3, 5, 3, 1, 7])
    q = np.array([2, 0, 2, 2, 4, 4, 4, 4])
    expected = sum(a / 22 * math.log(a / b) for a, b in zip(p, q, strict=True) if a)
    assert methods._divergence(p.astype(float), 0.0, 2) == pytest.approx(expected, rel=1e-12)


def test_entropy_divergence_counts_what_is_beyond_in_p_but_not_in_q() -> None:
    kept = np.array([4.0, 4.0, 1.0, 1.0])
    p, q = np.array([4, 4, 1, 1 + 6]) / 16, np.array([4, 4, 1, 1]) / 10
    assert methods._divergence(kept, 6.0, 2) == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-12)
    assert methods._divergence(np.array([4.0, 4.0, 1.0, 0.0]), 6.0, 2) == math.inf


@pytest.mark.parametrize("name", DATA)
def test_entropy_works_on_at_most_2048_bins(name: str) -> None:
    fine = histogram_of(DATA[name])  # more than 4096 bins are occupied, so that they merge by 4
    assert len(fine.occupied()) > 4096
    merged = Histogram(counts=widen(fine.counts, 2), exponent=fine.exponent + 2, largest=fine.largest)
    assert 1024 < len(merged.occupied()) <= 2048
    assert chosen("entropy", fine) == chosen("entropy", merged)


# The share of values that ReLU6 cuts off is real: they all are represented best by a range that holds 6 exactly.
@pytest.mark.parametrize("saturated", [0.3, 0.05, 0.01, 0.001])
def test_entropy_keeps_the_whole_range_of_a_saturated_relu6(saturated: float) -> None:
    values = RNG.uniform(0, 1, 50_000) ** 2 * 6
    values[: int(saturated * len(values))] = 6.0
    assert chosen("entropy", histogram_of(values)) == 6.0


@pytest.mark.parametrize(
    ("method", "low", "high"), [("max", 60.0, 60.0), ("percentile", 3.5, 6.0), ("entropy", 3.5, 12.0), ("mse", 30.0, 59.0)]
)
def test_what_each_does_with_one_outlier(method: str, low: float, high: float) -> None:
    assert low <= chosen(method, histogram_of(DATA["one outlier"])) <= high


@pytest.mark.parametrize("spec", [INT8, INT4], ids=["int8", "int4"])
@pytest.mark.parametrize("name", DATA)
def test_mse_against_plain_loops(name: str, spec: QuantSpec) -> None:
    histogram = histogram_of(DATA[name], coarser=5)
    assert chosen("mse", histogram, spec) == pytest.approx(mse_by_hand(histogram, spec), rel=1e-12)


@pytest.mark.parametrize("name", DATA)
def test_mse_is_least_on_the_values_themselves(name: str) -> None:
    values = np.abs(DATA[name])

    def error(amax: float) -> float:
        scale = amax / 7
        return float(np.mean((np.minimum(np.rint(values / scale), 7) * scale - values) ** 2))

    found = chosen("mse", histogram_of(DATA[name]), INT4)
    assert error(found) <= 1.001 * min(error(values.max() * step / 400) for step in range(1, 401))
    assert found < 0.95 * values.max() or name in ("after relu6", "bimodal")  # at 4 bits the others are clipped


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DATA)
def test_scaling_by_a_power_of_two_scales_the_range(name: str, method: str) -> None:
    one, other = histogram_of(DATA[name]), histogram_of(DATA[name] * 2.0**-7)
    assert chosen(method, other) == chosen(method, one) * 2.0**-7
    assert 0 < chosen(method, one) <= one.largest


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1e-30, 3.4e38])
def test_constant_tensor(value: float, method: str) -> None:
    assert chosen(method, histogram_of(np.full(100, -value))) == float(np.float32(value))


@pytest.mark.parametrize("method", ["max", "entropy", "mse"])
def test_zeros_say_nothing_about_the_range(method: str) -> None:
    values = RNG.gamma(2.0, 1.0, SIZE) + 0.01
    assert chosen(method, histogram_of(np.append(np.zeros(10**6), values))) == chosen(method, histogram_of(values))


def test_percentile_of_almost_only_zeros_is_one_bin() -> None:
    values = np.append(np.zeros(10**6), [1.0, 1.5, 2.0])
    assert chosen("percentile", histogram_of(values)) == 2.0**-11


@pytest.mark.parametrize("bins", [1, 2, 100, 128])
def test_entropy_of_fewer_bins_than_levels_keeps_everything(bins: int) -> None:
    counts = np.zeros(BINS, np.int64)
    counts[:bins] = np.arange(bins, 0, -1)
    largest = (bins - 0.5) * 2.0**MIN_EXPONENT
    assert chosen("entropy", Histogram(counts=counts, exponent=MIN_EXPONENT, largest=largest)) == largest


@pytest.mark.parametrize("method", METHODS)
def test_a_calibrator_leaves_the_histogram_as_it_is(method: str) -> None:
    histogram = histogram_of(DATA["gaussian"])
    before = histogram.counts.copy()
    chosen(method, histogram)
    assert np.array_equal(histogram.counts, before)
