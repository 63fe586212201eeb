"""Replaces blocks of a model by ones that quantize better, before anything is quantized.

replace:
  - {match: "*", with: hard_swish}          swish has no bound below, hard swish is what it looks like in integers
  - {match: "ReLU", with: relu}             ReLU6 -> ReLU: its bound is then the range that calibration chooses
  - {match: "stage*_add", with: repvgg}     parallel branches -> one convolution, exactly
  - {match: "head_*", with: "blocks.py:my_layer"}     a function that takes a layer and returns the one to put in its place
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tf_keras

from tfqat.errors import ModelError, NoMatchError
from tfqat.models import activations
from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph, Node
from tfqat.models.load import canonical
from tfqat.models.names import given_name
from tfqat.placement import repvgg
from tfqat.placement.rules.classes import activation_name
from tfqat.placement.select import matches, no_match
from tfqat.recipe.references import load_reference
from tfqat.recipe.schema import Replacement

_SWISH = frozenset({"swish", "silu"})


@dataclass(frozen=True, kw_only=True)
class Substitution:
    """What is put in the place of layers: layer name -> what is called instead, and the weights of new layers by name."""

    calls: Mapping[str, Callable[..., Any]]
    weights: Mapping[str, list[Any]]


def replace_blocks(model: Any, replacements: Iterable[Replacement], *, base: Path | None = None) -> Any:
    """A new canonical model with the blocks that `replacements` select replaced, one replacement after the other.

    Args:
        model: a functional or Sequential model; it is not changed.
        replacements: which layers, and by what: a built-in (`hard_swish`, `relu`, `repvgg`) or a reference to a function.
        base: the folder that a relative `file.py` is also looked for from; default: the working directory.

    Raises:
        NoMatchError: a pattern that matches no layer, or none that the replacement applies to.
        ModelError: a function returns something else than a layer that fits.
    """
    model = canonical(model)
    for number, replacement in enumerate(replacements):
        graph = model_graph.read(model)
        where = f"replace[{number}].match"
        chosen = _chosen(graph, replacement.match, where)
        found = _substitution(model, graph, chosen, replacement.with_, base or Path.cwd())
        if not found.calls:
            raise NoMatchError(
                f"{where}: pattern {replacement.match!r} matches only layers that {replacement.with_!r} does not apply to: "
                + ", ".join(given_name(node.layer) for node in chosen[:5])
                + (", ..." if len(chosen) > 5 else "")
            )
        model = _rebuilt(model, found)
    return model


def _chosen(graph: ModelGraph, pattern: str, where: str) -> list[Node]:
    named = [(name, node.class_name) for node in graph.nodes for name in dict.fromkeys((node.layer, given_name(node.layer)))]
    chosen = [
        node
        for node in graph.nodes
        if node.name == node.layer
        and any(matches(pattern, name=name, class_name=node.class_name) for name in (node.layer, given_name(node.layer)))
    ]
    if not chosen:
        raise NoMatchError(no_match(pattern, named, layers=len(graph.nodes), where=where))
    return chosen


def _substitution(model: Any, graph: ModelGraph, chosen: list[Node], name: str, base: Path) -> Substitution:
    if name == "repvgg":
        return _fused_branches(model, graph, chosen)
    layers = {layer.name: layer for layer in model.layers}
    if name in _BUILT_IN:
        make = _BUILT_IN[name]
    else:
        function = load_reference(name, base=base)

        def make(graph: ModelGraph, node: Node, layer: Any) -> Any:
            return _checked(function(layer), layer, name)

    made = {node.layer: made for node in chosen if (made := make(graph, node, layers.get(node.layer))) is not None}
    return Substitution(calls=made, weights={})


def _hard_swish(graph: ModelGraph, node: Node, layer: Any) -> Any:
    """swish as a layer, as the activation of a product, or written out as x * sigmoid(x)."""
    hard = tf_keras.layers.Activation(activations.hard_silu, name=node.layer)
    if node.class_name == "Activation" and activation_name(node) in _SWISH:
        return hard
    if "activation" in node.config and activation_name(node) in _SWISH:
        return model_graph.clone_layer(layer, activation=activations.hard_silu)
    if node.class_name == "Multiply" and len(node.inputs) == 2:
        for index, other in ((0, 1), (1, 0)):
            gate = graph.producer(node.inputs[other])
            if activation_name(gate) == "sigmoid" and gate.class_name == "Activation" and gate.inputs[0] == node.inputs[index]:
                return lambda tensors, index=index, **_: hard(tensors[index])
    return None


def _relu(graph: ModelGraph, node: Node, layer: Any) -> Any:
    """ReLU6 as a layer, or as the activation of a product, without its bound."""
    if node.class_name == "ReLU" and node.config.get("max_value") == 6.0:
        return model_graph.clone_layer(layer, max_value=None)
    if "activation" in node.config and activation_name(node) == "relu6":
        return model_graph.clone_layer(layer, activation="relu")
    return None


_BUILT_IN: Mapping[str, Callable[[ModelGraph, Node, Any], Any]] = {"hard_swish": _hard_swish, "relu": _relu}
BUILT_IN = (*_BUILT_IN, "repvgg")


def _fused_branches(model: Any, graph: ModelGraph, chosen: Collection[Node]) -> Substitution:
    calls: dict[str, Callable[..., Any]] = {}
    weights: dict[str, list[Any]] = {}
    layers = {layer.name: layer for layer in model.layers}
    for node in chosen:
        block = repvgg.read_block(graph, node)
        if block is None:
            continue
        config, values = repvgg.fuse(block, layers)
        fused = tf_keras.layers.Conv2D.from_config(config)
        calls.update({name: (lambda tensor, **_: tensor) for name in block.layers})
        calls[node.layer] = lambda tensors, fused=fused, **_: fused(tensors[0])
        weights[config["name"]] = values
    return Substitution(calls=calls, weights=weights)


def _rebuilt(model: Any, substitution: Substitution) -> Any:
    old = {layer.name: layer for layer in model.layers}
    ready = {name for name, layer in substitution.calls.items() if getattr(layer, "built", False)}
    rebuilt = model_graph.rebuild(model, replace=lambda layer: substitution.calls.get(layer.name) or model_graph.clone_layer(layer))
    for layer in rebuilt.layers:
        if not layer.weights or layer.name in ready:
            continue
        values = substitution.weights.get(layer.name) or (old[layer.name].get_weights() if layer.name in old else [])
        if [value.shape for value in values] != [tuple(weight.shape) for weight in layer.weights]:
            raise ModelError(
                f"replacement of layer {layer.name!r} has weights of shapes {[tuple(weight.shape) for weight in layer.weights]}, the layer "
                f"had {[value.shape for value in values]}: give it the same, or return a layer that is built and has its weights"
            )
        model_graph.set_weights(layer, values)
    return rebuilt


def _checked(made: Any, layer: Any, reference: str) -> Any:
    if made is None or made is layer:
        return None
    if not isinstance(made, tf_keras.layers.Layer):
        raise ModelError(
            f"replace: {reference} returned {type(made).__module__}.{type(made).__name__} for layer {layer.name!r}; expected a tf_keras "
            "layer, or None to leave it as it is"
        )
    if made.name != layer.name:
        made._name = layer.name  # labels, reports and patterns go by the name
    return made
