"""A small inverted-residual network for Fashion-MNIST: depthwise convolutions, ReLU6, residual Adds, about 97 k parameters."""

from __future__ import annotations

import tf_keras as keras
from tf_keras import layers

# (expansion, output channels, stride) of each inverted-residual block.
BLOCKS = ((3, 24, 2), (3, 24, 1), (3, 40, 2), (3, 40, 1))


def build() -> keras.Model:
    """The network: images (batch, 28, 28, 1) in [0, 1] -> logits (batch, 10)."""
    image = keras.Input((28, 28, 1), name="image")
    x = _conv_bn(image, 16, 3, name="stem", activation=True)
    for number, (expansion, channels, stride) in enumerate(BLOCKS, start=1):
        x = _inverted_residual(x, expansion, channels, stride, name=f"block{number}")
    x = _conv_bn(x, 192, 3, name="head", activation=True)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(image, layers.Dense(10, name="logits")(x), name="fashion_mnist")


def _inverted_residual(x, expansion: int, channels: int, stride: int, *, name: str):
    """Expand 1x1 -> depthwise 3x3 -> project 1x1 without activation; Add where the shape stays (Sandler et al. 2018)."""
    y = _conv_bn(x, expansion * x.shape[-1], 1, name=f"{name}_expand", activation=True)
    y = layers.DepthwiseConv2D(3, stride, "same", use_bias=False, name=f"{name}_depthwise")(y)
    y = layers.BatchNormalization(name=f"{name}_depthwise_bn")(y)
    y = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(y)
    y = _conv_bn(y, channels, 1, name=f"{name}_project", activation=False)
    return layers.Add(name=f"{name}_add")([x, y]) if y.shape == x.shape else y


def _conv_bn(x, channels: int, size: int, *, name: str, activation: bool):
    x = layers.Conv2D(channels, size, padding="same", use_bias=False, name=name)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(x) if activation else x
