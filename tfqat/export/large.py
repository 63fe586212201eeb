"""Float models whose weights do not fit into one message of TensorFlow's or ONNX's format, which holds 2 GB.

Weights of products are handed to the converter as inputs of the model, as quantized ones always are, and put into the graph as constants
afterwards, in the layout that the operation reads.

    before   w (input) -> Transpose -> Conv          after   w transposed (constant) -> Conv
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import tf_keras

from tfqat.errors import ExportError
from tfqat.export.edit import IN_MEMORY, add_initializer
from tfqat.export.weights import through, ways_to_operations
from tfqat.models import graph as model_graph
from tfqat.placement.rules.classes import TRANSPOSED, WEIGHTS
from tfqat.quantize.fed_weight import FedWeight

_LARGE = 4_000_000
"""Bytes from which a weight is handed over apart; smaller ones may be folded into other constants."""


@dataclass(frozen=True, kw_only=True)
class ApartWeight:
    """A float weight that the graph reads from an input, in Keras's layout."""

    layer: str
    input_name: str
    value: np.ndarray


def with_large_weights_apart(model: Any) -> tuple[Any, tuple[ApartWeight, ...]]:
    """A float model that reads its large weights from further inputs, and these weights; the model itself if all fit into one message."""
    if sum(variable.shape.num_elements() * variable.dtype.size for variable in model.weights) <= IN_MEMORY:
        return model, ()
    apart = {
        layer.name: (_attribute(layer), tf_keras.Input(batch_shape=weight.shape, name=f"tfqat_weight_{number}"), weight)
        for number, (layer, weight) in enumerate(_large(model))
    }

    def replace(layer: Any) -> Any:
        copy = model_graph.clone_layer(layer)
        if layer.name not in apart:
            return copy
        attribute, given, _ = apart[layer.name]
        reading = FedWeight(copy, attribute)
        return lambda tensor, **_: reading([tensor, given])

    copy = model_graph.rebuild(model, replace=replace, extra_inputs=[given for _, given, _ in apart.values()])
    model_graph.copy_weights(model, copy)
    return copy, tuple(ApartWeight(layer=name, input_name=given.name, value=weight.numpy()) for name, (_, given, weight) in apart.items())


def put_back(graph: ir.Graph, weights: tuple[ApartWeight, ...]) -> None:
    """Put weights that were handed over apart into the graph as constants; their inputs and changes of layout go.

    Raises:
        ExportError: a weight goes into another operation than a convolution or a matrix product.
    """
    for weight in weights:
        source = next((value for value in graph.inputs if value.name == weight.input_name), None)
        if source is None:
            raise ExportError(f"layer {weight.layer!r}: the ONNX graph lost its weight; is the layer part of the outputs?")
        between: list[ir.Node] = []
        made: dict[tuple[int, ...], ir.Value] = {}
        for layout, (operation, position) in ways_to_operations(weight.layer, source):
            key = tuple(id(node) for node in layout)
            if key not in made:
                made[key] = add_initializer(graph, f"{weight.layer}/weight{len(made) or ''}", through(layout, weight.value))
            operation.replace_input_with(position, made[key])
            between += [node for node in layout if node not in between]
        graph.remove(list(reversed(between)), safe=True)
        graph.inputs.remove(source)


def _large(model: Any) -> list[tuple[Any, Any]]:
    found = []
    for layer in model.layers:
        attribute = _attribute(layer)
        weight = getattr(layer, attribute, None) if attribute else None
        if weight is not None and weight.shape.num_elements() * weight.dtype.size >= _LARGE:
            found.append((layer, weight))
    return found


def _attribute(layer: Any) -> str:
    known: Mapping[str, Any] = {**WEIGHTS, **TRANSPOSED}
    return known[type(layer).__name__].attribute if type(layer).__name__ in known else ""
