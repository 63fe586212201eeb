"""Observes tensors of a model over data: one pass in float, counted inside the graph, on one device or on every replica of a strategy."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.calibration.histogram import BINS, MANTISSA_BITS, SHIFT, Histogram
from tfqat.calibration.memory import LEAST, OUT_OF_MEMORY, bytes_per_example, fitting, halved
from tfqat.errors import DataError, OutOfMemoryError
from tfqat.models.depth import functional_model
from tfqat.quantize.quantizers import quantizers

INFINITY = 255 << 23
"""The bits of Inf; those of NaN are larger, those of finite values smaller."""

BINS_OF_ALL = 256 << MANTISSA_BITS
"""Bins with those of Inf and NaN, so that counting never meets an index out of range."""

MOST = 2**31 - 1
"""Values of one tensor in one batch: they are counted in 32 bits before they are added up in 64."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was seen, by all workers together: a histogram for each tensor, the number of batches and of examples.

    `at_once` is how many examples were computed at once where a batch did not fit into memory, else None.
    """

    histograms: Mapping[str, Histogram]
    batches: int
    examples: int
    workers: int
    at_once: int | None = None


def observe(model: Any, tensors: Mapping[str, Any], batches: Iterable[Any]) -> Observation:
    """One histogram for each tensor over all batches; memory does not grow with their number.

    Within the scope of a `tf.distribute` strategy each batch is split between the replicas of this process. Where there are several
    workers, each calls with its own batches, and all get the histograms of all data.

    Args:
        model: the model that computes the tensors; it need not have been made in the strategy's scope.
        tensors: name -> symbolic tensor of `model`.
        batches: inputs of the model.

    Raises:
        DataError: NaN or Inf in a tensor: names the tensor and the batch. More than MOST values of a tensor in a batch.
        OutOfMemoryError: LEAST examples do not fit into memory, or a batch that cannot be split.
    """
    names = list(tensors)
    strategy = tf.distribute.get_strategy()
    replicas = _replicas_here(strategy)
    counter = _Counter(strategy, functional_model(model.inputs, [tensors[name] for name in names]))
    fixed = any(given.shape[0] is not None for given in model.inputs)
    splitter = _Splitter(model, counter, replicas, fixed=fixed, alone=strategy.num_replicas_in_sync == 1)
    number, examples = 0, 0
    failed: Exception | None = None
    try:
        for batch in batches:
            values = _in_order(model, batch)
            for largest, sizes in splitter.count(values, number):
                _check(names, number, largest, sizes)
            number += 1
            examples += int(values[0].shape[0])
    except Exception as error:  # raised below: all workers meet before, for without this one the others would wait for ever
        failed = error
    counts, bits, (seen, total, failures) = counter.merged([number, examples, int(failed is not None)])
    if failed is not None:
        raise failed
    if failures:
        raise DataError(f"calibration stopped on {failures} of the other workers: its own message says why")
    maxima = bits.view(np.float32).tolist()
    return Observation(
        histograms={name: Histogram(counts=row[:BINS], largest=value) for name, row, value in zip(names, counts, maxima, strict=True)},
        batches=seen,
        examples=total,
        workers=strategy.num_replicas_in_sync // replicas,
        at_once=splitter.at_once,
    )


Values = list[tf.Tensor]
"""The inputs of a model for a batch, in its order."""

Parts = list[tuple[Values, int]]
"""For each replica a batch and how many of its examples count; the others repeat an example."""


def _in_order(model: Any, batch: Any) -> Values:
    values = [batch[name] for name in model.input_names] if isinstance(batch, Mapping) else tf.nest.flatten(batch)
    return [tf.cast(value, given.dtype) for value, given in zip(values, model.inputs, strict=True)]


def _parts(batch: Values, replicas: int, fixed: bool) -> Parts:
    """A batch split evenly between the replicas; where it does not divide, the last parts are filled up.

    A part has at least LEAST examples, or the ranges would depend on how the data was batched. A model of a fixed batch size gets the batch
    whole, on the first replica.
    """
    examples = int(batch[0].shape[0])
    if examples == 0:  # of a worker whose part of a small batch is empty; layers such as Reshape cannot take that
        batch = [tf.zeros([2, *value.shape[1:]], value.dtype) for value in batch]
    if fixed or examples == 0:
        return [(batch, examples)] + [(batch, 0)] * (replicas - 1)
    rows = max(LEAST, -(-examples // replicas))
    if replicas == 1 and rows == examples:
        return [(batch, examples)]
    parts: Parts = []
    for start in range(0, rows * replicas, rows):
        picked = np.arange(start, start + rows)
        picked[picked >= examples] = 0
        parts.append(([tf.gather(value, picked) for value in batch], min(max(examples - start, 0), rows)))
    return parts


class _Splitter:
    """Counts batches whole, or in parts where one does not fit into memory; then also the batches after it."""

    def __init__(self, model: Any, counter: _Counter, replicas: int, *, fixed: bool, alone: bool) -> None:
        self._counter, self._replicas, self._fixed = counter, replicas, fixed
        self._each = bytes_per_example(model)
        self._may_split = alone and not fixed  # of several replicas the others may have counted their part already
        self.at_once: int | None = None

    def count(self, values: Values, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `_Counter.count` gives for each part of a batch."""
        examples, start = int(values[0].shape[0]), 0
        rows = self._rows(examples)
        while start < examples or start == 0:
            part = values if rows >= examples else [value[start : start + rows] for value in values]
            try:
                yield self._counter.count(_parts(part, self._replicas, self._fixed))
            except OUT_OF_MEMORY as error:
                if not self._may_split or rows <= LEAST:
                    raise OutOfMemoryError(self._problem(number, min(rows, examples), error)) from error
                self.at_once = rows = halved(rows)
                continue
            start += max(rows, 1)

    def _rows(self, examples: int) -> int:
        if not self._may_split:
            return examples
        rows = fitting(self._each, examples) if self.at_once is None else min(examples, self.at_once)
        self.at_once = rows if rows < examples else self.at_once
        return rows

    def _problem(self, number: int, examples: int, error: BaseException) -> str:
        reason = str(error).splitlines()[0] if str(error) else "MemoryError"
        advice = "calibrate on a machine or a device with more memory, or with smaller inputs"
        if self._fixed:
            advice = "build the model with a free or a smaller batch size"
        elif not self._may_split:
            advice = "give smaller batches"
        return f"calibration batch {number}: {examples} examples do not fit into memory ({reason[:200]}): {advice}"


