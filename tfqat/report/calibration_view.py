"""What a report shows of `calibration.json`: the range of each point, how it was chosen, and from which values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfqat.calibration.histogram import Histogram
from tfqat.report.fields import numbers


@dataclass(frozen=True, kw_only=True)
class CalibratedPoint:
    """The range of one QPoint: `amax` has one value per tensor, or one per channel; `candidates` maps a calibrator to its amax."""

    id: str
    amax: tuple[float, ...]
    method: str
    candidates: Mapping[str, float] | None = None
    histogram: Histogram | None = None

    @classmethod
    def from_dict(cls, point_id: str, data: Mapping[str, Any]) -> CalibratedPoint:
        """Reads one entry of `points` in `calibration.json`."""
        return cls(
            id=point_id,
            amax=tuple(_flat(data["amax"])),
            method=data["method"],
            candidates=numbers(data["candidates"]) if data.get("candidates") else None,
            histogram=Histogram.from_dict(data["histogram"]) if data.get("histogram") else None,
        )

    @property
    def calibrator(self) -> str:
        """The calibrator whose amax was taken: `entropy` for the method `best: entropy`."""
        return self.method.removeprefix("best: ")

    @property
    def clipped(self) -> float:
        """The share of all values that are larger than amax, taking a bin's values as spread evenly; 0 without a histogram."""
        bins = self.histogram.occupied() if self.histogram else None
        if bins is None or not len(bins.counts):
            return 0.0
        amax, widths = self.amax[0], bins.upper - bins.lower
        # The last bin ends at the largest value, where it may have no width.
        above = np.divide(bins.upper - amax, widths, out=(bins.upper > amax).astype(np.float64), where=widths > 0)
        return float(np.dot(np.clip(above, 0.0, 1.0), bins.counts) / bins.counts.sum())


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """`calibration.json`."""

    batches: int
    examples: int
    points: Mapping[str, CalibratedPoint]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Reads the JSON object."""
        points = {key: CalibratedPoint.from_dict(key, value) for key, value in data["points"].items()}
        return cls(batches=data["batches"], examples=data["examples"], points=points)


def _flat(amax: float | list[Any]) -> list[float]:
    """The ranges of a point in one list; a depthwise kernel has them by input channel and multiplier."""
    return [value for part in amax for value in _flat(part)] if isinstance(amax, list) else [float(amax)]
