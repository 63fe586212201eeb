"""How the report writes numbers: exact texts."""

from __future__ import annotations

import math

import pytest

from tfqat.report import formats


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (formats.percent, 0.91847, "91.85%"),
        (formats.percent, None, "–"),
        (formats.percent, math.nan, "–"),
        (formats.percent_floor, 1.0, "100.0000%"),
        (formats.percent_floor, 0.99999996, "99.9999%"),
        (formats.percent_floor, 0.9999, "99.9900%"),
        (formats.percent_floor, 0.0, "0.0000%"),
        (formats.number, 3.14159, "3.142"),
        (formats.number, 0.0000123, "1.23×10⁻⁵"),
        (formats.number, -2.5, "−2.5"),
        (formats.number, math.inf, "–"),
        (formats.integer, 60000, "60,000"),
        (formats.size, 999, "999 B"),
        (formats.size, 412345, "412 kB"),
        (formats.size, 1_350_000, "1.35 MB"),
        (formats.milliseconds, 0.31415, "0.314 ms"),
        (formats.seconds, 9.34, "9.3 s"),
        (formats.seconds, 83.2, "1 min 23 s"),
    ],
)
def test_number_as_text(function, value, expected):
    assert function(value) == expected


@pytest.mark.parametrize(
    ("metric", "value", "reference", "expected"),
    [
        ("accuracy", 0.9178, 0.9193, "−0.15"),
        ("accuracy", 0.9201, 0.9193, "+0.08"),
        ("accuracy", 0.91931, 0.9193, "±0.00"),
        ("mean_absolute_error", 0.25, 0.2, "+0.05"),
        ("loss", 0.2, 0.2, "±0"),
        ("accuracy", None, 0.9193, "–"),
        ("accuracy", 0.9178, None, "–"),
    ],
)
def test_difference_is_in_points_for_a_share_and_plain_for_the_rest(metric, value, reference, expected):
    assert formats.metric_difference(metric, value, reference) == expected


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("accuracy", "50.00%"), ("top_5", "50.00%"), ("mean_io_u", "0.5"), ("binary_iou", "50.00%"), ("loss", "0.5"), ("mae", "0.5")],
)
def test_metric_value_is_a_percentage_for_a_share(metric, expected):
    assert formats.metric_value(metric, 0.5) == expected
