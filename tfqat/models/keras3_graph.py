"""Reads the graph of a Keras 3 model: the one place that touches its private parts (checked on Keras 3.15.1). Nothing is changed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tfqat.errors import ModelError
from tfqat.models.keras3_calls import encode, encode_arguments, leaves

_MASKS = ("mask", "query_mask", "value_mask", "key_mask")


def is_keras3(model: Any) -> bool:
    """Whether `model` is a model of Keras 3; imports nothing."""
    return any(kind.__module__.startswith("keras.") and kind.__name__ == "Model" for kind in type(model).__mro__)


def functional(model: Any) -> Any:
    """The keras.Function of a functional or Sequential model.

    Raises:
        ModelError: it has none.
    """
    found = graph_of(model)
    if found is not None:
        return found
    if isinstance(model, import_module("keras").Sequential):
        raise ModelError(f"model {model.name!r} is a Sequential without an input shape: start it with keras.Input(shape)")
    raise ModelError(
        f"model {model.name!r} ({type(model).__name__}) is a subclassed model: its layers are called in Python code that tfqat cannot "
        "read. Rebuild it with the functional API, keras.Model(inputs, outputs), or Sequential with an input shape"
    )


def graph_of(operation: Any) -> Any:
    """The keras.Function inside a model; None for a layer, an operation, and a model that computes in Python code."""
    keras = import_module("keras")
    if isinstance(operation, keras.Sequential):
        return operation._functional if type(operation).call is keras.Sequential.call else None
    if isinstance(operation, keras.Model):
        made = import_module("keras.src.models.functional").Functional
        return operation if isinstance(operation, made) and type(operation).call is made.call else None
    return operation if isinstance(operation, keras.Function) else None


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a layer, an operation or a model: what it got, Keras 3 tensors among it, and the tensors that it returned.

    `training` is what the caller asked for on purpose (`backbone(x, training=False)`), not what Keras fills in.
    """

    node: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    training: bool | None

    @property
    def operation(self) -> Any:
        """What is called."""
        return self.node.operation

    @property
    def tensors(self) -> list[Any]:
        """The Keras 3 tensors among the arguments, in order."""
        return [value for value in leaves((self.args, dict(self.kwargs))) if is_tensor(value)]


def is_tensor(value: Any) -> bool:
    """Whether `value` is a symbolic tensor of Keras 3."""
    return isinstance(value, import_module("keras").KerasTensor)


def calls(function: Any) -> Iterator[Call]:
    """The calls that the outputs of a keras.Function need, in the order in which they can run.

    Masks that Keras 3 passed on by itself are left out, with the operations that made them: tf_keras passes its own on, with its tensors.
    """
    nodes = [node for depth in sorted(function._nodes_by_depth, reverse=True) for node in function._nodes_by_depth[depth]]
    needed, found = {id(tensor) for tensor in function._outputs}, []
    for node in reversed(nodes):
        if any(id(tensor) in needed for tensor in node.outputs) and not node.is_input:
            call = _read(node)
            needed.update(id(tensor) for tensor in call.tensors)
            found.append(call)
    return reversed(found)


def _read(node: Any) -> Call:
    args, kwargs = tuple(node.arguments.args), {key: value for key, value in node.arguments.kwargs.items() if value is not None}
    if not isinstance(node.operation, import_module("keras").layers.Layer):
        return Call(node=node, args=args, kwargs=dict(node.arguments.kwargs), training=None)
    parameters = inspect.signature(node.operation.call).parameters
    training = kwargs.pop("training", None)
    implied = "training" in parameters and training == parameters["training"].default
    first, *others = parameters
    if not args:
        args = (kwargs.pop(first),)
    if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in parameters.values()):
        args, kwargs = args[:1], {**dict(zip(others, args[1:], strict=False)), **kwargs}  # tf_keras saves named arguments only
    dropped = [key for key in _MASKS if _is_passed_on(kwargs.get(key), node.input_tensors)]
    kwargs = {key: value for key, value in kwargs.items() if key not in dropped}
    return Call(node=node, args=args, kwargs=kwargs, training=None if implied else training)


def _is_passed_on(mask: Any, tensors: Sequence[Any]) -> bool:
    """Whether every part of `mask` is the mask that Keras put on a tensor of the same call."""
    own = {id(found) for found in (getattr(tensor, "_keras_mask", None) for tensor in tensors) if found is not None}
    return mask is not None and all(part is None or id(part) in own for part in leaves(mask))


def operation_path(operation: Any) -> str:
    """Where the class of an operation is defined.

    Raises:
        ModelError: not in Keras.
    """
    path = f"{type(operation).__module__}.{type(operation).__qualname__}"
    if not path.startswith(("keras.src.ops.", "keras.src.activations.")):
        raise ModelError(f"operation {operation.name!r} is of class {path}, expected a keras.ops operation: make it a keras.layers.Layer")
    return path


def encoded(call: Call) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the constructor of an operation takes, and what it was called with, as JSON values.

    Raises:
        ModelError: a value that cannot be written down, a function for example.
    """
    try:
        settings = {key: encode(value) for key, value in _settings(call.operation).items()}
        return settings, encode_arguments(call.args, call.kwargs, call.tensors)
    except (TypeError, AttributeError) as error:
        raise ModelError(
            f"operation {call.operation.name!r} ({type(call.operation).__name__}) cannot be written to a file, because of {error}: put it "
            "into a keras.layers.Layer of yours"
        ) from error


def _settings(operation: Any) -> dict[str, Any]:
    names = [name for name in inspect.signature(type(operation).__init__).parameters if name not in ("self", "name", "args", "kwargs")]
    try:
        config = operation.get_config()
    except NotImplementedError:  # Keras writes only numbers and text by itself; arrays are among what is left
        config = {name: getattr(operation, name) for name in names}
    return {name: config[name] for name in names if name in config}
