"""Asks a function of the user's own for the layer to put in the place of another, and makes sure that it fits there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.errors import ModelError
from tfqat.models.graph import Node
from tfqat.models.names import given_name

Shapes = tuple[tuple[int | None, ...], ...]


def replacement_of(layer: Any, function: Callable[[Any], Any], reference: str) -> Any:
    """The layer that `function` makes of `layer`, under the name of `layer`; None if that stays.

    Raises:
        ModelError: the function raises, changes the layer in place, or returns no layer.
    """
    before = _state(layer)
    try:
        made = function(layer)
    except Exception as error:
        raise ModelError(f"{reference} raises {type(error).__name__} for layer {layer.name!r}: {error}") from error
    if made is layer and _state(layer) != before:
        raise ModelError(f"{reference} changes layer {layer.name!r} in place: return a new one, such as type(layer).from_config(...)")
    if made is None or made is layer:
        return None
    if not isinstance(made, tf_keras.layers.Layer):
        found = f"the class {made.__name__}" if isinstance(made, type) else f"{type(made).__module__}.{type(made).__name__}"
        raise ModelError(f"{reference} returned {found} for layer {layer.name!r}; expected a tf_keras layer, or None to leave it as it is")
    return made


def check_distinct(made: Mapping[str, Any], reference: str) -> None:
    """Make sure that every layer got a replacement of its own, and call that by its name.

    Raises:
        ModelError: two layers got the same one.
    """
    first: dict[int, str] = {}
    for name, layer in made.items():
        if id(layer) in first:
            raise ModelError(f"{reference} returned the same layer for {first[id(layer)]!r} and {name!r}: make a new one for each")
        first[id(layer)] = name
        layer._name = name  # labels, reports and patterns go by the name


def fitted(made: Any, calls: Iterable[Node], reference: str) -> Callable[..., Any]:
    """`made`, to be called once for each of `calls` in their order, with its outputs compared to theirs.

    Raises:
        ModelError: when called: it does not take the inputs, or its outputs have other shapes.
    """
    expected = iter(calls)

    def call(*arguments: Any, **keywords: Any) -> Any:
        node = next(expected)
        read = _shapes(value for value in tf.nest.flatten((arguments, keywords)) if tf.is_tensor(value))
        what = f"the {type(made).__name__} that {reference} returned for layer {given_name(node.layer)!r}"
        try:
            outputs = made(*arguments, **keywords)
        except Exception as error:  # Keras raises many types for inputs that a layer does not take
            reason = next(iter(str(error).splitlines()), "")[:200]
            raise ModelError(f"{what} cannot read what the layer reads, {_listed(read)}: {type(error).__name__}: {reason}") from error
        shapes = _shapes(tf.nest.flatten(outputs))
        if len(shapes) != len(node.shapes) or not all(map(_same, shapes, node.shapes)):
            raise ModelError(f"{what} makes {_listed(shapes)} of {_listed(read)}; expected {_listed(node.shapes)}")
        return outputs

    return call


def _state(layer: Any) -> tuple[str, tuple[bytes, ...]]:
    return repr(layer.get_config()), tuple(value.tobytes() for value in layer.get_weights())


def _shapes(tensors: Iterable[Any]) -> Shapes:
    return tuple(tuple(tensor.shape) if tensor.shape.rank is not None else () for tensor in tensors)


def _same(first: tuple[int | None, ...], second: tuple[int | None, ...]) -> bool:
    return len(first) == len(second) and all(a == b or None in (a, b) for a, b in zip(first, second, strict=True))


def _listed(shapes: Shapes) -> str:
    return " and ".join(str(shape) for shape in shapes)
