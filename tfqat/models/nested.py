"""Reads a functional tf_keras model that may hold other models: its calls in order, and the names that its layers have once it is flat.

Makes layers again from their configurations, with an error that says what is missing.

Reads private attributes of tf_keras (the nodes of a functional model, `_keras_history`), checked on tf-keras 2.21.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tf_keras

from tfqat.errors import ModelError
from tfqat.models.operations import is_operation
from tfqat.models.steps import Step


class Names:
    """The names of a canonical model's layers: each name of the source stays with its layer, new ones are free ones."""

    def __init__(self, model: Any) -> None:
        self._paths: dict[int, str] = {}
        self._owners: dict[str, int] = {}
        self._given: set[str] = set()
        self._reserve(model, "")
        self._outputs = {self._paths.get(id(tensor._keras_history.layer)) for tensor in model.outputs}

    def _reserve(self, model: Any, prefix: str) -> None:
        for call in calls(model):
            layer, path = call.layer, prefix + call.layer.name
            if isinstance(layer, tf_keras.Model):
                check_functional(layer, f"layer {path!r}")
                self._reserve(layer, f"{path}/")
            elif id(layer) not in self._paths and not (prefix and isinstance(layer, tf_keras.layers.InputLayer)):
                self._paths[id(layer)] = path
                self._owners.setdefault(path, id(layer))

    def of(self, layer: Any, prefix: str) -> str:
        """The name of a copy of `layer`, which stands in the nested models that `prefix` lists."""
        return self._free(self._path(layer, prefix), layer)

    def of_part(self, layer: Any, prefix: str, step: Step, *, last: bool) -> str:
        """The name of a layer that replaces `layer` or a part of it. The last part of an output of the model keeps the output's name."""
        path = self._path(layer, prefix)
        output = path in self._outputs
        if output and last:
            return self._free(path, layer)
        if is_operation(layer):
            return self._free(_readable(path), layer)
        part = step.part or (step.layer_class.__name__.lower() if output else "")
        return self._free(f"{path}/{part}" if part else path, layer)

    def _path(self, layer: Any, prefix: str) -> str:
        return self._paths.get(id(layer), prefix + layer.name)

    def _free(self, name: str, layer: Any) -> str:
        candidate, count = name, 0
        while candidate in self._given or self._owners.get(candidate, id(layer)) != id(layer):
            count += 1
            candidate = f"{name}_{count}"
        self._given.add(candidate)
        return candidate


def _readable(path: str) -> str:
    """`backbone/tf.__operators__.add_3` -> `backbone/add_3`."""
    prefix, slash, name = path.rpartition("/")
    return prefix + slash + (name.rpartition(".")[2] or name)


def calls(model: Any) -> Iterator[Any]:
    """The calls that make up a functional model: each after those that it reads, those of a shared layer in the order they were made."""
    by_depth = [call for depth in sorted(model._nodes_by_depth, reverse=True) for call in model._nodes_by_depth[depth]]
    inside, done = set(by_depth), set()
    for first in by_depth:
        stack = [first]
        while stack:
            call = stack[-1]
            earlier = call.layer._inbound_nodes[: call.layer._inbound_nodes.index(call)]
            waiting = [other for other in (*call.parent_nodes, *earlier) if other in inside and other not in done]
            stack.extend(waiting)
            if not waiting:
                stack.pop()
                if call not in done:
                    done.add(call)
                    yield call


def key(tensor: Any) -> tuple[int, int, int]:
    """What identifies a symbolic tensor: its layer, the number of the call and of the output."""
    layer, call, index = tensor._keras_history
    return id(layer), call, index


def check_functional(model: Any, what: str) -> None:
    """Make sure that a model has a graph to read; `what` says where it stands.

    Raises:
        ModelError: it is no tf_keras model, or a subclassed or unbuilt one.
    """
    if not isinstance(model, tf_keras.Model):
        raise ModelError(f"expected a tf_keras.Model, got {type(model).__module__}.{type(model).__name__}")
    if not getattr(model, "_is_graph_network", False):
        name = "" if repr(model.name) in what else f" {model.name!r}"
        raise ModelError(
            f"{what}{name} ({type(model).__name__}) is a subclassed model, or a Sequential without an input shape: its layers are called "
            "in Python code that tfqat cannot read. Rebuild it with the functional API, tf_keras.Model(inputs, outputs), or start the "
            "Sequential with tf_keras.Input(shape)"
        )


def made_again(layer: Any, configuration: Callable[[], Mapping[str, Any]]) -> Any:
    """A layer of the class of `layer` from a configuration.

    Raises:
        ModelError: the class has no, or no complete, `get_config`; or it is one of TFMOT, so that the model is no float model.
    """
    if type(layer).__module__.startswith("tensorflow_model_optimization."):
        raise ModelError(
            f"layer {layer.name!r} ({type(layer).__name__}) is one of TFMOT, expected a float model: give the model as it was before "
            "TFMOT's quantize_model, or what its strip_pruning or strip_clustering returns"
        )
    try:
        return type(layer).from_config(dict(configuration()))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ModelError(
            f"layer {layer.name!r} ({type(layer).__name__}) cannot be made again from its configuration: {str(error).strip()}. Give its "
            "class a get_config method that returns every argument of the constructor"
        ) from error
