"""Copies the weights of a Keras 3 layer into its tf_keras counterpart."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfqat.errors import ModelError
from tfqat.models.keras3_layers import Keras3Layer


def copy_weights(source: Any, target: Any) -> tuple[Any, ...]:
    """Set the weights of the built tf_keras layer `target` from the Keras 3 layer `source`.

    Returns:
        The variables that they came from, in the order of `target.weights`.

    Raises:
        ModelError: the two layers do not have the same weights.
    """
    pairs = _variables(source, target)
    values = [np.asarray(value) for _, value in pairs]
    found, expected = [value.shape for value in values], [tuple(weight.shape) for weight in target.weights]
    if found != expected:
        raise ModelError(
            f"the weights of layer {target.name!r} ({type(source).__name__}) have shapes {found} in Keras 3, but "
            f"{type(target).__name__} of tf_keras expects {expected}: build this layer from others, or as a keras.layers.Layer of your own"
        )
    target.set_weights(values)
    return tuple(variable for variable, _ in pairs)


def _variables(source: Any, target: Any) -> list[tuple[Any, Any]]:
    """(variable, value) of each weight; a low-rank update (LoRA) is added to the weight that it belongs to."""
    if isinstance(target, Keras3Layer):  # its own order, and the state of random generators among them
        return [(variable, variable.numpy()) for variable in (*source.trainable_variables, *source.non_trainable_variables)]
    if not target.weights:  # the statistics of Normalization are settings there
        return []
    if getattr(source, "lora_enabled", False):
        name = "embeddings" if hasattr(source, "embeddings") else "kernel"
        merged = [(getattr(source, f"_{name}"), getattr(source, name))]
        return [(variable, _numpy(value)) for variable, value in (*merged, *([(source.bias, source.bias)] if _has_bias(source) else []))]
    return [(variable, variable.numpy()) for variable in source.weights]


def _has_bias(source: Any) -> bool:
    return getattr(source, "bias", None) is not None


def _numpy(value: Any) -> Any:
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)
