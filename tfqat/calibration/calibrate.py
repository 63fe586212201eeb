"""Gives a quantized model its ranges: one pass over the data in float, then every calibrator's amax from the same histograms.

calibrate     data -> histograms -> ranges, set on the model
recalibrate   kept histograms -> the ranges by another calibrator; no data, no model
transferred   the ranges for another placement of the same model; no data
choose_best   for each point the candidate with the least error of the layers that read it; some batches
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.calibration.best import output_errors
from tfqat.calibration.histogram import Histogram
from tfqat.calibration.methods import amax_of
from tfqat.calibration.observers import observe
from tfqat.calibration.result import Calibration, PointCalibration
from tfqat.calibration.weights import weight_amax
from tfqat.datasets import check_batch, inputs_of
from tfqat.errors import DataError
from tfqat.models import graph as model_graph
from tfqat.models.graph import TensorRef
from tfqat.placement.plan import QPoint
from tfqat.quantize import state
from tfqat.spec import Calibrator

COMPARED = (
    Calibrator(method="max"),
    *(Calibrator(method="percentile", percentile=percentile) for percentile in (99.9, 99.99, 99.999)),
    Calibrator(method="entropy"),
    Calibrator(method="mse"),
)
"""What every point's range would be by these is kept beside the one that is chosen."""

BEST_EXAMPLES = 256
"""How many examples the calibrator `best` computes errors with, at most."""


def calibrate(qmodel: Any, dataset: Iterable[Any], batches: int = 16) -> Calibration:
    """Choose the range of every quantizer of `qmodel` and set it; afterwards all quantizers are enabled.

    Activations are observed in float, over one pass; each point's own calibrator chooses its amax, from the values of all points that
    share its scale. Each channel of a weight gets its largest magnitude or, where the calibrator is mse, the range of least error.
    Within the scope of a `tf.distribute` strategy the batches are split between the replicas, and the ranges are the same. So they are
    where a batch does not fit into memory and is computed in parts.

    Args:
        qmodel: a quantized model; its quantizers' state is set.
        dataset: batches of inputs, or of (inputs, labels, ...); a tf.data.Dataset or any iterable.
        batches: how many batches to look at; of several workers each looks at so many of its own data.

    Returns:
        The chosen ranges with the histograms they came from. The same for any order of the batches, and on every worker.

    Raises:
        OutOfMemoryError: two examples do not fit into memory.
        DataError: fewer batches than asked for, a batch of another shape than the model takes, NaN or Inf. The model's quantizers are
            then as they were.
    """
    if batches < 1:
        raise DataError(f"calibration needs at least 1 batch; got batches={batches}")
    handles = state.handles(qmodel)
    best = [name for name, handle in handles.items() if handle.point.calibrator.method == "best"]
    looked_at = _Kept(_checked(qmodel, dataset, batches), BEST_EXAMPLES if best else 0)
    seen = observe(qmodel, _sources(qmodel, handles), looked_at)
    if seen.batches < batches * seen.workers:
        workers = f" on each of {seen.workers} workers" if seen.workers > 1 else ""
        raise DataError(
            f"calibration asked for {batches} batches{workers}, the data held {seen.batches}: give more data, "
            f"or set calibration.batches to {seen.batches // seen.workers or 1}"
        )
    points = [handle.point for handle in handles.values()]
    activations = _ranges(seen.histograms, points)
    found = {
        name: activations[name] if handle.weight is None else _weight_range(name, handle)  # in the order of the model
        for name, handle in handles.items()
    }
    calibration = Calibration(points=found, batches=seen.batches, examples=seen.examples, at_once=seen.at_once)
    if best:
        calibration = choose_best(qmodel, calibration, best, looked_at.kept)
    apply(qmodel, calibration)
    return calibration


def recalibrate(calibration: Calibration, points: Sequence[QPoint], calibrator: Calibrator) -> Calibration:
    """The ranges by another calibrator, from the histograms that a calibration keeps: no second pass over the data.

    Args:
        calibration: of a model with these points.
        points: those of its placement; they say which share a scale.
        calibrator: for all activations. Weights keep their ranges.

    Returns:
        A new calibration; `apply` sets it on a model.

    Raises:
        DataError: a point of which the calibration has no range, or no histogram.
    """
    activations = [replace(point, calibrator=calibrator) for point in points if point.kind == "activation"]
    missing = [point.id for point in points if point.id not in calibration.points]
    bare = [point.id for point in activations if point.id in calibration.points and calibration.points[point.id].histogram is None]
    if missing or bare:
        problem = f"no range of point {missing[0]!r}: it is of another placement" if missing else f"no histogram of activation {bare[0]!r}"
        raise DataError(f"the calibration has {problem}. Calibrate again from data")
    chosen = calibrator.describe()
    known = {point.id: (calibration.points[point.id].candidates or {}).get(chosen) for point in activations}
    if all(amax is not None for amax in known.values()):
        found = {name: replace(calibration.points[name], amax=np.asarray(amax, np.float32), method=chosen) for name, amax in known.items()}
    else:
        histograms = {name: point.histogram for name, point in calibration.points.items() if point.histogram is not None}
        found = _ranges(histograms, activations)
    return replace(calibration, points={**calibration.points, **found})


