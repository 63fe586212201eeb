"""Training on several devices as one device trains with the whole batch: how data is split, and BatchNorm's statistics over all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.errors import TrainingError


def split(load: Callable[[], Any], batch_size: int) -> Any:
    """A distributed data set: each replica gets an even part of every batch.

    Keras's own splitting would read the same files elsewhere, and give a smaller last batch to some of the replicas alone. Where a last
    batch does not divide, parts differ by an example, and the replicas' means still count alike.

    Args:
        load: gives a tf.data.Dataset of batches of at most `batch_size`, the same in every process.
        batch_size: of all replicas together.

    Raises:
        TrainingError: it cannot be split evenly.
    """
    strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    check_split(batch_size, replicas)

    def parts(context: tf.distribute.InputContext) -> Any:
        here = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * here
        return load().flat_map(
            lambda *batch: tf.data.Dataset.range(first, first + here).map(
                lambda index: tuple(_part(part, index, replicas) for part in batch)
            )
        )

    return strategy.distribute_datasets_from_function(parts)


def check_split(batch_size: int, replicas: int) -> None:
    """Make sure that each replica gets an even part of a batch.

    Raises:
        TrainingError: it does not.
    """
    if batch_size % replicas:
        raise TrainingError(
            f"a batch of {batch_size} cannot be split evenly between {replicas} devices: set training.batch_size / qat.batch_size_divisor "
            f"to a multiple of {replicas}"
        )


def _part(batch: Any, index: tf.Tensor, replicas: int) -> Any:
    """The part of one replica; of a batch with fewer examples than replicas some get one that another has too."""

    def rows(value: tf.Tensor) -> tf.Tensor:
        count = tf.shape(value, tf.int64)[0]
        start = index * count // replicas
        return value[start : tf.maximum(start + 1, (index + 1) * count // replicas)]

    return tf.nest.map_structure(rows, batch)


def synchronize_batchnorm(model: Any) -> None:
    """Have BatchNorm take its statistics over the replicas' batches together, in what is traced from now on.

    What tf_keras computes for `synchronized=True` is another value than one device's: E[x^2] - E[x]^2 loses digits, and the moving
    variance lacks the n / (n - 1) of the fused kernel, which it stands for. Layers with renorm or virtual batches are left as they are.
    """
    for layer in model.layers:
        layer = getattr(layer, "layer", layer)
        if isinstance(layer, tf_keras.layers.BatchNormalization) and not layer.renorm and layer.virtual_batch_size is None:
            _synchronize(layer)


def _synchronize(layer: Any) -> None:
    unbiased = bool(layer.fused)
    alone, assign = layer._calculate_mean_and_var, layer._assign_moving_average
    counts: list[tf.Tensor] = []

    def moments(inputs: tf.Tensor, axes: Any, keep_dims: bool, mask: Any = None) -> tuple[tf.Tensor, tf.Tensor]:
        if mask is not None:  # a layer with a mask has statistics of its replica
            counts.clear()
            return alone(inputs, axes, keep_dims, mask=mask)
        total = _over_replicas(tf.reduce_sum(inputs, axes, keepdims=True))
        size = tf.reduce_prod(tf.gather(tf.shape(inputs), axes))
        count = _over_replicas(tf.cast(size, inputs.dtype))
        mean = total / count
        variance = _over_replicas(tf.reduce_sum(tf.square(inputs - mean), axes, keepdims=True)) / count
        counts[:] = [count]
        return (mean, variance) if keep_dims else (tf.squeeze(mean, axes), tf.squeeze(variance, axes))

    def assign_moving_average(variable: Any, value: tf.Tensor, momentum: Any, inputs_size: Any) -> Any:
        if unbiased and counts and variable is layer.moving_variance:
            value = value * (counts[0] / tf.maximum(counts[0] - 1.0, 1.0))
        return assign(variable, value, momentum, inputs_size)

    layer.fused = False
    object.__setattr__(layer, "_calculate_mean_and_var", moments)
    object.__setattr__(layer, "_assign_moving_average", assign_moving_average)


def _over_replicas(value: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def mean_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """The mean of each replica's value; within a training step."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, value)
