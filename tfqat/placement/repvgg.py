"""Fuses parallel branches that an Add joins into one convolution, as RepVGG does after training.

    before   x -> Conv3x3 -> BN \\
             x -> Conv1x1 -> BN  Add          after   x -> Conv3x3 (with a bias)
             x -> BN             /

    K = sum over the branches of kernel * gain, each put where its window lies within the one that encloses all of them
    b = sum of beta + (bias - mean) * gain,   gain = gamma / sqrt(variance + epsilon);   the kernel of an identity is 1 in its middle

Computed in float64 and rounded once. Source: Ding et al. 2021, "RepVGG: Making VGG-style ConvNets Great Again", section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfqat.models.graph import ModelGraph, Node, TensorRef
from tfqat.placement.rules.classes import activation_name

NOT_PARALLEL = (
    "its inputs are not all made of one tensor by a Conv2D without activation and dilation, a BatchNormalization of the last axis, "
    "or both, that nothing else reads"
)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One input of the Add: a convolution, a BatchNorm, both, or none of them (the tensor itself)."""

    convolution: Node | None
    norm: Node | None

    @property
    def layers(self) -> tuple[str, ...]:
        """Its layers, the convolution first."""
        return tuple(node.layer for node in (self.convolution, self.norm) if node)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Branches of one tensor that an Add joins, and the sizes (rows, columns) of that tensor; None where they are not fixed.

    `name` is that of the fused layer: of the convolution with the largest window, but of the Add where that is an output of the model,
    since losses and metrics go by the names of outputs.
    """

    name: str
    branches: tuple[Branch, ...]
    sizes: tuple[int | None, int | None]

    @property
    def largest(self) -> Node:
        """The convolution with the largest window, whose configuration the fused one has."""
        return _largest(self.branches)

    @property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The layers of each branch."""
        return tuple(branch.layers for branch in self.branches)

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers of all branches."""
        return tuple(layer for branch in self.names for layer in branch)


def read_block(graph: ModelGraph, layer: str) -> Block | str:
    """The block that the Add `layer` joins, or why its branches cannot be one convolution; a block may be called several times."""
    calls = graph.calls(layer)
    blocks = [_read_call(graph, add) for add in calls]
    for found in blocks:
        if isinstance(found, str):
            return found
    first, *others = [found for found in blocks if isinstance(found, Block)]
    if any((other.sizes, other.names) != (first.sizes, first.names) for other in others):
        return "its calls join different branches"
    shared = [name for name in first.layers if len(graph.calls(name)) != len(calls)]
    return f"{shared[0]!r} is called elsewhere too" if shared else first


def _read_call(graph: ModelGraph, add: Node) -> Block | str:
    if add.class_name != "Add":
        return "no Add"
    found = [_branch(graph, tensor) for tensor in add.inputs]
    branches = tuple(branch for branch, _ in found)
    convolutions = [branch.convolution for branch in branches if branch.convolution]
    if len({root for _, root in found}) != 1 or not convolutions:
        return NOT_PARALLEL
    output = TensorRef(layer=add.name)
    if any(graph.shape(tensor) != graph.shape(output) for tensor in add.inputs):
        return "its inputs have different shapes"
    shape = graph.shape(found[0][1])
    sizes = (shape[1], shape[2]) if len(shape) == 4 else (None, None)
    name = add.layer if any(TensorRef(layer=call.name) in graph.outputs for call in graph.calls(add.layer)) else _largest(branches).layer
    return _obstacle(convolutions, sizes, len(branches)) or Block(name=name, branches=branches, sizes=sizes)


def _obstacle(convolutions: list[Node], sizes: tuple[int | None, int | None], branches: int) -> str:
    """Why convolutions of one tensor, and identities where there are more branches, cannot be one; empty if they can."""
    config = convolutions[0].config
    for key in ("strides", "groups", "data_format"):
        if any(node.config[key] != config[key] for node in convolutions):
            return f"its convolutions differ in {key}"
    paddings = {_padding(node) for node in convolutions}
    if len(paddings) > 1:
        return "its convolutions differ in padding"
    if config["data_format"] != "channels_last":
        return "its convolutions have their channels first"
    if paddings == {"valid"} and len({_window(node) for node in convolutions}) > 1:
        return "its convolutions have different windows without padding"
    if tuple(config["strides"]) == (1, 1):
        return ""
    if len(convolutions) < branches:
        return "an identity stands beside convolutions with strides"
    return "the padding of its convolutions with strides depends on sizes that are not fixed" if None in sizes else ""


def fuse(block: Block, layers: Mapping[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The configuration of the fused Conv2D, and its weights: kernel (rows, columns, in / groups, out) and bias (out,)."""
    largest = layers[block.largest.layer]
    windows = [_window(branch.convolution) for branch in block.branches if branch.convolution]
    enclosing = tuple(max(sizes) for sizes in zip(*windows, strict=True))
    shape = (*enclosing, *largest.kernel.shape[2:])
    kernel, bias = np.zeros(shape), np.zeros(shape[-1])
    for branch in block.branches:
        own, offset = _kernel(branch, layers, shape)
        gain, shift = _affine(branch, layers, shape[-1])
        rows, columns = _corner(block, own.shape[:2], enclosing, tuple(largest.strides))
        kernel[rows : rows + own.shape[0], columns : columns + own.shape[1]] += own * gain
        bias += shift + offset * gain
    config = {**largest.get_config(), "name": block.name, "kernel_size": enclosing, "use_bias": True, "bias_initializer": "zeros"}
    return config, [kernel.astype(np.float32), bias.astype(np.float32)]


