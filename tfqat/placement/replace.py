"""Replaces blocks of a model by ones that quantize better, before anything is quantized.

replace:
  - {match: "*", with: hard_swish}          x * sigmoid(x) -> x * relu6(x + 3) / 6: no exponential
  - {match: "ReLU", with: relu}             ReLU6 -> ReLU: its bound is then the range that calibration chooses
  - {match: "stage*_add", with: repvgg}     parallel branches -> one convolution, exactly
  - {match: "head_*", with: "blocks.py:my_layer"}     a function that takes a layer and returns the one to put in its place
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tf_keras

from tfqat.errors import DataError, ModelError, NoMatchError
from tfqat.models import activations
from tfqat.models import graph as model_graph
from tfqat.models.dtypes import float32_policy
from tfqat.models.graph import ModelGraph, Node
from tfqat.models.load import canonical
from tfqat.models.names import given_name
from tfqat.placement import repvgg
from tfqat.placement.own_blocks import check_distinct, fitted, replacement_of
from tfqat.placement.rules.classes import activation_name
from tfqat.placement.select import matches, no_match
from tfqat.recipe.references import load_reference
from tfqat.recipe.schema import Replacement

_SWISH = frozenset({"swish", "silu"})


@dataclass(frozen=True, kw_only=True)
class Substitution:
    """What is put in the place of layers.

    Attributes:
        calls: layer name -> what is called instead.
        weights: name of a new layer -> its weights; one that is not listed takes those of the layer it replaces.
        reasons: layer name -> why the replacement does not apply to it, where there is more to say than its class.
    """

    calls: Mapping[str, Callable[..., Any]]
    weights: Mapping[str, list[Any]] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


@float32_policy()
def replace_blocks(model: Any, replacements: Iterable[Replacement], *, base: Path | None = None) -> Any:
    """A new canonical model with the blocks that `replacements` select replaced, one replacement after the other.

    Args:
        model: a functional or Sequential model; it is not changed.
        replacements: which layers, and by what: a built-in (`hard_swish`, `relu`, `repvgg`) or a reference to a function.
        base: the folder that a relative `file.py` is also looked for from; default: the working directory.

    Returns:
        The new model. What `repvgg` fuses is called after its largest convolution, or after the Add where that is an output.

    Raises:
        NoMatchError: a pattern that matches no layer, or none that the replacement applies to.
        ModelError: a function fails, or returns something else than a layer that fits.
        DataError: a function cannot be imported.
    """
    model = canonical(model)
    for number, replacement in enumerate(replacements):
        graph = model_graph.read(model)
        chosen = _chosen(graph, replacement.match, f"replace[{number}].match")
        with _citing(f"replace[{number}].with"):
            found = _substitution(model, graph, chosen, replacement.with_, base or Path.cwd())
            if not found.calls:
                raise NoMatchError(_no_effect(replacement, chosen, found, f"replace[{number}].match"))
            model = canonical(_rebuilt(model, found))  # a function may return a model of several layers
            model_graph.check_float32(model)
    return model


@contextmanager
def _citing(key: str) -> Iterator[None]:
    try:
        yield
    except (DataError, ModelError) as error:
        raise type(error)(f"{key}: {error}") from error


def _no_effect(replacement: Replacement, chosen: list[Node], found: Substitution, where: str) -> str:
    listed = [f"{given_name(name)} ({reason})" for name, reason in found.reasons.items()] or [given_name(node.layer) for node in chosen]
    return (
        f"{where}: pattern {replacement.match!r} matches only layers that {replacement.with_!r} does not apply to: {', '.join(listed[:5])}"
        + (", ..." if len(listed) > 5 else "")
    )


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
    if name not in _BUILT_IN:
        return _by_function(model, graph, chosen, load_reference(name, base=base), name)
    layers = {layer.name: layer for layer in model.layers}
    made = {node.layer: _BUILT_IN[name](graph, node, layers[node.layer]) for node in chosen}
    return Substitution(calls={layer: call for layer, call in made.items() if call is not None})


def _hard_swish(graph: ModelGraph, node: Node, layer: Any) -> Any:
    """swish as a layer, as the activation of a product, or written out as x * sigmoid(x)."""
    hard = tf_keras.layers.Activation(activations.hard_silu, name=node.layer)
    if node.class_name == "Activation" and activation_name(node) in _SWISH:
        return hard
    if "activation" in node.config and activation_name(node) in _SWISH:
        return model_graph.clone_layer(layer, activation=activations.hard_silu)
    if node.class_name == "Multiply" and len(node.inputs) == 2 and len(graph.calls(node.layer)) == 1:
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
    reasons: dict[str, str] = {}
    layers = {layer.name: layer for layer in model.layers}
    for node in chosen:
        block = repvgg.read_block(graph, node.layer)
        if isinstance(block, str):
            reasons.update({node.layer: block} if node.class_name == "Add" else {})
            continue
        config, values = repvgg.fuse(block, layers)
        fused = tf_keras.layers.Conv2D.from_config(config)
        calls.update({name: (lambda tensor, **_: tensor) for name in block.layers})
        calls[node.layer] = lambda tensors, fused=fused, **_: fused(tensors[0])
        weights[config["name"]] = values
    return Substitution(calls=calls, weights=weights, reasons=reasons)


def _by_function(model: Any, graph: ModelGraph, chosen: list[Node], function: Callable[[Any], Any], reference: str) -> Substitution:
    """What a function of the user's own makes of copies of the chosen layers, so that it cannot change the model."""
    copies = {layer.name: layer for layer in model_graph.clone(model).layers}
    made = {
        node.layer: found
        for node in chosen
        if node.class_name != "InputLayer" and (found := replacement_of(copies[node.layer], function, reference)) is not None
    }
    check_distinct(made, reference)
    return Substitution(
        calls={name: fitted(layer, graph.calls(name), reference) for name, layer in made.items()},
        weights={name: layer.get_weights() for name, layer in made.items() if layer.built},
    )


def _rebuilt(model: Any, substitution: Substitution) -> Any:
    old = {layer.name: layer for layer in model.layers}
    rebuilt = model_graph.rebuild(model, replace=lambda layer: substitution.calls.get(layer.name) or model_graph.clone_layer(layer))
    for layer in rebuilt.layers:
        if not layer.weights:
            continue
        values = substitution.weights[layer.name] if layer.name in substitution.weights else old[layer.name].get_weights()
        if [value.shape for value in values] != [tuple(weight.shape) for weight in layer.weights]:
            raise ModelError(
                f"replacement of layer {layer.name!r} has weights of shapes {[tuple(weight.shape) for weight in layer.weights]}, the layer "
                f"had {[value.shape for value in values]}: give it the same, or return a layer that is built and has its weights"
            )
        model_graph.set_weights(layer, values)
    return rebuilt
