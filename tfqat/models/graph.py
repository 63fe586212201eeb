"""Reads and rebuilds the graph of a functional tf_keras model: it touches private Keras (checked on tf-keras 2.21.0).

`read` turns a model into plain data (`ModelGraph`) that placement rules can match without TensorFlow. `rebuild` makes a new model
from an old one, with layers replaced and new layers put on chosen edges; the old model is left as it was.

A node of the graph is one call of a layer. The first call of layer `conv` is the node `conv`, its second call the node `conv@2`;
both compute with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.errors import ModelError
from tfqat.models.depth import deep_models, functional_model
from tfqat.models.dtypes import float32_policy
from tfqat.models.nested import calls as calls_in_order
from tfqat.models.nested import made_again

CALL = "@"
"""What stands between the name of a layer and the number of its call; no tf_keras layer name contains it."""


@dataclass(frozen=True, kw_only=True)
class TensorRef:
    """Output number `index` of node `layer` (`conv`, or `conv@2` for the second call of a shared layer)."""

    layer: str
    index: int = 0


@dataclass(frozen=True, kw_only=True)
class Node:
    """One call of a layer and the tensors that it reads.

    `weights` gives the shape of each weight by its attribute name, `shapes` that of each output (None for an axis without fixed size).
    `trains` says that the call itself asks for `training=True`, so that it does so at inference too.
    """

    name: str
    class_name: str
    inputs: tuple[TensorRef, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shapes: tuple[tuple[int | None, ...], ...] = ()
    trains: bool = False

    @property
    def layer(self) -> str:
        """The layer that is called; the same for all calls of a shared layer."""
        return self.name.partition(CALL)[0]


@dataclass(frozen=True, kw_only=True)
class ModelGraph:
    """The calls of a model's layers in topological order, and the tensors it returns."""

    nodes: tuple[Node, ...]
    outputs: tuple[TensorRef, ...]

    def node(self, name: str) -> Node:
        """The node called `name`; KeyError if there is none."""
        return self._by_name[name]

    def calls(self, layer: str) -> tuple[Node, ...]:
        """Every call of a layer."""
        return self._by_layer.get(layer, ())

    def consumers(self, tensor: TensorRef) -> tuple[tuple[Node, int], ...]:
        """Every (node, input index) that reads `tensor`."""
        return self._readers.get(tensor, ())

    def producer(self, tensor: TensorRef) -> Node:
        """The node that makes `tensor`."""
        return self.node(tensor.layer)

    def shape(self, tensor: TensorRef) -> tuple[int | None, ...]:
        """The shape of `tensor`, () where it is not known."""
        shapes = self.node(tensor.layer).shapes
        return shapes[tensor.index] if tensor.index < len(shapes) else ()

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _by_layer(self) -> dict[str, tuple[Node, ...]]:
        found: dict[str, tuple[Node, ...]] = {}
        for node in self.nodes:
            found[node.layer] = (*found.get(node.layer, ()), node)
        return found

    @cached_property
    def _readers(self) -> dict[TensorRef, tuple[tuple[Node, int], ...]]:
        found: dict[TensorRef, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for index, tensor in enumerate(node.inputs):
                found.setdefault(tensor, []).append((node, index))
        return {tensor: tuple(readers) for tensor, readers in found.items()}


EdgeLayers = Mapping[tuple[str, int], Any]
"""(node name, input index) -> the layer to put on that edge; edges that share a layer object and a tensor share its output."""


def read(model: Any) -> ModelGraph:
    """The graph of a flat functional model.

    Raises:
        ModelError: a subclassed, unbuilt or nested model.
    """
    calls = _Calls(model)
    nodes = tuple(_read_node(calls, name, call) for name, call in calls)
    outputs = tuple(calls.reference(tensor) for tensor in tf.nest.flatten(model.outputs))
    return ModelGraph(nodes=nodes, outputs=outputs)


@float32_policy()
def rebuild(
    model: Any,
    *,
    replace: Callable[[Any], Any] = lambda layer: clone_layer(layer),
    on_edges: EdgeLayers | None = None,
    dtype: str | None = None,
    extra_inputs: Sequence[Any] = (),
    keep_class: bool = False,
) -> Any:
    """A new functional model with the layers that `replace` returns and the layers of `on_edges` on their edges.

        before   a ---------> conv          after, on_edges={("conv", 0): q}   a -> q -> conv

    Args:
        model: a flat functional tf_keras model; it is not changed.
        replace: old layer -> new layer, which must not be the old one; asked once for each layer, however often that is called.
            Default: a clone without weights.
        on_edges: layers to insert.
        dtype: of the new model's inputs; default: as they were.
        extra_inputs: tensors that layers of `replace` read beside their own; they follow the model's inputs, which are then a list.
        keep_class: the new model is of the class of `model`, such as one with a `train_step` of its own; that must take inputs and outputs.

    Returns:
        The new model. Weights are not copied: `replace` returns what the caller wants, `copy_weights` does the rest.
    """
    on_edges = on_edges or {}
    calls = _Calls(model)
    made: dict[TensorRef, Any] = {}
    passed: dict[tuple[int, TensorRef], Any] = {}
    replaced: dict[int, Any] = {}

    def feed(node: str, index: int, source: TensorRef) -> Any:
        inserted = on_edges.get((node, index))
        if inserted is None:
            return made[source]
        key = (id(inserted), source)
        if key not in passed:
            passed[key] = inserted(made[source])
        return passed[key]

    for name, call in calls:
        layer = call.layer
        if isinstance(layer, tf_keras.layers.InputLayer):
            made[TensorRef(layer=name)] = _new_input(call, dtype)
            continue
        if id(layer) not in replaced:
            replaced[id(layer)] = replace(layer)
        fed = iter([feed(name, index, calls.reference(tensor)) for index, tensor in enumerate(call.keras_inputs)])
        arguments, values = tf.nest.map_structure(  # keywords in the order of the call, which is that of keras_inputs
            lambda value, fed=fed: next(fed) if hasattr(value, "_keras_history") else value,
            (call.call_args, list(call.call_kwargs.values())),
        )
        outputs = tf.nest.flatten(replaced[id(layer)](*arguments, **dict(zip(call.call_kwargs, values, strict=True))))
        made.update({TensorRef(layer=name, index=index): output for index, output in enumerate(outputs)})
    inputs, outputs = tf.nest.map_structure(lambda tensor: made[calls.reference(tensor)], (model._nested_inputs, model._nested_outputs))
    if extra_inputs:
        inputs = [*tf.nest.flatten(inputs), *extra_inputs]
    return _of_class(model, inputs, outputs) if keep_class else functional_model(inputs, outputs, name=model.name)


def _of_class(model: Any, inputs: Any, outputs: Any) -> Any:
    """A functional model of the class of another one."""
    kind = tf_keras.Model if type(model).__name__ in ("Functional", "Sequential") else type(model)
    try:
        with deep_models():
            return kind(inputs, outputs, name=model.name)
    except TypeError as error:
        raise ModelError(
            f"model {model.name!r} is of class {kind.__name__}, which cannot be made as {kind.__name__}(inputs, outputs, name=...): "
            f"{error}. "
            "Let its __init__ take **kwargs and pass them on, or quantize tf_keras.Model(model.inputs, model.outputs)"
        ) from error


def clone_layer(layer: Any, **changes: Any) -> Any:
    """A new, unbuilt layer of the same class and configuration, with `changes` to the configuration.

    Raises:
        ModelError: the class of the layer has no, or no complete, `get_config`, or is one of TFMOT.
    """
    return _made_again(layer, lambda: {**layer.get_config(), **changes})


def _made_again(layer: Any, configuration: Callable[[], Any]) -> Any:
    """A layer of the class of `layer`; the class of a layer that it wraps need not be registered with Keras."""
    inner = type(getattr(layer, "layer", layer))
    with tf_keras.utils.custom_object_scope({inner.__name__: inner}):
        return made_again(layer, configuration)


def copy_weights(source: Any, target: Any) -> None:
    """Set the weights of every layer of `target` from the layer of the same name in `source`."""
    for layer in target.layers:
        if layer.weights:
            set_weights(layer, source.get_layer(layer.name).get_weights())


def set_weights(layer: Any, values: Sequence[Any]) -> None:
    """Set the weights of a layer, and what it computes from them once and for all."""
    layer.set_weights(values)
    if isinstance(layer, tf_keras.layers.Normalization):
        layer.finalize_state()


def clone(model: Any) -> Any:
    """A model of the same layers and weights that shares nothing with `model`."""
    copy = rebuild(model)
    copy_weights(model, copy)
    return copy


def as_float64(model: Any) -> Any:
    """The same model computing in float64, its weights the float32 values: the reference for the noise floor."""
    copy = rebuild(model, replace=_float64_layer, dtype="float64")
    copy_weights(model, copy)
    return copy


def tensors(model: Any) -> dict[TensorRef, Any]:
    """The symbolic tensor of every layer output of `model`. `layer.output` is not it where a layer was called in an older model too."""
    calls = _Calls(model)
    return {calls.reference(tensor): tensor for _, call in calls for tensor in tf.nest.flatten(call.outputs)}


def _float64_layer(layer: Any) -> Any:
    return _made_again(layer, lambda: _with_dtype(layer.get_config(), "float64"))


def _with_dtype(config: Any, dtype: str) -> Any:
    """A layer configuration with every float32 `dtype` in it, nested ones too, replaced."""
    if isinstance(config, dict):
        return {key: dtype if key == "dtype" and value == "float32" else _with_dtype(value, dtype) for key, value in config.items()}
    if isinstance(config, tuple):
        return tuple(_with_dtype(value, dtype) for value in config)
    return [_with_dtype(value, dtype) for value in config] if isinstance(config, list) else config


def check_float32(model: Any) -> None:
    """Make sure that every layer computes in float32.

    Raises:
        ModelError: a layer computes in another type, by mixed precision for example; or `model` is not a functional model.
    """
    check_functional(model)
    other = [layer for layer in model.layers if _computes_in_another_float(layer)]
    if other:
        raise ModelError(
            f"layer {other[0].name!r} of model {model.name!r} computes in {other[0].compute_dtype}; expected float32. A saved model keeps "
            'its types, so build it again, after tf_keras.mixed_precision.set_global_policy("float32") and without another dtype, and copy '
            "the weights: built.set_weights(model.get_weights())"
        )


def has_own_dtype(layer: Any) -> bool:
    """Whether a layer computes in the float type of its policy; an operator (`x + y`) computes in what it reads, whatever its policy."""
    if isinstance(layer, tf_keras.layers.InputLayer) or not layer._autocast:
        return False
    return bool(tf.as_dtype(layer.compute_dtype).is_floating)


def _computes_in_another_float(layer: Any) -> bool:
    return has_own_dtype(layer) and layer.compute_dtype != "float32"


def check_functional(model: Any) -> None:
    """Make sure that a model is a functional tf_keras model, or a Sequential that is built.

    Raises:
        ModelError: it is not; says what to do.
    """
    if not isinstance(model, tf_keras.Model):
        found = f"{type(model).__module__}.{type(model).__name__}"
        raise ModelError(f"expected a tf_keras.Model, got {found}; tfqat.load_model makes one from a file or a Keras 3 model")
    if isinstance(model, tf_keras.Sequential) and not model.built:
        raise ModelError(f"model {model.name!r} is a Sequential without an input shape: start it with tf_keras.Input(shape)")
    if not getattr(model, "_is_graph_network", False):
        raise ModelError(
            f"model {model.name!r} ({type(model).__name__}) is a subclassed model: its layers are called in Python code that tfqat cannot "
            "read. Rebuild it with the functional API, tf_keras.Model(inputs, outputs), or Sequential with an input shape"
        )


class _Calls:
    """The Keras nodes of a model with their names, in topological order, those of a shared layer in the order that they were made."""

    def __init__(self, model: Any) -> None:
        check_functional(model)
        self._names: dict[int, str] = {}
        self._calls: list[tuple[str, Any]] = []
        counts: dict[int, int] = {}
        for call in calls_in_order(model):
            _check_flat(call.layer, model)
            number = counts[id(call.layer)] = counts.get(id(call.layer), 0) + 1
            name = call.layer.name if number == 1 else f"{call.layer.name}{CALL}{number}"
            self._names[id(call)] = name
            self._calls.append((name, call))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._calls)

    def reference(self, tensor: Any) -> TensorRef:
        """The reference of a symbolic tensor of the model."""
        layer, number, index = tensor._keras_history
        return TensorRef(layer=self._names[id(layer._inbound_nodes[number])], index=index)


def _check_flat(layer: Any, model: Any) -> None:
    if isinstance(layer, tf_keras.Model):
        raise ModelError(f"layer {layer.name!r} is a model inside model {model.name!r}: tfqat.load_model makes one flat model of it")


def _read_node(calls: _Calls, name: str, call: Any) -> Node:
    layer = call.layer
    inputs = () if isinstance(layer, tf_keras.layers.InputLayer) else tuple(calls.reference(tensor) for tensor in call.keras_inputs)
    weights = {attribute: tuple(value.shape) for attribute, value in vars(layer).items() if isinstance(value, tf.Variable)}
    trains = call.call_kwargs.get("training") is True
    shapes = tuple(tuple(tensor.shape) if tensor.shape.rank is not None else () for tensor in tf.nest.flatten(call.outputs))
    kind, config = type(layer).__name__, layer.get_config()
    return Node(name=name, class_name=kind, inputs=inputs, config=config, weights=weights, shapes=shapes, trains=trains)


def _new_input(call: Any, dtype: str | None) -> Any:
    old = tf.nest.flatten(call.outputs)[0]
    return tf_keras.Input(batch_shape=old.shape, dtype=dtype or old.dtype, name=call.layer.name)
