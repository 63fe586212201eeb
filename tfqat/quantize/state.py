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
from tfqat.quantize.quantizers import ActivationQuantizer
from tfqat.quantize.wrapper import QuantizeWrapper


@dataclass(frozen=True, kw_only=True)
class Handle:
    """One quantizer of a model: its point, its variables and, for a weight, the variable that it quantizes."""

    point: QPoint
    amax: Any
    enabled: Any
    weight: Any = None


def handles(qmodel: Any) -> dict[str, Handle]:
    """Every quantizer of a model by QPoint id, in topological order."""
    found: dict[str, Handle] = {}
    for layer in qmodel.layers:
        if isinstance(layer, ActivationQuantizer):
            found[layer.point.id] = Handle(
                point=layer.point, amax=layer.quantizer_weights["amax"], enabled=layer.quantizer_weights["enabled"]
            )
        elif isinstance(layer, QuantizeWrapper):
            for quantizer, weight, state in layer.quantized_weights():
                found[quantizer.point.id] = Handle(point=quantizer.point, amax=state["amax"], enabled=state["enabled"], weight=weight)
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


def weight_codes(handle: Handle) -> tuple[np.ndarray, np.ndarray]:
    """The int8 codes of a quantized weight, in its own shape, and its float32 scales."""
    scale = numerics.scale_from_amax(handle.amax, handle.point.spec)
    return numerics.quantize(handle.weight, scale, handle.point.spec).numpy(), scale.numpy()


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
