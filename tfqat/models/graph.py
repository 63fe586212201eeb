"""Reads and rebuilds the graph of a functional tf_keras model: the one place that touches private Keras (checked on tf-keras 2.21.0).

`read` turns a model into plain data (`ModelGraph`) that placement rules can match without TensorFlow. `rebuild` makes a new model
from an old one, with layers replaced and new layers put on chosen edges; the old model is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
import tf_keras

from tfqat.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class TensorRef:
    """Output number `index` of layer `layer`."""

    layer: str
    index: int = 0


@dataclass(frozen=True, kw_only=True)
class Node:
    """One layer of a model and the tensors that it reads; `weights` gives the shape of each weight by its attribute name."""

    name: str
    class_name: str
    inputs: tuple[TensorRef, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelGraph:
    """The layers of a model in topological order, and the tensors it returns."""

    nodes: tuple[Node, ...]
    outputs: tuple[TensorRef, ...]

    def node(self, name: str) -> Node:
        """The layer called `name`; KeyError if there is none."""
        return self._by_name[name]

    def consumers(self, tensor: TensorRef) -> tuple[tuple[Node, int], ...]:
        """Every (layer, input index) that reads `tensor`."""
        return tuple((node, index) for node in self.nodes for index, read in enumerate(node.inputs) if read == tensor)

    @property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}


EdgeLayers = Mapping[tuple[str, int], Any]
"""(layer name, input index) -> the layer to put on that edge; edges that share a layer object share its output."""


def read(model: Any) -> ModelGraph:
    """The graph of a flat functional model.

    Raises:
        ModelError: a subclassed, unbuilt or nested model, or a layer that is called more than once.
    """
    _check_functional(model)
    nodes = tuple(_read_node(call) for call in _calls(model))
    outputs = tuple(_reference(tensor) for tensor in tf.nest.flatten(model.outputs))
    return ModelGraph(nodes=nodes, outputs=outputs)


def rebuild(
    model: Any,
    *,
    replace: Callable[[Any], Any] = lambda layer: clone_layer(layer),
    on_edges: EdgeLayers | None = None,
    dtype: str | None = None,
    extra_inputs: Sequence[Any] = (),
) -> Any:
    """A new functional model with the layers that `replace` returns and the layers of `on_edges` on their edges.

        before   a ---------> conv          after, on_edges={("conv", 0): q}   a -> q -> conv

    Args:
        model: a flat functional tf_keras model; it is not changed.
        replace: old layer -> new layer, which must not be the old one. Default: a clone without weights.
        on_edges: layers to insert.
        dtype: of the new model's inputs; default: as they were.
        extra_inputs: tensors that layers of `replace` read beside their own; they follow the model's inputs, which are then a list.

    Returns:
        The new model. Weights are not copied: `replace` returns what the caller wants, `copy_weights` does the rest.
    """
    on_edges = on_edges or {}
    made: dict[TensorRef, Any] = {}
    passed: dict[tuple[int, TensorRef], Any] = {}

    def feed(layer: Any, index: int, source: TensorRef) -> Any:
        inserted = on_edges.get((layer.name, index))
        if inserted is None:
            return made[source]
        key = (id(inserted), source)
        if key not in passed:
            passed[key] = inserted(made[source])
        return passed[key]

    for call in _calls(model):
        layer = call.layer
        if isinstance(layer, tf_keras.layers.InputLayer):
            made[TensorRef(layer=layer.name)] = _new_input(call, dtype)
            continue
        sources = [_reference(tensor) for tensor in call.keras_inputs]
        fed = iter([feed(layer, index, source) for index, source in enumerate(sources)])
        arguments, keywords = tf.nest.map_structure(
            lambda value, fed=fed: next(fed) if hasattr(value, "_keras_history") else value, (call.call_args, call.call_kwargs)
        )
        outputs = tf.nest.flatten(replace(layer)(*arguments, **keywords))
        made.update({TensorRef(layer=layer.name, index=index): output for index, output in enumerate(outputs)})
    inputs, outputs = tf.nest.map_structure(lambda tensor: made[_reference(tensor)], (model._nested_inputs, model._nested_outputs))
    if extra_inputs:
        inputs = [*tf.nest.flatten(inputs), *extra_inputs]
    return tf_keras.Model(inputs, outputs, name=model.name)


def clone_layer(layer: Any, **changes: Any) -> Any:
    """A new, unbuilt layer of the same class and configuration, with `changes` to the configuration."""
    return layer.__class__.from_config({**layer.get_config(), **changes})


def copy_weights(source: Any, target: Any) -> None:
    """Set the weights of every layer of `target` from the layer of the same name in `source`."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


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
    return {_reference(tensor): tensor for call in _calls(model) for tensor in tf.nest.flatten(call.outputs)}


