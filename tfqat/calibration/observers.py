"""Observes every quantization point of a model in one pass: the histograms are counted inside the graph, in float, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfqat.calibration.histogram import BINS, MIN_EXPONENT, Histogram, exponent_for
from tfqat.errors import DataError


def observe(model: Any, tensors: Mapping[str, Any], batches: Iterable[Any]) -> tuple[dict[str, Histogram], int, int]:
    """One histogram for each tensor over all batches; memory does not grow with their number.

    Args:
        model: the model that computes the tensors.
        tensors: name -> symbolic tensor of `model`.
        batches: inputs of the model.

    Returns:
        The histograms by name, the number of batches and the number of examples.

    Raises:
        DataError: NaN or Inf in a tensor: names the tensor and the batch.
    """
    names = list(tensors)
    observer = tf_keras.Model(model.inputs, [tensors[name] for name in names])

    @tf.function(reduce_retracing=True)
    def count(batch: Any) -> tuple[tf.Tensor, tf.Tensor]:
        values = tf.nest.flatten(observer(batch, training=False))
        largest, counts = zip(*(_count(value) for value in values), strict=True)
        return tf.stack(largest), tf.stack(counts)

    merged: dict[str, Histogram] = {}
    number, examples = 0, 0
    for batch in batches:
        largest, counts = (array.numpy() for array in count(batch))
        for name, histogram in zip(names, _histograms(names, largest, counts, number), strict=True):
            merged[name] = merged[name].merge(histogram) if name in merged else histogram
        number += 1
        examples += int(tf.nest.flatten(batch)[0].shape[0])
    return merged, number, examples


def _count(value: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The largest |x| (NaN if any x is) and the counts of |x| in bins of the width that this largest one needs."""
    magnitude = tf.abs(tf.reshape(tf.cast(value, tf.float32), [-1]))
    # max() may drop a NaN; a sum of zeros made from the values keeps it.
    largest = tf.reduce_max(magnitude) + tf.reduce_sum(magnitude * 0.0)
    finite = tf.where(tf.math.is_finite(largest), largest, 0.0)
    # 2 ** -exponent from its bits: exact, which pow() does not promise. Multiplying by it is exact too, so floor() gives the right bin.
    scale = tf.bitcast(tf.bitwise.left_shift(127 - _exponent(finite), 23), tf.float32)
    # The clip only matters to NaN and Inf, whose integers are arbitrary: bincount would raise before the caller can name the tensor.
    indices = tf.clip_by_value(tf.cast(magnitude * scale, tf.int32), 0, BINS - 1)
    return largest, tf.math.bincount(indices, minlength=BINS, maxlength=BINS, dtype=tf.int64)


def _exponent(largest: tf.Tensor) -> tf.Tensor:
    """`exponent_for`, read from the bits of the float: the biased exponent of a float32 is its bits 23 to 30."""
    biased = tf.bitwise.right_shift(tf.bitcast(largest, tf.int32), 23)
    return tf.maximum(biased - 126 - 13, MIN_EXPONENT)


def _histograms(names: list[str], largest: np.ndarray, counts: np.ndarray, batch: int) -> list[Histogram]:
    for name, value in zip(names, largest, strict=True):
        if not np.isfinite(value):
            raise DataError(
                f"calibration batch {batch}: tensor {name!r} holds NaN or Inf. "
                "Look at that batch of the calibration data, and at the layer's weights"
            )
    return [
        Histogram(counts=row, exponent=exponent_for(float(value)), largest=float(value)) for value, row in zip(largest, counts, strict=True)
    ]
