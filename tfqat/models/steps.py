"""A layer to make in place of another, and how the rules that choose it read the arguments of a call.

Reads private attributes of tf_keras (`_keras_history`, `_keras_mask`, `_inferred_value`), checked on tf-keras 2.21.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

_LARGEST_CONSTANT = 4096  # elements of a per-channel constant that may stand in a layer's configuration


@dataclass(frozen=True, kw_only=True)
class Step:
    """A layer to make, and what it is called on.

    Attributes:
        part: its name within the layer that it replaces; empty for that layer's own name.
        layer_class: a class of layers.
        config: the constructor's arguments, less the name.
        reads: the layer's first argument: symbolic tensors and, as strings, parts of earlier steps.
        keywords: further arguments of the call, written in the same way.
        weights: the variables that its weights come from, in the order of `layer.weights`; only the shape may differ.
    """

    part: str = ""
    layer_class: Any
    config: Mapping[str, Any] = field(default_factory=dict)
    reads: Any
    keywords: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[Any, ...] = ()


Rule = Callable[..., Step | None]
"""The arguments of an operation by name -> the layer that means the same, None where no layer does."""


def is_symbolic(value: Any) -> bool:
    """Whether `value` is a tensor of the model's graph; otherwise it is a constant."""
    return hasattr(value, "_keras_history")


def computes_plainly(tensors: Any) -> bool:
    """Whether all `tensors` are dense float32 tensors without a Keras mask.

    Operations drop masks and keep types; layers hand masks on and cast, so that only here they are the same.
    """
    return all(
        is_symbolic(tensor) and type(tensor).__name__ == "KerasTensor" and tensor.dtype == tf.float32 and _mask_of(tensor) is None
        for tensor in tf.nest.flatten(tensors)
    )


def _mask_of(tensor: Any) -> Any:
    return getattr(tensor, "_keras_mask", None)


def step(layer_class: Any, reads: Any, **config: Any) -> Step:
    """A step of one layer in float32, called on `reads`."""
    return Step(layer_class=layer_class, reads=reads, config={**config, "dtype": "float32"})


def constant(value: Any) -> np.ndarray | None:
    """`value` as an array of numbers; None if it depends on the model's input or is no number."""
    if any(is_symbolic(item) or isinstance(item, tf.Variable) for item in tf.nest.flatten(value)):
        return None
    array = np.asarray(value)
    return array if array.dtype.kind in "iuf" and np.isfinite(array).all() else None


def per_channel(value: Any, tensor: Any) -> np.ndarray | None:
    """A constant that is one number, or one number for each index of the tensor's last axis."""
    array, shape = constant(value), tensor.shape
    if array is None or shape.rank is None or array.ndim > shape.rank:
        return None
    if array.size == 1:
        return array.reshape(()).astype(np.float64)
    fits = array.size == array.shape[-1] == shape[-1] and array.size <= _LARGEST_CONSTANT
    return array.reshape(-1).astype(np.float64) if fits else None


def axes_of(axis: Any, rank: int) -> list[int] | None:
    """The axes in ascending order, counted from the front; None if none are given or only a run tells."""
    array = constant(axis) if axis is not None else None
    return None if array is None else sorted(int(value) % rank for value in array.reshape(-1))


def sizes_of(shape: Any) -> list[int | None] | None:
    """The numbers of a shape, None for one that only a run tells; None if not even their count is known."""
    if is_symbolic(shape):
        return getattr(shape, "_inferred_value", None)
    if isinstance(shape, list | tuple):
        return [_size(value) for value in shape]
    array = constant(shape)
    return None if array is None else [int(value) for value in array.reshape(-1)]


def _size(value: Any) -> int | None:
    if is_symbolic(value):
        source, axis = dimension(value)
        return source.shape[axis] if source is not None else None
    array = constant(value)
    return None if array is None or array.size != 1 else int(array.reshape(()))


def dimension(value: Any) -> tuple[Any, int]:
    """(x, axis) where `value` is `tf.shape(x)[axis]`; (None, 0) where it is something else."""
    inner = _operation(value, "__operators__.getitem")
    if inner is None or not isinstance(inner[1], int) or not is_symbolic(inner[0]):
        return None, 0
    for symbol in ("compat.v1.shape", "shape"):
        if (shape := _operation(inner[0], symbol)) is not None and shape[0].shape.rank is not None:
            return shape[0], inner[1]
    return None, 0


def _operation(tensor: Any, symbol: str) -> tuple[Any, ...] | None:
    """The positional arguments of the operation `symbol` that made `tensor`; None if another layer did."""
    layer, index, _ = tensor._keras_history
    return tuple(layer._inbound_nodes[index].call_args) if getattr(layer, "symbol", None) == symbol else None


def same_tensor(first: Any, second: Any) -> bool:
    """Whether two symbolic tensors are one; `first` may be None."""
    return first is not None and first._keras_history == second._keras_history
