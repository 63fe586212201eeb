"""Medians, quartiles and paired differences, with what they are uncertain by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles; of fewer than four values the least and the most in their place. The values themselves beside them."""
    ordered = sorted(values)
    if len(ordered) < 4:
        low, high = ordered[0], ordered[-1]
    else:
        low, _, high = statistics.quantiles(ordered, n=4)
    return {"median": statistics.median(ordered), "low": low, "high": high, "values": [round(value, 6) for value in values]}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the standard deviation of one value; 0 for a single one."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def paired(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """The difference of two accuracies on the same images with the same seeds, in percentage points.

    Args:
        first, second: whether each image was right, shape (seeds, images); one seed stands for all if the tool has only one.

    Returns:
        points: mean(first - second). deviation: over the seeds. standard_error: of points, from the seeds and from the images:
        sqrt(var over seeds / seeds + var over images of the mean over seeds / images).
    """
    seeds = max(len(first), len(second))
    each = np.broadcast_to(first, (seeds, first.shape[1])).astype(float) - np.broadcast_to(second, (seeds, second.shape[1]))
    by_seed, by_image = 100 * each.mean(axis=1), 100 * each.mean(axis=0)
    over_seeds = float(by_seed.var(ddof=1)) if seeds > 1 else 0.0
    error = (over_seeds / seeds + float(by_image.var(ddof=1)) / len(by_image)) ** 0.5
    return {"points": float(by_seed.mean()), "deviation": over_seeds**0.5, "standard_error": error}
