"""The calibrators against brute-force versions that see the values themselves, and on cases whose answer is known."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tfqat.calibration import methods
from tfqat.calibration.histogram import BINS, SHIFT, Histogram
from tfqat.calibration.methods import amax_of
from tfqat.spec import METHODS, Calibrator, QuantSpec

INT8, INT4 = QuantSpec(), QuantSpec(num_bits=4)
SPECS = pytest.mark.parametrize("spec", [INT8, INT4], ids=["int8", "int4"])


def histogram_of(values: np.ndarray) -> Histogram:
    magnitudes = np.abs(np.float32(values))
    return Histogram(counts=np.bincount(magnitudes.view(np.int32) >> SHIFT, minlength=BINS), largest=float(magnitudes.max()))


def chosen(method: str, values: np.ndarray, spec: QuantSpec = INT8, percentile: float = 99.99) -> float:
    return amax_of(histogram_of(values), Calibrator(method=method, percentile=percentile), spec)


def divergences_by_hand(values: np.ndarray, levels: int, cuts: list[int]) -> dict[int, float]:
    """KL by cut as in Migacz, GTC 2017, slide "Pseudocode: KL", from the values in 2048 bins, without the first."""
    magnitudes = np.abs(np.float32(values)).astype(np.float64)
    bins, _ = np.histogram(magnitudes, 2048, (0.0, magnitudes.max()))
    bins[0] = 0
    found = {}
    for cut in cuts:
        p, q = bins[:cut].astype(float), np.zeros(cut)
        p[-1] += bins[cut:].sum()
        for level in range(levels):
            start, end = level * cut // levels, (level + 1) * cut // levels
            occupied = np.flatnonzero(bins[start:end]) + start
            q[occupied] = bins[start:end].sum() / max(len(occupied), 1)
        used = p > 0
        if not q.any() or np.any(q[used] == 0):
            found[cut] = math.inf
        else:
            found[cut] = float(np.sum(p[used] / p.sum() * np.log(p[used] / p.sum() / (q[used] / q.sum()))))
    return found


def squared_error(values: np.ndarray, amax: float, spec: QuantSpec) -> float:
    magnitudes, scale = np.abs(np.float32(values)).astype(np.float64), amax / spec.hi
    return float(np.mean((np.minimum(np.rint(magnitudes / scale), spec.hi) * scale - magnitudes) ** 2))


RNG = np.random.default_rng(3)
SIZE = 200_000
DATA = {
    "gaussian": RNG.normal(0, 1, SIZE),
    "laplace": RNG.laplace(0, 2, SIZE),
    "after relu": np.maximum(RNG.normal(0, 1, SIZE), 0),
    "after relu6": np.clip(RNG.normal(3, 3, SIZE), 0, 6),
    "bimodal": np.where(RNG.random(SIZE) < 0.9, RNG.normal(0, 1, SIZE), RNG.normal(10, 0.1, SIZE)),
    "heavy tails": RNG.standard_t(2, SIZE),
    "one outlier": np.append(RNG.normal(0, 1, SIZE), 60.0),
}


@pytest.mark.parametrize("name", DATA)
def test_max_is_exact(name: str) -> None:
    assert chosen("max", DATA[name]) == float(np.abs(np.float32(DATA[name])).max())


@pytest.mark.parametrize("percentile", ["50.5", "99", "99.9", "99.99", "99.999", "100"])
@pytest.mark.parametrize("name", DATA)
def test_percentile_lies_in_the_bin_of_the_value_of_its_rank(name: str, percentile: str) -> None:
    ordered = np.sort(np.abs(np.float32(DATA[name])).astype(np.float64))
    value = float(ordered[max(1, math.ceil(len(ordered) * Fraction(percentile) / 100)) - 1])
    found = chosen("percentile", DATA[name], percentile=float(percentile))
    assert found == pytest.approx(value, rel=2.0**-9) and found <= ordered[-1]
    if percentile == "100":
        assert found == ordered[-1]


# 1000 values, 999 of them below 1: 99.9% is reached without the outlier, and 99.9 / 100 * 1000 is more than 999 in floats.
RANKS = {"99.9": 0.75, "99.91": 50.0, "100.0": 50.0, "7.0": 0.125}


@pytest.mark.parametrize("percentile", RANKS)
def test_percentile_counts_exactly(percentile: str) -> None:
    values = np.concatenate([np.full(70, 0.125), np.full(929, 0.75), [50.0]])
    assert chosen("percentile", values, percentile=float(percentile)) == pytest.approx(RANKS[percentile], rel=2.0**-9)


def test_percentile_interpolates_within_a_bin() -> None:
    # All in the bin [1, 1 + 2 ** -9), the largest among them at three quarters: half of them are below half of what is filled.
    values = np.append(np.full(999, 1.0), 1 + 0.75 * 2.0**-9)
    assert chosen("percentile", values, percentile=60.0) == pytest.approx(1 + 0.6 * 0.75 * 2.0**-9, rel=1e-12)


def test_percentile_of_almost_only_zeros_is_0() -> None:
    assert chosen("percentile", np.append(np.zeros(10**6), [1.0, 1.5, 2.0])) == 0.0


@SPECS
@pytest.mark.parametrize("name", DATA)
def test_entropy_loses_as_little_as_the_best_cut_of_the_values_themselves(name: str, spec: QuantSpec) -> None:
    levels, largest = spec.hi + 1, float(np.abs(np.float32(DATA[name])).max())
    cut = chosen("entropy", DATA[name], spec) / largest * 2048
    assert cut == int(cut) and cut >= levels
    every = divergences_by_hand(DATA[name], levels, list(range(levels, 2049, 1)))
    # A histogram's bin is up to 4 of the 2048 wide, so that in a sparse tail it cannot say which of them is empty, where KL is infinite.
    near = min(every[c] for c in range(max(int(cut) - 3, levels), min(int(cut) + 3, 2048) + 1))
    best = min(every, key=lambda c: every[c])
    assert near <= 1.05 * every[best] + 1e-6
    sharp = all(every[c] > 1.25 * every[best] for c in every if not 0.95 <= c / best <= 1.05)
    assert not sharp or cut == pytest.approx(best, rel=0.05)


@SPECS
@pytest.mark.parametrize("name", ["after relu", "heavy tails"])
def test_entropy_divergences_are_those_of_plain_loops(name: str, spec: QuantSpec) -> None:
    """The same bins for both: then all cuts agree, also those that are infinite."""
    magnitudes = np.abs(np.float32(DATA[name])).astype(np.float64)
    counts = np.histogram(magnitudes, 2048, (0.0, magnitudes.max()))[0].astype(float)
    counts[0] = 0
    found = methods._divergences(counts, spec.hi + 1)
    cuts = list(range(spec.hi + 1, 2049, 61))
    by_hand = divergences_by_hand(DATA[name], spec.hi + 1, cuts)
    assert found[[cut - spec.hi - 1 for cut in cuts]] == pytest.approx(list(by_hand.values()), abs=1e-6)
    assert np.isinf(list(by_hand.values())).any() and not np.isinf(list(by_hand.values())).all()


def test_entropy_divergence_of_the_published_example() -> None:
    """Migacz, GTC 2017: P of 8 bins in 2 levels, Q = [2, 0, 2, 2, 4, 4, 4, 4] / 22."""
    p, q = np.array([1, 0, 2, 3, 5, 3, 1, 7]), np.array([2, 0, 2, 2, 4, 4, 4, 4])
    expected = sum(a / 22 * math.log(a / b) for a, b in zip(p, q, strict=True) if a)
    assert methods._divergences(p.astype(float), 2)[-1] == pytest.approx(expected, rel=1e-6)


def test_entropy_divergence_counts_what_is_beyond_in_p_but_not_in_q() -> None:
    p, q = np.array([4, 4, 1, 1 + 6]) / 16, np.array([4, 4, 1, 1]) / 10
    found = methods._divergences(np.array([4.0, 4, 1, 1, 6]), 2)
    assert found[2] == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-6)
    assert methods._divergences(np.array([4.0, 4, 1, 0, 6]), 2)[2] == math.inf


# The share of values that ReLU6 cuts off is real: they all are represented best by a range that holds 6 exactly.
@pytest.mark.parametrize("saturated", [0.3, 0.05, 0.01, 0.001])
def test_entropy_keeps_the_whole_range_of_a_saturated_relu6(saturated: float) -> None:
    values = RNG.uniform(0, 1, 50_000) ** 2 * 6
    values[: int(saturated * len(values))] = 6.0
    assert chosen("entropy", values) == 6.0


@pytest.mark.parametrize(
    ("method", "low", "high"), [("max", 60.0, 60.0), ("percentile", 3.5, 6.0), ("entropy", 3.5, 12.0), ("mse", 15.0, 59.0)]
)
def test_what_each_does_with_one_outlier(method: str, low: float, high: float) -> None:
    assert low <= chosen(method, DATA["one outlier"]) <= high


@SPECS
@pytest.mark.parametrize("name", DATA)
def test_mse_is_least_on_the_values_themselves(name: str, spec: QuantSpec) -> None:
    largest, found = float(np.abs(np.float32(DATA[name])).max()), chosen("mse", DATA[name], spec)
    least = min(squared_error(DATA[name], largest * step / 200, spec) for step in range(1, 201))
    assert squared_error(DATA[name], found, spec) <= 1.02 * least
    if spec is INT4 and name not in ("after relu6", "bimodal"):  # the others are clipped at 4 bits
        assert found < 0.75 * largest


@SPECS
def test_mse_closed_form_is_the_integral(spec: QuantSpec) -> None:
    """One bin [0.5, 0.75) of 10 values and one [1, 1.0) of 3 without width, against a sum over a million points."""
    edges, steps = np.array([0.5, 0.75]), np.array([-40.0, 40.0])
    x = 0.5 + 0.25 * (np.arange(10**6) + 0.5) / 10**6
    for amax in (0.1, 0.6, 0.77, 1.0):
        scale = amax / spec.hi
        inside = np.mean((np.minimum(np.rint(x / scale), spec.hi) * scale - x) ** 2)
        found = methods._squared_errors(np.array([amax]), edges, steps, 3, 1.0, spec.hi)[0]
        assert found == pytest.approx(10 * inside + 3 * (amax - 1.0) ** 2, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DATA)
def test_scaling_by_a_power_of_two_scales_the_range(name: str, method: str) -> None:
    one = chosen(method, DATA[name])
    assert chosen(method, DATA[name] * 2.0**-7) == one * 2.0**-7
    assert 0 < one <= float(np.abs(np.float32(DATA[name])).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.0, 0.1, 1e-30, 3.4e38])
def test_constant_tensor(value: float, method: str) -> None:
    largest, found = float(np.float32(value)), chosen(method, np.full(100, -value))
    assert found == largest if method != "mse" else largest * (1 - 2.0**-9) <= found <= largest


@pytest.mark.parametrize("method", ["max", "entropy", "mse"])
def test_zeros_say_nothing_about_the_range(method: str) -> None:
    values = RNG.gamma(2.0, 1.0, 20_000) + 0.01
    assert chosen(method, np.append(np.zeros(10**6), values)) == chosen(method, values)


@pytest.mark.parametrize("method", METHODS)
def test_a_calibrator_leaves_the_histogram_as_it_is(method: str) -> None:
    histogram = histogram_of(DATA["gaussian"])
    before = histogram.counts.copy()
    amax_of(histogram, Calibrator(method=method), INT8)
    assert np.array_equal(histogram.counts, before)