def transferred(calibration: Calibration, points: Sequence[QPoint], qmodel: Any) -> Calibration:
    """The ranges for another placement of the same model: those of activations are kept, those of weights chosen anew.

    Args:
        calibration: of a model with these points.
        points: of the placement that it is for.
        qmodel: a quantized model of the other placement; its tensors are found by the layer that makes them.

    Raises:
        DataError: it quantizes a tensor that the other placement left float.
    """
    known = {(point.source, point.output): calibration.points[point.id] for point in points if point.kind == "activation"}
    found = {}
    for name, handle in state.handles(qmodel).items():
        if handle.weight is not None:
            found[name] = _weight_range(name, handle)
        elif (handle.point.source, handle.point.output) in known:
            found[name] = known[handle.point.source, handle.point.output]
        else:
            raise DataError(
                f"the calibration has no range of activation {name!r}: its placement left that float. Calibrate again from data"
            )
    return replace(calibration, points=found)


def choose_best(qmodel: Any, calibration: Calibration, names: Sequence[str], batches: Sequence[Any]) -> Calibration:
    """The ranges with, for some activations, the candidate that gives the layers which read them the least error.

    Points that share a scale are chosen together, by the sum of their errors.

    Args:
        qmodel: the quantized model; its quantizers are as they were afterwards.
        calibration: its ranges with their candidates.
        names: ids of the activations.
        batches: of inputs, to compute errors with.
    """
    points = {name: handle.point for name, handle in state.handles(qmodel).items()}
    labels = {name: list(calibration.points[name].candidates or {}) for name in names}
    ranges = {name: [float(np.float32(value)) for value in (calibration.points[name].candidates or {}).values()] for name in names}
    errors = output_errors(qmodel, ranges, batches)
    sums: dict[str, Any] = {}
    for name in names:
        group = points[name].scale_group or name
        sums[group] = sums.get(group, 0.0) + errors[name]
    chosen = {}
    for name in names:
        number = int(np.argmin(sums[points[name].scale_group or name]))
        chosen[name] = replace(
            calibration.points[name], amax=np.asarray(ranges[name][number], np.float32), method=f"best: {labels[name][number]}"
        )
    return replace(calibration, points={**calibration.points, **chosen})


def apply(qmodel: Any, calibration: Calibration) -> None:
    """Set the ranges of a calibration on a model of the same placement."""
    state.set_ranges(qmodel, {name: point.amax for name, point in calibration.points.items()})


def _sources(qmodel: Any, handles: Mapping[str, state.Handle]) -> dict[str, Any]:
    """The symbolic tensor that each activation point quantizes, by QPoint id."""
    tensors = model_graph.tensors(qmodel)
    points = [handle.point for handle in handles.values() if handle.point.kind == "activation"]
    return {point.id: tensors[TensorRef(layer=point.source, index=point.output)] for point in points}


def _weight_range(name: str, handle: state.Handle) -> PointCalibration:
    method = "mse" if handle.point.calibrator.method == "mse" else "max"
    values = handle.weight.numpy()
    largest = weight_amax(values, "max", handle.point.spec)
    finite = np.isfinite(largest)
    if not np.all(finite):
        raise DataError(f"weight {name!r} holds NaN or Inf in {int(np.sum(~finite))} of {finite.size} channels; load a sound model")
    return PointCalibration(amax=largest if method == "max" else weight_amax(values, method, handle.point.spec), method=method)


def _ranges(histograms: Mapping[str, Histogram], points: Sequence[QPoint]) -> dict[str, PointCalibration]:
    """The range of every activation of `points`, chosen from its own values and those of every point that shares its scale."""
    activations = [point for point in points if point.kind == "activation"]
    groups: dict[str, list[str]] = {}
    for point in activations:
        groups.setdefault(point.scale_group or point.id, []).append(point.id)
    shared = {group: functools.reduce(Histogram.merge, (histograms[name] for name in names)) for group, names in groups.items()}
    return {point.id: _choose(histograms[point.id], shared[point.scale_group or point.id], point) for point in activations}


def _choose(own: Histogram, values: Histogram, point: QPoint) -> PointCalibration:
    # "best" is one of the candidates, which `choose_best` finds with data; mse is what comes nearest without.
    calibrator = Calibrator(method="mse") if point.calibrator.method == "best" else point.calibrator
    tried = {one.describe(): one for one in (*COMPARED, calibrator)}
    candidates = {name: amax_of(values, one, point.spec) for name, one in tried.items()}
    chosen = calibrator.describe()
    return PointCalibration(amax=np.asarray(candidates[chosen], np.float32), method=chosen, candidates=candidates, histogram=own)


def _check_finite(qmodel: Any, inputs: Any, number: int) -> None:
    """Raise if an input holds NaN or Inf: a layer may hide it from the tensors after it, as a fused ReLU turns NaN into 0."""
    named = inputs if isinstance(inputs, dict) else dict(zip(qmodel.input_names, tf.nest.flatten(inputs), strict=True))
    for name, value in named.items():
        array = np.asarray(value)
        if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
            raise DataError(f"calibration batch {number}: tensor {name!r} holds NaN or Inf. Look at that batch of the calibration data")


class _Kept:
    """Batches as they are read, the first of which stay, until they hold `examples`."""

    def __init__(self, batches: Iterable[Any], examples: int) -> None:
        self._batches, self._examples = batches, examples
        self.kept: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        left = self._examples
        for batch in self._batches:
            if left > 0:
                self.kept.append(batch)
                left -= int(tf.nest.flatten(batch)[0].shape[0])
            yield batch


def _checked(qmodel: Any, dataset: Iterable[Any], batches: int) -> Iterator[Any]:
    for number, batch in enumerate(itertools.islice(dataset, batches)):
        inputs = inputs_of(batch)
        check_batch(qmodel, inputs, where=f"calibration batch {number}")
        _check_finite(qmodel, inputs, number)
        yield inputs
