"""The ranges of a model, as data: `calibration.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfqat.calibration.histogram import Histogram


@dataclass(frozen=True, kw_only=True)
class PointCalibration:
    """The range of one point, how it was chosen and, for an activation, what other calibrators would have chosen.

    `candidates` has an amax for each of COMPARED and for the point's own calibrator, by `Calibrator.describe()`.
    """

    amax: np.ndarray
    method: str
    candidates: Mapping[str, float] | None = None
    histogram: Histogram | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        return {
            "amax": self.amax.tolist(),
            "method": self.method,
            "candidates": dict(self.candidates) if self.candidates else None,
            "histogram": self.histogram.to_dict() if self.histogram else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PointCalibration:
        """The inverse of `to_dict`."""
        histogram = Histogram.from_dict(data["histogram"]) if data["histogram"] else None
        return cls(amax=np.asarray(data["amax"], np.float32), method=data["method"], candidates=data["candidates"], histogram=histogram)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The ranges of all points of a model, by QPoint id.

    `at_once` is how many examples of a batch were computed at once where a whole one did not fit into memory: the ranges are the same.
    """

    points: Mapping[str, PointCalibration]
    batches: int
    examples: int
    at_once: int | None = None

    @property
    def dead_channels(self) -> dict[str, int]:
        """How many channels of a point have the range 0, for the points that have any: their codes are all 0."""
        return {name: int(np.sum(point.amax == 0)) for name, point in self.points.items() if np.any(point.amax == 0)}

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        points = {name: point.to_dict() for name, point in self.points.items()}
        split = {} if self.at_once is None else {"at_once": self.at_once}
        return {"batches": self.batches, "examples": self.examples, **split, "points": points}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Calibration:
        """The inverse of `to_dict`."""
        points = {name: PointCalibration.from_dict(point) for name, point in data["points"].items()}
        return cls(points=points, batches=data["batches"], examples=data["examples"], at_once=data.get("at_once"))
