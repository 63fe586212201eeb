"""Folds each BatchNorm of a quantized model into the weight before it: scales and a bias change, the magnitudes of all codes stay.

    before   y = gamma * (W x + b - mean) / sqrt(var + eps) + beta,   W = code * s
    after    y = W' x + b',                                           W' = code' * s'
             g = gamma / sqrt(var + eps);  s' = s * |g|;  code' = code * sign(g);  b' = beta + (b - mean) * g

Codes can be negated because weights use [-hi, hi]. A channel with g = 0 gets codes 0 and the smallest scale. Computed in float64 and
rounded once. Source: Jacob et al. 2018, section 3.2, for scales instead of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfqat.export.fold_forward import fold_in_front, obstacle_in_front
from tfqat.models import graph as model_graph
from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.numerics import TINY
from tfqat.placement.rules import WEIGHTS
from tfqat.quantize import state
from tfqat.quantize.state import Handle


@dataclass(frozen=True, kw_only=True)
class BatchNormResult:
    """Whether the BatchNorm layer `node` was folded; if not, why."""

    node: str
    folded: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Codes:
    """The int8 codes of a weight in Keras's layout, and its float32 scales: shape () per tensor, else the sizes of `axes`."""

    codes: np.ndarray
    scale: np.ndarray
    axes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Folded:
    """What folding did: the codes of every quantized weight by layer, the new biases by layer, and each BatchNorm.

    `kernels` are those of float layers that have taken in the BatchNorm before them.
    """

    codes: Mapping[str, Codes]
    biases: Mapping[str, np.ndarray]
    batch_norms: tuple[BatchNormResult, ...]
    kernels: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def dropped(self) -> frozenset[str]:
        """The BatchNorm layers that are folded."""
        return frozenset(result.node for result in self.batch_norms if result.folded)


def fold_batch_norms(qmodel: Any, *, enabled: bool = True) -> Folded:
    """Fold every BatchNorm that comes right after a quantized product and is the only reader of its output, or before a float one.

    Args:
        qmodel: a calibrated quantized model; it is not changed.
        enabled: False folds none.
    """
    handles = {handle.point.source: handle for handle in state.handles(qmodel).values() if handle.weight is not None}
    folding = _Folding(model_graph.read(qmodel), {layer.name: layer for layer in qmodel.layers}, handles)
    norms = [node for node in folding.graph.nodes if node.class_name == "BatchNormalization" and node.name == node.layer]
    results = [folding.fold(norm) if enabled else _kept(norm, "folding is switched off") for norm in norms]
    return Folded(codes=folding.codes, biases=folding.biases, kernels=folding.kernels, batch_norms=tuple(results))


class _Folding:
    """The new numbers of layers, as one BatchNorm after another is folded."""

    def __init__(self, graph: ModelGraph, layers: Mapping[str, Any], handles: Mapping[str, Handle]) -> None:
        self.graph, self.layers, self.handles = graph, layers, handles
        self.codes = {layer: _codes(handle) for layer, handle in handles.items()}
        self.biases: dict[str, np.ndarray] = {}
        self.kernels: dict[str, np.ndarray] = {}

    def fold(self, norm: Node) -> BatchNormResult:
        """Fold a BatchNorm into the product before it, or else into the one behind it, or keep it."""
        source, layer = self.graph.producer(norm.inputs[0]).layer, self.layers[norm.layer]
        obstacle = _obstacle(self.graph, norm, self.layers, self.handles)
        if not obstacle:
            self.codes[source], self.biases[source] = _fold(self.codes[source], self.layers[source].layer, layer)
            return BatchNormResult(node=norm.layer, folded=True, reason=f"folded into the scales of {source}")
        behind = obstacle_in_front(self.graph, norm, self.layers) if _normalizes_channels(layer) else None
        if behind is None or behind:
            return _kept(norm, f"{obstacle}, and {behind}" if behind else obstacle)
        reader = self.graph.consumers(TensorRef(layer=norm.name))[0][0].layer
        folded = fold_in_front(layer, self.layers[reader])
        self.kernels[reader], self.biases[reader] = folded.kernel, folded.bias
        return BatchNormResult(node=norm.layer, folded=True, reason=f"folded into the weight of {reader}")


def _kept(norm: Node, reason: str) -> BatchNormResult:
    return BatchNormResult(node=norm.layer, folded=False, reason=reason)


def _codes(handle: Handle) -> Codes:
    codes, scale = state.weight_codes(handle)
    return Codes(codes=codes, scale=scale, axes=handle.point.spec.axes)


def _obstacle(graph: ModelGraph, norm: Node, layers: Mapping[str, Any], handles: Mapping[str, Handle]) -> str:
    """Why a BatchNorm cannot be folded; empty if it can."""
    source = graph.producer(norm.inputs[0])
    if source.layer not in handles:
        return f"{source.layer} before it has no quantized weight"
    inner = layers[source.layer].layer
    if type(inner).__name__ not in WEIGHTS or getattr(inner.activation, "__name__", "linear") != "linear":
        return f"{source.layer} before it is no product without activation"
    if any(call.trains for call in graph.calls(norm.layer)):
        return "it is called with training=True"
    if not _normalizes_channels(layers[norm.layer]):
        return "it normalizes another axis than the channels"
    for call in graph.calls(source.layer):
        output = TensorRef(layer=call.name)
        if [reader.layer for reader, _ in graph.consumers(output)] != [norm.layer] or output in graph.outputs:
            return f"the output of {source.layer} is read elsewhere too"
    if len(graph.calls(norm.layer)) != len(graph.calls(source.layer)):
        return f"it normalizes other tensors than the output of {source.layer} too"
    return ""


def _normalizes_channels(norm: Any) -> bool:
    axes = [norm.axis] if isinstance(norm.axis, int) else list(norm.axis)
    return axes in ([-1], [norm.input_spec.ndim - 1])


def _fold(weight: Codes, inner: Any, norm: Any) -> tuple[Codes, np.ndarray]:
    axes = WEIGHTS[type(inner).__name__].channel_axes
    sizes = tuple(weight.codes.shape[axis] for axis in axes)
    channels = int(np.prod(sizes))
    scale = np.broadcast_to(weight.scale, sizes).reshape(-1).astype(np.float64)
    mean, variance = (np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance))
    gamma = np.asarray(norm.gamma, np.float64) if norm.scale else np.ones(channels)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros(channels)
    bias = np.asarray(inner.bias, np.float64) if inner.use_bias else np.zeros(channels)
    gain = gamma / np.sqrt(variance + norm.epsilon)
    broadcast = [size if axis in axes else 1 for axis, size in enumerate(weight.codes.shape)]
    signs = np.sign(gain).astype(np.int8).reshape(broadcast)
    folded = np.maximum(scale * np.abs(gain), TINY).astype(np.float32).reshape(sizes)
    return Codes(codes=weight.codes * signs, scale=folded, axes=axes), (beta + (bias - mean) * gain).astype(np.float32)
