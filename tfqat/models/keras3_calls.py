"""What an operation or a layer of Keras 3 is called with: as plain JSON values and back, and with values in place of symbolic tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def encode(value: Any, tensors: Sequence[Any] = ()) -> Any:
    """A call argument as JSON value: tensors by their position in `tensors`, arrays, slices, tuples and the ellipsis as one-key mappings.

    Raises:
        TypeError: a value of a type that has no such form, a function for example.
    """
    for index, tensor in enumerate(tensors):
        if value is tensor:
            return {"tensor": index}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, slice):
        return {"slice": [encode(part, tensors) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, tuple):
        return {"tuple": [encode(part, tensors) for part in value]}
    if isinstance(value, list):
        return [encode(part, tensors) for part in value]
    if isinstance(value, Mapping):
        return {"mapping": {str(key): encode(part, tensors) for key, part in value.items()}}
    if isinstance(value, np.dtype | type) or not hasattr(value, "__array__"):
        raise TypeError(f"{value!r} of type {type(value).__name__}")
    array = np.asarray(value)
    return {"array": array.tolist(), "dtype": array.dtype.name}


def decode(value: Any, tensors: Sequence[Any] = ()) -> Any:
    """The argument that `encode` wrote, with the given `tensors`."""
    if isinstance(value, list | tuple):
        return [decode(part, tensors) for part in value]
    if not isinstance(value, Mapping):
        return value
    kind, content = next(iter(value.items()))
    makers: Mapping[str, Callable[[], Any]] = {
        "tensor": lambda: tensors[content],
        "ellipsis": lambda: Ellipsis,
        "slice": lambda: slice(*decode(content, tensors)),
        "tuple": lambda: tuple(decode(content, tensors)),
        "mapping": lambda: {key: decode(part, tensors) for key, part in content.items()},
        "array": lambda: np.asarray(content, dtype=value["dtype"]),
    }
    return makers[kind]()


def encode_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Any] = ()) -> dict[str, Any]:
    """Positional and keyword arguments as JSON values; TypeError as in `encode`."""
    return {
        "args": [encode(value, tensors) for value in args],
        "kwargs": {key: encode(value, tensors) for key, value in kwargs.items()},
    }


def decode_arguments(encoded: Mapping[str, Any], tensors: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The arguments that `encode_arguments` wrote, with the given `tensors`."""
    keywords = {key: decode(value, tensors) for key, value in encoded["kwargs"].items()}
    return [decode(value, tensors) for value in encoded["args"]], keywords


def replaced(value: Any, of: Callable[[Any], Any]) -> Any:
    """A nested call argument with `of(x)` in place of every part x that is no list, tuple or mapping."""
    if isinstance(value, Mapping):
        return {key: replaced(part, of) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replaced(part, of) for part in value)
    return of(value)


def leaves(value: Any) -> list[Any]:
    """Every part of a nested call argument that is no list, tuple or mapping, in order."""
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]
