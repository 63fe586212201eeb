"""EfficientNet-Lite0 (Tan and Liu 2020) in tf_keras, with the ImageNet weights of the package that `weights.py` reads.

Inverted residuals as in MobileNetV2, but without squeeze-and-excite and with ReLU6 in the place of swish: an EfficientNet made for int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tf_keras as keras
from tf_keras import layers

from tfqat.recipe.references import load_reference

# By path: another example's module may go by the same name.
load_weights = load_reference(f"{Path(__file__).resolve().with_name('weights.py')}:load", base=Path(__file__).parent)

IMAGE_SIZE = 224
CLASSES = 1000
# (repeats, kernel, stride of the first, expansion, output channels) of each stage. The paper's B0; Lite0 scales nothing.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
BN_EPSILON = 1e-3


def build() -> keras.Model:
    """The trained network: images (batch, 224, 224, 3), normalised as `(pixel - 127) / 128` -> logits (batch, 1000).

    Raises:
        ModelError: the package with the weights is not installed.
    """
    weights = load_weights()
    model = network()
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(_of_layer(layer, weights))
    return model


def network() -> keras.Model:
    """The network with random weights."""
    image = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), name="image")
    x = _conv_bn(image, layers.Conv2D(32, 3, 2, "same", use_bias=False, name="stem_conv"))
    for number, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES, start=1):
        for repeat in range(repeats):
            name = f"block{number}{'abcd'[repeat]}"
            x = _inverted_residual(x, kernel, stride if repeat == 0 else 1, expansion, channels, name=name)
    x = _conv_bn(x, layers.Conv2D(1280, 1, padding="same", use_bias=False, name="head_conv"))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(image, layers.Dense(CLASSES, name="top")(x), name="efficientnet_lite0")


def _inverted_residual(x, kernel: int, stride: int, expansion: int, channels: int, *, name: str):
    """Expand 1x1 -> depthwise -> project 1x1 without activation; Add where the shape stays (Sandler et al. 2018)."""
    y = x
    if expansion > 1:
        y = _conv_bn(y, layers.Conv2D(expansion * x.shape[-1], 1, padding="same", use_bias=False, name=f"{name}_expand_conv"))
    y = _conv_bn(y, layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv"))
    y = _conv_bn(y, layers.Conv2D(channels, 1, padding="same", use_bias=False, name=f"{name}_project_conv"), relu=False)
    return layers.Add(name=f"{name}_add")([y, x]) if y.shape == x.shape else y


def _conv_bn(x, layer: layers.Layer, *, relu: bool = True):
    stem = layer.name.removesuffix("_conv")
    x = layers.BatchNormalization(epsilon=BN_EPSILON, name=f"{stem}_bn")(layer(x))
    return layers.ReLU(6.0, name=f"{stem}_relu")(x) if relu else x


def _of_layer(layer: layers.Layer, weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """A layer's weights in Keras's order and layout, from torch's by name."""
    name = torch_name(layer.name)
    if isinstance(layer, layers.BatchNormalization):
        return [weights[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
    if isinstance(layer, layers.Dense):
        return [weights[f"{name}.weight"].T, weights[f"{name}.bias"]]
    # (out, in, height, width) -> (height, width, in, out); a depthwise kernel is (channel, 1, h, w) -> (h, w, channel, 1).
    axes = (2, 3, 0, 1) if isinstance(layer, layers.DepthwiseConv2D) else (2, 3, 1, 0)
    return [weights[f"{name}.weight"].transpose(axes)]


def torch_name(name: str) -> str:
    """A layer's name in the weight file: `block2b_project_bn` -> `_blocks.2._bn2`, where 2 counts all blocks before it."""
    outside = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1", "top": "_fc"}
    if name in outside:
        return outside[name]
    block, part = name.split("_", 1)
    stage, repeat = int(block[len("block") : -1]), "abcd".index(block[-1])
    number = sum(repeats for repeats, *_ in STAGES[: stage - 1]) + repeat
    parts = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}
    return f"_blocks.{number}.{parts.get(part, f'_{part}')}"