def _float64_layer(layer: Any) -> Any:
    return layer.__class__.from_config(_with_dtype(layer.get_config(), "float64"))


def _with_dtype(config: Any, dtype: str) -> Any:
    """A layer configuration with every float32 `dtype` in it, nested ones too, replaced."""
    if isinstance(config, dict):
        return {key: dtype if key == "dtype" and value == "float32" else _with_dtype(value, dtype) for key, value in config.items()}
    return config


def check_float32(model: Any) -> None:
    """Make sure that every layer computes in float32.

    Raises:
        ModelError: a layer computes in another type, by mixed precision for example; or `model` is not a functional model.
    """
    _check_functional(model)
    other = [layer for layer in model.layers if _computes_in_another_float(layer)]
    if other:
        raise ModelError(
            f"layer {other[0].name!r} of model {model.name!r} computes in {other[0].compute_dtype}; expected float32. A saved model keeps "
            'its types, so build it again, after tf_keras.mixed_precision.set_global_policy("float32") and without another dtype, and copy '
            "the weights: built.set_weights(model.get_weights())"
        )


def _computes_in_another_float(layer: Any) -> bool:
    """Whether a layer computes in float16, bfloat16 or float64; an operator (`x + y`) computes in what it reads, whatever its policy."""
    if isinstance(layer, tf_keras.layers.InputLayer) or not layer._autocast:
        return False
    return bool(tf.as_dtype(layer.compute_dtype).is_floating) and layer.compute_dtype != "float32"


def _check_functional(model: Any) -> None:
    if not isinstance(model, tf_keras.Model):
        found = f"{type(model).__module__}.{type(model).__name__}"
        if found.startswith("keras."):
            raise ModelError(
                f"expected a tf_keras.Model, got {found}, a model of Keras 3, which this version cannot read: build it with tf_keras"
            )
        raise ModelError(f"expected a tf_keras.Model, got {found}; tfqat.load_model makes one from a file")
    if isinstance(model, tf_keras.Sequential) and not model.built:
        raise ModelError(f"model {model.name!r} is a Sequential without an input shape: start it with tf_keras.Input(shape)")
    if not getattr(model, "_is_graph_network", False):
        raise ModelError(
            f"model {model.name!r} ({type(model).__name__}) is a subclassed model: its layers are called in Python code that tfqat cannot "
            "read. Rebuild it with the functional API, tf_keras.Model(inputs, outputs), or Sequential with an input shape"
        )


def _calls(model: Any) -> Iterator[Any]:
    """The Keras nodes of a model, one per layer, in topological order."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for call in model._nodes_by_depth[depth]:
            _check_layer(call, model)
            yield call


def _check_layer(call: Any, model: Any) -> None:
    layer = call.layer
    if isinstance(layer, tf_keras.Model):
        raise ModelError(
            f"layer {layer.name!r} is a model inside model {model.name!r}; nested models are not supported yet: build one flat model"
        )
    calls = [node for nodes in model._nodes_by_depth.values() for node in nodes if node.layer is layer]
    if len(calls) > 1:
        raise ModelError(
            f"layer {layer.name!r} is called {len(calls)} times; shared layers are not supported yet: give each call its own layer"
        )


def _read_node(call: Any) -> Node:
    layer = call.layer
    inputs = () if isinstance(layer, tf_keras.layers.InputLayer) else tuple(_reference(tensor) for tensor in call.keras_inputs)
    weights = {name: tuple(value.shape) for name, value in vars(layer).items() if isinstance(value, tf.Variable)}
    return Node(name=layer.name, class_name=type(layer).__name__, inputs=inputs, config=layer.get_config(), weights=weights)


def _reference(tensor: Any) -> TensorRef:
    layer, _, index = tensor._keras_history
    return TensorRef(layer=layer.name, index=index)


def _new_input(call: Any, dtype: str | None) -> Any:
    old = tf.nest.flatten(call.outputs)[0]
    return tf_keras.Input(batch_shape=old.shape, dtype=dtype or old.dtype, name=call.layer.name)
