"""Reads and sets the state of a quantized model's quantizers by QPoint id, so that no other module needs to know its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfqat import numerics
from tfqat.errors import NotCalibratedError, PlacementError, nearest
from tfqat.models import graph as model_graph
from tfqat.models.graph import TensorRef
from tfqat.placement.plan import QPoint
from tfqat.quantize.quantizers import ActivationQuantizer, Learning, TensorQuantizer
from tfqat.quantize.wrapper import QuantizeWrapper


@dataclass(frozen=True, kw_only=True)
class Handle:
    """One quantizer of a model: its point and variables, the layer that owns them and, for a weight, the variable that it quantizes."""

    point: QPoint
    amax: Any
    enabled: Any
    quantizer: TensorQuantizer
    layer: Any
    weight: Any = None


def handles(qmodel: Any) -> dict[str, Handle]:
    """Every quantizer of a model by QPoint id, in topological order."""
    found: dict[str, Handle] = {}
    for layer in qmodel.layers:
        if isinstance(layer, ActivationQuantizer):
            found[layer.point.id] = Handle(point=layer.point, quantizer=layer.quantizer, layer=layer, **layer.quantizer_weights)
        elif isinstance(layer, QuantizeWrapper):
            for quantizer, weight, state in layer.quantized_weights():
                found[quantizer.point.id] = Handle(point=quantizer.point, quantizer=quantizer, layer=layer, weight=weight, **state)
    if not found:
        raise PlacementError(f"model {qmodel.name!r} has no quantizers: make it with tfqat.quantize_model")
    return found


def point_of(layer: Any) -> QPoint | None:
    """The point of a layer that quantizes an activation; None for any other layer."""
    return layer.point if isinstance(layer, ActivationQuantizer) else None


def set_ranges(qmodel: Any, ranges: Mapping[str, Any]) -> None:
    """Set the amax of points, by id, and enable them.

    Raises:
        PlacementError: an id that the model does not have, or an amax of another shape; nothing is set then.
    """
    known = handles(qmodel)
    for point_id, amax in ranges.items():
        if point_id not in known:
            raise PlacementError(f"model {qmodel.name!r} has no quantization point {point_id!r}{nearest(point_id, known)}")
        if np.shape(amax) != tuple(known[point_id].amax.shape):
            raise PlacementError(
                f"quantization point {point_id!r} of model {qmodel.name!r} takes an amax of shape {tuple(known[point_id].amax.shape)}; "
                f"got {np.shape(amax)}: these ranges are of another placement"
            )
    for point_id, amax in ranges.items():
        known[point_id].amax.assign(np.asarray(amax, np.float32))
        known[point_id].enabled.assign(True)


def set_enabled(qmodel: Any, enabled: bool) -> None:
    """Switch all quantizers on or off; nothing is retraced."""
    for handle in handles(qmodel).values():
        handle.enabled.assign(enabled)


def ranges(qmodel: Any) -> dict[str, np.ndarray]:
    """The amax of every point, by id.

    Raises:
        NotCalibratedError: a quantizer that has no range yet.
    """
    known = handles(qmodel)
    missing = [point_id for point_id, handle in known.items() if not bool(handle.enabled)]
    if missing:
        raise NotCalibratedError(
            f"{len(missing)} of {len(known)} quantizers of model {qmodel.name!r} have no range, the first is {missing[0]!r}: "
            "call tfqat.calibrate(qmodel, dataset) first"
        )
    return {point_id: handle.amax.numpy() for point_id, handle in known.items()}


def non_negative(handles: Mapping[str, Handle]) -> frozenset[str]:
    """The activation points that hold no negative value."""
    return frozenset(name for name, handle in handles.items() if handle.weight is None and handle.point.non_negative)


def is_quantized(model: Any) -> bool:
    """Whether a model has quantizers."""
    return any(isinstance(layer, ActivationQuantizer | QuantizeWrapper) for layer in model.layers)


def set_learning(handle: Handle, learning: Learning) -> None:
    """How a quantizer takes part in the training of functions that are traced from now on; Keras trains its amax if that is learned.

    Keras's lists of a layer's variables are changed, not its order of weights: files stay the same.
    """
    handle.quantizer.learning = learning
    learned = learning.amax in ("lsq", "pact")
    for variable in getattr(handle.amax, "values", (handle.amax,)):  # of a distributed variable each replica's
        variable._trainable = learned  # what a GradientTape watches by itself
    handle.amax._trainable = learned
    layer = handle.layer
    source, target = layer._non_trainable_weights, layer._trainable_weights
    if not learned:
        source, target = target, source
    place = next((number for number, variable in enumerate(source) if variable is handle.amax), None)
    if place is not None:
        del source[place]
        target.insert(0, handle.amax)


def refresh_dynamic(qmodel: Any) -> None:
    """Set the amax of weights whose range is dynamic to their largest magnitudes as they are now."""
    for handle in handles(qmodel).values():
        if handle.quantizer.learning.amax == "dynamic":
            handle.amax.assign(numerics.weight_amax(handle.weight, handle.point.spec))


def codes(handle: Handle, tensor: Any) -> Any:
    """The int8 codes of a tensor that a quantizer quantizes, in its own shape."""
    return numerics.quantize(tensor, numerics.scale_from_amax(handle.amax, handle.point.spec), handle.point.spec)


def weight_codes(handle: Handle) -> tuple[np.ndarray, np.ndarray]:
    """The int8 codes of a quantized weight, in its own shape, and its float32 scales."""
    return codes(handle, handle.weight).numpy(), numerics.scale_from_amax(handle.amax, handle.point.spec).numpy()


def activation_inputs(qmodel: Any) -> dict[str, Any]:
    """The symbolic tensor that enters each activation quantizer, by QPoint id: outputs for a model that observes them."""
    tensors = model_graph.tensors(qmodel)
    nodes = {node.name: node for node in model_graph.read(qmodel).nodes}
    found = {}
    for layer in qmodel.layers:
        if isinstance(layer, ActivationQuantizer):
            source: TensorRef = nodes[layer.name].inputs[0]
            found[layer.point.id] = tensors[source]
    return found
