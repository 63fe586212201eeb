"""A ranking of units from gradients: a few passes over the data for all of them, instead of one for each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfqat.analysis.subject import Subject
from tfqat.analysis.units import PASSED
from tfqat.datasets import inputs_of
from tfqat.models import graph as model_graph
from tfqat.models.depth import functional_model
from tfqat.models.graph import TensorRef
from tfqat.models.pieces import Piece, piece
from tfqat.quantize import state
from tfqat.quantize.quantizers import quantizers


def fast_scores(
    subject: Subject, batches: Sequence[Any], *, probes: int = 1, seed: int = 0, advance: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """An estimate of the output error that each unit causes when it alone is quantized.

    With y_n the output of layer n in the float model, delta_n the change of it when the layer reads quantized inputs and weights, and J_n
    the derivative of the model's outputs by y_n, the outputs change to first order by sum of J_n delta_n over the layers of a unit. For
    random v with independent entries of variance 1 / sum(outputs^2)

        score = E_v sum over examples of (sum over layers of g_n . delta_n)^2,      g_n = J_n^T v, by one backward pass for all layers

    is the expected squared error over the squared signal: Hutchinson's estimator of the trace of delta^T J^T J delta, which is the
    second-order term of a squared error (Gauss-Newton). Model Optimizer's `auto_quantize` sums (g * delta)^2 over the elements instead,
    which drops what errors of one layer have in common, such as a shift of the mean.

    Sources: Hutchinson 1990; NVIDIA Model Optimizer, `auto_quantize` with method "gradient".

    Args:
        subject: the model.
        batches: of inputs, or of (inputs, labels, ...).
        probes: random vectors v for each batch.
        seed: of the random vectors.
        advance: called after each batch.
    """
    function = _Function(subject, probes)
    first = np.array([_signal(output) for output in subject.float_outputs(inputs_of(batches[0]))])  # so much each output counts
    totals, signals = np.zeros(len(subject.units)), np.zeros(len(first))
    for number, batch in enumerate(batches):
        errors, signal = function(inputs_of(batch), tf.constant([seed, number]), tf.constant(1.0 / np.sqrt(first * len(first)), tf.float32))
        totals, signals = totals + errors, signals + signal
        advance()
    share = float(np.mean(signals / first))
    return {unit.name: float(total / share) for unit, total in zip(subject.units, totals, strict=True)}


class _Function:
    """Inputs -> the score of every unit, as one traced function."""

    def __init__(self, subject: Subject, probes: int) -> None:
        self._subject, self._probes = subject, probes
        graph, tensors = model_graph.read(subject.qmodel), model_graph.tensors(subject.qmodel)
        quantizing = {layer.name for layer in subject.qmodel.layers if state.point_of(layer)}
        names = [node for unit in subject.units for node in unit.nodes]
        ends = [_with_batch_norm(graph, name) for name in names]
        self._local: dict[str, Piece] = {
            name: piece(graph, tensors, [*_with_quantizers(quantizing, graph, name), *after], traced=False)
            for name, after in zip(names, ends, strict=True)
        }
        self._read = list(dict.fromkeys(ref for local in self._local.values() for ref in local.reads))
        self._made = [TensorRef(layer=[name, *after][-1]) for name, after in zip(names, ends, strict=True)]
        in_float = model_graph.tensors(subject.float_model)
        wanted = [*(in_float[ref] for ref in self._read), *(in_float[ref] for ref in self._made), *subject.float_model.outputs]
        self._observed = functional_model(subject.float_model.inputs, wanted)
        self._call = tf.function(self._scores, reduce_retracing=True, autograph=False)

    def __call__(self, inputs: Any, seed: tf.Tensor, weights: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """For a batch the sum of squares of every unit, and of every output."""
        errors, signals = self._call(inputs, seed, weights)
        return errors.numpy().astype(np.float64), signals.numpy().astype(np.float64)

    def _scores(self, inputs: Any, seed: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape(persistent=self._probes > 1, watch_accessed_variables=False) as tape, quantizers(on=False):
            tape.watch([value for value in tf.nest.flatten(inputs) if value.dtype.is_floating])
            tape.watch([variable for variable in self._observed.variables if variable.dtype.is_floating])  # behind an integer input
            values = tf.nest.flatten(self._observed(inputs, training=False))
            read, made = values[: len(self._read)], values[len(self._read) : len(self._read) + len(self._made)]
            outputs = values[len(self._read) + len(self._made) :]
            projected = [_projected(outputs, weights, seed, probe) for probe in range(self._probes)]
        gradients = [tape.gradient(value, made) for value in projected]
        known = dict(zip(self._read, read, strict=True))
        deltas = []
        with quantizers(on=True):
            for local, value in zip(self._local.values(), made, strict=True):
                deltas.append(local.compute([known[ref] for ref in local.reads])[-1] - value)
        errors = tf.reduce_mean(tf.stack([self._of_units(found, deltas) for found in gradients]), axis=0)
        return errors, tf.stack([tf.reduce_sum(output**2) for output in outputs])

    def _of_units(self, gradients: Sequence[Any], deltas: Sequence[tf.Tensor]) -> tf.Tensor:
        found = []
        pairs = iter(zip(gradients, deltas, strict=True))
        for unit in self._subject.units:
            changes = [_by_example(gradient, delta) for gradient, delta in (next(pairs) for _ in unit.nodes)]
            found.append(tf.reduce_sum(tf.add_n(changes) ** 2))
        return tf.stack(found)


def _with_quantizers(quantizing: Collection[str], graph: model_graph.ModelGraph, name: str) -> list[str]:
    """A node, with the quantizers in front of it and what stands between."""
    found = [name]
    for ref in graph.node(name).inputs:
        chain: list[str] = []
        node = graph.producer(ref)
        while node.name not in quantizing and node.inputs and node.class_name in PASSED:
            chain.append(node.name)
            node = graph.producer(node.inputs[0])
        if node.name in quantizing:
            found = [node.name, *chain[::-1], *found]
    return list(dict.fromkeys(found))


def _with_batch_norm(graph: model_graph.ModelGraph, name: str) -> list[str]:
    """The BatchNorm that alone reads a node, whose beta a correction of the unit's bias may have changed."""
    readers = graph.consumers(TensorRef(layer=name))
    alone = len(readers) == 1 and TensorRef(layer=name) not in graph.outputs
    return [readers[0][0].name] if alone and readers[0][0].class_name == "BatchNormalization" else []


def _signal(output: tf.Tensor) -> float:
    """The sum of squares; 1 for an output that is zero everywhere."""
    return float(tf.reduce_sum(output**2)) or 1.0


def _projected(outputs: Sequence[tf.Tensor], weights: tf.Tensor, seed: tf.Tensor, probe: int) -> tf.Tensor:
    """The sum over the outputs of weight * v . output."""
    total = tf.constant(0.0)
    for number, output in enumerate(outputs):
        noise = tf.random.stateless_normal(tf.shape(output), seed + tf.constant([0, 7919 * (1 + number + 31 * probe)]))
        total += weights[number] * tf.reduce_sum(noise * output)
    return total


def _by_example(gradient: Any, delta: tf.Tensor) -> tf.Tensor:
    """gradient . delta of each example; 0 where the outputs do not depend on the layer."""
    if gradient is None:
        return tf.zeros(tf.shape(delta)[0])
    return tf.reduce_sum(gradient * delta, axis=list(range(1, delta.shape.rank)))