def _branch(graph: ModelGraph, tensor: TensorRef) -> tuple[Branch, TensorRef]:
    norm, after_norm = _step(graph, tensor, "BatchNormalization")
    if norm is not None and list(np.atleast_1d(norm.config["axis"])) not in ([-1], [len(graph.shape(tensor)) - 1]):
        return Branch(convolution=None, norm=None), tensor
    convolution, root = _step(graph, after_norm, "Conv2D")
    if convolution is not None and (activation_name(convolution) != "linear" or tuple(convolution.config["dilation_rate"]) != (1, 1)):
        convolution, root = None, after_norm
    return Branch(convolution=convolution, norm=norm), root


def _step(graph: ModelGraph, tensor: TensorRef, class_name: str) -> tuple[Node | None, TensorRef]:
    """The layer of a class that makes the tensor and what it reads, if the tensor is read once; else None and the tensor."""
    node = graph.producer(tensor)
    once = len(graph.consumers(tensor)) == 1 and tensor not in graph.outputs and not node.trains
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


def _corner(block: Block, own: tuple[int, ...], enclosing: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Where the window of a branch lies within the enclosing one: the difference of what "same" pads before the first row and column."""
    rows, columns = (
        _padded_before(size, window, stride) - _padded_before(size, small, stride)
        for size, window, small, stride in zip(block.sizes, enclosing, own, strides, strict=True)
    )
    return rows, columns


def _padded_before(size: int | None, window: int, stride: int) -> int:
    """What TensorFlow's "same" pads before the first element: half of what is missing, rounded down."""
    if size is None or stride == 1:
        return (window - 1) // 2
    return max((-(-size // stride) - 1) * stride + window - size, 0) // 2


def _window(node: Node) -> tuple[int, ...]:
    return tuple(node.config["kernel_size"])


def _padding(node: Node) -> str:
    """A window of one element needs no padding, so it may be written with "valid", Keras's default."""
    return "same" if _window(node) == (1, 1) else str(node.config["padding"])


def _largest(branches: tuple[Branch, ...]) -> Node:
    return max((branch.convolution for branch in branches if branch.convolution), key=lambda node: math.prod(_window(node)))
