"""Folds a BatchNorm into a float convolution or Dense layer behind it, where that is exact.

    before   y = W * (g x + h) + b            g = gamma / sqrt(var + eps),  h = beta - mean g
    after    y = (W g) * x + b + sum(W h)

Padding with zeros comes between the two, and h is not padded: with padding `same` the border would change, so only `valid` is folded.
A layer behind it that is quantized reads BatchNorm's output by int8 codes, which are trained as they are: that BatchNorm stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement.rules import WEIGHTS
from tfqat.quantize.quantizers import ActivationQuantizer


@dataclass(frozen=True, kw_only=True)
class FloatWeights:
    """The kernel and the bias of a float layer that has taken a BatchNorm in, in Keras's layout."""

    kernel: np.ndarray
    bias: np.ndarray


def obstacle_in_front(graph: ModelGraph, norm: Node, layers: Mapping[str, Any]) -> str | None:
    """Why a BatchNorm cannot be folded into the layer behind it; empty if it can, None if there is no one layer with a weight."""
    output = TensorRef(layer=norm.name)
    readers = [reader for reader, _ in graph.consumers(output)]
    if len(readers) != 1 or output in graph.outputs or len(graph.calls(norm.layer)) != 1:
        return None
    reader = readers[0]
    if isinstance(layers[reader.layer], ActivationQuantizer):
        return "its output is read as int8 codes"
    if reader.class_name not in WEIGHTS or len(graph.calls(reader.layer)) != 1 or norm.trains:
        return None
    if getattr(layers[reader.layer], "padding", "valid") != "valid":
        return f"{reader.layer} behind it pads with zeros, which BatchNorm would shift"
    return ""


def fold_in_front(norm: Any, layer: Any) -> FloatWeights:
    """The weights of a layer that does what BatchNorm and the layer do.

    Args:
        norm: the BatchNormalization layer, over the last axis.
        layer: Conv, DepthwiseConv or Dense, without padding.
    """
    kernel, *bias = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    mean, variance = (np.asarray(value, np.float64) for value in (norm.moving_mean, norm.moving_variance))
    gain = (np.asarray(norm.gamma, np.float64) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    shift = (np.asarray(norm.beta, np.float64) if norm.center else 0.0) - mean * gain
    gains, shifts = (_per_weight(vector, kernel, layer) for vector in (gain, shift))
    added = (kernel * shifts).sum(axis=tuple(range(kernel.ndim - 2)))  # (in, out), or (in, multiplier)
    added = added.reshape(-1) if WEIGHTS[type(layer).__name__].attribute == "depthwise_kernel" else added.sum(axis=0)
    return FloatWeights(kernel=(kernel * gains).astype(np.float32), bias=((bias[0] if bias else 0.0) + added).astype(np.float32))


def _per_weight(vector: np.ndarray, kernel: np.ndarray, layer: Any) -> np.ndarray:
    """A number for each input channel, as (in, 1) or, where groups of outputs read other inputs, (in of a group, out)."""
    groups = getattr(layer, "groups", 1)
    if WEIGHTS[type(layer).__name__].attribute == "depthwise_kernel" or groups == 1:
        return vector[:, None]
    return np.repeat(vector.reshape(groups, -1).T, kernel.shape[-1] // groups, axis=1)
