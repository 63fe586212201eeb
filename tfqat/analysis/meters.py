"""What sensitivity is measured by: a metric or the loss of the recipe, a function of one's own, or the error of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
import tf_keras

from tfqat.datasets import reason_of
from tfqat.errors import DataError, RecipeError, nearest
from tfqat.metric_names import higher_is_better
from tfqat.models.dtypes import float32_policy
from tfqat.training.evaluate import check_metrics

OUTPUT_ERROR = "output_error"
LOSS = "loss"


class Meter(Protocol):
    """Measures outputs batch by batch. A state is what one measurement has seen; the first one is `start()`."""

    name: str
    higher_is_better: bool
    needs_labels: bool

    def start(self) -> Any:
        """The state before the first batch."""

    def add(self, state: Any, outputs: Sequence[tf.Tensor], reference: Sequence[tf.Tensor], targets: tuple[Any, ...]) -> Any:
        """The state with one more batch: its outputs, the float model's, and (labels,) or (labels, sample weights)."""

    def value(self, state: Any) -> float:
        """The measure of all batches."""


class OutputError:
    """sum (outputs - reference)^2 / sum reference^2, the mean over the outputs: the inverse of the signal-to-noise ratio."""

    name = OUTPUT_ERROR
    higher_is_better = False
    needs_labels = False

    def start(self) -> Any:
        """No error, no signal."""
        return 0.0, 0.0

    def add(self, state: Any, outputs: Sequence[tf.Tensor], reference: Sequence[tf.Tensor], targets: tuple[Any, ...]) -> Any:
        """Sums in float64, over all examples."""
        del targets
        values = [np.asarray(value, np.float64) for value in outputs]
        wanted = [np.asarray(value, np.float64) for value in reference]
        error = np.array([np.sum((value - other) ** 2) for value, other in zip(values, wanted, strict=True)])
        return state[0] + error, state[1] + np.array([np.sum(value**2) for value in wanted])

    def value(self, state: Any) -> float:
        """The ratio; an output that is zero everywhere counts by its error alone."""
        error, signal = state
        return float(np.mean(error / np.where(signal > 0, signal, 1.0)))


class KerasMeasure:
    """The loss, or one metric, as `model.evaluate` computes them.

    Args:
        model: gives names and shapes of the outputs.
        loss: a Keras loss.
        metrics: all metrics that the name may be of.
        name: `loss`, or a metric as Keras reports it: `accuracy`, with several outputs `scores_accuracy`.
        batch: (inputs, labels, ...): one batch to try it on.

    Raises:
        RecipeError: Keras reports no metric of this name; says which there are.
    """

    needs_labels = True

    def __init__(self, model: Any, loss: Any, metrics: Sequence[Any], name: str, batch: tuple[Any, ...]) -> None:
        self.name = name
        self.higher_is_better = name != LOSS and higher_is_better(name)
        outputs = tf.nest.flatten(model(batch[0], training=False))
        given = [tf_keras.Input(output.shape[1:], dtype=output.dtype) for output in outputs]
        passed = [tf_keras.layers.Activation("linear", name=key)(value) for key, value in zip(model.output_names, given, strict=True)]
        self._proxy = tf_keras.Model(given, passed[0] if len(passed) == 1 else passed)
        self._proxy.compile(loss=loss, metrics=list(metrics), weighted_metrics=[])
        known = self._test(outputs, batch[1:])
        if name not in known:
            raise RecipeError(
                [f"sensitivity.metric: the model has no metric {name!r}{nearest(name, known)}; it has {', '.join(known)}, and output_error"]
            )
        self._proxy.reset_metrics()
        self._fresh = self._state()

    def start(self) -> Any:
        """The metrics' variables as they are at first."""
        return self._fresh

    def add(self, state: Any, outputs: Sequence[tf.Tensor], reference: Sequence[tf.Tensor], targets: tuple[Any, ...]) -> Any:
        """The metrics' variables after this batch."""
        del reference
        self._restore(state)
        self._test(outputs, targets)
        return self._state()

    def value(self, state: Any) -> float:
        """What Keras reports."""
        self._restore(state)
        return float(next(metric.result() for metric in self._proxy.metrics if metric.name == self.name))

    def _test(self, outputs: Sequence[tf.Tensor], targets: tuple[Any, ...]) -> dict[str, float]:
        values = outputs[0] if len(outputs) == 1 else tuple(outputs)
        return self._proxy.test_on_batch(values, *targets, reset_metrics=False, return_dict=True)

    def _state(self) -> list[list[np.ndarray]]:
        return [[variable.numpy() for variable in metric.variables] for metric in self._proxy.metrics]

    def _restore(self, state: list[list[np.ndarray]]) -> None:
        for metric, values in zip(self._proxy.metrics, state, strict=True):
            for variable, value in zip(metric.variables, values, strict=True):
                variable.assign(value)


class FunctionMeasure:
    """A function (outputs, labels) -> number over the whole data set, where more is better, such as a mean average precision.

    It gets numpy arrays: one for the outputs, or a list of one for each output; the labels in the structure that the data give them.
    """

    higher_is_better = True
    needs_labels = True

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.name = getattr(function, "__name__", "function")
        self._function = function

    def start(self) -> Any:
        """No batches."""
        return ()

    def add(self, state: Any, outputs: Sequence[tf.Tensor], reference: Sequence[tf.Tensor], targets: tuple[Any, ...]) -> Any:
        """All batches so far: the outputs are kept."""
        del reference
        labels = tf.nest.map_structure(np.asarray, targets[0])
        return (*state, ([np.asarray(output) for output in outputs], labels))

    def value(self, state: Any) -> float:
        """What the function returns.

        Raises:
            DataError: it raises, or returns no number.
        """
        joined = [np.concatenate(parts) for parts in zip(*(outputs for outputs, _ in state), strict=True)]
        labels = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *(labels for _, labels in state))
        try:
            return float(self._function(joined[0] if len(joined) == 1 else joined, labels))
        except Exception as error:
            raise DataError(f"sensitivity.metric: function {self.name!r} raised {type(error).__name__}: {error}") from error


@float32_policy()
def make_meter(metric: Any, model: Any, *, loss: Any, metrics: Sequence[Any], batch: Any) -> Meter:
    """The meter of a metric.

    Args:
        metric: `output_error`, `loss`, the name of a Keras metric, or a function (outputs, labels) -> number.
        model: any model with the outputs that will be measured.
        loss: a Keras loss, for `loss`.
        metrics: Keras metrics that `metric` may name, beside itself.
        batch: the first batch of the data.

    Raises:
        RecipeError: the model has no such metric.
        DataError: labels are needed, and the data have none.
    """
    if metric == OUTPUT_ERROR:
        return OutputError()
    if not isinstance(batch, tuple) or len(batch) < 2:
        name = getattr(metric, "__name__", metric)
        raise DataError(f"sensitivity: metric {name!r} needs labels, and the data have inputs only; give labels, or measure output_error")
    if callable(metric):
        return FunctionMeasure(metric)
    if metric == LOSS and loss is None:
        raise RecipeError(["sensitivity.metric: loss is not known; give the loss, or measure output_error"])
    known = list(metrics)
    if metric != LOSS and not known:
        check_metrics([metric], key="sensitivity.metric")
        known = [metric]
    try:
        return KerasMeasure(model, loss, known, metric, batch)
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise RecipeError(
            [f"sensitivity.metric: {metric!r} does not take the model's outputs and these labels: {reason_of(error)}"]
        ) from error
