"""Fuses parallel branches that an Add joins into one convolution, as RepVGG does after training.

    before   x -> Conv3x3 -> BN \\
             x -> Conv1x1 -> BN  Add          after   x -> Conv3x3 (with a bias)
             x -> BN             /

    K = sum over the branches of kernel * gain, each put where its window lies within the largest one
    b = sum of beta + (bias - mean) * gain,   gain = gamma / sqrt(variance + epsilon);   the kernel of an identity is 1 in its middle

Computed in float64 and rounded once. Source: Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement.rules.classes import activation_name


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One input of the Add: a convolution, a BatchNorm, both, or none of them (the tensor itself)."""

    convolution: Node | None
    norm: Node | None


@dataclass(frozen=True, kw_only=True)
class Block:
    """Branches of one tensor that an Add joins, and the sizes (rows, columns) of that tensor; None where they are not fixed."""

    branches: tuple[Branch, ...]
    sizes: tuple[int | None, int | None]

    @property
    def largest(self) -> Node:
        """The convolution with the largest window, which the fused one is named after."""
        return max((branch.convolution for branch in self.branches if branch.convolution), key=lambda node: _window(node))

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of the branches."""
        return tuple(node.layer for branch in self.branches for node in (branch.convolution, branch.norm) if node)


def read_block(graph: ModelGraph, add: Node) -> Block | None:
    """The block that an Add joins; None if its branches cannot be one convolution."""
    if add.class_name != "Add" or len(add.inputs) < 2:
        return None
    found = [_branch(graph, tensor) for tensor in add.inputs]
    roots = {root for _, root in found}
    branches = tuple(branch for branch, _ in found)
    convolutions = [branch.convolution for branch in branches if branch.convolution]
    if len(roots) != 1 or not convolutions:
        return None
    shape = graph.shape(next(iter(roots)))
    block = Block(branches=branches, sizes=(shape[1], shape[2]) if len(shape) == 4 else (None, None))
    keys = ("filters", "strides", "groups", "padding", "data_format")
    if any(node.config[key] != convolutions[0].config[key] for node in convolutions for key in keys):
        return None
    strides = tuple(convolutions[0].config["strides"])
    plain = convolutions[0].config["padding"] == "same" or len({_window(node) for node in convolutions}) == 1
    has_identity = any(branch.convolution is None for branch in branches)
    if not plain or (has_identity and strides != (1, 1)) or (strides != (1, 1) and None in block.sizes):
        return None
    return block


def fuse(block: Block, layers: Mapping[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The configuration of the fused Conv2D, and its weights: kernel (rows, columns, in / groups, out) and bias (out,)."""
    largest = layers[block.largest.layer]
    shape = tuple(largest.kernel.shape)
    kernel, bias = np.zeros(shape), np.zeros(shape[-1])
    for branch in block.branches:
        own, offset = _kernel(branch, layers, shape)
        gain, shift = _affine(branch, layers, shape[-1])
        rows, columns = _corner(block, own.shape[:2], shape[:2], tuple(largest.strides))
        kernel[rows : rows + own.shape[0], columns : columns + own.shape[1]] += own * gain
        bias += shift + offset * gain
    config = {**largest.get_config(), "use_bias": True, "bias_initializer": "zeros"}
    return config, [kernel.astype(np.float32), bias.astype(np.float32)]


def _branch(graph: ModelGraph, tensor: TensorRef) -> tuple[Branch, TensorRef]:
    norm, after_norm = _step(graph, tensor, "BatchNormalization")
    convolution, root = _step(graph, after_norm, "Conv2D")
    if convolution is not None and (activation_name(convolution) != "linear" or tuple(convolution.config["dilation_rate"]) != (1, 1)):
        convolution, root = None, after_norm
    return Branch(convolution=convolution, norm=norm), root


def _step(graph: ModelGraph, tensor: TensorRef, class_name: str) -> tuple[Node | None, TensorRef]:
    """The layer of a class that makes the tensor and what it reads, if the tensor is read once; else None and the tensor."""
    node = graph.producer(tensor)
    once = len(graph.consumers(tensor)) == 1 and tensor not in graph.outputs and len(graph.calls(node.layer)) == 1
    return (node, node.inputs[0]) if node.class_name == class_name and once else (None, tensor)


def _kernel(branch: Branch, layers: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray | float]:
    """The kernel of a branch, and its bias; an identity is a 1 x 1 convolution with ones, within its group."""
    if branch.convolution is not None:
        layer = layers[branch.convolution.layer]
        return np.asarray(layer.kernel, np.float64), np.asarray(layer.bias, np.float64) if layer.use_bias else 0.0
    identity = np.zeros((1, 1, *shape[2:]))
    outputs = np.arange(shape[3])
    identity[0, 0, outputs % shape[2], outputs] = 1.0
    return identity, 0.0


def _affine(branch: Branch, layers: Mapping[str, Any], channels: int) -> tuple[np.ndarray, np.ndarray]:
    """What the BatchNorm of a branch multiplies by and adds."""
    if branch.norm is None:
        return np.ones(channels), np.zeros(channels)
    norm = layers[branch.norm.layer]
    gamma = np.asarray(norm.gamma, np.float64) if norm.scale else np.ones(channels)
    beta = np.asarray(norm.beta, np.float64) if norm.center else np.zeros(channels)
    gain = gamma / np.sqrt(np.asarray(norm.moving_variance, np.float64) + norm.epsilon)
    return gain, beta - np.asarray(norm.moving_mean, np.float64) * gain


def _corner(block: Block, own: tuple[int, ...], largest: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Where the window of a branch lies within the largest one: the difference of what "same" pads before the first row and column."""
    rows, columns = (
        _padded_before(size, window, stride) - _padded_before(size, small, stride)
        for size, window, small, stride in zip(block.sizes, largest, own, strides, strict=True)
    )
    return rows, columns


def _padded_before(size: int | None, window: int, stride: int) -> int:
    """What TensorFlow's "same" pads before the first element: half of what is missing, rounded down."""
    if size is None or stride == 1:
        return (window - 1) // 2
    return max((-(-size // stride) - 1) * stride + window - size, 0) // 2


def _window(node: Node) -> tuple[int, ...]:
    return tuple(node.config["kernel_size"])
