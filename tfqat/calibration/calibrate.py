"""Gives a quantized model its ranges: one pass over the data in float, then every calibrator's amax from the same histograms."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat import numerics
from tfqat.calibration.histogram import Histogram
from tfqat.calibration.methods import amax_of
from tfqat.calibration.observers import observe
from tfqat.datasets import check_batch, inputs_of
from tfqat.errors import DataError
from tfqat.placement.plan import QPoint
from tfqat.quantize import state
from tfqat.spec import METHODS


@dataclass(frozen=True, kw_only=True)
class PointCalibration:
    """The range of one point, how it was chosen and, for an activation, what the other calibrators would have chosen."""

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
    """The ranges of all points of a model, by QPoint id."""

    points: Mapping[str, PointCalibration]
    batches: int
    examples: int

    @property
    def dead_channels(self) -> dict[str, int]:
        """How many channels of a point have the range 0, for the points that have any: their codes are all 0."""
        return {name: int(np.sum(point.amax == 0)) for name, point in self.points.items() if np.any(point.amax == 0)}

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; `from_dict` reads it."""
        points = {name: point.to_dict() for name, point in self.points.items()}
        return {"batches": self.batches, "examples": self.examples, "points": points}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Calibration:
        """The inverse of `to_dict`."""
        points = {name: PointCalibration.from_dict(point) for name, point in data["points"].items()}
        return cls(points=points, batches=data["batches"], examples=data["examples"])


def calibrate(qmodel: Any, dataset: Iterable[Any], batches: int = 16) -> Calibration:
    """Choose the range of every quantizer of `qmodel` and set it; afterwards all quantizers are enabled.

    Activations are observed in float, over one pass; each point's own calibrator chooses its amax, from the values of all points that
    share its scale. Weights get the largest magnitude
    of each channel.

    Args:
        qmodel: a quantized model; its quantizers' state is set.
        dataset: batches of inputs, or of (inputs, labels, ...); a tf.data.Dataset or any iterable.
        batches: how many batches to look at.

    Returns:
        The chosen ranges with the histograms they came from. The same for any order of the batches.

    Raises:
        DataError: fewer batches than asked for, a batch of another shape than the model takes, NaN or Inf. The model's quantizers are
            then as they were.
    """
    if batches < 1:
        raise DataError(f"calibration needs at least 1 batch; got batches={batches}")
    handles = state.handles(qmodel)
    with _in_float(handles):
        histograms, seen, examples = observe(qmodel, state.activation_inputs(qmodel), _checked(qmodel, dataset, batches))
    if seen < batches:
        raise DataError(
            f"calibration asked for {batches} batches, the data held {seen}: give more data, or set calibration.batches to {seen or 1}"
        )
    points: dict[str, PointCalibration] = {}
    for name, handle in handles.items():
        if handle.weight is not None:
            points[name] = _weight_range(name, handle)
        else:
            points[name] = _choose(histograms[name], _of_group(histograms, handles, handle.point), handle)
    calibration = Calibration(points=points, batches=seen, examples=examples)
    apply(qmodel, calibration)
    return calibration


def apply(qmodel: Any, calibration: Calibration) -> None:
    """Set the ranges of a calibration on a model of the same placement."""
    state.set_ranges(qmodel, {name: point.amax for name, point in calibration.points.items()})


@contextlib.contextmanager
def _in_float(handles: Mapping[str, state.Handle]) -> Iterator[None]:
    """All quantizers switched off within the block, and as they were after it."""
    before = {name: bool(handle.enabled) for name, handle in handles.items()}
    try:
        for handle in handles.values():
            handle.enabled.assign(False)
        yield
    finally:
        for name, handle in handles.items():
            handle.enabled.assign(before[name])


def _weight_range(name: str, handle: state.Handle) -> PointCalibration:
    amax = numerics.weight_amax(handle.weight, handle.point.spec).numpy()
    if not np.all(np.isfinite(amax)):
        raise DataError(
            f"weight {name!r} holds NaN or Inf in {int(np.sum(~np.isfinite(amax)))} of {amax.size} channels; load a sound model"
        )
    return PointCalibration(amax=amax, method="max")


def _of_group(histograms: Mapping[str, Histogram], handles: Mapping[str, state.Handle], point: QPoint) -> Histogram:
    """What the range of a point is chosen from: its own values, and those of every point that shares its scale."""
    if point.scale_group is None:
        return histograms[point.id]
    members = [histograms[name] for name, handle in handles.items() if name in histograms and handle.point.scale_group == point.scale_group]
    return functools.reduce(Histogram.merge, members)


def _choose(own: Histogram, values: Histogram, handle: state.Handle) -> PointCalibration:
    calibrator, spec = handle.point.calibrator, handle.point.spec
    candidates = {method: amax_of(values, replace(calibrator, method=method), spec) for method in METHODS}
    return PointCalibration(
        amax=np.asarray(candidates[calibrator.method], np.float32), method=calibrator.describe(), candidates=candidates, histogram=own
    )


def _check_finite(qmodel: Any, inputs: Any, number: int) -> None:
    """Raise if an input holds NaN or Inf: a layer may hide it from the tensors after it, as a fused ReLU turns NaN into 0."""
    named = inputs if isinstance(inputs, dict) else dict(zip(qmodel.input_names, tf.nest.flatten(inputs), strict=True))
    for name, value in named.items():
        array = np.asarray(value)
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise DataError(f"calibration batch {number}: tensor {name!r} holds NaN or Inf. Look at that batch of the calibration data")


def _checked(qmodel: Any, dataset: Iterable[Any], batches: int) -> Iterator[Any]:
    for number, batch in enumerate(itertools.islice(dataset, batches)):
        inputs = inputs_of(batch)
        check_batch(qmodel, inputs, where=f"calibration batch {number}")
        _check_finite(qmodel, inputs, number)
        yield inputs
