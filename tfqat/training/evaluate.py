"""Measures a model, or outputs that another runtime computed, with the loss and metrics of a recipe, by Keras's own `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfqat.datasets import reason_of
from tfqat.errors import RecipeError, nearest
from tfqat.models.dtypes import float32_policy
from tfqat.recipe.schema import LossConfig

_NOT_LOSSES = ("Loss", "Reduction", "deserialize", "get", "serialize")
_NOT_METRICS = ("Mean", "MeanMetricWrapper", "MeanTensor", "Metric", "Sum", "deserialize", "experimental", "get", "serialize")
_BY_SHAPE = {"accuracy", "acc", "crossentropy", "ce"}  # Keras resolves these by the shape of the output


def make_loss(config: LossConfig) -> Any:
    """The Keras loss that a recipe names.

    Raises:
        RecipeError: Keras has no such loss, or its class takes other arguments.
    """
    known = sorted(name for name in dir(tf_keras.losses) if not name.startswith("_") and name not in _NOT_LOSSES)
    if config.name not in known:
        raise RecipeError([f"training.loss: tf_keras has no loss {config.name!r}{nearest(config.name, known)}"])
    loss = getattr(tf_keras.losses, config.name)
    if not config.arguments:
        return loss() if isinstance(loss, type) else config.name
    if not isinstance(loss, type):
        raise RecipeError(
            [f"training.loss: {config.name!r} is a function and takes no arguments; name its class, such as SparseCategoricalCrossentropy"]
        )
    try:
        return loss(**config.arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError([f"training.loss: {config.name} does not take these arguments: {error}"]) from error


def check_metrics(names: Sequence[str], *, key: str = "training.metrics") -> None:
    """Make sure that Keras knows the metrics, which stand under `key` of a recipe.

    Raises:
        RecipeError: it does not know one, or one needs arguments; all of them are named.
    """
    problems = [f"{key}: {problem}" for name in names if (problem := _metric_problem(name))]
    if problems:
        raise RecipeError(problems)


def _metric_problem(name: str) -> str:
    """What is wrong with the name of a metric, or the empty string. `tf_keras.metrics.get` returns unknown names as they are."""
    known = {known for known in dir(tf_keras.metrics) if not known.startswith("_") and known not in _NOT_METRICS} | _BY_SHAPE
    if name not in known:
        return f"tf_keras has no metric {name!r}{nearest(name, known)}"
    try:
        if name not in _BY_SHAPE:
            tf_keras.metrics.get(name)
    except (TypeError, ValueError):
        return f"{name!r} needs arguments, which a name alone cannot give; take a metric without"
    return ""


def evaluate(
    model: Any, dataset: Any, *, loss: Any, metrics: Sequence[str], callbacks: Sequence[Any] = (), eager: bool = False
) -> dict[str, float]:
    """Loss and metrics of a model over a data set of (inputs, labels) or (inputs, labels, sample weights); the model is compiled with them.

    Sample weights weigh the loss; metrics count every example alike. `eager` runs without a graph, which takes longer and says
    clearly what does not fit.
    """
    model.compile(loss=loss, metrics=list(metrics), weighted_metrics=[], run_eagerly=eager)
    values = model.evaluate(dataset, verbose=0, return_dict=True, callbacks=list(callbacks))
    return {name: float(value) for name, value in values.items()}


@float32_policy()
def evaluate_outputs(
    outputs: Sequence[np.ndarray],
    targets: tuple[Any, ...],
    *,
    loss: Any,
    metrics: Sequence[str],
    names: Sequence[str] | None = None,
    eager: bool = False,
) -> dict[str, float]:
    """Loss and metrics of outputs that were computed elsewhere.

    Args:
        outputs: the model's outputs, each (examples, ...).
        targets: (labels,) or (labels, sample weights) of the same examples in the same order; the labels of several outputs are
            a tuple, or a mapping by name.
        loss: a Keras loss.
        metrics: Keras metrics.
        names: the names of the outputs, `model.output_names`: with several outputs they are parts of the results' names.
        eager: as for `evaluate`.
    """
    names = names or [f"output_{number}" for number in range(len(outputs))]
    given = [tf_keras.Input(output.shape[1:], dtype=output.dtype) for output in outputs]
    passed = [tf_keras.layers.Activation("linear", name=name)(tensor) for name, tensor in zip(names, given, strict=True)]
    proxy = tf_keras.Model(given, passed[0] if len(passed) == 1 else passed)
    values = outputs[0] if len(outputs) == 1 else tuple(outputs)
    labelled = tf.data.Dataset.from_tensor_slices((values, *targets)).batch(256)
    return evaluate(proxy, labelled, loss=loss, metrics=metrics, eager=eager)


def check_fit(model: Any, batch: Any, *, loss: Any, metrics: Sequence[str], where: str) -> None:
    """Try the loss and each metric on one batch of (inputs, labels, ...), before a run depends on them.

    Raises:
        RecipeError: one of them does not take these labels with the model's outputs; all that do not are named.
    """
    inputs, *targets = batch
    outputs = [output.numpy() for output in tf.nest.flatten(model(inputs, training=False))]
    shapes = f"outputs of shape {_shapes(outputs)} and labels of shape {_shapes(tf.nest.flatten(targets[0]))}, those of {where}"

    def problem(key: str, what: str, tried: Sequence[str]) -> str:
        try:
            evaluate_outputs(outputs, tuple(targets), loss=loss, metrics=tried, names=model.output_names, eager=True)
        except Exception as error:  # Keras and TensorFlow raise a dozen types where shapes or values do not fit
            return f"{key}: {what} does not take {shapes}: {reason_of(error)}"
        return ""

    found = [problem("training.loss", getattr(loss, "name", str(loss)), [])]
    if not found[0]:
        found = [problem("training.metrics", repr(name), [name]) for name in metrics]
    if any(found):
        raise RecipeError(text for text in found if text)


def _shapes(values: Sequence[Any]) -> str:
    return ", ".join(str(tuple(value.shape)) for value in values)
