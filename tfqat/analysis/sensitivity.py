"""`tfqat.sensitivity`: ranks a calibrated model's layers by what their quantization loses, and finds the placement that a goal asks for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.analysis import costs, search
from tfqat.analysis.bench import Bench, Change
from tfqat.analysis.executors import executor_for
from tfqat.analysis.fast import fast_scores
from tfqat.analysis.measure import Measurements, checked
from tfqat.analysis.meters import OUTPUT_ERROR, Meter, make_meter
from tfqat.analysis.raised import REASON, raised, recipe_lines
from tfqat.analysis.result import Sensitivity, UnitSensitivity, loss_text
from tfqat.analysis.subject import Subject
from tfqat.analysis.units import Unit
from tfqat.datasets import check_batch, check_labelled, inputs_of
from tfqat.errors import DataError, RecipeError
from tfqat.placement.plan import Placement
from tfqat.quantize.apply import placement_of
from tfqat.recipe.problems import sentence, validate
from tfqat.recipe.schema import BudgetConfig, SensitivityConfig

FAST_EXAMPLES = 128
"""How many examples the fast method looks at, in whole batches: 1 / sqrt(128 / 2) is an error of 12 per cent."""


def sensitivity(
    qmodel: Any,
    dataset: Iterable[Any],
    *,
    like: Any = None,
    placement: Placement | None = None,
    metric: str | Callable[[Any, Any], float] = OUTPUT_ERROR,
    loss: Any = None,
    metrics: Sequence[Any] = (),
    method: str = "fast",
    max_drop: float | None = None,
    budget: Mapping[str, float] | None = None,
    batches: int | None = None,
    executor: str = "local",
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> Sensitivity:
    """Rank the layers of a calibrated model by what their quantization loses; with a goal, also find the placement that meets it.

    Layers that TensorRT fuses, such as a convolution and the residual Add behind it, are switched together. With `max_drop` the result's
    placement leaves as few of them as it can find at higher precision: at 8 bits those with narrower weights, else float.

    Args:
        qmodel: a calibrated quantized model; it is not changed.
        dataset: batches of inputs for `output_error`, of (inputs, labels) or (inputs, labels, sample weights) for other metrics.
        like: the float model that `qmodel` was made from, if weights or biases of `qmodel` were corrected or trained since; what its
            units are compared with. Default: the weights of `qmodel`, unquantized.
        placement: of `qmodel`, with its reasons; the result's placement is made from it. Default: read from `qmodel`.
        metric: `output_error` (squared error over squared signal of the outputs), `loss`, the name of a Keras metric, or a function
            (outputs, labels) -> number where more is better, which gets numpy arrays of the whole data.
        loss: the Keras loss, for the metric `loss`.
        metrics: the Keras metrics that `metric` is one of, if there are several; default: that one.
        method: `fast` estimates the output error of each unit from gradients, in a few passes over the first FAST_EXAMPLES examples;
            `leave_one_in` measures the metric with one unit quantized at a time, `leave_one_out` with one unit float at a time.
        max_drop: how much worse than float the metric may be, in its own unit: 0.005 of accuracy is half a point.
        budget: `{"int8_share": 0.9}`, the least share of multiply-accumulates in INT8, or `{"latency_ms": 1.2}`, the most milliseconds
            for one example in ONNX Runtime on this machine. The least sensitive placement within it is found.
        batches: how many batches to measure on; default: all. They are kept in memory.
        executor: `local` or `ray`: where measurements run if there are several `workers`.
        workers: processes that measure at once; 1 stays in this one. The result is the same.
        advance: called after each batch of each measurement.

    Raises:
        RecipeError: an argument that cannot be; or the model has no such metric.
        DataError: no data, no labels, or a batch of another shape than the model takes.
        PlacementError: a budget that cannot be met; says the best that can.
        NotCalibratedError: a quantizer without a range.
        ModelError: `like` lacks a layer of `qmodel`.
    """
    started = time.perf_counter()
    config = _config(metric, method, max_drop, budget, batches, executor, workers)
    data = _batches(qmodel, dataset, batches, labelled=metric != OUTPUT_ERROR)
    meter = make_meter(metric, qmodel, loss=loss, metrics=metrics, batch=data[0])
    subject = Subject(qmodel, like)
    planned = placement or placement_of(qmodel)
    if config.method == "fast" and config.max_drop is None and config.budget is None:
        looked_at = _first(data, FAST_EXAMPLES) if metric == OUTPUT_ERROR else data
        return _estimate(subject, looked_at, meter, advance, started)
    bench = Bench(qmodel, subject.like)
    with executor_for(config.executor, config.workers, bench, data) as runner:
        measurements = Measurements(bench=bench, batches=data, meter=meter, advance=advance, executor=runner)
        return _Analysis(subject=subject, planned=planned, config=config, measurements=measurements, started=started).run()


def _estimate(subject: Subject, batches: Sequence[Any], meter: Meter, advance: Callable[[], None], started: float) -> Sensitivity:
    """The ranking by the fast method alone."""
    float_value, planned = (checked(meter, value) for value in subject.measure(batches, meter, advance))
    scores = fast_scores(subject, _first(batches, FAST_EXAMPLES), advance=advance)
    return _result("fast", meter, batches, subject.units, scores, float_value, planned, evaluations=2, started=started)


@dataclass(frozen=True, kw_only=True)
class _Analysis:
    subject: Subject
    planned: Placement
    config: SensitivityConfig
    measurements: Measurements
    started: float

    def run(self) -> Sensitivity:
        subject, measurements = self.subject, self.measurements
        float_value = measurements.measure({}, others="float")
        quantized = measurements.measure({})
        scores, values = self._scores(float_value, quantized)
        ranked = sorted(subject.units, key=lambda unit: -scores[unit.name])
        latencies = costs.latencies(subject.qmodel, subject.units) if self.config.budget and self.config.budget.latency_ms else None
        found = self._search(ranked, scores, latencies, float_value)
        result = _result(
            self.config.method,
            measurements.meter,
            measurements.batches,
            subject.units,
            scores,
            float_value,
            quantized,
            values=values,
            latencies=latencies.of if latencies else {},
            evaluations=measurements.count,
            started=self.started,
        )
        return self._with_search(result, found, values) if found else result

    def _with_search(self, result: Sensitivity, found: search.Search, values: Mapping[str, float]) -> Sensitivity:
        subject = self.subject
        alone = values if self.config.method == "leave_one_in" else self._alone(list(found.chosen))
        reasons = self._reasons(found, alone, result.float_value)
        known = {**alone, **values}
        return replace(
            result,
            units=tuple(replace(unit, value=known.get(unit.name)) for unit in result.units),
            search=found,
            placement=raised(self.planned, subject.graph, subject.units, found.chosen, reasons),
            lines=recipe_lines(subject.graph, subject.units, found.chosen),
            evaluations=self.measurements.count,
            seconds=time.perf_counter() - self.started,
        )

    def _scores(self, float_value: float, quantized: float) -> tuple[dict[str, float], dict[str, float]]:
        """The score of each unit, and the metric where it was measured for it."""
        measurements, names = self.measurements, [unit.name for unit in self.subject.units]
        if self.config.method == "fast":
            return fast_scores(self.subject, _first(measurements.batches, FAST_EXAMPLES), advance=measurements.advance), {}
        if self.config.method == "leave_one_in":
            values = self._alone(names)
            return {name: measurements.drop(float_value, value) for name, value in values.items()}, values
        changes: list[Change] = [(name, "float") for name in names]
        found = measurements.sweep(changes, {})
        values = {name: found[name, "float"] for name in names}
        return {name: measurements.drop(value, quantized) for name, value in values.items()}, values

    def _alone(self, names: Sequence[str]) -> dict[str, float]:
        """The metric with each of the units quantized alone."""
        if not names:
            return {}
        changes: list[Change] = [(name, "planned") for name in names]
        found = self.measurements.sweep(changes, {}, others="float")
        return {name: found[name, "planned"] for name in names}

    def _search(self, ranked: Sequence[Any], scores: Mapping[str, float], latencies: Any, float_value: float) -> search.Search | None:
        if self.config.max_drop is not None:
            return search.within_drop(self.measurements, ranked, float_value, self.config.max_drop)
        if self.config.budget is None:
            return None
        prices = costs.prices(self.config.budget, self.measurements.bench, latencies)
        return search.within_budget(self.measurements, ranked, scores, prices.of, prices.room, prices.goal)

    def _reasons(self, found: search.Search, alone: Mapping[str, float], float_value: float) -> dict[str, str]:
        meter = self.measurements.meter
        reasons = {}
        for name, level in found.chosen.items():
            drop = self.measurements.drop(float_value, alone[name])
            suffix = "" if level == "float" else "; 8 bits"
            reasons[name] = f"{REASON}{loss_text(meter.name, meter.higher_is_better, drop, float_value)} alone{suffix}"
        return reasons


def _result(
    method: str,
    meter: Meter,
    batches: Sequence[Any],
    units: Sequence[Unit],
    scores: Mapping[str, float],
    float_value: float,
    quantized: float,
    *,
    evaluations: int,
    started: float,
    values: Mapping[str, float] = MappingProxyType({}),
    latencies: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> Sensitivity:
    """The result without a search: units by falling score."""
    return Sensitivity(
        method=method,
        metric=meter.name,
        higher_is_better=meter.higher_is_better,
        examples=sum(int(tf.nest.flatten(inputs_of(batch))[0].shape[0]) for batch in batches),
        float_value=float_value,
        quantized_value=quantized,
        units=tuple(
            UnitSensitivity(
                name=unit.name,
                layers=unit.layers,
                class_name=unit.class_name,
                num_bits=unit.num_bits,
                macs=unit.macs,
                score=scores[unit.name],
                value=values.get(unit.name),
                latency_ms=latencies.get(unit.name),
            )
            for unit in sorted(units, key=lambda unit: -scores[unit.name])
        ),
        search=None,
        placement=None,
        lines={},
        evaluations=evaluations,
        seconds=time.perf_counter() - started,
    )


def _config(
    metric: Any, method: str, max_drop: float | None, budget: Mapping[str, float] | None, batches: int | None, executor: str, workers: int
) -> SensitivityConfig:
    if isinstance(metric, tf_keras.metrics.Metric) or not (isinstance(metric, str) or callable(metric)):
        kind = f"a {type(metric).__name__} of Keras" if isinstance(metric, tf_keras.metrics.Metric) else repr(metric)
        raise RecipeError([f"sensitivity.metric: expected the name of a metric, or a function (outputs, labels) -> number; got {kind}"])
    given = {
        "metric": metric if isinstance(metric, str) else OUTPUT_ERROR,
        "method": method,
        "max_drop": max_drop,
        "budget": dict(budget) if isinstance(budget, Mapping) else budget,
        "batches": batches,
        "executor": executor,
        "workers": workers,
    }
    config, problems = validate(SensitivityConfig, given)
    if config is None:
        raise RecipeError(sentence(("sensitivity", *path), text) for path, text in problems)
    assert config.budget is None or isinstance(config.budget, BudgetConfig)
    return config


def _batches(qmodel: Any, dataset: Iterable[Any], limit: int | None, *, labelled: bool) -> list[Any]:
    """The batches in memory, each of them checked."""
    if limit is None and isinstance(dataset, tf.data.Dataset) and int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise DataError("sensitivity: the data set never ends; set sensitivity.batches, or remove .repeat()")
    found: list[Any] = []
    for number, batch in enumerate(itertools.islice(dataset, limit)):
        where = f"sensitivity: batch {number}"
        first = found[0] if found else batch  # without labels there the metric says what it needs
        if labelled and isinstance(first, tuple) and len(first) > 1:
            check_labelled(qmodel, batch, where=where)
        else:
            check_batch(qmodel, inputs_of(batch), where=where)
        found.append(batch)
    if not found:
        raise DataError("sensitivity: the data set is empty; expected at least one batch of inputs, or of (inputs, labels)")
    if limit is not None and len(found) < limit:
        raise DataError(
            f"sensitivity asked for {limit} batches, the data held {len(found)}: give more data, or set sensitivity.batches to {len(found)}"
        )
    return found


def _first(batches: Sequence[Any], examples: int) -> list[Any]:
    """The first batches, until they hold `examples`."""
    found, count = [], 0
    for batch in batches:
        if count >= examples:
            break
        found.append(batch)
        count += int(tf.nest.flatten(inputs_of(batch))[0].shape[0])
    return found
