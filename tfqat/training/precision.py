"""Mixed precision in the training step: layers compute in 16 bits, variables, fake quantization, outputs and the loss stay in float32.

The types are changed while the step is traced and no longer: calibration, evaluation and export compute in float32, as what is
shipped does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.mixed_precision.autocast_variable import create_autocast_variable

from tfqat.models import graph as model_graph
from tfqat.quantize.quantizers import ActivationQuantizer
from tfqat.quantize.wrapper import QuantizeWrapper

_KEEP_VARIABLES = (
    tf_keras.layers.BatchNormalization,
    tf_keras.layers.LayerNormalization,
    tf_keras.layers.Embedding,
    ActivationQuantizer,
    QuantizeWrapper,
)
"""Layers that read their variables in float32 whatever they compute in."""


class MixedPrecision:
    """A model's types for a Keras policy, such as `mixed_bfloat16`.

    Layers that make an output of the model compute in float32, and so do those whose variables are no attributes of their own, such as
    lists of variables; operations without a type of their own compute on what they read.
    """

    def __init__(self, model: Any, policy: str) -> None:
        self._model, self._policy = model, policy
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, Any, dict[str, Any]]] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        """What is traced of the model within the block computes by the policy.

        Replicas are traced by threads that take turns within the block: the first one in changes the types, the last one out restores them.
        """
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._change()
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._restore()

    def step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A `train_step` of the model that computes by the policy."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            with self.on():
                return step(*arguments, **keywords)

        return run

    def _change(self) -> None:
        makes_output = {id(layer) for output in self._model.outputs for layer in output._keras_history.layer._flatten_layers()}
        for layer in self._model._flatten_layers(include_self=False):
            variables = _variables(layer)
            if id(layer) in makes_output or not model_graph.has_own_dtype(layer) or variables is None:
                continue
            self._before.append((layer, layer.dtype_policy, variables))
            layer._set_dtype_policy(self._policy)
            for name, variable in variables.items():
                object.__setattr__(layer, name, create_autocast_variable(variable))

    def _restore(self) -> None:
        for layer, policy, variables in self._before:
            layer._set_dtype_policy(policy)
            for name, variable in variables.items():
                object.__setattr__(layer, name, variable)
        self._before = []


def scaled(optimizer: Any, policy: str) -> Any:
    """The optimizer with a loss scale, which float16 needs: small gradients would be 0."""
    return tf_keras.mixed_precision.LossScaleOptimizer(optimizer) if policy == "mixed_float16" else optimizer


def _variables(layer: Any) -> dict[str, Any] | None:
    """The variables that a layer reads in the type that it computes in, by attribute; None if some are not attributes."""
    if isinstance(layer, _KEEP_VARIABLES):
        return {}
    found = {name: value for name, value in vars(layer).items() if isinstance(value, tf.Variable) and value.dtype == tf.float32}
    known = {id(value) for value in found.values()}
    own = [*layer._trainable_weights, *layer._non_trainable_weights]
    return found if all(id(value) in known or value.dtype != tf.float32 for value in own) else None
