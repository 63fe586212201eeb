"""Mixed precision in the training step: layers compute in 16 bits, variables, fake quantization, outputs and the loss stay in float32.

The types are changed while the step is traced and no longer: calibration, evaluation and export compute in float32, as what is
shipped does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
import tf_keras
from tf_keras.src.mixed_precision.autocast_variable import AutoCastVariable, create_autocast_variable

from tfqat.models import graph as model_graph

_KEEP_VARIABLES = (tf_keras.layers.BatchNormalization, tf_keras.layers.LayerNormalization, tf_keras.layers.Embedding)
"""Layers that read their variables in float32 in any policy of Keras."""


@contextmanager
def computing_in(model: Any, policy: str) -> Iterator[None]:
    """What is traced of `model` within the block computes by a Keras policy, such as `mixed_bfloat16`.

    Layers that make an output of the model compute in float32, and so do operations without a type of their own on what they read.
    """
    makes_output = {id(layer) for output in model.outputs for layer in output._keras_history.layer._flatten_layers()}
    layers = [
        layer for layer in model._flatten_layers(include_self=False) if id(layer) not in makes_output and model_graph.has_own_dtype(layer)
    ]
    before = [(layer, layer.dtype_policy, _cast_variables(layer)) for layer in layers]
    try:
        for layer, _, variables in before:
            layer._set_dtype_policy(policy)
            for name, variable in variables.items():
                object.__setattr__(layer, name, create_autocast_variable(variable))
        yield
    finally:
        for layer, old, variables in before:
            layer._set_dtype_policy(old)
            for name, variable in variables.items():
                object.__setattr__(layer, name, variable)


def in_precision(step: Callable[..., Any], model: Any, policy: str) -> Callable[..., Any]:
    """A `train_step` of `model` that computes by a policy."""

    def run(*arguments: Any, **keywords: Any) -> Any:
        with computing_in(model, policy):
            return step(*arguments, **keywords)

    return run


def scaled(optimizer: Any, policy: str) -> Any:
    """The optimizer with a loss scale, which float16 needs: small gradients would be 0."""
    return tf_keras.mixed_precision.LossScaleOptimizer(optimizer) if policy == "mixed_float16" else optimizer


def _cast_variables(layer: Any) -> dict[str, Any]:
    """The variables that a layer reads in the type that it computes in, by attribute."""
    if isinstance(layer, _KEEP_VARIABLES):
        return {}
    return {
        name: value
        for name, value in vars(layer).items()
        if isinstance(value, tf.Variable) and not isinstance(value, AutoCastVariable) and value.dtype == tf.float32
    }
