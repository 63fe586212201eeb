"""What tfqat asks of data: batches of (inputs, labels) or (inputs, labels, sample weights), of the shapes that the model takes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from tfqat.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """A data set that a recipe names. Iterating it gives its batches, and a DataError with its name where the pipeline raises.

    `batches` and `examples` are None until `read_through` has counted them: the length of a tf.data.Dataset is often not known.
    """

    name: str
    dataset: Any
    first: Any
    batches: int | None = None
    examples: int | None = None

    def __iter__(self) -> Iterator[Any]:
        with reading(self.name):
            batches = iter(self.dataset)
        while True:
            with reading(self.name):  # around the pipeline alone: what the caller does with a batch is not the data's fault
                batch = next(batches, _END)
            if batch is _END:
                return
            yield batch


_END = object()


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what TensorFlow raises within the block into a DataError; running out of memory is left as it is.

    Raises:
        DataError: the pipeline raised, or it holds a value that the loss or a metric refuses.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise
    except tf.errors.OpError as error:
        raise DataError(f"{name}: the data set raised while it was read: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """The line of a TensorFlow or Keras error that says what is wrong, without the graph's own names."""
    text = getattr(error, "message", None) or str(error)
    text = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", text)
    skipped = ("Graph execution error", "Detected at node", "<stack traces", "File ", "in user code:")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith(skipped)]
    return lines[0][:300] if lines else type(error).__name__


def load_dataset(load: Callable[[], Any], *, name: str, batch_size: int, model: Any) -> Data:
    """The data set that a recipe's function returns, checked on its first batch.

    Args:
        load: the function that the recipe names.
        name: what messages call it.
        batch_size: of data given as arrays.
        model: the model that will read it.

    Raises:
        DataError: the function raises, returns something else, yields nothing, or yields another shape than the model takes.
    """
    try:
        returned = load()
    except Exception as error:
        raise DataError(f"{name}: the function raised {type(error).__name__}: {error}") from error
    dataset = as_dataset(returned, name=name, batch_size=batch_size)
    first = next(iter(Data(name=name, dataset=dataset.take(1), first=None)), None)
    if first is None:
        raise DataError(f"{name}: the data set is empty; expected at least one batch of (inputs, labels)")
    check_batch(model, inputs_of(first), where=name)
    return Data(name=name, dataset=_ranked(dataset, first), first=first)


def as_dataset(data: Any, *, name: str, batch_size: int) -> Any:
    """A tf.data.Dataset of batches, from one or from a tuple of arrays (inputs, labels)."""
    if isinstance(data, tf.data.Dataset):
        return data
    if isinstance(data, tuple) and data and all(hasattr(part, "shape") for part in tf.nest.flatten(data)):
        lengths = [tuple(part.shape[:1]) for part in tf.nest.flatten(data)]
        if len(set(lengths)) > 1 or not lengths[0]:
            raise DataError(f"{name}: arrays of the shapes {[tuple(part.shape) for part in tf.nest.flatten(data)]}; expected one length")
        return tf.data.Dataset.from_tensor_slices(data).batch(batch_size)
    raise DataError(f"{name}: returned {type(data).__name__}; expected a tf.data.Dataset of batches, or a tuple of arrays (inputs, labels)")


def read_through(
    data: Data,
    model: Any,
    *,
    examples: int | None = None,
    remedy: str = "remove .repeat()",
    advance: Callable[[], None] = lambda: None,
) -> Data:
    """Read labelled data once, check every batch and count: what is wrong with it is found before anything is computed with it.

    Args:
        data: from `load_dataset`.
        model: the model that will read it.
        examples: stop when this many have been read; for data that need not end.
        remedy: what to do about data that never ends.
        advance: called after each batch.

    Returns:
        The data with its `batches` and `examples`.

    Raises:
        DataError: the data never ends, raises, or has a batch without labels or of another shape.
    """
    if examples is None and int(data.dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise DataError(f"{data.name}: the data set never ends; tfqat reads it once per epoch or evaluation: {remedy}")
    batches = read = 0
    for batch in data:
        read += check_labelled(model, batch, where=f"{data.name}: batch {batches}")
        batches += 1
        advance()
        if examples is not None and read >= examples:
            break
    return replace(data, batches=batches, examples=read)


def inputs_of(batch: Any) -> Any:
    """The model's inputs in a batch: its first part if it is a tuple, else the batch."""
    return batch[0] if isinstance(batch, tuple) else batch


def check_labelled(model: Any, batch: Any, *, where: str) -> int:
    """The number of examples in a batch of (inputs, labels) or (inputs, labels, sample weights).

    Raises:
        DataError: it has no labels, inputs of another shape than the model takes, or another number of labels than of inputs.
    """
    parts = len(batch) if isinstance(batch, tuple) else 1
    if parts not in (2, 3):
        found = "no labels" if parts == 1 else f"{parts} parts"
        raise DataError(f"{where} has {found}; expected (inputs, labels) or (inputs, labels, sample weights)")
    check_batch(model, batch[0], where=where)
    examples = int(tf.nest.flatten(batch[0])[0].shape[0])
    for part, what in zip(batch[1:], ("labels", "sample weights"), strict=False):
        for value in tf.nest.flatten(part):
            shape = tuple(value.shape)
            if not shape or shape[0] != examples:
                raise DataError(f"{where} has {examples} inputs, but {what} of shape {shape}; expected one for each input")
    return examples


def check_batch(model: Any, inputs: Any, *, where: str) -> None:
    """Compare the shapes of a batch with what the model takes.

    Raises:
        DataError: another number of inputs, or another shape; says both.
    """
    if isinstance(inputs, dict) and set(inputs) == set(model.input_names):  # Keras matches these by name, not by order
        inputs = [inputs[name] for name in model.input_names]
    elif isinstance(inputs, dict) and isinstance(model.input, dict) and set(inputs) != set(model.input):
        raise DataError(f"{where}: inputs {', '.join(sorted(inputs))}, but model {model.name!r} takes {', '.join(sorted(model.input))}")
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


def _ranked(dataset: Any, first: Any) -> Any:
    """The data set with the ranks of its first batch, where it states none: Keras cannot work without (tf-keras 2.21).

    `Dataset.from_generator(f, output_types=...)` states no ranks.
    """
    if all(spec.shape.rank is not None for spec in tf.nest.flatten(dataset.element_spec)):
        return dataset
    ranks = tf.nest.map_structure(lambda value: value.shape.rank, first)

    def state(*parts: Any) -> Any:
        batch = parts if isinstance(dataset.element_spec, tuple) else parts[0]
        return tf.nest.map_structure(lambda value, rank: tf.ensure_shape(value, [None] * rank), batch, ranks)

    return dataset.map(state)
