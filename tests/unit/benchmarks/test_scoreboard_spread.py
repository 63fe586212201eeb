"""Medians, quartiles and paired differences, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.scoreboard.spread import mean_and_deviation, paired, summary


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([3.0], (3.0, 3.0, 3.0), id="one"),
        pytest.param([1.0, 5.0, 2.0], (2.0, 1.0, 5.0), id="three: least and most"),
        pytest.param([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], (4.0, 2.0, 6.0), id="seven: quartiles"),
    ],
)
def test_summary(values: list[float], expected: tuple[float, float, float]) -> None:
    found = summary(values)

    assert (found["median"], found["low"], found["high"]) == expected
    assert found["values"] == values


def test_mean_and_deviation_of_one_value_has_no_deviation() -> None:
    assert mean_and_deviation([0.5]) == (0.5, 0.0)
    assert mean_and_deviation([1.0, 3.0]) == (2.0, math.sqrt(2))


def test_paired_counts_what_one_gets_right_and_the_other_does_not() -> None:
    first, second = np.array([[True, True, True, False]]), np.array([[True, False, False, True]])

    found = paired(first, second)

    assert found["points"] == 25.0  # two won, one lost, of four
    assert found["deviation"] == 0.0
    differences = np.array([0.0, 100.0, 100.0, -100.0])
    assert found["standard_error"] == pytest.approx(differences.std(ddof=1) / 2)


def test_paired_adds_the_variance_of_seeds_and_of_images() -> None:
    first = np.array([[True, True], [True, False]])
    second = np.array([[False, False]])  # one seed for all

    found = paired(first, second)

    assert found["points"] == 75.0
    by_seed, by_image = np.array([100.0, 50.0]), np.array([100.0, 50.0])
    assert found["deviation"] == pytest.approx(by_seed.std(ddof=1))
    assert found["standard_error"] == pytest.approx(math.sqrt(by_seed.var(ddof=1) / 2 + by_image.var(ddof=1) / 2))
