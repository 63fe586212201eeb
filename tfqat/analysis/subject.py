"""The model that is analysed: quantized as planned, and the float model beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfqat.analysis.meters import Meter
from tfqat.analysis.units import Unit, units_of
from tfqat.datasets import inputs_of
from tfqat.errors import ModelError
from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph
from tfqat.models.load import canonical
from tfqat.quantize import state
from tfqat.quantize.apply import placement_of, strip
from tfqat.quantize.quantizers import quantizers


class Subject:
    """A calibrated model and the float model that it was made from; neither is changed.

    Args:
        qmodel: the calibrated model.
        like: the float model that it was made from, if its weights or biases were corrected or trained since. Default: the weights of
            `qmodel`, unquantized.

    Attributes:
        like: the argument, in its canonical form.
        float_model: computes in float within `quantizers(on=False)`; `like`, or else `qmodel` itself.
        graph: of the float model.
        units: in topological order.

    Raises:
        NotCalibratedError: a quantizer of `qmodel` has no range.
        ModelError: `like` lacks a layer of `qmodel`.
    """

    def __init__(self, qmodel: Any, like: Any = None) -> None:
        state.ranges(qmodel)
        self.qmodel, self.like = qmodel, None if like is None else _canonical(like, qmodel)
        self.float_model = qmodel if self.like is None else self.like
        self.graph: ModelGraph = model_graph.read(strip(qmodel) if self.like is None else self.like)
        self.units: tuple[Unit, ...] = units_of(self.graph, placement_of(qmodel).points)
        self._compute_float = _traced(self.float_model, on=False)
        self._compute_planned = _traced(qmodel, on=True)

    def float_outputs(self, inputs: Any) -> list[tf.Tensor]:
        """The outputs of the float model for a batch."""
        return tf.nest.flatten(self._compute_float(inputs))

    def planned_outputs(self, inputs: Any) -> list[tf.Tensor]:
        """The outputs for a batch with all quantizers on."""
        return tf.nest.flatten(self._compute_planned(inputs))

    def measure(self, batches: Sequence[Any], meter: Meter, advance: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """The measure of the float model and that of the planned one, by one pass over the data for each."""
        states = [meter.start(), meter.start()]
        for batch in batches:
            reference = [value.numpy() for value in self.float_outputs(inputs_of(batch))]
            planned = [value.numpy() for value in self.planned_outputs(inputs_of(batch))]
            targets = batch[1:] if isinstance(batch, tuple) else ()
            states = [meter.add(state, outputs, reference, targets) for state, outputs in zip(states, (reference, planned), strict=True)]
            advance()
        return meter.value(states[0]), meter.value(states[1])


def _traced(model: Any, *, on: bool) -> Callable[[Any], Any]:
    def compute(inputs: Any) -> Any:
        with quantizers(on=on):
            return model(inputs, training=False)

    function: Callable[[Any], Any] = tf.function(compute, reduce_retracing=True, autograph=False)
    return function


def _canonical(like: Any, qmodel: Any) -> Any:
    """The canonical form of the float model.

    Raises:
        ModelError: it lacks a layer of `qmodel`.
    """
    needed = {layer.name for layer in qmodel.layers if state.point_of(layer) is None}
    found = canonical(like)
    missing = sorted(needed - {layer.name for layer in found.layers})
    if missing:
        raise ModelError(f"the float model given as `like` has no layer {missing[0]!r}; give the one that was quantized")
    return found
