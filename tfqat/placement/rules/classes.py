"""What the rules know of layer classes: where a weight is and which of its axes index output channels, and which layers do what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tfqat.models.graph import Node


@dataclass(frozen=True, kw_only=True)
class Weight:
    """Where a layer class keeps its weight, and the axes of that weight that index output channels; without any it has one scale."""

    attribute: str
    channel_axes: tuple[int, ...] = ()


WEIGHTS = {
    "Conv1D": Weight(attribute="kernel", channel_axes=(2,)),
    "Conv2D": Weight(attribute="kernel", channel_axes=(3,)),
    "Conv3D": Weight(attribute="kernel", channel_axes=(4,)),
    "DepthwiseConv1D": Weight(attribute="depthwise_kernel", channel_axes=(1, 2)),
    "DepthwiseConv2D": Weight(attribute="depthwise_kernel", channel_axes=(2, 3)),
    "Dense": Weight(attribute="kernel", channel_axes=(1,)),
}
# TensorRT for RTX 1.7.1 never runs these in INT8, and per-channel scales of their weights go along the wrong axis for it.
TRANSPOSED = {name: Weight(attribute="kernel") for name in ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")}
CONVOLUTIONS = frozenset(name for name in WEIGHTS if "Conv" in name)
PRODUCTS = frozenset({"MatMul"})  # of two activations

_DIMENSIONS = ("1D", "2D", "3D")
AVERAGE_POOLS = frozenset(f"{kind}{size}" for kind in ("AveragePooling", "GlobalAveragePooling") for size in _DIMENSIONS)
MAX_POOLS = frozenset(f"{kind}{size}" for kind in ("MaxPooling", "GlobalMaxPooling") for size in _DIMENSIONS)
PADDINGS = frozenset(f"ZeroPadding{size}" for size in _DIMENSIONS)
UPSAMPLINGS = frozenset(f"UpSampling{size}" for size in _DIMENSIONS)
# These leave the values as they are at inference, so a tensor before and after them is the same to a quantizer.
INFERENCE_IDENTITIES = frozenset(
    {
        *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "AlphaDropout", "StochasticDepth"),
        *("GaussianDropout", "GaussianNoise", "ActivityRegularization"),
    }
)
RESHAPES = frozenset({"Flatten", "Reshape", "Permute", "RepeatVector", *(f"Cropping{size}" for size in _DIMENSIONS)})
ACTIVATIONS = frozenset({"ReLU", "ChannelReLU", "Activation", "LeakyReLU", "PReLU", "Softmax", "ELU", "ThresholdedReLU"})
# Elementwise with constants, so an activation that is written out in several steps is made of these.
POINTWISE = ACTIVATIONS | {"Rescaling"}
# What may stand between a convolution and the Add that it fuses with.
BEFORE_ADD = ACTIVATIONS | PADDINGS | INFERENCE_IDENTITIES | {"BatchNormalization", "LayerScale", "Rescaling"}
NORMALIZATIONS = frozenset({"LayerNormalization", "GroupNormalization", "UnitNormalization", "SpectralNormalization", "Normalization"})


def commutes(node: Node) -> bool:
    """Whether quantizing before the layer gives the same codes as quantizing after it: it only moves values, or takes the largest."""
    if node.class_name in UPSAMPLINGS:
        return node.config.get("interpolation", "nearest") == "nearest"
    return node.class_name in INFERENCE_IDENTITIES | RESHAPES | MAX_POOLS | PADDINGS


def activation_name(node: Node) -> str:
    """The activation function of a layer: `relu`, `hard_silu` ...; `linear` where it has none."""
    if node.class_name == "Softmax":
        return "softmax"
    if node.class_name == "ChannelReLU":  # ONNX: Relu, Min; TensorRT for RTX computes both in the kernel behind the product
        return "relu"
    if node.class_name in ("ReLU", "LeakyReLU", "PReLU", "ELU", "ThresholdedReLU"):
        return node.class_name.lower()
    return function_name(node.config.get("activation"))


def function_name(activation: Any) -> str:
    """The name of a serialized activation: a string, or Keras's mapping for a function that is registered."""
    while isinstance(activation, dict):
        activation = activation.get("config", {})
        activation = activation.get("name") or activation.get("activation") if isinstance(activation, dict) else activation
    return str(activation or "linear").rpartition(">")[2]
