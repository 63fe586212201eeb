"""Executions of one quantized Keras graph that are all right and differ by rounding: what int8 codes each gives at every point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from tfqat import numerics
from tfqat.models import graph as model_graph
from tfqat.models.depth import functional_model
from tfqat.models.graph import TensorRef
from tfqat.quantize import state


class _RoundingNoise(tf_keras.layers.Layer):  # type: ignore[misc]
    """Multiplies every value by 1 +- up to `unit`, as another order of summation would; `seed` chooses the noise."""

    def __init__(self, seed: tf.Variable, number: int, unit: float) -> None:
        super().__init__(name=f"tfqat_noise_{number}")
        object.__setattr__(self, "_seed", seed)  # past Keras's tracking, which would make it a weight
        self.number, self.unit = number, unit

    def call(self, inputs: Any) -> Any:
        noise = tf.random.stateless_uniform(tf.shape(inputs), tf.stack([self._seed, self.number]), -self.unit, self.unit)
        return inputs * (1.0 + noise)


@dataclass(frozen=True)
class Codes:
    """A model that returns the tensors that enter its quantizers, and its outputs."""

    points: tuple[str, ...]
    run: Callable[[Any], Any]
    handles: Mapping[str, state.Handle]

    @classmethod
    def of(cls, qmodel: Any, *, compiled: bool = False) -> Codes:
        """The model as it is, or as XLA compiles it."""
        tensors = state.activation_inputs(qmodel)
        return cls._reading(qmodel, tensors, state.handles(qmodel), compiled)

    @classmethod
    def in_float64(cls, qmodel: Any) -> Codes | None:
        """The model in float64; None if TensorFlow lacks one of its operations in float64, as it does 3-D pooling on a CPU."""
        try:
            return cls.of(model_graph.as_float64(qmodel))
        except (TypeError, ValueError, tf.errors.OpError):
            return None

    @classmethod
    def noisy(cls, qmodel: Any, seed: tf.Variable, unit: float) -> Codes:
        """A copy of the model with rounding noise of a relative size up to `unit` before every quantizer."""
        noises: dict[str, _RoundingNoise] = {}

        def replace(layer: Any) -> Any:
            copy, point = model_graph.clone_layer(layer), state.point_of(layer)
            if point is None:
                return copy
            noise = noises[point.id] = _RoundingNoise(seed, len(noises), unit)
            return lambda tensor, **_: copy(noise(tensor))

        model = model_graph.rebuild(qmodel, replace=replace)
        model_graph.copy_weights(qmodel, model)
        tensors = model_graph.tensors(model)
        noised = {name: tensors[TensorRef(layer=noise.name)] for name, noise in noises.items()}
        return cls._reading(model, noised, state.handles(qmodel), False)

    @classmethod
    def _reading(cls, model: Any, tensors: Mapping[str, Any], handles: Mapping[str, state.Handle], compiled: bool) -> Codes:
        reading = functional_model(model.inputs, [*tensors.values(), *model.outputs])

        def run(inputs: Any) -> Any:
            return reading(inputs, training=False)

        return cls(tuple(tensors), tf.function(run, jit_compile=True) if compiled else run, handles)

    def __call__(self, inputs: Any) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        """A batch of inputs -> the int8 codes by point, and the outputs."""
        codes, outputs, _ = self.with_ties(inputs, 0.0)
        return codes, outputs

    def with_ties(self, inputs: Any, tie: float) -> tuple[dict[str, np.ndarray], list[np.ndarray], dict[str, np.ndarray]]:
        """The same, and by point which values lie at a tie: |x / scale| at most `tie` of itself away from k + 1/2; none for 0."""
        values = tf.nest.flatten(self.run(inputs))
        codes, ties = {}, {}
        for name, value in zip(self.points, values, strict=False):
            spec = self.handles[name].point.spec
            scale = numerics.scale_from_amax(self.handles[name].amax, spec)
            codes[name] = numerics.quantize(value, scale, spec).numpy()
            if tie:
                steps = tf.abs(value / tf.cast(scale, value.dtype)).numpy()
                ties[name] = np.abs(steps - np.floor(steps) - 0.5) <= tie * steps
        return codes, [value.numpy() for value in values[len(self.points) :]], ties