class _Counter:
    """The counts of a model's outputs, kept by each replica for itself until `merged` adds them up."""

    def __init__(self, strategy: tf.distribute.Strategy, observer: Any) -> None:
        self._strategy, self._observer = strategy, observer
        tensors = len(observer.outputs)
        self._counts = [_own_of_each_replica([BINS_OF_ALL], tf.int64, tf.VariableAggregation.SUM) for _ in range(tensors)]
        # tf.distribute has no aggregation by maximum: read replica by replica, as a row of each.
        self._largest = _own_of_each_replica([1, tensors], tf.int32, tf.VariableAggregation.NONE)
        self._whole, self._some = self._traced(all_count=True), self._traced(all_count=False)
        self._row = tf.function(lambda: strategy.run(self._largest.read_value), autograph=False)

    def count(self, parts: Parts) -> tuple[np.ndarray, np.ndarray]:
        """Count a batch. Gives the bits of the largest |x| so far, and how many values this batch had, by tensor."""
        step = self._whole if all(used == int(part[0].shape[0]) for part, used in parts) else self._some
        largest, sizes = step(self._distribute([part for part, _ in parts]), self._distribute([np.int64(used) for _, used in parts]))
        rows = self._strategy.experimental_local_results
        return np.concatenate(rows(largest)).max(axis=0), np.stack(rows(sizes)).max(axis=0)

    def merged(self, numbers: list[int]) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
        """The counts of all replicas of all workers by tensor, the bits of the largest |x|, and the sums of the workers' `numbers`."""
        counts = [variable.read_value().numpy() for variable in self._counts]
        largest = self._strategy.gather(self._row(), axis=0).numpy().max(axis=0)
        others = [np.zeros(len(numbers), np.int64)] * (_replicas_here(self._strategy) - 1)
        sums = self._strategy.reduce(tf.distribute.ReduceOp.SUM, self._distribute([np.asarray(numbers, np.int64), *others]), axis=None)
        return counts, largest, sums.numpy().tolist()

    def _distribute(self, values: list[Any]) -> Any:
        """One value for each replica here."""
        waiting = iter(values)
        return self._strategy.experimental_distribute_values_from_function(
            lambda _: tf.nest.map_structure(tf.convert_to_tensor, next(waiting))
        )

    def _traced(self, *, all_count: bool) -> Any:
        """The step of all replicas: one trace for batches of any size, made when it is first needed."""
        count = functools.partial(self._count, all_count=all_count)
        # A signature cannot say that of values of several replicas.
        signature = [[tf.TensorSpec(given.shape, given.dtype) for given in self._observer.inputs], tf.TensorSpec([], tf.int64)]
        return tf.function(
            lambda *parts: self._strategy.run(count, args=parts),
            input_signature=None if tf.distribute.has_strategy() else signature,
            reduce_retracing=True,
            autograph=False,
        )

    def _count(self, part: Values, used: tf.Tensor, *, all_count: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Runs on a replica: counts the first `used` examples of a part."""
        with quantizers(on=False):
            observed = tf.nest.flatten(self._observer(part, training=False))
        rows, unweighted = tf.shape(part[0], tf.int64)[0], tf.constant([], tf.int32)
        largest, sizes, added = [], [], []
        for value in observed:
            flat = tf.cast(value, tf.float32)
            if not all_count:  # no copy: a slice that begins at 0 shares its memory
                flat = tf.reshape(flat, [-1])[: tf.size(flat, tf.int64) * used // tf.maximum(rows, 1)]
            bits = tf.bitcast(tf.abs(flat), tf.int32)
            found = tf.raw_ops.Bincount(arr=tf.bitwise.right_shift(bits, SHIFT), size=BINS_OF_ALL, weights=unweighted)
            added.append(tf.cast(found, tf.int64))
            # Bits of floats that are not negative order as the floats do, and those of NaN lie above: the largest is exact and keeps NaN.
            largest.append(tf.reduce_max(bits))
            sizes.append(tf.size(flat, tf.int64))
        # Nothing is added before all is counted: a step that runs out of memory adds nothing, and can be done again in parts.
        with tf.control_dependencies([*added, *largest]):
            for counts, found in zip(self._counts, added, strict=True):
                counts.assign_add(found, read_value=False)
            self._largest.assign(tf.maximum(self._largest, [largest]))
        return self._largest.read_value(), tf.stack(sizes)


def _own_of_each_replica(shape: list[int], dtype: tf.DType, aggregation: tf.VariableAggregation) -> tf.Variable:
    return tf.Variable(tf.zeros(shape, dtype), trainable=False, synchronization=tf.VariableSynchronization.ON_READ, aggregation=aggregation)


def _replicas_here(strategy: tf.distribute.Strategy) -> int:
    """The replicas of this process; the default strategy does not say."""
    return len(strategy.extended.worker_devices) if tf.distribute.has_strategy() else 1


def _check(names: list[str], batch: int, largest: np.ndarray, sizes: np.ndarray) -> None:
    for name, bits, size in zip(names, largest, sizes, strict=True):
        if bits >= INFINITY:
            raise DataError(
                f"calibration batch {batch}: tensor {name!r} holds NaN or Inf. "
                "Look at that batch of the calibration data, and at the layer's weights"
            )
        if size > MOST:
            raise DataError(f"calibration batch {batch}: tensor {name!r} has {size} values; expected at most {MOST}: give smaller batches")
