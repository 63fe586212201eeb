"""What tfqat asks of data: batches of inputs, or of (inputs, labels, ...), of the shapes that the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from tfqat.errors import DataError


def load_dataset(load: Callable[[], Any], *, reference: str, batch_size: int, model: Any) -> Any:
    """The data set that a recipe's reference returns, checked on its first batch.

    Args:
        load: the function that the recipe names.
        reference: its name in the recipe, for messages.
        batch_size: of data given as arrays.
        model: the model that will read it.

    Returns:
        A tf.data.Dataset of batches.

    Raises:
        DataError: the function raises, returns something else, yields nothing, or yields another shape than the model takes.
    """
    try:
        data = load()
    except Exception as error:
        raise DataError(f"{reference}: the function raised {type(error).__name__}: {error}") from error
    dataset = as_dataset(data, reference=reference, batch_size=batch_size)
    try:
        first = next(iter(dataset.take(1)), None)
    except tf.errors.OpError as error:
        raise DataError(f"{reference}: the data set raised on its first batch: {error.message.splitlines()[0]}") from error
    if first is None:
        raise DataError(f"{reference}: the data set is empty; expected at least one batch of (inputs, labels)")
    check_batch(model, inputs_of(first), where=reference)
    return dataset


def as_dataset(data: Any, *, reference: str, batch_size: int) -> Any:
    """A tf.data.Dataset of batches, from one or from a tuple of arrays (inputs, labels)."""
    if isinstance(data, tf.data.Dataset):
        return data
    if isinstance(data, tuple) and data and all(hasattr(part, "shape") for part in tf.nest.flatten(data)):
        lengths = [tuple(part.shape[:1]) for part in tf.nest.flatten(data)]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise DataError(
                f"{reference}: arrays of the shapes {[tuple(part.shape) for part in tf.nest.flatten(data)]}; expected one length"
            )
        return tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
    raise DataError(
        f"{reference}: returned {type(data).__name__}; expected a tf.data.Dataset of batches, or a tuple of arrays (inputs, labels)"
    )


def inputs_of(batch: Any) -> Any:
    """The model's inputs in a batch: its first part if it is a tuple, else the batch."""
    return batch[0] if isinstance(batch, tuple) else batch


def inputs_only(dataset: Iterable[Any]) -> Iterable[Any]:
    """The inputs of every batch."""
    return (inputs_of(batch) for batch in dataset)


def count_examples(dataset: Any) -> int:
    """How many examples a data set of batches holds; reads it once."""
    return sum(int(tf.nest.flatten(batch)[0].shape[0]) for batch in dataset)


def check_batch(model: Any, inputs: Any, *, where: str) -> None:
    """Compare the shapes of a batch with what the model takes.

    Raises:
        DataError: another number of inputs, or another shape; says both.
    """
    if isinstance(inputs, dict) and set(inputs) == set(model.input_names):  # Keras matches these by name, not by order
        inputs = [inputs[name] for name in model.input_names]
    given, wanted = tf.nest.flatten(inputs), tf.nest.flatten(model.inputs)
    if len(given) != len(wanted):
        raise DataError(f"{where}: {len(given)} inputs, but model {model.name!r} takes {len(wanted)}")
    for value, expected in zip(given, wanted, strict=True):
        shape = tf.TensorShape(getattr(value, "shape", ()))
        if not expected.shape.is_compatible_with(shape):
            raise DataError(
                f"{where}: a batch of shape {tuple(shape)}, but input {expected.name!r} of model {model.name!r} takes "
                f"{tuple(expected.shape)} (None is the batch size)"
            )
